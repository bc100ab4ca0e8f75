"""Measure the time from the start of Python to the first boxes in each runtime.

    python benchmarks/first_boxes.py output_inference/fcos_r50_fpn_1x_coco photo.jpg

Each measurement starts a process, and the runtimes alternate. A second image in the same process gives the
time of an image alone, so the difference is the cost of the start. A precision can follow the runtime, as in
onnxruntime/int8.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import day_and_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from ppfcos.deploy import Predictor
runtime, _, precision = sys.argv[3].partition("/")
predictor = Predictor(sys.argv[2], runtime, precision or "fp32")
predictor.predict([sys.argv[4]])
print("found", flush=True)
start = time.perf_counter()
predictor.predict([sys.argv[4]])
print(time.perf_counter() - start, flush=True)
"""


def first_and_second(bundle: Path, runtime: str, photo: Path) -> tuple[float, float]:
    """Return the seconds to the first boxes and those of a second image."""
    start = time.perf_counter()
    program = [sys.executable, "-c", PROGRAM, str(ROOT), str(bundle), runtime, str(photo)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.strip() == "found":
                first = time.perf_counter() - start
                return first, float(process.stdout.readline())
    raise SystemExit(f"{runtime} found nothing")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--runtimes", default="onnxruntime,openvino,paddle", help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each (default 5)")
    args = parser.parse_args()
    runtimes = args.runtimes.split(",")
    seconds: dict[str, list[tuple[float, float]]] = {runtime: [] for runtime in runtimes}
    for _ in range(args.repeats):
        for runtime in runtimes:
            seconds[runtime].append(first_and_second(args.bundle, runtime, args.photo))
    print(f"{day_and_machine()}, {args.bundle.name}, median of {args.repeats} processes")
    print("| runtime | seconds to the first boxes | a second image | start |")
    print("|---|---|---|---|")
    for runtime, found in seconds.items():
        first, second = (statistics.median(each) for each in zip(*found))
        print(f"| {runtime} | {first:.2f} | {second:.2f} | {first - second:.2f} |")


if __name__ == "__main__":
    main()
