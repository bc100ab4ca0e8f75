"""Every configuration: its network has the published size, it learns, answers, and exports.

Networks have their full depth and width, images are small.
"""

from __future__ import annotations

import json
import logging

import numpy as np
import paddle
import pytest
from conftest import ROOT, needs_export
from helpers.small_detector import spread_scores
from paddle import nn

from ppfcos.config import load_config
from ppfcos.engine.model import build_model
from ppfcos.engine.optim import build_optimizer, build_schedule
from ppfcos.export.bundle import export_bundle

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yml") if path.stem != "runtime")
# The least work among those of each backbone: the others take a step where there is more time.
LIGHT = ("fcos_mobilenetv2_c128_fpn_1x_coco", "fcos_r18_bccd")
SIDE = 128  # of the images: the coarsest stride
STEPS_PER_EPOCH = 1000  # more than a warm-up lasts

RESNET50, RESNET101 = 25_557_032, 44_549_160
CLASSIFIER = 2048 * 1000 + 1000
# Weights of ImageNet's networks in torchvision's tables ("num_params" of each model's page), less the layers
# that a detector has no use for.
BACKBONES = {
    "fcos_r50_fpn_1x_coco": RESNET50 - CLASSIFIER,
    "fcos_r50_caffe_fpn_gn_head_1x_coco": RESNET50 - CLASSIFIER,
    "fcos_r101_fpn_multiscale_2x_coco": RESNET101 - CLASSIFIER,
    "fcos_x101_32x8d_fpn_multiscale_2x_coco": 88_791_336 - CLASSIFIER,
    "fcos_x101_64x4d_fpn_multiscale_2x_coco": 83_455_272 - CLASSIFIER,
    "fcos_mobilenetv2_fpn_1x_coco": 3_504_872 - (1280 * 1000 + 1000) - (320 * 1280 + 2 * 1280),
}
TORCHVISION_FCOS = 32_269_600  # fcos_resnet50_fpn in the same table


def configured(name, *overrides):
    """The configuration, for a CPU and, where its data would say how many there are, three classes."""
    path = ROOT / "configs" / f"{name}.yml"
    classes = ["num_classes=3"] if load_config(path)["num_classes"] is None else []
    return load_config(path, ["device=cpu", *classes, *overrides])


def unfilled_model(name, *overrides):
    """The model, of whose weights there is no more than the shape; in float, for no shape can be rounded."""
    with paddle.LazyGuard():
        return build_model(configured(name, "quantization_aware_training=null", *overrides))


def weight_count(layer):
    """Statistics of batch norms are no weights, though Paddle lists them."""
    named = layer.named_parameters()
    return sum(int(np.prod(w.shape)) for name, w in named if not name.endswith(("._mean", "._variance")))


