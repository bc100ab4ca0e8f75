"""Files of a run folder that describe the run: config.yml, run.json, train.log."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import paddle
import pytest
import yaml
from helpers.small_config import write_config

from ppfcos.cli import command
from ppfcos.config import load_config
from ppfcos.config.show import config_text, resolved_config
from ppfcos.data.shapes import generate
from ppfcos.engine import run_record
from ppfcos.engine.run_record import (
    CONFIG_FILE,
    LOG_FILE,
    RECORD_FILE,
    RunLog,
    describe_run,
    git_state,
    write_record,
)
from ppfcos.errors import ConfigError, OutputError

logger = logging.getLogger("ppfcos.engine")

# The configuration


@pytest.fixture
def small(tmp_path, root) -> Path:
    generate(tmp_path / "shapes", train=2, val=2, size=96, seed=3)
    return write_config(tmp_path / "small.yml", root, tmp_path / "shapes", tmp_path / "output")


def _read_back(text: str, folder: Path) -> dict:
    path = folder / "another_name.yml"
    path.write_text(text, encoding="utf-8")
    return resolved_config(load_config(path))


@pytest.mark.parametrize("name", ["fcos_r50_fpn_1x_coco", "fcos_r18_bccd", "fcos_demo_shapes"])
def test_a_written_configuration_is_read_back_as_the_same(name, root, tmp_path):
    overrides = ["epoch=3", "LearningRate.base_lr=1e-7", "EvalReader.sample_transforms.1.Resize.interp=2"]
    written = resolved_config(load_config(root / "configs" / f"{name}.yml", overrides))
    text = config_text(written)
    assert "_BASE_" not in text
    read = _read_back(text, tmp_path)
    assert read == written
    assert list(read) == list(written)
    assert read["filename"] == name
    assert (read["epoch"], read["LearningRate"]["base_lr"]) == (3, 1e-7)
    assert [each["name"] for each in read["LearningRate"]["schedulers"]][1] == "LinearWarmup"


@pytest.mark.parametrize(
    "text", ["1e3", "1.5", "2026-11-20", "off", "null", "1:30", "", " a: b # c", "été", "!x"]
)
def test_texts_stay_texts(text, small, tmp_path):
    written = resolved_config(load_config(small, [f"save_dir={json.dumps(text)}"]))
    assert written["save_dir"] == text
    assert _read_back(config_text(written), tmp_path)["save_dir"] == text
    # and for whoever reads the file with plain YAML, too
    assert yaml.safe_load(config_text(written))["save_dir"] == text


def test_a_part_written_in_place_of_its_name_is_read_back(small, tmp_path):
    written = resolved_config(load_config(small, ["PPFCOS.neck={name: PPFCOSFPN, out_channels: 32}"]))
    read = _read_back(config_text(written), tmp_path)
    assert read == written
    assert read["PPFCOSFPN"]["out_channels"] == 32


# The record


def test_a_record_describes_the_run(small, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "-c", "a file.yml", "--eval"])
    resolved = resolved_config(load_config(small))
    folder = tmp_path / "output" / "small"
    write_record(folder, describe_run("cpu"), resolved)
    (record,) = json.loads((folder / RECORD_FILE).read_text())
    assert shlex.split(record["command"]) == ["python", "tools/train.py", "-c", "a file.yml", "--eval"]
    assert record["folder"] == str(tmp_path)
    assert record["host"] == os.uname().nodename
    assert record["processes"] == len(record["devices"]) == 1
    assert record["devices"][0].startswith("cpu: ")
    assert record["versions"]["paddle"] == metadata.version("paddlepaddle")
    assert len(record["versions"]["paddle_commit"]) == 40
    assert record["versions"]["ppdet"] == metadata.version("paddledet")
    assert record["versions"]["numpy"] == metadata.version("numpy")
    assert (record["versions"]["cuda"] is None) is not paddle.device.is_compiled_with_cuda()
    assert record["checkout"] == git_state(root / "ppfcos")
    assert record["config"] == resolved
    assert resolved_config(load_config(folder / CONFIG_FILE)) == resolved


def test_a_second_run_is_appended_to_the_record(small, tmp_path):
    for epochs in (1, 2):
        resolved = resolved_config(load_config(small, [f"epoch={epochs}"]))
        write_record(tmp_path / "run", describe_run("cpu"), resolved)
    records = json.loads((tmp_path / "run" / RECORD_FILE).read_text())
    assert [record["config"]["epoch"] for record in records] == [1, 2]
    assert load_config(tmp_path / "run" / CONFIG_FILE)["epoch"] == 2


@pytest.mark.parametrize("content", ["{", '{"a": 1}'])
def test_a_foreign_run_json_is_not_overwritten(content, small, tmp_path):
    (tmp_path / RECORD_FILE).write_text(content)
    with pytest.raises(OutputError, match=r"run\.json .* move it away$"):
        write_record(tmp_path, describe_run("cpu"), resolved_config(load_config(small)))
    assert (tmp_path / RECORD_FILE).read_text() == content
    assert not (tmp_path / CONFIG_FILE).exists()


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A package in a separate git checkout."""
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "checkout" / "README").write_text("first\n")
    _git(package.parent, "init", "--quiet")
    _git(package.parent, "add", "package", "README")
    _git(package.parent, "-c", "user.name=n", "-c", "user.email=n@n", "commit", "--quiet", "-m", "first")
    return package


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout


