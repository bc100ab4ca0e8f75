"""PPFCOS in PaddleDetection's workspace, with its parts, in its Trainer and its deployment script."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import paddle
import ppdet.core.workspace as workspace
import pytest
from conftest import needs_export
from helpers.small_bundles import end_to_end_bundle
from helpers.small_detector import pictures
from ppdet.core.workspace import create
from ppdet.data.source.coco import COCODataSet
from ppdet.modeling.backbones.resnet import ResNet
from ppdet.optimizer import LearningRate, OptimizerBuilder

from ppfcos.config import load_config
from ppfcos.data.datasets import build_dataset
from ppfcos.deploy import Predictor
from ppfcos.engine.optim import build_optimizer, build_schedule
from ppfcos.paddle_versions import HAS_NEW_IR

SMALL = [
    "ResNet.depth=18",
    "PPFCOSFPN.out_channels=32",
    "PPFCOSHead.num_convs=1",
    "LearningRate.schedulers.1.steps=2",
]


def test_stock_parts_are_used(root, tinycoco):
    overrides = [
        f"TrainDataset.dataset_dir={tinycoco}",
        "TrainDataset.image_dir=images/train2017",
        "use_ema=true",
    ]
    cfg = load_config(root / "configs" / "fcos_r50_fpn_1x_coco.yml", SMALL + overrides)
    for name, owner in (
        ("LearningRate", LearningRate),
        ("OptimizerBuilder", OptimizerBuilder),
        ("ResNet", ResNet),
    ):
        assert type(create(name)) is owner
    model = create(cfg["architecture"])
    assert type(model.backbone) is ResNet
    schedule = build_schedule(cfg, 10)
    assert build_optimizer(cfg, model, schedule).get_lr() == pytest.approx(0.01 / 3)
    records = build_dataset(cfg, "TrainDataset").records
    stock = COCODataSet(
        dataset_dir=str(tinycoco),
        image_dir="images/train2017",
        anno_path="annotations/instances_train2017.json",
        data_fields=["image", "gt_bbox", "gt_class", "is_crowd"],
        allow_empty=bool(cfg["TrainDataset"].get("allow_empty")),
    )
    stock.parse_dataset()
    assert len(records) == len(stock.roidbs)
    for one, other in zip(records, stock.roidbs):
        assert one["im_file"] == other["im_file"]
        np.testing.assert_array_equal(one["gt_bbox"], other["gt_bbox"])
        np.testing.assert_array_equal(one["gt_class"], other["gt_class"])


STOCK_TRAINER = """
import sys, json
import ppfcos.modeling
from ppfcos.data.transforms.uint8 import register_in_paddledetection; register_in_paddledetection()
from ppdet.core.workspace import load_config, merge_config
from ppdet.engine import Trainer
import paddle
cfg = load_config(sys.argv[1])
cfg.use_gpu = False
merge_config({"ResNet": {"depth": 18}, "PPFCOSFPN": {"out_channels": 32}, "PPFCOSHead": {"num_convs": 1}})
merge_config({"PPFCOSDecode": {"score_threshold": 0.0}, "save_dir": sys.argv[3]})
merge_config({"TestDataset": {"dataset_dir": "", "anno_path": sys.argv[4]}})
trainer = Trainer(cfg, mode="test")
results = trainer.predict([sys.argv[2]], output_dir=sys.argv[3], visualize=False)
print("MODEL", type(trainer.model).__name__, json.dumps(list(results[0]["bbox"].shape)))
"""


def test_its_trainer_builds_and_runs_the_model(root, tinycoco, tmp_path):
    image = sorted((tinycoco / "images" / "val2017").iterdir())[0]
    annotations = tinycoco / "annotations" / "instances_val2017.json"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            STOCK_TRAINER,
            str(root / "configs" / "fcos_r50_fpn_1x_coco.yml"),
            str(image),
            str(tmp_path),
            str(annotations),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    name, shape = done.stdout.split("MODEL ")[1].split(" ", 1)
    assert name == "PPFCOS"
    assert json.loads(shape)[1] == 6


def test_the_workspace_is_paddledetections(root):
    cfg = load_config(root / "configs" / "fcos_r50_fpn_1x_coco.yml", SMALL)
    assert workspace.global_config == cfg


@pytest.mark.skipif(not HAS_NEW_IR, reason="the wrapper is for programs of Paddle 3")
@needs_export
def test_the_wrapper_selects_the_new_executor_for_the_deployment_script(root, tmp_path):
    """A script that creates a predictor as PaddleDetection's does fails alone, and runs in the wrapper."""
    network = paddle.jit.to_static(
        paddle.nn.Linear(3, 2), input_spec=[paddle.static.InputSpec([None, 3], name="x")], full_graph=True
    )
    paddle.jit.save(network, str(tmp_path / "model"))
    script = tmp_path / "infer.py"
    script.write_text(
        "import sys, numpy as np\n"
        "from paddle.inference import Config, create_predictor\n"
        "folder = sys.argv[sys.argv.index('--model_dir') + 1]\n"
        "config = Config(f'{folder}/model.json', f'{folder}/model.pdiparams')\n"
        "config.disable_gpu()\n"
        "config.enable_memory_optim()\n"
        "predictor = create_predictor(config)\n"
        "predictor.get_input_handle('x').copy_from_cpu(np.ones([1, 3], 'float32'))\n"
        "predictor.run()\n"
        "print(predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu().tolist())\n"
    )

    def run(*words):
        command = [sys.executable, *map(str, words), "--model_dir", str(tmp_path)]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)

    assert "Not find predictor_id 0" in run(script).stderr
    done = run("tools/run_paddledetection_infer.py", script)
    assert done.returncode == 0, done.stderr
    expected = network(paddle.ones([1, 3])).numpy()
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected, rtol=1e-5)


LINE = re.compile(
    r"class_id:(\d+), confidence:([\d.]+), "
    r"left_top:\[([-\d.]+),([-\d.]+)\],right_bottom:\[([-\d.]+),([-\d.]+)\]"
)


@needs_export
def test_its_published_script_gives_the_predictors_boxes(root, paddledetection, tmp_path, tmp_path_factory):
    bundle = end_to_end_bundle(tmp_path_factory.getbasetemp() / "end_to_end")
    photos = tmp_path / "photos"
    photos.mkdir()
    # Resized to whole pixels: the script rounds the size of the image that the network is told, we do not.
    for number, picture in enumerate(pictures()[:3]):
        cv2.imwrite(str(photos / f"{number}.png"), picture)
    script = paddledetection / "deploy" / "python" / "infer.py"
    command = [sys.executable, "tools/run_paddledetection_infer.py", str(script), "--model_dir", str(bundle)]
    command += ["--image_dir", str(photos), "--output_dir", str(tmp_path / "drawn"), "--threshold", "0.06"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *parts, _ = done.stdout.split("save result to: ")
    names = re.findall(r"save result to: .*?(\d)\.png", done.stdout)
    assert sorted(names) == ["0", "1", "2"]
    for name, part in zip(names, parts):
        theirs = np.array([list(map(float, numbers)) for numbers in LINE.findall(part)])
        [ours] = Predictor(bundle, "onnxruntime").predict([photos / f"{name}.png"])
        ours = ours.above(0.06)
        assert len(theirs) == len(ours) > 3
        rows = np.column_stack([ours.labels, ours.scores, ours.boxes])
        apart = np.abs(theirs[:, None] - rows[None])
        same = (apart[..., 0] == 0) & (apart[..., 1] < 2e-4) & (apart[..., 2:].max(axis=2) < 0.02)
        assert same.any(axis=0).all() and same.any(axis=1).all()
