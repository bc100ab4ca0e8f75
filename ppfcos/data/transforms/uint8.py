"""PaddleDetection's Resize, RandomResize and RandomFlip on 8-bit images.

PaddleDetection resizes in 32-bit floats, which takes four times the memory for the same pixels, and flips by
a view, which the next transform has to copy. Boxes, keys and random draws are PaddleDetection's.
"""

from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
from ppdet.data.transform import operators

Sample = dict[str, Any]


class UInt8Resize(operators.Resize):
    """`Resize`: to a size, or to the largest one within it that keeps the aspect ratio."""

    def apply(self, sample: Sample, context: Any = None) -> Sample:
        """Resize the image, its boxes, im_shape and scale_factor."""
        height, width = sample["image"].shape[:2]
        scale_y, scale_x = self.scales(height, width)
        size = [scale_x * width, scale_y * height]
        before = sample.get("scale_factor", (1.0, 1.0))
        sample["image"] = self.resized(sample["image"])
        sample["im_shape"] = np.array(size[::-1], dtype=np.float32)
        sample["scale_factor"] = np.array([before[0] * scale_y, before[1] * scale_x], dtype=np.float32)
        if len(sample.get("gt_bbox", ())):
            sample["gt_bbox"] = self.apply_bbox(sample["gt_bbox"], [scale_x, scale_y], size)
        return sample

    def resized(self, image: np.ndarray) -> np.ndarray:
        """The image [H, W, 3] resized by the exact factors, to at least one pixel."""
        scale_y, scale_x = self.scales(*image.shape[:2])
        if min(image.shape[0] * scale_y, image.shape[1] * scale_x) > 0.5:
            return self.apply_image(image, [scale_x, scale_y])
        return cv2.resize(image, self.size_of(*image.shape[:2])[::-1], interpolation=self.interp)

    def scales(self, height: int, width: int) -> tuple[float, float]:
        """The vertical and the horizontal scale factor for an image of this size."""
        if not self.keep_ratio:
            return self.target_size[0] / height, self.target_size[1] / width
        shorter, longer = min(self.target_size), max(self.target_size)
        scale = min(shorter / min(height, width), longer / max(height, width))
        return scale, scale

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The resized (height, width) in pixels of an image of this size, at least 1."""
        scale_y, scale_x = self.scales(height, width)
        # rounds half to even, as OpenCV does
        return max(1, round(height * scale_y)), max(1, round(width * scale_x))


class UInt8RandomResize(operators.RandomResize):
    """`RandomResize`: `Resize` to a random size for each image."""

    def apply(self, sample: Sample, context: Any = None) -> Sample:
        """Draw a size and resize."""
        if self.random_range:
            (least, least_long), (most, most_long) = self.target_size
            target = [np.random.randint(least, most + 1), max(least_long, most_long + 1)]
        else:
            target = random.choice(self.target_size) if self.random_size else self.target_size
        interp = random.choice(self.interps) if self.random_interp else self.interp
        return UInt8Resize(target, self.keep_ratio, interp)(sample)


class UInt8RandomFlip(operators.RandomFlip):
    """`RandomFlip`: swaps left and right; `prob` may be an integer."""

    def __init__(self, prob: float = 0.5):
        super().__init__(float(prob))

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """The flipped image in contiguous memory."""
        return cv2.flip(image, 1)


# By their names in a configuration.
UINT8_TRANSFORMS = {
    "Resize": UInt8Resize,
    "RandomResize": UInt8RandomResize,
    "RandomFlip": UInt8RandomFlip,
}
