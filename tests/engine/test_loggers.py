"""Metric loggers; the VisualDL log of a training is read by VisualDL's reader and server."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from visualdl import LogReader

from ppfcos.config import load_config
from ppfcos.data.datasets import build_dataset
from ppfcos.data.records import DetectionData
from ppfcos.engine.evaluator import ValidationImages
from ppfcos.engine.loggers import HPARAMS, MetricLogger, MetricLoggers, select_hparams
from ppfcos.engine.progress import Report
from ppfcos.engine.visualdl_logger import VisualDLLogger
from ppfcos.errors import OutputError
from ppfcos.metrics.coco import METRIC_NAMES, CocoMetrics, evaluate_detections
from ppfcos.visualize.drawing import GROUND_TRUTH_COLOR, class_color

STEPS = 10  # an epoch


def report(step: int, loss: float, gradient_norm: float = math.nan) -> Report:
    """Of a step, counted from 1 over all epochs."""
    losses = {"loss": loss, "loss_box": loss / 4}
    epoch, step = divmod(step - 1, STEPS)
    return Report(epoch, 4, step + 1, STEPS, 0.25, losses, 8.5, 0.125, 60.0, 3 << 29, gradient_norm)


def begin(folder: Path, hparams: dict | None = None, steps: int = 0, epochs: int = 0) -> MetricLoggers:
    """Begin a VisualDL log in a folder."""
    log = VisualDLLogger(folder)
    log.begin(folder.parent, steps, epochs)
    loggers = MetricLoggers([log])
    loggers.call("add_hparams", hparams or {})
    return loggers


def newest(folder: Path) -> Path:
    """The file that VisualDL's page shows."""
    return max(folder.glob("vdlrecords.*"))


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of every curve in that file, by VisualDL's own reader."""
    reader = LogReader(file_path=str(newest(folder)))
    return {
        tag: [(point.id, point.value) for point in reader.get_data("scalar", tag)]
        for tag in reader.get_tags().get("scalar", ())
    }


# Records


def test_steps_are_read_back(tmp_path):
    log = begin(tmp_path)
    log.add_step(report(1, 2.0))
    log.add_step(report(3, 1.0, gradient_norm=6.5))
    assert curves(tmp_path) == {
        "train/loss": [(1, 2.0), (3, 1.0)],
        "train/loss_box": [(1, 0.5), (3, 0.25)],
        "train/learning_rate": [(1, 0.25), (3, 0.25)],
        "train/gradient_norm": [(3, 6.5)],
        "train/images_per_second": [(1, 8.5), (3, 8.5)],
        "train/data_seconds": [(1, 0.125), (3, 0.125)],
        "train/memory_gb": [(1, 1.5), (3, 1.5)],
    }


def _truth_and_detections(classes: int) -> tuple[dict, list[dict]]:
    """Three objects of each class but the last, in each of four images; most are found, some twice."""
    rng = np.random.default_rng(classes)
    annotations, found = [], []
    for image in range(1, 5):
        for label in np.repeat(range(1, classes), 3).tolist():
            box = [*rng.uniform(0, 400, 2), *rng.uniform(20, 200, 2)]
            note = {"image_id": image, "category_id": label, "bbox": box, "iscrowd": 0}
            annotations.append({**note, "id": len(annotations) + 1, "area": box[2] * box[3]})
            for _ in range(rng.integers(0, 3)):
                moved = np.array(box) + rng.normal(0, 8, 4)
                found.append({**note, "bbox": moved.tolist(), "score": float(rng.random())})
    categories = [{"id": label, "name": f"class {label}"} for label in range(1, classes + 1)]
    images = [{"id": image, "width": 640, "height": 480} for image in range(1, 5)]
    return {"images": images, "annotations": annotations, "categories": categories}, found


def _precision_at_50(truth: dict, found: list[dict], folder: Path) -> np.ndarray:
    """[101, K], by pycocotools from files."""
    (folder / "truth.json").write_text(json.dumps(truth))
    with contextlib.redirect_stdout(None):
        coco = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][0, :, :, 0, 2]


