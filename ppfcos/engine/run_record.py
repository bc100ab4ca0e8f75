"""What a run was: its configuration and everything else that is needed to understand or repeat it.

`config.yml` is the configuration with all that it inherited and every `-o`; a training of that file is the
same training. `run.json` is a list with an entry for every time that a training wrote to the folder.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

import ppfcos
from ppfcos import environment
from ppfcos.config.show import config_text
from ppfcos.console import valid
from ppfcos.engine import distributed
from ppfcos.errors import OutputError
from ppfcos.fileio import replacing
from ppfcos.json_files import to_json

CONFIG_FILE = "config.yml"
RECORD_FILE = "run.json"
GIT_SECONDS = 10  # on a slow network drive, git may take longer than it is worth


def describe_run(device: str) -> dict[str, Any]:
    """What there is to know about a run before it begins. All processes must call it.

    Args:
        device: as Paddle names it, of this process.

    Returns:
        To be written as JSON; what cannot be found out is None.
    """
    return {
        "command": command_line(),
        "launched_by": _launcher(),
        "folder": os.getcwd(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processes": distributed.world_size(),
        "devices": distributed.all_gather_object(f"{device}: {device_name(device)}"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": versions(),
        "checkout": git_state(Path(ppfcos.__file__).parent),
    }


def write_record(folder: Path, record: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """Write config.yml, and add an entry to run.json.

    Args:
        folder: of the run.
        record: from `describe_run`.
        resolved: the configuration, from `resolved_config`.

    Raises:
        OutputError: they cannot be written, or run.json is something else.
    """
    records = [*_earlier_records(folder / RECORD_FILE), {**record, "config": resolved}]
    head = (
        f"# The configuration of the run of {record['started']}, with all that it inherited and every -o.\n"
        f"# It was started in {record['folder']}, from where its relative paths count.\n"
    )
    with replacing(folder / CONFIG_FILE) as unfinished:
        unfinished.write_text(valid(head + config_text(resolved)), encoding="utf-8")
    with replacing(folder / RECORD_FILE) as unfinished:
        unfinished.write_text(to_json(records, indent=2) + "\n", encoding="utf-8")


def _earlier_records(path: Path) -> list:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read ({error}), to add this run to it: move it away") from error
    if not isinstance(records, list):
        raise OutputError(f"{path} is no list of runs, to which this one could be added: move it away")
    return records


def command_line() -> str:
    """The command that this process runs.

    Returns:
        To be pasted into a shell, in the folder of the record.
    """
    return shlex.join(["python", *sys.argv] if sys.argv[0].endswith(".py") else sys.argv)


def _launcher() -> str | None:
    """The command line of `paddle.distributed.launch`, where that started this process."""
    if distributed.world_size() == 1:
        return None
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")
    except (OSError, UnicodeDecodeError):  # another system
        return None
    return shlex.join(word for word in words if word)


def device_name(device: str) -> str:
    """The product behind a device's name.

    Args:
        device: as Paddle names it.

    Returns:
        Such as `NVIDIA H200` or `AMD EPYC 9R14`; of others, the device itself.
    """
    if device.startswith("gpu"):
        return paddle.device.cuda.get_device_name(device)
    if device == "cpu":
        return environment.processor_name() or platform.machine()
    return device


def versions() -> dict[str, str | None]:
    """What computes.

    Returns:
        Versions by name; None of what is not there.
    """
    return {
        "python": platform.python_version(),
        "ppfcos": ppfcos.__version__,
        "paddle": paddle.__version__,
        "paddle_commit": paddle.version.commit,
        "ppdet": _installed("paddledet"),
        "numpy": np.__version__,
        "opencv": _installed("opencv-python"),
        "cuda": _of_paddle(paddle.version.cuda()),
        "cudnn": _of_paddle(paddle.version.cudnn()),
    }


def _of_paddle(version: str) -> str | None:
    """Paddle says "False" of what it was built without."""
    return None if version in ("False", "None", "") else version


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Which commit the code in a folder is of.

    Args:
        folder: of the package.

    Returns:
        `commit`, `dirty`: whether tracked files differ from it, and `changed`: which; None where the folder
        is no part of a checkout, as after `pip install`, or git is absent.
    """
    # A virtual environment may lie in the checkout of something else: it does not track what is in there.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "diff", "--name-only", "HEAD")
    if commit is None or changed is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(changed), "changed": changed.splitlines()}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout
