"""What `make` and pip say on a machine where they cannot go on: one line, before anything is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def make(root, tmp_path):
    """make in a copy of what it needs, with an environment that is there already."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed, and these are tests of the Makefile")
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(root / name, tmp_path)
    shutil.copytree(root / "requirements", tmp_path / "requirements")

    # `make test` hands its own flags and level on, with which this make would speak as a part of that one
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }

    def run(*arguments: str) -> list[str]:
        done = subprocess.run(
            ["make", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        return [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]

    return run


def test_no_suitable_python(make):
    [line] = make("PYTHON=/bin/false", "test")
    assert line.startswith("error: no Python 3.9 to 3.11 with venv among: /bin/false")


def test_too_little_disk(make, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text("")
    [line] = make("NEEDED_MB=900000000", "test")
    assert line.startswith(f"error: {tmp_path} has ") and line.endswith("takes 900000000: free some")
    assert not (tmp_path / ".venv" / ".installed").exists()


def test_pip_on_a_python_that_is_too_new(root, tmp_path):
    """The requirements as that Python's pip would take them: with this one's version in their condition."""
    text = (root / "requirements/train.txt").read_text(encoding="utf-8")
    assert text.count('python_version >= "3.12"') == 1
    here = ".".join(map(str, sys.version_info[:2]))
    (tmp_path / "train.txt").write_text(text.replace('"3.12"', f'"{here}"'))
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index"]
    done = subprocess.run([*pip, "-r", tmp_path / "train.txt"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    [error] = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    assert "make-the-environment-with-Python-3.9-to-3.11" in error
