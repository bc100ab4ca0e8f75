"""Files that are converted although they are unusual, and one sentence about each that is not."""

from __future__ import annotations

import argparse
import collections
import json
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from ppfcos.cli.convert_weights import main
from ppfcos.config import load_config
from ppfcos.convert import mmdet
from ppfcos.convert.checkpoint import read_checkpoint
from ppfcos.errors import WeightsError

torch = pytest.importorskip("torch")
from helpers import foreign_networks as foreign  # noqa: E402

# Texts as in checkpoints: MMDetection 3 prints a configuration, MMDetection 2.0 concatenates its base files.
IMPROVED_TEXT = """
model = dict(
    backbone=dict(depth=50, style='caffe', type='ResNet'),
    bbox_head=dict(
        center_sampling=True,
        centerness_on_reg=True,
        conv_bias=True,
        loss_bbox=dict(loss_weight=1.0, type='GIoULoss'),
        norm_on_bbox=True,
        num_classes=7,
        type='FCOSHead'),
    data_preprocessor=dict(
        bgr_to_rgb=False,
        mean=[
            103.53,
            116.28,
            123.675,
        ],
        std=[
            1.0,
            1.0,
            1.0,
        ]),
    test_cfg=dict(max_per_img=100, nms=dict(iou_threshold=0.6, type='nms'), nms_pre=1000, score_thr=0.05))
tta_model = dict(tta_cfg=dict(max_per_img=300, nms=dict(iou_threshold=0.3, type='nms')))
"""
CONCATENATED_TEXT = """configs/fcos/fcos_r50_caffe_fpn_gn-head_4x4_1x_coco.py
model = dict(
    pretrained='open-mmlab://detectron/resnet50_caffe',
    backbone=dict(type='ResNet', depth=50, style='caffe'),
    bbox_head=dict(type='FCOSHead', num_classes=80, loss_bbox=dict(type='IoULoss', loss_weight=1.0)))
test_cfg = dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_thr=0.5))
img_norm_cfg = dict(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], to_rgb=False)
configs/fcos/fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_4x4_1x_coco.py
_base_ = 'fcos_r50_caffe_fpn_gn-head_4x4_1x_coco.py'
model = dict(
    pretrained='open-mmlab://detectron2/resnet50_caffe',
    bbox_head=dict(
        norm_on_bbox=True, centerness_on_reg=True, dcn_on_last_conv=False, center_sampling=True,
        conv_bias=True, loss_bbox=dict(type='GIoULoss', loss_weight=1.0)))
test_cfg = dict(nms=dict(type='nms', iou_thr=0.6))
img_norm_cfg = dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
"""
PLAIN_TEXT = IMPROVED_TEXT
for old, new in (
    ("True", "False"),
    ("GIoULoss", "IoULoss"),
    ("103.53,", "102.9801,"),
    ("116.28,", "115.9465,"),
    ("123.675,", "122.7717,"),
    ("iou_threshold=0.6", "iou_threshold=0.5"),
):
    PLAIN_TEXT = PLAIN_TEXT.replace(old, new)
LSJ_TEXT = (
    IMPROVED_TEXT.replace("caffe", "pytorch")
    .replace("bgr_to_rgb=False", "bgr_to_rgb=True")
    .replace("103.53", "R")
    .replace("123.675", "103.53")
    .replace("R,", "123.675,")
    .replace("1.0,\n            1.0,\n            1.0,", "58.395,\n            57.12,\n            57.375,")
)
NAMES = [f"class {i}" for i in range(foreign.CLASSES)]


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        (IMPROVED_TEXT, "caffe-improved"),
        (CONCATENATED_TEXT, "caffe-improved"),
        (LSJ_TEXT, "improved"),
        (PLAIN_TEXT, "caffe"),
        (json.dumps({"model": {"bbox_head": {"norm_on_bbox": True, "conv_bias": True}}}), None),
    ],
)
def test_options_of_a_configuration(text, recipe):
    options = mmdet.read_options(text)
    if recipe is None:
        assert options == {"norm_on_bbox": True, "conv_bias": True}
    else:
        expected = mmdet.OPTIONS[recipe]._asdict()
        assert {**expected, **options} == expected and len(options) >= 11


