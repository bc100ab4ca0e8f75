"""Converted configurations of PaddleDetection's FCOS train, and give PaddleDetection's losses."""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle
import pytest
import yaml

from ppfcos.cli import convert_config as cli
from ppfcos.cli import train
from ppfcos.config import load_config
from ppfcos.convert import paddledet
from ppfcos.convert.paddledet_config import convert_config
from ppfcos.data.shapes import generate
from ppfcos.engine.model import build_model
from ppfcos.errors import ConfigError

HEIGHT, WIDTH, CLASSES = 128, 256, 5
STRIDES = [8, 16, 32, 64, 128]
# Further keys of PaddleDetection's runtime.yml and readers.
RUNTIME = {
    "print_flops": False,
    "print_params": False,
    "map_type": "11point",
    "export": {"post_process": True, "nms": True, "benchmark": False, "fuse_conv_bn": False},
}
# Changes of its five FCOS configurations.
VARIANTS = {
    "fcos_r50_fpn_1x_coco": {},
    "fcos_dcn_r50_fpn_1x_coco": {
        "ResNet": {"dcn_v2_stages": [1, 2, 3]},
        "FCOSHead": {"fcos_feat": {"use_dcn": True}},
    },
    "fcos_r50_fpn_iou_1x_coco": {"FCOSHead": {"fcos_loss": {"quality": "iou"}}},
    "fcos_r50_fpn_iou_multiscale_2x_coco": {
        "FCOSHead": {"fcos_loss": {"quality": "iou"}},
        "TrainReader": {"sample_transforms": [{"Decode": {}}, {"RandomResize": {"target_size": [[64, 96]]}}]},
    },
    "fcos_r50_fpn_multiscale_2x_coco": {
        "epoch": 24,
        "TrainReader": {"sample_transforms": [{"Decode": {}}, {"RandomResize": {"target_size": [[64, 96]]}}]},
    },
}


