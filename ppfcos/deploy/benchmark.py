"""Latency and throughput of exported models, stage by stage and side by side.

A request is a batch of images, given as the bytes of their files. A stream is a predictor whose runtime has
`threads` threads and that runs requests one after another; several streams run concurrently in threads of
this process. A case is a model with a setting of threads, streams and batch size. In every round each case
runs some requests (a turn), so that other load on the machine affects all cases alike.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ppfcos import console
from ppfcos.deploy.bundle import END_TO_END, Bundle, read_bundle
from ppfcos.deploy.detections import split_batch
from ppfcos.deploy.images import decode_image
from ppfcos.deploy.predictor import Predictor
from ppfcos.deploy.runtimes.choice import LIBRARIES, chosen_runtime
from ppfcos.environment import MissingLibraryError
from ppfcos.errors import BundleError, ConfigError, DeviceError

DEFAULT_BATCHES = (1, 4)
MIN_ROUNDS, MAX_ROUNDS = 3, 100
TURN_SECONDS, MAX_REQUESTS = 0.4, 200
# Idle threads keep spinning (those of Intel's OpenMP, which Paddle uses, for 0.2 seconds) and would take
# cores from the next case.
PAUSE = 0.25
WARM_UP_REQUESTS = 2  # the first allocates, the second tells how long a request takes
UNAVAILABLE = (BundleError, DeviceError, MissingLibraryError)


class ImageFile(NamedTuple):
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


class Setting(NamedTuple):
    """Threads of each stream's runtime, concurrent streams, and images per request."""

    threads: int
    streams: int
    batch: int


class Turn(NamedTuple):
    """The requests of each stream of a case in a round, and the seconds from first start to last end."""

    round: int
    case: int
    seconds: float
    streams: list[list[Request]]


class Stream:
    """A predictor with the only thread that creates and runs it, since runtimes keep state per thread."""

    def __init__(self, *arguments: Any):
        self._thread = ThreadPoolExecutor(1)
        try:
            self._predictor: Predictor = self._thread.submit(Predictor, *arguments).result()
        except BaseException:
            self.close()
            raise

    def start(self, requests: Sequence[Sequence[ImageFile]]) -> Future[tuple[float, float, list[Request]]]:
        """Run requests; the result has start and end by `time.perf_counter`."""
        return self._thread.submit(self._run, requests)

    def close(self) -> None:
        """Finish the pending requests and end the thread."""
        self._thread.shutdown()

    def _run(self, requests: Sequence[Sequence[ImageFile]]) -> tuple[float, float, list[Request]]:
        started = time.perf_counter()
        done = [timed_request(self._predictor, files) for files in requests]
        return started, time.perf_counter(), done


class Model(NamedTuple):
    """A bundle in one runtime and one precision, with its streams by number of threads."""

    bundle: Bundle
    runtime: str
    precision: str
    streams: dict[int, list[Stream]]


class Case(NamedTuple):
    """A model in a setting: one row of the table."""

    model: Model
    setting: Setting


def timed_request(predictor: Predictor, files: Sequence[ImageFile]) -> Request:
    """Detect objects in one batch, with the predictor's own steps, timing each stage.

    Images of different sizes are padded.

    Raises:
        DataError: an image cannot be decoded, or does not fit into the network.
        BundleError: the runtime failed.
    """
    times = [time.perf_counter()]
    images = [decode_image(file.content, file.name) for file in files]
    times.append(time.perf_counter())
    inputs = predictor.preprocess(images)
    times.append(time.perf_counter())
    outputs = predictor.runtime.forward(inputs)
    times.append(time.perf_counter())
    bbox, bbox_num = predictor.runtime.boxes(outputs, inputs)
    detections = split_batch(bbox, bbox_num, predictor.class_names)[: len(files)]
    times.append(time.perf_counter())
    stages = [end - start for start, end in zip(times, times[1:])]
    milliseconds = [round(1000 * seconds, 4) for seconds in (*stages, times[-1] - times[0])]
    return Request(*milliseconds, boxes=sum(map(len, detections)))


