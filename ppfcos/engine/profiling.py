"""Profiles some training steps: the time of each phase, the most expensive operators, and a trace."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import paddle
from paddle.profiler import Profiler, RecordEvent, SortedKeys, SummaryView

from ppfcos.errors import OutputError
from ppfcos.fileio import replacing

logger = logging.getLogger(__name__)

FIRST_STEP, LAST_STEP = 10, 15  # to profile, if the epoch has as many: the first steps also allocate and tune
MAX_OPERATORS = 10  # in the log

# Phases of a step; the remaining time is OTHER. DataParallel exchanges gradients in the backward phase;
# COMMUNICATION is all other collectives.
DATA_WAIT, FORWARD, BACKWARD = "data wait", "forward", "backward"
COMMUNICATION, OPTIMIZER, OTHER = "communication", "optimizer", "other"


class NoProfiler:
    """Has the interface of StepProfiler and does nothing."""

    _nothing = contextlib.nullcontext()

    def phase(self, name: str) -> contextlib.AbstractContextManager:
        """Do nothing."""
        return self._nothing

    def step(self) -> None:
        """Do nothing."""

    def __enter__(self) -> NoProfiler:
        return self

    def __exit__(self, *failure: object) -> None:
        pass


class StepProfiler(NoProfiler):
    """Profiles some steps of the main process. A context around the training.

    On a GPU, each phase waits for the kernels that it launched: its time is right, and the steps are a little
    slower.

    Args:
        folder: for the trace, which chrome://tracing and ui.perfetto.dev show.
        steps: number of steps left in the epoch. Steps 10 to 15 are profiled; of fewer, the last six, without
            the first if possible.
    """

    def __init__(self, folder: Path, steps: int):
        self.last = min(LAST_STEP, steps)
        self.first = min(self.last, max(2, self.last - (LAST_STEP - FIRST_STEP)))
        self._folder = folder
        self._finished = 0
        self._seconds: dict[str, float] = {}
        self._phase, self._since = OTHER, 0.0
        self._profiler: Profiler | None = None

    def __enter__(self) -> StepProfiler:
        self._start_if_due()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def phase(self, name: str) -> contextlib.AbstractContextManager:
        """Return a context whose time belongs to a phase; of nested phases, the inner one counts."""
        return self._nothing if self._profiler is None else self._timed(name)

    def step(self) -> None:
        """Note the end of a step."""
        self._finished += 1
        if self._profiler is not None and self._finished == self.last:
            self._stop(self._profiler)
        self._start_if_due()

    def _start_if_due(self) -> None:
        if self._finished + 1 == self.first:
            # Without a handler, the profiler writes to the working folder.
            self._profiler = Profiler(on_trace_ready=lambda profiler: None)
            self._profiler.start()
            self._seconds = dict.fromkeys(
                (DATA_WAIT, FORWARD, BACKWARD, COMMUNICATION, OPTIMIZER, OTHER), 0.0
            )
            self._phase, self._since = OTHER, time.perf_counter()

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        _synchronize()
        outer = self._switch(name)
        try:
            with RecordEvent(name):
                yield
                _synchronize()
        finally:
            self._switch(outer)

    def _switch(self, phase: str) -> str:
        """Start another phase and return the one before: every moment belongs to one phase."""
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        before, self._phase, self._since = self._phase, phase, now
        return before

    def _stop(self, profiler: Profiler) -> None:
        _synchronize()
        self._switch(OTHER)
        profiler.stop()
        self._profiler = None
        steps = self.last - self.first + 1
        logger.info(
            "time of steps %d to %d:\n%s\n%s",
            self.first,
            self.last,
            phase_table(self._seconds, steps),
            operator_table(profiler),
        )
        path = self._folder / f"steps_{self.first}_to_{self.last}.json"
        try:
            with replacing(path) as unfinished:
                profiler.export(str(unfinished), format="json")
        except OutputError as error:  # the training goes on
            # As text: a record that holds the error holds the profiler, and Paddle has one per process.
            logger.warning("%s", str(error))
        else:
            logger.info("trace: %s (open it at https://ui.perfetto.dev or chrome://tracing)", path)


def phase_table(seconds: Mapping[str, float], steps: int) -> str:
    """Format the seconds of each phase, summed over `steps`, with a last row for the whole step."""
    total = sum(seconds.values())
    rows = [(name, value) for name, value in seconds.items() if value] + [("a step", total)]
    lines = [f"{'phase':<36} {'ms a step':>10} {'ratio':>8}"]
    lines += [f"{name:<36} {1000 * value / steps:>10.2f} {value / total:>8.1%}" for name, value in rows]
    return "\n".join(lines)


def operator_table(profiler: Profiler) -> str:
    """Return the head and the first rows of Paddle's operator summary: totals of all profiled steps."""
    key = SortedKeys.CPUTotal if paddle.get_device() == "cpu" else SortedKeys.GPUTotal
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        profiler.summary(sorted_by=key, op_detail=False, time_unit="ms", views=SummaryView.OperatorView)
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    head = [line for line in lines if line.startswith("Name ")]
    merged = next((number for number, line in enumerate(lines) if "All threads merged" in line), 0)
    return "\n".join([*head, *lines[merged + 1 :][:MAX_OPERATORS]])


def _synchronize() -> None:
    if paddle.get_device() != "cpu":
        paddle.device.synchronize()
