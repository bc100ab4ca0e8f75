"""On which levels the boxes of an image have points, by the model's own assigner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from ppfcos.data.transforms.pipeline import COARSEST_ADDED_STRIDE, pad_stride
from ppfcos.resizing import scaling

NO_LOCATION, COVERED = -1, -2  # in place of a level
_BOXES_AT_ONCE = 32  # each as an image of its own

# count_points(boxes [B, M, 4] float32 in pixels of the input, its height, its width): for each of the B·M
# boxes the points on each of the L levels that are assigned to it, int [B, M, L]
CountPoints = Callable[[np.ndarray, int, int], np.ndarray]


class Resize(NamedTuple):
    """One size to which training may resize.

    Attributes:
        target: (height, width), or with `keep_ratio` the limits of the shorter and of the longer side.
        keep_ratio: Whether both sides get the same factor.
        rounding: One of `ppfcos.resizing.ROUNDINGS`.
    """

    target: tuple[int, int]
    keep_ratio: bool
    rounding: str = "none"


class Geometry(NamedTuple):
    """The input and the levels of the model.

    Attributes:
        count_points: The assigner, see above.
        strides: Of the L levels, in pixels.
        resizes: Every size to which training may resize; empty if images keep their size.
        pad: The input's height and width are padded to multiples of this.
        left_out: Names of transforms that change sizes or places and are not considered.
        size_ranges: The upper ends of the levels' ranges in pixels; empty for assigners without.
        radius: Of center sampling in strides; 0 for assigners without.
    """

    count_points: CountPoints
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    resizes: tuple[Resize, ...] = (Resize((800, 1333), True),)
    pad: int = COARSEST_ADDED_STRIDE
    left_out: tuple[str, ...] = ()
    size_ranges: tuple[float, ...] = (64, 128, 256, 512)
    radius: float = 1.5


class AssignedLevels(NamedTuple):
    """For M boxes of an image.

    Attributes:
        levels: [M] int, the level on which a box has most points at the first size; NO_LOCATION or COVERED
            if it has none at any size.
        sides: [M, 2] float, width and height after resizing to the first size.
    """

    levels: np.ndarray
    sides: np.ndarray


# Transforms that leave a box's size and the number of its points as they are, or nearly so.
_HARMLESS = {"Decode", "Permute", "RandomFlip", "RandomDistort", "RandomErasingImage"}


def input_geometry(
    cfg: Mapping[str, Any], count_points: CountPoints, strides: Sequence[int], assigner: Any
) -> Geometry:
    """The geometry of a configuration's TrainReader and of the model's assigner."""
    reader = cfg.get("TrainReader") or {}
    resizes: list[Resize] = []
    left_out = []
    for entry in reader.get("sample_transforms") or []:
        [(name, arguments)] = entry.items()
        if name in ("Resize", "RandomResize") and not resizes:
            resizes = _resizes(name, arguments or {})
        elif name not in _HARMLESS:
            left_out.append(name)
    return Geometry(
        count_points,
        tuple(strides),
        tuple(resizes),
        pad_stride(reader, "TrainReader"),
        tuple(left_out),
        tuple(getattr(assigner, "size_ranges", ())),
        getattr(assigner, "center_sampling_radius", 0),
    )


def _resizes(name: str, arguments: Mapping[str, Any]) -> list[Resize]:
    targets, keep_ratio = arguments["target_size"], bool(arguments.get("keep_ratio", True))
    rounding = arguments.get("rounding", "none")
    if name == "Resize" or not arguments.get("random_size", True):
        targets = [targets]
    return [Resize((t, t) if isinstance(t, int) else (t[0], t[1]), keep_ratio, rounding) for t in targets]


def assign_levels(boxes: np.ndarray, height: int, width: int, geometry: Geometry) -> AssignedLevels:
    """Assign the boxes of an image to levels.

    Args:
        boxes: [M, 4] float32 x0y0x1y1 in the image's pixels, clipped to it.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        geometry: The input and the levels of the model.
    """
    levels = np.full(len(boxes), NO_LOCATION)
    sides = np.zeros((len(boxes), 2), dtype=np.float32)
    for number, resize in enumerate(geometry.resizes or (Resize((height, width), False),)):
        lost = levels < 0
        if not lost.any():
            break
        (vertical, horizontal), _, pixels = scaling(height, width, *resize)
        # in float32, as PaddleDetection scales them
        resized = boxes * np.array([horizontal, vertical, horizontal, vertical], dtype=np.float32)
        padded = [-(-side // geometry.pad) * geometry.pad for side in pixels]
        counts = geometry.count_points(resized[None], *padded)[0]
        assigned = lost & counts.any(axis=1)
        levels[assigned] = counts.argmax(axis=1)[assigned]
        if number == 0:
            sides = resized[:, 2:] - resized[:, :2]
        alone = np.flatnonzero(levels == NO_LOCATION)
        for some in np.array_split(alone, -(-len(alone) // _BOXES_AT_ONCE)) if len(alone) else ():
            counts = geometry.count_points(resized[some, None], *padded)[:, 0]
            levels[some[counts.any(axis=1)]] = COVERED
    return AssignedLevels(levels, sides)
