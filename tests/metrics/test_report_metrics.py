"""Matching, error types, confusion and calibration, compared with pycocotools, tidecv and loops."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from helpers.evaluation_cases import random_detections, random_truth
from ppdet.metrics.map_utils import DetectionMAP
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ppfcos.metrics import error_types
from ppfcos.metrics.coco import CURVE_NAMES, METRIC_NAMES, evaluate_detections
from ppfcos.metrics.confusion import calibrate, confusion_matrix
from ppfcos.metrics.error_types import ERROR_TYPES, average_precisions, find_errors
from ppfcos.metrics.matching import NONE, image_order, match
from ppfcos.metrics.thresholds import best_f1
from ppfcos.metrics.voc import voc_average_precisions

SEEDS = range(4)


def random_case(seed: int, **more):
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, **more)
    return truth, random_detections(rng, truth)


def run_pycocotools(truth: dict, detections: list[dict]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(row) for row in detections]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("seed", SEEDS)
def test_matches_equal_those_of_pycocotools(seed):
    truth, detections = random_case(seed)
    evaluation = run_pycocotools(truth, detections)
    expected = {}  # by (image, class, score) of a detection: the box of its object, "wrong" or "ignored"
    boxes = {row["id"]: tuple(row["bbox"]) for row in truth["annotations"]}
    for entry in evaluation.evalImgs:
        if entry is None or entry["aRng"] != [0, 1e10]:
            continue
        for score, number, ignored in zip(entry["dtScores"], entry["dtMatches"][0], entry["dtIgnore"][0]):
            key = entry["image_id"], entry["category_id"], score
            expected[key] = "ignored" if ignored else boxes[int(number)] if number else "wrong"
    matching = match(truth, detections)
    images = image_order(truth)
    labels = [category["id"] for category in truth["categories"]]
    found = matching.detections
    ours = {}
    for d in range(len(found.scores)):
        key = images[found.images[d]], labels[found.labels[d]], found.scores[d]
        object_row = matching.object_of[d]
        assert object_row == NONE or matching.detection_of[object_row] == d
        state = "ignored" if matching.ignored[d] else "wrong"
        ours[key] = state if object_row == NONE else tuple(matching.ground_truth.boxes[object_row])
    assert ours == expected
    assert {"ignored", "wrong"} < set(ours.values())


def test_the_best_hundred_of_a_class_in_an_image_count():
    truth, detections = random_case(0, images=2, classes=1)
    detections = [{**row, "score": row["score"] * k / 40} for row in detections for k in range(1, 40)]
    evaluation = run_pycocotools(truth, detections)
    matching = match(truth, detections)
    per_image = np.bincount(matching.detections.images)
    assert per_image.tolist() == [100, 100]
    ap = average_precisions(
        np.where(matching.ignored, NONE, 0), matching.detections.scores, matching.hits, matching.objects
    )
    assert ap[0] == pytest.approx(evaluation.eval["precision"][0, :, 0, 0, 2].mean(), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_metrics_and_curves_of_each_class_equal_those_of_pycocotools(seed):
    truth, detections = random_case(seed)
    truth["categories"].append({"id": 99, "name": "never seen"})
    precision = run_pycocotools(truth, detections).eval["precision"]
    recall = run_pycocotools(truth, detections).eval["recall"]
    figures = evaluate_detections(truth, detections)
    assert set(figures.class_stats.pop(99)) == {-1.0}
    assert 99 not in figures.class_curves
    for k, (category, stats) in enumerate(figures.class_stats.items()):
        at_all = precision[:, :, k, 0, 2]
        curves = figures.class_curves[category]
        expected = dict(zip(CURVE_NAMES, (at_all[0], at_all[5], at_all.mean(axis=0))))
        for name in CURVE_NAMES:
            np.testing.assert_allclose(curves[name], expected[name], atol=1e-15)
        named = dict(zip(METRIC_NAMES, stats))
        assert named["AP"] == pytest.approx(at_all.mean(), abs=1e-12)
        assert named["AP75"] == pytest.approx(at_all[5].mean(), abs=1e-12)
        assert named["APs"] == pytest.approx(precision[:, :, k, 1, 2].mean(), abs=1e-12)
        assert named["ARl"] == pytest.approx(recall[:, k, 3, 2].mean(), abs=1e-12)
    errors = find_errors(match(truth, detections))
    np.testing.assert_allclose(errors.ap[:-1], precision[0, :, :-1, 0, 2].mean(axis=0), atol=1e-12)
    assert np.isnan(errors.ap[-1])


def run_tidecv(truth: dict, detections: list[dict]):
    """The costs of all error types, of false positives and negatives, and the counts by the authors' tool."""
    tidecv = pytest.importorskip("tidecv", reason="the authors' tool (requirements/dev.txt)")
    objects, found = tidecv.Data("truth"), tidecv.Data("found")
    for category in truth["categories"]:
        objects.add_class(category["id"], category["name"])
    for image in truth["images"]:
        objects.add_image(image["id"], str(image["id"]))
    for row in truth["annotations"]:
        objects.add_ground_truth(row["image_id"], row["category_id"], row["bbox"])
    for row in detections:
        found.add_detection(row["image_id"], row["category_id"], row["score"], row["bbox"])
    run = tidecv.TIDE().evaluate(objects, found, mode=tidecv.TIDE.BOX)
    names = {"Cls": "class", "Loc": "localisation", "Both": "both", "Dupe": "duplicate"}
    names |= {"Bkg": "background", "Miss": "missed", "FalsePos": "positives", "FalseNeg": "negatives"}
    costs = {names[kind.short_name]: cost / 100 for kind, cost in run.fix_main_errors().items()}
    special = {names[kind.short_name]: cost / 100 for kind, cost in run.fix_special_errors().items()}
    counts = {names[kind.short_name]: number for kind, number in run.count_errors().items()}
    return costs, special, counts


