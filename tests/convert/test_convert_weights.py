"""Converted weights answer what their own project's network answers, which runs beside ours."""

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

# Padded height and width; then of two images in it, their own sizes and what they were resized by.
BATCHES = (
    ((128, 192), [(128.0, 192.0), (115.0, 160.0)], [(1.0, 1.0), (1.25, 1.28)]),
    ((160, 96), [(160.0, 90.0), (131.0, 96.0)], [(0.8, 0.8), (2.0, 1.9)]),
)


def pixels(height, width, sizes, seed):
    images = np.zeros((len(sizes), 3, height, width), np.float32)
    random = np.random.default_rng(seed)
    for image, (rows, columns) in zip(images, sizes):
        shape = 3, int(rows), int(columns)
        image[:, : shape[1], : shape[2]] = random.integers(0, 256, shape)
    return images


def converted_model(checkpoint, tmp_path, **options):
    """The model that the written configuration and weights make."""
    done = convert(checkpoint, tmp_path / "ours.pdparams", **options)
    cfg = load_config(done.config)
    model = build_model(cfg)
    load_weights(model, cfg["weights"])
    model.eval()
    return model, done


def raw_and_boxes(model, images, sizes, scales):
    batch = {
        "image": paddle.to_tensor(images),
        "im_shape": paddle.to_tensor(sizes, "float32"),
        "scale_factor": paddle.to_tensor(scales, "float32"),
    }
    with paddle.no_grad():
        outputs = model.network(batch["image"], batch["im_shape"])
        answer = model(batch)
    ends = np.cumsum(answer["bbox_num"].numpy())
    return outputs, np.split(answer["bbox"].numpy(), ends)[:-1]


def check_levels(outputs, expected):
    assert [len(part) for part in outputs] == [len(expected)] * 3
    for level, answers in enumerate(expected):
        for ours, theirs in zip((part[level].numpy() for part in outputs), answers):
            theirs = theirs if isinstance(theirs, np.ndarray) else theirs.numpy()
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def check_boxes(found, expected):
    """Every box has its counterpart: of the same class, within 0.01 pixels, with a score within 0.00001."""
    assert len(found) == len(expected)
    left = list(found)
    for row in np.asarray(expected):
        distances = [
            max(np.abs(other[2:] - row[2:]).max() / 0.01, abs(other[1] - row[1]) / 1e-5)
            if other[0] == row[0]
            else np.inf
            for other in left
        ]
        assert min(distances) <= 1, row
        left.pop(int(np.argmin(distances)))


def check_features(theirs, cfg, mean, std, bgr):
    """The three maps of a backbone with `pretrain_weights`, to 1e-4 of the largest value."""
    model = build_model(cfg)
    load_pretrained(model, cfg["pretrain_weights"])
    model.eval()
    kept = []
    model.backbone.register_forward_post_hook(lambda layer, inputs, outputs: kept.extend(outputs))
    sizes = [(96.0, 64.0), (70.0, 51.0)]
    images = pixels(96, 64, sizes, 0)
    with torch.no_grad():
        expected = theirs(foreign.normalized(torch.tensor(images), sizes, mean, std, bgr))
    with paddle.no_grad():
        model.network(paddle.to_tensor(images), paddle.to_tensor(sizes))
    assert len(kept) == len(expected) == 3
    for ours, one in zip(kept, expected):
        assert np.abs(ours.numpy() - one.numpy()).max() <= 1e-4 * float(one.abs().max())


def check_against(theirs, model, batches=BATCHES):
    """Raw outputs and boxes of both on all batches; how many boxes there were."""
    compared = 0
    for seed, ((height, width), sizes, scales) in enumerate(batches):
        images = pixels(height, width, sizes, seed)
        outputs, found = raw_and_boxes(model, images, sizes, scales)
        with torch.no_grad():
            check_levels(outputs, theirs.raw(torch.tensor(images), sizes))
            expected = theirs.detect(torch.tensor(images), sizes, scales)
        for ours, one in zip(found, expected):
            check_boxes(ours, one.numpy())
            compared += len(ours)
    assert compared > 40
    return compared


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


PROJECTS = {
    "torchvision": (foreign.Torchvision, {}, "fcos_resnet50_fpn_coco-99b0c9b7.pth", None),
    "mmdet": (
        foreign.Mmdet,
        {"improved": False},
        "fcos_r50_caffe_fpn_gn-head_1x_coco-821213aa.pth",
        "state_dict",
    ),
    "mmdet improved": (
        foreign.Mmdet,
        {"improved": True},
        "fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_1x_coco.pth",
        "state_dict",
    ),
    "authors": (foreign.Authors, {"improved": False}, "FCOS_R_50_FPN_1x.pth", "model"),
    "authors imprv": (foreign.Authors, {"improved": True}, "FCOS_imprv_R_50_FPN_1x.pth", "model"),
    "adelaidet": (foreign.Adelaidet, {}, "R_50_1x.pth", "model"),
    "authors mobile": (
        foreign.Authors,
        {"improved": False, "mobile": True},
        "FCOS_syncbn_bs32_c128_MNV2_FPN_1x.pth",
        "model",
    ),
}


