"""Training, evaluation and export of the standard configuration at full size, on a subset of COCO."""

from __future__ import annotations

import json
import subprocess
import sys

import paddle
import pytest
from conftest import needs_export
from helpers.small_detector import PROGRAM


@pytest.fixture(scope="module")
def command(root, tinycoco):
    """Run one of tools/ with the standard configuration on the subset of COCO."""
    overrides = ["device=cpu", "worker_num=0", "pretrain_weights=null", f"TestDataset.dataset_dir={tinycoco}"]
    for section, split in (("TrainDataset", "train2017"), ("EvalDataset", "val2017")):
        overrides += [f"{section}.dataset_dir={tinycoco}", f"{section}.image_dir=images/{split}"]

    def run(tool, *options, also=()):
        config = str(root / "configs" / "fcos_r50_fpn_1x_coco.yml")
        program = [
            sys.executable,
            str(root / "tools" / tool),
            "-c",
            config,
            *options,
            "-o",
            *overrides,
            *also,
        ]
        done = subprocess.run(program, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def weights(command, tmp_path_factory):
    """Weights after three training steps."""
    folder = tmp_path_factory.mktemp("trained")
    three_steps = ["epoch=1", "TrainReader.total_batch_size=1", "TrainDataset.sample_num=3", "log_iter=1"]
    three_steps += ["LearningRate.schedulers.1.steps=2", f"save_dir={folder}", "LearningRate.base_lr=0.0001"]
    assert "step: [3/3]" in command("train.py", also=three_steps)
    return folder / "fcos_r50_fpn_1x_coco" / "model_final.pdparams"


def test_trains_and_evaluates(command, weights, tmp_path, tinycoco):
    state = paddle.load(str(weights))
    assert state["head.class_conv.weight"].shape == [80, 256, 3, 3]
    said = command("eval.py", "--output_eval", str(tmp_path), also=[f"weights={weights}"])
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]" in said
    detections = json.loads((tmp_path / "bbox.json").read_text())
    annotations = json.loads((tinycoco / "annotations" / "instances_val2017.json").read_text())
    assert {box["image_id"] for box in detections} <= {image["id"] for image in annotations["images"]}


@needs_export
def test_exports(command, weights, tmp_path):
    """The Paddle program; tests/export/test_onnx_export.py has a slow test of ONNX at this size."""
    options = ["--formats", "paddle", "--output_dir", str(tmp_path / "exported")]
    command("export_model.py", *options, also=[f"weights={weights}"])
    bundle = tmp_path / "exported" / "fcos_r50_fpn_1x_coco"
    assert {path.name for path in bundle.iterdir()} >= {PROGRAM, "model.pdiparams", "infer_cfg.yml"}
