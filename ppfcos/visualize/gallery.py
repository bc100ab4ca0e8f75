"""The worst errors of an evaluation, each as a crop of its image with ground truth and detections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.data.records import Record, stated_size
from ppfcos.metrics.error_types import BOTH, CLASS, ERROR_TYPES, MISSED, Errors
from ppfcos.metrics.matching import NONE, DetectionColumns, Matching, Objects

MOST_OF_A_TYPE = 60
FEWEST_OF_A_CLASS = 4  # of a type, so that one class does not fill it
_WIDTH, _HEIGHT = 300, 225  # largest size of a crop on the page, in pixels
_CONTEXT = 1.9  # size of a crop relative to its boxes
_MIN_WIDTH = 160  # of a crop, in pixels of the image
_MOST_OTHERS = 25  # other boxes of the image that are drawn, of ground truth and detections each
_OTHERS_SCORE = 0.3  # lowest score of other detections that are drawn


class Images(Protocol):
    """The images of a data set by id."""

    def name(self, image_id: int) -> str:
        """The file name."""

    def read(self, image_id: int) -> np.ndarray | None:
        """[H, W, 3] uint8 BGR; None if it cannot be read."""


class RecordImages:
    """The images of a data set's records."""

    def __init__(self, records: Sequence[Record]):
        self._records = {int(record["im_id"][0]): record for record in records}

    def name(self, image_id: int) -> str:
        return Path(self._records[image_id]["im_file"]).name

    def read(self, image_id: int) -> np.ndarray | None:
        record = self._records[image_id]
        try:
            return read_image(record["im_file"], stated_size(record))[..., ::-1]
        except ImageUnreadable:  # the evaluation has logged it
            return None


class Case(NamedTuple):
    """An error.

    Attributes:
        type: index of ERROR_TYPES.
        image: index of the image.
        detection: row of the wrong detection; NONE for a missed object.
        object: row of the object concerned, or NONE.
        iou: of the two; 0 without either.
    """

    type: int
    image: int
    detection: int
    object: int
    iou: float


class Crop(NamedTuple):
    """A crop of an image, [h, w, 3] uint8 BGR, and boxes x0, y0, x1, y1 in its pixels.

    Attributes:
        image: the crop.
        detection: [4] the wrong detection; None for a missed object.
        ground_truth: [4] the object concerned, or None.
        other_detections: [N, 4] the best of the image.
        other_ground_truth: [M, 4] of the image.
    """

    image: np.ndarray
    detection: np.ndarray | None
    ground_truth: np.ndarray | None
    other_detections: np.ndarray
    other_ground_truth: np.ndarray


