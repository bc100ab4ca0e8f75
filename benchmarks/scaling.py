"""Measure images per second of a training with one process and with two, one thread each, and their ratio.

    python benchmarks/scaling.py                   # three pairs of runs, some minutes
    python benchmarks/scaling.py --pairs 1 --images 160

Runs of one and of two processes alternate. Each starts `tools/train.py` by `paddle.distributed.launch`, on
the demo's model and generated images. The number of images per step and process is the same, so two processes
train twice as many images per step. There are no loader workers: they would need a third core. The figure is
the speed that the training reports, without the first steps. Run it on an idle machine.
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


def images_per_second(processes: int, images: Path, folder: Path) -> float:
    """Return the median speed of one training, in images per second of all processes together.

    Args:
        processes: number of processes.
        images: data set made by ppfcos.data.shapes.
        folder: empty folder for the output of the training.

    Raises:
        subprocess.CalledProcessError: the training failed.
    """
    keys = {
        "TrainDataset.dataset_dir": images,
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
        "--images", type=int, default=320, help="images of the one epoch of a run (default 320)"
    )
    args = parser.parse_args()
    least = IMAGES * PROCESSES[-1] * STEPS_A_REPORT * (REPORTS_LEFT_OUT + 1)
    if args.images < least:
        parser.error(f"--images: needs {least} or more, because the first steps are left out")
    from ppfcos.data.shapes import generate

    print(f"{day_and_machine()}, {CONFIG.name}, {IMAGES} images per step and process, {args.images} images")
    print("| 1 process | 2 processes | ratio |")
    print("|---|---|---|")
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        shapes = Path(name) / "shapes"
        generate(shapes, train=args.images, val=1)
        for pair in range(args.pairs):
            speeds = []
            for processes in PROCESSES:
                folder = Path(name) / f"{pair}-{processes}"
                folder.mkdir()
                speeds.append(images_per_second(processes, shapes, folder))
            ratios.append(speeds[1] / speeds[0])
            print(f"| {speeds[0]:.2f} images/s | {speeds[1]:.2f} images/s | {ratios[-1]:.2f} |", flush=True)
    print(f"median ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
