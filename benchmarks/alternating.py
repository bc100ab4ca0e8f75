"""Run several programs alternately, one action each, so that other load on the machine affects all alike."""

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
def separate_results():
    """In a worker: yield a file for results, and send what libraries print to the standard error."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    yield results


def serve(action: Callable[[], Any], results: TextIO) -> None:
    """In a worker: run `action` once per line of the standard input, and write its result as JSON."""
    for _ in sys.stdin:
        print(json.dumps(action()), file=results, flush=True)


def alternate(
    commands: Mapping[str, Sequence[str]], rounds: int, variables: Mapping[str, str] | None = None
) -> dict[str, list]:
    """Start one worker per command, let each act in turn, and return the results of each.

    Args:
        commands: arguments of Python; or a whole command if its first word is a Python interpreter.
        rounds: actions of each worker.
        variables: environment of the workers; None: this process's.

    Raises:
        SystemExit: a worker ended; with its standard error.
    """
    results: dict[str, list] = {name: [] for name in commands}
    with contextlib.ExitStack() as files:
        errors = {name: files.enter_context(tempfile.TemporaryFile("w+")) for name in commands}
        workers = {name: _start(command, variables, errors[name]) for name, command in commands.items()}
        for _ in range(rounds):
            for name, worker in workers.items():
                results[name].append(_act(worker, name, errors[name]))
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    return results


def _start(command: Sequence[str], variables: Mapping[str, str] | None, errors: TextIO) -> subprocess.Popen:
    pipe = subprocess.PIPE
    command = command if str(command[0]).endswith(("python", "python3")) else [sys.executable, *command]
    return subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, stderr=errors, text=True)


def _act(worker: subprocess.Popen, name: str, errors: TextIO) -> Any:
    try:
        worker.stdin.write("act\n")
        worker.stdin.flush()
        return json.loads(worker.stdout.readline())
    except (BrokenPipeError, json.JSONDecodeError):
        errors.seek(0)
        raise SystemExit(f"{name}: {errors.read()}") from None
