"""The options of published FCOS trainings: each works, and docs/model_zoo.md lists it."""

from __future__ import annotations

import re

import numpy as np
import paddle
import pytest
import yaml
from conftest import needs_export
from helpers import reference
from helpers.small_config import write_config

from ppfcos.config import load_config
from ppfcos.deploy import Predictor
from ppfcos.engine.model import build_model
from ppfcos.export.bundle import export_bundle
from ppfcos.modeling.assigner import PPFCOSTargets
from ppfcos.modeling.fcos import center_grid
from ppfcos.modeling.head import HeadOutputs, PPFCOSHead
from ppfcos.modeling.losses import PPFCOSLoss, global_normalizers
from ppfcos.modeling.postprocess import PPFCOSDecode

LEVELS_P2_TO_P6 = [
    "ResNet.return_idx=[0, 1, 2, 3]",
    "PPFCOSFPN.extra_levels=1",
    "PPFCOSTargets.size_ranges=[32, 64, 128, 256]",
]
LEVELS_P3_TO_P5 = ["PPFCOSFPN.extra_levels=0", "PPFCOSTargets.size_ranges=[64, 128]"]
SWITCHES = {
    "freeze stage 1": ["ResNet.freeze_at=0"],
    "freeze all stages": ["ResNet.freeze_at=3"],
    "freeze batch norms": ["ResNet.freeze_norm=true"],
    "width of the pyramid": ["PPFCOSFPN.out_channels=32"],
    "P6 from C5": ["PPFCOSFPN.extra_source=c5"],
    "classes": ["num_classes=7"],
    "no norm in the head": ["PPFCOSHead.norm_type=none"],
    "batch norms in the head": ["PPFCOSHead.norm_type=bn"],
    "prior": ["PPFCOSHead.prior_prob=0.1"],
    "no centerness": ["PPFCOSHead.centerness_on=none"],
    "no centerness, unweighted box loss": ["PPFCOSHead.centerness_on=none", "PPFCOSLoss.quality=iou"],
    "centerness on the classes": ["PPFCOSHead.centerness_on=class"],
    "IoU quality": ["PPFCOSLoss.quality=iou"],
    "strides 4 to 64": LEVELS_P2_TO_P6,
    "strides 8 to 32": LEVELS_P3_TO_P5,
    "size ranges": ["PPFCOSTargets.size_ranges=[16, 32, 64, 128]"],
    "whole boxes": ["PPFCOSTargets.center_sampling_radius=0"],
    "exponential distances": ["PPFCOSHead.distance=exp"],
}


@pytest.fixture(scope="module")
def config(tmp_path_factory, root):
    """Load a small configuration with overrides; no data set is read."""
    folder = tmp_path_factory.mktemp("switches")
    path = write_config(folder / "small.yml", root, folder, folder)
    return lambda *overrides: load_config(path, overrides)


