"""The bidirectional pyramid equals the formula of its paper, also for odd sizes."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from ppfcos.modeling.necks.bifpn import PPFCOSBiFPN

CHANNELS = (5, 7, 9)
EPSILON = 1e-4


def pyramid(fusion="fast", num_layers=2):
    """Return a pyramid with random weights and statistics; some fusion weights are negative."""
    neck = PPFCOSBiFPN(CHANNELS, [8, 16, 32], out_channels=6, num_layers=num_layers, fusion=fusion)
    rng = np.random.default_rng(0)
    for name, tensor in neck.state_dict().items():
        low, high = (0.5, 1.5) if "_variance" in name else (-0.5, 1.0)
        tensor.set_value(rng.uniform(low, high, tensor.shape).astype("float32"))
    neck.eval()
    return neck


def random_features(height, width, batch=2):
    rng = np.random.default_rng(1)
    sizes = [(height * 4, width * 4), (height * 2, width * 2), (height, width)]
    return [rng.normal(size=[batch, c, *size]) for c, size in zip(CHANNELS, sizes)]


def array(tensor):
    return tensor.numpy().astype(np.float64)


def batch_norm(x, norm):
    mean, variance, weight, bias = (
        array(each)[:, None, None] for each in (norm._mean, norm._variance, norm.weight, norm.bias)
    )
    return (x - mean) / np.sqrt(variance + norm._epsilon) * weight + bias


def pointwise(x, weight):
    return np.einsum("bchw,oc->bohw", x, array(weight)[:, :, 0, 0])


def depthwise(x, weight):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[2:]
    return sum(
        padded[:, :, i : i + height, j : j + width] * array(weight)[:, 0, i, j][:, None, None]
        for i in range(3)
        for j in range(3)
    )


def downsampled(x):
    height, width = -(-x.shape[2] // 2), -(-x.shape[3] // 2)
    rows = [
        [x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(2, 3)) for j in range(width)]
        for i in range(height)
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def upsampled(x, like):
    rows, columns = np.arange(like.shape[2]) // 2, np.arange(like.shape[3]) // 2
    return x[:, :, rows][:, :, :, columns]


def fused(node, *inputs):
    """Conv(Σ wᵢ·xᵢ / (ε + Σ wᵢ)), section 3.3 of the paper; without weights Conv(Σ xᵢ)."""
    total = sum(inputs)
    if node.weights is not None:
        weights = np.maximum(array(node.weights), 0)
        total = sum(w * x for w, x in zip(weights, inputs)) / (EPSILON + weights.sum())
    convolved = depthwise(np.maximum(total, 0), node.conv.depthwise.weight)
    return batch_norm(pointwise(convolved, node.conv.pointwise.weight), node.norm)


def top_down_and_bottom_up(layer, p3, p4, p5, p6, p7):
    down3, down4, down5, down6 = layer.downward
    up4, up5, up6, up7 = layer.upward
    middle6 = fused(down6, p6, upsampled(p7, p6))
    middle5 = fused(down5, p5, upsampled(middle6, p5))
    middle4 = fused(down4, p4, upsampled(middle5, p4))
    out3 = fused(down3, p3, upsampled(middle4, p3))
    out4 = fused(up4, p4, middle4, downsampled(out3))
    out5 = fused(up5, p5, middle5, downsampled(out4))
    out6 = fused(up6, p6, middle6, downsampled(out5))
    return out3, out4, out5, out6, fused(up7, p7, downsampled(out6))


@pytest.mark.parametrize("fusion", ["fast", "sum"])
@pytest.mark.parametrize("size", [(4, 8), (3, 5), (1, 2)])  # of C5; 3x5 goes to 2x3 and 1x2
def test_equals_the_formula(fusion, size):
    neck, features = pyramid(fusion), random_features(*size)
    levels = [
        batch_norm(pointwise(x, conv.weight), norm)
        for x, (conv, norm) in zip([*features, features[-1]], neck.laterals)
    ]
    levels[3] = downsampled(levels[3])
    levels.append(downsampled(levels[3]))
    for layer in neck.layers:
        levels = top_down_and_bottom_up(layer, *levels)
    found = neck([paddle.to_tensor(x, "float32") for x in features])
    assert [list(level.shape) for level in found] == [list(level.shape) for level in levels]
    for one, other in zip(found, levels):
        assert np.abs(one.numpy() - other).max() <= 1e-5 * np.abs(other).max()


@pytest.mark.parametrize("fusion", ["fast", "sum"])
def test_every_weight_has_a_gradient(fusion):
    neck = PPFCOSBiFPN(CHANNELS, [8, 16, 32], out_channels=6, num_layers=2, fusion=fusion)
    assert [(level.channels, level.stride) for level in neck.out_shape] == [(6, 8 << i) for i in range(5)]
    levels = neck([paddle.to_tensor(x, "float32") for x in random_features(3, 5)])
    sum((level**2).mean() + level.sum() for level in levels).backward()
    weights = [(name, p) for name, p in neck.named_parameters() if not p.stop_gradient]
    assert any(name.endswith("weights") for name, _ in weights) == (fusion == "fast")
    for name, weight in weights:
        assert weight.grad is not None and np.isfinite(weight.grad.numpy()).all(), name
        assert np.abs(weight.grad.numpy()).max() > 0, name
