"""Operators that make one sample of several."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np
from ppdet.data.transform.operators import BaseOperator, Mixup

from ppfcos.data.records import PER_BOX
from ppfcos.data.transforms.base import (
    GREY,
    LARGEST_SCALE,
    MIN_VISIBLE,
    Sample,
    grey_level,
    height_and_width,
    number_range,
    operator,
    set_boxes,
    set_image,
    share,
    visible_boxes,
)
from ppfcos.data.transforms.geometry import resized


class MixTransform(BaseOperator, abc.ABC):
    """An operator that asks for further samples of the data set, and mixes them with the one that it is
    given.

    The further samples have gone through the operators that stand before it, as the first one has.
    """

    @abc.abstractmethod
    def partners(self) -> int:
        """How many further samples are wanted this time; may be random, and 0."""

    @abc.abstractmethod
    def mix(self, samples: Sequence[Sample]) -> Sample:
        """Mixes samples.

        Args:
            samples: the one that a batch asked for, and those that were wanted beside it.

        Returns:
            The first one, with another picture and other boxes.
        """

    def apply(self, sample: Sample, context: object = None) -> Sample:
        """Refuses a sample that comes alone.

        Raises:
            ValueError: always.
        """
        raise ValueError("it mixes several samples: it has its place in TrainReader.sample_transforms only")


@operator
class PPFCOSMosaic(MixTransform):
    """Four pictures around a point of one canvas.

    Each picture is resized, its sides' ratio kept, and set into its quarter with a corner at the point; what
    is larger than the quarter is cut to it, at a random place. Boxes of which less than `min_visible` is left
    there, or a side shorter than a pixel, are dropped.

    Args:
        size: of the canvas, [height, width] in pixels.
        prob: the share of the samples that become a mosaic; the others stay as they are.
        scale: range of a picture's size, relative to the largest with which it fits into the canvas.
        center: range of the point, in shares of the canvas's height and width.
        min_visible: as above.
        fill: grey level of what no picture covers.
    """

    def __init__(
        self,
        size: list,
        prob: float = 1.0,
        scale: list = (0.4, 1.0),
        center: list = (0.3, 0.7),
        min_visible: float = MIN_VISIBLE,
        fill: int = GREY,
    ):
        super().__init__()
        self._size = height_and_width("size", size)
        self._prob = share("prob", prob)
        self._scale = number_range("scale", scale, 0.01, LARGEST_SCALE)
        self._center = number_range("center", center, 0, 1)
        self._min_visible = share("min_visible", min_visible)
        self._fill = grey_level("fill", fill)

    def partners(self) -> int:
        """Three, or none."""
        return 3 if np.random.uniform() < self._prob else 0

    def mix(self, samples: Sequence[Sample]) -> Sample:
        """Four samples into one; a single one is returned as it is."""
        first, *others = samples
        if not others:
            return first
        height, width = self._size
        canvas = np.full((height, width, 3), self._fill, dtype=np.uint8)
        y, x = (
            np.rint(np.random.uniform(*self._center, 2) * self._size)
            .astype(int)
            .clip(1, (height - 1, width - 1))
        )
        quarters = ((0, y, 0, x), (0, y, x, width), (y, height, 0, x), (y, height, x, width))
        for sample, (top, bottom, left, right) in zip(samples, quarters):
            factor = min(height / sample["image"].shape[0], width / sample["image"].shape[1])
            factor *= np.random.uniform(*self._scale)
            piece, boxes, kept = self._piece(sample, factor, bottom - top, right - left)
            corner_y = top if top == y else y - len(piece)
            corner_x = left if left == x else x - piece.shape[1]
            canvas[corner_y : corner_y + len(piece), corner_x : corner_x + piece.shape[1]] = piece
            corner = np.array([corner_x, corner_y] * 2, dtype=np.float32)
            set_boxes(sample, boxes + corner, kept)
        set_image(first, canvas)
        _join_boxes(first, samples)
        return first

    def _piece(self, sample: Sample, factor: float, height: int, width: int) -> tuple:
        """A picture resized and cut to a quarter: its pixels, its boxes, and which of them are to stay."""
        image, boxes = resized(sample["image"], sample["gt_bbox"], factor)
        height, width = min(height, len(image)), min(width, image.shape[1])
        top = np.random.randint(len(image) - height + 1)
        left = np.random.randint(image.shape[1] - width + 1)
        boxes = boxes - np.array([left, top] * 2, dtype=np.float32)
        piece = image[top : top + height, left : left + width]
        return (piece, *visible_boxes(boxes, height, width, self._min_visible))


@operator
class PPFCOSMixup(MixTransform):
    """Two pictures, one shining through the other, by PaddleDetection's Mixup.

    The smaller picture's place in the canvas is the upper left corner. Boxes of both stay where they are, but
    those of a picture whose weight is below `min_weight`, which no one could see, are dropped.

    Args:
        prob: the share of the samples that are mixed.
        alpha: of the beta distribution from which the first picture's weight is drawn.
        beta: likewise; above 1 with alpha, weights near a half are the most frequent.
        min_weight: as above.
    """

    def __init__(self, prob: float = 0.5, alpha: float = 8.0, beta: float = 8.0, min_weight: float = 0.2):
        super().__init__()
        self._prob = share("prob", prob)
        self._min_weight = share("min_weight", min_weight)
        self._mixup = Mixup(alpha, beta)

    def partners(self) -> int:
        """One, or none."""
        return 1 if np.random.uniform() < self._prob else 0

    def mix(self, samples: Sequence[Sample]) -> Sample:
        """Two samples into one; a single one is returned as it is."""
        if len(samples) == 1:
            return samples[0]
        mixed = self._mixup(list(samples))
        set_image(mixed, mixed["image"])
        weights = mixed.pop("gt_score", None)  # absent where one picture has all of the weight
        if weights is not None:
            set_boxes(mixed, mixed["gt_bbox"], weights.reshape(-1) >= self._min_weight)
        return mixed


def _join_boxes(first: Sample, samples: Sequence[Sample]) -> None:
    """Gives the first sample the boxes of all."""
    for key in PER_BOX:
        if key in first:
            first[key] = np.concatenate([sample[key] for sample in samples])
