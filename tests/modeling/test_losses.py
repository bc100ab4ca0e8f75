"""Losses and their gradients equal the formulas, entry by entry, in double precision."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from helpers import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ppfcos.modeling.assigner import Targets, compute_centerness
from ppfcos.modeling.head import HeadOutputs
from ppfcos.modeling.losses import Normalizers, PPFCOSLoss, focal_loss_sum, global_normalizers


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 9),
    classes=st.integers(1, 5),
    background=st.sampled_from([0.0, 0.6, 1.0]),
    alpha=st.sampled_from([0.25, 0.5]),
    gamma=st.sampled_from([2.0, 1.5]),
)
def test_focal_loss(seed, rows, classes, background, alpha, gamma):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, [rows, classes])
    labels = np.where(rng.random(rows) < background, classes, rng.integers(0, classes, rows))
    tensor = paddle.to_tensor(logits.astype("float32"), stop_gradient=False)
    positives = paddle.to_tensor(np.flatnonzero(labels < classes))
    loss = focal_loss_sum(tensor, paddle.to_tensor(labels), positives, alpha, gamma)
    loss.backward()
    expected = reference.focal(logits, labels, alpha, gamma)
    assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    gradient = reference.gradient(lambda values: reference.focal(values, labels, alpha, gamma), logits)
    np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-4, atol=1e-5)


def test_focal_loss_of_extreme_logits_is_finite():
    logits = np.array([[80.0, -80.0], [-80.0, 80.0], [30.0, 30.0]])
    labels = np.array([0, 0, 2])
    tensor = paddle.to_tensor(logits.astype("float32"), stop_gradient=False)
    loss = focal_loss_sum(tensor, paddle.to_tensor(labels), paddle.to_tensor([0, 1]))
    loss.backward()
    assert float(loss) == pytest.approx(reference.focal(logits, labels, 0.25, 2.0), rel=1e-5)
    assert np.isfinite(tensor.grad.numpy()).all()


def _case(rng, positives, classes=3, shapes=((2, 3), (1, 2)), batch=2):
    """Random outputs of two levels and targets whose positives are spread over them."""
    outputs = HeadOutputs(
        *(
            [rng.normal(shift, 1.5, [batch, channels, *shape]) for shape in shapes]
            for channels, shift in ((classes, -1.0), (4, 0.0), (1, 0.0))
        )
    )
    outputs = outputs._replace(distances=[np.exp(level) * 10 for level in outputs.distances])
    total = batch * sum(h * w for h, w in shapes)
    indices = np.sort(rng.choice(total, positives, replace=False))
    labels = np.full(total, classes)
    labels[indices] = rng.integers(0, classes, positives)
    return outputs, labels, indices, np.exp(rng.normal(0, 1, [positives, 4])) * 10


def _targets(labels, indices, distances, strides=None):
    wanted = paddle.to_tensor(np.asarray(distances, "float32").reshape([-1, 4]))
    strides = np.full(len(indices), 8.0) if strides is None else strides
    return Targets(
        paddle.to_tensor(labels),
        paddle.to_tensor(indices),
        wanted,
        compute_centerness(wanted),
        paddle.to_tensor(strides.astype("float32")),
    )


def _tensors(levels):
    return [paddle.to_tensor(level.astype("float32"), stop_gradient=False) for level in levels]


def _flat(levels):
    """[B, K, H, W] levels as rows of B·P, by loops."""
    rows = []
    for image in range(levels[0].shape[0]):
        for level in levels:
            for row in range(level.shape[2]):
                for column in range(level.shape[3]):
                    rows.append(level[image, :, row, column])
    return np.array(rows)


def _expected(outputs, labels, indices, distances, kind, quality, areas, frozen_iou=None):
    """Return the three losses by the formulas; `areas` smooth the IoUs, `frozen_iou` has no gradient."""
    logits, predicted = _flat(outputs.class_logits), _flat(outputs.distances)
    quality_logits = _flat(outputs.quality_logits)[:, 0]
    count = max(len(indices), 1)
    boxes = [
        reference.box_loss(predicted[i], wanted, kind, area)
        for i, wanted, area in zip(indices, distances, areas)
    ]
    if quality == "centerness":
        weights = [reference.centerness(wanted) for wanted in distances]
        wanted_quality, box_divisor = weights, max(sum(weights), 1e-7)
    else:
        weights, box_divisor = [1.0] * len(indices), count
        wanted_quality = frozen_iou
    return {
        "loss_cls": reference.focal(logits, labels, 0.25, 2.0) / count,
        "loss_box": sum(weight * box for weight, box in zip(weights, boxes)) / box_divisor,
        "loss_quality": sum(reference.bce(quality_logits[i], q) for i, q in zip(indices, wanted_quality))
        / count,
    }


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    positives=st.integers(0, 12),
    kind=st.sampled_from(["giou", "linear_iou", "iou"]),
    quality=st.sampled_from(["centerness", "iou"]),
    smoothing=st.sampled_from([0.0, 1.0, 0.3]),
)
@example(seed=0, positives=0, kind="giou", quality="centerness", smoothing=0.0)
@example(seed=0, positives=0, kind="iou", quality="iou", smoothing=1.0)
def test_losses_and_gradients(seed, positives, kind, quality, smoothing):
    rng = np.random.default_rng(seed)
    outputs, labels, indices, distances = _case(rng, positives)
    tensors = HeadOutputs(*(_tensors(levels) for levels in outputs))
    strides = rng.choice([4.0, 16.0], positives)
    targets = _targets(labels, indices, distances, strides)
    loss = PPFCOSLoss(box_loss=kind, iou_smoothing=smoothing, quality=quality)
    losses = loss(tensors, targets, global_normalizers([targets]))
    losses["loss"].backward()

    predicted = _flat(outputs.distances)
    areas = smoothing * strides**2
    iou = [
        reference.iou_and_giou(predicted[i], box, area)[0] for i, box, area in zip(indices, distances, areas)
    ]
    expected = _expected(outputs, labels, indices, distances, kind, quality, areas, iou)
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert float(losses["loss"]) == pytest.approx(sum(expected.values()), rel=1e-5)

    def total(_):
        return sum(_expected(outputs, labels, indices, distances, kind, quality, areas, iou).values())

    for levels, made in zip(outputs, tensors):
        for level, tensor in zip(levels, made):
            gradient = reference.gradient(total, level)
            np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=2e-3, atol=2e-5)


def test_invalid_points_are_not_in_the_class_loss():
    rng = np.random.default_rng(4)
    outputs, labels, indices, distances = _case(rng, 5)
    ignored = np.setdiff1d(np.arange(len(labels)), indices)[::3]
    valid = np.setdiff1d(np.arange(len(labels)), ignored)
    targets = _targets(labels, indices, distances)
    results = []
    for some in (targets, targets._replace(valid=paddle.to_tensor(valid))):
        tensors = HeadOutputs(*(_tensors(levels) for levels in outputs))
        losses = PPFCOSLoss()(tensors, some, global_normalizers([some]))
        losses["loss"].backward()
        results.append((losses, _flat([level.grad.numpy() for level in tensors.class_logits])))
    (plain, plain_gradient), (losses, gradient) = results
    logits = _flat(outputs.class_logits)[valid]
    expected = reference.focal(logits, labels[valid], 0.25, 2.0) / len(indices)
    assert float(losses["loss_cls"]) == pytest.approx(expected, rel=1e-5)
    for name in ("loss_box", "loss_quality"):
        assert float(losses[name]) == float(plain[name])
    assert (gradient[ignored] == 0).all() and (plain_gradient[ignored] != 0).any()
    np.testing.assert_allclose(gradient[valid], plain_gradient[valid], rtol=1e-6)


def test_weights_of_the_losses():
    rng = np.random.default_rng(1)
    outputs, labels, indices, distances = _case(rng, 5)
    targets = _targets(labels, indices, distances)
    tensors = HeadOutputs(*(_tensors(levels) for levels in outputs))
    ones = Normalizers(paddle.to_tensor(1.0), paddle.to_tensor(1.0))
    plain = PPFCOSLoss()(tensors, targets, ones)
    weighed = PPFCOSLoss(class_weight=2.0, box_weight=3.0, quality_weight=0.5)(tensors, targets, ones)
    for name, weight in (("loss_cls", 2.0), ("loss_box", 3.0), ("loss_quality", 0.5)):
        assert float(weighed[name]) == pytest.approx(weight * float(plain[name]), rel=1e-6)