def worst_cases(matching: Matching, errors: Errors) -> list[Case]:
    """Select the wrong detections with the highest scores and the largest missed objects.

    Returns:
        At most MOST_OF_A_TYPE of each type, type by type, the worst first.
    """
    quota = max(FEWEST_OF_A_CLASS, MOST_OF_A_TYPE // max(1, matching.classes))
    detections, objects = matching.detections, matching.ground_truth
    cases = []
    for error_type in range(MISSED):
        rows = np.flatnonzero(errors.types == error_type)
        for row in _first_of_each_class(rows, detections.scores[rows], detections.labels[rows], quota):
            nearest, iou = _nearest_object(matching, error_type, row)
            cases.append(Case(error_type, int(detections.images[row]), int(row), nearest, iou))
    rows = np.flatnonzero(errors.missed)
    for row in _first_of_each_class(rows, objects.areas[rows], objects.labels[rows], quota):
        cases.append(Case(MISSED, int(objects.images[row]), NONE, int(row), 0.0))
    return cases


def _first_of_each_class(rows: np.ndarray, keys: np.ndarray, labels: np.ndarray, quota: int) -> np.ndarray:
    """The rows with the largest keys, at most `quota` of each class and MOST_OF_A_TYPE in all."""
    order = np.argsort(-keys, kind="stable")
    rows, labels = rows[order], labels[order]
    by_class = np.argsort(labels, kind="stable")
    position = np.empty(len(rows), np.int64)
    position[by_class] = np.arange(len(rows)) - np.searchsorted(labels[by_class], labels[by_class])
    return rows[position < quota][:MOST_OF_A_TYPE]


def _nearest_object(matching: Matching, error_type: int, row: int) -> tuple[int, float]:
    same, other = matching.same_iou[row], matching.other_iou[row]
    if error_type == CLASS or (error_type == BOTH and other > same):
        return int(matching.other_object[row]), float(other)
    return (int(matching.same_object[row]), float(same)) if same > 0 else (NONE, 0.0)


def case_entry(case: Case, matching: Matching, class_names: Sequence[str], name: str) -> dict[str, Any]:
    """Describe a case for the JSON report; `name` is that of the image."""

    def entry(columns: Objects | DetectionColumns, row: int) -> dict[str, Any] | None:
        if row == NONE:
            return None
        box = [round(float(side), 2) for side in columns.boxes[row]]
        return {"class": class_names[columns.labels[row]], "box": box}

    found = entry(matching.detections, case.detection)
    if found:
        found["score"] = round(float(matching.detections.scores[case.detection]), 4)
    return {
        "kind": ERROR_TYPES[case.type],
        "image": name,
        "found": found,
        "truth": entry(matching.ground_truth, case.object),
        "iou": round(case.iou, 4),
    }


def draw_cases(
    cases: Sequence[Case], matching: Matching, image_ids: Sequence[int], images: Images
) -> list[Crop | None]:
    """Cut the crops out of the images; each image is read once.

    Args:
        cases: of `worst_cases`.
        matching: the same.
        image_ids: by index.
        images: by id.

    Returns:
        A crop for each case; None if the image cannot be read.
    """
    crops: list[Crop | None] = [None] * len(cases)
    current, pixels = NONE, None
    for i in sorted(range(len(cases)), key=lambda i: cases[i].image):
        if cases[i].image != current:
            current = cases[i].image
            pixels = images.read(image_ids[current])
        if pixels is not None:
            crops[i] = _crop(cases[i], matching, pixels)
    return crops


def _crop(case: Case, matching: Matching, pixels: np.ndarray) -> Crop:
    detection_rows, detections = _boxes_of(matching.detections, case.image)
    object_rows, objects = _boxes_of(matching.ground_truth, case.image)
    detection, ground_truth = (
        detections[detection_rows == case.detection],
        objects[object_rows == case.object],
    )
    x0, y0, x1, y1 = _crop_around(np.concatenate([detection, ground_truth]), *pixels.shape[:2])
    scale = min(_WIDTH / (x1 - x0), _HEIGHT / (y1 - y0))
    size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(np.ascontiguousarray(pixels[y0:y1, x0:x1]), size, interpolation=interpolation)

    def in_crop(boxes: np.ndarray) -> np.ndarray:
        return (boxes - (x0, y0, x0, y0)) * scale

    scores = matching.detections.scores[detection_rows]
    others = np.flatnonzero((scores >= _OTHERS_SCORE) & (detection_rows != case.detection))
    others = others[np.argsort(-scores[others], kind="stable")]
    return Crop(
        image,
        *(in_crop(boxes)[0] if len(boxes) else None for boxes in (detection, ground_truth)),
        _visible(in_crop(detections[others]), size)[:_MOST_OTHERS],
        _visible(in_crop(objects[object_rows != case.object]), size)[:_MOST_OTHERS],
    )


def _boxes_of(columns: Objects | DetectionColumns, image: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows [N] of an image, and their boxes [N, 4] as x0, y0, x1, y1."""
    rows = np.arange(*np.searchsorted(columns.images, [image, image + 1]))
    boxes = columns.boxes[rows]
    return rows, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _crop_around(boxes: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a crop around boxes with context, of the page's aspect ratio if the image allows."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    crop_width, crop_height = (high - low) * _CONTEXT
    crop_width = max(crop_width, crop_height * _WIDTH / _HEIGHT, _MIN_WIDTH)
    sides = np.minimum([crop_width, crop_width * _HEIGHT / _WIDTH], [width, height])
    start = np.clip((low + high) / 2 - sides / 2, 0, [width, height] - sides)
    (x0, y0), (x1, y1) = np.floor(start).astype(int), np.ceil(start + sides).astype(int)
    return int(x0), int(y0), min(int(x1), width), min(int(y1), height)


def _visible(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The boxes that overlap a crop of (width, height)."""
    return boxes[((boxes[:, :2] < size) & (boxes[:, 2:] > 0)).all(axis=1)]
