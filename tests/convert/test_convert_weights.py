"""Converted weights give the outputs and boxes of their own project's network, which runs beside ours."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from ppdet.data.source.category import get_categories

from ppfcos.cli.convert_weights import FORMATS, main
from ppfcos.config import load_config
from ppfcos.convert import convert as convert_module
from ppfcos.convert import torchvision
from ppfcos.convert.convert import convert
from ppfcos.engine.model import build_model
from ppfcos.engine.weights import load_pretrained, load_weights

torch = pytest.importorskip("torch")
from helpers import foreign_networks as foreign  # noqa: E402
from helpers import foreign_realtime as realtime  # noqa: E402

# Padded height and width; then height and width of two images in it, and their resize factors.
BATCHES = (
    ((128, 192), [(128.0, 192.0), (115.0, 160.0)], [(1.0, 1.0), (1.25, 1.28)]),
    ((160, 96), [(160.0, 90.0), (131.0, 96.0)], [(0.8, 0.8), (2.0, 1.9)]),
)
# P7 has two cells: group norm of one would be a norm of two numbers, which amplifies rounding.
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


def random_images(height, width, sizes, seed):
    images = np.zeros((len(sizes), 3, height, width), np.float32)
    random = np.random.default_rng(seed)
    for image, (rows, columns) in zip(images, sizes):
        image[:, : int(rows), : int(columns)] = random.integers(0, 256, (3, int(rows), int(columns)))
    return images


def converted_model(checkpoint, tmp_path):
    """Return the model of the written configuration and weights, and the conversion."""
    done = convert(checkpoint, tmp_path / "ours.pdparams")
    cfg = load_config(done.config)
    model = build_model(cfg)
    load_weights(model, cfg["weights"])
    model.eval()
    return model, done


def outputs_and_boxes(model, images, sizes, scales):
    batch = {
        "image": paddle.to_tensor(images),
        "im_shape": paddle.to_tensor(sizes, "float32"),
        "scale_factor": paddle.to_tensor(scales, "float32"),
    }
    with paddle.no_grad():
        outputs = model.network(batch["image"], batch["im_shape"])
        detected = model(batch)
    ends = np.cumsum(detected["bbox_num"].numpy())
    return outputs, np.split(detected["bbox"].numpy(), ends)[:-1]


def check_outputs(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def check_boxes(found, expected):
    """Compare without order: the same class, corners within 0.01 pixels, scores within 0.00001."""
    assert len(found) == len(expected)
    remaining = list(found)
    for row in np.asarray(expected):
        distances = [
            max(np.abs(other[2:] - row[2:]).max() / 0.01, abs(other[1] - row[1]) / 1e-5)
            if other[0] == row[0]
            else np.inf
            for other in remaining
        ]
        assert min(distances) <= 1, row
        remaining.pop(int(np.argmin(distances)))


def check_detector(theirs, model, batches=BATCHES):
    """Compare the outputs of all levels and the boxes on all batches."""
    compared = 0
    for seed, ((height, width), sizes, scales) in enumerate(batches):
        images = random_images(height, width, sizes, seed)
        outputs, found = outputs_and_boxes(model, images, sizes, scales)
        with torch.no_grad():
            for level, parts in enumerate(theirs.raw(torch.tensor(images), sizes)):
                for ours, part in zip(outputs, parts):
                    check_outputs(ours[level].numpy(), part.numpy())
            expected = theirs.detect(torch.tensor(images), sizes, scales)
        for ours, boxes in zip(found, expected):
            check_boxes(ours, boxes.numpy())
            compared += len(ours)
    assert compared > 40


def check_features(theirs, cfg, mean, std, bgr):
    """Compare the three feature maps of a backbone with `pretrain_weights`."""
    model = build_model(cfg)
    load_pretrained(model, cfg["pretrain_weights"])
    model.eval()
    features = []
    model.backbone.register_forward_post_hook(lambda layer, inputs, outputs: features.extend(outputs))
    sizes = [(96.0, 64.0), (70.0, 51.0)]
    images = random_images(96, 64, sizes, 0)
    with torch.no_grad():
        expected = theirs(foreign.normalized(torch.tensor(images), sizes, mean, std, bgr))
    with paddle.no_grad():
        model.network(paddle.to_tensor(images), paddle.to_tensor(sizes))
    assert len(features) == len(expected) == 3
    for ours, one in zip(features, expected):
        check_outputs(ours.numpy(), one.numpy())


# Detectors --------------------------------------------------------------------------------------------------

DLA = {"dla": True, "shared": False, "batch_norm": False}
# File name: network, arguments, key of the weights in the file, recipe.
MODELS = {
    "fcos_resnet50_fpn_coco-99b0c9b7.pth": (foreign.Torchvision, {}, None, "coco"),
    "fcos_r50_caffe_fpn_gn-head_1x_coco-821213aa.pth": (
        foreign.Mmdet,
        {"improved": False},
        "state_dict",
        "caffe",
    ),
    "fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_1x_coco.pth": (
        foreign.Mmdet,
        {"improved": True},
        "state_dict",
        "caffe-improved",
    ),
    "fcos_r50_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.pth": (
        foreign.Mmdet,
        {"improved": True, "caffe": False},
        "state_dict",
        "improved",
    ),
    "FCOS_R_50_FPN_1x.pth": (foreign.Authors, {"improved": False}, "model", "original"),
    "FCOS_imprv_R_50_FPN_1x.pth": (foreign.Authors, {"improved": True}, "model", "imprv"),
    "FCOS_syncbn_bs32_c128_MNV2_FPN_1x.pth": (
        foreign.Authors,
        {"improved": False, "mobile": True},
        "model",
        "original",
    ),
    "R_50_1x.pth": (foreign.Adelaidet, {}, "model", "centerness"),
    "FCOS_RT_MS_DLA_34_4x_syncbn.pth": (realtime.RealTime, DLA, "model", "real-time"),
    "FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers_bn_head.pth": (
        realtime.RealTime,
        {**DLA, "shared": True, "batch_norm": True},
        "model",
        "real-time",
    ),
    "fcos_hrnetv2p_w18_gn-head_4x4_1x_coco_20201212_100710-4ad151de.pth": (
        realtime.MmdetHrnet,
        {},
        "state_dict",
        "hrnet",
    ),
}
# The published ResNeXts with deformable convolutions have 101 layers, here 50: the names are the same.
SLOW_MODELS = {
    "fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_dcn_1x_coco-ae4d8b3d.pth": (
        foreign.Mmdet,
        {"improved": True, "deformable": (1, 2, 3)},
        "state_dict",
        "caffe-improved",
    ),
    "fcos_x101_64x4d_fpn_gn-head_mstrain_640-800_2x_coco-ede514a8.pth": (
        foreign.Mmdet,
        {"improved": False, "depth": 101, "groups": 64, "width": 4, "caffe": False},
        "state_dict",
        "x101",
    ),
    "FCOS_imprv_X_101_32x8d_FPN_2x.pth": (
        foreign.Authors,
        {"improved": True, "depth": 101, "groups": 32, "width": 8},
        "model",
        "imprv",
    ),
    "MS_X_101_32x8d_2x.pth": (
        foreign.Adelaidet,
        {"depth": 101, "groups": 32, "width": 8},
        "model",
        "centerness",
    ),
    "FCOS_imprv_dcnv2_R_50_FPN_1x.pth": (
        foreign.Authors,
        {"improved": True, "deformable": (1, 2, 3)},
        "model",
        "imprv",
    ),
    "FCOS_imprv_dcnv2_X_101_64x4d_FPN_2x.pth": (
        foreign.Authors,
        {"improved": True, "groups": 64, "width": 4, "deformable": (2, 3)},
        "model",
        "imprv",
    ),
    "FCOS_MS_X_101_32x8d_2x_dcnv2_iou.pth": (
        foreign.Adelaidet,
        {"groups": 32, "width": 8, "deformable": (2, 3)},
        "model",
        "iou",
    ),
    "MS_R_101_2x_iou.pth": (foreign.Adelaidet, {"depth": 101}, "model", "iou"),
    "FCOS_RT_MS_DLA_34_4x_syncbn_bn_head.pth": (
        realtime.RealTime,
        {**DLA, "batch_norm": True},
        "model",
        "real-time",
    ),
    "FCOS_RT_MS_R_50_4x_syncbn.pth": (realtime.RealTime, {**DLA, "dla": False}, "model", "real-time"),
}


@pytest.mark.parametrize(
    "file_name", [*MODELS, *(pytest.param(k, marks=pytest.mark.slow) for k in SLOW_MODELS)]
)
def test_detectors_give_the_boxes_of_their_project(file_name, tmp_path):
    kind, options, wrapper, recipe = {**MODELS, **SLOW_MODELS}[file_name]
    theirs = foreign.randomize(kind(**options))
    if options.get("batch_norm"):
        theirs.settle_norms()  # with other statistics, most distances would be 0
    state = theirs.state_dict()
    if kind is foreign.Authors:
        state = {f"module.{name}": value for name, value in state.items()}
    content = {wrapper: state, "iteration": 90000} if wrapper else state
    is_old = file_name == "FCOS_R_50_FPN_1x.pth"  # the format of PyTorch before 1.6
    torch.save(content, tmp_path / file_name, _use_new_zipfile_serialization=not is_old)
    model, done = converted_model(tmp_path / file_name, tmp_path)
    assert done.recipe == recipe and not done.translation.unexpected and not done.allowed
    check_detector(theirs, model, HRNET_BATCHES if recipe == "hrnet" else BATCHES)
    for reader in ("EvalReader", "TestReader"):
        steps = load_config(done.config)[reader]["sample_transforms"]
        resize = next(step for step in steps if "Resize" in step)["Resize"]
        assert resize["rounding"] == ("floor" if done.format.name in ("fcos", "torchvision") else "nearest")
        assert resize["target_size"] == ([512, 736] if recipe == "real-time" else [800, 1333])
    if recipe == "real-time":
        assert model.head.strides == [8, 16, 32] and model.targets.size_ranges == [64, 128]


@pytest.fixture(
    params=["fcos_r50_fpn_1x_coco", pytest.param("fcos_dcn_r50_fpn_1x_coco", marks=pytest.mark.slow)]
)
def stock(request, root, tmp_path):
    """PaddleDetection's own FCOS of 50 layers with random weights, and their file."""
    from ppdet.core.workspace import create, global_config, merge_config

    for value in global_config.values():
        if hasattr(value, "schema"):
            value.clear()
    sys.path.insert(0, str(root / "benchmarks"))
    from stock import stock_config

    sys.path.remove(str(root / "benchmarks"))
    shape = {"depth": 50, "target_size": (128, 192), "num_classes": 7, "batch_size": 1, "from_scratch": False}
    config = stock_config(**shape)
    if "dcn" in request.param:
        config["ResNet"]["dcn_v2_stages"] = [1, 2, 3]
        config["FCOSHead"]["fcos_feat"]["use_dcn"] = True
    merge_config(config)
    paddle.seed(5)
    model = create("FCOS")
    random = np.random.default_rng(5)
    for name, tensor in model.state_dict().items():
        if name.endswith("_variance"):
            tensor.set_value(random.uniform(0.5, 1.5, tensor.shape).astype("float32"))
        elif name.endswith("conv_offset.weight"):
            spread = 0.6 / np.prod(tensor.shape[1:]) ** 0.5
            tensor.set_value(random.normal(0, spread, tensor.shape).astype("float32"))
        elif name.endswith(("_mean", "norm.bias", "conv_offset.bias")):
            tensor.set_value(random.uniform(-0.2, 0.2, tensor.shape).astype("float32"))
        elif name.endswith(("norm.weight", "scale_reg")):
            tensor.set_value(random.uniform(0.3, 1.2, tensor.shape).astype("float32"))
        elif name.startswith("fcos_head.fcos_head_") and tensor.ndim == 4:
            tensor.set_value(random.normal(0, 0.02, tensor.shape).astype("float32"))
    model.fcos_head.fcos_head_cls.bias.set_value(np.full(7, -3.5, np.float32))
    model.fcos_head.fcos_head_reg.bias.set_value(np.full(4, 1.5, np.float32))
    model.eval()
    paddle.save(model.state_dict(), str(tmp_path / f"{request.param}.pdparams"))
    return model, tmp_path / f"{request.param}.pdparams"


