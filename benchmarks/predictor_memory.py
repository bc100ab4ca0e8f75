"""Check that the memory of a predictor does not grow over many images.

    python benchmarks/predictor_memory.py BUNDLE [--images 10000] [--runtime auto] [--batch 1] [--sizes 20]

Images of random content and of several sizes go through the predictor one by one. The resident memory is
printed at ten points. The exit code is 1 if it grows by more than --limit MB after the first of them, when
every size has occurred.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from machine import day_and_machine

from ppfcos.deploy import Predictor
from ppfcos.deploy.runtimes.choice import RUNTIMES

POINTS = 10


def main() -> int:
    options = parse()
    predictor = Predictor(options.bundle, options.runtime, batch=options.batch, threads=options.threads)
    print(f"{day_and_machine()}; {options.bundle} in {options.runtime}, {options.images} images\n")
    print("| images | resident MB | images/s |")
    print("|---|---|---|")
    memory = []
    started = time.perf_counter()
    for number, _ in enumerate(predictor.stream(images(options)), start=1):
        if number % max(1, options.images // POINTS) == 0:
            memory.append(resident_megabytes())
            speed = number / (time.perf_counter() - started)
            print(f"| {number} | {memory[-1]:.1f} | {speed:.1f} |", flush=True)
    growth = memory[-1] - memory[0]
    print(f"\ngrowth from the first point to the last: {growth:.1f} MB (at most {options.limit:g})")
    return int(growth > options.limit)


def parse() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("bundle")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sizes", type=int, default=20, help="different sizes of images")
    parser.add_argument("--limit", type=float, default=10.0, help="MB of growth")
    return parser.parse_args()


def images(options: argparse.Namespace) -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    images = [
        random.integers(0, 256, (*random.integers(100, 700, 2), 3), np.uint8) for _ in range(options.sizes)
    ]
    for number in range(options.images):
        yield images[number % options.sizes]


def resident_megabytes() -> float:
    """Return the resident memory after the C library has returned unused pages."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    sys.exit(main())
