"""The Makefile and the requirements: errors before anything is installed, and extras that fit together."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement


@pytest.fixture
def make(root, tmp_path):
    """Run make in a folder with only the Makefile and the requirements; return the error lines."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(root / name, tmp_path)
    shutil.copytree(root / "requirements", tmp_path / "requirements")

    # without the flags that `make test` passes to its children
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
    assert line.startswith(f"error: {tmp_path} has ") and line.endswith("needs 900000000 MB")
    assert not (tmp_path / ".venv" / ".installed").exists()


def test_pip_on_a_python_that_is_too_new(root, tmp_path):
    """Replace the version in the condition by that of this Python, so that its pip stops."""
    text = (root / "requirements/train.txt").read_text(encoding="utf-8")
    assert text.count('python_version >= "3.12"') == 1
    here = ".".join(map(str, sys.version_info[:2]))
    (tmp_path / "train.txt").write_text(text.replace('"3.12"', f'"{here}"'))
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index"]
    done = subprocess.run([*pip, "-r", tmp_path / "train.txt"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    [error] = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    assert "make-the-environment-with-Python-3.9-to-3.11" in error


def requirements_of(root, *names: str) -> list[Requirement]:
    lines = [
        line.partition("#")[0].strip()
        for name in names
        for line in (root / f"requirements/{name}.txt").read_text(encoding="utf-8").splitlines()
    ]
    return [Requirement(line) for line in lines if line and not line.startswith("-") and " @ " not in line]


# Versions of the pinned PaddleDetection 2.6.0: the newest that its own requirements accept.
INSTALLED_BY_PADDLEDET = {"numpy": "1.23.5", "opencv-python": "4.6.0.66", "setuptools": "80.0.0"}


def test_all_extras_accept_the_versions_of_paddledetection(root):
    names = [path.stem for path in (root / "requirements").glob("*.txt") if path.stem != "docs"]
    for requirement in requirements_of(root, *names):
        version = INSTALLED_BY_PADDLEDET.get(requirement.name)
        assert version is None or requirement.specifier.contains(version), str(requirement)


def test_extras_with_torch_cap_setuptools(root):
    """Torch alone installs a setuptools without pkg_resources, which paddledet imports."""
    for names in (("train",), ("dev",), ("torch",)):
        caps = [each for each in requirements_of(root, *names) if each.name == "setuptools"]
        assert caps and not caps[0].specifier.contains("82.0.0"), names


def test_every_requirements_file_belongs_to_an_extra(root):
    used = set(re.findall(r'requirements\("(\w+)"\)', (root / "setup.py").read_text(encoding="utf-8")))
    assert {path.stem for path in (root / "requirements").glob("*.txt")} - used == {"tests_apart"}