def test_paddledetection_gives_the_same_boxes(stock, tmp_path):
    theirs, checkpoint = stock
    (height, width), sizes, scales = BATCHES[0]
    images = random_images(height, width, sizes, 0)
    pixels = foreign.normalized(torch.tensor(images), sizes, *IMAGENET)
    with paddle.no_grad():
        batch = {"image": paddle.to_tensor(pixels.numpy()), "im_shape": paddle.to_tensor(sizes)}
        outputs = theirs.fcos_head(theirs.neck(theirs.backbone(batch)))
        boxes, counts = theirs.fcos_head.post_process(outputs, paddle.to_tensor(scales))
    model, done = converted_model(checkpoint, tmp_path)
    assert (done.format.name, done.recipe) == ("paddledet", "centerness")
    ours, found = outputs_and_boxes(model, images, sizes, scales)
    for our_levels, their_levels in zip(ours, outputs[1:]):
        for one, other in zip(our_levels, their_levels):
            check_outputs(one.numpy(), other.numpy())
    expected = np.split(boxes.numpy(), np.cumsum(counts.numpy()))[:-1]
    assert sum(map(len, expected)) > 40
    for one, other in zip(found, expected):
        check_boxes(one, other)


# Backbones --------------------------------------------------------------------------------------------------

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False)
MSRA = (foreign.CAFFE_MEAN, (1.0, 1.0, 1.0), True)


