"""The learning rate over the steps and the optimizer that uses it, from PaddleDetection's builders."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any

from paddle import nn
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler, PiecewiseDecay
from ppdet.core.workspace import create

from ppfcos.errors import ConfigError, one_line

MOST_STEPS = 20_000_000  # of a schedule: PaddleDetection lists the rate of each, in 70 bytes a step


class TabulatedDecay(PiecewiseDecay):
    """Paddle's PiecewiseDecay, which looks through all its boundaries in each step, by bisection.

    PaddleDetection makes one boundary a step of a warm-up, and of a cosine that follows one: hundreds of
    thousands.
    """

    def get_lr(self) -> float:
        """The rate of the step at hand."""
        return self.values[bisect.bisect_right(self.boundaries, self.last_epoch)]


def batch_factor(cfg: Mapping[str, Any]) -> float:
    """How many times as large the batch is as the one that the learning rate was chosen for.

    Args:
        cfg: the configuration.

    Returns:
        TrainReader.total_batch_size over `lr_batch_size`; 1 where that is null.
    """
    return cfg["TrainReader"]["total_batch_size"] / cfg["lr_batch_size"] if cfg.get("lr_batch_size") else 1.0


def build_schedule(cfg: Mapping[str, Any], steps_per_epoch: int, finished_steps: int = 0) -> LRScheduler:
    """The learning rate of every step, from the key LearningRate, times the factor of the batch.

    It follows the batch linearly (Goyal et al., arXiv 1706.02677, section 2.1).

    Args:
        cfg: the configuration.
        steps_per_epoch: to which milestones in epochs are multiplied.
        finished_steps: those that an earlier run has done.

    Returns:
        To be stepped after every training step.

    Raises:
        ConfigError: LearningRate is wrong, or its warm-up lasts longer than the time to the first milestone.
    """
    learning_rate = _create("LearningRate")
    _check_length(learning_rate.schedulers, steps_per_epoch)
    _check_warmup(learning_rate.schedulers, steps_per_epoch)
    learning_rate.base_lr *= batch_factor(cfg)
    try:
        schedule = learning_rate(steps_per_epoch)
    except Exception as error:  # whatever PaddleDetection's schedules raise for odd values
        raise ConfigError(
            f"LearningRate.schedulers cannot be used ({one_line(error)}): give a decay such as "
            "PiecewiseDecay first, and a warm-up such as LinearWarmup second"
        ) from error
    if type(schedule) is PiecewiseDecay:
        schedule = TabulatedDecay(schedule.boundaries, schedule.values)
    for _ in range(finished_steps):  # one by one: some schedules compute a rate from the last one
        schedule.step()
    return schedule


def build_optimizer(model: nn.Layer, schedule: LRScheduler) -> Optimizer:
    """The optimizer, from the key OptimizerBuilder.

    Args:
        model: whose trainable parameters it moves.
        schedule: of its learning rate.

    Returns:
        One of Paddle's.

    Raises:
        ConfigError: OptimizerBuilder is wrong.
    """
    builder = _create("OptimizerBuilder")
    try:
        return builder(schedule, model)
    except Exception as error:  # whatever Paddle's optimizers raise for odd values
        raise ConfigError(f"OptimizerBuilder cannot be used ({one_line(error)})") from error


def _create(name: str) -> Any:
    try:
        return create(name)
    except Exception as error:
        raise ConfigError(f"{name} cannot be used ({one_line(error)})") from error


def _check_length(schedulers: list, steps_per_epoch: int) -> None:
    for scheduler in schedulers:
        for key in ("max_epochs", "epochs"):
            steps = (getattr(scheduler, key, None) or 0) * steps_per_epoch
            if steps > MOST_STEPS:
                raise ConfigError(
                    f"LearningRate.schedulers: {key} of {type(scheduler).__name__} makes {steps} steps, "
                    f"more than {MOST_STEPS}: reduce it"
                )


def _check_warmup(schedulers: list, steps_per_epoch: int) -> None:
    """PaddleDetection appends the milestones to the warm-up's steps, and Paddle takes any order."""
    if len(schedulers) < 2 or not getattr(schedulers[0], "use_warmup", True):
        return
    decay, warmup = schedulers[:2]
    epochs = getattr(warmup, "epochs", None)
    steps = getattr(warmup, "steps", 0) if epochs is None else epochs * steps_per_epoch
    ends = [*getattr(decay, "milestones", []), getattr(decay, "max_epochs", None)]
    first = min((end for end in ends if end is not None), default=None)
    if first is not None and steps >= first * steps_per_epoch:
        raise ConfigError(
            f"LearningRate: a warm-up of {steps} steps is not over before the learning rate first falls, "
            f"after epoch {first}, which is step {first * steps_per_epoch}: shorten the warm-up (`steps` of "
            "its scheduler) or train for more epochs"
        )
