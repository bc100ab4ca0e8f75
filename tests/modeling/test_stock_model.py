"""Losses and all gradients equal those of PaddleDetection's FCOS with the same weights."""

from __future__ import annotations

import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from ppdet.core.workspace import create, global_config, merge_config

from ppfcos.convert import paddledet
from ppfcos.convert.rules import Backbone, Rule, translate

STRIDES = [8, 16, 32, 64, 128]
HEIGHT, WIDTH, CLASSES = 128, 256, 5
NO_BACKBONE = Backbone("", "", {}, [])  # PaddleDetection's names of a backbone are ours


@pytest.fixture
def models(root):
    """Both models, trainable from the first layer, with the same weights; and their names of weights."""

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
    rules = [Rule(r"backbone\..*", r"\g<0>"), *paddledet.RULES]
    names = translate({name: value.numpy() for name, value in weights.items()}, NO_BACKBONE, rules).sources
    assert set(names) == set(ours.state_dict()) and set(names.values()) == set(weights)
    ours.set_state_dict({name: weights[theirs] for name, theirs in names.items()})
    yield stock, ours, names
    sys.path.remove(str(root / "benchmarks"))


def batches():
    from helpers.stock_targets import Gt2FCOSTarget
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


def in_double_precision(models, batches, monkeypatch):
    """Convert models and batches to float64, where rounding does not change which ReLUs are active."""
    (_, ours), (stock_batch, our_batch) = models, batches
    monkeypatch.setattr(F, "sigmoid_focal_loss", with_labels_like_logits(F.sigmoid_focal_loss))
    stock_batch = {
        name: value.astype("float64") if value.dtype == paddle.float32 else value
        for name, value in stock_batch.items()
    }
    # Ours normalizes in float32; another test compares the images.
    monkeypatch.setattr(ours, "_normalize", lambda image, im_shape: stock_batch["image"])
    for model in models:
        model.to(dtype="float64")
    return stock_batch, our_batch


def with_labels_like_logits(focal_loss):
    """Wrap Paddle's focal loss: PaddleDetection passes float32 labels with logits of any dtype."""
    return lambda logits, labels, *rest, **more: focal_loss(
        logits, labels.astype(logits.dtype), *rest, **more
    )


def test_the_normalized_image_equals_the_stock_readers(models):
    _, ours, _ = models
    stock_batch, our_batch = batches()
    normalized = ours._normalize(our_batch["image"], our_batch["im_shape"])
    np.testing.assert_allclose(normalized.numpy(), stock_batch["image"].numpy(), atol=2e-6)


# Norms are compared: in float32 single entries differ where the input of a ReLU is 0 up to rounding. In
# float64 the rest is due to our loss, which converts logits to float32.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.03), ("float64", 1e-5)])
def test_losses_and_gradients_equal_the_stock_model(models, dtype, tolerance, monkeypatch):
    *models, names = models
    stock, ours = models
    inputs = batches()
    if dtype == "float64":
        inputs = in_double_precision(models, inputs, monkeypatch)
    stock.train()
    ours.train()
    losses = [model(batch) for model, batch in zip(models, inputs)]
    for found in losses:
        (found["loss_cls"] + found["loss_box"] + found["loss_quality"]).backward()
    for name in ("loss_cls", "loss_box", "loss_quality"):
        assert float(losses[1][name]) == pytest.approx(float(losses[0][name]), rel=1e-5)
    stock_weights = dict(stock.named_parameters())
    compared = 0
    for name, weight in ours.named_parameters():
        if weight.stop_gradient:
            continue
        expected = stock_weights[names[name]].grad
        expected = expected.numpy()
        difference = np.linalg.norm(weight.grad.numpy() - expected)
        assert difference <= tolerance * np.linalg.norm(expected), name
        compared += 1
    assert compared > 70
