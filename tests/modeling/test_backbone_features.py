"""With the weights of PaddleClas and paddle.vision, backbones give the features of these networks."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from helpers.published_paddleclas import paddleclas_networks

from ppfcos.config import load_config
from ppfcos.convert.convert import convert
from ppfcos.engine.model import build_model
from ppfcos.engine.weights import load_pretrained
from ppfcos.modeling.backbones.efficientnet import PPFCOSEfficientNet

CONFIGS = {
    "B0": "fcos_efficientnet_b0_512_coco",
    "B2": "fcos_efficientnet_b2_768_coco",
    "B3": "fcos_efficientnet_b3_896_coco",
}
# Millions of weights with the classifier, as printed in table 2 of the paper.
PUBLISHED_MILLIONS = {"B0": "5.3", "B2": "9.2", "B3": "12"}
STAGE_ENDS_50 = (6, 12, 15)  # indices of the last blocks of stages 3 to 5


def randomized(network):
    """Set random weights and statistics with which feature maps do not vanish."""
    rng = np.random.default_rng(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("_variance") or (tensor.ndim == 1 and name.endswith("weight")):
            values = rng.uniform(0.5, 1.5, tensor.shape)
        elif tensor.ndim == 4:
            values = rng.normal(size=tensor.shape) / math.sqrt(np.prod(tensor.shape[1:]))
        else:
            values = rng.normal(0, 0.2, tensor.shape)
        tensor.set_value(values.astype("float32"))
    network.eval()
    return network


def saved(network, path):
    paddle.save(network.state_dict(), str(path))
    return str(path)


def random_image():
    return paddle.to_tensor(np.random.default_rng(1).normal(size=[2, 3, 96, 64]), "float32")


def assert_equal_features(ours, theirs):
    assert [list(feature.shape) for feature in ours] == [list(feature.shape) for feature in theirs]
    for one, other in zip(ours, theirs):
        other = other.numpy()
        assert other.std() > 0.05
        assert np.abs(one.numpy() - other).max() <= 1e-4 * np.abs(other).max()


@pytest.mark.parametrize(("scale", "excitation"), [("B0", True), ("B0", False), ("B2", True), ("B3", True)])
def test_efficientnet_takes_paddleclas_weights_by_name(scale, excitation, tmp_path):
    networks = paddleclas_networks("model_zoo.efficientnet")
    with paddle.utils.unique_name.guard():  # PaddleClas sets names of weights, which must be unique
        theirs = randomized(getattr(networks, f"EfficientNet{scale}")(use_se=excitation))
    ours = PPFCOSEfficientNet(scale.lower(), squeeze_excitation=excitation)
    detector = paddle.nn.Sequential(("backbone", ours))
    load_pretrained(detector, saved(theirs, tmp_path / "published.pdparams"))
    ours.eval()

    x = theirs._ef._conv_stem(random_image())
    x, expected = paddle.nn.functional.swish(x), {}
    for block in theirs._ef.conv_seq:
        x = block(x)
        expected[tuple(x.shape[2:])] = x  # the last of each size
    assert_equal_features(ours({"image": random_image()}), list(expected.values())[-3:])


@pytest.mark.parametrize("scale", CONFIGS)
def test_the_configured_url_is_paddleclass(scale, root):
    addresses = paddleclas_networks("model_zoo.efficientnet").MODEL_URLS
    cfg = load_config(root / "configs" / f"{CONFIGS[scale]}.yml")
    assert cfg["pretrain_weights"] == addresses[f"EfficientNet{scale}"]
    assert cfg["PPFCOSEfficientNet"]["scale"] == scale.lower()


@pytest.mark.parametrize("scale", PUBLISHED_MILLIONS)
def test_efficientnet_has_the_number_of_weights_of_the_paper(scale):
    backbone = PPFCOSEfficientNet(scale.lower())
    count = sum(p.size for p in backbone.parameters() if not p.stop_gradient)
    last = backbone.out_shape[-1].channels
    head = 4 * last  # 1280 channels for 320 in B0; scaled alike in these three
    count += last * head + 2 * head + head * 1000 + 1000
    printed = PUBLISHED_MILLIONS[scale]
    half_a_digit = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    assert abs(count / 1e6 - float(printed)) <= max(0.01 * float(printed), half_a_digit)


def converted_resnet(theirs, name, tmp_path):
    """Save the network, convert the file, and return the backbone of the written configuration."""
    paddle.save(theirs.state_dict(), str(tmp_path / f"{name}_pretrained.pdparams"))
    done = convert(tmp_path / f"{name}_pretrained.pdparams", tmp_path / "ours.pdparams")
    cfg = load_config(done.config)
    model = build_model(cfg)
    load_pretrained(model, cfg["pretrain_weights"])
    model.eval()
    return model.backbone, done.format.name


@pytest.mark.parametrize(
    ("name", "format_name"), [("ResNet50", "paddleclas"), ("ResNet50_vd", "paddleclas-vd")]
)
def test_resnet_takes_paddleclas_weights(name, format_name, tmp_path):
    theirs = randomized(getattr(paddleclas_networks("legendary_models.resnet"), name)())
    x, expected = theirs.max_pool(theirs.stem(random_image())), []
    for number, block in enumerate(theirs.blocks):
        x = block(x)
        if number in STAGE_ENDS_50:
            expected.append(x)
    ours, found = converted_resnet(theirs, name, tmp_path)
    assert found == format_name
    assert_equal_features(ours({"image": random_image()}), expected)


def test_resnet_takes_weights_with_torchvisions_names(tmp_path):
    theirs = randomized(paddle.vision.models.resnet50())
    x, expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(random_image())))), []
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        x = stage(x)
        expected.append(x)
    ours, found = converted_resnet(theirs, "resnet50", tmp_path)
    assert found == "torchvision-backbone"
    assert_equal_features(ours({"image": random_image()}), expected[1:])
