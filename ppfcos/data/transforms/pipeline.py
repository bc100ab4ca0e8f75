"""PaddleDetection's sample transforms and ours, on 8-bit images, and what happens to a batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Callable

import cv2
import numpy as np
from ppdet.data import transform as operators

from ppfcos.data.records import clip_boxes
from ppfcos.data.transforms import MixTransform
from ppfcos.data.transforms.uint8 import UINT8_TRANSFORMS, UInt8Resize
from ppfcos.errors import ConfigError

Sample = dict[str, Any]

# The network adds levels to one another up to this stride: the sides of a batch must be multiples of it.
COARSEST_ADDED_STRIDE = 32

_SIDE_IF_NOTHING_RESIZES = 1344


class TransformError(Exception):
    """A transform failed on an image; the message names both."""


class SampleTransforms:
    """The operators of a reader's `sample_transforms` behind `Decode`, in their order.

    Decoding is ours (`ppfcos.data.images`): PaddleDetection's passes a picture that it cannot decode on as
    bytes and takes no notice of a picture cut short or turned by EXIF. The other operators are
    PaddleDetection's own (the commonest in the form of `ppfcos.data.transforms.uint8`) and those of
    `ppfcos.data.transforms`. Each of them is given 8-bit pixels, whatever the one before it left: several of
    PaddleDetection's leave floats, and several are right on 8 bits only.

    Args:
        reader: The configuration's section, such as that of TrainReader.
        section: Its name, for messages.

    Raises:
        ConfigError: An operator is unknown or has wrong arguments, or Decode and Permute are not in place.
    """

    def __init__(self, reader: Mapping[str, Any], section: str):
        named = [_name_and_arguments(entry, section) for entry in reader.get("sample_transforms") or []]
        names = [name for name, _ in named]
        if names[:1] != ["Decode"] or names[-1:] != ["Permute"]:
            raise ConfigError(f"{section}.sample_transforms must begin with Decode and end with Permute")
        if "NormalizeImage" in names:
            raise ConfigError(
                f"{section}.sample_transforms: leave NormalizeImage out: images travel as 8-bit pixels "
                "and the model normalises them (PPFCOS.image_mean, PPFCOS.image_std)"
            )
        self._operators = [(name, _build(name, arguments, section)) for name, arguments in named[1:]]

    def __call__(self, sample: Sample, draw: Callable[[], Sample] | None = None) -> Sample:
        """Applies the operators to a decoded sample.

        Args:
            sample: What PaddleDetection's Decode leaves: im_file, image [H, W, 3] uint8 RGB, h, w, im_shape,
                scale_factor, and gt_bbox, gt_class, is_crowd where there are boxes to transform. It is
                changed.
            draw: Gives a further such sample, at random, for operators that mix several; None where only one
                is to be had.

        Returns:
            The sample; its image is [3, H, W] uint8, im_shape its size and gt_bbox within it.

        Raises:
            TransformError: An operator failed.
        """
        sample = self._apply(sample, draw, len(self._operators))
        image = sample["image"]
        if image.ndim != 3 or image.shape[0] != 3:
            raise TransformError(
                f"{sample['im_file']}: the transforms left an image of shape {list(image.shape)}, "
                "not [3, height, width]"
            )
        _state_size(sample, *image.shape[1:])
        return sample

    def without_leading_resize(self) -> tuple[UInt8Resize, SampleTransforms] | None:
        """A Resize that comes first, and the operators behind it; None if another operator comes first."""
        if not isinstance(self._operators[0][1], UInt8Resize):
            return None
        rest = copy.copy(self)
        rest._operators = self._operators[1:]
        return self._operators[0][1], rest

    def largest_bytes(self) -> int:
        """More than an image has once it is padded to the others of its batch; a guess if nothing resizes."""
        sides = [
            np.max(size)
            for _, operator in self._operators
            for size in (getattr(operator, "target_size", None), getattr(operator, "size", None))
            if size is not None
        ]
        side = int(max(sides, default=_SIDE_IF_NOTHING_RESIZES)) + COARSEST_ADDED_STRIDE
        return 3 * side * side

    def _apply(self, sample: Sample, draw: Callable[[], Sample] | None, count: int) -> Sample:
        """The first `count` operators; what they mix in has gone through those before them."""
        for position, (name, operator) in enumerate(self._operators[:count]):
            mixes = isinstance(operator, MixTransform) and draw is not None
            partners = operator.partners() if mixes else 0
            samples = [sample, *(self._apply(draw(), draw, position) for _ in range(partners))]
            try:
                for each in samples:
                    each["image"] = _as_pixels(each["image"])
                sample = operator.mix(samples) if mixes else operator(sample)
            except Exception as error:
                raise TransformError(
                    f"{sample['im_file']}: the transform {name} failed: {type(error).__name__}: {error}"
                ) from error
        return sample


def pad_stride(reader: Mapping[str, Any], section: str) -> int:
    """The multiple that a batch's height and width are padded to, from `batch_transforms`.

    Raises:
        ConfigError: There is a batch transform other than PadBatch and PadGT, or the stride is not a multiple
            of 32.
    """
    stride = COARSEST_ADDED_STRIDE
    for entry in reader.get("batch_transforms") or []:
        name, arguments = _name_and_arguments(entry, section)
        if name not in ("PadBatch", "PadGT"):
            raise ConfigError(
                f"{section}.batch_transforms: {name} is not understood: only PadBatch and PadGT are "
                "(targets are made on the device)"
            )
        stride = arguments.get("pad_to_stride", stride)
    if not isinstance(stride, int) or stride < 1 or stride % COARSEST_ADDED_STRIDE:
        raise ConfigError(
            f"{section}.batch_transforms: PadBatch.pad_to_stride is {stride!r}: "
            f"it must be a multiple of {COARSEST_ADDED_STRIDE}"
        )
    return stride


def _name_and_arguments(entry: Any, section: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ConfigError(
            f"{section}: every transform is one name with its arguments, such as `Permute: {{}}`, "
            f"not {entry!r}"
        )
    [(name, arguments)] = entry.items()
    return name, dict(arguments or {})


def _build(name: str, arguments: dict[str, Any], section: str) -> Any:
    operator = UINT8_TRANSFORMS.get(name) or getattr(operators, name, None)
    if not callable(operator):
        raise ConfigError(f"{section}.sample_transforms: there is no transform {name}")
    try:
        return operator(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{section}.sample_transforms: {name} does not take these arguments: {error}"
        ) from None


def _as_pixels(image: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 255, in one piece of memory."""
    if image.dtype != np.uint8:
        # rounds and clips, several times faster than numpy does
        image = cv2.add(np.ascontiguousarray(image, dtype=np.float32), 0, dtype=cv2.CV_8U)
    return np.ascontiguousarray(image)


def _state_size(sample: Sample, height: int, width: int) -> None:
    """Several of PaddleDetection's crops leave im_shape as it was, and boxes up to a pixel beyond the edge.

    A stated size that rounds to the right one is kept: Resize states the exact one, and its boxes fit that. A
    side that rounds to 0 has one pixel.
    """
    if (np.maximum(np.rint(sample.get("im_shape", 0)), 1) != (height, width)).any():
        sample["im_shape"] = np.array([height, width], dtype=np.float32)
    if "gt_bbox" in sample:
        sample["gt_bbox"], _ = clip_boxes(sample["gt_bbox"], *sample["im_shape"])
