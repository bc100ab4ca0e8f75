"""Parameters and MACs against published figures of the same networks, and counted by hand."""

from __future__ import annotations

import subprocess
import sys

import paddle
import pytest
import yaml
from helpers.macs import count_macs
from helpers.small_config import write_config
from paddle import nn

from ppfcos.config import load_config
from ppfcos.engine.model import build_model, count_weights


@pytest.fixture(scope="module")
def published(root):
    return yaml.safe_load((root / "benchmarks" / "published.yml").read_text(encoding="utf-8"))["projects"]


def standard_model(root, *overrides: str) -> nn.Layer:
    model = build_model(load_config(root / "configs" / "fcos_r50_fpn_1x_coco.yml", overrides))
    model.eval()
    return model


def test_parameters_and_macs_of_torchvisions_model(root, published):
    figures = published["torchvision"]["models"]["fcos_resnet50_fpn"]
    model = standard_model(root, "num_classes=91")
    # Its frozen norms have no weights, and its head no scales.
    norms = [layer for layer in model.backbone.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    ours_alone = sum(int(norm.weight.size + norm.bias.size) for norm in norms) + len(model.head.scales)
    assert count_weights(model).total - ours_alone == figures["weights"]
    work = count_macs(model, *figures["multiply_adds"]["size"])
    assert work / 1e9 == pytest.approx(figures["multiply_adds"]["giga"], abs=0.05)


def test_macs_of_mmdetections_model(root, published):
    figures = published["mmdet"]["models"]["fcos_r50_caffe_fpn_gn-head_1x_coco"]["multiply_adds"]
    work = count_macs(standard_model(root, "ResNet.variant=a"), *figures["size"])
    assert work / 1e9 == pytest.approx(figures["giga"], rel=0.01)
    assert work / 1e9 < figures["giga"]  # which has norms and activations in it


class OneLayer(nn.Layer):
    """`count_macs` counts the `network` of a model."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def network(self, image, im_shape):
        return self.layer(image)


class Deformable(nn.Layer):
    def __init__(self):
        super().__init__()
        self.offsets = nn.Conv2D(3, 18, 3, padding=1)
        self.conv = paddle.vision.ops.DeformConv2D(3, 8, 3, padding=1)

    def forward(self, image):
        return self.conv(image, self.offsets(image))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: nn.Conv2D(3, 8, 3, stride=2, padding=1), 8 * 3 * 9 * 16 * 24),
        (lambda: nn.Conv2D(3, 6, 5, padding=2, groups=3), 6 * 1 * 25 * 32 * 48),
        (lambda: nn.Sequential(nn.Conv2D(3, 8, 1), nn.BatchNorm2D(8), nn.ReLU()), 8 * 3 * 32 * 48),
        (Deformable, (18 + 8) * 3 * 9 * 32 * 48),
    ],
)
def test_macs_of_layers_counted_by_hand(layer, expected):
    model = OneLayer(layer())
    model.eval()
    assert count_macs(model, 32, 48) == expected


def test_what_cannot_be_counted_is_named():
    model = OneLayer(nn.Linear(48, 3))
    with pytest.raises(ValueError, match=r"MACs of matmul"):
        count_macs(model, 32, 48)


def test_macs_count_every_call_of_a_layer(root, tmp_path):
    """Counted by watching every convolution of a real run, five levels and all."""
    model = build_model(load_config(write_config(tmp_path / "small.yml", root, tmp_path, tmp_path)))
    model.eval()
    seen = []

    def watch(layer, inputs, output):
        kernel = layer.weight.shape
        seen.append(output.size * kernel[1] * kernel[2] * kernel[3])

    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D):
            layer.register_forward_post_hook(watch)
    model.network(paddle.zeros([1, 3, 64, 96]), paddle.to_tensor([[64.0, 96.0]]))
    assert len(seen) > 20 + 5 * 5
    counted = build_model(load_config(tmp_path / "small.yml"))
    counted.eval()
    assert count_macs(counted, 64, 96) == sum(int(each) for each in seen)


def test_only_what_learns_is_counted_as_trained():
    layer = nn.Sequential(nn.Conv2D(3, 8, 1), nn.BatchNorm2D(8))
    layer[0].bias.trainable = False
    assert count_weights(layer) == (3 * 8 + 8 + 16, 3 * 8 + 16)


# The table of the documents


def test_the_table_has_every_configuration_and_its_figures(root):
    page = (root / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    costs, times = page.split("## Time on a CPU")
    names = {path.stem for path in (root / "configs").glob("fcos_*.yml")}
    rows = {line.split("`")[1]: line for line in costs.splitlines() if line.startswith("| `fcos_")}
    assert set(rows) == names, "python benchmarks/model_zoo.py --write"
    timed = {line.split("`")[1] for line in times.splitlines() if line.startswith("| `fcos_")}
    # In float, a network trained in eight bits is the one it stands on.
    floating = {name for name in names if not name.endswith("_qat")}
    assert timed == floating, "python benchmarks/model_forward.py"
    program = [sys.executable, str(root / "benchmarks" / "model_zoo.py"), "--only", "fcos_demo_shapes"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == rows["fcos_demo_shapes"]


def test_every_published_model_that_a_configuration_names_is_there(root):
    figures = yaml.safe_load((root / "benchmarks" / "published.yml").read_text(encoding="utf-8"))
    for name, models in figures["configs"].items():
        assert (root / "configs" / f"{name}.yml").is_file()
        for model in models:
            project, _, entry = model.partition("/")
            assert 20 < figures["projects"][project]["models"][entry]["ap"] < 60