def test_the_commit_is_the_checkouts_and_changes_are_named(checkout):
    commit = _git(checkout, "rev-parse", "HEAD").strip()
    assert git_state(checkout) == {"commit": commit, "dirty": False, "changed": []}
    (checkout / "note").write_text("git does not track this")
    assert git_state(checkout)["dirty"] is False
    (checkout.parent / "README").write_text("second\n")
    assert git_state(checkout) == {"commit": commit, "dirty": True, "changed": ["README"]}


def test_there_is_no_commit_outside_a_checkout_or_without_git(checkout, tmp_path, monkeypatch):
    installed = checkout.parent / ".venv" / "package"  # in the folder of a checkout, but no part of it
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert git_state(installed) is None
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(checkout) is None


def test_the_command_line_is_as_it_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ppfcos", "train", "-c", "a.yml"])
    assert run_record.command_line() == "/usr/bin/ppfcos train -c a.yml"
    assert command.command_line("eval", "-c", "b c.yml") == "ppfcos eval -c 'b c.yml'"
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "-c", "a.yml"])
    assert command.command_line("eval", "-c", Path("b.yml")) == "python tools/eval.py -c b.yml"


# The log


def _run(
    folder: Path, *, title: str = "train", error: BaseException | None = None, opens: bool = True
) -> int:
    """A command that logs, opens the log of a folder, logs again, and ends."""

    def log(options):
        with RunLog() as run_log:
            logger.warning("before")
            if opens:
                run_log.open(folder, title)
            logger.info("after\nin two lines")
            if error is not None:
                raise error

    parser = command.option_parser("Logs.", "log", config_required=False)
    return command.run(log, parser, [])


def _lines(folder: Path) -> list[str]:
    """The log, without its times."""
    lines = (folder / LOG_FILE).read_text().splitlines()
    return [line.split("] ", 1)[-1] for line in lines]


def test_the_log_includes_messages_before_it_was_opened(tmp_path, capsys):
    assert _run(tmp_path / "run") == 0
    expected = ["warning: before", "after", "in two lines"]
    assert _lines(tmp_path / "run") == ["===== train =====", *expected]
    assert [line.split("] ", 1)[-1] for line in capsys.readouterr().out.splitlines()] == expected
    assert (tmp_path / "run" / LOG_FILE).read_text().splitlines()[1].startswith("[20")
    logger.warning("nobody listens any more")
    assert len(_lines(tmp_path / "run")) == 4


def test_runs_are_separated_even_after_an_incomplete_line(tmp_path):
    _run(tmp_path, title="first")
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write("[2026-11-20 01:02:03] killed in the mid")
    _run(tmp_path, title="second")
    said = ["warning: before", "after", "in two lines"]
    assert _lines(tmp_path) == [
        *("===== first =====", *said, "killed in the mid"),
        *("===== second =====", *said),
    ]


@pytest.mark.parametrize(
    ("error", "code", "end"),
    [(ConfigError("no such key"), 2, ["error: no such key"]), (KeyboardInterrupt(), 130, ["interrupted"])],
)
def test_what_ended_a_run_is_in_its_log(tmp_path, error, code, end):
    assert _run(tmp_path, error=error) == code
    assert _lines(tmp_path)[4:] == end


def test_an_unexpected_error_is_in_the_log_with_its_traceback(tmp_path):
    with pytest.raises(RuntimeError):
        _run(tmp_path, error=RuntimeError("a mistake of ours"))
    lines = _lines(tmp_path)
    assert lines[4:6] == ["error: a mistake of ours", "Traceback (most recent call last):"]
    assert lines[-1] == "RuntimeError: a mistake of ours"


def test_a_run_that_fails_before_it_starts_writes_nothing(tmp_path):
    assert _run(tmp_path / "run", opens=False, error=ConfigError("wrong")) == 2
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_hold_the_log_is_an_error_of_one_line(tmp_path, capsys):
    (tmp_path / LOG_FILE).mkdir()
    assert _run(tmp_path) == 2
    assert f"error: {tmp_path / LOG_FILE} cannot be written: Is a directory" in capsys.readouterr().err


SCRIPT = """
import logging, os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ppfcos import environment
from ppfcos.cli import command
with environment.quiet_imports():
    from ppfcos.engine.run_record import RunLog

logger = logging.getLogger("ppfcos.engine")


def log(options):
    with RunLog() as run_log:
        run_log.open(Path(sys.argv[2]), "train")
        logger.info("the last words")
        {what_happens}
        logger.info("too much")
        logger.info("it goes on")


sys.exit(command.run(log, command.option_parser("Logs.", "log", config_required=False), []))
"""


def _run_script(what_happens: str, root: Path, folder: Path) -> subprocess.CompletedProcess:
    script = SCRIPT.format(what_happens=what_happens)
    arguments = [sys.executable, "-c", script, str(root), str(folder)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60)


def test_a_full_disk_ends_the_log_but_not_the_run(tmp_path, root):
    """A size limit for the files of the process acts as a full disk."""
    size = "size = (Path(sys.argv[2]) / 'train.log').stat().st_size; "
    finished = _run_script(size + "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))", root, tmp_path)
    assert finished.returncode == 0
    assert finished.stderr == ""
    said = [line.split("] ", 1)[1] for line in finished.stdout.splitlines()]
    warning = f"warning: {tmp_path / LOG_FILE} cannot be written (File too large): going on without it"
    assert sorted(said) == sorted(["the last words", "too much", "it goes on", warning])
    assert _lines(tmp_path) == ["===== train =====", "the last words"]


def test_a_killed_run_keeps_its_whole_log(tmp_path, root):
    finished = _run_script("os.kill(os.getpid(), signal.SIGKILL)", root, tmp_path)
    assert finished.returncode == -signal.SIGKILL
    assert _lines(tmp_path) == ["===== train =====", "the last words"]