def write_detectron(net, path):
    """Write a ResNet in PyTorch as Detectron does."""
    names, norm = {}, {"weight": "s", "bias": "b"}
    for name, tensor in net.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            continue
        match = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", name)
        if match is None:
            new = "conv1_w" if name == "conv1.weight" else f"res_conv1_bn_{norm[name.split('.')[1]]}"
        else:
            stage, block, kind, number, last = match.groups()
            branch = "branch1" if kind == "downsample." else f"branch2{'abc'[int(number) - 1]}"
            normed = kind == "bn" or (kind == "downsample." and number == "1")
            new = f"res{int(stage) + 1}_{block}_{branch}_{'bn_' + norm[last] if normed else 'w'}"
        names[new] = tensor.numpy()
    content = {"blobs": {**names, "fc1000_w": np.zeros((10, 2048), np.float32)}}
    path.write_bytes(pickle.dumps(content, protocol=2))


def detectron_resnet(depth=50):
    """Return a ResNet whose norms have no statistics: they are in factor and shift."""
    net = foreign.Resnet(depth, stride_in_1x1=True, norm=foreign.FrozenNorm)
    foreign.randomize_weights(net)
    for name, tensor in net.state_dict().items():
        if "running" in name:
            tensor.fill_(float(name.endswith("var")))
    return net.eval()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """An R-50.pkl of Detectron, and its network."""
    path = tmp_path_factory.mktemp("msra") / "R-50.pkl"
    net = detectron_resnet()
    write_detectron(net, path)
    return path, net


