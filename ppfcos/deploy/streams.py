"""Predictors that run concurrently, each in its own thread, and are timed stage by stage."""

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
    """An image file: name for messages, bytes, and (height, width) of the decoded image."""

    name: str
    content: bytes
    size: tuple[int, int]


class Request(NamedTuple):
    """Milliseconds that a batch takes, from image files to detections.

    Attributes:
        decoding: bytes to pixels.
        preprocessing: pixels to the network's inputs: resizing, padding, batching.
        network: inputs to outputs.
        postprocessing: outputs to the detections of each image.
        end_to_end: the sum.
        boxes: number of detections of all images.
    """

    decoding: float
    preprocessing: float
    network: float
    postprocessing: float
    end_to_end: float
    boxes: int


STAGES = Request._fields[:-1]


def timed_request(predictor: Predictor, pictures: Sequence[Picture]) -> Request:
    """Detect objects in one batch, with the predictor's own steps, timing each stage.

    Images of different sizes are padded.

    Raises:
        DataError: an image cannot be decoded, or does not fit into the network.
        BundleError: the runtime failed.
    """
    times = [time.perf_counter()]
    images = [decode_image(picture.content, picture.name) for picture in pictures]
    times.append(time.perf_counter())
    inputs = predictor.preprocess(images)
    times.append(time.perf_counter())
    outputs = predictor.runtime.forward(inputs)
    times.append(time.perf_counter())
    bbox, bbox_num = predictor.runtime.boxes(outputs, inputs)
    detections = split_batch(bbox, bbox_num, predictor.class_names)[: len(pictures)]
    times.append(time.perf_counter())
    stages = [end - start for start, end in zip(times, times[1:])]
    milliseconds = [round(1000 * seconds, 4) for seconds in (*stages, times[-1] - times[0])]
    return Request(*milliseconds, boxes=sum(map(len, detections)))


class StreamRun(NamedTuple):
    """Start and end of a stream's requests, by `time.perf_counter`, and the requests in order."""

    started: float
    ended: float
    requests: list[Request]


class Stream:
    """A predictor with the only thread that creates and runs it, since runtimes keep state per thread.

    The arguments and errors are those of `Predictor`.
    """

    def __init__(self, bundle: Path, runtime: str, precision: str, threads: int, device: str):
        self._thread = ThreadPoolExecutor(1)
        try:
            created = self._thread.submit(Predictor, bundle, runtime, precision, threads, device=device)
            self.predictor: Predictor = created.result()
        except BaseException:
            self.close()
            raise

    def start(self, requests: Sequence[Sequence[Picture]], barrier: threading.Barrier) -> Future[StreamRun]:
        """Run requests as soon as all parties of the barrier are ready."""
        return self._thread.submit(self._run, requests, barrier)

    def close(self) -> None:
        """Finish the pending requests and end the thread."""
        self._thread.shutdown()

    def _run(self, requests: Sequence[Sequence[Picture]], barrier: threading.Barrier) -> StreamRun:
        barrier.wait()
        started = time.perf_counter()
        done = [timed_request(self.predictor, pictures) for pictures in requests]
        return StreamRun(started, time.perf_counter(), done)