@pytest.fixture
def stock_config(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    from stock import stock_config

    yield stock_config
    sys.modules.pop("stock", None)


def write_theirs(folder, base, changes, name="theirs"):
    """Write a base file and a file that inherits from it, as PaddleDetection has them."""
    (folder / "base.yml").write_text(yaml.safe_dump({**base, **RUNTIME}))
    (folder / f"{name}.yml").write_text(yaml.safe_dump({"_BASE_": ["base.yml"], **changes}))
    return folder / f"{name}.yml"


def batches():
    """Return the same images and boxes for PaddleDetection and for PPFCOS."""
    from helpers.stock_targets import Gt2FCOSTarget

    rng = np.random.default_rng(1)
    size = np.exp(rng.uniform(np.log(16), np.log(110), [2, 6, 2]))
    corner = rng.uniform(0, 1, [2, 6, 2]) * ([WIDTH, HEIGHT] - size)
    boxes = np.concatenate([corner, corner + size], -1).astype("float32")
    labels = rng.integers(0, CLASSES, [2, 6, 1]).astype("int32")
    pixels = rng.integers(0, 256, [2, 3, HEIGHT, WIDTH])
    mean, std = np.reshape([0.485, 0.456, 0.406], [3, 1, 1]), np.reshape([0.229, 0.224, 0.225], [3, 1, 1])
    samples = [
        {"image": image.astype("float32"), "gt_bbox": box, "gt_class": label}
        for image, box, label in zip((pixels / 255 - mean) / std, boxes, labels)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        samples = Gt2FCOSTarget([64, 128, 256, 512], 1.5, STRIDES)(samples)
    shape = paddle.to_tensor([[HEIGHT, WIDTH]] * 2, "float32")
    theirs = {key: paddle.to_tensor(np.stack([sample[key] for sample in samples])) for key in samples[0]}
    ours = {
        "image": paddle.to_tensor(pixels, "uint8"),
        "scale_factor": paddle.ones([2, 2]),
        "gt_bbox": paddle.to_tensor(boxes),
        "gt_class": paddle.to_tensor(labels),
    }
    return {**theirs, "im_shape": shape}, {**ours, "im_shape": shape}


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_equal_paddledetections(stock_config, workspace, tmp_path, name):
    from ppdet.core.workspace import create, dict_merge, merge_config

    shape = {"depth": 50, "target_size": (HEIGHT, WIDTH), "num_classes": CLASSES, "batch_size": 2}
    theirs = stock_config(**shape, from_scratch=True)
    path = write_theirs(tmp_path, theirs, VARIANTS[name], name)
    merge_config(dict_merge(theirs, VARIANTS[name]))
    paddle.seed(3)
    stock = create("FCOS")
    changes, errors = convert_config(path, tmp_path / "ours.yml")
    assert errors == [] and len(changes) == len(set(changes)) > 10
    model = build_model(load_config(tmp_path / "ours.yml"))
    arrays = {key: value.numpy() for key, value in stock.state_dict().items()}
    weights = paddledet.FORMAT.translate(name, arrays).weights
    assert set(weights) == set(model.state_dict())
    model.set_state_dict({key: paddle.to_tensor(value) for key, value in weights.items()})
    for each in (stock, model):
        each.train()
    expected, found = (each(batch) for each, batch in zip((stock, model), batches()))
    for key in ("loss_cls", "loss_box", "loss_quality"):
        assert float(found[key]) == pytest.approx(float(expected[key]), rel=1e-5), key


def voc_section(folder, split):
    """Write Pascal VOC files for images in COCO's layout, and return PaddleDetection's section for them."""
    truth = json.loads((folder / f"annotations/instances_{split}2017.json").read_text())
    names = {each["id"]: each["name"] for each in truth["categories"]}
    (folder / "label_list.txt").write_text("\n".join(names.values()))
    lines = []
    for image in truth["images"]:
        objects = ""
        for each in truth["annotations"]:
            if each["image_id"] == image["id"]:
                x, y, width, height = each["bbox"]
                sides = {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height}
                box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
                name = names[each["category_id"]]
                objects += (
                    f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
                )
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        xml = folder / f"{split}_{image['id']}.xml"
        xml.write_text(f"<annotation>{size}{objects}</annotation>")
        lines.append(f"{split}2017/{image['file_name']} {xml.name}\n")
    (folder / f"{split}.txt").write_text("".join(lines))
    fields = ["image", "gt_bbox", "gt_class", "difficult"]
    section = {"name": "VOCDataSet", "anno_path": f"{split}.txt", "label_list": "label_list.txt"}
    return {**section, "dataset_dir": str(folder), "data_fields": fields}


def coco_section(folder, split):
    files = {"image_dir": f"{split}2017", "anno_path": f"annotations/instances_{split}2017.json"}
    return {"name": "COCODataSet", "dataset_dir": str(folder), **files}


@pytest.mark.parametrize(("section", "metric"), [(coco_section, "COCO"), (voc_section, "VOC")])
def test_trains_on_own_data(stock_config, tmp_path, section, metric, capsys):
    data = tmp_path / "data"
    generate(data, train=4, val=2, size=96)
    theirs = stock_config(
        depth=18, target_size=(96, 96), num_classes=3, batch_size=2, from_scratch=True, workers=0
    )
    changes = {
        "metric": metric,
        "pretrain_weights": None,
        "LearningRate": {"schedulers": [{"name": "CosineDecay", "max_epochs": 1, "use_warmup": False}]},
        "save_dir": str(tmp_path / "output"),
        "TrainDataset": section(data, "train"),
        "EvalDataset": section(data, "val"),
    }
    theirs.pop("pretrain_weights")
    theirs = write_theirs(tmp_path, theirs, changes)
    ours = tmp_path / "ours.yml"
    assert cli.main([str(theirs), "-o", str(ours)]) == 0
    listed = capsys.readouterr().out
    assert ("metric left out" in listed) == (metric == "VOC")
    for key in ("NormalizeImage", "Gt2FCOSTarget", "map_type", "print_flops", "batch_size"):
        assert key in listed
    assert train.main(["-c", str(ours), "--eval", "-o", "device=cpu"]) == 0
    assert (tmp_path / "output/ours/model_final.pdparams").is_file()


def test_total_batch_size_and_defaults(stock_config, tmp_path):
    theirs = stock_config(depth=50, target_size=(800, 1333), num_classes=3, batch_size=2, from_scratch=False)
    theirs["FPN"] = {"out_channel": 128, "extra_stage": 2, "has_extra_convs": False}
    theirs["FCOSHead"] = {"fcos_loss": "FCOSLoss", "norm_reg_targets": False}
    theirs["FCOSLoss"] = {"loss_alpha": 0.3}
    changes, errors = convert_config(write_theirs(tmp_path, theirs, {}), tmp_path / "ours.yml", devices=4)
    assert errors == []
    assert any("FPN.has_extra_convs: False left out" in change for change in changes)
    cfg = load_config(tmp_path / "ours.yml")
    assert cfg["TrainReader"]["total_batch_size"] == 8
    assert cfg["PPFCOSFPN"]["extra_source"] == "c5"  # use_c5 is true by default
    assert (cfg["PPFCOSHead"]["distance"], cfg["PPFCOSHead"]["norm_type"]) == ("exp", "bn")
    assert cfg["PPFCOSLoss"]["focal_alpha"] == 0.3
    assert cfg["PPFCOSDecode"]["score_threshold"] == 0.05
    for reader in ("TrainReader", "EvalReader"):
        resizes = [step["Resize"] for step in cfg[reader]["sample_transforms"] if "Resize" in step]
        assert [resize["rounding"] for resize in resizes] == ["nearest"]


def test_configurations_that_are_not_converted(stock_config, tmp_path):
    theirs = stock_config(depth=50, target_size=(800, 1333), num_classes=3, batch_size=2, from_scratch=False)
    path = write_theirs(tmp_path, theirs, {})
    with pytest.raises(ConfigError, match=r"`ppfcos convert-config .*theirs\.yml"):
        load_config(path)
    path = write_theirs(tmp_path, theirs, {"architecture": "YOLOv3"})
    with pytest.raises(ConfigError, match="architecture is YOLOv3"):
        convert_config(path, tmp_path / "ours.yml")
    theirs["FCOS"]["neck"] = "BiFPN"
    with pytest.raises(ConfigError, match="BiFPN cannot be converted"):
        convert_config(write_theirs(tmp_path, theirs, {}), tmp_path / "ours.yml")
    assert not (tmp_path / "ours.yml").exists()
