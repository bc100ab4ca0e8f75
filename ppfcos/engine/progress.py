"""Progress of a training: losses, speed and time left, in the log and on the bar."""

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

BAR_STEPS = 20  # the bar shows the mean loss and speed of so many steps
MIN_TIMED_STEPS = 10  # before the end of the training is estimated


class Report(NamedTuple):
    """The steps since the previous report.

    Attributes:
        epoch: from 0.
        epochs: of the whole training.
        step: last one, from 1 in its epoch.
        steps_per_epoch: number of them.
        learning_rate: of the last step.
        losses: means over the steps and ranks, by name.
        images_per_second: of all ranks together.
        data_seconds: mean wait for a batch.
        seconds_left: of training, without evaluations.
        memory: peak, in bytes.
        gradient_norm: of the last step; nan if unknown.
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
        """Format like PaddleDetection: `epoch: [1/12] step: [20/7329] learning_rate: 0.003733 loss: ...`."""
        total_first = sorted(self.losses, key="loss".__ne__)
        losses = " ".join(f"{name}: {self.losses[name]:.4f}" for name in total_first)
        return (
            f"epoch: [{self.epoch + 1}/{self.epochs}] step: [{self.step}/{self.steps_per_epoch}] "
            f"learning_rate: {self.learning_rate:.6f} {losses} eta: {_duration(self.seconds_left)} "
            f"data_cost: {self.data_seconds:.3f} s ips: {self.images_per_second:.2f} images/s "
            f"memory: {self.memory / 2**30:.2f} GB"
        )


class Progress:
    """Averages what the steps report, logs it every `log_iter` steps, and moves the bar."""

    def __init__(self, epochs: int, steps_per_epoch: int, log_iter: int, batch_size: int):
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.log_iter = max(1, int(log_iter))
        self.batch_size = batch_size
        self._timed_steps = 0
        self._timed_seconds = self._first_seconds = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=BAR_STEPS)  # seconds, loss
        self._bar = console.Bar()
        self._is_end_estimated = False
        self.start_epoch()

    @contextlib.contextmanager
    def bar(self, finished_steps: int = 0) -> Iterator[None]:
        """Show a bar for the whole training within the block; it starts after the steps of an earlier run."""
        total = self.epochs * self.steps_per_epoch
        try:
            with console.bar("training", total, finished_steps, console.WITH_METRICS) as self._bar:
                yield
        finally:
            self._bar = console.Bar()

    def start_epoch(self) -> None:
        """Restart the clock, after an evaluation for example."""
        self._reset()
        self._last_step = self._start

    def add(self, losses: Mapping[str, float], seconds_waited: float) -> None:
        """Add a finished step: its losses by name (total: `loss`), and its wait for the batch."""
        now = time.perf_counter()
        seconds = now - self._last_step
        self._timed_steps += 1
        if self._timed_steps == 1:
            self._first_seconds = seconds
        else:
            self._timed_seconds += seconds
        self._recent.append((seconds, losses.get("loss", math.nan)))
        self._last_step = now
        self._steps += 1
        self._waited += seconds_waited
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def move_bar(self, epoch: int, step: int) -> None:
        """Show the added steps on the bar; `epoch` counts from 0, `step` from 1."""
        if not self._bar.is_shown:
            return
        seconds, losses = (sum(values) for values in zip(*self._recent))
        width = len(str(self.steps_per_epoch))  # constant, so that the bar does not move sideways
        title = f"epoch {epoch + 1}/{self.epochs} step {step:>{width}}/{self.steps_per_epoch}"
        speed = len(self._recent) * self.batch_size / seconds
        left = _duration(self._seconds_left(epoch, step))
        metrics = f"loss {losses / len(self._recent):.3f}, {speed:.1f} images/s, {left} left"
        self._bar.move_to(epoch * self.steps_per_epoch + step, title, metrics)

    def is_due(self, step: int) -> bool:
        """Whether to report: every `log_iter` steps, and after the first and last step of an epoch."""
        return step % self.log_iter == 0 or step in (1, self.steps_per_epoch)

    def report(self, epoch: int, step: int, learning_rate: float, gradient_norm: float = math.nan) -> Report:
        """Summarize the steps since the last report; `epoch` counts from 0, `step` from 1."""
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
        self._reset()
        return report

    def log(self, report: Report) -> None:
        """Log a report. With a bar, the screen shows only the last one of each epoch; files get all."""
        on_screen_too = report.step == report.steps_per_epoch
        logger.info("%s", report.line(), extra=None if on_screen_too else console.HIDDEN_BY_BAR)
        if self._timed_steps > MIN_TIMED_STEPS and report.seconds_left > 0 and not self._is_end_estimated:
            self._is_end_estimated = True
            end = datetime.datetime.now() + datetime.timedelta(seconds=report.seconds_left)
            left = _duration(report.seconds_left)
            logger.info("expected end: %s (%s left, evaluations not counted)", f"{end:%Y-%m-%d %H:%M}", left)

    def _seconds_left(self, epoch: int, step: int) -> float:
        """The first step, which also allocates memory, counts only while it is the only one."""
        only_first = self._timed_steps == 1
        seconds = self._first_seconds if only_first else self._timed_seconds / (self._timed_steps - 1)
        return ((self.epochs - epoch) * self.steps_per_epoch - step) * seconds

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._steps, self._waited, self._sums = 0, 0.0, {}


def _duration(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(seconds))
