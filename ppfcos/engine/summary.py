"""What a training says before it starts, in five lines, and what it says when it is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paddle import nn

from ppfcos.data.records import DetectionData
from ppfcos.engine.checkpoint import Plan
from ppfcos.engine.model import count_weights
from ppfcos.engine.optim import batch_factor
from ppfcos.metrics.coco import NO_OBJECTS, CocoMetrics

ROWS = 10  # most evaluations in the table at the end, the best one not counted
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class BatchPlan(NamedTuple):
    """How the images of a step are shared out.

    Attributes:
        images: in a step, over all processes.
        processes: number of them.
        accumulated: batches of a process whose gradients are added up in a step.
    """

    images: int
    processes: int
    accumulated: int = 1

    def line(self) -> str:
        """The arithmetic of a step.

        Returns:
            Such as `16 images a step = 4 processes × 2 accumulated × 2 images`.
        """
        each = math.ceil(self.images / (self.processes * self.accumulated))
        factors = [_count(self.processes, "process", "processes")]
        factors += [f"{self.accumulated} accumulated"] if self.accumulated > 1 else []
        return f"{_count(self.images, 'image')} a step = {' × '.join([*factors, _count(each, 'image')])}"


class StepPlan(NamedTuple):
    """How long a training is.

    Attributes:
        epochs: of the whole training.
        steps_per_epoch: number of them.
        finished_steps: those that an earlier run has made.
        learning_rate: the highest one.
        snapshot_epoch: epochs from one checkpoint to the next.
    """

    epochs: int
    steps_per_epoch: int
    finished_steps: int
    learning_rate: float
    snapshot_epoch: int


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        epochs: finished before it.
        figures: what it found.
    """

    epochs: float
    figures: CocoMetrics


def opening(
    model: nn.Layer,
    data: Sequence[DetectionData],
    devices: Sequence[str],
    batch: BatchPlan,
    steps: StepPlan,
    folder: Path,
) -> list[str]:
    """What a training is about to do.

    Args:
        model: the network.
        data: what it learns from and, where it is evaluated, what on.
        devices: of all processes.
        batch: how the images of a step are shared out.
        steps: how long it is.
        folder: where it writes.

    Returns:
        Five lines: model, data, devices, schedule, folder.
    """
    kind = devices[0].split(":")[0]
    processes = _count(len(devices), "process", "processes")
    names = ", ".join(dict.fromkeys(device.partition(": ")[2] or device for device in devices))
    return [
        f"model:    {type(model).__name__} ({_parts(model)}), {_parameters(model)}",
        f"data:     {'; '.join(_data_set(each) for each in data)}",
        f"devices:  {processes} on {kind} ({names}); {batch.line()}",
        f"schedule: {_schedule(steps)}",
        f"folder:   {folder}, a checkpoint {_every(steps.snapshot_epoch)}"
        f"{', evaluated, the best one kept' if len(data) > 1 else ''}",
    ]


def opening_of(
    cfg: Mapping[str, Any],
    model: nn.Layer,
    data: Sequence[DetectionData],
    devices: Sequence[str],
    plan: Plan,
    finished_steps: int,
    folder: Path,
) -> list[str]:
    """What a training of a configuration is about to do.

    Args:
        cfg: the configuration.
        model: the network.
        data: what it learns from and, where it is evaluated, what on.
        devices: of all processes.
        plan: what it set out to do.
        finished_steps: those that an earlier run has made.
        folder: where it writes.

    Returns:
        Those of `opening`, and another where the batch changes the learning rate.
    """
    factor = batch_factor(cfg)
    images = BatchPlan(plan.total_batch_size, plan.processes, cfg["TrainReader"].get("accumulate_steps", 1))
    steps = StepPlan(
        plan.epochs,
        plan.steps_per_epoch,
        finished_steps,
        cfg["LearningRate"]["base_lr"] * factor,
        cfg["snapshot_epoch"],
    )
    lines = opening(model, data, devices, images, steps, folder)
    if factor != 1:
        lines.append(
            f"the learning rate is LearningRate.base_lr times {factor:.4g}, since a step takes "
            f"{plan.total_batch_size} images, not lr_batch_size, which is {cfg['lr_batch_size']} "
            "(-o lr_batch_size=null leaves the rate alone)"
        )
    return lines


def closing(
    evaluations: Sequence[Evaluation], best: tuple[Path, float] | None, last: Path, next_command: str
) -> list[str]:
    """What came of a training.

    Args:
        evaluations: of this run, in their order.
        best: the best checkpoint and its box AP, which may be an earlier run's; None without evaluations.
        last: the last checkpoint.
        next_command: what to type now.

    Returns:
        A table of the results if there are any, the best checkpoint, the last, and the command.
    """
    lines = result_table(evaluations) if evaluations else []
    if best is not None:
        lines.append(f"best checkpoint: {best[0]}, box AP {best[1]:.3f}")
    return [*lines, f"training is done; last checkpoint: {last}", f"next: {next_command}"]


def result_table(evaluations: Sequence[Evaluation]) -> list[str]:
    """The figures of all evaluations, or of the last ones and the best.

    Args:
        evaluations: in their order, at least one.

    Returns:
        A head, and a line an evaluation.
    """
    best = max(evaluations, key=lambda evaluation: evaluation.figures.ap)
    shown = [each for each in evaluations[:-ROWS] if each is best] + list(evaluations[-ROWS:])
    lines = ["after epoch " + " ".join(f"{name:>6}" for name in COLUMNS)]
    for each in shown:
        figures = each.figures.named()
        values = " ".join(
            f"{'-':>6}" if figures[name] == NO_OBJECTS else f"{figures[name]:>6.3f}" for name in COLUMNS
        )
        lines.append(f"{each.epochs:>11g} {values}" + ("  best" if each is best else ""))
    return lines


def _parts(model: nn.Layer) -> str:
    return ", ".join(type(part).__name__ for part in model.children() if part.parameters())


def _parameters(model: nn.Layer) -> str:
    count = count_weights(model)
    return f"{count.total / 1e6:.2f} M parameters, {count.trained / 1e6:.2f} M of them trained"


def _data_set(data: DetectionData) -> str:
    boxes = sum(len(record.get("gt_bbox", ())) for record in data.records)
    classes = _count(len(data.categories), "class", "classes")
    return f"{data.section} {_count(len(data), 'image')}, {_count(boxes, 'box', 'boxes')}, {classes}"


def _schedule(steps: StepPlan) -> str:
    done_epochs, done_steps = divmod(steps.finished_steps, steps.steps_per_epoch)
    start = f"{done_epochs + 1}" + (f" (from step {done_steps + 1})" if done_steps else "")
    left = steps.epochs * steps.steps_per_epoch - steps.finished_steps
    return (
        f"epochs {start} to {steps.epochs} of {_count(steps.steps_per_epoch, 'step')}, {left} in all; "
        f"learning rate up to {steps.learning_rate:g}; expected end: after the first steps"
    )


def _every(epochs: int) -> str:
    return "every epoch" if epochs == 1 else f"every {epochs} epochs"


def _count(number: int, thing: str, things: str | None = None) -> str:
    return f"{number} {thing if number == 1 else things or thing + 's'}"
