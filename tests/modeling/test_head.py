"""The head equals convolution, GroupNorm and ReLU written out: values and all gradients."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppfcos.modeling.head import PPFCOSHead


def gradients(outputs, layer, inputs):
    """Gradients of a fixed random projection of the outputs, with respect to the weights and the inputs."""
    rng = np.random.default_rng(0)
    total = sum((out * paddle.to_tensor(rng.normal(size=out.shape), "float32")).sum() for out in outputs)
    learned = [*layer.parameters(), *inputs]
    for tensor in learned:
        tensor.clear_gradient(set_to_zero=False)
    total.backward()
    return [None if tensor.grad is None else tensor.grad.numpy() for tensor in learned]


def check(found, expected, found_gradients, expected_gradients):
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=1e-4)
    assert len(found_gradients) == len(expected_gradients)
    for one, other in zip(found_gradients, expected_gradients):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=5e-5 * max(1.0, np.abs(other).max()))


def group_norm(feature, groups, norm):
    """The formula, since Paddle 2.6 has no function for it."""
    parts = feature.reshape([feature.shape[0], groups, -1])
    centred = parts - parts.mean(axis=-1, keepdim=True)
    whitened = centred / paddle.sqrt((centred**2).mean(axis=-1, keepdim=True) + 1e-5)
    return whitened.reshape(feature.shape) * norm.weight.reshape([-1, 1, 1]) + norm.bias.reshape([-1, 1, 1])


@pytest.mark.parametrize("centerness_on", ["box", "class"])
@pytest.mark.parametrize("num_convs", [0, 1, 3])
def test_head(num_convs, centerness_on):
    paddle.seed(0)
    head = PPFCOSHead(
        in_channels=64, strides=[8, 16], num_classes=5, num_convs=num_convs, centerness_on=centerness_on
    )
    for name, weight in head.named_parameters():
        if "scales" not in name:
            weight.set_value(paddle.randn(weight.shape) * 0.1 + (1.0 if "norms" in name else 0.0))
    features = [paddle.randn([2, 64, 6, 10]), paddle.randn([2, 64, 3, 5])]
    for feature in features:
        feature.stop_gradient = False

    def tower(layer, feature):
        for conv, norm in zip(layer.convs, layer.norms):
            feature = F.conv2d(feature, conv.weight, conv.bias, padding=1)
            feature = F.relu(group_norm(feature, 32, norm))
        return feature

    def predict(conv, feature):
        return F.conv2d(feature, conv.weight, conv.bias, padding=1)

    expected = []
    for feature, stride, scale in zip(features, (8, 16), head.scales):
        by_class, by_box = tower(head.class_tower, feature), tower(head.box_tower, feature)
        expected.append(predict(head.class_conv, by_class))
        expected.append(F.relu(predict(head.box_conv, by_box) * scale) * stride)
        expected.append(predict(head.quality_conv, by_box if centerness_on == "box" else by_class))
    expected_gradients = gradients(expected, head, features)
    outputs = head(features)
    found = [level[i] for i in range(2) for level in outputs]
    check(found, expected, gradients(found, head, features), expected_gradients)

    head.eval()
    plain = head(features)
    for one, other in zip([level[i] for i in range(2) for level in plain], expected):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=1e-4)
