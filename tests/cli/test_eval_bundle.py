"""tools/eval.py --bundle: the exported thing itself, with its gates; and the scripts that wrap it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import pytest
from helpers.small_bundles import heads_bundle
from helpers.small_detector import CATEGORY_IDS, CLASS_NAMES, pictures

from ppfcos.cli import eval as eval_command
from ppfcos.config import load_config
from ppfcos.data.datasets import build_dataset
from ppfcos.deploy import Predictor
from ppfcos.engine import evaluator

CONFIG = """
_BASE_: [small.yml]
EvalDataset:
  name: COCODataSet
  dataset_dir: {data}
  image_dir: val2017
  anno_path: annotations/instances_val2017.json
EvalReader:
  sample_transforms:
  - Decode: {{}}
  - Resize: {{target_size: [224, 320], keep_ratio: true, interp: 1}}
  - Permute: {{}}
  batch_transforms:
  - PadBatch: {{pad_to_stride: 32}}
  batch_size: 1
"""


class Small(NamedTuple):
    """A bundle, its configuration with a data set, its weights, and the data set."""

    bundle: Path
    config: Path
    weights: Path
    data: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    bundle = heads_bundle(tmp_path_factory.getbasetemp() / "heads")
    folder = tmp_path_factory.mktemp("eval")
    shutil.copy(bundle.parent / "small.yml", folder)
    (folder / "eval.yml").write_text(CONFIG.format(data=folder / "data"))
    write_truth(folder / "data", bundle)
    return Small(bundle, folder / "eval.yml", bundle.parent / "weights.pdparams", folder / "data")


def write_truth(folder: Path, bundle: Path) -> None:
    """The best boxes of the detector, a third of them narrower, so that its AP is neither 0 nor 1.

    Their IoU of 0.72 is far from all of COCO's thresholds, so that no rounding decides.
    """
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for i, (picture, found) in enumerate(zip(pictures(), Predictor(bundle).predict(pictures()))):
        cv2.imwrite(str(folder / "val2017" / f"{i}.png"), picture)
        height, width = picture.shape[:2]
        images.append({"id": i + 10, "file_name": f"{i}.png", "height": height, "width": width})
        best = found.above(0.07)
        for j, (box, label) in enumerate(zip(best.boxes.tolist(), best.labels.tolist())):
            x0, y0, x1, y1 = box
            sides = [x0, y0, (x1 - x0) * (0.72 if j % 3 == 0 else 1), y1 - y0]
            number = len(annotations) + 1
            entry = {"id": number, "image_id": i + 10, "category_id": CATEGORY_IDS[label], "bbox": sides}
            annotations.append({**entry, "area": sides[2] * sides[3], "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, CLASS_NAMES)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))


def test_bundle_and_checkpoint_have_equal_metrics(small, capsys):
    common = ["-c", str(small.config)]
    assert eval_command.main([*common, "-o", f"weights={small.weights}"]) == 0
    table = figures(capsys.readouterr().out)
    assert 0.05 < float(table[0].rpartition("=")[2]) < 0.95 and len(table) == 12
    for runtime, batch in (("onnxruntime", "1"), ("openvino", "4")):
        options = ["--bundle", str(small.bundle), "--runtime", runtime, "--batch", batch]
        assert eval_command.main([*common, *options]) == 0
        printed = capsys.readouterr().out
        assert figures(printed) == table and "images/s, from files to boxes" in printed


def figures(printed: str) -> list:
    return [line for line in printed.splitlines() if "@[ IoU=" in line]


@pytest.mark.parametrize(
    ("gates", "code"),
    [
        (["--require-ap", "0.001", "--require-fps", "0.001"], 0),
        (["--require-ap", "0.999"], 1),
        (["--require-fps", "1e6", "--require-ap", "0.001"], 1),
    ],
)
def test_required_ap_and_fps(small, capsys, gates, code):
    arguments = ["-c", str(small.config), "--bundle", str(small.bundle), *gates]
    assert eval_command.main(arguments) == code
    assert ("warning: " in capsys.readouterr().out) == bool(code)


def test_errors_are_one_line(small, capsys, tmp_path):
    truth = json.loads((small.data / "annotations" / "instances_val2017.json").read_text())
    truth["categories"][0]["name"] = "ellipse"
    (tmp_path / "other.json").write_text(json.dumps(truth))
    other_classes = ["-o", f"EvalDataset.anno_path={tmp_path / 'other.json'}"]
    cases = [
        (["--require-fps", "3"], "--require-fps is for bundles"),
        (["--precision", "fp16"], "--precision is for bundles"),
        (["--batch", "32"], "--batch is for bundles"),
        (["--json_eval", "--bundle", str(small.bundle), "--require-fps", "3"], "remove --bundle"),
        (["--bundle", str(tmp_path / "none")], "no such bundle"),
        (["--bundle", str(small.bundle), *other_classes], "ellipse"),
    ]
    for arguments, named in cases:
        assert eval_command.main(["-c", str(small.config), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and named in error


@pytest.mark.parametrize(("gate", "value"), [("ap", "38.5"), ("ap", "nan"), ("fps", "nan"), ("fps", "x")])
def test_requirements_out_of_range_are_refused(small, capsys, gate, value):
    with pytest.raises(SystemExit) as ended:
        eval_command.main(
            ["-c", str(small.config), "--bundle", str(small.bundle), f"--require-{gate}", value]
        )
    assert ended.value.code == 2 and f"--require-{gate}: '{value}' is not" in capsys.readouterr().err


def test_a_comparison_has_no_requirements(tmp_path, capsys):
    folders = [str(tmp_path / name) for name in ("before", "after", "report")]
    arguments = ["--compare", *folders[:2], "--report", folders[2], "--require-ap", "0.1"]
    assert eval_command.main(arguments) == 2
    assert "bundle or required metric" in capsys.readouterr().err


def test_unreadable_images_do_not_count_as_images_per_second(small, tmp_path):
    """Eight of ten images are unreadable; each of the others takes at least 0.1 s."""
    shutil.copytree(small.data, tmp_path / "data")
    for picture in sorted((tmp_path / "data" / "val2017").iterdir())[2:]:
        picture.write_bytes(b"no picture")
    data = build_dataset(
        load_config(small.config, [f"EvalDataset.dataset_dir={tmp_path / 'data'}"]), "EvalDataset"
    )
    detector = Predictor(small.bundle, threads=1)
    run = detector.runtime.run

    def run_slowly(inputs):
        time.sleep(0.1)
        return run(inputs)

    detector.runtime.run = run_slowly
    _, images_a_second = evaluator.evaluate_bundle(detector, data, "pycocotools")
    assert 0 < images_a_second <= 10


@pytest.mark.slow  # two processes that import Paddle
def test_scripts_set_the_requirements(small, root, tmp_path):
    variables = {
        **os.environ,
        "PYTHON": sys.executable,
        "CONFIG": str(small.config),
        "BUNDLE": str(small.bundle),
        "DATASETS_DIR": str(small.data),
        "PRECISION": "fp32",
    }
    for script, target, code in (("accuracy", "0.01", 0), ("performance", "1e6", 1)):
        path = root / "scripts" / f"infer_fcos_fp16_{script}.sh"
        command = ["bash", str(path), "--bs", "4", "--tgt", target, "--runtime", "onnxruntime"]
        done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        assert "evaluated on 10 images" in done.stdout