def save(network, path, wrapper, zipped=True):
    """As the projects do: under a key or not, with the prefix of several GPUs where the authors have it."""
    state = network.state_dict()
    if isinstance(network, foreign.Authors):
        state = {f"module.{name}": value for name, value in state.items()}
    content = {wrapper: state, "iteration": 90000} if wrapper else state
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


# The published ResNeXts with deformable convolutions have 101 layers, here 50: the names are the same.
LARGE = {
    "mmdet dcn": (
        foreign.Mmdet,
        {"improved": True, "deformable": (1, 2, 3)},
        "fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_dcn_1x_coco-ae4d8b3d.pth",
        "state_dict",
    ),
    "mmdet x101": (
        foreign.Mmdet,
        {"improved": False, "depth": 101, "groups": 64, "width": 4},
        "fcos_x101_64x4d_fpn_gn-head_mstrain_640-800_2x_coco-ede514a8.pth",
        "state_dict",
    ),
    "authors x101": (
        foreign.Authors,
        {"improved": True, "depth": 101, "groups": 32, "width": 8},
        "FCOS_imprv_X_101_32x8d_FPN_2x.pth",
        "model",
    ),
    "adelaidet x101": (
        foreign.Adelaidet,
        {"depth": 101, "groups": 32, "width": 8},
        "MS_X_101_32x8d_2x.pth",
        "model",
    ),
    "authors dcn": (
        foreign.Authors,
        {"improved": True, "deformable": (1, 2, 3)},
        "FCOS_imprv_dcnv2_R_50_FPN_1x.pth",
        "model",
    ),
    "authors dcn x50": (
        foreign.Authors,
        {"improved": True, "groups": 64, "width": 4, "deformable": (2, 3)},
        "FCOS_imprv_dcnv2_X_101_64x4d_FPN_2x.pth",
        "model",
    ),
    "adelaidet dcn x50": (
        foreign.Adelaidet,
        {"groups": 32, "width": 8, "deformable": (2, 3)},
        "FCOS_MS_X_101_32x8d_2x_dcnv2_iou.pth",
        "model",
    ),
    "adelaidet iou r101": (foreign.Adelaidet, {"depth": 101}, "MS_R_101_2x_iou.pth", "model"),
}
ALL = [*PROJECTS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


@pytest.mark.parametrize("project", ALL)
def test_the_model_answers_what_its_project_answers(project, tmp_path):
    kind, options, file_name, wrapper = {**PROJECTS, **LARGE}[project]
    theirs = foreign.randomize(kind(**options))
    save(theirs, tmp_path / file_name, wrapper, zipped=project != "authors")
    model, done = converted_model(tmp_path / file_name, tmp_path)
    assert done.format.name == project.split()[0].replace("authors", "fcos")
    assert not done.translation.unexpected and not done.allowed
    check_against(theirs, model)


@pytest.fixture(
    params=["fcos_r50_fpn_1x_coco", pytest.param("fcos_dcn_r50_fpn_1x_coco", marks=pytest.mark.slow)]
)
def stock(request, root, tmp_path):
    """PaddleDetection's own FCOS of 50 layers, random weights, and their file."""
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


def test_paddledetection_answers_the_same(stock, tmp_path):
    theirs, checkpoint = stock
    (height, width), sizes, scales = BATCHES[0]
    images = pixels(height, width, sizes, 0)
    mean, std = np.reshape([0.485, 0.456, 0.406], [3, 1, 1]), np.reshape([0.229, 0.224, 0.225], [3, 1, 1])
    normalized = np.zeros_like(images)
    for image, target, (rows, columns) in zip(images, normalized, sizes):
        rows, columns = int(rows), int(columns)
        target[:, :rows, :columns] = (image[:, :rows, :columns] / 255 - mean) / std
    with paddle.no_grad():
        batch = {"image": paddle.to_tensor(normalized), "im_shape": paddle.to_tensor(sizes)}
        features = theirs.neck(theirs.backbone(batch))
        answers = theirs.fcos_head(features)
        boxes, counts = theirs.fcos_head.post_process(answers, paddle.to_tensor(scales))
    model, done = converted_model(checkpoint, tmp_path)
    assert (done.format.name, done.recipe) == ("paddledet", "centerness")
    outputs, found = raw_and_boxes(model, images, sizes, scales)
    check_levels(outputs, [[part[level].numpy() for part in answers[1:]] for level in range(5)])
    expected = np.split(boxes.numpy(), np.cumsum(counts.numpy()))[:-1]
    assert sum(map(len, expected)) > 40
    for ours, one in zip(found, expected):
        check_boxes(ours, one)


def detectron_names(state):
    """maskrcnn-benchmark's names of a ResNet as Detectron has them."""
    names, norm = {}, {"weight": "s", "bias": "b"}
    for name, tensor in state.items():
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
    return names


def paddleclas_names(state, blocks=(3, 4, 6, 3)):
    """PyTorch's names of a ResNet as PaddleClas has them: all blocks counted through."""
    names = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        name = name.replace("running_mean", "_mean").replace("running_var", "_variance")
        match = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", name)
        if match is not None:
            stage, block, kind, number, last = match.groups()
            if kind == "downsample.":
                layer = "short.bn" if last != "weight" or tensor.ndim == 1 else "short.conv"
            else:
                layer = f"conv{int(number) - 1}.{kind}"
            name = f"blocks.{sum(blocks[: int(stage) - 1]) + int(block)}.{layer}.{last}"
        elif re.match(r"conv1\.\d", name):  # three convolutions: convolution, norm, ReLU, ...
            number, last = name.split(".")[1:]
            name = f"stem.{int(number) // 3}.{'bn' if int(number) % 3 else 'conv'}.{last}"
        elif name.startswith("bn1"):
            name = f"stem.{2 if 'conv1.0.weight' in state else 0}.bn.{name.split('.')[1]}"
        else:
            name = "stem.0.conv.weight"
        names[name] = tensor.numpy()
    return {**names, "fc.weight": np.zeros((2048, 10), np.float32), "fc.bias": np.zeros(10, np.float32)}


def vd_resnet():
    """ResNet50_vd: three convolutions first, and a pool before the shortcuts of stride 2."""
    net = foreign.Resnet()
    layers = []
    for inputs, outputs, stride in ((3, 32, 2), (32, 32, 1)):
        layers += [torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), torch.nn.BatchNorm2d(outputs)]
        layers.append(torch.nn.ReLU())
    net.conv1 = torch.nn.Sequential(*layers, torch.nn.Conv2d(32, 64, 3, 1, 1, bias=False))
    for stage in (net.layer2, net.layer3, net.layer4):
        conv, norm = stage[0].downsample
        conv.stride = (1, 1)
        stage[0].downsample = torch.nn.Sequential(torch.nn.AvgPool2d(2, 2, ceil_mode=True), conv, norm)
    return net


