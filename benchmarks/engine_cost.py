"""Measure what the engine adds to a training step, compared with the bare computation.

    python benchmarks/engine_cost.py [--side 320 --images 8]

The bare step is forward, losses, backward and update of the same model on a loaded batch. The engine's step
is that of tools/train.py, with a log line and VisualDL records every step, EMA, gradient norm, checks for
non-finite losses, and one loader worker. Both alternate, step by step, in one process. The figure is the
median of the ratios of neighbouring steps, because the speed of the machine varies more than what is
measured. EMA is part of the training, so its cost is printed separately. The time of saving a checkpoint is
printed, too.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import day_and_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CONFIG = ROOT / "configs" / "fcos_demo_shapes.yml"


def bare_step(trainer, batch: dict) -> None:
    """Run forward, backward and update, as in a minimal training script."""
    losses = trainer.model(batch)
    losses["loss"].backward()
    trainer.optimizer.step()
    trainer.optimizer.clear_grad(set_to_zero=False)


def measure(folder: Path, images: Path, settings: dict[str, Any], steps: int) -> tuple:
    """Return median seconds of the bare and of the engine's step, their ratio, and seconds of a checkpoint.

    Args:
        folder: empty folder.
        images: data set made by ppfcos.data.shapes.
        settings: configuration keys to change, with their values.
        steps: number of steps of each kind.
    """
    from ppfcos.config import load_config
    from ppfcos.engine.run_record import RunLog
    from ppfcos.engine.trainer import Trainer

    keys = {
        "TrainDataset.dataset_dir": images,
        "save_dir": folder,
        "device": "cpu",
        "worker_num": 1,
        "epoch": 12,
        "log_iter": 1,
        "use_vdl": True,
        **settings,
    }
    trainer = Trainer(load_config(CONFIG, [f"{key}={value}" for key, value in keys.items()]), "cpu").setup()
    bare, engine = [], []
    with RunLog() as log, contextlib.closing(trainer.prefetcher):
        log.open(trainer.folder, "cost of the engine")
        trainer.before_train()
        trainer.model.train()
        trainer.progress.start_epoch()
        trainer.prefetcher.start_epoch(0)
        for step in range(1, steps + 1):
            (batch,) = trainer.prefetcher.current
            inputs = {key: value for key, value in batch.items() if key != "bad_images"}
            start = time.perf_counter()
            bare_step(trainer, inputs)
            middle = time.perf_counter()
            trainer.after_step(0, step, trainer.train_one_step(f"step {step}"))
            bare.append(middle - start)
            engine.append(time.perf_counter() - middle)
        start = time.perf_counter()
        trainer.save()
        saving = time.perf_counter() - start
    bare, engine = bare[2:], engine[2:]
    ratio = statistics.median(whole / alone for alone, whole in zip(bare, engine))
    return statistics.median(bare), statistics.median(engine), ratio, saving


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100, help="of each kind (default 100)")
    parser.add_argument("--side", type=int, help="side of the images in pixels (default: as in make demo)")
    parser.add_argument("--images", type=int, help="images per step (default: as in make demo)")
    args = parser.parse_args()
    settings: dict[str, Any] = {}
    if args.side:
        settings["TrainReader.sample_transforms.2.Resize.target_size"] = [args.side, args.side]
    if args.images:
        settings["TrainReader.total_batch_size"] = args.images
    from ppfcos import environment

    environment.configure_process()
    package = logging.getLogger("ppfcos")
    package.setLevel(logging.INFO)
    package.propagate = False  # the lines go to the log of the run
    with environment.quiet_imports():
        import ppfcos.paddledetection  # noqa: F401
    from ppfcos.config import load_config
    from ppfcos.data.shapes import generate

    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        images = args.images or load_config(CONFIG)["TrainReader"]["total_batch_size"]
        generate(scratch / "shapes", train=images * args.steps, val=1, size=192, seed=1)
        changes = "".join(f", {key.split('.')[-1]} {value}" for key, value in settings.items())
        print(f"{day_and_machine()}: {CONFIG.name}, as make demo trains it{changes}")
        print("| | bare step | engine's step | engine/bare | checkpoint |")
        print("|---|---|---|---|---|")
        for name, with_ema in (("without EMA", False), ("with EMA", True)):
            options = {**settings, "use_ema": with_ema}
            bare, engine, ratio, saving = measure(scratch / name, scratch / "shapes", options, args.steps)
            row = f"| {name} | {bare:.3f} s | {engine:.3f} s | {ratio:.3f} | {saving:.2f} s |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
