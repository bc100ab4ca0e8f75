"""From an image to the network's inputs, as PaddleDetection's `Preprocess` list says it.

The steps mean what they mean in PaddleDetection's readers and in its `deploy/python/preprocess.py`: a model
must see in deployment the very pixels that it saw in evaluation. Images stay uint8 until the batch is put
together; they are not normalised here, the network does that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import cv2
import numpy as np

from ppfcos.errors import BundleError, DataError


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read and decode a picture; what its EXIF data says about its orientation is obeyed.

    Returns:
        [H, W, 3] uint8, blue first.

    Raises:
        DataError: the file cannot be read, or is not a picture.
    """
    try:
        with open(path, "rb") as file:
            data = np.frombuffer(file.read(), np.uint8)
    except OSError as error:
        raise DataError(f"{path}: the image cannot be read ({error.strerror})") from error
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error:  # such as a picture beyond OpenCV's limit of pixels
        image = None
    if image is None:
        raise DataError(f"{path}: this is not an image that OpenCV can decode; replace it or leave it out")
    return image


@dataclass(frozen=True)
class Sample:
    """One image on its way to the network.

    Attributes:
        image: uint8, red first, [H, W, 3] until `Permute` and [3, H, W] after it.
        im_shape: height and width of the part that is image, not padding. Fractions of a pixel are kept:
            `im_shape / scale_factor` is the size of the original image.
        scale_factor: resized height / original height, resized width / original width.
    """

    image: np.ndarray
    im_shape: tuple[float, float]
    scale_factor: tuple[float, float]


class Resize:
    """PaddleDetection's `Resize`.

    Args:
        target_size: one number or (height, width). With `keep_ratio` the short side becomes the smaller of
            the two, unless the long side would then exceed the larger one, which then decides.
        keep_ratio: whether height and width are scaled alike.
        interp: OpenCV's number of the interpolation; 1 is bilinear.
    """

    def __init__(
        self, target_size: int | Sequence[int], keep_ratio: bool = True, interp: int = cv2.INTER_LINEAR
    ):
        size = (target_size, target_size) if isinstance(target_size, int) else tuple(target_size)
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise BundleError(
                f"Resize: target_size must be one or two positive whole numbers, not {target_size}"
            )
        self.target_size = size
        self.keep_ratio = keep_ratio
        self.interp = interp

    def scales(self, height: int, width: int) -> tuple[float, float]:
        """The factors for the height and for the width of an image of this size."""
        if not self.keep_ratio:
            return self.target_size[0] / height, self.target_size[1] / width
        scale = min(min(self.target_size) / min(height, width), max(self.target_size) / max(height, width))
        return scale, scale

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample.image.shape[:2]
        scale_y, scale_x = self.scales(height, width)
        resized = (height * scale_y, width * scale_x)
        # OpenCV places its samples by the exact factors, and so did the training. A size is given only where
        # a side would vanish.
        size = None if min(resized) > 0.5 else (max(1, round(resized[1])), max(1, round(resized[0])))
        image = cv2.resize(sample.image, size, fx=scale_x, fy=scale_y, interpolation=self.interp)
        factor_y, factor_x = sample.scale_factor
        return Sample(image, resized, (factor_y * scale_y, factor_x * scale_x))


class Permute:
    """PaddleDetection's `Permute`: [H, W, 3] becomes [3, H, W]."""

    def __call__(self, sample: Sample) -> Sample:
        return Sample(sample.image.transpose(2, 0, 1), sample.im_shape, sample.scale_factor)


class PadStride:
    """PaddleDetection's `PadStride`: zeros below and to the right, up to the next multiple of `stride`."""

    def __init__(self, stride: int = 0):
        self.stride = stride

    def __call__(self, sample: Sample) -> Sample:
        if self.stride <= 0:
            return sample
        height, width = (math.ceil(side / self.stride) * self.stride for side in sample.image.shape[1:])
        return Sample(_pad(sample.image, height, width), sample.im_shape, sample.scale_factor)


STEPS: dict[str, Callable[..., Callable[[Sample], Sample]]] = {
    "Resize": Resize,
    "Permute": Permute,
    "PadStride": PadStride,
}


class Preprocess:
    """A list of steps, applied to a list of images.

    Args:
        steps: PaddleDetection's `Preprocess` list: a dict a step: its kind under `type`, and its arguments.

    Raises:
        BundleError: a step is unknown or has a wrong argument, or there is not one `Permute`.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]]):
        self.steps = [_build(step) for step in steps]
        if sum(isinstance(step, Permute) for step in self.steps) != 1:
            raise BundleError(
                "Preprocess: the network takes channels first, so the list needs `Permute` exactly once"
            )

    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Make one batch.

        Args:
            images: B arrays [H, W, 3] uint8, blue first, of any sizes.

        Returns:
            image: [B, 3, H', W'] float32, 0 to 255, red first, zeros around the smaller images.
            im_shape: [B, 2] float32, height and width of the part that is image.
            scale_factor: [B, 2] float32, resized / original height and width.
        """
        samples = [self._prepare(image) for image in images]
        height = max(sample.image.shape[1] for sample in samples)
        width = max(sample.image.shape[2] for sample in samples)
        batch = np.zeros((len(samples), 3, height, width), np.float32)
        for target, sample in zip(batch, samples):
            target[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
        return {
            "image": batch,
            "im_shape": np.array([sample.im_shape for sample in samples], np.float32),
            "scale_factor": np.array([sample.scale_factor for sample in samples], np.float32),
        }

    def _prepare(self, image: np.ndarray) -> Sample:
        height, width = image.shape[:2]
        sample = Sample(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (float(height), float(width)), (1.0, 1.0))
        for step in self.steps:
            sample = step(sample)
        return sample


def _build(step: Mapping[str, Any]) -> Callable[[Sample], Sample]:
    arguments = dict(step) if isinstance(step, Mapping) else {}
    kind = arguments.pop("type", None)
    if kind not in STEPS:
        raise BundleError(
            f"Preprocess: the step {kind or step!r} is not known here; known are {', '.join(STEPS)}"
        )
    try:
        return STEPS[kind](**arguments)
    except TypeError as error:
        raise BundleError(f"Preprocess: {kind} does not take {arguments} ({error})") from error


def _pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    padded = np.zeros((3, height, width), image.dtype)
    padded[:, : image.shape[1], : image.shape[2]] = image
    return padded
