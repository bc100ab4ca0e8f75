"""From images to the network's inputs, following the bundle's `preprocess` list.

The steps mean what they mean in PaddleDetection's readers and its `deploy/python/preprocess.py`, so that a
deployed model gets the same pixels as in evaluation. Images stay BGR uint8 until they are batched; the
network normalizes them.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable

import cv2
import numpy as np

from ppfcos.deploy.bundle import (
    BGR,
    FLOAT32,
    IM_SHAPE,
    IMAGE,
    MAX_PIXELS,
    MAX_SIDE,
    MAX_STRIDE,
    NCHW,
    NV12,
    RGB,
    SCALE_FACTOR,
    NetworkInput,
)
from ppfcos.deploy.images import NV12Image, Pixels
from ppfcos.deploy.manifest import is_whole
from ppfcos.errors import BundleError, DataError, one_line
from ppfcos.resizing import ROUNDINGS, Scaling, resize_image, scaling

INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)

FLOAT_RGB = NetworkInput(FLOAT32, RGB, NCHW)


@dataclass(frozen=True)
class Sample:
    """One preprocessed image.

    Attributes:
        image: [H, W, 3] BGR uint8; or an NV12Image that no step changed.
        im_shape: height and width without padding. Fractions of a pixel are kept: `im_shape / scale_factor`
            is the size of the original image.
        scale_factor: resized / original height and width.
        size: (height, width) with the padding, which `Preprocess.batch` adds.
    """

    image: Pixels
    im_shape: tuple[float, float]
    scale_factor: tuple[float, float]
    size: tuple[int, int]


class Resize:
    """PaddleDetection's `Resize`.

    Args:
        target_size: one number or (height, width). With `keep_ratio`, the image is scaled until its short
            side is the smaller number or its long side the larger one, whichever comes first.
        keep_ratio: whether height and width have the same scale.
        interp: OpenCV's interpolation flag; 1 is bilinear.
        rounding: how size and factor are rounded, one of `ppfcos.resizing.ROUNDINGS`.
        max_size: (height, width) that the result must fit into, for a network of a fixed size; None: any.
    """

    def __init__(
        self,
        target_size: int | Sequence[int],
        keep_ratio: bool = True,
        interp: int = cv2.INTER_LINEAR,
        rounding: str = "none",
        max_size: tuple[int, int] | None = None,
    ):
        size = tuple(target_size) if isinstance(target_size, (list, tuple)) else (target_size, target_size)
        if len(size) != 2 or not all(is_whole(side, 1, MAX_SIDE) for side in size):
            raise BundleError(
                f"Resize: target_size must be one or two whole numbers from 1 to {MAX_SIDE}, "
                f"not {reprlib.repr(target_size)}"
            )
        if math.prod(size) > MAX_PIXELS:
            raise BundleError(f"Resize: target_size {size} is larger than {MAX_PIXELS} pixels")
        if not isinstance(keep_ratio, bool):
            raise BundleError(f"Resize: keep_ratio must be true or false, not {reprlib.repr(keep_ratio)}")
        if not is_whole(interp, 0, max(INTERPOLATIONS)):
            raise BundleError(
                f"Resize: interp must be one of {', '.join(map(str, INTERPOLATIONS))}, "
                f"not {reprlib.repr(interp)}"
            )
        if rounding not in ROUNDINGS:
            raise BundleError(
                f"Resize: rounding must be one of {', '.join(ROUNDINGS)}, not {reprlib.repr(rounding)}"
            )
        self.target_size = size
        self.keep_ratio = keep_ratio
        self.interp = interp
        self.rounding = rounding
        self.max_size = max_size

    def scaling(self, height: int, width: int) -> Scaling:
        """How an image of this size is resized."""
        return scaling(height, width, self.target_size, self.keep_ratio, self.rounding, self.max_size)

    def __call__(self, sample: Sample) -> Sample:
        to = self.scaling(*sample.size)
        if to.factors == (1, 1):
            return sample
        image = resize_image(_bgr(sample.image), to, self.interp)
        factor_y, factor_x = sample.scale_factor
        scale_y, scale_x = to.factors
        return Sample(image, to.size, (factor_y * scale_y, factor_x * scale_x), image.shape[:2])


class Permute:
    """PaddleDetection's `Permute`; here the network's input determines the layout."""

    def __call__(self, sample: Sample) -> Sample:
        return sample


class PadStride:
    """PaddleDetection's `PadStride`: zeros at the bottom and right up to the next multiple of `stride`."""

    def __init__(self, stride: int = 0):
        if not is_whole(stride, -1, MAX_STRIDE):
            raise BundleError(
                f"PadStride: stride must be a whole number to {MAX_STRIDE}, not {reprlib.repr(stride)}"
            )
        self.stride = stride

    def __call__(self, sample: Sample) -> Sample:
        if self.stride <= 0:
            return sample
        height, width = (math.ceil(side / self.stride) * self.stride for side in sample.size)
        return replace(sample, size=(height, width))


STEPS: dict[str, Callable[..., Callable[[Sample], Sample]]] = {
    "Resize": Resize,
    "Permute": Permute,
    "PadStride": PadStride,
}