@pytest.mark.parametrize("classes", [4, 30])
def test_evaluations_are_read_back(tmp_path, classes):
    truth, found = _truth_and_detections(classes)
    expected = _precision_at_50(truth, found, tmp_path)
    figures = evaluate_detections(truth, found)
    begin(tmp_path / "log").call("add_evaluation", figures, 3)
    shown = {f"eval/{name}": value for name, value in zip(METRIC_NAMES, figures.stats)}
    shown.update({f"eval_AP_of_class/{name}": value for name, value in figures.per_class.items()})
    assert shown[f"eval_AP_of_class/class {classes}"] == -1
    assert curves(tmp_path / "log") == {tag: [(3, pytest.approx(value))] for tag, value in shown.items()}

    reader = LogReader(file_path=str(newest(tmp_path / "log")))
    names = [f"of_class/class {label}" for label in range(1, classes)] if classes <= 20 else []
    tags = [f"precision_recall_IoU50/{name}" for name in ("mean", *names)]
    assert sorted(reader.get_tags()["pr_curve"]) == sorted(tags)
    columns = [expected[:, :-1].mean(axis=1), *expected[:, : len(names)].T]
    for tag, precision in zip(tags, columns):
        (record,) = reader.get_data("pr_curve", tag)
        assert record.id == 3
        np.testing.assert_allclose(record.pr_curve.recall, np.linspace(1, 0, 101), atol=1e-12)
        np.testing.assert_allclose(record.pr_curve.precision, precision[::-1], atol=1e-12)
    mean = reader.get_data("pr_curve", tags[0])[0].pr_curve.precision
    assert np.mean(mean) == pytest.approx(figures.named()["AP50"], abs=1e-12)
    assert 0.1 < np.mean(mean) < 0.9  # the case says something


def test_without_objects_metrics_are_minus_one(tmp_path):
    truth, _ = _truth_and_detections(4)
    figures = evaluate_detections({**truth, "annotations": []}, [])
    begin(tmp_path).call("add_evaluation", figures, 1)
    reader = LogReader(file_path=str(newest(tmp_path)))
    assert "pr_curve" not in reader.get_tags()
    assert {value for points in curves(tmp_path).values() for _, value in points} == {-1}


def test_hparams_are_read_back(tmp_path):
    begin(tmp_path, {"epoch": 12, "seed": 2**40, "base_lr": 0.1, "amp": "false"})
    reader = LogReader(file_path=str(newest(tmp_path)))
    (record,) = reader.get_data("hyper_parameters", "hparam")
    infos = {info.name: getattr(info, info.WhichOneof("type")) for info in record.hparam.hparamInfos}
    assert infos == {"epoch": 12, "seed": 2**40, "base_lr": 0.1, "amp": "false"}
    assert [info.name for info in record.hparam.metricInfos] == ["eval/AP", "eval/AP50", "train/loss"]


def test_select_hparams(root):
    overrides = ["seed=5", "OptimizerBuilder.optimizer.momentum=0.8", "pretrain_weights=null"]
    assert select_hparams(load_config(root / "configs" / "fcos_r50_fpn_1x_coco.yml", overrides)) == {
        "filename": "fcos_r50_fpn_1x_coco",
        "architecture": "PPFCOS",
        "ResNet depth": 50,
        "ResNet norm_type": "bn",
        "PPFCOSHead norm_type": "gn",
        "epoch": 12,
        "seed": 5,
        "TrainReader total_batch_size": 16,
        "TrainReader accumulate_steps": 1,
        "lr_batch_size": 16,
        "Resize target_size": "[800, 1333]",
        "LearningRate base_lr": 0.01,
        "PiecewiseDecay milestones": "[8, 11]",
        "LinearWarmup steps": 500,
        "optimizer type": "Momentum",
        "optimizer momentum": 0.8,
        "regularizer factor": 0.0001,
        "use_ema": "false",
        "ema_decay": 0.9998,
        "amp": "false",
        "PPFCOSTargets center_sampling_radius": 1.5,
        "PPFCOSLoss box_loss": "giou",
        "PPFCOSLoss quality": "centerness",
    }


