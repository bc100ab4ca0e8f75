"""Trainings that are killed, stopped by a signal, or run out of disk, and how they resume."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_proc
from helpers.small_config import write_config

from ppfcos.data.shapes import generate
from ppfcos.engine import checkpoint
from ppfcos.engine.run_folder import find_latest
from ppfcos.engine.weights import read_state

LIBC = ctypes.CDLL(None)
LAUNCH = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
# Frozen norms, whose statistics would be of one process's images; a rate at which the loss falls steadily.
# Where it leaps about, what two processes round in another way than one grows from step to step.
STEADY = ("ResNet.freeze_norm=true", "LearningRate.base_lr=0.001")


def _as_users_start_it() -> None:
    """In the new process. A test runner may ignore Ctrl-C, or SIGHUP by nohup, and its children inherit that;
    and who is root may write to read-only folders, which is taken away."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if sys.platform == "linux":
        drop_from_bounding_set, right_to_all_files = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
        LIBC.prctl(drop_from_bounding_set, right_to_all_files, 0, 0, 0)


class Run:
    """A training process of 2 epochs of 6 steps, and its output."""

    def __init__(self, folder: Path, root: Path, dataset: Path):
        folder.mkdir(exist_ok=True)
        self.root = root
        self.config = write_config(folder / "small.yml", root, dataset, folder / "run")
        self.folder = folder / "run" / "small"
        self.log = folder / "run.log"

    def command(self, *overrides: str, launch: Sequence = (), options: Sequence = ()) -> list[str]:
        program = [sys.executable, *launch, str(self.root / "tools" / "train.py"), "-c", str(self.config)]
        return [*program, "-r", "auto", *options, "-o", "epoch=2", *STEADY, *overrides]

    def start(self, *overrides: str, prefix: Sequence = (), **more) -> subprocess.Popen:
        with self.log.open("w") as out:
            return subprocess.Popen(
                [*prefix, *self.command(*overrides, **more)],
                cwd=self.config.parent,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=_as_users_start_it,
            )

    def finish(self, *overrides: str, **more) -> str:
        assert self.start(*overrides, **more).wait(timeout=200) == 0, self.log.read_text()
        return self.log.read_text()

    def wait_for(self, text: str, process: subprocess.Popen) -> None:
        until = time.monotonic() + 120
        while text not in self.log.read_text():
            assert process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def weights(self) -> dict:
        state = read_state(self.folder / "model_final.pdparams")
        return {name: value for name, value in state.items() if isinstance(value, np.ndarray)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    generate(folder, train=12, val=3, size=96, seed=1)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, root, dataset) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed"), root, dataset)
    run.finish()
    return run


@pytest.fixture
def run(tmp_path, root, dataset) -> Run:
    return Run(tmp_path, root, dataset)


def _assert_same_bits(run: Run, other: Run) -> None:
    ours, theirs = run.weights(), other.weights()
    assert len(ours) > 50 and ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_a_run_killed_five_times_ends_with_the_same_bits(root):
    script = [sys.executable, str(root / "benchmarks" / "kill_and_resume.py"), "--kills", "5"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills; weights and optimizer are bit-identical" in done.stdout


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 0), (signal.SIGHUP, 1)])
def test_a_signal_finishes_the_step_and_the_run_resumes_there(run, undisturbed, number, workers):
    process = run.start(f"worker_num={workers}")
    run.wait_for("step: [2/6]", process)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number, run.log.read_text()
    last = run.log.read_text().splitlines()[-1]
    newest = find_latest(run.folder)
    state = checkpoint.read_manifest(newest)
    where = f"after epoch {state.epochs} and {state.step} steps; checkpoint: {newest}.pdparams"
    assert last == f"stopped by {signal.Signals(number).name} {where}; go on with -r auto"
    assert f"resumed from {newest}, after epoch {state.epochs}" in run.finish(f"worker_num={workers}")
    _assert_same_bits(run, undisturbed)


