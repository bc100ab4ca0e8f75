"""COCO metrics, compared with pycocotools run on files."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ppfcos.errors import DataError
from ppfcos.metrics.coco import METRIC_NAMES, RECALLS, CocoMetrics, evaluate_detections

# pycocotools adds 2.2e-16 to the denominators of its precisions, faster-coco-eval does not.
TOLERANCE = 1e-15


def random_boxes(rng, count: int) -> np.ndarray:
    """[count, 4] x, y, width, height, of all of COCO's size classes, in an image of 640x480."""
    sizes = np.exp(rng.uniform(np.log(4), np.log(400), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * np.maximum([640, 480] - sizes, 1)
    return np.concatenate([corners, sizes], axis=1).round(2)


def random_ground_truth(rng, images: int = 12, classes: int = 5, most: int = 15) -> dict:
    """COCO annotations in which the first image and the first class have no object."""
    annotations = []
    for image in range(1, images):
        for box in random_boxes(rng, int(rng.integers(0, most))):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.integers(1, classes)) * 3,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * rng.uniform(0.4, 1)),  # of the segmentation
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    return {
        "images": [{"id": image, "width": 640, "height": 480} for image in range(images)],
        "categories": [{"id": 3 * label, "name": f"class {label}"} for label in range(classes)],
        "annotations": annotations,
    }


def random_results(rng, ground_truth: dict, copies: int = 2, extra: int = 10) -> list[dict]:
    """Detections near the objects, duplicates, wrong classes and false positives; some scores are equal."""
    classes = [category["id"] for category in ground_truth["categories"]]
    results = []
    for annotation in ground_truth["annotations"]:
        for _ in range(int(rng.integers(0, copies + 1))):
            box = np.asarray(annotation["bbox"], float)
            box[:2] += rng.normal(0, 0.1, 2) * box[2:]
            box[2:] *= np.exp(rng.normal(0, 0.15, 2))
            label = annotation["category_id"] if rng.random() < 0.85 else int(rng.choice(classes))
            results.append((annotation["image_id"], label, box))
    for image in ground_truth["images"]:
        results += [(image["id"], int(rng.choice(classes)), box) for box in random_boxes(rng, extra)]
    return [
        {
            "image_id": image,
            "category_id": label,
            "bbox": box.tolist(),
            "score": round(float(rng.random()), 2),
        }
        for image, label, box in results
    ]


