"""scripts/test_on_paddle.sh up to where it would install: what it is told, and what it says if it cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest


@pytest.fixture
def script(root, tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed, by which the script makes environments")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = {**inherited, "ENVIRONMENTS": str(tmp_path), "PYTHON": "/bin/false"}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [root / "scripts" / "test_on_paddle.sh", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("arguments", [(), ("newest",), ("3.2",), ("--", "-q")])
def test_without_versions_it_says_how_it_is_used(script, arguments):
    done = script(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "scripts/test_on_paddle.sh VERSION... [-- ARGUMENTS OF PYTEST]" in done.stderr


def test_a_version_that_cannot_be_installed_is_in_the_table_and_the_next_is_tried(script):
    done = script("2.6.2", "3.2.2", "--", "-q")
    assert done.returncode == 1
    assert done.stderr.count("error: no Python 3.9 to 3.11 with venv among: /bin/false") == 2
    table = done.stdout.strip().splitlines()[-3:]
    assert table[0].split() == ["Paddle", "passed", "failed", "errors", "skipped"]
    assert table[1:] == [f"{version:10} could not be installed" for version in ("2.6.2", "3.2.2")]


def test_the_lines_that_it_changes_are_in_the_requirements(root):
    text = (root / "scripts" / "test_on_paddle.sh").read_text(encoding="utf-8")
    changes = re.findall(r's/(\^\w+==)\.\*/.*folder/(requirements/\w+\.txt)"', text)
    assert [file for _, file in changes] == ["requirements/cpu.txt", "requirements/onnx.txt"]
    for pattern, file in changes:
        assert len(re.findall(pattern, (root / file).read_text(encoding="utf-8"), re.M)) == 1
