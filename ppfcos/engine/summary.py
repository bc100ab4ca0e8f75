"""What a training logs before its first step, and at its end."""

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

MAX_ROWS = 10  # of the table of evaluations, without the best one
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class Evaluation(NamedTuple):
    """An evaluation after so many finished epochs."""

    epochs: float
    metrics: CocoMetrics


def describe_training(
    cfg: Mapping[str, Any],
    model: nn.Layer,
    data: Sequence[DetectionData],
    devices: Sequence[str],
    plan: Plan,
    finished_steps: int,
    folder: Path,
) -> list[str]:
    """Describe a training before its first step.

    Returns:
        Lines on model, data, devices, schedule and folder; another one if the batch scales the learning rate.
    """
    factor = batch_factor(cfg)
    accumulated = cfg["TrainReader"].get("accumulate_steps", 1)
    rate, every = cfg["LearningRate"]["base_lr"] * factor, cfg["snapshot_epoch"]
    parts = ", ".join(type(part).__name__ for part in model.children() if part.parameters())
    weights = count_weights(model)
    kind = devices[0].split(":")[0]
    names = ", ".join(dict.fromkeys(device.partition(": ")[2] or device for device in devices))
    lines = [
        f"model:    {type(model).__name__} ({parts}), {weights.total / 1e6:.2f} M parameters, "
        f"{weights.trained / 1e6:.2f} M of them trained",
        f"data:     {'; '.join(_describe_data(each) for each in data)}",
        f"devices:  {_count(len(devices), 'process', 'processes')} on {kind} ({names}); "
        f"{batch_arithmetic(plan.total_batch_size, plan.processes, accumulated)}",
        f"schedule: {_describe_schedule(plan, finished_steps, rate)}",
        f"folder:   {folder}, a checkpoint {'every epoch' if every == 1 else f'every {every} epochs'}"
        f"{', evaluated, the best one kept' if len(data) > 1 else ''}",
    ]
    if factor != 1:
        lines.append(
            f"the learning rate is LearningRate.base_lr times {factor:.4g}, since a step takes "
            f"{plan.total_batch_size} images, not lr_batch_size, which is {cfg['lr_batch_size']} "
            "(-o lr_batch_size=null leaves the rate alone)"
        )
    return lines


def batch_arithmetic(images: int, processes: int, accumulated: int = 1) -> str:
    """Return `16 images a step = 4 processes × 2 accumulated × 2 images`, for example."""
    each = math.ceil(images / (processes * accumulated))
    factors = [_count(processes, "process", "processes")]
    factors += [f"{accumulated} accumulated"] if accumulated > 1 else []
    return f"{_count(images, 'image')} a step = {' × '.join([*factors, _count(each, 'image')])}"


def _describe_data(data: DetectionData) -> str:
    boxes = sum(len(record.get("gt_bbox", ())) for record in data.records)
    classes = _count(len(data.categories), "class", "classes")
    return f"{data.section} {_count(len(data), 'image')}, {_count(boxes, 'box', 'boxes')}, {classes}"


def _describe_schedule(plan: Plan, finished_steps: int, rate: float) -> str:
    epochs, steps = divmod(finished_steps, plan.steps_per_epoch)
    start = f"{epochs + 1}" + (f" (from step {steps + 1})" if steps else "")
    left = plan.epochs * plan.steps_per_epoch - finished_steps
    return (
        f"epochs {start} to {plan.epochs} of {_count(plan.steps_per_epoch, 'step')}, {left} in all; "
        f"learning rate up to {rate:g}; expected end: after the first steps"
    )


def _count(number: int, thing: str, things: str | None = None) -> str:
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def describe_results(
    evaluations: Sequence[Evaluation], best: tuple[Path, float] | None, last: Path, next_command: str
) -> list[str]:
    """Describe the results of a training.

    Returns:
        The table of evaluations if there are any, the best and last checkpoint, and the command.
    """
    lines = result_table(evaluations, best and best[1]) if evaluations else []
    if best is not None:
        lines.append(f"best checkpoint: {best[0]}, box AP {best[1]:.3f}")
    return [*lines, f"training is done; last checkpoint: {last}", f"next: {next_command}"]


def result_table(evaluations: Sequence[Evaluation], best_ap: float | None = None) -> list[str]:
    """Return a head and a line for each of the last evaluations and the best, that with `best_ap`."""
    best_ap = max(each.metrics.ap for each in evaluations) if best_ap is None else best_ap
    best = next((each for each in evaluations if each.metrics.ap == best_ap), None)
    shown = [each for each in evaluations[:-MAX_ROWS] if each is best] + list(evaluations[-MAX_ROWS:])
    lines = ["after epoch " + " ".join(f"{name:>6}" for name in COLUMNS)]
    for each in shown:
        metrics = each.metrics.named()
        values = " ".join(
            f"{'-':>6}" if metrics[name] == NO_OBJECTS else f"{metrics[name]:>6.3f}" for name in COLUMNS
        )
        lines.append(f"{each.epochs:>11g} {values}" + ("  best" if each is best else ""))
    return lines