def run_pycocotools(ground_truth: dict, detections: list[dict], folder: Path) -> tuple[COCOeval, str]:
    """pycocotools on files, as its own demo does, and the table that it prints."""
    (folder / "ground_truth.json").write_text(json.dumps(ground_truth))
    (folder / "results.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "ground_truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluation.summarize()
    return evaluation, printed.getvalue().rstrip("\n")


def check_against_pycocotools(ground_truth: dict, detections: list[dict], folder: Path) -> CocoMetrics:
    evaluation, printed = run_pycocotools(ground_truth, detections, folder)
    metrics = evaluate_detections(ground_truth, detections)
    assert metrics.stats == pytest.approx(evaluation.stats.tolist(), rel=0, abs=TOLERANCE)
    assert metrics.table() == printed
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # [IoU, recall, class] of all areas
    for k, category in enumerate(ground_truth["categories"]):
        known = precision[:, :, k] > -1
        ap = precision[:, :, k][known].mean() if known.any() else -1
        assert metrics.per_class[category["name"]] == pytest.approx(ap, rel=0, abs=TOLERANCE)
        if known.any():
            curve = metrics.precision[category["name"]]
            assert curve == pytest.approx(precision[0, :, k], rel=0, abs=TOLERANCE)
    return metrics


@pytest.mark.parametrize("seed", range(6))
def test_random_boxes(seed, tmp_path):
    rng = np.random.default_rng(seed)
    ground_truth = random_ground_truth(rng)
    metrics = check_against_pycocotools(ground_truth, random_results(rng, ground_truth), tmp_path)
    assert 0.05 < metrics.ap < 0.95
    assert metrics.per_class["class 0"] == -1
    assert metrics.precision.keys() == metrics.per_class.keys() - {"class 0"}
    assert len(metrics.mean_precision()) == len(RECALLS)
    assert np.mean(metrics.mean_precision()) == pytest.approx(metrics.named()["AP50"], abs=1e-12)


def test_more_than_a_hundred_detections_per_image(tmp_path):
    rng = np.random.default_rng(0)
    ground_truth = random_ground_truth(rng, images=3, classes=2, most=40)
    check_against_pycocotools(ground_truth, random_results(rng, ground_truth, copies=5, extra=150), tmp_path)


def test_another_limit_of_detections_counts_as_in_pycocotools(tmp_path):
    rng = np.random.default_rng(1)
    ground_truth = random_ground_truth(rng, images=3, classes=2, most=40)
    detections = random_results(rng, ground_truth, copies=5, extra=150)
    evaluation, _ = run_pycocotools(ground_truth, detections, tmp_path)
    evaluation.params.maxDets = [1, 10, 300]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    named = evaluate_detections(ground_truth, detections, max_detections=300).named()
    for name, values in (
        ("AP", precision[:, :, :, 0, 2]),
        ("APs", precision[:, :, :, 1, 2]),
        ("AR10", recall[:, :, 0, 1]),
        ("AR100", recall[:, :, 0, 2]),
    ):
        assert named[name] == pytest.approx(values[values > -1].mean(), rel=0, abs=TOLERANCE)
    assert named != evaluate_detections(ground_truth, detections).named()


def test_perfect_detections_of_a_crowded_image(caplog):
    """COCO's 100 detections reach a recall of 100/576, which covers 18 of the 101 recalls."""
    boxes = [[20.0 * (i % 24), 20.0 * (i // 24), 15.0, 15.0] for i in range(576)]
    categories = [{"id": 1, "name": "cell"}]
    annotations = [{"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(boxes, 1)]
    ground_truth = {"images": [{"id": 1}], "categories": categories, "annotations": annotations}
    detections = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for box in boxes]
    assert evaluate_detections(ground_truth, detections).ap == pytest.approx(18 / 101)
    assert "max_detections" in caplog.text
    caplog.clear()
    metrics = evaluate_detections(ground_truth, detections, max_detections=1000)
    assert metrics.ap == 1
    assert "maxDets=1000" in metrics.table()
    assert not caplog.records


@pytest.mark.parametrize("change", [lambda number: number - 3, lambda number: number + 50, str])
def test_a_category_that_the_annotations_lack(change):
    ground_truth = random_ground_truth(np.random.default_rng(0))
    detections = [
        {**annotation, "category_id": change(annotation["category_id"]), "score": 0.9}
        for annotation in ground_truth["annotations"]
    ]
    if change(3) == 0:  # the first class, which no object has, is category 0
        ground_truth["categories"] = ground_truth["categories"][1:]
    with pytest.raises(DataError, match="category"):
        evaluate_detections(ground_truth, detections)


def test_real_annotations_with_crowds(tinycoco, tmp_path):
    for path in sorted((tinycoco / "annotations").glob("instances_*.json")):
        ground_truth = json.loads(path.read_text())
        detections = random_results(np.random.default_rng(0), ground_truth, extra=5)
        evaluation, printed = run_pycocotools(ground_truth, detections, tmp_path)
        metrics = evaluate_detections(ground_truth, detections)
        assert metrics.stats == pytest.approx(evaluation.stats.tolist(), rel=0, abs=TOLERANCE)
        assert metrics.table() == printed


def test_no_detections_no_objects_and_perfect_detections():
    ground_truth = random_ground_truth(np.random.default_rng(1))
    metrics = evaluate_detections(ground_truth, [])
    assert metrics.stats == (0.0,) * 12
    assert set(metrics.per_class.values()) == {0.0, -1.0}
    ground_truth["annotations"] = [each for each in ground_truth["annotations"] if not each["iscrowd"]]
    detections = [{**annotation, "score": 0.9} for annotation in ground_truth["annotations"]]
    assert evaluate_detections(ground_truth, detections).ap == pytest.approx(1, abs=1e-9)
    assert evaluate_detections({**ground_truth, "annotations": []}, detections).stats == (-1.0,) * 12


def test_ids_from_zero_and_missing_areas_do_not_matter():
    rng = np.random.default_rng(2)
    ground_truth = random_ground_truth(rng)
    for annotation in ground_truth["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    detections = random_results(rng, ground_truth)
    bare = copy.deepcopy(ground_truth)
    for index, annotation in enumerate(bare["annotations"]):
        annotation["id"] = index
        del annotation["area"]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    assert evaluate_detections(bare, detections) == evaluate_detections(ground_truth, detections)


def test_nothing_is_printed_and_the_inputs_stay_unchanged(capfd):
    rng = np.random.default_rng(3)
    ground_truth = random_ground_truth(rng)
    detections = random_results(rng, ground_truth)
    before = copy.deepcopy((ground_truth, detections))
    evaluate_detections(ground_truth, detections)
    assert (ground_truth, detections) == before
    assert capfd.readouterr() == ("", "")


def test_detections_of_another_data_set_are_refused():
    stray = {"image_id": 999, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5}
    with pytest.raises(DataError, match="image 999"):
        evaluate_detections(random_ground_truth(np.random.default_rng(0)), [stray])


def test_tables():
    metrics = CocoMetrics(tuple(np.linspace(0, 1, 12)), {"cat": 0.25, "zebra": -1.0})
    assert list(metrics.named()) == list(METRIC_NAMES)
    assert metrics.ap == 0
    assert metrics.class_table().splitlines() == [" cat    AP = 0.250", " zebra  AP = no objects"]