@pytest.mark.parametrize("seed", range(8))
def test_errors_and_costs_equal_those_of_the_authors_tool(seed, monkeypatch):
    # Its recalls are x / 100, which differ from COCO's in the last bit.
    monkeypatch.setattr(error_types, "RECALLS", np.arange(101) / 100)
    truth, detections = random_case(seed, images=30, crowds=0)  # detections in crowds are errors there
    costs, special, counts = run_tidecv(truth, detections)
    errors = find_errors(match(truth, detections))
    assert dict(zip(ERROR_TYPES, errors.counts.sum(axis=0).tolist())) == counts
    assert min(counts.values()) > 0
    assert dict(zip(ERROR_TYPES, errors.cost)) == pytest.approx(costs, abs=1e-9)
    assert max(errors.cost) > 0.02
    assert errors.false_positives == pytest.approx(special["positives"], abs=1e-9)
    assert errors.false_negatives == pytest.approx(special["negatives"], abs=1e-9)


def naive_error_type(row: dict, state: str, truth: dict) -> str | None:
    """The error type of one detection, from the paper's section 2.2."""
    if state != "wrong":
        return None
    same, other = [0.0], [0.0]
    for annotation in truth["annotations"]:
        if annotation["image_id"] == row["image_id"] and not annotation["iscrowd"]:
            overlap = float(mask.iou(np.array([row["bbox"]]), np.array([annotation["bbox"]]), [0])[0, 0])
            (same if annotation["category_id"] == row["category_id"] else other).append(overlap)
    if 0.1 <= max(same) < 0.5:
        return "localisation"
    if max(other) >= 0.5:
        return "class"
    if max(same) >= 0.5:
        return "duplicate"
    return "background" if max(same + other) <= 0.1 else "both"


@pytest.mark.parametrize("seed", SEEDS)
def test_detections_in_a_crowd_are_no_errors(seed):
    truth, detections = random_case(seed, crowds=0.3)
    matching = match(truth, detections)
    errors = find_errors(matching)
    by_score = {row["score"]: row for row in detections}
    for d, score in enumerate(matching.detections.scores):
        state = "ignored" if matching.ignored[d] else "hit" if matching.hits[d] else "wrong"
        kind = naive_error_type(by_score[score], state, truth)
        assert (None if errors.types[d] == NONE else ERROR_TYPES[errors.types[d]]) == kind
    assert matching.ignored.any()
    assert not errors.missed[matching.ground_truth.crowd].any()


