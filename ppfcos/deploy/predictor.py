"""`Detector` and `Predictor`: from images to detections."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ppfcos.deploy.bundle import read_bundle
from ppfcos.deploy.detections import Detections, split_batch
from ppfcos.deploy.images import Image, NV12Image, Pixels, load
from ppfcos.deploy.networks import BundleNetwork, Runtime
from ppfcos.deploy.preprocess import Preprocess, Sample
from ppfcos.deploy.runtimes.choice import AUTO, open_network
from ppfcos.deploy.sources import Name, Source, open_source
from ppfcos.errors import BundleError, ConfigError, DataError

# An image waits for others of its size until this many batches of images have arrived after it.
MAX_WAITING_BATCHES = 4


class ImageDetections(NamedTuple):
    """An image of a stream with its detections.

    Attributes:
        name: the path of an image file, otherwise the index of the frame.
        image: [H, W, 3] BGR uint8; or the NV12Image.
        detections: the detections.
    """

    name: Name
    image: Pixels
    detections: Detections


@dataclass
class _Pending:
    """A prepared image; `detections` are set when its batch has run."""

    name: Name
    image: Pixels
    sample: Sample
    detections: Detections | None = None


class Detector:
    """Preprocessing and a runtime.

    Only images of equal size after preprocessing share a batch, since padding to a larger size would change
    the boxes: the detections of an image do not depend on the other images.

    Args:
        preprocess: makes batches of images.
        runtime: runs a batch.
        class_names: by label.
        category_ids: by label, the category of the data set; None numbers them from 0.
        batch: maximum batch size.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        runtime: Runtime,
        class_names: Sequence[str],
        category_ids: Sequence[int] | None = None,
        batch: int = 1,
    ):
        self.preprocess = preprocess
        self.runtime = runtime
        self.class_names = tuple(class_names)
        self.category_ids = tuple(range(len(self.class_names)) if category_ids is None else category_ids)
        self.batch = batch

    def predict(self, images: Iterable[Image]) -> list[Detections]:
        """Detect objects in a list of images.

        Args:
            images: of any size: paths; uint8 arrays, [H, W, 3] BGR, [H, W, 4] BGRA (alpha is dropped), [H, W]
                or [H, W, 1] grayscale; NV12Images. Only a few are in memory at a time.

        Returns:
            The detections of each image.

        Raises:
            DataError: a file is not a readable image, or an array has another form.
        """
        is_one = isinstance(images, (str, bytes, os.PathLike, np.ndarray, NV12Image))
        if is_one or not isinstance(images, Iterable):
            raise DataError("predict takes a list of images: put a single image into a list")
        return [found.detections for found in self.detect(enumerate(images))]

    def stream(self, source: Source, allow_network: bool = False) -> Iterator[ImageDetections]:
        """Detect objects in the images of a source, in order, reading each when it is needed.

        Args:
            source: an image file, a folder of images (unreadable ones are logged and skipped), a video file,
                the index or address (rtsp://…) of a camera, or images as `predict` takes them.
            allow_network: open addresses; otherwise only local sources.

        Raises:
            DataError: the source cannot be opened, is an address that is not allowed, or an image has another
                form.
        """
        return self.detect(open_source(source, allow_network))

    def detect(self, images: Iterable[tuple[Name, Image]]) -> Iterator[ImageDetections]:
        """Detect objects in (name, image) pairs, in order."""
        queue: deque[_Pending] = deque()
        groups: dict[tuple[int, int], list[_Pending]] = {}
        for name, image in images:
            pending = self._prepare(name, image)
            queue.append(pending)
            group = groups.setdefault(pending.sample.size, [])
            group.append(pending)
            if len(group) == self.batch:
                self._run(groups.pop(pending.sample.size))
            elif len(queue) > self.batch * MAX_WAITING_BATCHES:
                self._run(groups.pop(queue[0].sample.size))
            yield from _pop_finished(queue)
        for group in groups.values():
            self._run(group)
        yield from _pop_finished(queue)

    def _prepare(self, name: Name, image: Image) -> _Pending:
        pixels = load(image, f"image {name} of the list" if isinstance(name, int) else str(name))
        return _Pending(name, pixels, self.preprocess.prepare(pixels))

    def _run(self, group: list[_Pending]) -> None:
        outputs = self.runtime.run(self.preprocess.batch([pending.sample for pending in group]))
        for pending, detections in zip(group, split_batch(*outputs, self.class_names)):
            pending.detections = detections


def _pop_finished(queue: deque[_Pending]) -> Iterator[ImageDetections]:
    """Pop images from the front as long as they have detections."""
    while queue and queue[0].detections is not None:
        first = queue.popleft()
        yield ImageDetections(first.name, first.image, first.detections)


class Predictor(Detector):
    """Runs an exported bundle.

    Thread-safe without a lock: images are preprocessed and heads decoded in the calling thread. ONNX Runtime
    runs concurrent calls in parallel, each with `threads` threads; OpenVINO shares its threads among them;
    Paddle Inference runs them one after another. A generator of `stream` or `detect` belongs to one thread.
    A pickled or copied Predictor opens the bundle again.

    Args:
        bundle: the folder that `tools/export_model.py` wrote.
        runtime: 'onnxruntime', 'openvino' or 'paddle'; 'auto' takes the first that is installed and for which
            the bundle has a network.
        precision: 'fp32', 'fp16', 'bf16' or 'int8'; OpenVINO and Paddle Inference compute in 'bf16' with the
            fp32 network.
        threads: CPU threads; None takes OMP_NUM_THREADS, otherwise all cores available to the process.
        batch: maximum batch size; None: 1, or the batch size that the network is fixed to.
        device: 'cpu', 'gpu', 'auto' (the GPU if the runtime has one), or a device name of the runtime.

    Raises:
        BundleError: the bundle is incomplete, has no such network, or it cannot be loaded.
        ConfigError: an unknown runtime or precision, or an invalid batch size or number of threads.
        DeviceError: the device is not available.
        MissingLibraryError: the runtime is not installed.
    """

    def __init__(
        self,
        bundle: str | os.PathLike,
        runtime: str = AUTO,
        precision: str = "fp32",
        threads: int | None = None,
        batch: int | None = None,
        device: str = AUTO,
    ):
        self.bundle = read_bundle(bundle)
        # An open network cannot be copied: pickle and copy open the bundle again.
        self._arguments = (self.bundle.directory.absolute(), runtime, precision, threads, batch, device)
        fixed = self.bundle.input.batch
        for name, number in (("batch", batch), ("threads", threads)):
            if number is not None and (not isinstance(number, (int, np.integer)) or number < 1):
                raise ConfigError(f"{name} {number!r} is not a whole number from 1")
        if fixed is not None and batch not in (None, fixed):
            raise BundleError(
                f"{self.bundle.directory}: the network takes {fixed} images at once, not {batch}; "
                "leave batch out, or export the model with another --batch"
            )
        super().__init__(
            Preprocess(self.bundle.preprocess, self.bundle.input),
            BundleNetwork(open_network(self.bundle, runtime, precision, threads, device), self.bundle),
            self.bundle.class_names,
            self.bundle.category_ids,
            batch or fixed or 1,
        )

    def __reduce__(self) -> tuple:
        return type(self), self._arguments
