"""Latency and throughput of exported models, stage by stage and side by side.

A request is a batch of images, given as the bytes of their files. A stream is a predictor whose runtime has
`threads` threads and which runs requests one after another; several streams run concurrently in threads of
this process. A case is a model with a setting of threads, streams and batch size. In every round each case
runs some requests (a turn), so that other load on the machine affects all cases alike.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ppfcos import console
from ppfcos.deploy.bundle import END_TO_END, Bundle, read_bundle
from ppfcos.deploy.runtimes.choice import LIBRARIES, chosen_runtime
from ppfcos.deploy.streams import STAGES, Picture, Request, Stream
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


class Setting(NamedTuple):
    """Threads of each stream's runtime, concurrent streams, and images per request."""

    threads: int
    streams: int
    batch: int


class Turn(NamedTuple):
    """What a case did in one round.

    Attributes:
        round: from 0.
        case: index of the case.
        seconds: from the start of the first stream to the end of the last.
        streams: the requests of each stream.
    """

    round: int
    case: int
    seconds: float
    streams: list[list[Request]]


class Model:
    """A bundle in one runtime and one precision, with the streams of all its cases.

    Args:
        bundle: the bundle.
        runtime: as of `Predictor`; the attribute is the name that `auto` resolves to.
        precision: as of `Predictor`.
        threads: all numbers of threads.
        streams: the largest number of streams.
        device: as of `Predictor`.
    """

    def __init__(
        self,
        bundle: Bundle,
        runtime: str,
        precision: str,
        threads: Sequence[int],
        streams: int,
        device: str,
    ):
        self.bundle = bundle
        self.runtime = chosen_runtime(bundle, runtime, precision)
        self.precision = precision
        self._streams: dict[int, list[Stream]] = defaultdict(list)
        with contextlib.ExitStack() as opened:
            opened.callback(self.close)
            for number in sorted(threads) * streams:
                stream = Stream(bundle.directory, self.runtime, precision, number, device)
                self._streams[number].append(stream)
            opened.pop_all()

    def streams(self, setting: Setting) -> list[Stream]:
        """The streams of a setting."""
        return self._streams[setting.threads][: setting.streams]

    def close(self) -> None:
        """Close all streams."""
        for stream in itertools.chain(*self._streams.values()):
            stream.close()
        self._streams.clear()


class Case(NamedTuple):
    """A model in a setting: one row of the table."""

    model: Model
    setting: Setting


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
                        model = Model(description, *combination, threads, streams, device)
                        opened.callback(model.close)
                        models.append(model)
                    except UNAVAILABLE as error:
                        failures[combination] = error
                    bar.advance()
                for name in (*runtimes, *precisions):  # a gap in the grid is no error, an empty line is
                    wanted = [each for each in combinations if name in each]
                    if all(each in failures for each in wanted):
                        raise failures[wanted[0]]
                left_out += [f"left out: {error}" for error in failures.values()]
        yield models, left_out


def cases_of(
    models: Sequence[Model], threads: Sequence[int], streams: Sequence[int], batches: Sequence[int] | None
) -> tuple[list[Case], list[str]]:
    """The cases to measure.

    Args:
        models: the models to compare.
        threads: numbers of threads of each stream.
        streams: numbers of concurrent streams.
        batches: images per request; None: DEFAULT_BATCHES, or the batch size that a network is fixed to.

    Returns:
        The cases, setting by setting; and a message for each bundle that cannot take one of `batches`.

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


class Pictures:
    """Composes requests from at least one image."""

    def __init__(self, pictures: Sequence[Picture]):
        self._pictures = list(pictures)

    def request(self, number: int, batch: int) -> list[Picture]:
        """The images of a request, all of the size of image number `number` (modulo their number).

        If there are fewer than `batch` images of that size, they repeat.
        """
        first = number % len(self._pictures)
        ordered = self._pictures[first:] + self._pictures[:first]
        same_size = [picture for picture in ordered if picture.size == ordered[0].size]
        return list(itertools.islice(itertools.cycle(same_size), batch))


def measure(
    cases: Sequence[Case], pictures: Pictures, seconds: float, rounds: int | None = None
) -> list[Turn]:
    """Measure all cases in turns.

    In a setting all models run the same requests. OpenCV, which resizes, has as many threads as the runtime
    of a stream.

    Args:
        cases: the cases.
        pictures: composes the requests.
        seconds: approximate duration; at least MIN_ROUNDS rounds are run.
        rounds: number of rounds, instead of `seconds`.

    Returns:
        The turns in order, without the warm-up.

    Raises:
        DataError: an image does not fit into a network.
        BundleError: a runtime failed.
    """
    threads_before = cv2.getNumThreads()
    try:
        durations = []  # seconds of a request, by case
        with console.bar("warming up", len(cases)) as bar:
            for case in cases:
                _, streams = _run_turn(case, pictures, WARM_UP_REQUESTS, 0)
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
                turns.append(Turn(number, index, *_run_turn(case, pictures, count, number * count)))
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


def _run_turn(case: Case, pictures: Pictures, count: int, first: int) -> tuple[float, list[list[Request]]]:
    """Seconds, and the `count` requests of each stream, numbered from `first`."""
    streams = case.model.streams(case.setting)
    cv2.setNumThreads(case.setting.threads)
    barrier = threading.Barrier(len(streams))
    try:
        running = []
        for i, stream in enumerate(streams):
            numbers = (i + len(streams) * number for number in range(first, first + count))
            requests = [pictures.request(number, case.setting.batch) for number in numbers]
            running.append(stream.start(requests, barrier))
        runs = [each.result() for each in running]
    except BaseException:
        barrier.abort()  # the other streams must not wait for one that failed
        raise
    seconds = max(run.ended for run in runs) - min(run.started for run in runs)
    return seconds, [run.requests for run in runs]


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
