"""Train ours and PaddleDetection 2.6.0's FCOS from the same weights on BCCD and compare them after each step.

    python benchmarks/bccd_lockstep.py dataset/bccd --steps 3

Each has its own reader, targets, model, losses, schedule and optimizer. There is no shuffling and no
flipping, and ours is configured like the stock FCOS where they differ by choice: padding to multiples of 128,
ones added to the areas of the IoU (`iou_smoothing`), size ranges open at their upper ends, and factors of
learning rate and weight decay for the towers. Both compute in float64, in which rounding errors stay small
over a few steps. A table shows the differences of pixels, positives, losses, gradients and weights: any other
difference in a training step would show here. It takes half a minute per step on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "modeling")]

from ppfcos import environment

environment.configure_process()
with environment.quiet_imports():
    import paddle
    import paddle.nn.functional as F

    import ppfcos.paddledetection  # noqa: F401  # before ppdet

with environment.quiet_imports():
    from ppdet.core.workspace import create, global_config
    from ppdet.core.workspace import load_config as load_stock_config

import bccd_accuracy
import stock
from machine import day_and_machine
from test_stock_model import with_labels_like_logits

from ppfcos.config import load_config
from ppfcos.data.datasets import build_dataset
from ppfcos.data.loader import TrainLoader
from ppfcos.engine.model import build_model
from ppfcos.engine.optim import build_optimizer, build_schedule
from ppfcos.engine.prefetcher import Prefetcher
from ppfcos.modeling import assigner

LOSSES = ("loss_cls", "loss_box", "loss_quality")
AS_STOCK = [
    "device=cpu",
    "worker_num=0",
    "PPFCOSLoss.iou_smoothing=1.0",
    "TrainReader.shuffle=false",
    "TrainReader.batch_transforms=[{PadBatch: {pad_to_stride: 128}}, {PadGT: {}}]",
]


def stock_name(name: str) -> str:
    """Return PaddleDetection's name of a weight of ours."""
    rules = [
        (r"neck\.laterals\.2\.", "neck.fpn_inner_res5_sum."),
        (r"neck\.laterals\.(\d)\.", lambda m: f"neck.fpn_inner_res{int(m[1]) + 3}_sum_lateral."),
        (r"neck\.outputs\.(\d)\.", lambda m: f"neck.fpn_res{int(m[1]) + 3}_sum."),
        (r"neck\.extras\.(\d)\.", lambda m: f"neck.fpn_{int(m[1]) + 6}."),
        (r"head\.class_tower\.convs\.(\d)\.", r"fcos_head.fcos_feat.fcos_head_cls_tower_conv_\1.conv."),
        (r"head\.class_tower\.norms\.(\d)\.", r"fcos_head.fcos_feat.fcos_head_cls_tower_conv_\1.norm."),
        (r"head\.box_tower\.convs\.(\d)\.", r"fcos_head.fcos_feat.fcos_head_reg_tower_conv_\1.conv."),
        (r"head\.box_tower\.norms\.(\d)\.", r"fcos_head.fcos_feat.fcos_head_reg_tower_conv_\1.norm."),
        (r"head\.class_conv\.", "fcos_head.fcos_head_cls."),
        (r"head\.box_conv\.", "fcos_head.fcos_head_reg."),
        (r"head\.quality_conv\.", "fcos_head.fcos_head_centerness."),
        (r"head\.scales\.(\d)", lambda m: f"fcos_head.p{int(m[1]) + 3}_feat.scale_reg"),
    ]
    for pattern, replacement in rules:
        name = re.sub("^" + pattern, replacement, name)
    return name


class Side:
    """A model in float64 with its optimizer and schedule."""

    def __init__(self, model, build_optimizer, schedule):
        self.model, self.schedule = model, schedule
        model.to(dtype="float64")
        model.train()
        paddle.set_default_dtype("float64")  # of the optimizer's own variables
        self.optimizer = build_optimizer(schedule, model)
        paddle.set_default_dtype("float32")

    def backward(self, batch: dict) -> dict:
        losses = self.model(batch)
        losses["loss"].backward()
        return {name: float(losses[name]) for name in LOSSES}

    def update(self) -> None:
        paddle.set_default_dtype("float64")
        self.optimizer.step()
        paddle.set_default_dtype("float32")
        self.optimizer.clear_grad()
        self.schedule.step()


def stock_side(folder: Path, scratch: Path) -> tuple:
    """Return PaddleDetection's FCOS and its batches."""
    annotations = scratch / "trainval.json"
    annotations.write_text(json.dumps(bccd_accuracy.coco_annotations(folder, "trainval")))
    config = stock.stock_config(
        depth=18,
        target_size=(320, 320),
        num_classes=len(bccd_accuracy.CLASSES),
        batch_size=4,
        from_scratch=True,
        train={
            "dataset_dir": str(folder),
            "image_dir": "JPEGImages",
            "anno_path": str(annotations),
            "data_fields": ["image", "gt_bbox", "gt_class", "is_crowd"],
        },
        schedule=bccd_accuracy.SCHEDULE,
        workers=0,
    )
    config["TrainReader"]["shuffle"] = False
    config["TrainReader"]["sample_transforms"].remove({"RandomFlip": {}})
    stock.write_config(config, scratch / "stock.yml")
    load_stock_config(str(scratch / "stock.yml"))
    paddle.seed(0)
    loader = create("TrainReader")(create("TrainDataset")(), 0)
    side = Side(create("FCOS"), create("OptimizerBuilder"), create("LearningRate")(len(loader)))
    for section in global_config.values():  # ours begins with an empty workspace
        if hasattr(section, "schema"):
            section.clear()
    return side, iter(loader)