@pytest.fixture(scope="module")
def imagenet_dla(tmp_path_factory):
    """A file of the DLA authors in the format of PyTorch before 1.6, and its network."""
    path = tmp_path_factory.mktemp("dla") / "dla34-ba72cf86.pth"
    net = realtime.Dla()
    foreign.randomize_weights(net)
    classifier = {"fc.weight": torch.zeros(10, 512, 1, 1), "fc.bias": torch.zeros(10)}
    torch.save({**net.state_dict(), **classifier}, path, _use_new_zipfile_serialization=False)
    return path, net.eval()


@pytest.mark.parametrize(("name", "pixels"), [("backbone", MSRA), ("imagenet_dla", IMAGENET)])
def test_backbones_give_the_features_of_their_project(name, pixels, request, tmp_path):
    path, net = request.getfixturevalue(name)
    done = convert(path, tmp_path / "ours.pdparams")
    assert not done.allowed
    check_features(net, load_config(done.config), *pixels)


# The command ------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_reports_what_it_did(backbone, tmp_path, capsys):
    code, printed, _ = run(capsys, backbone[0], "-o", tmp_path / "msra", "--list")
    assert code == 0
    assert "backbone.res2.res2a.short.conv.weight <- res2_0_branch1_w" in printed
    assert "265 weights converted" in printed  # 53 convolutions, each with 4 of its norm
    assert "1 ignored, the classifier of ImageNet: fc1000_w" in printed
    assert (tmp_path / "msra.pdparams").is_file() and (tmp_path / "msra.yml").is_file()


