"""Whether a score of 0.7 means that seven of ten such detections are right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppfcos.metrics.matching import FOUND_IOU, NONE, Matching

SCORES = (0.1, 0.3, 0.5, 0.7)  # from which on detections are looked at


def confusion_matrix(matching: Matching, lowest_score: float) -> np.ndarray:
    """Count objects by their class and the class they were taken for.

    The diagonal is what COCO's evaluation counts as right. Of the detections that are left each, the best
    first, counts for the nearest object of another class, if that is left too.

    Args:
        matching: of a run.
        lowest_score: of a detection that counts.

    Returns:
        [C + 1, C + 1] numbers: rows are true classes, columns detected ones. The last column has objects that
        nothing was found for, the last row detections of nothing.
    """
    truth, found, classes = matching.truth, matching.found, matching.classes
    shown = (found.scores >= lowest_score) & ~matching.ignored
    taken_for = np.full(len(truth.labels), NONE, np.int64)  # the detection's row
    hits = np.flatnonzero(shown & matching.hits)
    taken_for[matching.truth_of[hits]] = hits
    rest = np.flatnonzero(shown & ~matching.hits & (matching.other_iou >= FOUND_IOU))
    for row in rest[np.argsort(-found.scores[rest], kind="stable")]:
        if taken_for[matching.other_truth[row]] == NONE:
            taken_for[matching.other_truth[row]] = row
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    objects = np.flatnonzero(~truth.crowd)
    seen = taken_for[objects]
    columns = np.where(seen == NONE, classes, found.labels[seen] if len(found.labels) else classes)
    np.add.at(matrix, (truth.labels[objects], columns), 1)
    shown[seen[seen != NONE]] = False
    np.add.at(matrix, (classes, found.labels[shown]), 1)
    return matrix


BINS = 10


class Calibration(NamedTuple):
    """The reliability diagram: score against precision, B bins of equal width from 0 to 1.

    Attributes:
        edges: [B + 1] of the bins; each has its lower edge in it, the last one both.
        counts: [B] detections.
        scores: [B] their mean score; NaN in an empty bin.
        precisions: [B] share of them that are right; NaN in an empty bin.
        error: expected calibration error: the mean distance of score and precision, by counts.
    """

    edges: np.ndarray
    counts: np.ndarray
    scores: np.ndarray
    precisions: np.ndarray
    error: float


def calibrate(scores: np.ndarray, hits: np.ndarray) -> Calibration:
    """Compare scores with what came of them (Guo et al., ICML 2017, section 2, for detections).

    Args:
        scores: [N] from 0 to 1.
        hits: [N] bool: whether the detection found an object.

    Returns:
        The diagram; without detections, an error of 0.
    """
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_scores = np.bincount(place, scores, BINS) / counts
        precisions = np.bincount(place, hits.astype(float), BINS) / counts
    gaps = np.nansum(counts * np.abs(mean_scores - precisions))
    return Calibration(edges, counts, mean_scores, precisions, float(gaps / max(1, counts.sum())))
