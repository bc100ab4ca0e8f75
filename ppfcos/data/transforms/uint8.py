"""PaddleDetection's commonest operators, kept to 8-bit pixels.

PaddleDetection's own resize by way of 32-bit floats, four times the memory for the same pixels, and flip by a
view that the next operator has to untangle. What they do to boxes and to the record stays theirs, and they
draw the same numbers from the same generators; tests compare both.
"""

from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
from ppdet.data.transform import operators

Sample = dict[str, Any]


class UInt8Resize(operators.Resize):
    """`Resize`: to a size, or to the largest that keeps the ratio within one. Arguments as there."""

    def apply(self, sample: Sample, context: Any = None) -> Sample:
        """Resizes the image and all that the sample says of it."""
        height, width = sample["image"].shape[:2]
        sample["image"] = self.resized(sample["image"])
        return self.scale_annotation(sample, height, width)

    def resized(self, image: np.ndarray) -> np.ndarray:
        """The image [H, W, 3] in its new size, by the exact factors; at least one pixel high and wide."""
        scale_y, scale_x = self.scales(*image.shape[:2])
        if min(image.shape[0] * scale_y, image.shape[1] * scale_x) > 0.5:
            return self.apply_image(image, [scale_x, scale_y])
        return cv2.resize(image, self.size_of(*image.shape[:2])[::-1], interpolation=self.interp)

    def scale_annotation(self, sample: Sample, height: int, width: int) -> Sample:
        """All of `apply` but the pixels, for an image that is resized already.

        Args:
            sample: With im_shape, scale_factor and gt_bbox of the image as it was; changed.
            height: Of the image as it was, in pixels.
            width: Likewise.
        """
        scale_y, scale_x = self.scales(height, width)
        size = [scale_x * width, scale_y * height]
        before = sample.get("scale_factor", (1.0, 1.0))
        sample["im_shape"] = np.array(size[::-1], dtype=np.float32)
        sample["scale_factor"] = np.array([before[0] * scale_y, before[1] * scale_x], dtype=np.float32)
        if len(sample.get("gt_bbox", ())):
            sample["gt_bbox"] = self.apply_bbox(sample["gt_bbox"], [scale_x, scale_y], size)
        return sample

    def scales(self, height: int, width: int) -> tuple[float, float]:
        """By how much an image of this size grows, vertically and horizontally."""
        if not self.keep_ratio:
            return self.target_size[0] / height, self.target_size[1] / width
        shorter, longer = min(self.target_size), max(self.target_size)
        scale = min(shorter / min(height, width), longer / max(height, width))
        return scale, scale

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels of what becomes of an image of this size, at least 1."""
        scale_y, scale_x = self.scales(height, width)
        # halves to even, as OpenCV does
        return max(1, round(height * scale_y)), max(1, round(width * scale_x))


class UInt8RandomResize(operators.RandomResize):
    """`RandomResize`: a `Resize` to a size that is drawn anew for every image. Arguments as there."""

    def apply(self, sample: Sample, context: Any = None) -> Sample:
        """Draws a size and resizes to it."""
        if self.random_range:
            (least, least_long), (most, most_long) = self.target_size
            target = [np.random.randint(least, most + 1), max(least_long, most_long + 1)]
        else:
            target = random.choice(self.target_size) if self.random_size else self.target_size
        interp = random.choice(self.interps) if self.random_interp else self.interp
        return UInt8Resize(target, self.keep_ratio, interp)(sample)


class UInt8RandomFlip(operators.RandomFlip):
    """`RandomFlip`: left to right, with a probability. Arguments as there; `prob` may be a whole number."""

    def __init__(self, prob: float = 0.5):
        super().__init__(float(prob))

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """The mirrored picture, in one piece of memory."""
        return cv2.flip(image, 1)


# By the names under which configurations know them.
UINT8_TRANSFORMS = {
    "Resize": UInt8Resize,
    "RandomResize": UInt8RandomResize,
    "RandomFlip": UInt8RandomFlip,
}