def run(capsys, *arguments):
    """Return exit code and output of the command."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.fixture(scope="module")
def states():
    """Weights of MMDetection's R50, improved and plain."""
    torch.set_num_threads(1)
    networks = {improved: foreign.randomize(foreign.Mmdet(improved)) for improved in (True, False)}
    return {improved: network.state_dict() for improved, network in networks.items()}


def training_checkpoint(state, config):
    """What MMEngine's runner saves besides the weights."""
    meta = {"epoch": 12, "cfg": config, "dataset_meta": {"classes": tuple(NAMES), "palette": [(1, 2, 3)]}}
    scheduler = {"milestones": collections.Counter([8, 11]), "last_step": 12}
    return {"meta": meta, "state_dict": state, "optimizer": {"state": {}}, "param_schedulers": [scheduler]}


def test_the_recipe_is_that_of_the_configuration_in_the_file(states, tmp_path, capsys):
    target = tmp_path / "ours.pdparams"
    for name in ("epoch_12.pth", "fcos_r50_caffe_fpn_gn-head_1x_coco-0.pth"):
        torch.save(training_checkpoint(states[True], IMPROVED_TEXT), tmp_path / name)
        code, printed = run(capsys, tmp_path / name, "-o", target)
        assert code == 0, printed
        cfg = load_config(tmp_path / "ours.yml")
        assert cfg["PPFCOSHead"]["distance"] == "relu" and cfg["PPFCOSDecode"]["nms_threshold"] == 0.6
        assert cfg["PPFCOS"]["image_mean"] == mmdet.pixels(mmdet.IMAGENET_MEAN, mmdet.NO_STD)["image_mean"]
        assert ("its name says caffe" in printed) == name.startswith("fcos")
    assert cfg["weights"] == cfg["pretrain_weights"] == str(target)
    assert cfg["TestDataset"]["class_names"] == NAMES
    assert "fine-tune with: " in printed


@pytest.mark.parametrize(
    ("improved", "text", "name", "options"),
    [
        (True, None, "fcos_r50_caffe_fpn_gn-head_1x_coco.pth", []),
        (False, None, "epoch_12.pth", ["--recipe", "caffe-improved"]),
        (False, IMPROVED_TEXT, "epoch_12.pth", []),
        (True, PLAIN_TEXT, "epoch_12.pth", []),
        (True, IMPROVED_TEXT, "epoch_12.pth", ["--recipe", "caffe"]),
    ],
)
def test_contradictions_are_refused(states, tmp_path, capsys, improved, text, name, options):
    torch.save(training_checkpoint(states[improved], text), tmp_path / name)
    code, printed = run(capsys, tmp_path / name, "-o", tmp_path / "ours", *options)
    assert code == 2 and "contradicts" in printed and len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "ours.pdparams").exists()


def test_a_configuration_that_leaves_the_recipe_open_asks_for_it(states, tmp_path, capsys):
    text = "model = dict(bbox_head=dict(type='FCOSHead', norm_on_bbox=True, centerness_on_reg=True))"
    path = tmp_path / "epoch_12.pth"
    torch.save(training_checkpoint(states[True], text), path)
    code, printed = run(capsys, path, "-o", tmp_path / "ours")
    assert code == 2 and "set --recipe to one of" in printed
    assert run(capsys, path, "-o", tmp_path / "ours", "--recipe", "caffe-improved")[0] == 0
    text = text.replace("model = dict(", "model = dict(backbone=dict(type='ResNet', style='caffe'), ")
    torch.save(training_checkpoint(states[True], text), path)
    assert run(capsys, path, "-o", tmp_path / "ours")[0] == 0
    assert load_config(tmp_path / "ours.yml")["ResNet"]["variant"] == "a"


