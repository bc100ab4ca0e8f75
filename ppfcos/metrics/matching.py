"""Matches detections with objects as COCO does, at one IoU threshold.

Objects and detections are columns: one array per property, with a row per object or detection of all images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask

from ppfcos.metrics.coco import MAX_DETECTIONS

IOU_THRESHOLD = 0.5
NONE = -1  # no row


class Objects(NamedTuple):
    """G ground-truth objects, sorted by image.

    Attributes:
        images: [G] index of the image.
        labels: [G] index of the class.
        boxes: [G, 4] x, y, width, height in pixels, as in COCO.
        areas: [G] in square pixels; of the segmentation where there is one.
        crowd: [G] bool.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray


class DetectionColumns(NamedTuple):
    """D detections, sorted by image, class and descending score.

    Attributes:
        images: [D] index of the image.
        labels: [D] index of the class.
        boxes: [D, 4] x, y, width, height in pixels.
        scores: [D].
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


class Matching(NamedTuple):
    """Objects, detections and their matches; a row is NONE and an IoU 0 where there is nothing.

    Attributes:
        ground_truth: the objects.
        detections: the detections.
        classes: number of classes.
        object_of: [D] row of the object that a detection matches.
        detection_of: [G] row of the detection that matches an object.
        ignored: [D] bool: inside a crowd of its class, neither correct nor wrong.
        same_iou: [D] largest IoU with an object of the same class, whether matched or not.
        same_object: [D] row of that object.
        other_iou: [D] largest IoU with an object of another class.
        other_object: [D] row of that object.
    """

    ground_truth: Objects
    detections: DetectionColumns
    classes: int
    object_of: np.ndarray
    detection_of: np.ndarray
    ignored: np.ndarray
    same_iou: np.ndarray
    same_object: np.ndarray
    other_iou: np.ndarray
    other_object: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        """[D] bool: whether a detection matches an object."""
        return self.object_of != NONE

    @property
    def objects(self) -> np.ndarray:
        """[C] number of objects of each class without crowds."""
        labels = self.ground_truth.labels[~self.ground_truth.crowd]
        return np.bincount(labels, minlength=self.classes)


def image_order(ground_truth: Mapping[str, Any]) -> list:
    """The image ids by index, ascending: COCO's order, which decides between equal scores."""
    return sorted(image["id"] for image in ground_truth["images"])


def match(
    ground_truth: Mapping[str, Any],
    detections: Iterable[Mapping[str, Any]],
    max_detections: int = MAX_DETECTIONS,
) -> Matching:
    """Match as COCO does at IOU_THRESHOLD: the detection with the highest score chooses first.

    Args:
        ground_truth: COCO annotations: `images`, `annotations`, `categories`. Images are indexed by
            `image_order`, classes in the order of `categories`.
        detections: COCO results of these images.
        max_detections: limit per image and class; the best scores count.
    """
    image_of = {image_id: index for index, image_id in enumerate(image_order(ground_truth))}
    label_of = {category["id"]: label for label, category in enumerate(ground_truth["categories"])}
    objects = _read_objects(ground_truth.get("annotations", ()), image_of, label_of)
    columns = _read_detections(detections, image_of, label_of, max_detections)
    count = len(columns.images)
    matching = Matching(
        ground_truth=objects,
        detections=columns,
        classes=len(label_of),
        object_of=np.full(count, NONE),
        detection_of=np.full(len(objects.images), NONE),
        ignored=np.zeros(count, bool),
        same_iou=np.zeros(count),
        same_object=np.full(count, NONE),
        other_iou=np.zeros(count),
        other_object=np.full(count, NONE),
    )
    starts = np.arange(len(image_of) + 1)
    object_starts, starts = (np.searchsorted(rows.images, starts) for rows in (objects, columns))
    for image in np.unique(columns.images):
        rows = slice(object_starts[image], object_starts[image + 1])
        if rows.start < rows.stop:
            _match_image(matching, slice(starts[image], starts[image + 1]), rows)
    return matching


def _read_objects(annotations: Iterable[Mapping], image_of: Mapping, label_of: Mapping) -> Objects:
    rows = [row for row in annotations if row["image_id"] in image_of and row["category_id"] in label_of]
    areas = [row.get("area", row["bbox"][2] * row["bbox"][3]) for row in rows]
    objects = Objects(
        np.array([image_of[row["image_id"]] for row in rows], np.int64),
        np.array([label_of[row["category_id"]] for row in rows], np.int64),
        np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
        np.array(areas, np.float64),
        np.array([bool(row.get("iscrowd", 0)) for row in rows], bool),
    )
    order = np.argsort(objects.images, kind="stable")
    return Objects(*(column[order] for column in objects))


def _read_detections(
    detections: Iterable[Mapping], image_of: Mapping, label_of: Mapping, max_detections: int
) -> DetectionColumns:
    rows = [row for row in detections if row["category_id"] in label_of]
    columns = DetectionColumns(
        np.array([image_of[row["image_id"]] for row in rows], np.int64),
        np.array([label_of[row["category_id"]] for row in rows], np.int64),
        np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
        np.array([row["score"] for row in rows], np.float64),
    )
    order = np.lexsort((-columns.scores, columns.labels, columns.images))
    group = columns.images[order] * len(label_of) + columns.labels[order]
    position = np.arange(len(order)) - np.searchsorted(group, group)
    order = order[position < max_detections]
    return DetectionColumns(*(column[order] for column in columns))


def _match_image(matching: Matching, rows: slice, object_rows: slice) -> None:
    """Fill in the matches of one image: detections `rows`, objects `object_rows`."""
    objects, detections = matching.ground_truth, matching.detections
    crowd = objects.crowd[object_rows]
    # [detections, objects]; COCO's IoU with a crowd is the fraction of the detection that lies inside
    overlaps = mask.iou(detections.boxes[rows], objects.boxes[object_rows], crowd.astype(np.uint8))
    same = detections.labels[rows, None] == objects.labels[None, object_rows]
    same_class = overlaps * (same & ~crowd)
    for overlap, iou, nearest in (
        (same_class, matching.same_iou, matching.same_object),
        (overlaps * (~same & ~crowd), matching.other_iou, matching.other_object),
    ):
        iou[rows] = overlap.max(axis=1)
        nearest[rows] = np.where(iou[rows] > 0, overlap.argmax(axis=1) + object_rows.start, NONE)
    free = same_class.copy()
    for i in np.flatnonzero(same_class.max(axis=1) >= IOU_THRESHOLD):
        best = free.shape[1] - 1 - int(free[i, ::-1].argmax())  # the last of equal ones, as in COCO
        if free[i, best] >= IOU_THRESHOLD:
            matching.object_of[rows.start + i] = object_rows.start + best
            matching.detection_of[object_rows.start + best] = rows.start + i
            free[:, best] = 0
    in_crowd = (overlaps * (same & crowd)).max(axis=1) >= IOU_THRESHOLD
    matching.ignored[rows] = in_crowd & (matching.object_of[rows] == NONE)
