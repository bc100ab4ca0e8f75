"""Whether a score of 0.7 means that seven of ten such detections are right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

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
