"""Applies the `sample_transforms` of a reader to a sample, and reads its `batch_transforms`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import cv2
import numpy as np

from ppfcos.data.records import clip_boxes
from ppfcos.data.transforms import MixTransform
from ppfcos.data.transforms.uint8 import find_transform
from ppfcos.errors import ConfigError

Sample = dict[str, Any]

# The FPN adds levels up to this stride: the sides of a batch must be multiples of it.
COARSEST_ADDED_STRIDE = 32

_DEFAULT_MAX_SIDE = 1344


class TransformError(Exception):
    """A transform failed on an image; the message names both."""


class SampleTransforms:
    """The transforms of a reader's `sample_transforms` after `Decode`, in their order.

    `ppfcos.data.images` decodes: PaddleDetection's Decode passes on what it cannot decode as bytes, and does
    not detect truncated images. The other transforms are PaddleDetection's own, or those of
    `ppfcos.data.transforms`. Each of them gets 8-bit pixels, whatever the one before it returns: several of
    PaddleDetection's return floats, and several are correct on 8 bits only.

    Args:
        reader: The reader's section of the configuration, such as TrainReader.
        section: Its name, for messages.

    Raises:
        ConfigError: A transform is unknown or has wrong arguments, or Decode or Permute is not in place.
    """

    def __init__(self, reader: Mapping[str, Any], section: str):
        named = [_name_and_arguments(entry, section) for entry in reader.get("sample_transforms") or []]
        names = [name for name, _ in named]
        if names[:1] != ["Decode"] or names[-1:] != ["Permute"]:
            raise ConfigError(f"{section}.sample_transforms must begin with Decode and end with Permute")
        if "NormalizeImage" in names:
            raise ConfigError(
                f"{section}.sample_transforms: remove NormalizeImage: the model normalizes the 8-bit images "
                "(PPFCOS.image_mean, PPFCOS.image_std)"
            )
        self._transforms = [(name, _build(name, arguments, section)) for name, arguments in named[1:]]

    def __call__(self, sample: Sample, draw: Callable[[], Sample] | None = None) -> Sample:
        """Apply the transforms to a decoded sample, in place.

        Args:
            sample: im_file, image [H, W, 3] uint8 RGB, h, w, im_shape, scale_factor, and with boxes gt_bbox,
                gt_class, is_crowd.
            draw: Returns a random further sample, for transforms that mix several; None if there is none.

        Returns:
            The sample with image [3, H, W] uint8, its size in im_shape, and gt_bbox clipped to it.

        Raises:
            TransformError: A transform failed.
        """
        sample = self._apply(sample, draw, len(self._transforms))
        image = sample["image"]
        if image.ndim != 3 or image.shape[0] != 3:
            raise TransformError(
                f"{sample['im_file']}: the transforms left an image of shape {list(image.shape)}, "
                "not [3, height, width]"
            )
        _update_size(sample, *image.shape[1:])
        return sample

    def max_image_bytes(self) -> int:
        """An upper bound of the bytes of an image in a batch; a guess if nothing resizes."""
        sides = [
            np.max(size)
            for _, transform in self._transforms
            for size in (getattr(transform, "target_size", None), getattr(transform, "size", None))
            if size is not None
        ]
        side = int(max(sides, default=_DEFAULT_MAX_SIDE)) + COARSEST_ADDED_STRIDE
        return 3 * side * side

    def _apply(self, sample: Sample, draw: Callable[[], Sample] | None, count: int) -> Sample:
        """Apply the first `count` transforms; mix images go through those before the one that mixes them."""
        for position, (name, transform) in enumerate(self._transforms[:count]):
            is_mix = isinstance(transform, MixTransform) and draw is not None
            mix_count = transform.draw_mix_count() if is_mix else 0
            samples = [sample, *(self._apply(draw(), draw, position) for _ in range(mix_count))]
            try:
                for each in samples:
                    each["image"] = _to_uint8(each["image"])
                sample = transform.mix(samples) if is_mix else transform(sample)
            except Exception as error:
                raise TransformError(
                    f"{sample['im_file']}: the transform {name} failed: {type(error).__name__}: {error}"
                ) from error
        return sample


def pad_stride(reader: Mapping[str, Any], section: str) -> int:
    """The stride of PadBatch in `batch_transforms`, 32 by default.

    Raises:
        ConfigError: There is a batch transform other than PadBatch and PadGT, or the stride is not a multiple
            of 32.
    """
    stride = COARSEST_ADDED_STRIDE
    for entry in reader.get("batch_transforms") or []:
        name, arguments = _name_and_arguments(entry, section)
        if name not in ("PadBatch", "PadGT"):
            raise ConfigError(
                f"{section}.batch_transforms: remove {name}: only PadBatch and PadGT are supported "
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
            f"{section}: a transform is one name with its arguments, such as `Permute: {{}}`, not {entry!r}"
        )
    [(name, arguments)] = entry.items()
    return name, dict(arguments or {})


def _build(name: str, arguments: dict[str, Any], section: str) -> Any:
    transform = find_transform(name)
    if not callable(transform):
        raise ConfigError(f"{section}.sample_transforms: there is no transform {name}")
    try:
        return transform(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{section}.sample_transforms: {name} does not take these arguments: {error}"
        ) from None


def _to_uint8(image: np.ndarray) -> np.ndarray:
    """Round and clip to 8 bits, in contiguous memory."""
    if image.dtype != np.uint8:
        # several times faster than numpy
        image = cv2.add(np.ascontiguousarray(image, dtype=np.float32), 0, dtype=cv2.CV_8U)
    return np.ascontiguousarray(image)


def _update_size(sample: Sample, height: int, width: int) -> None:
    """Set im_shape and clip the boxes: some of PaddleDetection's crops change neither.

    An im_shape that rounds to the image's size, or to 0 for one pixel, is kept: Resize sets the exact size,
    to which its boxes fit.
    """
    if (np.maximum(np.rint(sample.get("im_shape", 0)), 1) != (height, width)).any():
        sample["im_shape"] = np.array([height, width], dtype=np.float32)
    if "gt_bbox" in sample:
        sample["gt_bbox"], _ = clip_boxes(sample["gt_bbox"], *sample["im_shape"])
