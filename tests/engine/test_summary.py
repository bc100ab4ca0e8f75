"""The summaries that a training logs before its first step and at its end."""

from __future__ import annotations

from pathlib import Path

from helpers.small_config import write_config

from ppfcos.config import load_config
from ppfcos.data.datasets import build_dataset
from ppfcos.data.shapes import generate
from ppfcos.engine.checkpoint import Plan
from ppfcos.engine.model import build_model
from ppfcos.engine.summary import (
    Evaluation,
    describe_results,
    describe_training,
    result_table,
)
from ppfcos.metrics.coco import CocoMetrics


def _metrics(ap: float) -> CocoMetrics:
    return CocoMetrics((ap, 2 * ap, ap / 2, -1.0, *[0.1] * 8))


def test_describe_training(tmp_path, root):
    generate(tmp_path / "shapes", train=6, val=4, size=96, seed=3)
    path = write_config(tmp_path / "small.yml", root, tmp_path / "shapes", tmp_path / "output")
    overrides = ["ResNet.freeze_at=0", "snapshot_epoch=2", "LearningRate.base_lr=0.01", "lr_batch_size=null"]
    cfg = load_config(path, [*overrides, "TrainReader.accumulate_steps=4"])
    model = build_model(cfg)
    data = [build_dataset(cfg, section) for section in ("TrainDataset", "EvalDataset")]
    plan = Plan(epochs=12, steps_per_epoch=3, total_batch_size=16, processes=2)
    devices = ["gpu:0: H200", "gpu:1: H200"]
    lines = describe_training(cfg, model, data, devices, plan, 7, tmp_path / "output" / "small")
    # A ResNet-18 without its classifier has 11,176,512 weights. Frozen are the stem (64·3·7·7, and 128 of its
    # norm) and the first stage (four times 64·64·3·3, and 128 of each norm).
    rest = sum(p.size for part in (model.neck, model.head) for p in part.parameters())
    total, trained = 11_176_512 + rest, 11_176_512 + rest - (9408 + 128) - 4 * (36_864 + 128)
    boxes = [sum(len(record["gt_bbox"]) for record in each.records) for each in data]
    assert lines == [
        f"model:    PPFCOS (ResNet, PPFCOSFPN, PPFCOSHead), {total / 1e6:.2f} M parameters, "
        f"{trained / 1e6:.2f} M of them trained",
        f"data:     TrainDataset 6 images, {boxes[0]} boxes, 3 classes; "
        f"EvalDataset 4 images, {boxes[1]} boxes, 3 classes",
        "devices:  2 processes on gpu (H200); 16 images a step = 2 processes × 4 accumulated × 2 images",
        "schedule: epochs 3 (from step 2) to 12 of 3 steps, 29 in all; learning rate up to 0.01; "
        "expected end: after the first steps",
        f"folder:   {tmp_path}/output/small, a checkpoint every 2 epochs, evaluated, the best one kept",
    ]


def test_describe_results():
    evaluations = [Evaluation(epochs, _metrics(ap)) for epochs, ap in ((1, 0.2), (2, 0.4), (2.5, 0.3))]
    last = Path("out/model_final.pdparams")
    lines = describe_results(evaluations, (Path("out/best_model.pdparams"), 0.4), last, "now")
    assert [line.split() for line in lines[:4]] == [
        ["after", "epoch", "AP", "AP50", "AP75", "APs", "APm", "APl"],
        ["1", "0.200", "0.400", "0.100", "-", "0.100", "0.100"],
        ["2", "0.400", "0.800", "0.200", "-", "0.100", "0.100", "best"],
        ["2.5", "0.300", "0.600", "0.150", "-", "0.100", "0.100"],
    ]
    assert len({len(line.replace("  best", "")) for line in lines[:4]}) == 1
    end = ["training is done; last checkpoint: out/model_final.pdparams", "next: now"]
    assert lines[4:] == ["best checkpoint: out/best_model.pdparams, box AP 0.400", *end]
    assert describe_results([], None, last, "now") == end


def test_result_table_shows_the_last_evaluations_and_the_best():
    evaluations = [Evaluation(n, _metrics(0.5 if n == 3 else n / 1000)) for n in range(1, 101)]
    shown = [line.split()[0] for line in result_table(evaluations)[1:]]
    assert shown == ["3", *(str(n) for n in range(91, 101))]
