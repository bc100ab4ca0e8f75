"""How far the training is and how fast it goes."""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ppfcos import console
from ppfcos.engine.device import peak_memory

logger = logging.getLogger(__name__)

STEPS_IN_FIGURES = 20  # the bar's loss and speed are means over as many of the last steps
STEPS_OF_AN_ESTIMATE = 10  # steps timed before the end of the training is foretold


class Report(NamedTuple):
    """The steps since the report before.

    Attributes:
        epoch: from 0.
        epochs: of the whole training.
        step: the last one's number in its epoch, from 1.
        steps_per_epoch: number of them.
        learning_rate: of the last step.
        losses: means over the steps and processes, by name.
        images_per_second: of all processes together.
        data_seconds: mean wait for a batch.
        seconds_left: of training, without evaluations.
        memory: most bytes taken so far.
        gradient_norm: of the last step; nan where it is not known.
    """

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int
    learning_rate: float
    losses: dict
    images_per_second: float
    data_seconds: float
    seconds_left: float
    memory: int
    gradient_norm: float = math.nan

    @property
    def global_step(self) -> int:
        """Number of steps since the training began."""
        return self.epoch * self.steps_per_epoch + self.step

    def line(self) -> str:
        """One line for the log, in PaddleDetection's order.

        Returns:
            Such as `epoch: [1/12] step: [20/7329] learning_rate: 0.003733 loss: 2.0512 ...`.
        """
        total_first = sorted(self.losses, key="loss".__ne__)
        losses = " ".join(f"{name}: {self.losses[name]:.4f}" for name in total_first)
        return (
            f"epoch: [{self.epoch + 1}/{self.epochs}] step: [{self.step}/{self.steps_per_epoch}] "
            f"learning_rate: {self.learning_rate:.6f} {losses} eta: {_duration(self.seconds_left)} "
            f"data_cost: {self.data_seconds:.3f} s ips: {self.images_per_second:.2f} images/s "
            f"memory: {self.memory / 2**30:.2f} GB"
        )


class _Pace:
    """How long a step takes. The first one of a process, which also prepares memory and kernels, counts only
    while there is no other."""

    def __init__(self) -> None:
        self.steps = 0
        self._seconds = 0.0
        self._first = 0.0

    def add(self, seconds: float) -> None:
        """Note a step's duration."""
        self.steps += 1
        if self.steps == 1:
            self._first = seconds
        else:
            self._seconds += seconds

    @property
    def seconds_per_step(self) -> float:
        return self._first if self.steps == 1 else self._seconds / (self.steps - 1)


class Progress:
    """Collects what the steps report, sums it up every few of them, and moves the bar.

    Args:
        epochs: of the whole training.
        steps_per_epoch: number of them.
        log_iter: steps from one report to the next.
        batch_size: images a step, over all processes.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, log_iter: int, batch_size: int):
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.log_iter = max(1, int(log_iter))
        self.batch_size = batch_size
        self._pace = _Pace()
        self._recent: deque[tuple[float, float]] = deque(maxlen=STEPS_IN_FIGURES)  # seconds, loss
        self._bar = console.Bar()
        self._end_is_foretold = False
        self._clear()
        self._last_step = self._start

    @contextlib.contextmanager
    def bar(self, finished_steps: int = 0) -> Iterator[None]:
        """Show a bar for the whole training, on a terminal, until the end of the block.

        Args:
            finished_steps: those that an earlier run has made.

        Yields:
            Nothing.
        """
        total = self.epochs * self.steps_per_epoch
        try:
            with console.bar("training", total, finished_steps, console.WITH_METRICS) as self._bar:
                yield
        finally:
            self._bar = console.Bar()

    def start_epoch(self) -> None:
        """Start the clock, which stood still during an evaluation."""
        self._clear()
        self._last_step = self._start

    def add(self, losses: Mapping[str, float], seconds_waited: float) -> None:
        """Note a finished step.

        Args:
            losses: by name, the total as `loss`.
            seconds_waited: for a batch.
        """
        now = time.perf_counter()
        self._pace.add(now - self._last_step)
        self._recent.append((now - self._last_step, losses.get("loss", math.nan)))
        self._last_step = now
        self._steps += 1
        self._waited += seconds_waited
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def move_bar(self, epoch: int, step: int) -> None:
        """Show the steps that were added last on the bar, if there is one.

        Args:
            epoch: from 0.
            step: number of the last one in it, from 1.
        """
        if not self._bar.is_shown:
            return
        seconds, losses = (sum(values) for values in zip(*self._recent))
        width = len(str(self.steps_per_epoch))  # the bar must not jump as the numbers grow
        title = f"epoch {epoch + 1}/{self.epochs} step {step:>{width}}/{self.steps_per_epoch}"
        speed = len(self._recent) * self.batch_size / seconds
        left = _duration(self._seconds_left(epoch, step))
        figures = f"loss {losses / len(self._recent):.3f}, {speed:.1f} images/s, {left} left"
        self._bar.move_to(epoch * self.steps_per_epoch + step, title, figures)

    def is_due(self, step: int) -> bool:
        """Whether a report is due after a step.

        Args:
            step: its number in the epoch, from 1.

        Returns:
            True every `log_iter` steps, and after an epoch's first and last.
        """
        return step % self.log_iter == 0 or step in (1, self.steps_per_epoch)

    def report(self, epoch: int, step: int, learning_rate: float, gradient_norm: float = math.nan) -> Report:
        """Sum up the steps since the last report.

        Args:
            epoch: from 0.
            step: number of the last step in it, from 1.
            learning_rate: of that step.
            gradient_norm: of that step.

        Returns:
            The report.
        """
        seconds = time.perf_counter() - self._start
        report = Report(
            epoch,
            self.epochs,
            step,
            self.steps_per_epoch,
            learning_rate,
            {name: total / self._steps for name, total in self._sums.items()},
            self._steps * self.batch_size / seconds,
            self._waited / self._steps,
            self._seconds_left(epoch, step),
            peak_memory(),
            gradient_norm,
        )
        self._clear()
        return report

    def log(self, report: Report) -> None:
        """Log a report. While a bar is up, the screen shows only each epoch's last; a file gets all of them.

        Args:
            report: of the last steps.
        """
        on_screen_too = report.step == report.steps_per_epoch
        logger.info("%s", report.line(), extra=None if on_screen_too else console.HIDDEN_BY_BAR)
        is_timed = self._pace.steps > STEPS_OF_AN_ESTIMATE and report.seconds_left > 0
        if is_timed and not self._end_is_foretold:
            self._end_is_foretold = True
            end = datetime.datetime.now() + datetime.timedelta(seconds=report.seconds_left)
            left = _duration(report.seconds_left)
            logger.info("expected end: %s (%s left, evaluations not counted)", f"{end:%Y-%m-%d %H:%M}", left)

    def _seconds_left(self, epoch: int, step: int) -> float:
        return ((self.epochs - epoch) * self.steps_per_epoch - step) * self._pace.seconds_per_step

    def _clear(self) -> None:
        self._start = time.perf_counter()
        self._steps, self._waited, self._sums = 0, 0.0, {}


def _duration(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(seconds))
