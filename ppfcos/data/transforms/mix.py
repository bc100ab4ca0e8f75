"""Transforms that make one sample of several images: mosaic and mixup."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np
from ppdet.data.transform.operators import BaseOperator, Mixup

from ppfcos.data.records import PER_BOX
from ppfcos.data.transforms.augment import resize
from ppfcos.data.transforms.base import (
    GREY,
    MAX_SCALE,
    MIN_VISIBLE,
    Sample,
    check_gray_level,
    check_range,
    check_ratio,
    check_size,
    clip_to_visible,
    register_transform,
    set_boxes,
    set_image,
)


class MixTransform(BaseOperator, abc.ABC):
    """A transform that mixes further samples of the data set into a sample.

    The further samples have gone through the transforms before this one, as the first sample has.
    """

    @abc.abstractmethod
    def draw_mix_count(self) -> int:
        """The number of further samples this time; may be random, and 0."""

    @abc.abstractmethod
    def mix(self, samples: Sequence[Sample]) -> Sample:
        """Mix samples.

        Args:
            samples: The sample of the batch, and the further samples.

        Returns:
            The first sample with a new image and new boxes.
        """

    def apply(self, sample: Sample, context: object = None) -> Sample:
        """Raise ValueError: there are no further samples."""
        raise ValueError("it mixes several samples: use it in TrainReader.sample_transforms itself only")


@register_transform
class PPFCOSMosaic(MixTransform):
    """Four images around a random point of one canvas.

    Each image is resized with its aspect ratio, placed in its quarter with a corner at the point, and cropped
    at random where it is larger than the quarter. Boxes of which less than `min_visible` is left, or with a
    side shorter than a pixel, are dropped.

    Args:
        size: Of the canvas, [height, width] in pixels.
        prob: Probability of a mosaic.
        scale: Range of an image's size, relative to the largest that fits into the canvas.
        center: Range of the point, as a ratio of the canvas's height and width.
        min_visible: The smallest visible ratio with which a box is kept.
        fill: Gray level of pixels that no image covers.
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
        self._size = check_size("size", size)
        self._prob = check_ratio("prob", prob)
        self._scale = check_range("scale", scale, 0.01, MAX_SCALE)
        self._center = check_range("center", center, 0, 1)
        self._min_visible = check_ratio("min_visible", min_visible)
        self._fill = check_gray_level("fill", fill)

    def draw_mix_count(self) -> int:
        """Three, or none."""
        return 3 if np.random.uniform() < self._prob else 0

    def mix(self, samples: Sequence[Sample]) -> Sample:
        """Mix four samples; a single one is returned unchanged."""
        if len(samples) == 1:
            return samples[0]
        height, width = self._size
        canvas = np.full((height, width, 3), self._fill, dtype=np.uint8)
        center = np.rint(np.random.uniform(*self._center, 2) * self._size).astype(int)
        y, x = center.clip(1, (height - 1, width - 1))
        quarters = ((0, y, 0, x), (0, y, x, width), (y, height, 0, x), (y, height, x, width))
        for sample, (top, bottom, left, right) in zip(samples, quarters):
            fit = min(height / sample["image"].shape[0], width / sample["image"].shape[1])
            factor = fit * np.random.uniform(*self._scale)
            crop, boxes, kept = self._crop(sample, factor, bottom - top, right - left)
            crop_y = top if top == y else y - len(crop)
            crop_x = left if left == x else x - crop.shape[1]
            canvas[crop_y : crop_y + len(crop), crop_x : crop_x + crop.shape[1]] = crop
            corner = np.array([crop_x, crop_y] * 2, dtype=np.float32)
            set_boxes(sample, boxes + corner, kept)
        mixed = samples[0]
        set_image(mixed, canvas)
        for key in PER_BOX:
            if key in mixed:
                mixed[key] = np.concatenate([sample[key] for sample in samples])
        return mixed

    def _crop(self, sample: Sample, factor: float, height: int, width: int) -> tuple:
        """Resize an image and crop it to a quarter: its pixels, its boxes, and which of them are kept."""
        image, boxes = resize(sample["image"], sample["gt_bbox"], factor)
        height, width = min(height, len(image)), min(width, image.shape[1])
        top = np.random.randint(len(image) - height + 1)
        left = np.random.randint(image.shape[1] - width + 1)
        boxes = boxes - np.array([left, top] * 2, dtype=np.float32)
        crop = image[top : top + height, left : left + width]
        return (crop, *clip_to_visible(boxes, height, width, self._min_visible))


@register_transform
class PPFCOSMixup(MixTransform):
    """A weighted mean of two images, by PaddleDetection's Mixup.

    Both images start at the upper left corner. Boxes of both are kept, except those of an image whose weight
    is below `min_weight`.

    Args:
        prob: Probability of a mixup.
        alpha: Of the beta distribution of the first image's weight.
        beta: Of the beta distribution; with alpha and beta above 1, weights near 0.5 are the most frequent.
        min_weight: The smallest weight of an image whose boxes are kept.
    """

    def __init__(self, prob: float = 0.5, alpha: float = 8.0, beta: float = 8.0, min_weight: float = 0.2):
        super().__init__()
        self._prob = check_ratio("prob", prob)
        self._min_weight = check_ratio("min_weight", min_weight)
        self._mixup = Mixup(alpha, beta)

    def draw_mix_count(self) -> int:
        """One, or none."""
        return 1 if np.random.uniform() < self._prob else 0

    def mix(self, samples: Sequence[Sample]) -> Sample:
        """Mix two samples; a single one is returned unchanged."""
        if len(samples) == 1:
            return samples[0]
        mixed = self._mixup(list(samples))
        set_image(mixed, mixed["image"])
        weights = mixed.pop("gt_score", None)  # absent where one image has a weight of 1
        if weights is not None:
            set_boxes(mixed, mixed["gt_bbox"], weights.reshape(-1) >= self._min_weight)
        return mixed
