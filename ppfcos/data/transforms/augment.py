"""Transforms of one image: flip, affine, scale jitter with crop, cutout."""

from __future__ import annotations

import cv2
import numpy as np
from ppdet.data.transform.operators import BaseOperator

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


def resize(image: np.ndarray, boxes: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image [H, W, 3] by about `factor`, to at least one pixel.

    Returns:
        The image, and the boxes [M, 4] float32 scaled by the exact factors.
    """
    height, width = image.shape[:2]
    new_height, new_width = max(1, round(height * factor)), max(1, round(width * factor))
    factors = np.array([new_width / width, new_height / height] * 2, dtype=np.float32)
    return cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR), boxes * factors


def transform_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The tight boxes around the transformed corners of boxes, not clipped.

    Args:
        boxes: [M, 4] x0y0x1y1.
        matrix: [2, 3], maps (x, y, 1).

    Returns:
        [M, 4] float32.
    """
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]  # [M, 4 corners, x and y]
    corners = corners @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


@register_transform
class PPFCOSRandomVerticalFlip(BaseOperator):
    """Flips images upside down, such as aerial images; RandomFlip swaps left and right.

    Args:
        prob: Probability of a flip.
    """

    def __init__(self, prob: float = 0.5):
        super().__init__()
        self._prob = check_ratio("prob", prob)

    def apply(self, sample: Sample, context: object = None) -> Sample:
        """Flip the image and its boxes, or return them unchanged."""
        if np.random.uniform() < self._prob:
            boxes, height = sample["gt_bbox"], len(sample["image"])
            sample["image"] = sample["image"][::-1]
            sample["gt_bbox"] = np.stack(
                [boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1
            )
        return sample


@register_transform
class PPFCOSRandomAffine(BaseOperator):
    """Rotates and scales images about their center and shifts them; their size does not change.

    A rotated box becomes the tight box around its corners, clipped to the image; the larger the angle, the
    more background it holds. A box is dropped if less than `min_visible` of it, before clipping, lies in the
    image, or if one of its sides there is shorter than a pixel.

    Args:
        prob: Probability of the transform.
        degrees: Range of the angle; positive is clockwise.
        translate: Range of the shift, as a ratio of the height and the width.
        scale: Range of the scale factor.
        min_visible: The smallest visible ratio with which a box is kept.
        fill: Gray level of pixels that the image does not cover.
    """

    def __init__(
        self,
        prob: float = 1.0,
        degrees: list = (-10, 10),
        translate: list = (-0.1, 0.1),
        scale: list = (0.8, 1.2),
        min_visible: float = MIN_VISIBLE,
        fill: int = GREY,
    ):
        super().__init__()
        self._prob = check_ratio("prob", prob)
        self._degrees = check_range("degrees", degrees, -180, 180)
        self._translate = check_range("translate", translate, -1, 1)
        self._scale = check_range("scale", scale, 0.01, 100)
        self._min_visible = check_ratio("min_visible", min_visible)
        self._fill = check_gray_level("fill", fill)

    def apply(self, sample: Sample, context: object = None) -> Sample:
        """Transform the image and its boxes, or return them unchanged."""
        if np.random.uniform() >= self._prob:
            return sample
        height, width = sample["image"].shape[:2]
        matrix = self.draw_matrix(height, width)
        # the origin of OpenCV is the center of the first pixel, that of boxes its corner
        pixel_matrix = matrix.copy()
        pixel_matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
        fill = (self._fill,) * 3
        sample["image"] = cv2.warpAffine(sample["image"], pixel_matrix, (width, height), borderValue=fill)
        boxes = transform_boxes(sample["gt_bbox"], matrix)
        set_boxes(sample, *clip_to_visible(boxes, height, width, self._min_visible))
        return sample

    def draw_matrix(self, height: int, width: int) -> np.ndarray:
        """A random matrix [2, 3] that maps (x, y, 1) in pixels from the corner of the image."""
        angle, factor = np.deg2rad(np.random.uniform(*self._degrees)), np.random.uniform(*self._scale)
        rotation = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        center, size = np.array([width, height]) / 2, np.array([width, height])
        shift = center - rotation @ center + np.random.uniform(*self._translate, 2) * size
        return np.concatenate([rotation, shift[:, None]], axis=1)


@register_transform
class PPFCOSScaleJitterCrop(BaseOperator):
    """Resizes images by a random factor and crops them (scale jittering of Ghiasi et al., arXiv 2012.07177).

    The factor is relative to the one with which the whole image just fits into `size`. A smaller image is not
    padded here; the batch does. Crops are drawn until one holds a box. Boxes of which less than `min_visible`
    lies in the crop, or with a side shorter than a pixel, are dropped.

    Args:
        size: Largest size of a crop, [height, width] in pixels.
        scale: Range of the factor.
        attempts: Number of crops tried until one holds a box; the last one is used in any case.
        min_visible: The smallest visible ratio with which a box is kept.
    """

    def __init__(
        self,
        size: list,
        scale: list = (0.5, 2.0),
        attempts: int = 10,
        min_visible: float = MIN_VISIBLE,
    ):
        super().__init__()
        self._size = check_size("size", size)
        self._scale = check_range("scale", scale, 0.01, MAX_SCALE)
        if not isinstance(attempts, int) or not 1 <= attempts <= 1000:
            raise ValueError(f"attempts should be a whole number from 1 to 1000, and is {attempts!r}")
        self._attempts = attempts
        self._min_visible = check_ratio("min_visible", min_visible)

    def apply(self, sample: Sample, context: object = None) -> Sample:
        """Resize and crop the image and its boxes."""
        height, width = sample["image"].shape[:2]
        fit = min(self._size[0] / height, self._size[1] / width)
        image, boxes = resize(sample["image"], sample["gt_bbox"], fit * np.random.uniform(*self._scale))
        crop_height, crop_width = np.minimum(self._size, image.shape[:2])
        for _ in range(self._attempts):
            top = np.random.randint(image.shape[0] - crop_height + 1)
            left = np.random.randint(image.shape[1] - crop_width + 1)
            corner = np.array([left, top, left, top], dtype=np.float32)
            clipped, kept = clip_to_visible(boxes - corner, crop_height, crop_width, self._min_visible)
            if kept.any():
                break
        set_image(sample, image[top : top + crop_height, left : left + crop_width])
        set_boxes(sample, clipped, kept)
        return sample


@register_transform
class PPFCOSCutOut(BaseOperator):
    """Fills random rectangles with gray (cutout; DeVries and Taylor, arXiv 1708.04552).

    A box keeps its size, and is dropped if less than `min_visible` of its pixels are left; PaddleDetection's
    RandomErasing keeps it.

    Args:
        prob: Probability of the transform.
        count: Range of the number of rectangles.
        sides: Range of their height and width, as a ratio of the image's.
        min_visible: The smallest visible ratio with which a box is kept.
        fill: Gray level of the rectangles.
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
        self._prob = check_ratio("prob", prob)
        self._count = tuple(int(number) for number in check_range("count", count, 1, 1000))
        self._sides = check_range("sides", sides, 0, 1)
        self._min_visible = check_ratio("min_visible", min_visible)
        self._fill = check_gray_level("fill", fill)

    def apply(self, sample: Sample, context: object = None) -> Sample:
        """Fill rectangles of the image, or return it unchanged."""
        if np.random.uniform() >= self._prob:
            return sample
        image = sample["image"].copy()  # may be a view of another image
        visible = np.ones(image.shape[:2], dtype=bool)
        for _ in range(np.random.randint(self._count[0], self._count[1] + 1)):
            height, width = np.ceil(np.random.uniform(*self._sides, 2) * visible.shape).astype(int)
            top = np.random.randint(len(image) - height + 1)
            left = np.random.randint(image.shape[1] - width + 1)
            image[top : top + height, left : left + width] = self._fill
            visible[top : top + height, left : left + width] = False
        sample["image"] = image
        boxes = sample["gt_bbox"]
        kept = np.array([_visible_ratio(visible, box) >= self._min_visible for box in boxes], dtype=bool)
        set_boxes(sample, boxes, kept)
        return sample


def _visible_ratio(visible: np.ndarray, box: np.ndarray) -> float:
    """The ratio of visible pixels among those that a box touches."""
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    inside = visible[y0:y1, x0:x1]
    return float(inside.mean()) if inside.size else 0.0
