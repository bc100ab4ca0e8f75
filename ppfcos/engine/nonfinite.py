"""Steps whose loss is not finite: what was in them is named and kept, and the run stops or goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paddle import Tensor, nn

from ppfcos.engine import distributed
from ppfcos.engine.ema import running_statistics
from ppfcos.errors import TrainingError
from ppfcos.fileio import replacing

logger = logging.getLogger(__name__)

MAX_NAMED_IMAGES = 16  # in a message
MAX_OVERFLOWS = 64  # steps one after another; the largest loss scale falls to 1 in 40


class NonFiniteSteps:
    """Steps whose loss or gradient is not finite: stops the run, or skips a few of them.

    Args:
        cfg: `on_nonfinite` (`stop` or `skip`) and `max_nonfinite_steps`, how many may be skipped.
        folder: where the batches are saved.
        model: a skipped step must not change its running statistics.
        records: of the training set.
    """

    def __init__(self, cfg: Mapping[str, Any], folder: Path, model: nn.Layer, records: Sequence[Mapping]):
        self._max_skipped = cfg["max_nonfinite_steps"] if cfg["on_nonfinite"] == "skip" else 0
        self._folder = folder
        self._images = {int(record["im_id"][0]): record["im_file"] for record in records}
        self._count = 0
        self._overflows = 0  # steps one after another
        names = running_statistics(model) if self._max_skipped else ()
        self._statistics = [tensor for name, tensor in model.state_dict().items() if name in names]
        self.remember()

    def remember(self) -> None:
        """Save the running statistics: the next forward pass changes them before its loss is known."""
        self._saved = [tensor.clone() for tensor in self._statistics]

    def add(
        self, name: str, losses: dict[str, float], batches: Sequence[dict], values: dict[str, float]
    ) -> None:
        """Save the batch, and stop or skip. All ranks must call it.

        Raises:
            TrainingError: the training must stop; the same on all ranks.
        """
        file = self._folder / f"nonfinite_{name.replace(', ', '_').replace(' ', '')}_{distributed.rank()}.npz"
        with distributed.collective_error_check():
            _save_batches(file, batches)
        names = [self._images[int(n)] for batch in batches for n in batch["im_id"].numpy().reshape(-1)]
        parts = distributed.all_gather_object((losses, names, str(file)))
        self._count += 1
        message = f"the loss or its gradient is not finite at {name} ({_describe(parts, values)})"
        if self._count <= self._max_skipped:
            logger.warning("%s: skipped, %d of %d", message, self._count, self._max_skipped)
            for tensor, saved in zip(self._statistics, self._saved):
                tensor.set_value(saved)
            return
        skipped = f", after {self._count - 1} that were skipped" if self._max_skipped else ""
        raise TrainingError(
            f"{message}{skipped}: lower LearningRate.base_lr, check the annotations of these images, or skip "
            "a few such steps with -o on_nonfinite=skip"
        )

    def count_overflows(self, name: str, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """Log a step with a float16 overflow, and stop after too many of them.

        Args:
            name: of the step.
            before: state of the loss scaler before the step; empty without an overflow.
            after: the same after the step.

        Raises:
            TrainingError: as `add`.
        """
        self._overflows = self._overflows + 1 if before else 0
        if not before:
            return
        skipped = ": the step is skipped" if after["loss_scale"] < before["loss_scale"] else ""
        logger.info(
            "a gradient overflowed float16 at %s%s; loss scale %g", name, skipped, after["loss_scale"]
        )
        if self._overflows >= MAX_OVERFLOWS:
            raise TrainingError(
                f"gradients overflowed float16 in {self._overflows} steps one after another, at last at "
                f"{name}: lower LearningRate.base_lr, or train with -o amp_dtype=bfloat16 or -o amp=false"
            )


def _describe(parts: Sequence[tuple], values: Mapping[str, float]) -> str:
    """Losses, values, images and files, of the ranks whose own loss is not finite if there are any."""
    broken = [part for part in parts if not np.isfinite(list(part[0].values())).all()] or parts
    losses = " and ".join(_format(part[0], ".4g") for part in broken)
    images = [image for part in broken for image in part[1]]
    more = f" and {len(images) - MAX_NAMED_IMAGES} more" if len(images) > MAX_NAMED_IMAGES else ""
    files = ", ".join(part[2] for part in broken)
    return (
        f"{losses}; {_format(values, '.6g')}; images {', '.join(images[:MAX_NAMED_IMAGES])}{more}; "
        f"the batch is in {files}"
    )


def _format(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{key} {value:{form}}" for key, value in values.items())


def _save_batches(path: Path, batches: Sequence[dict]) -> None:
    """Write the inputs of the network as .npz: `image_0`, `gt_bbox_0` and so on, by micro-batch."""
    arrays = {
        f"{key}_{number}": value.numpy()
        for number, batch in enumerate(batches)
        for key, value in batch.items()
        if isinstance(value, Tensor)
    }
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
