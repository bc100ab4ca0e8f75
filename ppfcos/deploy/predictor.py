"""From images to boxes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol, Union

import numpy as np

from ppfcos.deploy.bundle import read_bundle
from ppfcos.deploy.detections import Detections, split_batch
from ppfcos.deploy.preprocess import Preprocess, read_image
from ppfcos.deploy.runtimes.paddle_inference import PaddleInferenceRuntime
from ppfcos.errors import DataError

Image = Union[str, "os.PathLike[str]", np.ndarray]


class Runtime(Protocol):
    """What can run a network: a bundle's in some library, or a checkpoint's."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """From image, im_shape and scale_factor to bbox [N, 6] and bbox_num [B]."""


class Detector:
    """Preprocessing and a runtime behind one call.

    Args:
        preprocess: makes a batch of images.
        runtime: runs a batch.
        class_names: the name of every class, in the order of the labels.
        category_ids: the number of every class in its data set; None numbers them from 0.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        runtime: Runtime,
        class_names: Sequence[str],
        category_ids: Sequence[int] | None = None,
    ):
        self.preprocess = preprocess
        self.runtime = runtime
        self.class_names = tuple(class_names)
        self.category_ids = tuple(range(len(self.class_names)) if category_ids is None else category_ids)

    def predict(self, images: Sequence[Image]) -> list[Detections]:
        """Find the objects in some images, all in one batch.

        Args:
            images: paths, or arrays [H, W, 3] uint8 with blue first, of any sizes.

        Returns:
            The detections of each image, in the images' order; an empty list for an empty list.

        Raises:
            DataError: a file is not a readable picture, or an array is not of that form.
        """
        if isinstance(images, (str, os.PathLike, np.ndarray)):
            raise DataError("predict takes a list of images: put the one image into a list")
        pixels = [_pixels(image, position) for position, image in enumerate(images)]
        if not pixels:
            return []
        bbox, bbox_num = self.runtime.run(self.preprocess(pixels))
        return split_batch(bbox, bbox_num, self.class_names)


class Predictor(Detector):
    """An exported bundle, ready to run. Safe to call from several threads; their calls run one after another.

    Args:
        bundle: the folder that `tools/export_model.py` wrote.
        threads: threads of the CPU; None takes OMP_NUM_THREADS, else every core that this process may use.
        device: 'cpu', 'gpu', or 'auto': the GPU if this Paddle has one.

    Raises:
        BundleError: the bundle is missing, incomplete, or cannot be loaded.
        DeviceError: a GPU is wanted and not there.
    """

    def __init__(self, bundle: str | os.PathLike, threads: int | None = None, device: str = "auto"):
        description = read_bundle(bundle)
        preprocess = Preprocess(description.preprocess)
        runtime = PaddleInferenceRuntime(description, threads, device)
        super().__init__(preprocess, runtime, description.class_names, description.category_ids)


def _pixels(image: Image, position: int) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return read_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(
            f"image {position} of the list is an array {list(image.shape)} of {image.dtype}; "
            "it must be [height, width, 3] of uint8, blue first"
        )
    return image
