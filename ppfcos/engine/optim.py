"""Learning-rate schedule and optimizer, from PaddleDetection's LearningRate and OptimizerBuilder."""

from __future__ import annotations

import ppfcos.paddledetection  # noqa: F401  # isort: skip

import bisect
from collections.abc import Mapping
from typing import Any

from paddle import nn
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler, PiecewiseDecay
from ppdet.optimizer import LearningRate, OptimizerBuilder
from ppdet.optimizer.optimizer import CosineDecay

from ppfcos.errors import ConfigError, one_line

MAX_STEPS = 20_000_000  # of a schedule: PaddleDetection lists the rate of each step, in 70 bytes


class TabulatedDecay(PiecewiseDecay):
    """PiecewiseDecay that finds the interval by bisection.

    PaddleDetection makes a boundary for each step of a warm-up, and of a cosine that follows one. Paddle's
    class searches all of them in each step.
    """

    def get_lr(self) -> float:
        """Return the rate of the current step."""
        return self.values[bisect.bisect_right(self.boundaries, self.last_epoch)]


def batch_factor(cfg: Mapping[str, Any]) -> float:
    """Return TrainReader.total_batch_size / lr_batch_size; 1 if `lr_batch_size` is null."""
    return cfg["TrainReader"]["total_batch_size"] / cfg["lr_batch_size"] if cfg.get("lr_batch_size") else 1.0


def build_schedule(cfg: Mapping[str, Any], steps_per_epoch: int, finished_steps: int = 0) -> LRScheduler:
    """Build the schedule of the key LearningRate, to be stepped after every training step.

    The rate is scaled with the batch size (Goyal et al., arXiv 1706.02677, section 2.1).

    Raises:
        ConfigError: LearningRate is wrong, or its warm-up ends after the first milestone.
    """
    learning_rate = _construct(LearningRate, cfg)
    _check_length(learning_rate.schedulers, steps_per_epoch)
    _check_warmup(learning_rate.schedulers, steps_per_epoch)
    _check_cosine(learning_rate.schedulers, cfg.get("epoch", 0))
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
    for _ in range(finished_steps):  # one by one: some schedules compute a rate from the previous one
        schedule.step()
    return schedule


def build_optimizer(cfg: Mapping[str, Any], model: nn.Layer, schedule: LRScheduler) -> Optimizer:
    """Build the optimizer of the key OptimizerBuilder for the trainable parameters; raise a ConfigError."""
    builder = _construct(OptimizerBuilder, cfg)
    try:
        return builder(schedule, model)
    except Exception as error:  # whatever Paddle's optimizers raise for odd values
        raise ConfigError(f"OptimizerBuilder cannot be used ({one_line(error)})") from error


def _construct(kind: type, cfg: Mapping[str, Any]) -> Any:
    try:
        return kind(**cfg.get(kind.__name__, {}))
    except Exception as error:
        raise ConfigError(f"{kind.__name__} cannot be used ({one_line(error)})") from error


def _check_length(schedulers: list, steps_per_epoch: int) -> None:
    for scheduler in schedulers:
        for key in ("max_epochs", "epochs"):
            steps = (getattr(scheduler, key, None) or 0) * steps_per_epoch
            if steps > MAX_STEPS:
                raise ConfigError(
                    f"LearningRate.schedulers: {key} of {type(scheduler).__name__} makes {steps} steps, "
                    f"more than {MAX_STEPS}: reduce it"
                )


def more_epochs(cfg: Mapping[str, Any], epochs: int) -> str:
    """Return the overrides for a training of more epochs."""
    schedulers = _construct(LearningRate, cfg).schedulers
    return " ".join([f"epoch={epochs}", *(option for _, option in _short_cosines(schedulers, epochs))])


def _short_cosines(schedulers: list, epochs: int) -> list[tuple[int, str]]:
    """Last epoch of each cosine that ends before the training, and the override that lengthens it."""
    return [
        (each.max_epochs, f"LearningRate.schedulers.{number}.max_epochs={epochs}")
        for number, each in enumerate(schedulers)
        if isinstance(each, CosineDecay) and each.max_epochs < epochs
        # Without warm-up, Paddle's cosine rises again after its end.
        if not (each.min_lr_ratio and each.use_warmup)
    ]


def _check_cosine(schedulers: list, epochs: int) -> None:
    for end, option in _short_cosines(schedulers, epochs):
        raise ConfigError(
            f"LearningRate.schedulers: CosineDecay reaches a rate of 0 after epoch {end} of {epochs}: let it "
            f"end with the training, -o {option}"
        )


def _check_warmup(schedulers: list, steps_per_epoch: int) -> None:
    """PaddleDetection appends the milestones to the warm-up's steps, and Paddle accepts any order."""
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
