"""The network: normalization, gradients, deformable towers, folded norms, and wrong inputs."""

from __future__ import annotations

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from ppdet.core.workspace import create
from ppdet.modeling.backbones.resnet import ResNet

from ppfcos.modeling.head import PPFCOSHead
from ppfcos.modeling.layers import fold_frozen_norms
from ppfcos.modeling.necks.fpn import PPFCOSFPN


def small_model(workspace, **head):
    workspace["ResNet"].update(depth=18, return_idx=[1, 2, 3], num_stages=4)
    workspace["PPFCOSFPN"].update(out_channels=32)
    workspace["PPFCOSHead"].update(num_classes=3, num_convs=1, **head)
    paddle.seed(1)
    return create("PPFCOS")


def small_batch(rng, boxes=(4, 2), height=64, width=96):
    most = max(1, *boxes)
    padded, labels = np.zeros([len(boxes), most, 4]), np.zeros([len(boxes), most, 1])
    for image, count in enumerate(boxes):
        corner = rng.uniform(0, 40, [count, 2])
        padded[image, :count] = np.concatenate([corner, corner + rng.uniform(8, 50, [count, 2])], 1)
        labels[image, :count] = rng.integers(0, 3, [count, 1])
    return {
        "image": paddle.to_tensor(rng.integers(0, 256, [len(boxes), 3, height, width]), "uint8"),
        "im_shape": paddle.to_tensor([[height, width]] * len(boxes), "float32"),
        "scale_factor": paddle.ones([len(boxes), 2]),
        "gt_bbox": paddle.to_tensor(padded, "float32"),
        "gt_class": paddle.to_tensor(labels, "int32"),
    }


@pytest.mark.parametrize("height", [425, 427, 428, 429])
def test_padding_begins_at_the_size_that_opencv_rounds_to(workspace, height):
    """im_shape is height times factor, a fraction; OpenCV rounds it."""
    resized = cv2.resize(np.full([height, 64, 3], 255, np.uint8), None, fx=0.5, fy=0.5)
    canvas = np.zeros([1, 3, 256, 32], np.uint8)
    canvas[0, :, : len(resized)] = resized.transpose(2, 0, 1)
    normalized = small_model(workspace)._normalize(
        paddle.to_tensor(canvas), paddle.to_tensor([[height * 0.5, 32.0]])
    )
    assert (normalized.numpy()[0, :, : len(resized)] > 2).all()
    assert (normalized.numpy()[0, :, len(resized) :] == 0).all()


@pytest.mark.parametrize("boxes", [(4, 2), (3, 0), (0, 0)])
@pytest.mark.parametrize(
    "head",
    [{}, {"norm_type": "bn", "centerness_on": "class", "distance": "exp"}, {"deformable_convs": 1}],
)
def test_every_weight_has_a_finite_gradient(workspace, boxes, head):
    model = small_model(workspace, **head)
    losses = model(small_batch(np.random.default_rng(0), boxes))
    losses["loss"].backward()
    assert np.isfinite([float(value) for value in losses.values()]).all()
    if not any(boxes):
        assert float(losses["loss_box"]) == float(losses["loss_quality"]) == 0
    for name, weight in model.named_parameters():
        if not weight.stop_gradient:
            assert weight.grad is not None, name
            assert np.isfinite(weight.grad.numpy()).all(), name


def test_uint8_and_float_images_are_the_same_and_padding_is_zero(workspace):
    model = small_model(workspace)
    model.eval()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, [1, 3, 64, 64])
    shape = paddle.to_tensor([[40.0, 50.0]])
    normalized = model._normalize(paddle.to_tensor(pixels, "uint8"), shape).numpy()
    mean, std = np.reshape([0.485, 0.456, 0.406], [3, 1, 1]), np.reshape([0.229, 0.224, 0.225], [3, 1, 1])
    expected = (pixels[0] / 255 - mean) / std
    expected[:, 40:], expected[:, :, 50:] = 0, 0
    np.testing.assert_allclose(normalized[0], expected, atol=1e-5)
    as_float = model._normalize(paddle.to_tensor(pixels, "float32"), shape).numpy()
    np.testing.assert_array_equal(normalized, as_float)