class Preprocess:
    """Applies the steps to images and batches them. Stateless.

    Args:
        steps: PaddleDetection's `Preprocess` list: per step a dict of its arguments, its name under `type`.
        input_spec: the network's input. If its size is fixed, images are made to fit and padded to it.

    Raises:
        BundleError: a step is unknown or has a wrong argument.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], input_spec: NetworkInput = FLOAT_RGB):
        self.input_spec = input_spec
        self.steps = [_build_step(step, input_spec.size) for step in steps]

    @property
    def natural_size(self) -> tuple[int, int] | None:
        """(height, width) of an image that no step resizes; None if there is no resizing."""
        sides = [step.target_size for step in self.steps if isinstance(step, Resize)]
        sides += [self.input_spec.size] if self.input_spec.size is not None else []
        return tuple(map(min, zip(*sides))) if sides else None

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest resized image, or of the fixed size; 1 if neither is known."""
        sizes = [step.target_size for step in self.steps if isinstance(step, Resize)]
        return max(math.prod(size) for size in (*sizes, self.input_spec.size or (1, 1)))

    def __call__(self, images: Sequence[Pixels]) -> dict[str, np.ndarray]:
        """`prepare` and `batch` images."""
        return self.batch([self.prepare(image) for image in images])

    def prepare(self, image: Pixels) -> Sample:
        """Apply the steps to one image, [H, W, 3] BGR uint8 or an NV12Image.

        Raises:
            DataError: the image is larger than the network's fixed size, and no step resizes it.
        """
        height, width = (image.height, image.width) if isinstance(image, NV12Image) else image.shape[:2]
        sample = Sample(image, (float(height), float(width)), (1.0, 1.0), (height, width))
        for step in self.steps:
            sample = step(sample)
        if self.input_spec.size is None:
            return sample
        fixed_height, fixed_width = self.input_spec.size
        if sample.im_shape[0] > fixed_height + 0.5 or sample.im_shape[1] > fixed_width + 0.5:
            raise DataError(
                f"an image of {height}x{width} is larger than the network's input, "
                f"{fixed_height}x{fixed_width}, and the bundle does not resize; resize it first"
            )
        return replace(sample, size=self.input_spec.size)

    def batch(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """Batch prepared images, with black images to fill a fixed batch.

        The detections of an image do not depend on the batch only if all its images have one `size`.

        Returns:
            image: padded with zeros: [B, 3, H, W] float32, 0 to 255; or uint8 [B, H, W, 3]; or NV12
                [B, H·3/2, W].
            im_shape: [B, 2] float32, height and width without padding.
            scale_factor: [B, 2] float32, resized / original height and width.
        """
        missing = (self.input_spec.batch or len(samples)) - len(samples)
        size = tuple(max(sides) for sides in zip(*(sample.size for sample in samples)))
        shapes = [sample.im_shape for sample in samples] + [size] * missing
        factors = [sample.scale_factor for sample in samples] + [(1.0, 1.0)] * missing
        pack = {NV12: _nv12_batch}.get(self.input_spec.type, self._pixel_batch)
        return {
            IMAGE: pack([sample.image for sample in samples], len(shapes), size),
            IM_SHAPE: np.array(shapes, np.float32),
            SCALE_FACTOR: np.array(factors, np.float32),
        }

    def _pixel_batch(self, images: Sequence[Pixels], count: int, size: tuple[int, int]) -> np.ndarray:
        shape = (count, 3, *size) if self.input_spec.layout == NCHW else (count, *size, 3)
        batch = np.zeros(shape, np.float32 if self.input_spec.type == FLOAT32 else np.uint8)
        for target, image in zip(batch, map(_bgr, images)):
            height, width = image.shape[:2]
            if self.input_spec.layout == NCHW:
                planes = target if self.input_spec.channels == BGR else target[::-1]
                for plane, channel in zip(planes, cv2.split(image)):
                    plane[:height, :width] = channel
            else:
                target[:height, :width] = image if self.input_spec.channels == BGR else image[:, :, ::-1]
        return batch


def _nv12_batch(images: Sequence[Pixels], count: int, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    batch = np.empty((count, height * 3 // 2, width), np.uint8)
    batch[len(images) :] = NV12Image.of(np.zeros((height, width, 3), np.uint8)).data
    for target, image in zip(batch, images):
        if isinstance(image, NV12Image) and (image.height, image.width) == size:
            target[:] = image.data
            continue
        canvas = np.zeros((height, width, 3), np.uint8)
        pixels = _bgr(image)
        canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
        target[:] = NV12Image.of(canvas).data
    return batch


def _bgr(image: Pixels) -> np.ndarray:
    return image.pixels() if isinstance(image, NV12Image) else image


def _build_step(step: Mapping[str, Any], max_size: tuple[int, int] | None) -> Callable[[Sample], Sample]:
    arguments = dict(step) if isinstance(step, Mapping) else {}
    kind = arguments.pop("type", None)
    if not isinstance(kind, str) or kind not in STEPS:
        raise BundleError(
            f"preprocess: the step {reprlib.repr(kind or step)} is unknown; there are {', '.join(STEPS)}"
        )
    if kind == "Resize":
        arguments["max_size"] = max_size
    try:
        return STEPS[kind](**arguments)
    except TypeError as error:
        raise BundleError(
            f"preprocess: {kind} does not take {reprlib.repr(step)} ({one_line(error)})"
        ) from error