def test_a_signal_before_the_first_step_ends_the_run_at_once(run):
    process = run.start("worker_num=0")
    run.wait_for("TrainDataset: 12 images", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert run.log.read_text().splitlines()[-1].startswith("stopped by SIGTERM")


def test_two_processes_stop_at_one_step_and_one_process_resumes(run, undisturbed):
    process = run.start("worker_num=1", launch=LAUNCH)
    run.wait_for("step: [2/6]", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == signal.SIGTERM  # a code of Paddle's launcher
    logs = [(run.config.parent / "log" / f"workerlog.{rank}").read_text() for rank in (0, 1)]
    state = checkpoint.read_manifest(find_latest(run.folder))
    for log in logs:
        assert log.count(f"stopped by SIGTERM after epoch {state.epochs} and {state.step} steps") == 1
        assert "C++ Traceback" not in log and "rror" not in log
    text = run.finish("worker_num=0")
    assert "1 processes instead of 2: each step is the same" in text
    for name, value in undisturbed.weights().items():
        np.testing.assert_allclose(run.weights()[name], value, atol=1e-4, err_msg=name)


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_two_processes_write_a_checkpoint_if_their_launcher_ends(run, number):
    """As when its terminal is closed: the launcher does not handle SIGHUP."""
    launcher = run.start("worker_num=0", "epoch=500", launch=LAUNCH)
    run.wait_for("step: [1/6]", launcher)
    pids = [
        int(child) for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ]
    launcher.send_signal(number)
    assert launcher.wait(timeout=10) == -number
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.1)
    state = checkpoint.read_manifest(find_latest(run.folder))
    for rank in (0, 1):
        log = (run.config.parent / "log" / f"workerlog.{rank}").read_text()
        assert f"after epoch {state.epochs} and {state.step} steps" in log and "Traceback" not in log


def test_a_closed_terminal_leaves_a_checkpoint(run):
    """The process gets SIGHUP, and its output, with a progress bar, can no longer be written."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))

    def take_terminal():
        _as_users_start_it()
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        run.command("worker_num=1", "epoch=500"),
        cwd=run.config.parent,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    sent = b""
    while b"step 2/6" not in sent:
        sent += os.read(ours, 65536)
    os.close(ours)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    state = checkpoint.read_manifest(find_latest(run.folder))
    last = (run.folder / "train.log").read_text().splitlines()[-1]
    assert f"stopped by SIGHUP after epoch {state.epochs} and {state.step} steps" in last


def test_nohup_outlives_the_terminal(run):
    process = run.start("worker_num=0", prefix=["nohup"])
    run.wait_for("step: [1/6]", process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=200) == 0


@needs_proc
def test_a_signal_to_one_of_two_processes_stops_both(run):
    launcher = run.start("worker_num=0", launch=LAUNCH)
    run.wait_for("step: [1/6]", launcher)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    variables = {int(child): Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    (second,) = [child for child, known in variables.items() if b"PADDLE_TRAINER_ID=1" in known]
    reported = run.log.read_text().count("step: [")
    os.kill(second, signal.SIGTERM)
    # Which is what the launcher says of the first process that did not end by itself.
    assert launcher.wait(timeout=60) == 128 + signal.SIGTERM, run.log.read_text()
    state = checkpoint.read_manifest(find_latest(run.folder))
    finished = state.epochs * state.plan.steps_per_epoch + state.step
    assert finished <= reported + 3, "they went on to the end of the epoch"
    for rank in (0, 1):
        log = (run.config.parent / "log" / f"workerlog.{rank}").read_text()
        assert log.count(f"stopped by SIGTERM after epoch {state.epochs} and {state.step} steps") == 1
        assert "C++ Traceback" not in log and "rror" not in log


def test_a_run_resumes_from_an_older_checkpoint_if_the_newest_is_damaged(run, undisturbed):
    run.finish()
    content = bytearray((run.folder / "model_final.pdparams").read_bytes())
    content[len(content) // 2] ^= 1
    (run.folder / "model_final.pdparams").write_bytes(content)
    text = run.finish()
    assert "model_final is skipped" in text and "model_final.pdparams is damaged" in text
    assert f"resumed from {run.folder}/0, after epoch 1" in text
    _assert_same_bits(run, undisturbed)


def test_a_finished_run_is_unchanged_by_another_start(undisturbed):
    before = (undisturbed.folder / "model_final.json").read_bytes()
    text = undisturbed.finish()
    assert "step: [" not in text and "training is done" in text
    assert (undisturbed.folder / "model_final.json").read_bytes() == before


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(run):
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux can limit the files of a running process")
    process = run.start()
    run.wait_for("epoch: [2/2] step: [1/6]", process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    assert process.wait(timeout=120) == 2
    last = run.log.read_text().splitlines()[-1]
    assert last == f"error: {run.folder}/model_final.pdopt cannot be written: File too large"
    assert find_latest(run.folder) == run.folder / "0"


def test_a_folder_that_becomes_read_only_ends_the_run_and_keeps_the_last_checkpoint(run):
    probe = [sys.executable, "-c", "open('closed/probe', 'w')"]
    closed = run.config.parent / "closed"
    closed.mkdir(mode=0o555)
    started = {"cwd": closed.parent, "stderr": subprocess.DEVNULL, "preexec_fn": _as_users_start_it}
    if subprocess.run(probe, check=False, **started).returncode == 0:
        pytest.skip(
            "no folder is read-only here: root without Linux's capabilities, or a disk without permissions"
        )
    process = run.start()
    run.wait_for("epoch: [2/2] step: [1/6]", process)
    run.folder.chmod(0o555)
    before = {path: path.read_bytes() for path in run.folder.glob("0.*")}
    assert process.wait(timeout=120) == 2
    last = run.log.read_text().splitlines()[-1]
    assert last == f"error: {run.folder}/model_final.pdopt cannot be written: Permission denied"
    left = {path.name for path in run.folder.iterdir()}
    assert left == {".lock", "0.json", "0.pdopt", "0.pdparams", "config.yml", "run.json", "train.log"}
    assert {path: path.read_bytes() for path in run.folder.glob("0.*")} == before
    assert find_latest(run.folder) == run.folder / "0"


def test_a_missed_evaluation_is_done_at_the_next_start(run):
    run.finish("epoch=1")
    assert checkpoint.read_manifest(run.folder / "model_final").ap is None
    text = run.finish("epoch=1", options=["--eval"])
    assert "step: [" not in text and "Average Precision" in text
    assert checkpoint.read_manifest(run.folder / "model_final").ap is not None
    assert (run.folder / "best_model.pdparams").is_file()