def test_sizes_that_are_not_multiples_of_32_are_errors(workspace):
    batch = small_batch(np.random.default_rng(0), height=60)
    with pytest.raises(ValueError, match="60x96 pixels: height and width must be multiples of 32"):
        small_model(workspace)(batch)


def test_every_class_starts_at_the_prior(workspace):
    model = small_model(workspace, prior_prob=0.02)
    model.eval()
    batch = small_batch(np.random.default_rng(0))
    logits = model.network(batch["image"], batch["im_shape"]).class_logits
    scores = np.concatenate([F.sigmoid(level).numpy().ravel() for level in logits])
    assert scores.mean() == pytest.approx(0.02, rel=0.2)


def test_extra_levels_from_c5():
    neck = PPFCOSFPN(in_channels=[8, 16], strides=[16, 32], out_channels=8, extra_levels=1, extra_source="c5")
    features = [paddle.randn([1, 8, 4, 4]), paddle.randn([1, 16, 2, 2])]
    np.testing.assert_allclose(neck(features)[-1].numpy(), neck.extras[0](features[-1]).numpy())
    assert [shape.stride for shape in neck.out_shape] == [16, 32, 64]


def test_a_deformable_tower_starts_as_half_a_plain_one():
    """All offsets are 0, and all masks are sigmoid(0)."""
    paddle.seed(0)
    plain, deformable = (
        PPFCOSHead(
            in_channels=32, strides=[8], num_classes=2, num_convs=2, norm_type="bn", deformable_convs=n
        )
        for n in (0, 1)
    )
    weights = plain.state_dict()
    for tower in ("class_tower", "box_tower"):
        bias, kernel = f"{tower}.convs.1.bias", f"{tower}.convs.1.weight"
        weights[bias].set_value(paddle.randn([32]))
        weights[f"{tower}.convs.1.conv_dcn.bias"] = weights[bias]
        weights[f"{tower}.convs.1.conv_dcn.weight"] = 2 * weights[kernel]
    missing, _ = deformable.set_state_dict(weights)
    assert {name.rpartition(".")[0] for name in missing} == {
        "class_tower.convs.1.conv_offset",
        "box_tower.convs.1.conv_offset",
    }
    feature = [paddle.randn([2, 32, 6, 9])]
    for one, other in zip(deformable(feature), plain(feature)):
        np.testing.assert_allclose(one[0].numpy(), other[0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [18, 50])
def test_folded_frozen_norms_change_nothing(depth):
    """Features and gradients equal those of PaddleDetection's own forward."""
    paddle.seed(0)
    backbone = ResNet(depth=depth, return_idx=[1, 2, 3], freeze_at=0)
    rng = np.random.default_rng(0)
    for layer in backbone.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            channels = layer.weight.shape
            layer._mean.set_value(rng.normal(0, 0.1, channels).astype("float32"))
            layer._variance.set_value(rng.uniform(0.5, 1.5, channels).astype("float32"))
            layer.weight.set_value(rng.uniform(0.3, 0.7, channels).astype("float32"))
            layer.bias.set_value(rng.normal(0, 0.1, channels).astype("float32"))
    image = {"image": paddle.to_tensor(rng.normal(size=[1, 3, 64, 64]), "float32")}

    def features_and_gradients():
        backbone.clear_gradients()
        features = backbone(image)
        sum((feature**2).mean() for feature in features).backward()
        gradients = {n: p.grad.numpy() for n, p in backbone.named_parameters() if p.grad is not None}
        return [feature.numpy() for feature in features], gradients

    backbone.train()
    stock_features, stock_gradients = features_and_gradients()
    fold_frozen_norms(backbone)
    features, gradients = features_and_gradients()
    for one, other in zip(features, stock_features):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
    assert gradients.keys() == stock_gradients.keys() and gradients
    for name, other in stock_gradients.items():
        np.testing.assert_allclose(
            gradients[name], other, rtol=1e-2, atol=1e-4 * np.abs(other).max(), err_msg=name
        )
