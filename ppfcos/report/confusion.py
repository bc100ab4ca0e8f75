"""Which class is taken for which."""

from __future__ import annotations

import numpy as np

from ppfcos.report.matching import FOUND_IOU, NONE, Matching

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
