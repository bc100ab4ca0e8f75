"""Devices that only pretend, as real plug-ins of Paddle: what plug-ins can do is tried without having one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import paddle
import pytest

SOURCE = Path(__file__).with_name("pretend_device.cc")


def build_plugin(folder: Path, name: str) -> None:
    """Compile a plug-in with two devices of this name into a folder."""
    compiler = shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("a plug-in of Paddle is compiled with g++ on Linux")
    command = [compiler, "-shared", "-fPIC", "-std=c++17", f'-DPRETEND_NAME="{name}"']
    command += [f"-I{paddle.sysconfig.get_include()}", SOURCE, "-o", folder / f"libpretend_{name}.so"]
    subprocess.run(command, check=True)


def run_with_plugins(folder: Path, root: Path, script: str, **variables: str) -> Any:
    """What a script prints last, as JSON, run in a process of its own in which Paddle has these plug-ins."""
    environment = {**os.environ, "CUSTOM_DEVICE_ROOT": str(folder), **variables}
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{script}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
