"""Measure the time to the first line of `ppfcos --help` and of `ppfcos train`.

    python benchmarks/first_line.py

Each measurement starts a process. The training is the demo's, with existing images, and is stopped after its
first line.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import day_and_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ppfcos.data.shapes import generate

CONFIG = "configs/fcos_demo_shapes.yml"


def seconds_to_first_line(*words: str) -> float:
    """Return the seconds from the start of Python to the first printed line."""
    start = time.perf_counter()
    program = [sys.executable, "-m", "ppfcos", *words]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        process.terminate()
    if not line:
        raise SystemExit(f"{' '.join(program)} printed nothing")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="processes of each (default 5)")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        generate(f"{folder}/shapes")
        data = [f"{section}.dataset_dir={folder}/shapes" for section in ("TrainDataset", "EvalDataset")]
        commands = {
            "ppfcos --help": ["--help"],
            "ppfcos train": ["train", "-c", CONFIG, "--eval", "-o", f"save_dir={folder}/run", *data],
        }
        print(f"{day_and_machine()}, median of {repeats} processes")
        print("| command | seconds to the first line |\n|---|---|")
        for name, words in commands.items():
            seconds = statistics.median(seconds_to_first_line(*words) for _ in range(repeats))
            print(f"| `{name}` | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
