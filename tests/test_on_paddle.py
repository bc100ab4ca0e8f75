"""scripts/test_on_paddle.sh without installations: usage, errors and the lines that it edits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest


@pytest.fixture
def script(root, tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed; the script uses it")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = {**inherited, "ENVIRONMENTS": str(tmp_path), "PYTHON": "/bin/false"}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [root / "scripts" / "test_on_paddle.sh", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("arguments", [(), ("newest",), ("3.2",), ("--", "-q")])
def test_usage_is_printed_without_versions(script, arguments):
    done = script(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "scripts/test_on_paddle.sh VERSION... [-- ARGUMENTS OF PYTEST]" in done.stderr


def test_failed_installations_are_in_the_table(script):
    done = script("2.6.2", "3.2.2", "--", "-q")
    assert done.returncode == 1
    assert done.stderr.count("error: no Python 3.9 to 3.11 with venv among: /bin/false") == 2
    table = done.stdout.strip().splitlines()[-3:]
    assert table[0].split() == ["Paddle", "passed", "failed", "errors", "skipped"]
    assert table[1:] == [f"{version:10} could not be installed" for version in ("2.6.2", "3.2.2")]


def test_edited_lines_exist_in_the_requirements(root):
    text = (root / "scripts" / "test_on_paddle.sh").read_text(encoding="utf-8")
    changes = re.findall(r's/(\^\w+==)\.\*/.*folder/(requirements/\w+\.txt)"', text)
    assert [file for _, file in changes] == ["requirements/cpu.txt", "requirements/onnx.txt"]
    for pattern, file in changes:
        assert len(re.findall(pattern, (root / file).read_text(encoding="utf-8"), re.M)) == 1
