"""The whole network against PaddleDetection's own FCOS with the same weights: losses, every gradient."""

from __future__ import annotations

import re
import sys

import numpy as np
import paddle
import pytest
from ppdet.core.workspace import create, global_config, merge_config

STRIDES = [8, 16, 32, 64, 128]
HEIGHT, WIDTH, CLASSES = 128, 256, 5


def stock_name(name: str) -> str:
    """What PaddleDetection calls a weight of ours."""
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


@pytest.fixture
def models(root):
    """Stock and ours, trainable from the first layer on, with the same weights."""

    def clear():
        for value in global_config.values():
            if hasattr(value, "schema"):
                value.clear()

    sys.path.insert(0, str(root / "benchmarks"))
    from stock import stock_config

    clear()
    merge_config(
        stock_config(
            depth=18, target_size=(HEIGHT, WIDTH), num_classes=CLASSES, batch_size=2, from_scratch=True
        )
    )
    paddle.seed(3)
    merge_config({"PPFCOSLoss": {"iou_smoothing": 1.0}})
    stock, ours = create("FCOS"), create("PPFCOS")
    clear()
    weights = stock.state_dict()
    assert {stock_name(name) for name in ours.state_dict()} == set(weights)
    ours.set_state_dict({name: weights[stock_name(name)] for name in ours.state_dict()})
    yield stock, ours
    sys.path.remove(str(root / "benchmarks"))


def batches():
    from ppdet.data.transform.batch_operators import Gt2FCOSTarget
    from stock import MEAN, STD

    rng = np.random.default_rng(1)
    size = np.exp(rng.uniform(np.log(16), np.log(110), [2, 6, 2]))
    corner = rng.uniform(0, 1, [2, 6, 2]) * ([WIDTH, HEIGHT] - size)
    boxes = np.concatenate([corner, corner + size], -1).astype("float32")
    labels = rng.integers(0, CLASSES, [2, 6, 1]).astype("int32")
    pixels = rng.integers(0, 256, [2, 3, HEIGHT, WIDTH])
    normalized = (pixels / 255 - np.reshape(MEAN, [3, 1, 1])) / np.reshape(STD, [3, 1, 1])
    samples = [
        {"image": image.astype("float32"), "gt_bbox": box, "gt_class": label}
        for image, box, label in zip(normalized, boxes, labels)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        samples = Gt2FCOSTarget([64, 128, 256, 512], 1.5, STRIDES)(samples)
    shape = paddle.to_tensor([[HEIGHT, WIDTH]] * 2, "float32")
    stock = {key: paddle.to_tensor(np.stack([sample[key] for sample in samples])) for key in samples[0]}
    ours = {
        "image": paddle.to_tensor(pixels, "uint8"),
        "im_shape": shape,
        "scale_factor": paddle.ones([2, 2]),
        "gt_bbox": paddle.to_tensor(boxes),
        "gt_class": paddle.to_tensor(labels),
    }
    return {**stock, "im_shape": shape}, ours


def test_losses_and_gradients_equal_the_stock_model(models):
    stock, ours = models
    stock.train()
    ours.train()
    losses = [model(batch) for model, batch in zip(models, batches())]
    for found in losses:
        (found["loss_cls"] + found["loss_box"] + found["loss_quality"]).backward()
    for name in ("loss_cls", "loss_box", "loss_quality"):
        assert float(losses[1][name]) == pytest.approx(float(losses[0][name]), rel=1e-5)
    stock_weights = dict(stock.named_parameters())
    compared = 0
    for name, weight in ours.named_parameters():
        if weight.stop_gradient:
            continue
        expected = stock_weights[stock_name(name)].grad
        expected = expected.numpy()
        # By the norm: where a ReLU's input is zero up to rounding, single entries differ.
        difference = np.linalg.norm(weight.grad.numpy() - expected)
        assert difference <= 0.03 * np.linalg.norm(expected), name
        compared += 1
    assert compared > 70
