"""The COCO figures: both backends against pycocotools run by hand, files, printing and all."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest

from ppfcos.errors import ConfigError, DataError
from ppfcos.metrics.coco import METRIC_NAMES, RECALLS, CocoMetrics, evaluate_detections

# pycocotools adds 2.2e-16 to the denominators of its precisions, faster-coco-eval does not: where a single
# detection is a hit, the one says 0.9999999999999998 and the other 1.
TOLERANCES = {"faster_coco_eval": 1e-15, "pycocotools": 0}
BACKENDS = tuple(TOLERANCES)


def _random_boxes(rng, number: int) -> np.ndarray:
    """Boxes of all three of COCO's size classes in an image of 640×480, x, y, width, height."""
    sizes = np.exp(rng.uniform(np.log(4), np.log(400), (number, 2)))
    corners = rng.uniform(0, 1, (number, 2)) * np.maximum([640, 480] - sizes, 1)
    return np.concatenate([corners, sizes], axis=1).round(2)


def _random_truth(rng, images: int = 12, classes: int = 5, most: int = 15) -> dict:
    annotations = []
    for image in range(1, images):  # the first image has no object
        for box in _random_boxes(rng, int(rng.integers(0, most))):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.integers(1, classes)) * 3,  # the first class has no object
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * rng.uniform(0.4, 1)),  # of the outline, as in COCO
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    return {
        "images": [{"id": image, "width": 640, "height": 480} for image in range(images)],
        "categories": [{"id": 3 * number, "name": f"class {number}"} for number in range(classes)],
        "annotations": annotations,
    }


def _jittered(rng, truth: dict, copies: int = 2, extra: int = 10) -> list[dict]:
    """Detections near the objects, some twice, some of the wrong class; false ones; scores with ties."""
    classes = [category["id"] for category in truth["categories"]]
    found = []
    for annotation in truth["annotations"]:
        for _ in range(int(rng.integers(0, copies + 1))):
            box = np.asarray(annotation["bbox"], float)
            box[:2] += rng.normal(0, 0.1, 2) * box[2:]
            box[2:] *= np.exp(rng.normal(0, 0.15, 2))
            label = annotation["category_id"] if rng.random() < 0.85 else int(rng.choice(classes))
            found.append((annotation["image_id"], label, box))
    for image in truth["images"]:
        found += [(image["id"], int(rng.choice(classes)), box) for box in _random_boxes(rng, extra)]
    return [
        {
            "image_id": image,
            "category_id": label,
            "bbox": box.tolist(),
            "score": round(float(rng.random()), 2),
        }
        for image, label, box in found
    ]