@contextlib.contextmanager
def opened_models(
    bundles: Sequence[Path],
    runtimes: Sequence[str],
    precisions: Sequence[str],
    threads: Sequence[int],
    streams: int,
    device: str,
) -> Iterator[tuple[list[Model], list[str]]]:
    """Load every bundle in every available combination of runtime and precision.

    Yields:
        The models, bundle by bundle; and a message for each combination that is not available.

    Raises:
        PPFCOSError: a folder is not a bundle, or a runtime or precision is not available for it at all.
    """
    combinations = list(itertools.product(runtimes, precisions))
    models: list[Model] = []
    left_out: list[str] = []
    with contextlib.ExitStack() as opened:
        descriptions = [read_bundle(bundle) for bundle in bundles]
        with console.bar("loading", len(descriptions) * len(combinations)) as bar:
            for description in descriptions:
                failures: dict[tuple[str, str], Exception] = {}
                for combination in combinations:
                    try:
                        models.append(_open(description, *combination, threads, streams, device, opened))
                    except UNAVAILABLE as error:
                        failures[combination] = error
                    bar.advance()
                for name in (*runtimes, *precisions):  # a gap in the grid is no error, an empty line is
                    wanted = [each for each in combinations if name in each]
                    if all(each in failures for each in wanted):
                        raise failures[wanted[0]]
                left_out += [f"left out: {error}" for error in failures.values()]
        yield models, left_out


def _open(
    bundle: Bundle,
    runtime: str,
    precision: str,
    threads: Sequence[int],
    streams: int,
    device: str,
    opened: contextlib.ExitStack,
) -> Model:
    """A model with all its streams, which `opened` closes."""
    runtime = chosen_runtime(bundle, runtime, precision)
    model = Model(bundle, runtime, precision, defaultdict(list))
    with contextlib.ExitStack() as own:
        for number in sorted(set(threads)) * streams:
            # The positions of Predictor's arguments; None is its batch size.
            stream = Stream(bundle.directory, runtime, precision, number, None, device)
            model.streams[number].append(own.enter_context(contextlib.closing(stream)))
        opened.push(own.pop_all())
    return model


def cases_of(
    models: Sequence[Model], threads: Sequence[int], streams: Sequence[int], batches: Sequence[int] | None
) -> tuple[list[Case], list[str]]:
    """The cases to measure, setting by setting; and a message for each bundle that cannot take some batches.

    `batches` None selects DEFAULT_BATCHES, or the batch size that a network is fixed to.

    Raises:
        ConfigError: a bundle can take none of them.
    """
    batches_of = {id(model): _batches_of(model.bundle, batches) for model in models}
    all_batches = sorted(set(itertools.chain(*batches_of.values())))
    cases = [
        Case(model, setting)
        for setting in itertools.starmap(Setting, itertools.product(threads, streams, all_batches))
        for model in models
        if setting.batch in batches_of[id(model)]
    ]
    left_out = [
        f"left out: {model.bundle.directory} with other batches than {model.bundle.input.batch}, "
        "which its networks are fixed to"
        for model in models
        if batches is not None and len(batches_of[id(model)]) < len(batches)
    ]
    return cases, list(dict.fromkeys(left_out))


def _batches_of(bundle: Bundle, batches: Sequence[int] | None) -> Sequence[int]:
    fixed = bundle.input.batch
    if fixed is None:
        return DEFAULT_BATCHES if batches is None else batches
    if batches is not None and fixed not in batches:
        raise ConfigError(
            f"--batch {','.join(map(str, batches))}: {bundle.directory} takes {fixed} images at once and no "
            f"other number; add {fixed}, or leave --batch out"
        )
    return (fixed,)


def compose_request(files: Sequence[ImageFile], number: int, batch: int) -> list[ImageFile]:
    """The images of a request, all of the size of image number `number` (modulo their number).

    If there are fewer than `batch` images of that size, they repeat.
    """
    first = number % len(files)
    ordered = [*files[first:], *files[:first]]
    same_size = [file for file in ordered if file.size == ordered[0].size]
    return list(itertools.islice(itertools.cycle(same_size), batch))


