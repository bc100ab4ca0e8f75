"""Predictors that work side by side, each in a thread of its own; the clock is read after each stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ppfcos.deploy.detections import split_batch
from ppfcos.deploy.images import decode_image
from ppfcos.deploy.predictor import Predictor


class Picture(NamedTuple):
    """A picture's file.

    Attributes:
        name: for messages.
        content: its bytes.
        size: height and width of what it shows, in pixels.
    """

    name: str
    content: bytes
    size: tuple[int, int]


class Request(NamedTuple):
    """What a request took.

    Attributes:
        decoding: milliseconds from the bytes of the pictures' files to pixels.
        preprocessing: from there to the network's inputs: resizing, padding, putting the batch together.
        network: from there to its outputs.
        postprocessing: from there to each picture's detections.
        end_to_end: all of it.
        boxes: found in the pictures together.
    """

    decoding: float
    preprocessing: float
    network: float
    postprocessing: float
    end_to_end: float
    boxes: int


STAGES = Request._fields[:-1]


def timed_request(predictor: Predictor, pictures: Sequence[Picture]) -> Request:
    """Find the objects in pictures, as the predictor itself does, with a look at the clock after each stage.

    Args:
        predictor: of a bundle.
        pictures: one batch; of one size, or those that are smaller are padded.

    Returns:
        What it took.

    Raises:
        DataError: a picture cannot be decoded, or does not fit into the network.
        BundleError: the runtime stopped.
    """
    clock = time.perf_counter
    started = clock()
    images = [decode_image(picture.content, picture.name) for picture in pictures]
    decoded = clock()
    inputs = predictor.preprocess(images)
    prepared = clock()
    outputs = predictor.runtime.forward(inputs)
    answered = clock()
    bbox, bbox_num = predictor.runtime.boxes(outputs, inputs)
    found = split_batch(bbox, bbox_num, predictor.class_names)[: len(pictures)]
    ended = clock()
    spans = ((started, decoded), (decoded, prepared), (prepared, answered), (answered, ended))
    times = [_milliseconds(end - start) for start, end in (*spans, (started, ended))]
    return Request(*times, boxes=sum(map(len, found)))


def _milliseconds(seconds: float) -> float:
    """To a tenth of a microsecond, which is what the clock is good for."""
    return round(1000 * seconds, 4)


class Worked(NamedTuple):
    """When a stream started and ended, by `time.perf_counter`, and its requests in their order."""

    started: float
    ended: float
    requests: list[Request]


class Stream:
    """A predictor and the thread in which alone it is made and run: runtimes keep things for each thread.

    Args:
        bundle: its folder.
        runtime: as of Predictor.
        precision: likewise.
        threads: likewise.
        device: likewise.

    Raises:
        PPFCOSError: as Predictor does.
    """

    def __init__(self, bundle: Path, runtime: str, precision: str, threads: int, device: str):
        self._thread = ThreadPoolExecutor(1)
        try:
            made = self._thread.submit(Predictor, bundle, runtime, precision, threads, device=device)
            self.predictor: Predictor = made.result()
        except BaseException:
            self.close()
            raise

    def start(self, requests: Sequence[Sequence[Picture]], together: threading.Barrier) -> Future[Worked]:
        """Answer requests, from the moment on at which all parties of the barrier are ready."""
        return self._thread.submit(self._work, requests, together)

    def close(self) -> None:
        """End the thread, once it has answered what it was asked."""
        self._thread.shutdown()

    def _work(self, requests: Sequence[Sequence[Picture]], together: threading.Barrier) -> Worked:
        together.wait()
        started = time.perf_counter()
        answered = [timed_request(self.predictor, pictures) for pictures in requests]
        return Worked(started, time.perf_counter(), answered)
