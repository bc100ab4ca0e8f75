"""From images to boxes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ppfcos.deploy.bundle import HEADS, read_bundle
from ppfcos.deploy.detections import Detections, split_batch
from ppfcos.deploy.images import Image, NV12Image, Pixels, load
from ppfcos.deploy.networks import DecodedHeads, EndToEnd, Runtime
from ppfcos.deploy.preprocess import Preprocess, Sample
from ppfcos.deploy.runtimes.choice import AUTO, open_network
from ppfcos.deploy.sources import Name, Source, open_source
from ppfcos.errors import BundleError, ConfigError, DataError

# An image waits for others of its size until this many batches of images have come after it.
BATCHES_WAITED = 4


class Found(NamedTuple):
    """An image of a stream.

    Attributes:
        name: the path of a picture's file, else the number of the frame from 0 on.
        image: [H, W, 3] uint8, blue first; or the NV12Image that it came as.
        detections: in it.
    """

    name: Name
    image: Pixels
    detections: Detections


@dataclass
class _Waiting:
    """An image on its way; `detections` come last."""

    name: Name
    image: Pixels
    sample: Sample
    detections: Detections | None = None


class Detector:
    """Preprocessing and a runtime behind one call.

    Only images that have one size once they are prepared share a batch: padding one to the size of another
    would change its boxes. So an image has the same boxes alone and in any company.

    Args:
        preprocess: makes a batch of images.
        runtime: runs a batch.
        class_names: the name of every class, in the order of the labels.
        category_ids: the number of every class in its data set; None numbers them from 0.
        batch: images run at once at the most.
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
        """Find the objects in some images.

        Args:
            images: of any sizes: paths; arrays of uint8, [H, W, 3] with blue first, [H, W, 4] (alpha is
                dropped), or grey [H, W] or [H, W, 1]; NV12Images. However many, only a few are held at once.

        Returns:
            The detections of each image, in the images' order; an empty list for an empty list.

        Raises:
            DataError: a file is not a readable picture, or an array is not of that form.
        """
        is_one = isinstance(images, (str, bytes, os.PathLike, np.ndarray, NV12Image))
        if is_one or not isinstance(images, Iterable):
            raise DataError("predict takes a list of images: put the one image into a list")
        return [found.detections for found in self.detect(enumerate(images))]

    def stream(self, source: Source) -> Iterator[Found]:
        """Find the objects in what comes from somewhere, image after image in their order.

        Args:
            source: a picture's file, a folder of pictures (those that cannot be read are named in the log and
                left out), a video's file, the number or the address (rtsp://…) of a camera, or images as
                `predict` takes them.

        Returns:
            One after the other; the next image is read when it is asked for.

        Raises:
            DataError: the source cannot be opened, or an image of it is not of a known form.
        """
        return self.detect(open_source(source))

    def detect(self, images: Iterable[tuple[Name, Image]]) -> Iterator[Found]:
        """Find the objects in images that have names.

        Args:
            images: names and images.

        Yields:
            The images in their order.
        """
        line: deque[_Waiting] = deque()
        groups: dict[tuple[int, int], list[_Waiting]] = {}
        for name, image in images:
            waiting = self._prepared(name, image)
            line.append(waiting)
            group = groups.setdefault(waiting.sample.size, [])
            group.append(waiting)
            if len(group) == self.batch:
                self._run(groups.pop(waiting.sample.size))
            elif len(line) > self.batch * BATCHES_WAITED:
                self._run(groups.pop(line[0].sample.size))
            yield from _finished(line)
        for group in groups.values():
            self._run(group)
        yield from _finished(line)

    def _prepared(self, name: Name, image: Image) -> _Waiting:
        pixels = load(image, f"image {name} of the list" if isinstance(name, int) else str(name))
        return _Waiting(name, pixels, self.preprocess.prepare(pixels))

    def _run(self, group: list[_Waiting]) -> None:
        answer = self.runtime.run(self.preprocess.batch([waiting.sample for waiting in group]))
        for waiting, detections in zip(group, split_batch(*answer, self.class_names)):
            waiting.detections = detections


def _finished(line: deque[_Waiting]) -> Iterator[Found]:
    """Take those off the front that have their detections."""
    while line and line[0].detections is not None:
        first = line.popleft()
        yield Found(first.name, first.image, first.detections)


class Predictor(Detector):
    """An exported bundle, ready to run.

    Safe to share between threads, which need no lock: nothing of a call is kept in the predictor. Images are
    prepared and heads decoded in the calling thread. ONNX Runtime runs the networks of several calls side by
    side, each with `threads` threads; OpenVINO has them share its threads; Paddle Inference runs one call
    after another. A generator that `stream` or `detect` gave belongs to one thread.

    Args:
        bundle: the folder that `tools/export_model.py` wrote.
        runtime: 'onnxruntime', 'openvino' or 'paddle'; 'auto' takes the first of these that is installed and
            for which the bundle has a network.
        precision: 'fp32', 'fp16', 'bf16' or 'int8', as far as the bundle has networks in it; 'bf16' is also
            what OpenVINO and Paddle Inference can do with the network in fp32.
        threads: threads of the CPU; None takes OMP_NUM_THREADS, else every core that this process may use.
        batch: images run at once at the most; None: one, or the number that the network takes.
        device: 'cpu', 'gpu', 'auto': the GPU if the runtime has one; or a name that the runtime knows.

    Raises:
        BundleError: the bundle is missing, incomplete, or has no such network, or it cannot be loaded.
        ConfigError: there is no such runtime, precision, batch or number of threads.
        DeviceError: the device is not there.
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
        description = read_bundle(bundle)
        fixed = description.input.batch
        for name, number in (("batch", batch), ("threads", threads)):
            if number is not None and (not isinstance(number, (int, np.integer)) or number < 1):
                raise ConfigError(f"{name} {number!r} is not a whole number from 1")
        if fixed is not None and batch not in (None, fixed):
            raise BundleError(
                f"{description.directory}: the network takes {fixed} images at once, not {batch}; "
                "leave batch out, or export the model with another"
            )
        preprocess = Preprocess(description.preprocess, description.input)
        network = open_network(description, runtime, precision, threads, device)
        boxes = (DecodedHeads if description.kind == HEADS else EndToEnd)(network, description)
        super().__init__(
            preprocess, boxes, description.class_names, description.category_ids, batch or fixed or 1
        )
        self.bundle = description
