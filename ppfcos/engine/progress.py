"""How far the training is and how fast it goes."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Mapping
from typing import NamedTuple

from ppfcos.engine.device import peak_memory


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
        left = datetime.timedelta(seconds=round(self.seconds_left))
        return (
            f"epoch: [{self.epoch + 1}/{self.epochs}] step: [{self.step}/{self.steps_per_epoch}] "
            f"learning_rate: {self.learning_rate:.6f} {losses} eta: {left} "
            f"data_cost: {self.data_seconds:.3f} s ips: {self.images_per_second:.2f} images/s "
            f"memory: {self.memory / 2**30:.2f} GB"
        )


class Progress:
    """Collects what the steps report, and sums it up every few of them.

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
        self._steps_timed = 0
        self._seconds = 0.0
        self._clear()

    def start_epoch(self) -> None:
        """Start the clock, which stood still during an evaluation."""
        self._clear()

    def add(self, losses: Mapping[str, float], seconds_waited: float) -> None:
        """Note a finished step.

        Args:
            losses: by name.
            seconds_waited: for a batch.
        """
        self._steps += 1
        self._waited += seconds_waited
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def is_due(self, step: int) -> bool:
        """Whether a report is due after a step.

        Args:
            step: its number in the epoch, from 1.

        Returns:
            True every `log_iter` steps, and after an epoch's first and last.
        """
        return step % self.log_iter == 0 or step in (1, self.steps_per_epoch)

    def report(self, epoch: int, step: int, learning_rate: float) -> Report:
        """Sum up the steps since the last report.

        Args:
            epoch: from 0.
            step: number of the last step in it, from 1.
            learning_rate: of that step.

        Returns:
            The report.
        """
        seconds = time.perf_counter() - self._start
        self._steps_timed += self._steps
        self._seconds += seconds
        steps_left = (self.epochs - epoch) * self.steps_per_epoch - step
        report = Report(
            epoch,
            self.epochs,
            step,
            self.steps_per_epoch,
            learning_rate,
            {name: total / self._steps for name, total in self._sums.items()},
            self._steps * self.batch_size / seconds,
            self._waited / self._steps,
            steps_left * self._seconds / self._steps_timed,
            peak_memory(),
        )
        self._clear()
        return report

    def _clear(self) -> None:
        self._start = time.perf_counter()
        self._steps, self._waited, self._sums = 0, 0.0, {}
