"""What the transforms share: registration, checks of arguments, and which boxes are kept."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from ppdet.data import transform
from ppdet.data.transform.operators import register_op

from ppfcos.boxes import box_areas
from ppfcos.data.records import PER_BOX, clip_boxes

Sample = dict[str, Any]

GREY = 114  # of pixels that no image covers; the padding of a batch is black
MIN_VISIBLE = 0.25
MIN_VISIBLE_SIDE = 1.0  # pixels, of a box after a transform
MAX_SIDE = 10_000  # pixels, of an image that a transform makes
MAX_SCALE = 10  # of a transform that resizes


def register_transform(cls: type) -> type:
    """Register a transform with PaddleDetection under its class name.

    `register_op` does not add it to `ppdet.data.transform`, where PaddleDetection's readers and RandomSelect
    look transforms up. An existing name is never replaced.
    """
    if hasattr(transform, cls.__name__):
        raise KeyError(f"PaddleDetection already has a transform {cls.__name__}")
    setattr(transform, cls.__name__, register_op(cls))
    return cls


def check_ratio(name: str, value: Any) -> float:
    """Return a number from 0 to 1, or raise ValueError."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} should be a number from 0 to 1, and is {value!r}")
    return float(value)


def check_range(name: str, value: Any, least: float = -np.inf, most: float = np.inf) -> tuple[float, float]:
    """Return two numbers in ascending order within the limits, or raise ValueError."""
    is_pair = isinstance(value, Sequence) and len(value) == 2 and all(_is_number(number) for number in value)
    if not is_pair or not least <= value[0] <= value[1] <= most:
        limits = f" from {least:g} to {most:g}" if np.isfinite(least) else ""
        raise ValueError(f"{name} should be [least, most]{limits}, and is {value!r}")
    return float(value[0]), float(value[1])


def check_gray_level(name: str, value: Any) -> int:
    """Return an integer from 0 to 255, or raise ValueError."""
    if not _is_integer(value) or not 0 <= value <= 255:
        raise ValueError(f"{name} should be a whole number from 0 to 255, and is {value!r}")
    return int(value)


def check_size(name: str, value: Any) -> tuple[int, int]:
    """Return (height, width) in pixels of [height, width] or of one side, or raise ValueError.

    32 is the smallest side that the network takes.
    """
    sides = [value, value] if isinstance(value, Integral) else value
    if (
        not isinstance(sides, Sequence)
        or len(sides) != 2
        or not all(_is_integer(side) and 32 <= side <= MAX_SIDE for side in sides)
    ):
        limits = f"from 32 to {MAX_SIDE}"
        raise ValueError(f"{name} should be [height, width] in pixels, {limits}, and is {value!r}")
    return int(sides[0]), int(sides[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(np.isfinite(value))


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def clip_to_visible(
    boxes: np.ndarray, height: int, width: int, min_visible: float
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to an image, and decide which of them are kept.

    Args:
        boxes: [M, 4] x0y0x1y1, not clipped.
        height: Of the image.
        width: Of the image.
        min_visible: The smallest ratio of a box's area in the image with which it is kept.

    Returns:
        The clipped boxes [M, 4] float32, and bool [M].
    """
    clipped, _ = clip_boxes(boxes, height, width)
    is_large_enough = (clipped[:, 2:] - clipped[:, :2] >= MIN_VISIBLE_SIDE).all(axis=1)
    return clipped, is_large_enough & (box_areas(clipped) >= min_visible * box_areas(boxes))


def set_boxes(sample: Sample, boxes: np.ndarray, kept: np.ndarray) -> None:
    """Replace the boxes of a sample by [M, 4] others, and drop all rows that are not kept, bool [M]."""
    sample["gt_bbox"] = boxes
    for key in PER_BOX:
        if key in sample:
            sample[key] = sample[key][kept]


def set_image(sample: Sample, image: np.ndarray) -> None:
    """Replace the image of a sample [H, W, 3], and its size."""
    sample["image"] = image
    sample["im_shape"] = np.array(image.shape[:2], dtype=np.float32)