def _by_hand(truth: dict, detections: list[dict], folder: Path) -> tuple[list, str]:
    """pycocotools from files, as its own demo does: its twelve figures and the table it prints."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluation.summarize()
    return evaluation.stats.tolist(), printed.getvalue().rstrip("\n")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(6))
def test_random_boxes_give_pycocotools_figures(backend, seed, tmp_path):
    rng = np.random.default_rng(seed)
    truth = _random_truth(rng)
    detections = _jittered(rng, truth)
    stats, printed = _by_hand(truth, detections, tmp_path)
    figures = evaluate_detections(truth, detections, backend)
    assert figures.stats == pytest.approx(stats, rel=0, abs=TOLERANCES[backend])
    assert figures.table() == printed
    assert 0.05 < figures.ap < 0.95  # the case says something


@pytest.mark.parametrize("seed", range(3))
def test_both_backends_give_the_same_ap_for_every_class(seed):
    rng = np.random.default_rng(seed)
    truth = _random_truth(rng)
    detections = _jittered(rng, truth)
    faster, reference = (evaluate_detections(truth, detections, backend) for backend in BACKENDS)
    assert faster.table() == reference.table()
    assert faster.class_table() == reference.class_table()
    assert faster.per_class == pytest.approx(reference.per_class, rel=0, abs=1e-15)
    assert faster.per_class["class 0"] == -1
    with_objects = [ap for ap in faster.per_class.values() if ap != -1]
    assert np.mean(with_objects) == pytest.approx(faster.ap, abs=1e-12)
    assert faster.precision.keys() == reference.precision.keys() == faster.per_class.keys() - {"class 0"}
    for name, precision in faster.precision.items():
        assert precision == pytest.approx(reference.precision[name], rel=0, abs=1e-15)
    assert len(faster.mean_precision()) == len(RECALLS)
    assert np.mean(faster.mean_precision()) == pytest.approx(faster.named()["AP50"], abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_best_hundred_detections_of_an_image_count(backend, tmp_path):
    rng = np.random.default_rng(0)
    truth = _random_truth(rng, images=3, classes=2, most=40)
    detections = _jittered(rng, truth, copies=5, extra=150)
    stats, _ = _by_hand(truth, detections, tmp_path)
    figures = evaluate_detections(truth, detections, backend)
    assert figures.stats == pytest.approx(stats, rel=0, abs=TOLERANCES[backend])


@pytest.mark.parametrize("backend", BACKENDS)
def test_real_annotations_with_crowds(backend, tinycoco, tmp_path):
    for path in sorted((tinycoco / "annotations").glob("instances_*.json")):
        truth = json.loads(path.read_text())
        detections = _jittered(np.random.default_rng(0), truth, extra=5)
        stats, printed = _by_hand(truth, detections, tmp_path)
        figures = evaluate_detections(truth, detections, backend)
        assert figures.stats == pytest.approx(stats, rel=0, abs=TOLERANCES[backend])
        assert figures.table() == printed


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detections_at_all_are_zeros(backend):
    truth = _random_truth(np.random.default_rng(0))
    figures = evaluate_detections(truth, [], backend)
    assert figures.stats == (0.0,) * 12
    assert set(figures.per_class.values()) == {0.0, -1.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_objects_at_all_are_minus_ones(backend):
    truth = _random_truth(np.random.default_rng(0))
    detections = _jittered(np.random.default_rng(0), truth)
    truth["annotations"] = []
    assert evaluate_detections(truth, detections, backend).stats == (-1.0,) * 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_perfect_detections_have_an_ap_of_one(backend):
    truth = _random_truth(np.random.default_rng(1))
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    detections = [{**a, "score": 0.9} for a in truth["annotations"]]
    assert evaluate_detections(truth, detections, backend).ap == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_that_number_from_zero_or_leave_the_area_out_change_nothing(backend):
    rng = np.random.default_rng(2)
    truth = _random_truth(rng)
    for annotation in truth["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    detections = _jittered(rng, truth)
    expected = evaluate_detections(truth, detections, backend)
    bare = copy.deepcopy(truth)
    for number, annotation in enumerate(bare["annotations"]):
        annotation["id"] = number
        del annotation["area"]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    assert evaluate_detections(bare, detections, backend) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_printed_and_nothing_is_changed(backend, capfd):
    rng = np.random.default_rng(3)
    truth = _random_truth(rng)
    detections = _jittered(rng, truth)
    before = copy.deepcopy((truth, detections))
    evaluate_detections(truth, detections, backend)
    assert (truth, detections) == before
    assert capfd.readouterr() == ("", "")


def test_detections_of_another_data_set_are_refused():
    truth = _random_truth(np.random.default_rng(0))
    stray = {"image_id": 999, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5}
    with pytest.raises(DataError, match="image 999"):
        evaluate_detections(truth, [stray])


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="faster_coco_eval or pycocotools"):
        evaluate_detections(_random_truth(np.random.default_rng(0)), [], "fastest")


def test_tables_name_the_figures_and_the_classes():
    figures = CocoMetrics(tuple(np.linspace(0, 1, 12)), {"cat": 0.25, "zebra": -1.0})
    assert list(figures.named()) == list(METRIC_NAMES)
    assert figures.ap == 0
    assert figures.class_table().splitlines() == [" cat    AP = 0.250", " zebra  AP = no objects"]
