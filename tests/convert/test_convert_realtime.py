"""Real-time models and HRNet answer here what they answer in their own projects, which run beside ours."""

from __future__ import annotations

import pytest

from ppfcos.cli.convert_weights import main
from ppfcos.config import load_config
from ppfcos.convert.convert import convert

torch = pytest.importorskip("torch")
from helpers import foreign_networks as foreign  # noqa: E402
from helpers import foreign_realtime as realtime  # noqa: E402
from test_convert_weights import check_against, check_features, converted_model, save  # noqa: E402

DLA = {"dla": True, "shared": False, "batch_norm": False}
ADELAIDET = {
    "FCOS_RT_MS_DLA_34_4x_syncbn.pth": DLA,
    "FCOS_RT_MS_DLA_34_4x_syncbn_bn_head.pth": {**DLA, "batch_norm": True},
    "FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers.pth": {**DLA, "shared": True},
    "FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers_bn_head.pth": {**DLA, "shared": True, "batch_norm": True},
    "FCOS_RT_MS_R_50_4x_syncbn.pth": {**DLA, "dla": False},
    "FCOS_RT_MS_R_50_4x_syncbn_bn_head.pth": {**DLA, "dla": False, "batch_norm": True},
}
# P7 has two cells: group norm would make of one a norm of two numbers, and of a rounding an error.
HRNET_BATCHES = (
    ((64, 192), [(64.0, 192.0), (57.0, 160.0)], [(1.0, 1.0), (1.25, 1.28)]),
    ((224, 96), [(224.0, 90.0), (195.0, 96.0)], [(0.8, 0.8), (2.0, 1.9)]),
)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


QUICK = (
    "FCOS_RT_MS_DLA_34_4x_syncbn.pth",
    "FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers_bn_head.pth",
)


@pytest.mark.parametrize(
    "file_name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ADELAIDET]
)
def test_adelaidets_real_time_models(file_name, tmp_path):
    theirs = foreign.randomize(realtime.RealTime(**ADELAIDET[file_name]))
    if ADELAIDET[file_name]["batch_norm"]:
        theirs.settle_norms()  # with others, most distances would be 0
    save(theirs, tmp_path / file_name, "model")
    model, done = converted_model(tmp_path / file_name, tmp_path)
    assert (done.format.name, done.recipe) == ("adelaidet", "real-time")
    assert not done.translation.unexpected and not done.allowed
    assert model.head.strides == [8, 16, 32] and model.targets.size_ranges == [64, 128]
    resize = next(
        step for step in load_config(done.config)["EvalReader"]["sample_transforms"] if "Resize" in step
    )
    assert resize["Resize"]["target_size"] == [512, 736]
    check_against(theirs, model)


def test_mmdetections_hrnet(tmp_path):
    theirs = foreign.randomize(realtime.MmdetHrnet())
    checkpoint = tmp_path / "fcos_hrnetv2p_w18_gn-head_4x4_1x_coco_20201212_100710-4ad151de.pth"
    save(theirs, checkpoint, "state_dict")
    model, done = converted_model(checkpoint, tmp_path)
    assert (done.format.name, done.recipe) == ("mmdet", "hrnet")
    assert not done.translation.unexpected and not done.allowed
    check_against(theirs, model, HRNET_BATCHES)


@pytest.fixture(scope="module")
def imagenet_dla(tmp_path_factory):
    """The DLA authors' file, as PyTorch wrote it in 2018."""
    path = tmp_path_factory.mktemp("dla") / "dla34-ba72cf86.pth"
    net = realtime.Dla()
    foreign.randomize_weights(net)
    classifier = {"fc.weight": torch.zeros(10, 512, 1, 1), "fc.bias": torch.zeros(10)}
    torch.save({**net.state_dict(), **classifier}, path, _use_new_zipfile_serialization=False)
    return net.eval(), path


def test_the_authors_imagenet_dla_gives_the_same_features(imagenet_dla, tmp_path):
    theirs, checkpoint = imagenet_dla
    done = convert(checkpoint, tmp_path / "ours.pdparams")
    assert done.format.name == "dla" and not done.allowed
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    check_features(theirs, load_config(done.config), mean, std, False)


def test_what_is_no_dla34_and_no_hrnet_of_a_known_width_is_named(imagenet_dla, tmp_path, capsys):
    content = torch.load(imagenet_dla[1])
    torch.save({**content, "level2.tree1.conv3.weight": torch.zeros(1)}, tmp_path / "dla60.pth")
    assert main([str(tmp_path / "dla60.pth"), "-o", str(tmp_path / "ours")]) == 2
    assert "another depth than 34 (level2.tree1.conv3.weight)" in capsys.readouterr().err
    names = ("bbox_head.scales.0.scale", "neck.fpn_convs.0.conv.weight")
    content = {name: torch.zeros(1) for name in names}
    content["backbone.stage2.0.branches.0.0.conv1.weight"] = torch.zeros(20, 20, 3, 3)
    torch.save(content, tmp_path / "fcos_hrnetv2p_w20.pth")
    assert main([str(tmp_path / "fcos_hrnetv2p_w20.pth"), "-o", str(tmp_path / "ours")]) == 2
    assert "its HRNet has width 20" in capsys.readouterr().err