def our_side(folder: Path, peer: paddle.nn.Layer) -> tuple:
    """Return ours, with the stock FCOS's weights and factors, and its batches."""
    config = load_config(
        ROOT / "configs" / "fcos_r18_bccd.yml", [*AS_STOCK, f"TrainDataset.dataset_dir={folder}"]
    )
    steps = config["TrainReader"]["sample_transforms"]
    steps[:] = [step for step in steps if "RandomFlip" not in step]
    loader = TrainLoader(config, build_dataset(config, "TrainDataset"), 1, 0)
    model = build_model(config)
    model.to(dtype="float64")
    weights = peer.state_dict()
    model.set_state_dict({name: weights[stock_name(name)] for name in model.state_dict()})
    theirs = dict(peer.named_parameters())
    for name, weight in model.named_parameters():
        weight.optimize_attr = theirs[stock_name(name)].optimize_attr
        weight.regularizer = theirs[stock_name(name)].regularizer
    schedule = build_schedule(config, len(loader))
    side = Side(model, lambda schedule, model: build_optimizer(model, schedule), schedule)
    feed = Prefetcher(loader, max_bad_images=0)
    feed.start_epoch(0)
    return side, feed


def open_size_ranges() -> None:
    """Leave size ranges open at their upper ends, as in Gt2FCOSTarget."""

    def size_limits(self, locations: list) -> tuple:
        ends = [0.0, *self.size_ranges, math.inf]
        return of_every_point(ends[:-1], locations), of_every_point([e - 1e-3 for e in ends[1:]], locations)

    of_every_point = assigner._of_every_point
    assigner.PPFCOSTargets._size_limits = size_limits


def largest_difference(ours: Side, theirs: Side, tensor_of) -> float:
    """Return the largest difference of all weights or gradients, relative to the norm of each."""
    peers = dict(theirs.model.named_parameters())
    found = []
    for name, weight in ours.model.named_parameters():
        mine, peer = tensor_of(weight), tensor_of(peers[stock_name(name)])
        if mine is not None:
            found.append(float((mine - peer).norm()) / max(float(peer.norm()), 1e-30))
    return max(found)


def step_row(ours: Side, theirs: Side, our_batch: dict, stock_batch: dict) -> str:
    """Train one step and return the row of differences."""
    normalized = ours.model._normalize(our_batch["image"], our_batch["im_shape"])
    pixels = float((normalized - stock_batch["image"]).abs().max())
    positives = len(ours.model.assign(our_batch).positives)
    labels = [value for name, value in stock_batch.items() if name.startswith("labels")]
    positives_there = sum(int((value > 0).sum()) for value in labels)
    wide = {k: v.astype("float64") if v.dtype == paddle.float32 else v for k, v in stock_batch.items()}
    ours.model._normalize = lambda image, im_shape: wide["image"]  # ours would be float32
    found, there = ours.backward(our_batch), theirs.backward(wide)
    del ours.model._normalize
    losses = max(abs(found[name] / there[name] - 1) for name in LOSSES)
    gradients = largest_difference(ours, theirs, lambda weight: weight.grad)
    for side in (ours, theirs):
        side.update()
    weights = largest_difference(ours, theirs, lambda weight: weight)
    apart_by = f"{losses:.1e} | {gradients:.1e} | {weights:.1e}"
    return f"| {pixels:.1e} | {positives}, {positives_there} | {apart_by} |"


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path, help="BCCD in Pascal VOC layout")
    parser.add_argument("--steps", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args()
    folder = args.folder.resolve()
    open_size_ranges()
    F.sigmoid_focal_loss = with_labels_like_logits(F.sigmoid_focal_loss)
    warnings.filterwarnings("ignore")  # of Gt2FCOSTarget outside boxes, and of Paddle
    with tempfile.TemporaryDirectory() as scratch:
        theirs, stock_batches = stock_side(folder, Path(scratch))
        ours, feed = our_side(folder, theirs.model)
        print(f"{day_and_machine()}; differences, relative but for pixels")
        print("| step | pixels | positives of ours, of stock | losses | gradients | weights |")
        print("|---|---|---|---|---|---|")
        for step in range(1, args.steps + 1):
            [our_batch] = feed.current
            print(f"| {step} {step_row(ours, theirs, our_batch, next(stock_batches))}", flush=True)
            feed.advance(paddle.zeros([1]))


if __name__ == "__main__":
    main()
