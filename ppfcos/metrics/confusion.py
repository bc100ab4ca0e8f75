"""The confusion matrix and the calibration of detection scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppfcos.metrics.matching import IOU_THRESHOLD, NONE, Matching

SCORES = (0.1, 0.3, 0.5, 0.7)  # lowest scores of the report's confusion matrices
BINS = 10


def confusion_matrix(matching: Matching, min_score: float) -> np.ndarray:
    """Count objects by ground-truth class and detected class.

    The diagonal holds COCO's matches. Every other detection, the best first, counts for the nearest object of
    another class at IoU_THRESHOLD if that object is still unmatched.

    Returns:
        [C + 1, C + 1] counts: rows are ground-truth classes, columns detected classes, the last of each is
        the background: missed objects in the last column, detections of no object in the last row.
    """
    objects, detections, classes = matching.ground_truth, matching.detections, matching.classes
    counted = (detections.scores >= min_score) & ~matching.ignored
    detection_of = np.full(len(objects.labels), NONE, np.int64)
    hits = np.flatnonzero(counted & matching.hits)
    detection_of[matching.object_of[hits]] = hits
    rest = np.flatnonzero(counted & ~matching.hits & (matching.other_iou >= IOU_THRESHOLD))
    for row in rest[np.argsort(-detections.scores[rest], kind="stable")]:
        if detection_of[matching.other_object[row]] == NONE:
            detection_of[matching.other_object[row]] = row
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    detection_of = detection_of[~objects.crowd]
    detected_labels = np.append(detections.labels, classes)[detection_of]  # NONE is -1: the background
    np.add.at(matrix, (objects.labels[~objects.crowd], detected_labels), 1)
    counted[detection_of[detection_of != NONE]] = False
    np.add.at(matrix, (classes, detections.labels[counted]), 1)
    return matrix


class Calibration(NamedTuple):
    """A reliability diagram: B bins of the score, of equal width from 0 to 1.

    Attributes:
        edges: [B + 1] of the bins.
        counts: [B] detections.
        scores: [B] mean score; NaN in an empty bin.
        precisions: [B] fraction of correct detections; NaN in an empty bin.
        error: expected calibration error: mean of |score - precision|, weighted by the counts.
    """

    edges: np.ndarray
    counts: np.ndarray
    scores: np.ndarray
    precisions: np.ndarray
    error: float


def calibrate(scores: np.ndarray, hits: np.ndarray) -> Calibration:
    """Compare scores, [N], with hits, [N] bool (Guo et al., ICML 2017, section 2, for detections)."""
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_scores = np.bincount(bins, scores, BINS) / counts
        precisions = np.bincount(bins, hits.astype(float), BINS) / counts
    gaps = np.nansum(counts * np.abs(mean_scores - precisions))
    return Calibration(edges, counts, mean_scores, precisions, float(gaps / max(1, counts.sum())))