def write_detectron(net, path):
    content = {"blobs": {**detectron_names(net.state_dict()), "fc1000_w": np.zeros((10, 2048), np.float32)}}
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_torchvision(net, path):
    torch.save({**net.state_dict(), "fc.weight": torch.zeros(10, 2048), "fc.bias": torch.zeros(10)}, path)


def write_paddleclas(net, path):
    paddle.save(
        {name: paddle.to_tensor(value) for name, value in paddleclas_names(net.state_dict()).items()},
        str(path),
    )


IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False)
MSRA = (foreign.CAFFE_MEAN, (1.0, 1.0, 1.0), True)
CAFFE_NET = {"stride_in_1x1": True, "norm": foreign.FrozenNorm}
BACKBONES = {
    "detectron": (lambda: foreign.Resnet(**CAFFE_NET), write_detectron, "R-50.pkl", MSRA),
    "detectron r101": (lambda: foreign.Resnet(101, **CAFFE_NET), write_detectron, "R-101.pkl", MSRA),
    "torchvision-backbone": (foreign.Resnet, write_torchvision, "resnet50-0676ba61.pth", IMAGENET),
    "torchvision-backbone x101": (
        lambda: foreign.Resnet(101, 32, 8),
        write_torchvision,
        "resnext101_32x8d-8ba56ff5.pth",
        IMAGENET,
    ),
    "paddleclas": (foreign.Resnet, write_paddleclas, "ResNet50_pretrained.pdparams", IMAGENET),
    "paddleclas-vd": (vd_resnet, write_paddleclas, "ResNet50_vd_pretrained.pdparams", IMAGENET),
}


