"""One network per family: checkpoint and all three runtimes detect the same boxes in photographs.

The networks have full depth and width and are untrained, with the statistics of trained ones: see
`untrained_model`. Photographs are resized to at most half the usual size.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from conftest import ROOT
from helpers.small_detector import fit_logits, spread_scores
from paddle import nn
from test_configs import settle_norms

from ppfcos.config import load_config
from ppfcos.deploy import Detector, Predictor
from ppfcos.deploy.bundle import FORMATS, PADDLE
from ppfcos.deploy.images import read_image
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.deploy.runtimes.choice import LIBRARIES
from ppfcos.engine.model import build_model
from ppfcos.export.bundle import ExportOptions, export_bundle, goes_to_onnx
from ppfcos.export.bundle_files import preprocess_steps
from ppfcos.export.trained_model import CheckpointRuntime

PHOTOGRAPHS = 30
PIXELS, SCORE = 0.01, 1e-4
# Fraction of the boxes whose scores are so close to another one, or to a threshold, that rounding decides
# which is kept.
UNDECIDED = 0.002
# Several times slower than the others, so it gets smaller photographs.
HEAVY = "fcos_x101_32x8d_fpn_multiscale_2x_coco"
FAMILIES = (
    "fcos_r50_fpn_1x_coco",
    "fcos_r50_caffe_fpn_gn_head_1x_coco",
    "fcos_r50_fpn_iou_1x_coco",
    "fcos_dcn_r50_fpn_1x_coco",
    HEAVY,
    "fcos_mobilenetv2_fpn_1x_coco",
    "fcos_r50_fpn_rt_bn_head_4x_coco",
    "fcos_dla34_fpn_rt_bn_head_4x_coco",
    "fcos_hrnetv2p_w18_1x_coco",
    "fcos_efficientnet_b0_512_coco",
)
SEEN = 8  # photographs that the weights are fitted to
# After a batch norm, nearly all values are above zero.
SHIFT = 2.0
# Mean and standard deviation of the logits: some hundred candidates are above the threshold, none with a
# score close to 1, where scores would be equal.
CLASSES, QUALITY = (-8.0, 1.7), (0.0, 1.0)
# Maximum distance of a level's boxes, in strides.
FARTHEST = 8


@pytest.fixture(scope="module")
def photographs(tinycoco):
    paths = sorted(tinycoco.glob("images/*/*.jpg"))[:PHOTOGRAPHS]
    assert len(paths) == PHOTOGRAPHS
    return paths


def configured(name):
    """The configuration, for photographs of half the size or less."""
    cfg = load_config(ROOT / "configs" / f"{name}.yml", ["device=cpu"])
    longest = 192 if name == HEAVY else 256
    for step in cfg["TestReader"]["sample_transforms"]:
        if "Resize" in step:
            sides = step["Resize"]["target_size"]
            step["Resize"]["target_size"] = [min(side // 2, longest) for side in sides]
    for step in cfg["TestReader"]["batch_transforms"]:
        if "PadBatch" in step:  # a stride of the full size would be three quarters padding
            step["PadBatch"]["pad_to_stride"] = min(step["PadBatch"]["pad_to_stride"], 128)
    return cfg


def untrained_model(cfg, preprocess, photographs):
    """A model with the norms, scores and distances of a trained one.

    Random weights between batch norms amplify rounding with every ReLU, a thousandfold in all (Yang et al.,
    "A mean field theory of batch normalization", ICLR 2019), unless nearly all values pass the ReLU.
    """
    paddle.seed(0)
    model = build_model(cfg)
    spread_scores(model)
    for layer in model.sublayers():
        if isinstance(layer, nn.BatchNorm2D) and not layer._use_global_stats:
            layer.bias.set_value(paddle.full_like(layer.bias, SHIFT))
    seen = preprocess([read_image(path) for path in photographs[:SEEN]])
    seen = {name: paddle.to_tensor(value) for name, value in seen.items()}
    settle_norms(model, seen)
    model.eval()
    with paddle.no_grad():
        outputs = model.network(seen["image"], seen["im_shape"])
    fit_logits(model.head.class_conv, outputs.class_logits, *CLASSES)
    fit_logits(model.head.quality_conv, outputs.quality_logits, *QUALITY)
    if model.head.distance == "relu":
        fit_distances(model.head, outputs.distances)
    return model


def fit_distances(head, levels):
    """Set the scale of each level so that nearly all its distances are in its range."""
    for factor, distances, stride in zip(head.scales, levels, head.strides):
        farthest = float(np.quantile(distances.numpy(), 0.99)) / stride
        factor.set_value(factor * (FARTHEST / farthest))


def count_unmatched(some, others, full):
    """How many boxes have no match in class, score and coordinates among the others.

    In a full list, rounding decides which boxes are the last, so these are ignored.
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
def test_every_runtime_matches_checkpoint(name, photographs, tmp_path):
    cfg = configured(name)
    preprocess = Preprocess(preprocess_steps(cfg["TestReader"]))
    model = untrained_model(cfg, preprocess, photographs)
    names = [f"class {number}" for number in range(cfg["num_classes"])]
    formats, runtimes = (FORMATS, LIBRARIES) if goes_to_onnx(model) else ((PADDLE,), ("paddle",))
    wanted = ExportOptions(formats=formats, images=photographs[:4])
    bundle = export_bundle(model, cfg, names, tmp_path / "bundle", None, wanted)
    expected = Detector(preprocess, CheckpointRuntime(model), names).predict(photographs)
    boxes = sum(len(each) for each in expected)
    assert boxes > 10 * PHOTOGRAPHS
    full = cfg["PPFCOSDecode"]["keep_top_k"]
    cut = sum(len(each) == full for each in expected)
    for runtime in runtimes:
        found = Predictor(bundle, runtime).predict(photographs)
        lost = sum(
            count_unmatched(one, other, full) + count_unmatched(other, one, full)
            for one, other in zip(expected, found)
        )
        print(f"{name} in {runtime}: {lost} of {2 * boxes} boxes unmatched, {cut} images with a full list")
        assert lost <= UNDECIDED * 2 * boxes