def with_prefix(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


def in_the_middle(state):
    return {name.replace("backbone.", "backbone._orig_mod."): value for name, value in state.items()}


def ema(state):
    names = {f"module.{name}": value for name, value in state.items()}
    return {"ema_state_dict": {**names, "steps": torch.tensor(9)}, "meta": {"cfg": IMPROVED_TEXT}}


@pytest.mark.parametrize(
    "change",
    [
        with_prefix("_orig_mod."),
        with_prefix("model."),
        with_prefix("module._orig_mod."),
        in_the_middle,
        ema,
        lambda state: {"model_state_dict": state, "epoch": 3},
        lambda state: {name: value.to(torch.float64) for name, value in state.items()},
    ],
)
def test_weights_are_found(states, tmp_path, change):
    path = tmp_path / "weights.pth"
    torch.save(change(states[True]), path)
    arrays = read_checkpoint(path).arrays
    arrays.pop("steps", None)
    assert set(arrays) == set(states[True])
    for name in ("backbone.conv1.weight", "bbox_head.conv_cls.bias"):
        np.testing.assert_array_equal(arrays[name], states[True][name].numpy())


def safetensors(path, tensors, header=None):
    """Write a file in the format of https://github.com/huggingface/safetensors."""
    entries, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (kind, shape, numbers) in tensors.items():
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    text = json.dumps(entries if header is None else header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_safetensors(tmp_path):
    numbers = np.arange(6, dtype="<f4").reshape(2, 3)
    wide = (numbers.view("<u4") >> 16).astype("<u2")
    path = safetensors(
        tmp_path / "model.safetensors",
        {
            "a.weight": ("F32", [2, 3], numbers.tobytes()),
            "b.weight": ("BF16", [6], wide.tobytes()),
            "c.weight": ("F16", [3, 2], numbers.astype("<f2").tobytes()),
            "d": ("I64", [], np.int64(5).tobytes()),
            "e": ("F32", [0, 4], b""),
        },
    )
    found = read_checkpoint(path).arrays
    assert list(found) == ["a.weight", "b.weight", "c.weight", "d", "e"]
    np.testing.assert_array_equal(found["a.weight"], numbers)
    np.testing.assert_array_equal(found["b.weight"], numbers.ravel())
    np.testing.assert_array_equal(found["c.weight"], numbers.reshape(3, 2))
    assert found["d"] == 5 and found["e"].shape == (0, 4)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": ["F32"], "shape": {}, "data_offsets": 7}},
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"},
        ["a"],
        {},
    ],
)
def test_damaged_safetensors(tmp_path, header):
    path = safetensors(tmp_path / "model.safetensors", {"a": ("F32", [2], bytes(8))}, header)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        read_checkpoint(path)
    for data in (b"", b"\x05", struct.pack("<Q", 1 << 63) + b"{}", path.read_bytes()[:12]):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            read_checkpoint(path)


