"""Reads tens of thousands of random pickles: no crash, a dict or a WeightsError, and memory in bounds.

    python benchmarks/fuzz_pickles.py [--minutes 2] [--batch 2000] [--seed 0]

The files are those of tests/helpers/hostile_pickles.py: random opcodes with plausible arguments, alone and
within both formats of PyTorch, opcodes repeated up to 100,000 times, small real files of Paddle, NumPy and
PyTorch with a few bytes changed. Each batch is read in a process of its own, so that a crash is seen.

Prints the number of files, the seconds, and the highest ratio of the memory to the size of the file, above
the constant that each file may take. Exits with 1 where a file does something else.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path

from machine import day_and_machine

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from helpers import hostile_pickles

from ppfcos import environment


def read_batch(folder: Path, seed: int, count: int) -> None:
    """Read so many random files in this process, and print a summary as JSON."""
    with environment.quiet_imports():  # before memory is measured, and without output
        import ppfcos.engine.weights  # noqa: F401
    real = [path.read_bytes() for path in sorted((folder / "real").iterdir())]
    path, source = folder / f"{seed}.weights", random.Random(seed)
    outcomes, wrong = Counter(), []
    worst = {"ratio": 0.0, "peak": 0, "seconds": 0.0}
    tracemalloc.start()
    for _ in range(count):
        content = hostile_pickles.random_file(source, real, repeats=100_000)
        path.write_bytes(content)
        signal.alarm(hostile_pickles.SECONDS)
        result = hostile_pickles.measure(path)
        outcomes[result["outcome"]] += 1
        result["ratio"] = max(0, result["peak"] - hostile_pickles.MEMORY_CONSTANT) / max(1, len(content))
        worst = {key: max(worst[key], result[key]) for key in worst}
        if not hostile_pickles.within_limits(result, len(content)):
            wrong.append({**result, "start": content[:100].hex()})
    path.unlink()
    print(json.dumps({"outcomes": outcomes, "worst": worst, "wrong": wrong}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a batch, in its process
    args = parser.parse_args()
    if args.folder:
        read_batch(args.folder, args.seed, args.batch)
        return 0
    print(day_and_machine())
    outcomes, worst, failures = Counter(), {"ratio": 0.0, "peak": 0, "seconds": 0.0}, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "real").mkdir()
        hostile_pickles.write_real_files(folder / "real")
        start, seed = time.monotonic(), args.seed
        while time.monotonic() < start + 60 * args.minutes:
            command = [sys.executable, __file__, "--folder", name]
            command += ["--seed", str(seed), "--batch", str(args.batch)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                failures += 1
                print(f"seed {seed}: exit code {done.returncode}: {done.stderr[-500:]}")
            else:
                found = json.loads(done.stdout.splitlines()[-1])
                outcomes.update(found["outcomes"])
                worst = {key: max(worst[key], found["worst"][key]) for key in worst}
                failures += len(found["wrong"])
                for wrong in found["wrong"]:
                    print(f"seed {seed}: {wrong}")
            seed += 1
        seconds = time.monotonic() - start
    print(f"{sum(outcomes.values())} files in {seconds:.0f} s: {dict(outcomes)}; {failures} failures")
    constant = hostile_pickles.MEMORY_CONSTANT >> 20
    peak, ratio = worst["peak"] / 2**20, worst["ratio"]
    print(f"memory: at most {peak:.1f} MiB; above {constant} MiB {ratio:.1f} times the file")
    print(f"longest file: {worst['seconds']:.2f} CPU seconds, traced")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
