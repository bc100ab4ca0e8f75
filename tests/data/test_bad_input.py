"""Real files, damaged in many ways: a clean report or one line of error each, and never a crash or a hang."""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("memory is measured by Linux's /proc", allow_module_level=True)

SCRIPT = Path(__file__).parents[1] / "helpers" / "bad_input.py"
PROCESSES = 2
MOST_SECONDS, MOST_MEMORY = 10, 3 << 29  # beyond what the process takes without a case
PATIENCE = 60  # seconds of a clock: a machine may have others to serve


class Reader:
    """A process that takes one case after the other; a new one stands in for one that died."""

    def __init__(self, data: Path):
        self._command = [sys.executable, str(SCRIPT), str(data)]
        self._environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
        self._process: subprocess.Popen | None = None

    def outcome(self, seed: int) -> dict[str, Any]:
        """What became of a case; {'seed', 'died'} where the process did not live to say it."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                text=True,
            )
        process = self._process
        guard = threading.Timer(PATIENCE, process.kill)
        guard.start()
        try:
            process.stdin.write(f"{seed}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        finally:
            guard.cancel()
        if answer:
            return json.loads(answer)
        self.close()
        return {"seed": seed, "died": process.returncode}

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None


def outcomes(seeds: range, data: Path) -> list[dict[str, Any]]:
    """Of all cases, by a few processes."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for seed in seeds:
        waiting.put(seed)
    found: list[dict[str, Any]] = []

    def work() -> None:
        reader = Reader(data)
        try:
            while True:
                found.append(reader.outcome(waiting.get_nowait()))
        except queue.Empty:
            reader.close()

    threads = [threading.Thread(target=work) for _ in range(PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found, key=lambda each: each["seed"])


def faults(case: dict[str, Any]) -> list[str]:
    """What is wrong with how a case ended."""
    if "died" in case:
        return [f"the process died or hung ({case['died']})"]
    wrong = []
    if case["seconds"] > MOST_SECONDS:
        wrong.append(f"{case['seconds']:.1f} s")
    if case["peak"] > MOST_MEMORY:
        wrong.append(f"{case['peak'] / 2**30:.2f} GiB")
    for way, end in case["ends"].items():
        lines = end["stderr"].splitlines()
        if end["crash"]:
            wrong.append(f"{way}: {end['crash']}")
        elif end["code"] == 2:
            if len(lines) != 1 or not lines[0].startswith("error: "):
                wrong.append(f"{way}: not one line of error: {end['stderr']}")
            elif not re.search(r"[^ ]+/[^ ]+", lines[0]):
                wrong.append(f"{way}: no file is named: {lines[0]}")
        elif end["code"] not in (0, 1) or "Traceback" in end["stderr"]:
            wrong.append(f"{way}: exit code {end['code']}, {end['stderr']}")
    return wrong


def check(seeds: range, data: Path) -> list[dict[str, Any]]:
    found = outcomes(seeds, data)
    assert [case["seed"] for case in found] == list(seeds)
    report = [
        f"seed {case['seed']} {case.get('damages', '')}: {fault}" for case in found for fault in faults(case)
    ]
    assert not report, f"{len(report)} faults in {len(found)} cases\n" + "\n".join(report[:40])
    return found


@pytest.fixture(scope="module")
def real_data(bccd, tinycoco) -> Path:
    assert bccd.parent == tinycoco.parent
    return bccd.parent


def test_some_bad_input(real_data):
    ends = [end["code"] for case in check(range(150), real_data) for end in case["ends"].values()]
    assert {0, 1, 2} == set(ends), "some damage is repaired, some reported, some refused"


@pytest.mark.slow
def test_two_thousand_bad_inputs(real_data):
    check(range(2000), real_data)
