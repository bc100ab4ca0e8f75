"""Which boxes the training will have locations for, at the size to which pictures are resized.

The rule is that of the FCOS paper (section 3.1) with center sampling, in numpy, one picture at a time: the
reading processes need no Paddle. A test compares it with the targets of the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppfcos.boxes import box_areas

NO_LOCATION, COVERED = -1, -2  # in place of a level
_SIDES_ARE_MULTIPLES_OF = 32  # of a batch; see ppfcos.data.transforms


class Resize(NamedTuple):
    """One size to which a training may resize.

    Attributes:
        target: (height, width), or with `keep_ratio` the limits of the shorter and of the longer side.
        keep_ratio: Whether both sides get the same factor.
    """

    target: tuple[int, int]
    keep_ratio: bool

    def factors(self, height: int, width: int) -> tuple[float, float]:
        """Vertical and horizontal factor for a picture of this size, as PaddleDetection's Resize has them."""
        if not self.keep_ratio:
            return self.target[0] / height, self.target[1] / width
        factor = min(min(self.target) / min(height, width), max(self.target) / max(height, width))
        return factor, factor


class Geometry(NamedTuple):
    """What decides about the responsibility for a box.

    Attributes:
        resizes: Every size to which the training may resize; empty where pictures keep theirs.
        strides: Of the L levels, in pixels.
        size_ranges: L − 1 upper ends of the levels' ranges, in pixels.
        radius: Of center sampling, in strides; 0 or less takes the whole box.
        left_out: Names of transforms that change sizes or places and are not considered.
    """

    resizes: tuple[Resize, ...] = (Resize((800, 1333), True),)
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    size_ranges: tuple[float, ...] = (64, 128, 256, 512)
    radius: float = 1.5
    left_out: tuple[str, ...] = ()


class Responsibility(NamedTuple):
    """For M boxes of a picture.

    Attributes:
        levels: [M] int, the level on which a box has the most locations at the first size; NO_LOCATION or
            COVERED where it has none at any size.
        sides: [M, 2] float, width and height after resizing to the first size.
    """

    levels: np.ndarray
    sides: np.ndarray


# Transforms that leave a box's size and the number of its locations as they are, or nearly so.
_HARMLESS = {"Decode", "Permute", "RandomFlip", "RandomDistort", "RandomErasingImage"}


def geometry_of(cfg: Mapping[str, Any], strides: Sequence[int]) -> Geometry:
    """What a configuration says about sizes and responsibility.

    Args:
        cfg: The configuration: TrainReader and PPFCOSTargets.
        strides: Of the levels.
    """
    resizes: list[Resize] = []
    left_out = []
    for entry in (cfg.get("TrainReader") or {}).get("sample_transforms") or []:
        [(name, arguments)] = entry.items()
        if name in ("Resize", "RandomResize") and not resizes:
            resizes = _resizes(name, arguments or {})
        elif name not in _HARMLESS:
            left_out.append(name)
    targets = cfg.get("PPFCOSTargets") or {}
    standard = Geometry()
    return Geometry(
        tuple(resizes),
        tuple(strides),
        tuple(targets.get("size_ranges", standard.size_ranges)),
        targets.get("center_sampling_radius", standard.radius),
        tuple(left_out),
    )


def _resizes(name: str, arguments: Mapping[str, Any]) -> list[Resize]:
    targets, keep_ratio = arguments["target_size"], bool(arguments.get("keep_ratio", True))
    if name == "Resize" or not arguments.get("random_size", True):
        targets = [targets]
    return [Resize((t, t) if isinstance(t, int) else (t[0], t[1]), keep_ratio) for t in targets]


