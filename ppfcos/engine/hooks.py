"""What to do when a loss is not finite: say what was in it, keep the batch, and stop or go on."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from paddle import Tensor, nn

from ppfcos.engine import distributed
from ppfcos.engine.ema import running_statistics
from ppfcos.errors import Stopped, TrainingError
from ppfcos.fileio import replacing

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process was told to stop. Until `listening` is entered nobody can tell it.

    Attributes:
        signal: number of the signal that came while it was deferred; 0 if none did.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._is_deferred = False
        self._is_stopping = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Within it, a signal raises Stopped, or is noted where that is wanted.

        Paddle's own handler prints a trace of its C++ frames and dies. This one takes its place, so Paddle
        must have been imported before.

        Yields:
            Itself.
        """
        if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                # paddle.distributed.launch sends SIGTERM up to three times: the last must not kill a process
                # that is on its way out.
                default = signal.SIG_DFL if handler is None else handler
                signal.signal(number, signal.SIG_IGN if self._is_stopping else default)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it, a signal is only noted; whoever entered it looks at `signal` when it suits."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `deferred`, a part that a signal may break off, such as one that came before it."""
        self._is_deferred = False
        if self.signal:
            self._handle(self.signal, None)
        try:
            yield
        finally:
            self._is_deferred = True

    def stopped(self, number: int, message: str) -> Stopped:
        """What to raise when all processes have agreed to stop. From now on signals are ignored.

        Args:
            number: of the signal.
            message: what is left behind, in one line.

        Returns:
            The exception.
        """
        self._is_stopping = True
        return Stopped(number, message, together=True)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._is_stopping:
            return
        is_impatient = number == signal.SIGINT and self.signal == signal.SIGINT
        if self._is_deferred and not is_impatient:
            self.signal = number
            return
        self._is_stopping = True
        raise Stopped(number, f"stopped by {signal.Signals(number).name}")


NAMED_IMAGES = 16  # most images that a message names


class NonFiniteSteps:
    """The steps of a run whose loss or gradient was not finite.

    Args:
        cfg: `on_nonfinite`, `stop` or `skip`, and `max_nonfinite_steps`, how many may be skipped.
        folder: where the batches go.
        model: whose running statistics a skipped step must not spoil.
        records: of the data set that is trained on.
    """

    def __init__(self, cfg: Mapping[str, Any], folder: Path, model: nn.Layer, records: Sequence[Mapping]):
        self._may_be_skipped = cfg["max_nonfinite_steps"] if cfg["on_nonfinite"] == "skip" else 0
        self._folder = folder
        self._images = {int(record["im_id"][0]): record["im_file"] for record in records}
        self._count = 0
        names = running_statistics(model) if self._may_be_skipped else ()
        self._statistics = [tensor for name, tensor in model.state_dict().items() if name in names]
        self.remember()

    def remember(self) -> None:
        """Keep the running statistics, which the next forward pass changes before its loss is known."""
        self._kept = [tensor.clone() for tensor in self._statistics]

    def add(
        self, name: str, losses: dict[str, float], batches: Sequence[dict], facts: dict[str, float]
    ) -> None:
        """Note one; all processes must call it.

        Args:
            name: of the step, such as `epoch 1, step 20`.
            losses: of this process, by name.
            batches: of this process.
            facts: what else to name, such as the learning rate, by name.

        Raises:
            TrainingError: the training must stop; the same in all processes.
        """
        file = self._folder / f"nonfinite_{name.replace(', ', '_').replace(' ', '')}_{distributed.rank()}.npz"
        with distributed.collective_error_check():
            _write(file, batches)
        names = [self._images[int(n)] for batch in batches for n in batch["im_id"].numpy().reshape(-1)]
        parts = distributed.all_gather_object((losses, names, str(file)))
        self._count += 1
        message = f"the loss or its gradient is not finite at {name} ({_described(parts, facts)})"
        if self._count <= self._may_be_skipped:
            logger.warning("%s: skipped, %d of %d", message, self._count, self._may_be_skipped)
            for tensor, kept in zip(self._statistics, self._kept):
                tensor.set_value(kept)
            return
        skipped = f", after {self._count - 1} that were skipped" if self._may_be_skipped else ""
        raise TrainingError(
            f"{message}{skipped}: lower LearningRate.base_lr, look at their annotations, or pass over a few "
            "such steps with -o on_nonfinite=skip"
        )


def _described(parts: Sequence[tuple], facts: Mapping[str, float]) -> str:
    """Losses, facts, images and files; of several processes those whose own loss is not finite, if any is."""
    broken = [part for part in parts if not np.isfinite(list(part[0].values())).all()] or parts
    losses = " and ".join(_numbers(part[0], ".4g") for part in broken)
    images = [image for part in broken for image in part[1]]
    more = f" and {len(images) - NAMED_IMAGES} more" if len(images) > NAMED_IMAGES else ""
    files = ", ".join(part[2] for part in broken)
    return (
        f"{losses}; {_numbers(facts, '.6g')}; images {', '.join(images[:NAMED_IMAGES])}{more}; "
        f"the batch is in {files}"
    )


def _numbers(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{key} {value:{form}}" for key, value in values.items())


def _write(path: Path, batches: Sequence[dict]) -> None:
    """All that the network saw, as NumPy reads it: `image_0`, `gt_bbox_0` and so on, by the part's number."""
    arrays = {
        f"{key}_{number}": value.numpy()
        for number, batch in enumerate(batches)
        for key, value in batch.items()
        if isinstance(value, Tensor)
    }
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
