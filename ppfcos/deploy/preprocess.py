"""From an image to the network's inputs, as the bundle's `preprocess` list says it.

The steps mean what they mean in PaddleDetection's readers and in its `deploy/python/preprocess.py`: a model
must see in deployment the very pixels that it saw in evaluation. Images stay uint8, blue first, until a batch
is put together in the form that the network takes; they are not normalised here, the network does that.
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
from ppfcos.errors import BundleError, DataError, one_line

# OpenCV's numbers of its interpolations: nearest, linear, cubic, area, Lanczos.
INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)

FLOAT_RGB = NetworkInput(FLOAT32, RGB, NCHW)


@dataclass(frozen=True)
class Sample:
    """One image on its way to the network.

    Attributes:
        image: [H, W, 3] uint8, blue first; or an NV12Image that needs no preparation.
        im_shape: height and width of the part that is image, not padding. Fractions of a pixel are kept:
            `im_shape / scale_factor` is the size of the original image.
        scale_factor: resized height / original height, resized width / original width.
        size: (height, width) with the padding, which is added when the batch is put together.
    """

    image: Pixels
    im_shape: tuple[float, float]
    scale_factor: tuple[float, float]
    size: tuple[int, int]


class Resize:
    """PaddleDetection's `Resize`.

    Args:
        target_size: one number or (height, width). With `keep_ratio` the short side becomes the smaller of
            the two, unless the long side would then exceed the larger one, which then decides.
        keep_ratio: whether height and width are scaled alike.
        interp: OpenCV's number of the interpolation; 1 is bilinear.
        room: (height, width) that the result must fit into, for a network of a fixed size; None: any.
    """

    def __init__(
        self,
        target_size: int | Sequence[int],
        keep_ratio: bool = True,
        interp: int = cv2.INTER_LINEAR,
        room: tuple[int, int] | None = None,
    ):
        size = tuple(target_size) if isinstance(target_size, (list, tuple)) else (target_size, target_size)
        if len(size) != 2 or not all(_is_whole(side, 1, MAX_SIDE) for side in size):
            raise BundleError(
                f"Resize: target_size must be one or two whole numbers from 1 to {MAX_SIDE}, "
                f"not {reprlib.repr(target_size)}"
            )
        if math.prod(size) > MAX_PIXELS:
            raise BundleError(f"Resize: target_size {size} is larger than {MAX_PIXELS} pixels")
        if not isinstance(keep_ratio, bool):
            raise BundleError(f"Resize: keep_ratio must be true or false, not {reprlib.repr(keep_ratio)}")
        if not _is_whole(interp, 0, max(INTERPOLATIONS)):
            raise BundleError(
                f"Resize: interp must be one of {', '.join(map(str, INTERPOLATIONS))}, "
                f"not {reprlib.repr(interp)}"
            )
        self.target_size = size
        self.keep_ratio = keep_ratio
        self.interp = interp
        self.room = room

    def scales(self, height: int, width: int) -> tuple[float, float]:
        """The factors for the height and for the width of an image of this size."""
        most_y, most_x = (math.inf, math.inf)
        if self.room is not None:
            most_y, most_x = self.room[0] / height, self.room[1] / width
        if not self.keep_ratio:
            return min(self.target_size[0] / height, most_y), min(self.target_size[1] / width, most_x)
        scale = min(min(self.target_size) / min(height, width), max(self.target_size) / max(height, width))
        scale = min(scale, most_y, most_x)
        return scale, scale

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample.size
        scale_y, scale_x = self.scales(height, width)
        if scale_y == scale_x == 1:
            return sample
        resized = (height * scale_y, width * scale_x)
        # OpenCV places its samples by the exact factors, and so did the training. A size is given only where
        # a side would vanish.
        size = None if min(resized) > 0.5 else (max(1, round(resized[1])), max(1, round(resized[0])))
        image = cv2.resize(_bgr(sample.image), size, fx=scale_x, fy=scale_y, interpolation=self.interp)
        factor_y, factor_x = sample.scale_factor
        return Sample(image, resized, (factor_y * scale_y, factor_x * scale_x), image.shape[:2])


class Permute:
    """PaddleDetection's `Permute`; the order of the axes follows from the network's input here."""

    def __call__(self, sample: Sample) -> Sample:
        return sample


class PadStride:
    """PaddleDetection's `PadStride`: zeros below and to the right, up to the next multiple of `stride`."""

    def __init__(self, stride: int = 0):
        if not _is_whole(stride, -1, MAX_STRIDE):
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
    """A list of steps, applied to images, and the batches that are made of them. Holds no state.

    Args:
        steps: PaddleDetection's `Preprocess` list: a dict a step: its kind under `type`, and its arguments.
        form: what the network takes. Where its size is fixed, every image is made to fit and padded to it.

    Raises:
        BundleError: a step is unknown or has a wrong argument.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], form: NetworkInput = FLOAT_RGB):
        self.form = form
        self.steps = [_build(step, form.size) for step in steps]

    @property
    def natural_size(self) -> tuple[int, int] | None:
        """(height, width) of an image that no step resizes; None where no step resizes any."""
        sides = [step.target_size for step in self.steps if isinstance(step, Resize)]
        sides += [self.form.size] if self.form.size is not None else []
        return tuple(map(min, zip(*sides))) if sides else None

    @property
    def most_pixels(self) -> int:
        """The pixels of the largest image that a step makes, or of the fixed size; 1 if neither is known."""
        sizes = [step.target_size for step in self.steps if isinstance(step, Resize)]
        return max(math.prod(size) for size in (*sizes, self.form.size or (1, 1)))

    def __call__(self, images: Sequence[Pixels]) -> dict[str, np.ndarray]:
        """Prepare images and put them into one batch, see `prepare` and `batch`."""
        return self.batch([self.prepare(image) for image in images])

    def prepare(self, image: Pixels) -> Sample:
        """Everything that is done to one image alone.

        Args:
            image: [H, W, 3] uint8, blue first, or an NV12Image.

        Raises:
            DataError: the image does not fit into a network of a fixed size, and no step makes it smaller.
        """
        height, width = (image.height, image.width) if isinstance(image, NV12Image) else image.shape[:2]
        sample = Sample(image, (float(height), float(width)), (1.0, 1.0), (height, width))
        for step in self.steps:
            sample = step(sample)
        if self.form.size is None:
            return sample
        fixed_height, fixed_width = self.form.size
        if sample.im_shape[0] > fixed_height + 0.5 or sample.im_shape[1] > fixed_width + 0.5:
            raise DataError(
                f"a picture of {height}x{width} is larger than the network's input, "
                f"{fixed_height}x{fixed_width}, and the bundle does not resize; resize it before"
            )
        return replace(sample, size=self.form.size)

    def batch(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """Put prepared images together. A batch that is fixed is filled up with black ones.

        Padding changes what a network sees at an image's border: an image has the same boxes in every batch
        only if all images of a batch are of one `size`.

        Returns:
            image: as the network takes it, zeros around the images: [B, 3, H, W] float32, 0 to 255; or uint8
                [B, H, W, 3]; or NV12 [B, H·3/2, W].
            im_shape: [B, 2] float32, height and width of the part that is image.
            scale_factor: [B, 2] float32, resized / original height and width.
        """
        missing = (self.form.batch or len(samples)) - len(samples)
        size = tuple(max(sides) for sides in zip(*(sample.size for sample in samples)))
        shapes = [sample.im_shape for sample in samples] + [size] * missing
        factors = [sample.scale_factor for sample in samples] + [(1.0, 1.0)] * missing
        pack = {NV12: _nv12_batch}.get(self.form.type, self._pixel_batch)
        return {
            IMAGE: pack([sample.image for sample in samples], len(shapes), size),
            IM_SHAPE: np.array(shapes, np.float32),
            SCALE_FACTOR: np.array(factors, np.float32),
        }

    def _pixel_batch(self, images: Sequence[Pixels], count: int, size: tuple[int, int]) -> np.ndarray:
        shape = (count, 3, *size) if self.form.layout == NCHW else (count, *size, 3)
        batch = np.zeros(shape, np.float32 if self.form.type == FLOAT32 else np.uint8)
        for target, image in zip(batch, map(_bgr, images)):
            height, width = image.shape[:2]
            if self.form.layout == NCHW:
                planes = target if self.form.channels == BGR else target[::-1]
                for plane, channel in zip(planes, cv2.split(image)):
                    plane[:height, :width] = channel
            else:
                target[:height, :width] = image if self.form.channels == BGR else image[:, :, ::-1]
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


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _build(step: Mapping[str, Any], room: tuple[int, int] | None) -> Callable[[Sample], Sample]:
    arguments = dict(step) if isinstance(step, Mapping) else {}
    kind = arguments.pop("type", None)
    if not isinstance(kind, str) or kind not in STEPS:
        raise BundleError(
            f"preprocess: the step {reprlib.repr(kind or step)} is not known here; "
            f"known are {', '.join(STEPS)}"
        )
    if kind == "Resize":
        arguments["room"] = room
    try:
        return STEPS[kind](**arguments)
    except TypeError as error:
        raise BundleError(
            f"preprocess: {kind} does not take {reprlib.repr(step)} ({one_line(error)})"
        ) from error