def measure(
    cases: Sequence[Case], files: Sequence[ImageFile], seconds: float, rounds: int | None = None
) -> list[Turn]:
    """Measure all cases in turns; all models run the same requests in a setting.

    OpenCV, which resizes, has as many threads as the runtime of a stream.

    Args:
        cases: the cases.
        files: at least one image.
        seconds: approximate duration; at least MIN_ROUNDS rounds are run.
        rounds: number of rounds, instead of `seconds`.

    Raises:
        DataError: an image does not fit into a network.
        BundleError: a runtime failed.
    """
    threads_before = cv2.getNumThreads()
    try:
        durations = []  # seconds of a request, by case
        with console.bar("warming up", len(cases)) as bar:
            for case in cases:
                _, streams = _run_turn(case, files, WARM_UP_REQUESTS, 0)
                durations.append(max(requests[-1].end_to_end for requests in streams) / 1000)
                bar.advance()
        counts = _requests_per_turn(cases, durations)
        if rounds is None:
            round_seconds = sum(PAUSE + counts[case.setting] * each for case, each in zip(cases, durations))
            rounds = int(np.clip(seconds / round_seconds, MIN_ROUNDS, MAX_ROUNDS))
        turns = []
        with console.bar("measuring", rounds * len(cases)) as bar:
            for number, (index, case) in itertools.product(range(rounds), enumerate(cases)):
                time.sleep(PAUSE)
                count = counts[case.setting]
                turns.append(Turn(number, index, *_run_turn(case, files, count, number * count)))
                bar.advance()
        return turns
    finally:
        cv2.setNumThreads(threads_before)


def _requests_per_turn(cases: Sequence[Case], durations: Sequence[float]) -> dict[Setting, int]:
    """Requests of each stream, by setting: as many as the slowest model runs in TURN_SECONDS."""
    slowest: dict[Setting, float] = defaultdict(float)
    for case, seconds in zip(cases, durations):
        slowest[case.setting] = max(slowest[case.setting], seconds)
    return {
        setting: int(np.clip(round(TURN_SECONDS / seconds), 1, MAX_REQUESTS))
        for setting, seconds in slowest.items()
    }


def _run_turn(
    case: Case, files: Sequence[ImageFile], count: int, first: int
) -> tuple[float, list[list[Request]]]:
    """Seconds, and the `count` requests of each stream, numbered from `first`."""
    setting = case.setting
    cv2.setNumThreads(setting.threads)
    streams = case.model.streams[setting.threads][: setting.streams]
    numbers = range(first * len(streams), (first + count) * len(streams))
    requests = [compose_request(files, number, setting.batch) for number in numbers]
    running = [stream.start(requests[i :: len(streams)]) for i, stream in enumerate(streams)]
    started, ended, done = zip(*(each.result() for each in running))
    return max(ended) - min(started), list(done)


def summaries(cases: Sequence[Case], turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """A row per case, in plain types.

    `milliseconds` has `median` and `p99` by stage, and `ratio` is `images_per_second` relative to the first
    row.
    """
    rows = [
        _summary(case, [turn for turn in turns if turn.case == index]) for index, case in enumerate(cases)
    ]
    for row in rows:
        row["ratio"] = row["images_per_second"] / rows[0]["images_per_second"]
    return rows


def _summary(case: Case, turns: Sequence[Turn]) -> dict[str, Any]:
    model, setting = case
    requests = [request for turn in turns for stream in turn.streams for request in stream]
    images, seconds = len(requests) * setting.batch, sum(turn.seconds for turn in turns)
    stages = {name: [getattr(request, name) for request in requests] for name in STAGES}
    return {
        "bundle": str(model.bundle.directory),
        "runtime": model.runtime,
        "precision": model.precision,
        "boxes_from": "network" if model.bundle.kind == END_TO_END else "postprocessing",
        **setting._asdict(),
        "requests": len(requests),
        "images": images,
        "seconds": seconds,
        "milliseconds": {
            name: dict(zip(("median", "p99"), np.percentile(values, (50, 99)).tolist()))
            for name, values in stages.items()
        },
        "boxes_per_image": sum(request.boxes for request in requests) / images,
        "images_per_second": images / seconds,
    }


def runtime_versions(models: Sequence[Model]) -> dict[str, str]:
    """The versions of the runtimes of these models, by name."""
    modules = {model.runtime: LIBRARIES[model.runtime].module for model in models}
    # OpenVINO's goes on with build and branch.
    return {name: importlib.import_module(each).__version__.split("-")[0] for name, each in modules.items()}