class Net(torch.nn.Module):
    """A model of a script."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)


def torchscript(path):
    torch.jit.script(Net()).save(str(path))


def truncated(path):
    torch.save({"model": {"weight": torch.ones(999)}}, path)
    path.write_bytes(path.read_bytes()[:-300])


def onnx_model(path):
    onnx = pytest.importorskip("onnx")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], []), producer_name="pytorch")
    path.write_bytes(model.SerializeToString())


def not_finite(path):
    network = foreign.randomize(foreign.Mmdet(True))
    network.bbox_head.conv_cls.bias.data[3] = float("nan")
    torch.save({"state_dict": network.state_dict(), "meta": {"cfg": IMPROVED_TEXT}}, path)


def changed(**arrays):
    """Return a function that writes weights of MMDetection with some of other shapes."""

    def write(path):
        state = foreign.randomize(foreign.Mmdet(True)).state_dict()
        state.update({name.replace("__", "."): value for name, value in arrays.items()})
        torch.save({"state_dict": state, "meta": {"cfg": IMPROVED_TEXT}}, path)

    return write


def whole_model_of_project(path):
    """A pickle of an object of mmdet, as torch.save(model) writes it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cmmdet.models\nFCOS\n)\x81}b.")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (onnx_model, "is an ONNX model"),
        (truncated, "its end is missing"),
        (torchscript, "TorchScript"),
        (lambda path: torch.save(torch.nn.Conv2d(3, 4, 3), path), "whole pickled model"),
        (lambda path: torch.save({"model": torch.nn.ReLU(), "epoch": 1}, path), "whole pickled model"),
        (whole_model_of_project, "whole pickled model"),
        (changed(bbox_head__conv_cls__weight=torch.zeros(())), "shapes of MMDetection"),
        (changed(backbone__conv1__weight=torch.zeros(3)), "shapes of MMDetection"),
        (changed(bbox_head__scales__0__scale=torch.zeros(2)), "shapes of MMDetection"),
        (changed(neck__fpn_convs__0__conv__bias=torch.zeros(3)), "neck.outputs.0.bias is [3]"),
        (not_finite, "bbox_head.conv_cls.bias"),
        (lambda path: torch.save({"optimizer": {"state": {}}}, path), "its keys are optimizer"),
        (lambda path: torch.save({"a": torch.ones(2), "model.a": torch.ones(2)}, path), "contains a twice"),
        (lambda path: path.write_text("<!DOCTYPE html><html>"), "is a web page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path: torch.save(torch.ones(3), path), "not weights by their names"),
    ],
)
def test_each_refusal_is_one_fitting_sentence(tmp_path, capsys, write, words):
    path = tmp_path / "weights.pth"
    write(path)
    code, printed = run(capsys, path, "-o", tmp_path / "ours")
    (line,) = printed.strip().splitlines()
    assert code == 2 and words in line and str(path) in line


def test_mmengine_message_hub(tmp_path, monkeypatch):
    """A HistoryBuffer holds its methods, which are pickled as calls of getattr."""
    name = "mmengine.logging.history_buffer"
    module = types.ModuleType(name)

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._max_length = np.zeros(3), 1000
            self._statistics_methods = {"mean": HistoryBuffer.mean}

        def mean(self):
            return self._log_history.mean()

    for each, path in ((HistoryBuffer, "HistoryBuffer"), (HistoryBuffer.mean, "HistoryBuffer.mean")):
        each.__module__, each.__qualname__ = name, path
    module.HistoryBuffer = HistoryBuffer
    for part in ("mmengine", "mmengine.logging", name):
        monkeypatch.setitem(sys.modules, part, module)
    hub = {"log_scalars": collections.OrderedDict({"train/loss": HistoryBuffer()}), "runtime_info": {}}
    torch.save({"state_dict": {"weight": torch.ones(2)}, "message_hub": hub}, tmp_path / "epoch_1.pth")
    with zipfile.ZipFile(tmp_path / "epoch_1.pth") as archive:
        assert b"getattr" in archive.read("epoch_1/data.pkl")
    assert list(read_checkpoint(tmp_path / "epoch_1.pth").arrays) == ["weight"]


def test_torchvision_reference_checkpoint(tmp_path):
    """Of references/detection/train.py: Namespace with paths, and a scheduler with a Counter."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], 0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[16, 22], gamma=0.1)
    torch.save(
        {
            "model": {"weight": torch.ones(2)},
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule.state_dict(),
            "args": argparse.Namespace(epochs=26, output_dir=Path("out"), device=torch.device("cpu")),
            "epoch": 25,
        },
        tmp_path / "model_25.pth",
    )
    assert list(read_checkpoint(tmp_path / "model_25.pth").arrays) == ["weight"]


def test_background_and_unused_outputs_are_left_out(tmp_path, capsys):
    network = foreign.randomize(foreign.Torchvision())
    torch.save({"model": network.state_dict()}, tmp_path / "model_25.pth")
    code, printed = run(capsys, tmp_path / "model_25.pth", "-o", tmp_path / "ours")
    assert code == 0, printed
    assert yaml.safe_load((tmp_path / "ours.yml").read_text())["num_classes"] == foreign.CLASSES
