"""A user's Python files under `imports`: their classes work in all commands, also from a run's folder."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import yaml
from conftest import needs_export
from helpers import user_parts
from helpers.small_config import write_config

from ppfcos.cli import check_data, export_model, infer, show_batch, train
from ppfcos.cli import eval as evaluate
from ppfcos.config import load_config
from ppfcos.data.shapes import generate
from ppfcos.engine.model import build_model
from ppfcos.errors import ConfigError
from ppfcos.modeling.assigner import PPFCOSTargets


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    generate(folder, train=4, val=2, size=96)
    return folder


@pytest.fixture
def small(tmp_path, root, shapes):
    return write_config(tmp_path / "small.yml", root, shapes, tmp_path / "output")


def with_imports(config, text, name="parts.py", **sections):
    """Write a user's file and a configuration that imports it."""
    (config.parent / name).write_text(text)
    content = {"_BASE_": [config.name], "imports": [name], **sections}
    (config.parent / "mine.yml").write_text(yaml.safe_dump(content))
    return config.parent / "mine.yml"


def refusal(config, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(config, overrides)
    return str(caught.value)


@needs_export
def test_all_commands_and_the_folder_of_the_run(small, tmp_path, capsys, monkeypatch):
    parts = user_parts.SMALL_BACKBONE + user_parts.CIOU_LOSS + user_parts.INVERT_TRANSFORM
    steps = [
        {"Decode": {}},
        {"Invert": {}},
        {"Resize": {"target_size": [96, 96], "keep_ratio": True}},
        {"Permute": {}},
    ]
    config = with_imports(
        small,
        parts,
        PPFCOS={"backbone": "SmallBackbone", "loss": "CIoULoss"},
        SmallBackbone={"width": 8},
        CIoULoss={"box_weight": 2.0},
        TrainReader={"sample_transforms": steps, "batch_transforms": [{"PadBatch": {"pad_to_stride": 32}}]},
    )
    assert show_batch.main(["-c", str(config), "--output", str(tmp_path / "batch.png")]) == 0
    assert check_data.main(["-c", str(config), "--workers", "0", "--output_dir", str(tmp_path / "c")]) < 2
    assert train.main(["-c", str(config)]) == 0
    folder = tmp_path / "output/mine"
    for name in ("mine.yml", "parts.py"):
        (tmp_path / name).unlink()
    monkeypatch.chdir("/")
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert (moved / "imports/parts.py").read_text() == parts
    run = ["-c", str(moved / "config.yml"), "-o", f"weights={moved / 'model_final'}"]
    assert evaluate.main(run) == 0
    assert export_model.main([*run, "--output_dir", str(tmp_path / "out"), "--formats", "paddle"]) == 0
    image = next((tmp_path / "out").rglob("bundle.yml"))
    assert image.is_file()
    image = next(path for path in small.parent.rglob("*.png"))
    options = ["--infer_img", str(image), "--output_dir", str(tmp_path / "drawn")]
    assert infer.main([*run, *options]) == 0


def test_a_logger_gets_the_metrics_of_a_training(small, tmp_path):
    sections = {"loggers": ["CSVLogger", "VisualDL"], "CSVLogger": {"filename": "curves.csv"}}
    config = with_imports(small, user_parts.CSV_LOGGER, **sections)
    assert train.main(["-c", str(config), "--eval"]) == 0
    folder = tmp_path / "output" / "mine"
    rows = [line.split(",") for line in (folder / "curves.csv").read_text().splitlines()]
    assert [position for position, name, _ in rows if name == "train/loss"] == ["1", "2"]
    assert [position for position, name, _ in rows if name == "eval/AP"] == ["1"]
    assert list((folder / "vdl_log").iterdir())
    assert "no class 'CSVLog' is registered" in refusal(config, "loggers=[CSVLog]")
    assert "CSVLogger.filename is not used" in refusal(config, "loggers=[]", "CSVLogger.filename=a")


def test_a_class_that_is_no_logger_is_refused(small, capsys):
    assert train.main(["-c", str(small), "-o", "loggers=[ResNet]"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "ResNet is no logger" in error


def test_ciou_loss_by_its_formula(small):
    """A box inside another one with the same center: 1 − IoU plus the term of the aspect ratio."""
    config = with_imports(small, user_parts.CIOU_LOSS, PPFCOS={"loss": "CIoULoss"})
    loss = build_model(load_config(config)).loss

    class Targets:
        distances = paddle.to_tensor([[20.0, 10.0, 20.0, 10.0], [20.0, 20.0, 20.0, 20.0]])

    predicted = paddle.to_tensor([[10.0, 10.0, 10.0, 10.0], [10.0, 10.0, 20.0, 20.0]])
    values, iou = loss._box_losses(predicted, Targets)
    angle = 4 / np.pi**2 * (np.arctan(2) - np.arctan(1)) ** 2
    aspect = angle**2 / (0.5 + angle)
    distance = (5**2 + 5**2) / (40**2 + 40**2)
    np.testing.assert_allclose(iou.numpy(), [0.5, 900 / 1600], rtol=1e-6)
    np.testing.assert_allclose(values.numpy(), [0.5 + aspect, 1 - 900 / 1600 + distance], rtol=1e-5)


def test_atss_assigner_by_a_loop(small):
    config = with_imports(small, user_parts.ATSS_ASSIGNER, PPFCOS={"targets": "AdaptiveAssigner"})
    assigner = build_model(load_config(config)).targets
    strides, side = [8, 16, 32, 64, 128], 128
    grids = [
        [((x + 0.5) * s, (y + 0.5) * s) for y in range(side // s) for x in range(side // s)] for s in strides
    ]
    box = np.array([10.0, 4.0, 40.0, 120.0])
    candidates = []
    for grid, stride in zip(grids, strides):
        scored = []
        for x, y in grid:
            anchor = np.array([x - 4 * stride, y - 4 * stride, x + 4 * stride, y + 4 * stride])
            sides = np.minimum(anchor[2:], box[2:]) - np.maximum(anchor[:2], box[:2])
            overlap = np.prod(sides.clip(0))
            iou = overlap / (np.prod(box[2:] - box[:2]) + (8 * stride) ** 2 - overlap)
            scored.append((np.hypot(x - 25, y - 62), iou, x, y))
        candidates += sorted(scored)[: min(9, len(scored))]
    ious = np.array([iou for _, iou, _, _ in candidates])
    limit = ious.mean() + ious.std(ddof=1)
    expected = {(x, y) for _, iou, x, y in candidates if iou >= limit and 10 < x < 40 and 4 < y < 120}
    boxes = paddle.to_tensor(np.stack([box, np.zeros(4)])[None], "float32")
    labels = paddle.to_tensor([[2, 0]])
    inputs = [paddle.to_tensor(grid, "float32") for grid in grids], strides, boxes, labels, 3
    points = [point for grid in grids for point in grid]
    assert {points[i] for i in assigner(*inputs).positives.tolist()} == expected != set()
    assert {points[i] for i in PPFCOSTargets()(*inputs).positives.tolist()} != expected


def test_paths_are_relative_to_the_file_or_the_working_directory(small, tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    config = with_imports(small, user_parts.SMALL_BACKBONE, PPFCOS={"backbone": "SmallBackbone"})
    (tmp_path / "deep/run.yml").write_text("_BASE_: [../mine.yml]\n")
    assert load_config(tmp_path / "deep/run.yml")["SmallBackbone"]["width"] == 16
    assert "no class 'SmallBackbone' is registered" in refusal(small, "PPFCOS.backbone=SmallBackbone")
    monkeypatch.chdir(tmp_path)
    overrides = ["imports=[parts.py]", "PPFCOS.backbone=SmallBackbone", "SmallBackbone.width=8"]
    assert load_config(small, overrides)["SmallBackbone"]["width"] == 8
    assert "SmallBackbone.width" in refusal(config, "SmallBackbone.width=wide")
    assert "SmallBackbone.widht" in refusal(config, "SmallBackbone.widht=8")


def test_an_edited_file_replaces_its_earlier_version(small):
    text = user_parts.SMALL_BACKBONE + user_parts.INVERT_TRANSFORM
    for width in (16, 24, 16):
        config = with_imports(small, text.replace("= 16", f"= {width}"), PPFCOS={"backbone": "SmallBackbone"})
        assert load_config(config)["SmallBackbone"]["width"] == width


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("import paddle\n\n1 / 0\n", 3, "ZeroDivisionError"),
        ("a = 1\nb = = 2\n", 2, "SyntaxError"),
        ("import no_such_module\n", 1, "no_such_module"),
        ("raise SystemExit(3)\n", 1, "SystemExit"),
        ("from ppdet.core.workspace import register\n\nregister(type('ResNet', (), {}))\n", 3, "already"),
        ("x = 1\x00", 1, "null bytes"),
    ],
)
def test_an_error_in_a_file_is_one_line_that_names_its_line(small, text, line, said):
    config = with_imports(small, text)
    message = refusal(config)
    assert message.startswith(f"{config.parent / 'parts.py'}:{line}: ")
    assert said in message and "\n" not in message
    load_config(small)  # and nothing of it stays registered


@pytest.mark.parametrize("name", ["nowhere.py", "folder.py", "pipe.py", "parts.txt", "os"])
def test_only_python_files_on_disk_are_run(small, tmp_path, name):
    import os

    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "parts.txt").write_text("raise SystemExit")
    config = with_imports(small, "")
    config.write_text(f"_BASE_: [{small.name}]\nimports: [{name}]\n")
    message = refusal(config)
    assert message.startswith(f"{config}:2: imports names {tmp_path / name}, which is not a Python file")
    assert "imports should be a list of texts" in refusal(config, "imports=parts.py")