def test_the_cost_of_a_box_with_a_low_iou():
    """Two objects: one is matched, the other's detection has IoU 0.25."""
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]},
            {"image_id": 1, "category_id": 1, "bbox": [50, 0, 10, 10]},
        ],
    }
    found = [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [56, 0, 10, 10], "score": 0.8},
    ]
    errors = find_errors(match(truth, found))
    before = 51 / 101  # COCO's 101 recalls, of which 0 to 0.5 are reached
    assert errors.ap.tolist() == [pytest.approx(before)]
    assert errors.cost[error_types.LOCALIZATION] == pytest.approx(1 - before)
    assert not np.delete(errors.cost, error_types.LOCALIZATION).any()


@pytest.mark.parametrize("empty", ["detections", "objects", "both"])
def test_without_detections_or_objects(empty):
    truth, detections = random_case(0)
    if empty != "detections":
        truth["annotations"] = []
    if empty != "objects":
        detections = []
    matching = match(truth, detections)
    errors = find_errors(matching)
    assert np.isfinite(errors.cost).all()
    assert errors.counts.sum() == len(detections) + matching.objects.sum()
    assert confusion_matrix(matching, 0.0).sum() == errors.counts.sum()
    assert calibrate(matching.detections.scores, matching.hits).error >= 0


def naive_confusion(truth: dict, detections: list[dict], lowest: float) -> np.ndarray:
    """The definition in `confusion_matrix`, object by object."""
    position = {category["id"]: label for label, category in enumerate(truth["categories"])}
    matrix = np.zeros((len(position) + 1,) * 2, int)
    for image in truth["images"]:
        objects = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        found = [row for row in detections if row["image_id"] == image["id"] and row["score"] >= lowest]
        found.sort(key=lambda row: -row["score"])
        free = {i for i, row in enumerate(objects) if not row["iscrowd"]}
        left = []
        for row in found:
            overlap = mask.iou(
                np.array([row["bbox"]]),
                np.array([o["bbox"] for o in objects]).reshape(-1, 4),
                [o["iscrowd"] for o in objects],
            )
            overlap = np.reshape(overlap, -1)
            same = [i for i in free if objects[i]["category_id"] == row["category_id"] and overlap[i] >= 0.5]
            if same:
                best = max(same, key=lambda i: overlap[i])
                free.remove(best)
                matrix[(position[row["category_id"]],) * 2] += 1
            elif not any(
                o["iscrowd"] and o["category_id"] == row["category_id"] and overlap[i] >= 0.5
                for i, o in enumerate(objects)
            ):
                left.append((row, overlap))
        for row, overlap in left:
            others = [
                i
                for i, o in enumerate(objects)
                if not o["iscrowd"] and o["category_id"] != row["category_id"] and overlap[i] >= 0.5
            ]
            nearest = max(others, key=lambda i: overlap[i], default=None)
            if nearest in free:
                free.remove(nearest)
                true = position[objects[nearest]["category_id"]]
            else:
                true = len(position)
            matrix[true, position[row["category_id"]]] += 1
        for i in free:
            matrix[position[objects[i]["category_id"]], -1] += 1
    return matrix


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lowest", [0.0, 0.3, 0.99])
def test_the_confusion_matrix_equals_a_loop(seed, lowest):
    truth, detections = random_case(seed)
    matrix = confusion_matrix(match(truth, detections), lowest)
    assert matrix.tolist() == naive_confusion(truth, detections, lowest).tolist()
    assert lowest > 0.9 or np.triu(matrix[:-1, :-1], 1).any()


def test_calibration_equals_a_loop():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.random(500), np.arange(11) / 10])  # on the bins' edges too
    hits = rng.random(len(scores)) < scores**2
    result = calibrate(scores, hits)
    error, members = 0.0, [[] for _ in range(10)]
    for score, hit in zip(scores, hits):
        members[max(b for b in range(10) if score >= result.edges[b])].append((score, hit))
    for b, rows in enumerate(members):
        assert result.counts[b] == len(rows)
        mean_score, precision = np.mean(rows, axis=0)
        assert result.scores[b] == pytest.approx(mean_score)
        assert result.precisions[b] == pytest.approx(precision)
        error += len(rows) / len(scores) * abs(mean_score - precision)
    assert result.error == pytest.approx(error)
    assert error > 0.1


