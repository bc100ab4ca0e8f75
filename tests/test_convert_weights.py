"""Converted weights answer what their own project's network answers, which runs beside ours."""

from __future__ import annotations

import sys

import numpy as np
import paddle
import pytest

from ppfcos.config import load_config
from ppfcos.convert.convert import convert
from ppfcos.engine.model import build_model
from ppfcos.engine.weights import load_weights

torch = pytest.importorskip("torch")
import foreign_networks as foreign  # noqa: E402

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
    for level in range(5):
        for ours, theirs in zip((part[level].numpy() for part in outputs), expected[level]):
            theirs = theirs if isinstance(theirs, np.ndarray) else theirs.numpy()
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def check_boxes(found, expected):
    """Every box has its partner: of the same class, within 0.01 pixels, with a score within 0.00001."""
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


def check_against(theirs, model):
    """Raw outputs and boxes of both on all batches; how many boxes there were."""
    compared = 0
    for seed, ((height, width), sizes, scales) in enumerate(BATCHES):
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
}


def save(network, path, wrapper, zipped=True):
    """As the projects do: under a key or not, with the prefix of several GPUs where the authors have it."""
    state = network.state_dict()
    if isinstance(network, foreign.Authors):
        state = {f"module.{name}": value for name, value in state.items()}
    content = {wrapper: state, "iteration": 90000} if wrapper else state
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


@pytest.mark.parametrize("project", PROJECTS)
def test_the_model_answers_what_its_project_answers(project, tmp_path):
    kind, options, file_name, wrapper = PROJECTS[project]
    theirs = foreign.randomize(kind(**options))
    save(theirs, tmp_path / file_name, wrapper, zipped=project != "authors")
    model, done = converted_model(tmp_path / file_name, tmp_path)
    assert done.format.name == project.split()[0].replace("authors", "fcos")
    assert not done.translation.left_over and not done.allowed
    check_against(theirs, model)


@pytest.fixture
def stock(root, tmp_path):
    """PaddleDetection's own FCOS of 50 layers, random weights, and their file."""
    from ppdet.core.workspace import create, global_config, merge_config

    for value in global_config.values():
        if hasattr(value, "schema"):
            value.clear()
    sys.path.insert(0, str(root / "benchmarks"))
    from stock import stock_config

    sys.path.remove(str(root / "benchmarks"))
    shape = {"depth": 50, "target_size": (128, 192), "num_classes": 7, "batch_size": 1, "from_scratch": False}
    merge_config(stock_config(**shape))
    paddle.seed(5)
    model = create("FCOS")
    random = np.random.default_rng(5)
    for name, tensor in model.state_dict().items():
        if name.endswith("_variance"):
            tensor.set_value(random.uniform(0.5, 1.5, tensor.shape).astype("float32"))
        elif name.endswith(("_mean", "norm.bias")):
            tensor.set_value(random.uniform(-0.2, 0.2, tensor.shape).astype("float32"))
        elif name.endswith(("norm.weight", "scale_reg")):
            tensor.set_value(random.uniform(0.3, 1.2, tensor.shape).astype("float32"))
        elif name.startswith("fcos_head.fcos_head_") and tensor.ndim == 4:
            tensor.set_value(random.normal(0, 0.02, tensor.shape).astype("float32"))
    model.fcos_head.fcos_head_cls.bias.set_value(np.full(7, -3.5, np.float32))
    model.fcos_head.fcos_head_reg.bias.set_value(np.full(4, 1.5, np.float32))
    model.eval()
    paddle.save(model.state_dict(), str(tmp_path / "fcos_r50_fpn_1x_coco.pdparams"))
    return model, tmp_path / "fcos_r50_fpn_1x_coco.pdparams"


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
