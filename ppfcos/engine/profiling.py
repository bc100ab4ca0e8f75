"""Where the time of a training step goes: Paddle's profiler around some steps, and its findings."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import paddle
from paddle.profiler import Profiler, RecordEvent
from paddle.profiler.profiler_statistic import StatisticData

from ppfcos.errors import OutputError
from ppfcos.fileio import replacing

logger = logging.getLogger(__name__)

FIRST_STEP, LAST_STEP = 10, 15  # of the run, where it has as many: the first ones also prepare what they need
NAMED_OPERATORS = 10

# The phases of a step; what is in none of them is OTHER.
DATA_WAIT, FORWARD, BACKWARD = "data wait", "forward", "backward"
COMMUNICATION, OPTIMIZER, OTHER = "communication", "optimizer", "other"


class NoProfiler:
    """Stands where a StepProfiler could stand, and does nothing."""

    _nothing = contextlib.nullcontext()

    def phase(self, name: str) -> contextlib.AbstractContextManager:
        """Does nothing; see StepProfiler."""
        return self._nothing

    def step(self) -> None:
        """Does nothing; see StepProfiler."""

    def __enter__(self) -> NoProfiler:
        return self

    def __exit__(self, *failure: object) -> None:
        pass


class Operator(NamedTuple):
    """What all calls of an operator took, the operators included that it calls.

    Attributes:
        name: as Paddle names it.
        seconds: on the GPU where it ran there, else on the CPU.
        calls: number of them.
    """

    name: str
    seconds: float
    calls: int


class StepProfiler:
    """Traces some steps of this process and logs where their time went. A context around the training.

    For the first process only: of several, each would write the same file.

    The gradients of several processes are exchanged in the backward phase, each as soon as it is known;
    COMMUNICATION is whatever else they tell one another.

    On a GPU, which computes while Python is already further on, each phase waits for what it began: the times
    are right, and the steps a little slower than usual.

    Args:
        folder: for the trace, a file for chrome://tracing and ui.perfetto.dev.
        steps: that the first epoch of the run has still before it. Of these are traced the tenth to the
            fifteenth, or the last six where there are fewer, without the very first if possible.
    """

    def __init__(self, folder: Path, steps: int):
        self.last = min(LAST_STEP, steps)
        self.first = min(self.last, max(2, self.last - (LAST_STEP - FIRST_STEP)))
        self._folder = folder
        self._finished = 0
        self._clock = _PhaseClock()
        self._profiler: Profiler | None = None

    def __enter__(self) -> StepProfiler:
        self._start_if_due()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def phase(self, name: str) -> contextlib.AbstractContextManager:
        """What happens within belongs to a phase; to that alone, where one phase is within another.

        Args:
            name: FORWARD and so on.

        Returns:
            A context manager.
        """
        return contextlib.nullcontext() if self._profiler is None else self._timed(name)

    def step(self) -> None:
        """A step has ended."""
        self._finished += 1
        if self._profiler is not None and self._finished == self.last:
            self._stop(self._profiler)
        self._start_if_due()

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        _wait_for_device()
        outer = self._clock.switch(name)
        try:
            with RecordEvent(name):
                yield
                _wait_for_device()
        finally:
            self._clock.switch(outer)

    def _start_if_due(self) -> None:
        if self._finished + 1 == self.first:
            # Without a handler of its own, it would write to the working folder.
            self._profiler = Profiler(on_trace_ready=lambda profiler: None)
            self._profiler.start()
            self._clock = _PhaseClock()

    def _stop(self, profiler: Profiler) -> None:
        _wait_for_device()
        self._clock.switch(OTHER)
        profiler.stop()
        self._profiler = None
        steps = self.last - self.first + 1
        logger.info(
            "where the time of steps %d to %d went:\n%s\n%s",
            self.first,
            self.last,
            phase_table(self._clock.seconds, steps),
            operator_table(_operators(profiler), sum(self._clock.seconds.values()), steps),
        )
        path = self._folder / f"steps_{self.first}_to_{self.last}.json"
        try:
            with replacing(path) as unfinished:
                profiler.export(str(unfinished), format="json")
        except OutputError as error:  # the training is worth more
            # As text: a record that holds the error holds the profiler, and Paddle has one in a process.
            logger.warning("%s", str(error))
        else:
            logger.info("trace: %s (open it at https://ui.perfetto.dev or chrome://tracing)", path)


class _PhaseClock:
    """Every moment belongs to one phase, so that the phases add up to all the time there was."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((DATA_WAIT, FORWARD, BACKWARD, COMMUNICATION, OPTIMIZER, OTHER), 0.0)
        self._phase, self._since = OTHER, time.perf_counter()

    def switch(self, phase: str) -> str:
        """Begin another phase; returns the one before."""
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        before, self._phase, self._since = self._phase, phase, now
        return before


def phase_table(seconds: Mapping[str, float], steps: int) -> str:
    """How long each phase took.

    Args:
        seconds: by phase, of all steps together.
        steps: number of them.

    Returns:
        A line a phase, and their sum.
    """
    total = sum(seconds.values())
    rows = [(name, value) for name, value in seconds.items()] + [("a step", total)]
    lines = [f"{'phase':<36} {'ms a step':>10} {'share':>8}"]
    lines += [
        f"{name:<36} {1000 * value / steps:>10.2f} {value / total:>8.1%}" for name, value in rows if value
    ]
    return "\n".join(lines)


def operator_table(operators: list[Operator], total_seconds: float, steps: int) -> str:
    """The dearest operators.

    Args:
        operators: of all steps together.
        total_seconds: of all steps together.
        steps: number of them.

    Returns:
        A line for each of the first few.
    """
    dearest = sorted(operators, key=lambda operator: -operator.seconds)[:NAMED_OPERATORS]
    lines = [f"{'operator':<36} {'ms a step':>10} {'share':>8} {'calls a step':>14}"]
    lines += [
        f"{operator.name:<36} {1000 * operator.seconds / steps:>10.2f} "
        f"{operator.seconds / total_seconds:>8.1%} {operator.calls / steps:>14.1f}"
        for operator in dearest
    ]
    return "\n".join(lines)


def _operators(profiler: Profiler) -> list[Operator]:
    """What Paddle's own summary counts; that one prints a hundred lines and more."""
    result = profiler.profiler_result
    items = StatisticData(result.get_data(), result.get_extra_info()).event_summary.items
    return [
        Operator(_plain_name(name), (item.general_gpu_time or item.cpu_time) / 1e9, item.call)
        for name, item in items.items()
    ]


def _plain_name(name: str) -> str:
    """Paddle calls one operator `conv2d dygraph` forward and `Global_Conv2dGradNodeFinal` backward, and those
    written in Python `Global_GradNodePyLayer_Name_backward`; 2.6 leaves `Global_` out, 3.3 `_backward`."""
    name = name.split(" ")[0].removeprefix("Global_")
    if name == "GradNodeAccumulation":  # where DataParallel hooks itself in
        return "gradients, summed and exchanged"
    backward = re.fullmatch(r"(?:GradNodePyLayer_(\w+?)(?:_backward)?|(\w+?)GradNode(?:Final)?)", name)
    if backward is None:
        return name
    operator = backward[1] or re.sub(r"(?<!^)(?=[A-Z])", "_", backward[2]).lower()
    return f"{operator} (backward)"


def _wait_for_device() -> None:
    if paddle.get_device() != "cpu":
        paddle.device.synchronize()
