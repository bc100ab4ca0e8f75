"""How long exported models take, stage by stage, several of them by turns.

A request is a batch of pictures, given as the bytes of their files. A stream is a predictor of its own, whose
runtime has `threads` threads, and which answers one request after another; several streams work at once, each
in its own thread of this process. A case is a model with a setting of threads, streams and batch. A turn is a
case's: each of its streams answers some requests. A round gives every case one turn, and there are many
rounds, so that whatever else the machine does falls on all cases alike.
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
LEAST_ROUNDS, MOST_ROUNDS = 3, 100
TURN_SECONDS, MOST_REQUESTS = 0.4, 200
# Threads that have no more work keep looking for some: Intel's OpenMP, which Paddle uses, for 0.2 seconds.
# What comes next would have to share the cores with them.
PAUSE = 0.25
WARM_UP = 2  # requests of a stream: the first one allocates, the second one tells how long they take
UNABLE = (BundleError, DeviceError, MissingLibraryError)


class Setting(NamedTuple):
    """Threads of each stream's runtime, streams at once, and pictures of a request."""

    threads: int
    streams: int
    batch: int


class Turn(NamedTuple):
    """What a case did in one round.

    Attributes:
        round: from 0.
        case: position among the cases.
        seconds: from the start of the first stream to the end of the last.
        streams: the requests of each.
    """

    round: int
    case: int
    seconds: float
    streams: list[list[Request]]


