"""The worst errors of a run, each as a piece of its image with what is there and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.data.records import Record, stated_size
from ppfcos.metrics.error_types import BOTH, CLASS, KINDS, MISSED, Errors
from ppfcos.metrics.matching import NONE, Matching

MOST_OF_A_KIND = 60
FEWEST_OF_A_CLASS = 4  # of a kind, so that one class does not fill it
_WIDTH, _HEIGHT = 300, 225  # pixels of a picture, at most
_CONTEXT = 1.9  # sides of the piece, in those of the boxes that it is about
_SMALLEST_PIECE = 160  # pixels of the image across: more enlarged, a small object is a blur
_MOST_OTHERS = 25  # boxes that are drawn besides, of either sort
_OTHERS_SCORE = 0.3  # of a detection that is drawn besides


class Pictures(Protocol):
    """Where the images come from."""

    def name(self, image: int) -> str:
        """What to call an image.

        Args:
            image: its id.
        """

    def read(self, image: int) -> np.ndarray | None:
        """Decode an image.

        Args:
            image: its id.

        Returns:
            [H, W, 3] uint8, blue first; None where it cannot be read.
        """


class RecordImages:
    """The images of a data set.

    Args:
        records: of the data set.
    """

    def __init__(self, records: Sequence[Record]):
        self._records = records
        self._places = {int(record["im_id"][0]): place for place, record in enumerate(records)}

    def name(self, image: int) -> str:
        return Path(self._records[self._places[image]]["im_file"]).name

    def read(self, image: int) -> np.ndarray | None:
        record = self._records[self._places[image]]
        try:
            return read_image(record["im_file"], stated_size(record))[..., ::-1]
        except ImageUnreadable:  # the evaluation has named it
            return None


class Case(NamedTuple):
    """An error.

    Attributes:
        kind: number of KINDS.
        image: position of the image.
        found: row of the wrong detection; NONE for a missed object.
        truth: row of the object that it is about; NONE where there is none.
        iou: of the two; 0 without either.
    """

    kind: int
    image: int
    found: int
    truth: int
    iou: float


class Drawing(NamedTuple):
    """A piece of an image, and boxes x0, y0, x1, y1 in its pixels.

    Attributes:
        picture: [h, w, 3] uint8, blue first.
        found: the wrong detection; None for a missed object.
        truth: the object that it is about; None where there is none.
        other_found: [N, 4] of the image's other detections that reach into the piece.
        other_truth: [M, 4] likewise of its objects.
    """

    picture: np.ndarray
    found: np.ndarray | None
    truth: np.ndarray | None
    other_found: np.ndarray
    other_truth: np.ndarray


def worst_cases(matching: Matching, errors: Errors) -> list[Case]:
    """The worst errors: of detections those with the highest scores, of missed objects the largest.

    Args:
        matching: of a run.
        errors: of the same.

    Returns:
        At most MOST_OF_A_KIND of each kind, kind by kind, the worst first.
    """
    quota = max(FEWEST_OF_A_CLASS, MOST_OF_A_KIND // max(1, matching.classes))
    found, truth = matching.found, matching.truth
    cases = []
    for kind in range(MISSED):
        rows = np.flatnonzero(errors.kinds == kind)
        for row in _worst(rows, found.scores[rows], found.labels[rows], quota):
            nearest, iou = _nearest(matching, kind, row)
            cases.append(Case(kind, int(found.images[row]), int(row), nearest, iou))
    rows = np.flatnonzero(errors.missed)
    for row in _worst(rows, truth.areas[rows], truth.labels[rows], quota):
        cases.append(Case(MISSED, int(truth.images[row]), NONE, int(row), 0.0))
    return cases


def _worst(rows: np.ndarray, badness: np.ndarray, labels: np.ndarray, quota: int) -> np.ndarray:
    order = np.argsort(-badness, kind="stable")
    rows, labels = rows[order], labels[order]
    by_class = np.argsort(labels, kind="stable")
    rank = np.empty(len(rows), np.int64)
    rank[by_class] = np.arange(len(rows)) - np.searchsorted(labels[by_class], labels[by_class])
    return rows[rank < quota][:MOST_OF_A_KIND]


def _nearest(matching: Matching, kind: int, row: int) -> tuple[int, float]:
    """The object that a detection of a kind is about, and their IoU."""
    same, other = matching.same_iou[row], matching.other_iou[row]
    if kind == CLASS or (kind == BOTH and other > same):
        return int(matching.other_truth[row]), float(other)
    return (int(matching.same_truth[row]), float(same)) if same > 0 else (NONE, 0.0)


def draw_cases(
    cases: Sequence[Case], matching: Matching, image_ids: Sequence[int], pictures: Pictures
) -> list[Drawing | None]:
    """Cut the pieces out of the images, each of which is read once.

    Args:
        cases: of `worst_cases`.
        matching: that they are of.
        image_ids: by position.
        pictures: of these.

    Returns:
        A drawing for each; None where the image cannot be read.
    """
    drawings: list[Drawing | None] = [None] * len(cases)
    image, pixels = NONE, None
    for number in sorted(range(len(cases)), key=lambda number: cases[number].image):
        if cases[number].image != image:
            image = cases[number].image
            pixels = pictures.read(image_ids[image])
        if pixels is not None:
            drawings[number] = _draw(cases[number], matching, pixels)
    return drawings


def case_entry(case: Case, matching: Matching, class_names: Sequence[str], name: str) -> dict:
    """What a case says without its picture.

    Args:
        case: of `worst_cases`.
        matching: that it is of.
        class_names: by label.
        name: of the image.

    Returns:
        `kind` and `image`; `found` and `truth` with class and box (x, y, width, height), the former with its
        score, or None; `iou` of the two.
    """
    found = truth = None
    if case.found != NONE:
        rows = matching.found
        found = _entry(class_names[rows.labels[case.found]], rows.boxes[case.found])
        found["score"] = round(float(rows.scores[case.found]), 4)
    if case.truth != NONE:
        rows = matching.truth
        truth = _entry(class_names[rows.labels[case.truth]], rows.boxes[case.truth])
    return {
        "kind": KINDS[case.kind],
        "image": name,
        "found": found,
        "truth": truth,
        "iou": round(case.iou, 4),
    }


def _entry(name: str, box: np.ndarray) -> dict:
    return {"class": name, "box": [round(float(side), 2) for side in box]}


def _draw(case: Case, matching: Matching, pixels: np.ndarray) -> Drawing:
    in_found = _rows_of(matching.found.images, case.image)
    in_truth = _rows_of(matching.truth.images, case.image)
    scores = matching.found.scores[in_found]
    shown = (scores >= _OTHERS_SCORE) & (in_found != case.found)
    of_found = _corners(matching.found.boxes[in_found])
    of_truth = _corners(matching.truth.boxes[in_truth])
    found, truth = of_found[in_found == case.found], of_truth[in_truth == case.truth]
    x0, y0, x1, y1 = _piece(np.concatenate([found, truth]), *pixels.shape[:2])
    factor = min(_WIDTH / (x1 - x0), _HEIGHT / (y1 - y0))
    size = (max(1, round((x1 - x0) * factor)), max(1, round((y1 - y0) * factor)))
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    picture = cv2.resize(np.ascontiguousarray(pixels[y0:y1, x0:x1]), size, interpolation=kind)

    def moved(boxes: np.ndarray) -> np.ndarray:
        return (boxes - (x0, y0, x0, y0)) * factor

    best_first = np.argsort(-scores[shown], kind="stable")
    return Drawing(
        picture,
        *(moved(boxes)[0] if len(boxes) else None for boxes in (found, truth)),
        _reaching_into(moved(of_found[shown][best_first]), size)[:_MOST_OTHERS],
        _reaching_into(moved(of_truth[in_truth != case.truth]), size)[:_MOST_OTHERS],
    )


def _rows_of(images: np.ndarray, image: int) -> np.ndarray:
    start, end = np.searchsorted(images, [image, image + 1])
    return np.arange(start, end)


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _piece(boxes: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """The piece of an image around boxes, x0, y0, x1, y1: of a picture's proportions, where it has room."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    across, down = (high - low) * _CONTEXT
    across = max(across, down * _WIDTH / _HEIGHT, _SMALLEST_PIECE)
    sides = np.minimum([across, across * _HEIGHT / _WIDTH], [width, height])
    start = np.clip((low + high) / 2 - sides / 2, 0, [width, height] - sides)
    (x0, y0), (x1, y1) = np.floor(start).astype(int), np.ceil(start + sides).astype(int)
    return int(x0), int(y0), min(int(x1), width), min(int(y1), height)


def _reaching_into(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    seen = (boxes[:, 0] < width) & (boxes[:, 2] > 0) & (boxes[:, 1] < height) & (boxes[:, 3] > 0)
    return boxes[seen]