def batch(num_classes):
    random = np.random.default_rng(0)
    boxes = [[[8, 8, 60, 40], [20, 30, 120, 120]], [[0, 0, 128, 128], [0, 0, 0, 0]]]
    return {
        "image": paddle.to_tensor(random.integers(0, 256, [2, 3, SIDE, SIDE]), "uint8"),
        "im_shape": paddle.to_tensor([[SIDE, SIDE]] * 2, "float32"),
        "scale_factor": paddle.ones([2, 2]),
        "gt_bbox": paddle.to_tensor(boxes, "float32"),
        "gt_class": paddle.to_tensor(random.integers(0, num_classes, [2, 2, 1]), "int32"),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_builds(name):
    model = unfilled_model(name)
    assert weight_count(model.head) > 0 and weight_count(model.backbone) > 0


@pytest.mark.parametrize("name", BACKBONES)
def test_the_backbone_has_the_published_number_of_weights(name):
    assert weight_count(unfilled_model(name).backbone) == BACKBONES[name]


def test_the_detector_has_the_published_number_of_weights():
    model = unfilled_model("fcos_r50_fpn_1x_coco", "num_classes=91")
    norms = sum(
        layer.weight.shape[0] + layer.bias.shape[0]
        for layer in model.backbone.sublayers()
        if isinstance(layer, paddle.nn.BatchNorm2D)
    )
    # torchvision does not count frozen norms, and has no factors of the levels.
    assert weight_count(model) - norms - len(model.head.scales) == TORCHVISION_FCOS


@pytest.mark.parametrize(
    "name, blocks",
    [
        ("fcos_dcn_r50_fpn_1x_coco", {3: 4, 4: 6, 5: 3}),
        ("fcos_dcn_r101_fpn_multiscale_2x_coco", {3: 4, 4: 23, 5: 3}),
        ("fcos_dcn_x101_32x8d_fpn_multiscale_2x_coco", {4: 23, 5: 3}),
        ("fcos_dcn_x101_64x4d_fpn_multiscale_2x_coco", {4: 23, 5: 3}),
    ],
)
def test_deformable_convolutions_are_where_the_authors_have_them(name, blocks):
    """STAGE_WITH_DCN and USE_DCN_IN_TOWER of the authors' configs/fcos/fcos_imprv_dcnv2_*.yaml."""
    found = [key for key, _ in unfilled_model(name).named_parameters() if key.endswith("conv_offset.weight")]
    for stage, count in blocks.items():
        assert sum(key.startswith(f"backbone.res{stage}.") for key in found) == count
    assert [key for key in found if key.startswith("head.")] == [
        f"head.{tower}_tower.convs.3.conv_offset.weight" for tower in ("class", "box")
    ]
    assert len(found) == sum(blocks.values()) + 2


def train_one_step(model, cfg):
    """As the trainer does, at the warm-up's first rate."""
    schedule = build_schedule(cfg, STEPS_PER_EPOCH)
    optimizer = build_optimizer(cfg, model, schedule)
    model.train()
    losses = model(batch(cfg["num_classes"]))
    losses["loss"].backward()
    optimizer.step()
    return losses


def check_training(name):
    """Moves weights of every part, and none that are frozen; the model and its configuration."""
    cfg = configured(name)
    paddle.seed(0)
    model = build_model(cfg)
    before = {key: weight.numpy() for key, weight in model.named_parameters()}
    losses = train_one_step(model, cfg)
    assert np.isfinite([float(value) for value in losses.values()]).all()
    changed = {
        key for key, weight in model.named_parameters() if not np.array_equal(weight.numpy(), before[key])
    }
    for part in ("backbone.", "neck.", "head.class", "head.box", "head.quality"):
        assert any(key.startswith(part) for key in changed), part
    statistics = ("._mean", "._variance")
    frozen = {key for key, weight in model.named_parameters() if weight.stop_gradient}
    assert not {key for key in changed & frozen if not key.endswith(statistics)}
    return cfg, model


@pytest.mark.parametrize("name", [name for name in CONFIGS if name in LIGHT])
def test_a_light_one_learns(name):
    check_training(name)


def network_of(cfg):
    """All that the configuration says of what is exported."""
    parts = cfg[cfg["architecture"]]
    sections = [cfg["architecture"], *(parts[part] for part in ("backbone", "neck", "head", "decode"))]
    named = {name: cfg.get(name) for name in (*sections, "num_classes", "norm_type", "TestReader")}
    return json.dumps(named, sort_keys=True, default=str)


@pytest.fixture(scope="module")
def exported_networks():
    """Those that an earlier configuration has exported: some differ in their training alone."""
    return set()


def settle_norms(model, images):
    """Take batch norms most of the way to the statistics of some images.

    With those they begin with, features vanish. Of the images' own alone, a channel that hardly varies in
    them would magnify roundings.
    """
    norms = [layer for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    momenta = [norm._momentum for norm in norms]
    for norm in norms:
        norm._momentum = 0.05
    model.train()
    with paddle.no_grad():
        model.network(images["image"], images["im_shape"])
    for norm, momentum in zip(norms, momenta):
        norm._momentum = momentum


@needs_export
@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_learns_answers_and_exports(name, exported_networks, tmp_path, caplog):
    cfg, model = check_training(name)
    spread_scores(model)
    settle_norms(model, batch(cfg["num_classes"]))
    model.eval()
    answer = model(batch(cfg["num_classes"]))
    assert np.isfinite(answer["bbox"].numpy()).all()
    assert int(answer["bbox_num"].sum()) == len(answer["bbox"]) > 0
    # Trained in eight bits, it is in float the network of another configuration, with norms frozen at what
    # they begin with here, which magnifies roundings. tests/modeling/test_qat.py exports such ones.
    if cfg.get("quantization_aware_training") is None and network_of(cfg) not in exported_networks:
        exported_networks.add(network_of(cfg))
        with caplog.at_level(logging.INFO):
            # It refuses a program whose boxes are others than the model's, and says how many there were.
            export_bundle(model, cfg, [f"class {i}" for i in range(cfg["num_classes"])], tmp_path / "bundle")
        assert "gave the model's boxes" in caplog.text
