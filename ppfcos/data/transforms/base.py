"""What the operators share: their registration, their arguments, and what becomes of boxes."""

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

GREY = (
    114  # of what no picture covers: dark enough to be background, and unlike the black of a batch's padding
)
MIN_VISIBLE = 0.25
MIN_BOX_SIDE = 1.0  # pixels
LONGEST_SIDE = 10_000  # pixels, of an image that an operator makes
LARGEST_SCALE = 10  # of an image whose size an operator changes


def operator(cls: type) -> type:
    """Make a class known to PaddleDetection's readers, RandomSelect among them, by its name."""
    setattr(transform, cls.__name__, register_op(cls))
    return cls


def share(name: str, value: Any) -> float:
    """A number from 0 to 1.

    Raises:
        ValueError: it is none.
    """
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} should be a number from 0 to 1, and is {value!r}")
    return float(value)


def number_range(name: str, value: Any, least: float = -np.inf, most: float = np.inf) -> tuple[float, float]:
    """Two numbers, the smaller one first, neither beyond a limit.

    Raises:
        ValueError: they are not.
    """
    two = isinstance(value, Sequence) and len(value) == 2 and all(_is_number(number) for number in value)
    if not two or not least <= value[0] <= value[1] <= most:
        limits = f" from {least:g} to {most:g}" if np.isfinite(least) else ""
        raise ValueError(f"{name} should be [least, most]{limits}, and is {value!r}")
    return float(value[0]), float(value[1])


def grey_level(name: str, value: Any) -> int:
    """A whole number from 0 to 255.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= value <= 255:
        raise ValueError(f"{name} should be a whole number from 0 to 255, and is {value!r}")
    return int(value)


def height_and_width(name: str, value: Any) -> tuple[int, int]:
    """A size in pixels: [height, width], or one number for both; 32 is the least that the network takes.

    Raises:
        ValueError: it is none.
    """
    sides = [value, value] if isinstance(value, Integral) else value
    if not isinstance(sides, Sequence) or len(sides) != 2 or any(not _is_pixels(side) for side in sides):
        limits = f"from 32 to {LONGEST_SIDE}"
        raise ValueError(f"{name} should be [height, width] in pixels, {limits}, and is {value!r}")
    return int(sides[0]), int(sides[1])


def visible_boxes(
    boxes: np.ndarray, height: int, width: int, min_visible: float
) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes to a picture and says which of them are to stay.

    Args:
        boxes: [M, 4] x0y0x1y1, as far beyond the picture as they reach.
        height: of the picture.
        width: likewise.
        min_visible: the least share of a box's area that must lie in the picture.

    Returns:
        [M, 4] float32 clipped, and bool [M].
    """
    clipped, _ = clip_boxes(boxes, height, width)
    long_enough = (clipped[:, 2:] - clipped[:, :2] >= MIN_BOX_SIDE).all(axis=1)
    return clipped, long_enough & (box_areas(clipped) >= min_visible * box_areas(boxes))


def set_boxes(sample: Sample, boxes: np.ndarray, kept: np.ndarray) -> None:
    """Gives a sample its boxes, and drops all that belongs to those that are not to stay.

    Args:
        sample: changed.
        boxes: [M, 4] in the place of those that it has.
        kept: bool [M].
    """
    sample["gt_bbox"] = boxes
    for key in PER_BOX:
        if key in sample:
            sample[key] = sample[key][kept]


def set_image(sample: Sample, image: np.ndarray) -> None:
    """Gives a sample another picture, and its size.

    Args:
        sample: changed.
        image: [H, W, 3].
    """
    sample["image"] = image
    sample["im_shape"] = np.array(image.shape[:2], dtype=np.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(np.isfinite(value))


def _is_pixels(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 32 <= value <= LONGEST_SIDE
