"""The score threshold with the best F1 at an IoU of 0.5."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppfcos.metrics.matching import Matching


class OperatingPoint(NamedTuple):
    """Precision, recall and F1 of the detections with at least this score."""

    score: float
    f1: float
    precision: float
    recall: float

    def __str__(self) -> str:
        return (
            f"F1 {self.f1:.3f} at score {self.score:.3f} "
            f"(precision {self.precision:.3f}, recall {self.recall:.3f})"
        )


def best_f1(matching: Matching) -> tuple[OperatingPoint | None, list[OperatingPoint | None]]:
    """The operating point with the best F1 of all classes together, and of each class.

    Detections within crowds count as neither correct nor wrong. Of equal F1, the higher score is selected.
    None where no detection is correct.
    """
    counted = ~matching.ignored
    labels, scores = matching.detections.labels[counted], matching.detections.scores[counted]
    hits = matching.hits[counted]
    of_class = [labels == label for label in range(matching.classes)]
    points = [_best(scores[own], hits[own], count) for own, count in zip(of_class, matching.objects)]
    return _best(scores, hits, matching.objects.sum()), points


def _best(scores: np.ndarray, hits: np.ndarray, objects: int) -> OperatingPoint | None:
    if not hits.any():
        return None
    order = np.argsort(-scores)
    scores, true_positives = scores[order], np.cumsum(hits[order])
    counts = np.arange(1, len(scores) + 1)
    f1 = 2 * true_positives / (counts + objects)
    f1[:-1][scores[:-1] == scores[1:]] = 0  # a threshold never divides equal scores
    best = np.argmax(f1)
    correct = true_positives[best]
    return OperatingPoint(*map(float, (scores[best], f1[best], correct / counts[best], correct / objects)))
