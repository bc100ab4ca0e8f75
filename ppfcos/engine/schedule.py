"""The learning rate over the steps and the optimizer that uses it, from PaddleDetection's builders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddle import nn
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler
from ppdet.core.workspace import create

from ppfcos.errors import ConfigError


def build_schedule(cfg: Mapping[str, Any], steps_per_epoch: int) -> LRScheduler:
    """The learning rate of every step, from the key LearningRate.

    Args:
        cfg: the configuration.
        steps_per_epoch: to which milestones in epochs are multiplied.

    Returns:
        To be stepped after every training step.

    Raises:
        ConfigError: LearningRate is wrong, or its warm-up lasts longer than the time to the first milestone.
    """
    learning_rate = _create("LearningRate")
    _check_warmup(learning_rate.schedulers, steps_per_epoch)
    try:
        return learning_rate(steps_per_epoch)
    except (AssertionError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(
            f"LearningRate.schedulers cannot be used ({type(error).__name__}: {error}): give a decay such as "
            "PiecewiseDecay first, and a warm-up such as LinearWarmup second"
        ) from error


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
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"OptimizerBuilder cannot be used ({type(error).__name__}: {error})") from error


def _create(name: str) -> Any:
    try:
        return create(name)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be used ({type(error).__name__}: {error})") from error


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
