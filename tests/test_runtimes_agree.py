"""One network of every family: photographs have the same boxes in the checkpoint and in all three runtimes.

Networks have their full depth and width and have learnt nothing; photographs are shown at half of the usual
size or less.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from conftest import ROOT
from small_detector import spread_scores
from test_configs import batch, settle_norms

from ppfcos.config import load_config
from ppfcos.deploy import Detector, Predictor
from ppfcos.deploy.bundle import FORMATS, PADDLE
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.deploy.runtimes.choice import LIBRARIES
from ppfcos.engine.model import build_model
from ppfcos.export.bundle import Wanted, export_bundle, goes_to_onnx
from ppfcos.export.checkpoint import CheckpointRuntime
from ppfcos.export.infer_config import preprocess_steps

PHOTOGRAPHS = 30
PIXELS, SCORE = 0.01, 1e-4
# Share of the boxes of a network that has learnt nothing that are so near another one in score, or so near a
# threshold, that a rounding decides which of them is kept.
UNDECIDED = 0.002
# Not EfficientNet: without training its answers are millions, whose roundings alone are more than a pixel.
FAMILIES = (
    "fcos_r50_fpn_1x_coco",
    "fcos_r50_fpn_iou_1x_coco",
    "fcos_dcn_r50_fpn_1x_coco",
    "fcos_mobilenetv2_fpn_1x_coco",
    "fcos_dla34_fpn_rt_bn_head_4x_coco",
    "fcos_hrnetv2p_w18_1x_coco",
)


@pytest.fixture(scope="module")
def photographs(tinycoco):
    paths = sorted(tinycoco.glob("images/*/*.jpg"))[:PHOTOGRAPHS]
    assert len(paths) == PHOTOGRAPHS
    return paths


def configured(name):
    """The configuration, for photographs of half the size."""
    cfg = load_config(ROOT / "configs" / f"{name}.yml", ["device=cpu"])
    for step in cfg["TestReader"]["sample_transforms"]:
        if "Resize" in step:
            step["Resize"]["target_size"] = [min(side, 512) // 2 for side in step["Resize"]["target_size"]]
    return cfg


def untrained_model(cfg):
    """With scores that differ widely, and batch norms that have seen images."""
    paddle.seed(0)
    model = build_model(cfg)
    spread_scores(model)
    settle_norms(model, batch(cfg["num_classes"]))
    model.eval()
    return model


def without_counterpart(some, others, full):
    """How many of some boxes are not among the others: class, score and all four sides.

    Where an image has as many as it may have, the last of them had to be better than others by a rounding.
    """
    count = 0
    last = others.scores.min() + SCORE if len(others) == full else 0.0
    for box, score, label in zip(some.boxes, some.scores, some.labels):
        if score <= last:
            continue
        near = np.abs(others.boxes - box).max(axis=1, initial=0) <= PIXELS
        alike = (others.labels == label) & (np.abs(others.scores - score) <= SCORE)
        count += not (near & alike).any()
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_runtime_finds_the_checkpoints_boxes(name, photographs, tmp_path):
    cfg = configured(name)
    preprocess = Preprocess(preprocess_steps(cfg["TestReader"]))
    model = untrained_model(cfg)
    names = [f"class {number}" for number in range(cfg["num_classes"])]
    formats, runtimes = (FORMATS, LIBRARIES) if goes_to_onnx(model) else ((PADDLE,), ("paddle",))
    bundle = export_bundle(model, cfg, names, tmp_path / "bundle", None, Wanted(formats=formats))
    expected = Detector(preprocess, CheckpointRuntime(model), names).predict(photographs)
    boxes = sum(len(each) for each in expected)
    assert boxes > 10 * PHOTOGRAPHS
    full = cfg["PPFCOSDecode"]["keep_top_k"]
    for runtime in runtimes:
        found = Predictor(bundle, runtime).predict(photographs)
        lost = sum(
            without_counterpart(one, other, full) + without_counterpart(other, one, full)
            for one, other in zip(expected, found)
        )
        assert lost <= UNDECIDED * 2 * boxes, (runtime, lost, boxes)
