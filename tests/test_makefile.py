"""The Makefile and scripts/test_on.sh, without installations: errors, choice of Python and requirements."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest


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
    assert line.startswith("error: no Python 3.9 to 3.13 with venv among: /bin/false")


def test_too_little_disk(make, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text("")
    [line] = make("NEEDED_MB=900000000", "test")
    assert line.startswith(f"error: {tmp_path} has ") and line.endswith("needs 900000000 MB")
    assert not (tmp_path / ".venv" / ".installed").exists()


def test_newest_python_is_taken(make, tmp_path):
    """The first suitable program on PATH makes the environment."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, suitable in (("python3.12", False), ("python3.13", True), ("python3.10", True)):
        script = f'#!/bin/sh\n[ "$1" = -m ] && echo {name} >chosen\n{"true" if suitable else "false"}\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    make("NEEDED_MB=900000000", f"PATH={programs}:/usr/bin:/bin", "test")
    assert (tmp_path / "chosen").read_text() == "python3.13\n"


@pytest.mark.parametrize(
    ("version", "file"),
    [("3.9", "requirements/conservative"), ("3.12", "requirements"), ("3.13", "requirements")],
)
def test_requirements_of_each_python(root, version, file):
    [line] = re.findall(r"^CHOOSE := (.*)$", (root / "Makefile").read_text(encoding="utf-8"), re.M)
    code = line.replace("import sys; ", "")
    major, minor = version.split(".")

    class System:
        version_info = (int(major), int(minor))

    printed = []
    exec(code, {"sys": System, "print": lambda text, end: printed.append(text + end)})
    assert printed == [f"{file}.txt"]
    assert (root / printed[0]).is_file()


def run_script(root, *arguments, **variables):
    return subprocess.run(
        [root / "scripts" / "test_on.sh", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("3.12",), ("3.12", "3.3"), ("3.12", "newest")])
def test_script_prints_its_usage(root, arguments):
    done = run_script(root, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "scripts/test_on.sh PYTHON PADDLE [ARGUMENTS OF PYTEST]" in done.stderr


def test_script_without_the_python(root, tmp_path):
    done = run_script(root, "3.77", "3.3.1", ENVIRONMENTS=str(tmp_path))
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    assert done.stderr.startswith("error: no Python 3.77")


def test_lines_that_the_script_edits_exist(root):
    """Each set of requirements has one pin of Paddle, and one line for paddle2onnx."""
    for names in (("requirements.txt", "requirements/onnx.txt"), ("requirements/conservative.txt",)):
        text = "\n".join((root / name).read_text(encoding="utf-8") for name in names)
        assert len(re.findall(r"^paddlepaddle==", text, re.M)) == 1
        assert len(re.findall(r"^paddle2onnx", text, re.M)) == 1