def test_all_hparams_exist_in_a_configuration(root):
    schedulers = "[{name: CosineDecay, max_epochs: 9}, {name: LinearWarmup, steps: 7}]"
    seen = {}
    for overrides in (["seed=1"], [f"LearningRate.schedulers={schedulers}"]):
        seen.update(select_hparams(load_config(root / "configs" / "fcos_r50_fpn_1x_coco.yml", overrides)))
    assert seen["CosineDecay max_epochs"] == 9
    assert seen["LinearWarmup steps"] == 7
    assert {pattern.split(".")[-1] for pattern in HPARAMS} == {name.split(" ")[-1] for name in seen}


# Files


def test_a_resumed_run_continues_its_log(tmp_path):
    """Steps and evaluations that the interrupted run made after the checkpoint appear once, as made anew."""
    log = begin(tmp_path, {"epoch": 2})
    figures = CocoMetrics(tuple(np.linspace(0, 0.75, 12)))
    for step in range(2, 21, 2):
        log.add_step(report(step, 100.0 + step))
        if step % STEPS == 0:
            log.call("add_evaluation", figures, step // STEPS)
            log.call("add_images", [("1_a.jpg", np.zeros((8, 8, 3), np.uint8))], step // STEPS)
    first = newest(tmp_path)
    first.write_bytes(first.read_bytes() + (999).to_bytes(8, "little") + b"half a record")

    log = begin(tmp_path, {"epoch": 4}, steps=14, epochs=1)
    for step in range(16, 33, 2):
        log.add_step(report(step, 200.0 + step))
    log.call("add_evaluation", figures, 2)
    assert newest(tmp_path) != first
    read = curves(tmp_path)
    assert read["train/loss"] == [(s, (100.0 if s <= 14 else 200.0) + s) for s in range(2, 33, 2)]
    assert read["eval/ARl"] == [(1, 0.75), (2, 0.75)]
    reader = LogReader(file_path=str(newest(tmp_path)))
    assert [record.id for record in reader.get_data("image", "images/1_a.jpg")] == [1]
    (settings,) = reader.get_data("hyper_parameters", "hparam")
    assert [info.int_value for info in settings.hparam.hparamInfos] == [4]
    assert first.stat().st_size == 0

    begin(tmp_path, steps=32, epochs=3)
    assert curves(tmp_path) == read


def test_a_new_run_in_an_old_folder_starts_a_new_log(tmp_path):
    old = begin(tmp_path)
    old.add_step(report(1, 5.0))
    path = newest(tmp_path)
    content = path.read_bytes()
    new = begin(tmp_path)
    new.add_step(report(1, 7.0))
    assert curves(tmp_path)["train/loss"] == [(1, 7.0)]
    assert path.read_bytes() == content


def test_a_killed_run_keeps_its_records(tmp_path):
    child = os.fork()
    if child == 0:
        log = begin(tmp_path / "log")
        for step in range(1, 6):
            log.add_step(report(step, float(step)))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert curves(tmp_path / "log")["train/loss"] == [(step, float(step)) for step in range(1, 6)]


def test_a_full_disk_does_not_end_the_training(tmp_path, caplog):
    """The system refuses what goes beyond a size, in the middle of a record, as a full disk does."""
    log = begin(tmp_path)
    log.add_step(report(1, 1.0))
    path = newest(tmp_path)
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, hard))
    try:
        with caplog.at_level("WARNING", logger="ppfcos"):
            for step in range(2, 5):
                log.add_step(report(step, 1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "VisualDLLogger failed" in warning and "\n" not in warning
    assert path.stat().st_size == size
    assert curves(tmp_path)["train/loss"] == [(1, 1.0)]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"file/log"):
        begin(tmp_path / "file" / "log")


def test_texts_are_read_back(tmp_path):
    begin(tmp_path).call("add_text", "config", "epoch: 12\nseed: 3", 0)
    (record,) = LogReader(file_path=str(newest(tmp_path))).get_data("text", "config")
    assert (record.id, record.text.encoded_text_string) == (0, "epoch: 12\nseed: 3")


def test_a_failing_logger_is_dropped_and_the_others_go_on(tmp_path, caplog):
    class Broken(MetricLogger):
        def add_scalars(self, values, position):
            raise ZeroDivisionError("no\nfile")

    loggers = MetricLoggers([Broken(), *begin(tmp_path).loggers])
    with caplog.at_level("WARNING", logger="ppfcos"):
        for step in (1, 2):
            loggers.add_step(report(step, 1.0))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "Broken failed" in warning and "\n" not in warning
    assert curves(tmp_path)["train/loss"] == [(1, 1.0), (2, 1.0)]


# Images


def _black_pictures(folder: Path, sizes: list[tuple[int, int]]) -> DetectionData:
    """Black images of these heights and widths, each with an object from a quarter to a half of its sides."""
    records = []
    for number, (height, width) in enumerate(sizes):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))
        box = np.array([[width / 4, height / 4, width / 2, height / 2]], np.float32)
        record = {"im_id": np.array([number + 100]), "im_file": str(path), "h": height, "w": width}
        records.append({**record, "gt_bbox": box, "gt_class": np.zeros((1, 1), np.int32)})
    return DetectionData(
        "EvalDataset", "drawn", records, [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    )


def _has(picture: np.ndarray, colour: tuple, x: int, y: int) -> bool:
    return bool((picture[y - 1 : y + 2, x - 1 : x + 2] == colour).all(axis=2).any())


def test_ground_truth_and_detections_are_drawn_at_their_positions(tmp_path):
    data = _black_pictures(tmp_path, [(400, 320), (1600, 1280)])
    found = [
        {"image_id": 100, "category_id": 9, "bbox": [200, 240, 100, 120], "score": 0.9},
        {"image_id": 101, "category_id": 9, "bbox": [800, 960, 400, 480], "score": 0.3},
        {"image_id": 101, "category_id": 7, "bbox": [100, 100, 90, 900], "score": 0.29},
        {"image_id": 999, "category_id": 7, "bbox": [0, 0, 90, 90], "score": 0.9},
    ]
    (small_name, small), (large_name, large) = ValidationImages(data, 5).draw(found)
    assert (small_name, large_name) == ("1_0.png", "2_1.png")
    assert small.shape == (400, 320, 3)
    assert large.shape == (640, 512, 3)
    for picture, scale in ((small, 1), (large, 1.6)):
        for x, y in ((80, 150), (160, 150), (120, 200)):
            assert _has(picture, GROUND_TRUTH_COLOR, round(x * scale), round(y * scale))
        for x, y in ((200, 300), (300, 300), (250, 360)):
            assert _has(picture, class_color(1), round(x * scale), round(y * scale))
        assert not (picture == class_color(0)).all(axis=2).any()


def test_validation_images_are_spread_over_the_set(tmp_path):
    data = _black_pictures(tmp_path, [(40, 40)] * 10)
    data.records[0]["gt_bbox"] = np.zeros((0, 4), np.float32)  # not chosen: nothing is to be found in it
    pictures = ValidationImages(data, 3)
    names = [[name for name, _ in pictures.draw([])] for _ in range(2)]
    assert names == [["1_1.png", "2_5.png", "3_9.png"]] * 2
    (tmp_path / "5.png").write_bytes(b"no picture")
    assert [name for name, _ in pictures.draw([])] == ["1_1.png", "3_9.png"]
    assert not list(ValidationImages(data, 0).draw([]))


def test_images_are_read_back(tmp_path):
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[:, 40:] = (255, 0, 0)  # blue
    log = begin(tmp_path)
    for epochs in (1, 2):
        log.call("add_images", [("1_a b%.jpg", picture)], epochs)
    first, second = LogReader(file_path=str(newest(tmp_path))).get_data("image", "images/1_a b%.jpg")
    assert (first.id, second.id) == (1, 2)
    encoded = np.frombuffer(first.image.encoded_image_string, np.uint8)
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded.shape == picture.shape
    for part in (slice(0, 32), slice(48, 80)):  # JPEG blurs the colours at the edge between the two
        np.testing.assert_allclose(decoded[:, part], picture[:, part], atol=12)


def test_validation_images_of_a_real_data_set(tinycoco, root):
    sets = {"dataset_dir": tinycoco, "image_dir": "images/val2017"}
    overrides = [f"EvalDataset.{key}={value}" for key, value in sets.items()]
    cfg = load_config(root / "configs" / "fcos_r50_fpn_1x_coco.yml", overrides)
    data = build_dataset(cfg, "EvalDataset")
    found = [{**note, "score": 0.9} for note in data.coco_ground_truth()["annotations"]]
    pictures = list(ValidationImages(data, cfg["vdl_images"]).draw(found))
    assert len(pictures) == 4
    for name, picture in pictures:
        photograph = cv2.imread(str(tinycoco / "images" / "val2017" / name.split("_", 1)[1]))
        assert picture.shape == photograph.shape  # 640 pixels at most, as all of COCO's
        changed = (picture != photograph).any(axis=2)
        assert 0 < changed.mean() < 0.7


# The page


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """VisualDL's server of a folder: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("visualdl")
    arguments = ["--logdir", folder, "--host", "127.0.0.1", "--port", port, "--language", "en"]
    arguments += ["--disable-telemetry", "--cache-timeout", 0.001]  # 0: for ever
    server = subprocess.Popen(
        [str(part) for part in (program, *arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "NO_PROXY": "*"},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(server, f"{address}/alive")
        yield f"{address}/app"
    finally:
        server.kill()
        server.wait()


def _wait_for(server: subprocess.Popen, address: str) -> None:
    for _ in range(300):
        assert server.poll() is None, "the server has ended"
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(0.1)
    raise TimeoutError(address)


def points(address: str, run: Path, tag: str) -> list[tuple[int, float]]:
    """The points of a curve that the server sends to the page."""
    query = urllib.parse.urlencode({"run": run, "tag": tag})
    with urllib.request.urlopen(f"{address}/api/scalar/list?{query}", timeout=30) as answer:
        content = json.load(answer)
    assert content["status"] == 0, content
    return [(step, value) for _, step, value in content["data"]]


def last_point_becomes(address: str, run: Path, tag: str, wanted: tuple[int, float]) -> bool:
    """Wait for a point: the server reads the log after it answers a request."""
    for _ in range(100):
        if points(address, run, tag)[-1] == wanted:
            return True
        time.sleep(0.1)
    return False


def test_an_open_page_continues_after_a_resume(tmp_path):
    folder = tmp_path / "run"
    log = begin(folder)
    for step in range(1, 5):
        log.add_step(report(step, float(step)))
    with served(tmp_path) as address:
        assert points(address, folder, "train/loss") == [(step, float(step)) for step in range(1, 5)]
        log = begin(folder, steps=3)
        log.add_step(report(4, 9.0))
        assert last_point_becomes(address, folder, "train/loss", (4, 9.0))
        log.add_step(report(5, 11.0))
        assert last_point_becomes(address, folder, "train/loss", (5, 11.0))
    with served(tmp_path) as address:
        expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 9.0), (5, 11.0)]
        assert points(address, folder, "train/loss") == expected


def test_the_server_handles_special_characters_in_class_names(tmp_path):
    names = ("50% off", "and/or", "Füchse & Söhne?", "#1")
    log = begin(tmp_path / "run")
    log.call("add_evaluation", CocoMetrics((0.5,) * 12, dict.fromkeys(names, 0.25)), 2)
    with served(tmp_path) as address:
        for name in names:
            assert points(address, tmp_path / "run", f"eval_AP_of_class/{name}") == [(2, 0.25)]
