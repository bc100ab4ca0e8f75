"""The kinds of error that a detector makes, and what AP each kind costs.

After TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
arXiv 2008.08115, section 2): every wrong detection is of one kind; an object that none of the others would
find if it were mended is missed. What a kind costs is by how much AP at an IoU of 0.50 would rise if all
errors of this kind alone were mended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppfcos.metrics.matching import FOUND_IOU, NONE, Matching

KINDS = ("class", "localisation", "both", "duplicate", "background", "missed")
CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))

BACKGROUND_IOU = 0.1  # up to which a detection touches no object; TIDE's
RECALLS = np.linspace(0, 1, 101)  # at which COCO takes the precision


class Errors(NamedTuple):
    """The errors of a run, and their price.

    Attributes:
        kinds: [D] kind of each detection, a number of KINDS; NONE where it is right or within a crowd.
        missed: [G] bool: whether an object is missed.
        counts: [C, K] errors of each class and kind: of the detection's class, or the missed object's.
        ap: [C] AP at an IoU of 0.50 of each class; NaN where it has no objects.
        costs: [C, K] by how much that would rise, or fall, if one kind were mended.
        cost: [K] by how much the mean over the classes would rise; 0 where it would fall.
        false_positives: the same, if all wrong detections ranked behind all right ones.
        false_negatives: the same, if no object counted that was not found.
    """

    kinds: np.ndarray
    missed: np.ndarray
    counts: np.ndarray
    ap: np.ndarray
    costs: np.ndarray
    cost: np.ndarray
    false_positives: float
    false_negatives: float


class _Ranking(NamedTuple):
    """What AP is made of: labels [N], scores [N] and hits [N] of detections; objects [C] to be found."""

    labels: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    objects: np.ndarray


def find_errors(matching: Matching) -> Errors:
    """Tell what is wrong with each detection, and what the kinds of error cost.

    Args:
        matching: of a run.

    Returns:
        The errors. A class whose objects are all missed is at 0 however these are mended, as in the authors'
        tool; unlike there, detections that COCO ignores (within a crowd) are never errors.
    """
    kinds = _kinds(matching)
    target = np.select(
        [kinds == LOCALISATION, kinds == CLASS], [matching.same_truth, matching.other_truth], NONE
    )
    lost = ~matching.truth.crowd & (matching.found_by == NONE)
    reached = np.zeros(len(lost), bool)
    reached[target[target != NONE]] = True
    missed = lost & ~reached
    before = _ranking(matching)
    ap = average_precisions(*before)
    after = [
        _without(before, kinds, kind, _mendable(matching, target, lost), matching.truth.labels)
        for kind in range(MISSED)
    ]
    after.append(_with_fewer_objects(before, matching.truth.labels[missed]))
    costs = np.stack([average_precisions(*ranking) - ap for ranking in after], axis=1)
    behind = before._replace(scores=before.hits.astype(float))
    all_found = _with_fewer_objects(before, matching.truth.labels[lost])
    return Errors(
        kinds,
        missed,
        _count(matching, kinds, missed),
        ap,
        costs,
        np.maximum(_mean(costs), 0),
        float(_mean(average_precisions(*behind) - ap)),
        float(_mean(average_precisions(*all_found) - ap)),
    )


def average_precisions(
    labels: np.ndarray, scores: np.ndarray, hits: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """AP of each class, as COCO takes it: the mean precision at 101 recalls.

    Args:
        labels: [N] of the detections, image by image.
        scores: [N].
        hits: [N] bool: whether it found an object.
        objects: [C] number of objects of each class; NaN for a class that never had any.

    Returns:
        [C]; NaN for a class that never had an object, 0 for one whose objects are all mended away.
    """
    result = np.where(np.isnan(objects), np.nan, 0.0)
    for label in np.flatnonzero(objects > 0):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        found = np.cumsum(hits[rows])
        precision = found / np.arange(1, len(rows) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(found / objects[label], RECALLS, side="left")
        result[label] = np.append(precision, 0.0)[at].mean()
    return result


def _kinds(matching: Matching) -> np.ndarray:
    """[D] kinds. Of several that apply the first counts, in the order of the authors' tool."""
    wrong = ~matching.hits & ~matching.ignored
    same, other = matching.same_iou, matching.other_iou
    nearest = np.maximum(same, other)
    return np.select(
        [
            ~wrong,
            (same >= BACKGROUND_IOU) & (same < FOUND_IOU),
            other >= FOUND_IOU,
            same >= FOUND_IOU,
            nearest <= BACKGROUND_IOU,
        ],
        [NONE, LOCALISATION, CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )


def _ranking(matching: Matching) -> _Ranking:
    counted, objects = ~matching.ignored, matching.objects.astype(float)
    objects[objects == 0] = np.nan
    return _Ranking(
        np.where(counted, matching.found.labels, NONE), matching.found.scores, matching.hits, objects
    )


def _mendable(matching: Matching, target: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """[D] row of the object that a detection would find if it were mended, or NONE.

    An object that nobody found is for the best of those that miss it by class or place alone.
    """
    rows = np.flatnonzero(target != NONE)
    rows = rows[lost[target[rows]]]
    rows = rows[np.argsort(-matching.found.scores[rows], kind="stable")]
    _, first = np.unique(target[rows], return_index=True)
    mended = np.full(len(target), NONE, np.int64)
    mended[rows[first]] = target[rows[first]]
    return mended


def _without(
    before: _Ranking, kinds: np.ndarray, kind: int, mendable: np.ndarray, labels_of_truth: np.ndarray
) -> _Ranking:
    """The ranking with one kind of error mended: what can find its object does, the others are gone."""
    wrong = kinds == kind
    mended = wrong & (mendable != NONE)
    labels = before.labels.copy()
    labels[wrong] = NONE
    labels[mended] = labels_of_truth[mendable[mended]]
    return before._replace(labels=labels, hits=before.hits | mended)


def _with_fewer_objects(before: _Ranking, labels: np.ndarray) -> _Ranking:
    return before._replace(objects=before.objects - np.bincount(labels, minlength=len(before.objects)))


def _count(matching: Matching, kinds: np.ndarray, missed: np.ndarray) -> np.ndarray:
    counts = np.zeros((matching.classes, len(KINDS)), np.int64)
    wrong = kinds != NONE
    np.add.at(counts, (matching.found.labels[wrong], kinds[wrong]), 1)
    np.add.at(counts, (matching.truth.labels[missed], MISSED), 1)
    return counts


def _mean(values: np.ndarray | Sequence) -> np.ndarray:
    """The mean over the classes that have objects; 0 where there is none."""
    known = ~np.isnan(values[:, 0] if values.ndim > 1 else values)
    return values[known].mean(axis=0) if known.any() else np.zeros(values.shape[1:])
