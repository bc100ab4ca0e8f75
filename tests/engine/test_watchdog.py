"""Watchdog: ranks that die, fail, are stopped or exit normally, and what the others do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import needs_proc
from helpers.small_config import write_config

from ppfcos.data.shapes import generate
from ppfcos.engine import watchdog
from ppfcos.errors import DataError

MOST_SECONDS = 30  # from a death to the end of all


class Ranks:
    """Rank processes with watchdogs, without Paddle."""

    def __init__(self, folder: Path, root: Path):
        self.folder, self.script = folder, root / "tests" / "helpers" / "watchdog_rank.py"
        self.processes: dict[int, subprocess.Popen] = {}

    def start(self, rank: int, size: int, behaviour: str, prefix: tuple = (), **variables: str) -> None:
        command = [*prefix, sys.executable, self.script, str(rank), str(size), self.folder, behaviour]
        self.processes[rank] = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PADDLE_TRAINER_ENDPOINTS": "127.0.0.1:1", **variables},
        )

    def wait_until_inside(self) -> None:
        _wait_for(lambda: all((self.folder / f"{rank}.inside").exists() for rank in self.processes))

    def ends(self) -> dict[int, tuple[int, str]]:
        """Exit code and standard error of each, by rank. Their children live until then."""
        codes = {rank: process.wait(timeout=MOST_SECONDS) for rank, process in self.processes.items()}
        self.end_children()  # which have the standard error too
        return {rank: (codes[rank], process.stderr.read()) for rank, process in self.processes.items()}

    def clear_away(self) -> None:
        self.end_children()
        for process in self.processes.values():
            process.kill()
            process.communicate()

    def end_children(self) -> None:
        for child in self.folder.glob("*.child"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child.read_text()), signal.SIGKILL)
            child.unlink()


def _wait_for(condition, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.05)


@pytest.fixture
def ranks(tmp_path, root):
    ranks = Ranks(tmp_path, root)
    yield ranks
    ranks.clear_away()


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_rank_ends_all_although_its_children_still_run(ranks, victim):
    variables = {"PADDLE_LOG_DIR": "/logs", "PADDLE_LOCAL_RANK": str(victim)}
    for rank in range(3):
        ranks.start(rank, 3, "wait with a child", **variables)
    ranks.wait_until_inside()
    ranks.processes[victim].kill()
    ends = ranks.ends()
    assert ends.pop(victim)[0] == -signal.SIGKILL
    pid, host = ranks.processes[victim].pid, socket.gethostname()
    for rank, (code, said) in ends.items():
        assert code == watchdog.EXIT_CODE
        (line,) = said.splitlines()
        assert f"rank {victim} of 3 (pid {pid} on {host}) was killed or crashed" in line
        assert f"/logs/workerlog.{victim}" in line
        assert f"rank {rank} of 3" in line


def test_ranks_that_exit_normally_are_no_failure(ranks):
    for rank in range(3):
        ranks.start(rank, 3, "leave")
    assert ranks.ends() == dict.fromkeys(range(3), (0, ""))


def test_an_error_of_one_rank_ends_the_others(ranks):
    for rank, behaviour in enumerate(("wait", "fail", "wait")):
        ranks.start(rank, 3, behaviour)
    ends = ranks.ends()
    code, said = ends.pop(1)
    assert code == 1
    assert said.rstrip().endswith("ValueError: it broke")
    for code, said in ends.values():
        assert code == watchdog.EXIT_CODE
        assert re.fullmatch(r"error: rank 1 of 3 \(.*\) stopped with ValueError: it broke; .*\n", said)


def test_an_error_that_a_user_can_fix_sets_the_exit_code_of_all_ranks(ranks):
    for rank, behaviour in enumerate(("wait", "fail with DataError", "wait")):
        ranks.start(rank, 3, behaviour)
    ends = ranks.ends()
    assert ends.pop(1)[0] == 1  # the exit code is the command line's matter
    for code, said in ends.values():
        assert code == DataError.exit_code
        (line,) = said.splitlines()
        assert "rank 1 of 3" in line and "DataError: no data here" in line


def test_a_rank_that_dies_after_an_error_is_not_named_as_its_cause(ranks):
    for rank, behaviour in enumerate(("wait", "fail", "wait")):
        ranks.start(rank, 3, behaviour)
    ranks.processes[1].wait()
    ranks.processes[2].kill()
    code, said = ranks.ends()[0]
    assert code == watchdog.EXIT_CODE
    assert re.fullmatch(r"error: rank 1 of 3 \(.*\) stopped with ValueError: it broke; .*\n", said)


def test_an_error_of_all_ranks_is_not_reported_by_the_watchdog(ranks):
    for rank in range(3):
        ranks.start(rank, 3, "fail in all")
    for code, said in ranks.ends().values():
        assert code == 1
        assert said.rstrip().endswith("DataError: no data anywhere")
        assert "stopped with" not in said


def test_a_stopped_rank_that_continues_in_time_is_not_dead(ranks):
    for rank in range(2):
        ranks.start(rank, 2, "wait")
    ranks.wait_until_inside()
    ranks.processes[1].send_signal(signal.SIGSTOP)
    time.sleep(2)
    ranks.processes[1].send_signal(signal.SIGCONT)
    time.sleep(3)
    assert ranks.processes[0].poll() is None
    (ranks.folder / "leave").touch()
    assert ranks.ends() == {0: (0, ""), 1: (0, "")}


def test_a_rank_whose_python_threads_are_blocked_is_not_dead(ranks):
    for rank in range(2):
        ranks.start(rank, 2, "hold the interpreter")
    ranks.wait_until_inside()
    time.sleep(8)
    (ranks.folder / "leave").touch()
    assert ranks.ends() == {0: (0, ""), 1: (0, "")}


@needs_proc
@pytest.mark.parametrize("stopped", [0, 2])
def test_a_stopped_rank_is_named_by_all_others(ranks, stopped):
    for rank in range(3):
        ranks.start(rank, 3, "wait")
    ranks.wait_until_inside()
    ranks.processes[stopped].send_signal(signal.SIGSTOP)
    for rank in {0, 1, 2} - {stopped}:
        process = ranks.processes[rank]
        assert process.wait(timeout=MOST_SECONDS) == watchdog.EXIT_CODE
        (line,) = process.stderr.read().splitlines()
        assert f"rank {stopped} of 3 (pid {ranks.processes[stopped].pid} on " in line
        assert "SIGSTOP" in line


@pytest.mark.parametrize("under_launcher", [True, False])
def test_a_rank_exits_with_its_launcher_and_not_with_a_shell(tmp_path, root, under_launcher):
    """The process that started the rank is killed."""
    start = (
        "import os, subprocess, sys, time\n"
        "rank = subprocess.Popen(sys.argv[1:], start_new_session='PADDLE_LOG_DIR' in os.environ)\n"
        "print(rank.pid, flush=True)\n"
        "time.sleep(60)"
    )
    command = [
        sys.executable,
        "-c",
        start,
        sys.executable,
        root / "tests" / "helpers" / "watchdog_rank.py",
        "0",
        "1",
    ]
    variables = {"PADDLE_TRAINER_ID": "0", "PADDLE_LOG_DIR": str(tmp_path)} if under_launcher else {}
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(
            [*command, tmp_path, "wait"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **variables},
        )
    pid = int(launcher.stdout.readline())
    _wait_for((tmp_path / "0.inside").exists)
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    if under_launcher:
        _wait_for(lambda: not _is_running(pid), 10)
        (line,) = (tmp_path / "log").read_text().splitlines()
        assert f"launcher (pid {launcher.pid})" in line
    else:
        time.sleep(2.5)
        assert _is_running(pid)
        (tmp_path / "leave").touch()
        _wait_for(lambda: not _is_running(pid), 10)
        assert (tmp_path / "log").read_text() == ""


def test_other_programs_cannot_connect(ranks):
    ranks.start(0, 2, "wait")
    _wait_for((ranks.folder / "main.json").exists)
    said = json.loads((ranks.folder / "main.json").read_text())
    answers = [b"GET / HTTP/1.1\r\n\r\n", json.dumps({"secret": "x", "member": said["member"]}).encode()]
    for answer in answers:
        with socket.create_connection(("127.0.0.1", said["port"])) as other:
            other.sendall(answer + b"\n")
            with contextlib.suppress(ConnectionResetError):
                assert other.recv(1) == b""
    ranks.start(1, 2, "wait")
    ranks.wait_until_inside()
    (ranks.folder / "leave").touch()
    assert ranks.ends() == {0: (0, ""), 1: (0, "")}


def test_a_rank_may_exit_before_all_ranks_are_connected(ranks):
    ranks.start(0, 2, "leave")
    _wait_for((ranks.folder / "main.json").exists)
    said = json.loads((ranks.folder / "main.json").read_text())
    introduction = {"secret": said["secret"], "member": [1, 2, "elsewhere", 1, ""]}
    with socket.create_connection(("127.0.0.1", said["port"])) as other:
        other.sendall(json.dumps(introduction).encode() + b'\n{"leaves": true}\n')
    assert ranks.ends() == {0: (0, "")}


@pytest.fixture
def two_machines():
    """Two network namespaces of Linux with a link between them, which act as two machines."""
    names = [f"ppfcos{os.getpid()}{end}" for end in "ab"]
    cables = [f"v{os.getpid()}{end}" for end in "ab"]
    lines = [f"ip netns add {name}" for name in names]
    lines += ["ip link add {} netns {} type veth peer name {} netns {}".format(*_pairs(cables, names))]
    for number, (name, cable) in enumerate(zip(names, cables)):
        lines += [f"ip -n {name} addr add 10.99.0.{number + 1}/24 dev {cable}"]
        lines += [f"ip -n {name} link set {cable} up"]
    try:
        if shutil.which("ip") is None or any(
            subprocess.run(line.split(), capture_output=True).returncode for line in lines
        ):
            pytest.skip("network namespaces need Linux, iproute2 and the rights of root")
        yield names, cables
    finally:
        for name in names if shutil.which("ip") else []:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _pairs(cables: list, names: list) -> list:
    return [item for pair in zip(cables, names) for item in pair]


def test_a_machine_that_vanishes_ends_all(ranks, two_machines):
    names, cables = two_machines
    for rank, name in enumerate(names):
        endpoints = {"PADDLE_TRAINER_ENDPOINTS": "10.99.0.1:1,10.99.0.2:1"}
        ranks.start(rank, 2, "wait", prefix=("ip", "netns", "exec", name), **endpoints)
    ranks.wait_until_inside()
    subprocess.run(["ip", "-n", names[1], "link", "set", cables[1], "down"], check=True)
    for rank, (code, said) in ranks.ends().items():
        assert code == watchdog.EXIT_CODE
        assert re.search(
            rf"rank {1 - rank} of 2 \(.*\) has not responded .* its machine or the network", said
        )


# Trainings


@pytest.fixture
def training(tmp_path, root):
    """Starts launchers of a training whose ranks have one worker each."""
    generate(tmp_path / "shapes", train=7, val=150, size=96, seed=1)
    config = write_config(tmp_path / "small.yml", root, tmp_path / "shapes", tmp_path / "run")
    launchers, started = [], []

    def start(name: str, *options: str, script: tuple = ()) -> subprocess.Popen:
        command = [sys.executable, "-m", "paddle.distributed.launch", *options, "--log_dir", name]
        command += [
            root / "tests" / "helpers" / "held_training.py",
            "-c",
            config,
            "-o",
            "epoch=100000",
            "worker_num=1",
        ]
        command += script
        with (tmp_path / f"{name}.out").open("w") as output:
            launchers.append(subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output))
        return launchers[-1]

    def wait_for_steps() -> list[int]:
        log = tmp_path / "first" / "workerlog.0"
        _wait_for(lambda: log.exists() and "step: [3/3]" in log.read_text(), 120)
        pids = [int((tmp_path / f"{rank}.pid").read_text()) for rank in (0, 1)]
        started.extend(pids)  # a stopped rank does not exit by itself
        for pid in pids:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            started.extend(int(child) for child in children.split())
        return pids

    yield start, wait_for_steps
    for process in launchers:
        process.kill()
        process.wait()
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@needs_proc
def test_a_killed_training_process_ends_the_other(training, tmp_path):
    start, wait_for_steps = training
    launcher = start("first", "--nproc_per_node", "2")
    pids = wait_for_steps()
    os.kill(pids[1], signal.SIGKILL)
    assert launcher.wait(timeout=MOST_SECONDS) != 0
    assert not any(_is_running(pid) for pid in pids)
    line = f"error: rank 1 of 2 (pid {pids[1]} on {socket.gethostname()}) was killed or crashed"
    log = (tmp_path / "first" / "workerlog.0").read_text()
    assert log.splitlines()[-1].startswith(line), log
    assert "Traceback" not in log
    shown = (tmp_path / "first.out").read_text()
    assert line in shown or re.search(r"Container rank 1 status failed .* code -9", shown), shown


def _start_two_launchers(start) -> list[subprocess.Popen]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        master = f"127.0.0.1:{free.getsockname()[1]}"
    options = ("--nnodes", "2", "--nproc_per_node", "1", "--master", master)
    return [start("first", *options, "--rank", "0"), start("second", *options, "--rank", "1")]


@needs_proc
def test_a_process_killed_on_one_machine_ends_those_of_the_other(training, tmp_path):
    start, wait_for_steps = training
    launchers = _start_two_launchers(start)
    pids = wait_for_steps()
    os.kill(pids[0], signal.SIGKILL)
    assert all(launcher.wait(timeout=MOST_SECONDS) for launcher in launchers)
    assert not any(_is_running(pid) for pid in pids)
    shown = (tmp_path / "second.out").read_text()
    assert f"error: rank 0 of 2 (pid {pids[0]} on {socket.gethostname()}) was killed or crashed" in shown


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for children in Path(f"/proc/{pid}/task").glob("*/children")
        for child in children.read_text().split()
    ]


def _end_of_logs(folder: Path) -> list[str]:
    """The last line of each rank. None has a traceback."""
    logs = [(folder / "first" / f"workerlog.{rank}").read_text() for rank in (0, 1)]
    assert "Traceback" not in "".join(logs), logs
    return [log.rstrip().rpartition("\n")[2] for log in logs]


@pytest.mark.slow
@needs_proc
def test_a_killed_launcher_ends_its_ranks_and_their_workers(training, tmp_path):
    start, wait_for_steps = training
    launcher = start("first", "--nproc_per_node", "2")
    pids = wait_for_steps()
    pids += [worker for pid in pids for worker in _children(pid)]
    assert len(pids) == 6  # each rank has a worker and the process of its watchdog
    launcher.kill()
    _wait_for(lambda: not any(_is_running(pid) for pid in pids), 10)
    for line in _end_of_logs(tmp_path):
        assert line.startswith("error: ")
        assert f"the launcher (pid {launcher.pid}) has ended" in line or "was killed or crashed" in line


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_and_one_that_is_resumed_goes_on(training, tmp_path, stopped):
    start, wait_for_steps = training
    launcher = start("first", "--nproc_per_node", "2")
    pids = wait_for_steps()
    os.kill(pids[stopped], signal.SIGSTOP)
    time.sleep(10)
    os.kill(pids[stopped], signal.SIGCONT)
    time.sleep(3)
    assert all(_is_running(pid) for pid in pids)
    os.kill(pids[stopped], signal.SIGSTOP)
    assert launcher.wait(timeout=60) != 0
    line = _end_of_logs(tmp_path)[1 - stopped]
    named = f"error: rank {stopped} of 2 (pid {pids[stopped]} on {socket.gethostname()})"
    assert line.startswith(named) and "SIGSTOP" in line
    assert not any(_is_running(pid) for pid in pids)


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_stopped_on_one_machine_is_named_on_the_other(training, tmp_path, stopped):
    start, wait_for_steps = training
    launchers = _start_two_launchers(start)
    pids = wait_for_steps()
    os.kill(pids[stopped], signal.SIGSTOP)
    assert launchers[1 - stopped].wait(timeout=60) != 0
    (log,) = (tmp_path / ("second", "first")[stopped]).glob("workerlog.*")
    line = log.read_text().rstrip().rpartition("\n")[2]
    assert line.startswith(f"error: rank {stopped} of 2 (pid {pids[stopped]} on ") and "SIGSTOP" in line
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("phase", ["training", "evaluation"])
def test_a_killed_worker_gives_one_line_and_exit_code_2(training, tmp_path, phase):
    start, wait_for_steps = training
    launcher = start("first", "--nproc_per_node", "2", script=("--eval",) * (phase == "evaluation"))
    pids = wait_for_steps()
    if phase == "evaluation":
        _wait_for(lambda: len(_children(pids[1])) == 3)  # the worker of the training reads ahead
    worker = max(_children(pids[1]))
    os.kill(worker, signal.SIGKILL)
    assert launcher.wait(timeout=60) == DataError.exit_code
    for line in _end_of_logs(tmp_path):
        assert re.match(
            rf"error: process 1 of 2: .*worker 0 of 1 \(pid {worker}\) was killed by signal 9", line
        )
