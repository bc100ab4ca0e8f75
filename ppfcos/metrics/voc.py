"""Pascal VOC's AP50: 11-point (VOC 2007) and area (since VOC 2010)."""

from __future__ import annotations

import numpy as np

from ppfcos.metrics.matching import IOU_THRESHOLD, NONE, Matching

ELEVEN_RECALLS = np.linspace(0, 1, 11)


def voc_average_precisions(matching: Matching) -> tuple[np.ndarray, np.ndarray]:
    """VOC's AP50 of each class, 11-point and area; [C] each, NaN for a class without objects.

    Unlike COCO, VOC compares a detection only with the object of its class that it overlaps most: if a better
    detection has that object, it is wrong. The IoU is COCO's, without the pixel that VOC's toolkit adds to
    widths and heights. Detections within crowds count as neither correct nor wrong.
    """
    detections = matching.detections
    counted = np.flatnonzero(~(matching.ignored & (matching.same_iou <= IOU_THRESHOLD)))
    rows = counted[np.argsort(-detections.scores[counted], kind="stable")]
    objects = np.where(matching.same_iou > IOU_THRESHOLD, matching.same_object, NONE)[rows]
    hits = np.zeros(len(rows), bool)
    hits[np.unique(objects, return_index=True)[1]] = True  # the best detection of each object
    hits &= objects != NONE
    eleven_point, area = np.full((2, matching.classes), np.nan)
    for label in np.flatnonzero(matching.objects):
        own = hits[detections.labels[rows] == label]
        correct = np.cumsum(own)
        recalls = correct / matching.objects[label]
        precisions = np.maximum.accumulate((correct / np.arange(1, len(own) + 1))[::-1])[::-1]
        at = np.searchsorted(recalls, ELEVEN_RECALLS - 1e-9)
        eleven_point[label] = np.append(precisions, 0)[at].mean()
        area[label] = np.sum(precisions * np.diff(recalls, prepend=0))
    return eleven_point, area
