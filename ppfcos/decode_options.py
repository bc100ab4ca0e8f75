"""The options of decoding, shared by the network, the ONNX graph and the NumPy decoder."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass, fields
from typing import Any

MAX_COUNT = 2**31 - 1
CHOICES = {"rank_by": ("score", "class"), "clip": ("before", "after", "never")}
MIN_COUNTS = {"pre_nms_top_k": 1, "keep_top_k": -1, "class_top_k": -1}


@dataclass(frozen=True)
class DecodeOptions:
    """How the outputs of the head become boxes.

    The score of a class at a point is sigmoid(class)·sigmoid(quality), or its square root.

    Attributes:
        pre_nms_top_k: candidates (a point and a class) per level before NMS.
        score_threshold: minimum score, exclusive.
        nms_threshold: IoU above which NMS drops the box of the lower score within a class.
        keep_top_k: maximum number of boxes per image; -1 keeps all.
        sqrt_score: take the square root of the score. It changes no order, but the meaning of the threshold.
        class_threshold: minimum of sigmoid(class) alone, exclusive.
        rank_by: what the top-k of a level is taken by: `score`, or `class` for sigmoid(class) alone.
        class_top_k: candidates per class over all levels before NMS; -1 keeps all.
        clip: when boxes are clipped to the image, and empty ones dropped: `before` NMS, `after` it, `never`.
        inclusive: boxes include the pixels of both corners, as in Detectron's early descendants: they are
            clipped to one pixel less than the image, and one pixel wider and higher than their corners.

    Raises:
        ValueError: an option has the wrong type or is out of its range.
    """

    pre_nms_top_k: int = 1000
    score_threshold: float = 0.025
    nms_threshold: float = 0.6
    keep_top_k: int = 100
    sqrt_score: bool = False
    class_threshold: float = 0.0
    rank_by: str = "score"
    class_top_k: int = -1
    clip: str = "before"
    inclusive: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            expected = _problem(field.name, type(field.default), value)
            if expected:
                raise ValueError(f"`{field.name}` is {reprlib.repr(value)}, not {expected}")

    @classmethod
    def of(cls, decode: Any) -> DecodeOptions:
        """The options of an object that has them as attributes, such as a `PPFCOSDecode`."""
        return cls(**{field.name: type(field.default)(getattr(decode, field.name)) for field in fields(cls)})


def _problem(name: str, kind: type, value: Any) -> str:
    """What a value must be, if it is something else; otherwise an empty string."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in CHOICES:
        return "" if value in CHOICES[name] else f"one of {', '.join(CHOICES[name])}"
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is float:
        is_valid = is_number and math.isfinite(value) and 0 <= value <= 1
        return "" if is_valid else "a number from 0 to 1"
    least = MIN_COUNTS[name]
    is_valid = is_number and isinstance(value, int) and least <= value <= MAX_COUNT
    return "" if is_valid else f"a whole number from {least}"
