"""PaddleDetection's transforms on 8-bit images.

PaddleDetection resizes in 32-bit floats, which takes four times the memory for the same pixels, and flips by
a view, which the next transform has to copy. Boxes, keys and random draws are PaddleDetection's. Resize and
RandomResize have one more argument, `rounding`.
"""

from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
from ppdet.data import transform as ppdet_transforms
from ppdet.data.transform import operators

from ppfcos.resizing import ROUNDINGS, Scaling, resize_image, scaling

Sample = dict[str, Any]


class UInt8Resize(operators.Resize):
    """`Resize`: to a size, or to the largest one within it that keeps the aspect ratio.

    Args:
        target_size: As `ppfcos.resizing.scaling` takes it, or one number for both sides.
        keep_ratio: Whether to keep the aspect ratio.
        interp: Interpolation of OpenCV.
        rounding: How size and factor are rounded, one of `ppfcos.resizing.ROUNDINGS`.
    """

    def __init__(
        self, target_size: Any, keep_ratio: bool, interp: int = cv2.INTER_LINEAR, rounding: str = "none"
    ):
        super().__init__(target_size, keep_ratio, interp)
        self.rounding = _check_rounding(rounding)

    def apply(self, sample: Sample, context: Any = None) -> Sample:
        """Resize the image, its boxes, im_shape and scale_factor."""
        to = self.scaling(*sample["image"].shape[:2])
        scale_y, scale_x = to.factors
        before_y, before_x = map(float, sample.get("scale_factor", (1.0, 1.0)))
        sample["image"] = resize_image(sample["image"], to, self.interp)
        sample["im_shape"] = np.array(to.size, dtype=np.float32)
        sample["scale_factor"] = np.array([before_y * scale_y, before_x * scale_x], dtype=np.float32)
        if len(sample.get("gt_bbox", ())):
            sample["gt_bbox"] = self.apply_bbox(sample["gt_bbox"], [scale_x, scale_y], to.size[::-1])
        return sample

    def scaling(self, height: int, width: int) -> Scaling:
        """How an image of this size is resized."""
        return scaling(height, width, self.target_size, self.keep_ratio, self.rounding)


class UInt8RandomResize(operators.RandomResize):
    """`RandomResize`: `Resize` to a random size for each image."""

    def __init__(
        self,
        target_size: Any,
        keep_ratio: bool = True,
        interp: int = cv2.INTER_LINEAR,
        random_range: bool = False,
        random_size: bool = True,
        random_interp: bool = False,
        rounding: str = "none",
    ):
        super().__init__(target_size, keep_ratio, interp, random_range, random_size, random_interp)
        self.rounding = _check_rounding(rounding)

    def apply(self, sample: Sample, context: Any = None) -> Sample:
        """Draw a size and resize."""
        if self.random_range:
            (least, least_long), (most, most_long) = self.target_size
            target = [np.random.randint(least, most + 1), max(least_long, most_long + 1)]
        else:
            target = random.choice(self.target_size) if self.random_size else self.target_size
        interp = random.choice(self.interps) if self.random_interp else self.interp
        return UInt8Resize(target, self.keep_ratio, interp, self.rounding)(sample)


class UInt8RandomFlip(operators.RandomFlip):
    """`RandomFlip`: swaps left and right; `prob` may be an integer."""

    def __init__(self, prob: float = 0.5):
        super().__init__(float(prob))

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """The flipped image in contiguous memory."""
        return cv2.flip(image, 1)


class UInt8RandomSelect(operators.RandomSelect):
    """`RandomSelect`: one of two lists of transforms, in which the names have the same meaning as outside."""

    def __init__(self, transforms1: list, transforms2: list, p: float = 0.5):
        super().__init__([], [], p)
        self.transforms1, self.transforms2 = _Chain(transforms1), _Chain(transforms2)


class _Chain:
    def __init__(self, entries: list):
        named = [item for entry in entries for item in entry.items()]
        self.transforms = [find_transform(name)(**(arguments or {})) for name, arguments in named]

    def __call__(self, sample: Sample) -> Sample:
        for each in self.transforms:
            sample = each(sample)
        return sample


# By their names in a configuration.
UINT8_TRANSFORMS = {
    "Resize": UInt8Resize,
    "RandomResize": UInt8RandomResize,
    "RandomFlip": UInt8RandomFlip,
    "RandomSelect": UInt8RandomSelect,
}


def find_transform(name: str) -> Any:
    """The class of a transform: one of UINT8_TRANSFORMS, or else PaddleDetection's; None if there is none."""
    return UINT8_TRANSFORMS.get(name) or getattr(ppdet_transforms, name, None)


def register_in_paddledetection() -> None:
    """Make PaddleDetection's readers use UInt8Resize and UInt8RandomResize, in this process."""
    for name in ("Resize", "RandomResize"):
        setattr(ppdet_transforms, name, UINT8_TRANSFORMS[name])


def _check_rounding(rounding: Any) -> str:
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding should be one of {', '.join(ROUNDINGS)}, and is {rounding!r}")
    return rounding
