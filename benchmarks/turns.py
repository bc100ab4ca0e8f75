"""Programs that take turns, one act each: whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO


@contextlib.contextmanager
def answers_apart():
    """In a worker: a file for its answers, with which nothing mixes that libraries print."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    yield answers


def answer_turns(act: Callable[[], Any], answers: TextIO) -> None:
    """In a worker: act whenever it is its turn, until it is dismissed.

    Args:
        act: what it returns goes to the answers as JSON.
        answers: of `answers_apart`.
    """
    for _ in sys.stdin:
        print(json.dumps(act()), file=answers, flush=True)


def take_turns(
    commands: Mapping[str, Sequence[str]], rounds: int, variables: Mapping[str, str] | None = None
) -> dict[str, list]:
    """Start workers and let them act in turn.

    Args:
        commands: of each worker, the interpreter left out.
        rounds: acts of each.
        variables: their environment; None: this process's.

    Returns:
        The answers of each worker.

    Raises:
        SystemExit: a worker ended; with what it said.
    """
    answers: dict[str, list] = {name: [] for name in commands}
    with contextlib.ExitStack() as said_files:
        said = {name: said_files.enter_context(tempfile.TemporaryFile("w+")) for name in commands}
        workers = {name: _start(command, variables, said[name]) for name, command in commands.items()}
        for _ in range(rounds):
            for name, worker in workers.items():
                answers[name].append(_turn(worker, name, said[name]))
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    return answers


def _start(command: Sequence[str], variables: Mapping[str, str] | None, said: TextIO) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *command], env=variables, stdin=pipe, stdout=pipe, stderr=said, text=True
    )


def _turn(worker: subprocess.Popen, name: str, said: TextIO) -> Any:
    try:
        worker.stdin.write("your turn\n")
        worker.stdin.flush()
        return json.loads(worker.stdout.readline())
    except (BrokenPipeError, json.JSONDecodeError):
        said.seek(0)
        raise SystemExit(f"{name}: {said.read()}") from None