class Model:
    """A bundle in one runtime and one precision, with all streams that its cases need.

    Args:
        bundle: what its folder holds.
        runtime: as of Predictor; `auto` becomes the name of the one that it stands for.
        precision: as of Predictor.
        threads: the numbers of threads that occur.
        streams: the most streams that there are at once.
        device: as of Predictor.

    Raises:
        PPFCOSError: as Predictor does.
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
        try:
            for number in sorted(threads) * streams:
                self._streams[number].append(
                    Stream(bundle.directory, self.runtime, precision, number, device)
                )
        except BaseException:
            self.close()
            raise

    def streams(self, setting: Setting) -> list[Stream]:
        """Those that work at once in a setting."""
        return self._streams[setting.threads][: setting.streams]

    def close(self) -> None:
        """Let go of all streams."""
        for stream in itertools.chain(*self._streams.values()):
            stream.close()
        self._streams.clear()


class Case(NamedTuple):
    """A model in a setting; a row of the table."""

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
    """Load every bundle in every runtime and every precision in which it can be run.

    Args:
        bundles: folders.
        runtimes: as of Predictor.
        precisions: likewise.
        threads: the numbers of threads that occur.
        streams: the most streams that there are at once.
        device: as of Predictor.

    Yields:
        The models, bundle by bundle; and a line for each combination that cannot be run.

    Raises:
        PPFCOSError: something is no bundle; or in a bundle there is nothing to run for one of the runtimes,
            or in one of the precisions.
    """
    descriptions = [read_bundle(bundle) for bundle in bundles]
    combinations = list(itertools.product(runtimes, precisions))
    models: list[Model] = []
    left_out: list[str] = []
    with contextlib.ExitStack() as opened:
        with console.bar("loading", len(descriptions) * len(combinations)) as bar:
            for description in descriptions:
                failures: dict[tuple[str, str], Exception] = {}
                for combination in combinations:
                    try:
                        model = Model(description, *combination, threads, streams, device)
                        opened.callback(model.close)
                        models.append(model)
                    except UNABLE as error:
                        failures[combination] = error
                    bar.advance()
                _refuse_without_any(runtimes, precisions, failures)
                left_out += [f"left out: {error}" for error in failures.values()]
        yield models, left_out


def _refuse_without_any(
    runtimes: Sequence[str], precisions: Sequence[str], failures: dict[tuple[str, str], Exception]
) -> None:
    """What was asked for by name and cannot be had at all is an error; a gap in the grid is not."""
    of_runtimes = [[(runtime, precision) for precision in precisions] for runtime in runtimes]
    of_precisions = [[(runtime, precision) for runtime in runtimes] for precision in precisions]
    for combinations in of_runtimes + of_precisions:
        if all(each in failures for each in combinations):
            raise failures[combinations[0]]


def cases_of(
    models: Sequence[Model], threads: Sequence[int], streams: Sequence[int], batches: Sequence[int] | None
) -> tuple[list[Case], list[str]]:
    """What is measured.

    Args:
        models: side by side.
        threads: of each stream's runtime.
        streams: at once.
        batches: pictures of a request; None: DEFAULT_BATCHES, or what a network is fixed to.

    Returns:
        Setting by setting, the models of each side by side; and a line for each bundle that cannot take one
        of `batches`.

    Raises:
        ConfigError: a bundle can take none of them.
    """
    takes = {id(model): _batches_of(model.bundle, batches) for model in models}
    every = sorted(set(itertools.chain(*takes.values())))
    cases = [
        Case(model, setting)
        for setting in itertools.starmap(Setting, itertools.product(threads, streams, every))
        for model in models
        if setting.batch in takes[id(model)]
    ]
    left_out = [
        f"left out: {model.bundle.directory} with other batches than {model.bundle.input.batch}, "
        "which its networks are fixed to"
        for model in models
        if batches is not None and len(takes[id(model)]) < len(batches)
    ]
    return cases, list(dict.fromkeys(left_out))


def _batches_of(bundle: Bundle, wanted: Sequence[int] | None) -> Sequence[int]:
    fixed = bundle.input.batch
    if wanted is None:
        return DEFAULT_BATCHES if fixed is None else (fixed,)
    if fixed is not None and fixed not in wanted:
        raise ConfigError(
            f"--batch {','.join(map(str, wanted))}: {bundle.directory} takes {fixed} images at once and no "
            f"other number; add {fixed}, or leave --batch out"
        )
    return wanted if fixed is None else (fixed,)


class Pictures:
    """Makes requests of pictures.

    Args:
        pictures: at least one.
    """

    def __init__(self, pictures: Sequence[Picture]):
        self._pictures = list(pictures)
        of_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, picture in enumerate(self._pictures):
            of_size[picture.size].append(place)
        self._alike = [of_size[picture.size] for picture in self._pictures]

    def request(self, number: int, batch: int) -> list[Picture]:
        """The pictures of a request, all of one size, as a predictor puts them into one batch.

        Args:
            number: of the request; it begins with the picture of this number, counted round and round.
            batch: pictures; where there are fewer of one size, they come again.
        """
        first = number % len(self._pictures)
        alike = self._alike[first]
        return [self._pictures[alike[(alike.index(first) + i) % len(alike)]] for i in range(batch)]


def measure(
    cases: Sequence[Case], pictures: Pictures, seconds: float, rounds: int | None = None
) -> list[Turn]:
    """Let all cases answer requests, by turns.

    In a setting all models answer the same requests, and as many. OpenCV, which resizes, has as many threads
    as a stream's runtime.

    Args:
        cases: what is measured.
        pictures: of the requests.
        seconds: for which it goes on, about; not less than LEAST_ROUNDS rounds.
        rounds: so many of them instead.

    Returns:
        The turns in the order in which they were taken; those that warm up are not among them.

    Raises:
        DataError: a picture does not fit into a network.
        BundleError: a runtime stopped.
    """
    threads_before = cv2.getNumThreads()
    try:
        expected = _warm_up(cases, pictures)
        counts = _requests_of_a_turn(cases, expected)
        if rounds is None:
            turns = (PAUSE + counts[case.setting] * each for case, each in zip(cases, expected))
            rounds = int(np.clip(seconds / sum(turns), LEAST_ROUNDS, MOST_ROUNDS))
        done = []
        with console.bar("measuring", rounds * len(cases)) as bar:
            for number, (place, case) in itertools.product(range(rounds), enumerate(cases)):
                time.sleep(PAUSE)
                count = counts[case.setting]
                done.append(Turn(number, place, *_turn(case, pictures, count, number * count)))
                bar.advance()
        return done
    finally:
        cv2.setNumThreads(threads_before)


def _warm_up(cases: Sequence[Case], pictures: Pictures) -> list[float]:
    """Seconds that a request takes, in each case."""
    expected = []
    with console.bar("warming up", len(cases)) as bar:
        for case in cases:
            _, streams = _turn(case, pictures, WARM_UP, 0)
            expected.append(max(requests[-1].end_to_end for requests in streams) / 1000)
            bar.advance()
    return expected


def _requests_of_a_turn(cases: Sequence[Case], expected: Sequence[float]) -> dict[Setting, int]:
    """Of each stream, by setting: as many as its slowest model answers in TURN_SECONDS."""
    slowest: dict[Setting, float] = defaultdict(float)
    for case, seconds in zip(cases, expected):
        slowest[case.setting] = max(slowest[case.setting], seconds)
    return {
        setting: int(np.clip(round(TURN_SECONDS / seconds), 1, MOST_REQUESTS))
        for setting, seconds in slowest.items()
    }


def _turn(case: Case, pictures: Pictures, count: int, first: int) -> tuple[float, list[list[Request]]]:
    """Seconds, and what each stream's requests took, of which there are `count`, counted from `first`."""
    setting = case.setting
    streams = case.model.streams(setting)
    cv2.setNumThreads(setting.threads)
    together = threading.Barrier(len(streams))
    try:
        working = [
            stream.start(
                [
                    pictures.request(place + len(streams) * number, setting.batch)
                    for number in range(first, first + count)
                ],
                together,
            )
            for place, stream in enumerate(streams)
        ]
        worked = [each.result() for each in working]
    except BaseException:
        together.abort()  # nobody waits for a stream that will not come
        raise
    seconds = max(each.ended for each in worked) - min(each.started for each in worked)
    return seconds, [each.requests for each in worked]


def summaries(cases: Sequence[Case], turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The figures of each case.

    Args:
        cases: that were measured.
        turns: of all of them.

    Returns:
        A row a case, in plain types: what it is; `milliseconds` by stage, `median` and `p99`; and
        `images_per_second` with its `ratio` to the first row.
    """
    rows = [
        _summary(case, [turn for turn in turns if turn.case == place]) for place, case in enumerate(cases)
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
    """The versions of the runtimes that these models are loaded in, by name."""
    modules = {model.runtime: LIBRARIES[model.runtime].module for model in models}
    # OpenVINO's goes on with the build and the branch.
    return {name: importlib.import_module(each).__version__.split("-")[0] for name, each in modules.items()}
