"""Images per second of a training in one process and in two, each of one thread, and their ratio.

    python benchmarks/scaling.py                   # three pairs of runs, some minutes
    python benchmarks/scaling.py --pairs 1 --pictures 160

Both are started as a user starts them, with `paddle.distributed.launch` and tools/train.py, on the demo's
model and pictures drawn for it; they take turns. A process has the same number of images a step in both, so
that two processes take twice as many at once. It reads them itself: a process that read for it would be a
third core's work. What is printed is the training's own figure, without the first steps. The machine should
have nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import day_and_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CONFIG = ROOT / "configs" / "fcos_demo_shapes.yml"
PROCESSES = (1, 2)
IMAGES = 8  # a step, in each process
STEPS_A_REPORT = 2
REPORTS_LEFT_OUT = 2  # memory is taken, and caches are cold
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"}
REPORT = re.compile(r"step: \[(\d+)/\d+\].* ips: ([\d.]+) images/s")


def images_per_second(processes: int, pictures: Path, folder: Path) -> float:
    """Median over the reports of one training.

    Args:
        processes: how many train together.
        pictures: a data set that ppfcos.data.shapes has drawn.
        folder: an empty one, for what the training writes.

    Returns:
        Images per second of all processes together.

    Raises:
        subprocess.CalledProcessError: the training failed.
    """
    keys = {
        "TrainDataset.dataset_dir": pictures,
        "TrainReader.total_batch_size": IMAGES * processes,
        "save_dir": folder / "output",
        "device": "cpu",
        "worker_num": 0,
        "epoch": 1,
        "log_iter": STEPS_A_REPORT,
    }
    launch = [
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        str(processes),
        "--log_dir",
        folder / "log",
    ]
    train = [
        ROOT / "tools" / "train.py",
        "-c",
        CONFIG,
        "-o",
        *(f"{key}={value}" for key, value in keys.items()),
    ]
    subprocess.run(
        [sys.executable, *launch, *train],
        cwd=folder,
        env={**os.environ, **ONE_THREAD},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    reports = REPORT.findall((folder / "log" / "workerlog.0").read_text())
    speeds = [float(speed) for step, speed in reports if int(step) % STEPS_A_REPORT == 0]
    return statistics.median(speeds[REPORTS_LEFT_OUT:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3, help="runs of each kind (default 3)")
    parser.add_argument(
        "--pictures", type=int, default=320, help="of an epoch, which is what a run takes (default 320)"
    )
    args = parser.parse_args()
    least = IMAGES * PROCESSES[-1] * STEPS_A_REPORT * (REPORTS_LEFT_OUT + 1)
    if args.pictures < least:
        parser.error(f"--pictures: {least} or more, for the first steps are left out")
    from ppfcos.data.shapes import generate

    print(f"{day_and_machine()}, {CONFIG.name}, {IMAGES} images a step and process, {args.pictures} pictures")
    print("| 1 process | 2 processes | ratio |")
    print("|---|---|---|")
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        pictures = Path(name) / "shapes"
        generate(pictures, train=args.pictures, val=1)
        for pair in range(args.pairs):
            speeds = []
            for processes in PROCESSES:
                folder = Path(name) / f"{pair}-{processes}"
                folder.mkdir()
                speeds.append(images_per_second(processes, pictures, folder))
            ratios.append(speeds[1] / speeds[0])
            print(f"| {speeds[0]:.2f} images/s | {speeds[1]:.2f} images/s | {ratios[-1]:.2f} |", flush=True)
    print(f"median ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
