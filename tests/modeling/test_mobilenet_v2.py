"""MobileNetV2: weights by name, and frozen parts. test_convert_weights.py compares its features."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.vision.models import mobilenet_v2

from ppfcos.engine.weights import load_pretrained
from ppfcos.modeling.backbones.mobilenet_v2 import PPFCOSMobileNetV2


@pytest.fixture(scope="module")
def image():
    paddle.seed(3)
    return {"image": paddle.randn([2, 3, 64, 96])}


def test_features_have_the_shapes_of_out_shape(image):
    backbone = PPFCOSMobileNetV2(scale=0.5, return_idx=[0, 1, 2, 3])
    features = backbone(image)
    assert [shape.stride for shape in backbone.out_shape] == [4, 8, 16, 32]
    for feature, shape in zip(features, backbone.out_shape):
        assert feature.shape == [2, shape.channels, 64 // shape.stride, 96 // shape.stride]


def test_paddles_imagenet_weights_load_by_name(image, tmp_path):
    paddle.seed(0)
    theirs = mobilenet_v2()
    paddle.save(theirs.state_dict(), str(tmp_path / "mobilenet_v2_x1.0.pdparams"))
    detector = paddle.nn.Layer()
    detector.backbone = PPFCOSMobileNetV2()
    load_pretrained(detector, str(tmp_path / "mobilenet_v2_x1.0.pdparams"))
    theirs.eval()
    detector.eval()
    expected = theirs.features[:18](image["image"]).numpy()
    np.testing.assert_array_equal(detector.backbone(image)[-1].numpy(), expected)


@pytest.mark.parametrize("freeze_norm", [False, True])
def test_frozen_norms_keep_statistics_and_weights(image, freeze_norm):
    backbone = PPFCOSMobileNetV2(scale=0.25, freeze_norm=freeze_norm)
    backbone.train()
    before = {name: value.numpy() for name, value in backbone.state_dict().items()}
    features = backbone(image)
    sum((feature**2).mean() for feature in features).backward()
    norms = [layer for layer in backbone.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    assert all((norm.weight.grad is None) == freeze_norm for norm in norms)
    kept = [np.array_equal(value.numpy(), before[name]) for name, value in backbone.state_dict().items()]
    assert all(kept) == freeze_norm
    if freeze_norm:  # training and evaluation are then the same
        backbone.eval()
        for feature, other in zip(features, backbone(image)):
            np.testing.assert_allclose(feature.numpy(), other.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("freeze_at, frozen_layers", [(-1, 0), (0, 4), (1, 7), (2, 14)])
def test_frozen_stages_have_no_gradient(freeze_at, frozen_layers):
    backbone = PPFCOSMobileNetV2(scale=0.25, freeze_at=freeze_at)
    for name, weight in backbone.named_parameters():
        if not name.endswith(("._mean", "._variance")):
            assert weight.stop_gradient == (int(name.split(".")[1]) < frozen_layers), name