def small_batch() -> dict:
    rng = np.random.default_rng(0)
    boxes = [
        [[10, 20, 60, 80], [30, 5, 90, 40], [2, 2, 20, 30]],
        [[5, 5, 91, 91], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    return {
        "image": paddle.to_tensor(rng.integers(0, 256, [2, 3, 96, 96]), "uint8"),
        "im_shape": paddle.to_tensor([[96, 96], [80, 96]], "float32"),
        "scale_factor": paddle.ones([2, 2]),
        "gt_bbox": paddle.to_tensor(boxes, "float32"),
        "gt_class": paddle.to_tensor([[0, 1, 2], [1, 0, 0]], "int32"),
    }


@pytest.mark.parametrize("switch", SWITCHES)
def test_trains_a_step_and_finds_boxes(config, switch):
    paddle.seed(0)
    model = build_model(config(*SWITCHES[switch], "PPFCOSDecode.score_threshold=0.0"))
    losses = model(small_batch())
    losses["loss"].backward()
    assert np.isfinite([float(value) for value in losses.values()]).all()
    without = [
        name
        for name, weight in model.named_parameters()
        if not weight.stop_gradient and (weight.grad is None or not np.isfinite(weight.grad.numpy()).all())
    ]
    assert without == []
    model.eval()
    with paddle.no_grad():
        found = model(small_batch())
    rows = found["bbox"].numpy()
    assert min(found["bbox_num"].tolist()) > 0 and len(rows) == sum(found["bbox_num"].tolist())
    assert (rows[:, 0] < model.head.num_classes).all() and (rows[:, 1] > 0).all()


@needs_export
def test_exports(config, tmp_path):
    without = ["PPFCOSHead.centerness_on=none", "PPFCOSHead.norm_type=none"]
    many = ["PPFCOSDecode.keep_top_k=1000", "PPFCOSDecode.score_threshold=0.005"]
    cfg = config(*LEVELS_P2_TO_P6, "PPFCOSFPN.extra_source=c5", *without, *many)
    paddle.seed(0)
    model = build_model(cfg)
    for conv in (model.head.class_conv, model.head.box_conv):  # random outputs, so that there are boxes
        conv.weight.set_value(paddle.randn(conv.weight.shape) * 0.03)
    # The export compares the boxes with the model's.
    folder = export_bundle(model, cfg, ["a", "b", "c"], tmp_path / "bundle")
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    assert 100 < len(Predictor(folder, threads=1).predict([picture])[0]) <= 1000


def test_what_is_frozen(config):
    def trained(*overrides):
        model = build_model(config(*overrides))
        return {name for name, weight in model.backbone.named_parameters() if not weight.stop_gradient}

    everything = trained("ResNet.freeze_at=-1")
    stage_1 = {name for name in everything if name.startswith(("conv1", "res2"))}
    norms = {name for name in everything if ".norm." in name}
    assert len(stage_1) > 5 and len(norms) > 10
    assert trained("ResNet.freeze_at=0") == everything - stage_1
    assert trained("ResNet.freeze_norm=true") == everything - norms


def test_strides_are_those_of_the_levels(config):
    assert build_model(config()).head.strides == [8, 16, 32, 64, 128]
    assert build_model(config(*LEVELS_P2_TO_P6)).head.strides == [4, 8, 16, 32, 64]
    assert build_model(config(*LEVELS_P3_TO_P5)).head.strides == [8, 16, 32]


def some_outputs(rng, quality: bool) -> HeadOutputs:
    shapes = [(4, 6), (2, 3)]
    levels = [
        [paddle.to_tensor(rng.normal(0, 2, [1, channels, *shape]), "float32") for shape in shapes]
        for channels in (3, 4, 1)
    ]
    distances = [paddle.abs(level) * 8 + 1 for level in levels[1]]
    return HeadOutputs(levels[0], distances, levels[2] if quality else [])


def test_without_centerness_the_score_is_that_of_the_class():
    outputs = some_outputs(np.random.default_rng(0), quality=False)
    grids = [center_grid(4, 6, 8), center_grid(2, 3, 16)]
    shape = paddle.to_tensor([[32.0, 48.0]])
    rows, _ = PPFCOSDecode(score_threshold=0.1, keep_top_k=20)(outputs, grids, shape, paddle.ones([1, 2]))
    certain = np.full([1, 1, 1], 100.0)  # whose sigmoid is 1
    levels = [
        (logits.numpy()[0], distances.numpy()[0], np.broadcast_to(certain, [1, *logits.shape[2:]]))
        for logits, distances in zip(outputs.class_logits, outputs.distances)
    ]
    expected = reference.decode(
        levels, [8, 16], (32, 48), (1.0, 1.0), top_k=1000, threshold=0.1, nms_iou=0.6, keep=20
    )
    rows = rows.numpy()[np.argsort(-rows.numpy()[:, 1], kind="stable")]
    assert len(expected) > 5
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("quality", ["centerness", "iou"])
def test_without_centerness_the_other_losses_are_unchanged(quality):
    rng = np.random.default_rng(1)
    with_branch = some_outputs(rng, quality=True)
    points = [center_grid(4, 6, 8).points(), center_grid(2, 3, 16).points()]
    boxes, labels = paddle.to_tensor([[[4.0, 4.0, 40.0, 28.0]]]), paddle.to_tensor([[1]])
    targets = PPFCOSTargets(size_ranges=[16])(points, [8, 16], boxes, labels, 3)
    assert targets.positives.shape[0] > 0
    loss, normalizers = PPFCOSLoss(quality=quality), global_normalizers([targets])
    full = loss(with_branch, targets, normalizers)
    less = loss(with_branch._replace(quality_logits=[]), targets, normalizers)
    for name in ("loss_cls", "loss_box"):
        assert float(less[name]) == float(full[name])
    assert float(full["loss_quality"]) > 0 == float(less["loss_quality"])
    assert float(less["loss"]) == pytest.approx(float(full["loss_cls"] + full["loss_box"]), rel=1e-6)


def test_a_head_without_norms_has_convolutions_and_relus_only():
    paddle.seed(0)
    head = PPFCOSHead(in_channels=32, strides=[8], num_classes=2, num_convs=2, norm_type="none")
    feature = paddle.randn([1, 32, 5, 5])
    tower = head.class_tower
    hidden = paddle.nn.functional.relu(tower.convs[0](feature))
    hidden = paddle.nn.functional.relu(tower.convs[1](hidden))
    np.testing.assert_array_equal(head([feature]).class_logits[0].numpy(), head.class_conv(hidden).numpy())
    assert not any("norm" in name for name, _ in head.named_parameters())


# The documents


def table_of_switches(root) -> list:
    """Return key and default of each row."""
    page = (root / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    section = re.search(r"^## Switches$(.*?)^## ", page, re.MULTILINE | re.DOTALL).group(1)
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")][2:]
    return [(cells[1].strip().strip("`"), cells[2].strip().strip("`")) for cells in rows]


def test_every_key_of_the_table_exists_with_its_default(root):
    standard = root / "configs" / "fcos_r50_fpn_1x_coco.yml"
    rows = table_of_switches(root)
    assert len(rows) > 15
    for key, default in rows:
        load_config(standard, [f"{key}={default}"])  # refuses an unknown key
        cfg = load_config(standard)
        section, _, name = key.rpartition(".")
        shown = cfg[section][name] if section else cfg[name]
        assert shown == yaml.safe_load(default), key
