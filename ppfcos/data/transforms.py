"""PaddleDetection's sample transforms, on 8-bit images, and what happens to a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from ppdet.data import transform as operators

from ppfcos.errors import ConfigError

# The network adds levels to one another up to this stride: the sides of a batch must be multiples of it.
COARSEST_ADDED_STRIDE = 32


class TransformError(Exception):
    """A transform failed on an image; the message names the transform."""


class SampleTransforms:
    """The operators of a reader's `sample_transforms` behind `Decode`, in their order.

    Decoding is ours (`ppfcos.data.images`): PaddleDetection's passes a picture that it cannot decode on as
    bytes and takes no notice of a picture cut short or turned by EXIF. Every other operator is
    PaddleDetection's own.

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

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Applies the operators to a decoded sample.

        Args:
            sample: What PaddleDetection's Decode leaves: image [H, W, 3] uint8 RGB, h, w, im_shape,
                scale_factor, and gt_bbox, gt_class, is_crowd where there are boxes to transform. It is
                changed.

        Returns:
            The sample; its image is [3, H, W] uint8 again.

        Raises:
            TransformError: An operator failed.
        """
        for name, operator in self._operators:
            try:
                sample = operator(sample)
            except Exception as error:
                raise TransformError(
                    f"the transform {name} failed: {type(error).__name__}: {error}"
                ) from error
        sample["image"] = _as_pixels(sample["image"])
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
    operator = getattr(operators, name, None)
    if not callable(operator):
        raise ConfigError(f"{section}.sample_transforms: PaddleDetection has no transform {name}")
    try:
        return operator(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{section}.sample_transforms: {name} does not take these arguments: {error}"
        ) from None


def _as_pixels(image: np.ndarray) -> np.ndarray:
    """Operators that compute in floats leave floats: back to whole numbers from 0 to 255."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise TransformError(
            f"the transforms left an image of shape {list(image.shape)}, not [3, height, width]"
        )
    if image.dtype == np.uint8:
        return image
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0), dtype=np.float32)
    # rounds and clips, several times faster than numpy does
    return cv2.add(pixels, 0, dtype=cv2.CV_8U).transpose(2, 0, 1)
