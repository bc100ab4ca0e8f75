"""An operator that hides parts of a picture."""

from __future__ import annotations

import numpy as np
from ppdet.data.transform.operators import BaseOperator

from ppfcos.data.transforms.base import (
    GREY,
    MIN_VISIBLE,
    Sample,
    grey_level,
    number_range,
    operator,
    set_boxes,
    share,
)


@operator
class PPFCOSCutOut(BaseOperator):
    """Covers random rectangles with grey (DeVries and Taylor, arXiv 1708.04552).

    A box stays as it is, its hidden parts included, unless less than `min_visible` of its pixels are left.
    PaddleDetection's RandomErasing keeps even those that are wholly hidden.

    Args:
        prob: the share of the pictures that are covered.
        count: range of the number of rectangles.
        sides: range of their height and width, in shares of the picture's.
        min_visible: as above.
        fill: grey level of the rectangles.
    """

    def __init__(
        self,
        prob: float = 0.5,
        count: list = (1, 4),
        sides: list = (0.05, 0.25),
        min_visible: float = MIN_VISIBLE,
        fill: int = GREY,
    ):
        super().__init__()
        self._prob = share("prob", prob)
        self._count = tuple(int(number) for number in number_range("count", count, 1, 1000))
        self._sides = number_range("sides", sides, 0, 1)
        self._min_visible = share("min_visible", min_visible)
        self._fill = grey_level("fill", fill)

    def apply(self, sample: Sample, context: object = None) -> Sample:
        """Covers parts of the picture, or none."""
        if np.random.uniform() >= self._prob:
            return sample
        image = sample["image"].copy()  # the caller's may be a part of another picture
        uncovered = np.ones(image.shape[:2], dtype=bool)
        for _ in range(np.random.randint(self._count[0], self._count[1] + 1)):
            height, width = np.ceil(np.random.uniform(*self._sides, 2) * uncovered.shape).astype(int)
            top = np.random.randint(len(image) - height + 1)
            left = np.random.randint(image.shape[1] - width + 1)
            image[top : top + height, left : left + width] = self._fill
            uncovered[top : top + height, left : left + width] = False
        sample["image"] = image
        boxes = sample["gt_bbox"]
        kept = np.array([_share_of_true(uncovered, box) >= self._min_visible for box in boxes], dtype=bool)
        set_boxes(sample, boxes, kept)
        return sample


def _share_of_true(mask: np.ndarray, box: np.ndarray) -> float:
    """Over the pixels that a box touches."""
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    inside = mask[y0:y1, x0:x1]
    return float(inside.mean()) if inside.size else 0.0
