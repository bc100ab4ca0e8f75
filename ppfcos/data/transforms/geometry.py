"""Operators that move the pixels of one picture, and the boxes with them."""

from __future__ import annotations

import cv2
import numpy as np
from ppdet.data.transform.operators import BaseOperator

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


def resized(image: np.ndarray, boxes: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """A picture of whole pixels that is about `factor` times as large, and exactly where its boxes are then.

    Args:
        image: [H, W, 3].
        boxes: [M, 4] x0y0x1y1.
        factor: above 0.

    Returns:
        The picture, at least one pixel high and wide, and the boxes [M, 4] float32.
    """
    height, width = image.shape[:2]
    new_height, new_width = max(1, round(height * factor)), max(1, round(width * factor))
    factors = np.array([new_width / width, new_height / height] * 2, dtype=np.float32)
    return cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR), boxes * factors


def moved_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The tight boxes around the corners of boxes that are rotated, scaled and shifted.

    Args:
        boxes: [M, 4] x0y0x1y1.
        matrix: [2, 3] that takes a point (x, y, 1) to its new place.

    Returns:
        [M, 4] float32, not clipped.
    """
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]  # [M, 4 corners, x and y]
    corners = corners @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


@operator
class PPFCOSRandomVerticalFlip(BaseOperator):
    """Turns pictures upside down, for those taken from above; RandomFlip exchanges left and right.

    Args:
        prob: the share of the pictures that are flipped.
    """

    def __init__(self, prob: float = 0.5):
        super().__init__()
        self._prob = share("prob", prob)

    def apply(self, sample: Sample, context: object = None) -> Sample:
        """Flips picture and boxes, or leaves them."""
        if np.random.uniform() < self._prob:
            boxes, height = sample["gt_bbox"], len(sample["image"])
            sample["image"] = sample["image"][::-1]
            upside_down = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1)
            sample["gt_bbox"] = upside_down
        return sample


@operator
class PPFCOSRandomAffine(BaseOperator):
    """Rotates and scales pictures about their middle and shifts them; their size stays.

    A rotated box becomes the tight one around its corners, clipped to the picture. The wider the angle, the
    more it holds beside its object. It is dropped if less than `min_visible` of it, before the clipping, lies
    in the picture, or one of its sides there is shorter than a pixel.

    Args:
        prob: the share of the pictures that are moved.
        degrees: range of the angle; above 0 is clockwise.
        translate: range of the shift, in shares of the height and the width.
        scale: range of the factor.
        min_visible: as above.
        fill: grey level of what the picture does not cover.
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
        self._prob = share("prob", prob)
        self._degrees = number_range("degrees", degrees, -180, 180)
        self._translate = number_range("translate", translate, -1, 1)
        self._scale = number_range("scale", scale, 0.01, 100)
        self._min_visible = share("min_visible", min_visible)
        self._fill = grey_level("fill", fill)

    def apply(self, sample: Sample, context: object = None) -> Sample:
        """Moves picture and boxes, or leaves them."""
        if np.random.uniform() >= self._prob:
            return sample
        height, width = sample["image"].shape[:2]
        matrix = self.draw_matrix(height, width)
        # OpenCV counts from the middle of the first pixel, boxes from its edge
        of_middles = matrix.copy()
        of_middles[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
        sample["image"] = cv2.warpAffine(
            sample["image"], of_middles, (width, height), borderValue=(self._fill,) * 3
        )
        boxes = moved_boxes(sample["gt_bbox"], matrix)
        set_boxes(sample, *visible_boxes(boxes, height, width, self._min_visible))
        return sample

    def draw_matrix(self, height: int, width: int) -> np.ndarray:
        """A random movement.

        Args:
            height: of the picture.
            width: likewise.

        Returns:
            [2, 3] that takes (x, y, 1) to the new x and y, in pixels from the picture's corner.
        """
        angle, factor = np.deg2rad(np.random.uniform(*self._degrees)), np.random.uniform(*self._scale)
        turn = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle, size = np.array([width, height]) / 2, np.array([width, height])
        shift = middle - turn @ middle + np.random.uniform(*self._translate, 2) * size
        return np.concatenate([turn, shift[:, None]], axis=1)


@operator
class PPFCOSScaleJitterCrop(BaseOperator):
    """Resizes pictures by a random factor, then cuts a piece of at most a given size out of them.

    The factor is relative to the one with which the whole picture just fits into the size (scale jittering of
    Ghiasi et al., arXiv 2012.07177). A picture that is smaller afterwards stays so: the batch pads it. The
    piece is looked for where it holds a box; boxes of which less than `min_visible` lies in it, or a side
    shorter than a pixel, are dropped.

    Args:
        size: the most that is cut out, [height, width] in pixels.
        scale: range of the factor.
        attempts: pieces tried until one holds a box; then the last one is taken, without boxes.
        min_visible: as above.
    """

    def __init__(
        self,
        size: list,
        scale: list = (0.5, 2.0),
        attempts: int = 10,
        min_visible: float = MIN_VISIBLE,
    ):
        super().__init__()
        self._size = height_and_width("size", size)
        self._scale = number_range("scale", scale, 0.01, LARGEST_SCALE)
        if not isinstance(attempts, int) or not 1 <= attempts <= 1000:
            raise ValueError(f"attempts should be a whole number from 1 to 1000, and is {attempts!r}")
        self._attempts = attempts
        self._min_visible = share("min_visible", min_visible)

    def apply(self, sample: Sample, context: object = None) -> Sample:
        """Resizes and cuts picture and boxes."""
        height, width = sample["image"].shape[:2]
        fitting = min(self._size[0] / height, self._size[1] / width)
        image, boxes = resized(sample["image"], sample["gt_bbox"], fitting * np.random.uniform(*self._scale))
        crop_height, crop_width = np.minimum(self._size, image.shape[:2])
        for _ in range(self._attempts):
            top = np.random.randint(image.shape[0] - crop_height + 1)
            left = np.random.randint(image.shape[1] - crop_width + 1)
            corner = np.array([left, top, left, top], dtype=np.float32)
            clipped, kept = visible_boxes(boxes - corner, crop_height, crop_width, self._min_visible)
            if kept.any():
                break
        set_image(sample, image[top : top + crop_height, left : left + crop_width])
        set_boxes(sample, clipped, kept)
        return sample