def test_calibrated_scores_have_no_error():
    scores = np.repeat([0.25, 0.75], 400)
    hits = (
        np.tile([True, False, False, False], 100).tolist() + np.tile([True, True, True, False], 100).tolist()
    )
    result = calibrate(scores, np.array(hits))
    assert result.error == 0
    assert np.isnan(result.precisions[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_f1_equals_that_of_every_threshold_tried_with_pycocotools(seed):
    truth, detections = random_case(seed)
    detections = [{**row, "score": round(row["score"], 1)} for row in detections]
    ids = [category["id"] for category in truth["categories"]]
    objects = dict.fromkeys(ids, 0)
    for annotation in truth["annotations"]:
        objects[annotation["category_id"]] += not annotation["iscrowd"]
    objects["all"] = sum(objects.values())
    tried: dict = {number: [] for number in (*ids, "all")}
    for score in sorted({row["score"] for row in detections}, reverse=True):
        correct, wrong = dict.fromkeys(ids, 0), dict.fromkeys(ids, 0)
        for entry in run_pycocotools(truth, [row for row in detections if row["score"] >= score]).evalImgs:
            if entry is not None and entry["aRng"] == [0, 1e10]:
                known = ~entry["dtIgnore"][0]
                correct[entry["category_id"]] += int((known & (entry["dtMatches"][0] > 0)).sum())
                wrong[entry["category_id"]] += int((known & (entry["dtMatches"][0] == 0)).sum())
        correct["all"], wrong["all"] = sum(correct.values()), sum(wrong.values())
        for number, hits in correct.items():
            if hits:
                precision, recall = hits / (hits + wrong[number]), hits / objects[number]
                f1 = 2 * precision * recall / (precision + recall)
                tried[number].append((f1, score, precision, recall))
    overall, of_class = best_f1(match(truth, detections))
    for number, point in zip((*ids, "all"), (*of_class, overall)):
        f1, score, precision, recall = max(tried[number])
        assert point == pytest.approx((score, f1, precision, recall), abs=1e-12)


def test_there_is_no_best_f1_without_correct_detections():
    truth, _ = random_case(0)
    wrong = [{"image_id": 10, "category_id": 3, "bbox": [9000, 9000, 5, 5], "score": 0.5}]
    for detections in ([], wrong):
        assert best_f1(match(truth, detections)) == (None, [None] * len(truth["categories"]))


@pytest.mark.parametrize("seed", SEEDS)
def test_voc_ap_equals_that_of_paddledetection_and_of_the_definition(seed):
    truth, detections = random_case(seed, crowds=0)
    truth["categories"].append({"id": 99, "name": "never seen"})
    label_of = {category["id"]: label for label, category in enumerate(truth["categories"])}
    metric = DetectionMAP(len(label_of), is_bbox_normalized=True, catid2name=dict.fromkeys(label_of.values()))
    for image in truth["images"]:
        columns = []
        for rows in (detections, truth["annotations"]):
            own = [row for row in rows if row["image_id"] == image["id"]]
            own.sort(key=lambda row: -row.get("score", 0))
            boxes = [[x, y, x + width, y + height] for x, y, width, height in (row["bbox"] for row in own)]
            columns.append((boxes, [label_of[row["category_id"]] for row in own], own))
        (boxes, labels, own), (gt_boxes, gt_labels, _) = columns
        metric.update(boxes, [row["score"] for row in own], labels, gt_boxes, gt_labels)
    metric.accumulate()
    eleven_point, area = voc_average_precisions(match(truth, detections))
    seen = metric.eval_results
    assert len(seen) == len(label_of) - 1 and np.isnan([eleven_point[-1], area[-1]]).all()
    np.testing.assert_allclose(eleven_point[:-1], [each["ap"] for each in seen], atol=1e-6)
    for value, each in zip(area, seen):  # VOC 2010: precision is the maximum at this or any higher recall
        recalls, precisions = each["recall"], each["precision"]
        expected = 0.0
        for i, recall in enumerate(recalls):
            expected += (recall - (recalls[i - 1] if i else 0)) * max(precisions[i:])
        assert value == pytest.approx(expected, abs=1e-9)