@pytest.mark.parametrize(
    "source", [pytest.param(key, marks=pytest.mark.slow if "101" in key else ()) for key in BACKBONES]
)
def test_backbones_give_the_same_features(source, tmp_path):
    make, write, file_name, (mean, std, bgr) = BACKBONES[source]
    theirs = make()
    foreign.randomize_weights(theirs)
    if "detectron" in source:  # its statistics are in factor and shift
        for name, tensor in theirs.state_dict().items():
            if "running" in name:
                tensor.fill_(float(name.endswith("var")))
    write(theirs, tmp_path / file_name)
    done = convert(tmp_path / file_name, tmp_path / "ours.pdparams")
    assert done.format.name == source.split()[0]
    check_features(theirs.eval(), load_config(done.config), mean, std, bgr)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """An R-50.pkl of Detectron."""
    path = tmp_path_factory.mktemp("msra") / "R-50.pkl"
    net = foreign.Resnet(**CAFFE_NET)
    foreign.randomize_weights(net)
    write_detectron(net, path)
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_the_command_reports_what_it_did(backbone, tmp_path, capsys):
    assert run(backbone, "-o", tmp_path / "msra", "--list") == 0
    printed = capsys.readouterr().out
    assert "backbone.res2.res2a.short.conv.weight <- res2_0_branch1_w" in printed
    assert "265 weights converted" in printed  # 53 convolutions, each with 4 of its norm
    assert "1 ignored, the classifier of ImageNet: fc1000_w" in printed
    assert "variant a" in printed and "from BGR to RGB" in printed
    assert (tmp_path / "msra.pdparams").is_file() and (tmp_path / "msra.yml").is_file()


def changed(backbone, tmp_path, change):
    content = pickle.loads(backbone.read_bytes())
    change(content["blobs"])
    path = tmp_path / "changed.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def test_missing_and_unexpected_weights_are_errors_unless_allowed(backbone, tmp_path, capsys):
    target = tmp_path / "ours.pdparams"

    def change(blobs):
        blobs["mystery_w"] = np.ones(3, np.float32)

    path = changed(backbone, tmp_path, change)
    assert run(path, "-o", target) == 2
    assert "1 weights of the file are unexpected (mystery_w)" in capsys.readouterr().err
    assert not target.exists()
    assert run(path, "-o", target, "--allow", "myst*") == 0
    assert "1 missing or unexpected, as allowed: mystery_w" in capsys.readouterr().out

    path = changed(backbone, tmp_path, lambda blobs: blobs.pop("res4_3_branch2b_w"))
    target.unlink()
    assert run(path, "-o", target) == 2
    assert "missing in the file (backbone.res4.res4d.branch2b.conv.weight)" in capsys.readouterr().err
    assert not target.exists() and not list(tmp_path.glob(".*"))


def test_a_backbone_of_another_depth_and_no_weights_at_all_are_named(backbone, tmp_path, capsys):
    def shorten(blobs):
        for name in [name for name in blobs if name.startswith("res5_2")]:
            del blobs[name]

    assert run(changed(backbone, tmp_path, shorten), "-o", tmp_path / "ours") == 2
    assert "has (3, 4, 6, 2) blocks a stage" in capsys.readouterr().err
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pth")
    assert run(tmp_path / "other.pth", "-o", tmp_path / "ours") == 2
    assert "match no known project" in capsys.readouterr().err


def test_a_file_name_that_tells_nothing_asks_for_the_recipe(tmp_path, capsys):
    torch.save({"rpn.head.centerness.weight": torch.ones(1)}, tmp_path / "model_final.pth")
    assert run(tmp_path / "model_final.pth", "-o", tmp_path / "ours") == 2
    error = capsys.readouterr().err
    assert "set --recipe to one of imprv" in error and "original" in error


@pytest.mark.parametrize(
    "project, file_name, recipe",
    [
        ("mmdet", "fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_dcn_1x.pth", "caffe-improved"),
        ("fcos", "FCOS_imprv_dcnv2_X_101_64x4d_FPN_2x.pth", "imprv"),
        ("fcos", "FCOS_syncbn_bs32_MNV2_FPN_1x.pth", "original"),
        ("fcos", "FCOS_bn_bs16_MNV2_FPN_1x.pth", "original"),
        ("adelaidet", "FCOS_MS_X_101_32x8d_dcnv2_2x.pth", "centerness"),
        ("adelaidet", "FCOS_MS_X_101_32x8d_2x_dcnv2_iou.pth", "iou"),
        ("adelaidet", "FCOS_MS_R_101_2x_iou.pth", "iou"),
        ("paddledet", "fcos_dcn_r50_fpn_1x_coco.pdparams", "centerness"),
        ("paddledet", "fcos_r50_fpn_iou_multiscale_2x_coco.pdparams", "iou"),
    ],
)
def test_the_published_name_of_a_file_tells_the_recipe(project, file_name, recipe):
    (format_,) = (one for one in convert_module.FORMATS if one.name == project)
    assert convert_module._recipe_name(Path(file_name), format_, None) == recipe


def test_the_names_of_formats_are_those_of_the_command():
    assert sorted(FORMATS) == sorted(format_.name for format_ in convert_module.FORMATS)


def test_torchvisions_outputs_that_name_no_class_are_those_that_coco_does_not_use():
    numbers = set(get_categories("COCO", None)[0].values())
    unused = [number for number in range(torchvision.CATEGORY_NUMBERS) if number not in numbers]
    assert list(torchvision.UNUSED_NUMBERS) == unused
