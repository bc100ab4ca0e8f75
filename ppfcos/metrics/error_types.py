"""Error types of a detector and the AP that each costs.

TIDE (Bolya et al., ECCV 2020, arXiv 2008.08115, section 2): each wrong detection has one type; an object is
missed if no wrong detection would match it once its class or box is fixed. The cost of a type is the rise of
AP at IoU 0.50 if all errors of that type alone were fixed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppfcos.metrics.matching import IOU_THRESHOLD, NONE, Matching

ERROR_TYPES = ("class", "localisation", "both", "duplicate", "background", "missed")
CLASS, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(ERROR_TYPES))

BACKGROUND_IOU = 0.1  # TIDE's: up to it a detection is background
RECALLS = np.linspace(0, 1, 101)  # at which COCO samples the precision


class Errors(NamedTuple):
    """Errors of D detections and G objects of C classes; T is the number of ERROR_TYPES.

    Attributes:
        types: [D] index of ERROR_TYPES; NONE for a correct or ignored detection.
        missed: [G] bool.
        counts: [C, T] errors by class (of the detection, or of the missed object) and type.
        ap: [C] AP at IoU 0.50; NaN for a class without objects.
        costs: [C, T] change of `ap` if one type were fixed.
        cost: [T] rise of the mean AP over classes, at least 0.
        false_positives: rise of the mean AP if all wrong detections ranked below the correct ones.
        false_negatives: rise of the mean AP if unmatched objects did not count.
    """

    types: np.ndarray
    missed: np.ndarray
    counts: np.ndarray
    ap: np.ndarray
    costs: np.ndarray
    cost: np.ndarray
    false_positives: float
    false_negatives: float


class _Ranking(NamedTuple):
    """The input of AP: labels [N], scores [N] and hits [N] of detections, and the number of objects [C]."""

    labels: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    objects: np.ndarray

    def without_objects(self, labels: np.ndarray) -> _Ranking:
        return self._replace(objects=self.objects - np.bincount(labels, minlength=len(self.objects)))


def find_errors(matching: Matching) -> Errors:
    """Assign an error type to each detection and compute the costs.

    As in the authors' tool, a class whose objects are all missed has AP 0 if these are fixed. Unlike there,
    detections that COCO ignores (inside a crowd) are never errors.
    """
    objects, detections = matching.ground_truth, matching.detections
    types = _error_types(matching)
    target = np.select(
        [types == LOCALIZATION, types == CLASS], [matching.same_object, matching.other_object], NONE
    )
    unmatched = ~objects.crowd & (matching.detection_of == NONE)
    reached = np.zeros(len(unmatched), bool)
    reached[target[target != NONE]] = True
    missed = unmatched & ~reached

    object_counts = matching.objects.astype(float)
    object_counts[object_counts == 0] = np.nan
    labels = np.where(matching.ignored, NONE, detections.labels)
    before = _Ranking(labels, detections.scores, matching.hits, object_counts)
    fixed_target = _fixed_targets(matching, target, unmatched)
    after = [_fix(before, types == error_type, fixed_target, objects.labels) for error_type in range(MISSED)]
    after.append(before.without_objects(objects.labels[missed]))
    ap = average_precisions(*before)
    costs = np.stack([average_precisions(*ranking) - ap for ranking in after], axis=1)
    hits_first = before._replace(scores=before.hits.astype(float))
    all_matched = before.without_objects(objects.labels[unmatched])

    counts = np.zeros((matching.classes, len(ERROR_TYPES)), np.int64)
    wrong = types != NONE
    np.add.at(counts, (detections.labels[wrong], types[wrong]), 1)
    np.add.at(counts, (objects.labels[missed], MISSED), 1)
    return Errors(
        types,
        missed,
        counts,
        ap,
        costs,
        np.maximum(_mean(costs), 0),
        float(_mean(average_precisions(*hits_first) - ap)),
        float(_mean(average_precisions(*all_matched) - ap)),
    )


def average_precisions(
    labels: np.ndarray, scores: np.ndarray, hits: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """AP of each class as COCO defines it: the mean precision at 101 recalls.

    Args:
        labels: [N] of the detections, image by image.
        scores: [N].
        hits: [N] bool: whether a detection matches an object.
        objects: [C] number of objects of each class; NaN for a class that never had any.

    Returns:
        [C]; NaN for a class that never had an object, 0 for one that has none left.
    """
    result = np.where(np.isnan(objects), np.nan, 0.0)
    for label in np.flatnonzero(objects > 0):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        true_positives = np.cumsum(hits[rows])
        precision = true_positives / np.arange(1, len(rows) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(true_positives / objects[label], RECALLS, side="left")
        result[label] = np.append(precision, 0.0)[at].mean()
    return result


def _error_types(matching: Matching) -> np.ndarray:
    """[D] the first type that applies, in the order of the authors' tool."""
    same, other = matching.same_iou, matching.other_iou
    return np.select(
        [
            matching.hits | matching.ignored,
            (same >= BACKGROUND_IOU) & (same < IOU_THRESHOLD),
            other >= IOU_THRESHOLD,
            same >= IOU_THRESHOLD,
            np.maximum(same, other) <= BACKGROUND_IOU,
        ],
        [NONE, LOCALIZATION, CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )


def _fixed_targets(matching: Matching, target: np.ndarray, unmatched: np.ndarray) -> np.ndarray:
    """[D] row of the object that a detection matches once fixed, or NONE: the best of each object's only."""
    rows = np.flatnonzero(target != NONE)
    rows = rows[unmatched[target[rows]]]
    rows = rows[np.argsort(-matching.detections.scores[rows], kind="stable")]
    _, first = np.unique(target[rows], return_index=True)
    fixed = np.full(len(target), NONE, np.int64)
    fixed[rows[first]] = target[rows[first]]
    return fixed


def _fix(before: _Ranking, wrong: np.ndarray, target: np.ndarray, object_labels: np.ndarray) -> _Ranking:
    """Turn the wrong detections that have a target into hits, and remove the others."""
    fixed = wrong & (target != NONE)
    labels = before.labels.copy()
    labels[wrong] = NONE
    labels[fixed] = object_labels[target[fixed]]
    return before._replace(labels=labels, hits=before.hits | fixed)


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over classes with objects; 0 without any."""
    known = ~np.isnan(values[:, 0] if values.ndim > 1 else values)
    return values[known].mean(axis=0) if known.any() else np.zeros(values.shape[1:])
