"""Which detection found which object, as COCO's evaluation decides it.

Truth and detections are columns here: arrays with a row for each object, or each detection, of all images
together, so that the thousands of images of COCO are a matter of seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask

FOUND_IOU = 0.5  # from which on a box counts as found here
MOST_DETECTIONS = 100  # of a class in an image, the best of which count: COCO's limit
NONE = -1  # in a column of row numbers


class Truth(NamedTuple):
    """Objects in the order of their images, G rows.

    Attributes:
        images: [G] position of the image.
        labels: [G] position of the class.
        boxes: [G, 4] x, y, width, height in pixels, as COCO writes them.
        areas: [G] in square pixels, of the outline where there is one.
        crowd: [G] bool, whether the box is around a crowd.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray


class Found(NamedTuple):
    """Detections that count, D rows: image by image, in each class by class, in each the best first.

    Attributes:
        images: [D] position of the image.
        labels: [D] position of the class.
        boxes: [D, 4] x, y, width, height in pixels.
        scores: [D].
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


class Matching(NamedTuple):
    """Truth, detections, and how they lie to each other. NONE and 0 stand where there is nothing.

    Attributes:
        truth: the objects.
        found: the detections.
        classes: number of classes.
        truth_of: [D] row of the object that a detection found.
        found_by: [G] row of the detection that found an object.
        ignored: [D] bool: within a crowd of its class, so that it counts neither as right nor as wrong.
        same_iou: [D] largest IoU with an object of its class, found by another detection or not.
        same_truth: [D] row of that object.
        other_iou: [D] largest IoU with an object of another class.
        other_truth: [D] row of that object.
    """

    truth: Truth
    found: Found
    classes: int
    truth_of: np.ndarray
    found_by: np.ndarray
    ignored: np.ndarray
    same_iou: np.ndarray
    same_truth: np.ndarray
    other_iou: np.ndarray
    other_truth: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        """[D] bool: whether a detection found an object."""
        return self.truth_of != NONE

    @property
    def objects(self) -> np.ndarray:
        """[C] number of objects of each class, crowds left out."""
        return np.bincount(self.truth.labels[~self.truth.crowd], minlength=self.classes)


def image_order(ground_truth: Mapping[str, Any]) -> list:
    """The images' ids in the order of their positions, which is the one in which COCO goes through them.

    Args:
        ground_truth: COCO's annotation file.

    Returns:
        Ids, rising: of equal scores, the one in the earlier image ranks first.
    """
    return sorted(image["id"] for image in ground_truth["images"])


def match(ground_truth: Mapping[str, Any], detections: Iterable[Mapping[str, Any]]) -> Matching:
    """Match as COCO does at an IoU of `FOUND_IOU`: the best detection chooses first.

    Args:
        ground_truth: COCO's annotation file: `images`, `annotations`, `categories`. Positions of images are
            those of `image_order`, positions of classes those of `categories`.
        detections: COCO's result file, of images that the annotations have.

    Returns:
        What was matched.
    """
    image_of = {number: position for position, number in enumerate(image_order(ground_truth))}
    label_of = {category["id"]: label for label, category in enumerate(ground_truth["categories"])}
    truth = _truth_columns(ground_truth.get("annotations", ()), image_of, label_of)
    found = _found_columns(detections, image_of, label_of)
    matching = _unmatched(truth, found, len(label_of))
    starts = np.arange(len(image_of) + 1)
    of_truth, of_found = (np.searchsorted(rows.images, starts) for rows in (truth, found))
    for image in np.unique(found.images):
        objects = slice(of_truth[image], of_truth[image + 1])
        if objects.start < objects.stop:
            _match_image(matching, slice(of_found[image], of_found[image + 1]), objects)
    return matching


def _truth_columns(annotations: Iterable[Mapping], image_of: Mapping, label_of: Mapping) -> Truth:
    rows = [row for row in annotations if row["image_id"] in image_of and row["category_id"] in label_of]
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    areas = [row.get("area", row["bbox"][2] * row["bbox"][3]) for row in rows]
    truth = Truth(
        np.array([image_of[row["image_id"]] for row in rows], np.int64),
        np.array([label_of[row["category_id"]] for row in rows], np.int64),
        boxes,
        np.array(areas, np.float64),
        np.array([bool(row.get("iscrowd", 0)) for row in rows], bool),
    )
    order = np.argsort(truth.images, kind="stable")
    return Truth(*(column[order] for column in truth))


def _found_columns(detections: Iterable[Mapping], image_of: Mapping, label_of: Mapping) -> Found:
    rows = [row for row in detections if row["category_id"] in label_of]
    found = Found(
        np.array([image_of[row["image_id"]] for row in rows], np.int64),
        np.array([label_of[row["category_id"]] for row in rows], np.int64),
        np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
        np.array([row["score"] for row in rows], np.float64),
    )
    order = np.lexsort((-found.scores, found.labels, found.images))
    group = found.images[order] * len(label_of) + found.labels[order]
    rank = np.arange(len(order)) - np.searchsorted(group, group)
    order = order[rank < MOST_DETECTIONS]
    return Found(*(column[order] for column in found))


def _unmatched(truth: Truth, found: Found, classes: int) -> Matching:
    def rows_of(columns: Sequence[np.ndarray]) -> np.ndarray:
        return np.full(len(columns[0]), NONE, np.int64)

    zeros = np.zeros(len(found.images))
    return Matching(
        truth=truth,
        found=found,
        classes=classes,
        truth_of=rows_of(found),
        found_by=rows_of(truth),
        ignored=np.zeros(len(found.images), bool),
        same_iou=zeros.copy(),
        same_truth=rows_of(found),
        other_iou=zeros.copy(),
        other_truth=rows_of(found),
    )


def _match_image(matching: Matching, rows: slice, objects: slice) -> None:
    """Fill in what `matching` says of the detections `rows` and the `objects` of one image."""
    truth, found = matching.truth, matching.found
    crowd = truth.crowd[objects]
    # [detections, objects]; with a crowd, COCO's measure: the share of the detection that lies within it
    overlaps = mask.iou(found.boxes[rows], truth.boxes[objects], crowd.astype(np.uint8))
    same = found.labels[rows, None] == truth.labels[None, objects]
    among_same, among_other = overlaps * (same & ~crowd), overlaps * (~same & ~crowd)
    for overlap, iou, row in (
        (among_same, matching.same_iou, matching.same_truth),
        (among_other, matching.other_iou, matching.other_truth),
    ):
        nearest = overlap.argmax(axis=1)
        iou[rows] = overlap.max(axis=1)
        row[rows] = np.where(iou[rows] > 0, nearest + objects.start, NONE)
    _choose(matching, rows.start, objects.start, among_same)
    in_crowd = (overlaps * (same & crowd)).max(axis=1) >= FOUND_IOU
    matching.ignored[rows] = in_crowd & (matching.truth_of[rows] == NONE)


def _choose(matching: Matching, first_row: int, first_object: int, overlaps: np.ndarray) -> None:
    """Give the detections of one image their objects, the best first; [detections, objects] of one class."""
    free = overlaps.copy()
    for i in np.flatnonzero(overlaps.max(axis=1) >= FOUND_IOU):
        best = free.shape[1] - 1 - int(free[i, ::-1].argmax())  # of equal ones the last, as COCO does
        if free[i, best] >= FOUND_IOU:
            matching.truth_of[first_row + i] = first_object + best
            matching.found_by[first_object + best] = first_row + i
            free[:, best] = 0
