"""Size and factors of a resized image, for training, the data-set checker and deployment alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

# How `Resize` with `keep_ratio` computes size and factor of a side:
# none: size = side · factor, not rounded; OpenCV rounds the pixels only (paddledet 2.6.0).
# nearest: size = int(side · factor + 0.5), then factor = size / side (PaddleDetection since 2.6.1,
#     mmcv.imrescale, Detectron2's ResizeShortestEdge).
# floor: size = floor(side · factor), then factor = size / side (torchvision's GeneralizedRCNNTransform).
ROUNDINGS = ("none", "nearest", "floor")
_ADDED = {"nearest": 0.5, "floor": 0.0}


class Scaling(NamedTuple):
    """How an image is resized.

    Attributes:
        factors: (vertical, horizontal), by which boxes are multiplied.
        size: (height, width) after resizing, original size · factors; whole numbers unless the rounding is
            `none`.
        pixels: (height, width) of the resized image, at least 1.
    """

    factors: tuple[float, float]
    size: tuple[float, float]
    pixels: tuple[int, int]


def scaling(
    height: int,
    width: int,
    target_size: Sequence[int],
    keep_ratio: bool = True,
    rounding: str = "none",
    max_size: tuple[int, int] | None = None,
) -> Scaling:
    """How PaddleDetection's `Resize` resizes an image of this size.

    Args:
        height: Of the image.
        width: Of the image.
        target_size: (height, width). With `keep_ratio`, the image is scaled until its shorter side is the
            smaller number or its longer side the larger one, whichever comes first.
        keep_ratio: Whether height and width get the same factor, apart from rounding.
        rounding: One of ROUNDINGS; without `keep_ratio` the sizes are whole numbers.
        max_size: (height, width) into which the result has to fit; None if there is no limit.
    """
    max_height, max_width = max_size or (math.inf, math.inf)
    if keep_ratio:
        factor = min(min(target_size) / min(height, width), max(target_size) / max(height, width))
        factors = (min(factor, max_height / height, max_width / width),) * 2
    else:
        factors = min(target_size[0], max_height) / height, min(target_size[1], max_width) / width
    size = height * factors[0], width * factors[1]
    if not keep_ratio or rounding == "none":
        return Scaling(factors, size, (max(1, round(size[0])), max(1, round(size[1]))))
    pixels = tuple(max(1, int(side + _ADDED[rounding])) for side in size)
    return Scaling((pixels[0] / height, pixels[1] / width), pixels, pixels)


def resize_image(image: np.ndarray, to: Scaling, interp: int) -> np.ndarray:
    """Resize an image [H, W, 3] with an interpolation of OpenCV; returns it unchanged for factors of 1."""
    if to.factors == (1, 1):
        return image
    if to.size == to.pixels or min(to.size) <= 0.5:  # of factors alone, OpenCV would make a side of 0 pixels
        return cv2.resize(image, to.pixels[::-1], interpolation=interp)
    return cv2.resize(image, None, fx=to.factors[1], fy=to.factors[0], interpolation=interp)
