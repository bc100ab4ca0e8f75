"""The detections of one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        boxes: [N, 4] float32, x0, y0, x1, y1 in pixels of the original image.
        scores: [N] float32 in (0, 1], descending.
        labels: [N] int64, indices into `class_names`.
        class_names: names of all classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> Detections:
        """The detections with a score of at least `threshold`."""
        keep = self.scores >= threshold
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.class_names)


def split_batch(bbox: np.ndarray, bbox_num: np.ndarray, class_names: tuple[str, ...]) -> list[Detections]:
    """Split the output of a network by image.

    Args:
        bbox: [N, 6] float32: label, score, x0, y0, x1, y1; the rows of the first image first.
        bbox_num: [B] integers, the number of rows of each image; their sum is N.
        class_names: names of all classes.
    """
    rows = np.asarray(bbox, np.float32).reshape(-1, 6)
    ends = np.cumsum(np.asarray(bbox_num).reshape(-1))
    return [_from_rows(part, class_names) for part in np.split(rows, ends)[:-1]]


def _from_rows(rows: np.ndarray, class_names: tuple[str, ...]) -> Detections:
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    return Detections(rows[:, 2:].copy(), rows[:, 1].copy(), rows[:, 0].astype(np.int64), class_names)