def test_missing_and_unexpected_weights_are_errors_unless_allowed(backbone, tmp_path, capsys):
    target, path = tmp_path / "ours.pdparams", tmp_path / "changed.pkl"

    def convert_changed(change, *options):
        content = pickle.loads(backbone[0].read_bytes())
        change(content["blobs"])
        path.write_bytes(pickle.dumps(content, protocol=2))
        return run(capsys, path, "-o", target, *options)

    def add(blobs):
        blobs["mystery_w"] = np.ones(3, np.float32)

    def shorten(blobs):
        for name in [name for name in blobs if name.startswith("res5_2")]:
            del blobs[name]

    for change, named in (
        (add, "mystery_w"),
        (lambda blobs: blobs.pop("res4_3_branch2b_w"), "backbone.res4.res4d.branch2b.conv.weight"),
        (shorten, "(3, 4, 6, 2) blocks a stage"),
    ):
        code, _, error = convert_changed(change)
        assert code == 2 and named in error
        assert not target.exists() and not list(tmp_path.glob(".*"))
    code, printed, _ = convert_changed(add, "--allow", "myst*")
    assert code == 0 and "mystery_w" in printed and target.is_file()


def test_what_is_not_converted_is_named(imagenet_dla, tmp_path, capsys):
    deeper = {**torch.load(imagenet_dla[0]), "level2.tree1.conv3.weight": torch.zeros(1)}
    hrnet = dict.fromkeys(("bbox_head.scales.0.scale", "neck.fpn_convs.0.conv.weight"), torch.zeros(1))
    hrnet["backbone.stage2.0.branches.0.0.conv1.weight"] = torch.zeros(20, 20, 3, 3)
    for name, content, said in (
        ("dla60.pth", deeper, "level2.tree1.conv3.weight"),
        ("fcos_hrnetv2p_w20.pth", hrnet, "width 20"),
        ("other.pth", {"weight": torch.ones(3)}, "match no known project"),
        ("model_final.pth", {"rpn.head.centerness.weight": torch.ones(1)}, "--recipe to one of imprv"),
    ):
        torch.save(content, tmp_path / name)
        code, _, error = run(capsys, tmp_path / name, "-o", tmp_path / "ours")
        assert code == 2 and said in error and name in error


@pytest.mark.parametrize(
    ("project", "file_name", "recipe"),
    [
        ("mmdet", "fcos_r101-caffe_fpn_gn-head-1x_coco.pth", "caffe"),
        (
            "mmdet",
            "fcos_r50-dcn-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.pth",
            "caffe-improved",
        ),
        ("mmdet", "fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco.pth", "x101"),
        ("fcos", "FCOS_syncbn_bs32_MNV2_FPN_1x.pth", "original"),
        ("fcos", "FCOS_bn_bs16_MNV2_FPN_1x.pth", "original"),
        ("adelaidet", "FCOS_MS_X_101_32x8d_dcnv2_2x.pth", "centerness"),
        ("paddledet", "fcos_dcn_r50_fpn_1x_coco.pdparams", "centerness"),
        ("paddledet", "fcos_r50_fpn_iou_multiscale_2x_coco.pdparams", "iou"),
    ],
)
def test_published_file_names_tell_the_recipe(project, file_name, recipe):
    (format_,) = (one for one in convert_module.FORMATS if one.name == project)
    assert convert_module._recipe_name(Path(file_name), format_, None) == recipe


def test_the_command_offers_all_formats():
    assert sorted(FORMATS) == sorted(format_.name for format_ in convert_module.FORMATS)


def test_unused_outputs_of_torchvision_are_the_numbers_without_a_class_in_coco():
    numbers = set(get_categories("COCO", None)[0].values())
    unused = [number for number in range(torchvision.CATEGORY_NUMBERS) if number not in numbers]
    assert list(torchvision.UNUSED_NUMBERS) == unused