def responsibility(boxes: np.ndarray, height: int, width: int, geometry: Geometry) -> Responsibility:
    """Levels and sizes of a picture's boxes.

    Args:
        boxes: [M, 4] float32 x0y0x1y1 in the picture's pixels, clipped to it.
        height: Of the picture, in pixels.
        width: Likewise.
        geometry: What the configuration says.
    """
    chosen = allowed = None
    levels = sides = None
    for resize in geometry.resizes or (Resize((height, width), False),):
        vertical, horizontal = resize.factors(height, width)
        # in float32, as PaddleDetection scales them
        resized = boxes * np.array([horizontal, vertical, horizontal, vertical], dtype=np.float32)
        size = (round(height * vertical), round(width * horizontal))
        may, does = count_locations(resized, *size, geometry)
        if levels is None:
            levels, sides = does.argmax(axis=1), resized[:, 2:] - resized[:, :2]
            chosen, allowed = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
        chosen |= does.any(axis=1)
        allowed |= may.any(axis=1)
    levels = np.where(chosen, levels, np.where(allowed, COVERED, NO_LOCATION))
    return Responsibility(levels, sides)


def count_locations(
    boxes: np.ndarray, height: int, width: int, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """How many locations may answer for each box, and how many do once smaller boxes had their choice.

    Args:
        boxes: [M, 4] float32 x0y0x1y1 in pixels of the network's input.
        height: Of the resized picture in pixels; the network's input is padded to a multiple of 32.
        width: Likewise.
        geometry: What the configuration says.

    Returns:
        Two arrays [M, L] int.
    """
    may = np.zeros((len(boxes), len(geometry.strides)), dtype=np.int64)
    does = np.zeros_like(may)
    ends = [0.0, *geometry.size_ranges, math.inf]
    areas = box_areas(boxes)
    padded = [-(-side // _SIDES_ARE_MULTIPLES_OF) * _SIDES_ARE_MULTIPLES_OF for side in (height, width)]
    for level, stride in enumerate(geometry.strides):
        rows, columns = (-(-side // stride) for side in padded)
        smallest = np.full((rows, columns), np.inf, dtype=np.float32)
        owner = np.full((rows, columns), -1)
        for number, box in enumerate(boxes):
            if not _may_be_in_range(box, *ends[level : level + 2]):
                continue
            window, inside = _locations_of(box, stride, ends[level : level + 2], (rows, columns), geometry)
            may[number, level] = inside.sum()
            # strictly smaller: of equal boxes the first keeps the location
            won = inside & (areas[number] < smallest[window])
            smallest[window][won], owner[window][won] = areas[number], number
        numbers, counts = np.unique(owner[owner >= 0], return_counts=True)
        does[numbers, level] = counts
    return may, does


def _may_be_in_range(box: np.ndarray, lower: float, upper: float) -> bool:
    """Whether this can be a level of the box: the largest distance is half its longer side or more."""
    longest = float(max(box[2] - box[0], box[3] - box[1]))
    return longest / 2 <= upper and longest > lower


def _locations_of(
    box: np.ndarray, stride: int, ends: Sequence[float], shape: tuple[int, int], geometry: Geometry
) -> tuple[tuple[slice, slice], np.ndarray]:
    """The part of a level's grid around a box, and which of its locations may answer for the box."""
    reach = geometry.radius * stride if geometry.radius > 0 else math.inf
    window = tuple(
        _cells(float(box[axis]), float(box[axis + 2]), reach, stride, shape[1 - axis]) for axis in (1, 0)
    )
    ys, xs = (
        (np.arange(part.start, part.stop, dtype=np.float32) + np.float32(0.5)) * np.float32(stride)
        for part in window
    )
    left, right = (xs - box[0])[None], (box[2] - xs)[None]
    top, bottom = (ys - box[1])[:, None], (box[3] - ys)[:, None]
    nearest = np.minimum(np.minimum(left, right), np.minimum(top, bottom))
    farthest = np.maximum(np.maximum(left, right), np.maximum(top, bottom))
    off_centre = np.maximum(abs(left - right), abs(top - bottom)) / 2
    return window, (nearest > 0) & (farthest > ends[0]) & (farthest <= ends[1]) & (off_centre < reach)


def _cells(low: float, high: float, reach: float, stride: int, count: int) -> slice:
    """The cells of one axis that can hold a location between two sides and near their middle, or one more."""
    middle = (low + high) / 2
    first = math.floor(max(low, middle - reach) / stride) - 1
    last = math.ceil(min(high, middle + reach) / stride) + 1
    return slice(min(max(first, 0), count), max(min(last, count), 0))
