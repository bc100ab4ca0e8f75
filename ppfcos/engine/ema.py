"""Exponential moving average (EMA) of the weights, with the arithmetic of PaddleDetection's ModelEMA."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import paddle
from paddle import Tensor, nn

from ppfcos.modeling.qat import is_range


class ModelEMA:
    """Moving sums of a model's weights, updated in place.

    Args:
        model: its weights are averaged.
        decay: final decay of a step.
        decay_type: `threshold` (grows from 0.1 with the steps), `exponential`, or `normal` (constant).
        cycle_epoch: the average restarts every so many epochs; -1: never.
        excluded: weights whose names contain one of these are not averaged.

    Attributes:
        sums: by name; excluded weights are the model's own tensors.
        step: number of updates since the start of the cycle.
        last_decay: of the last update.
    """

    def __init__(
        self,
        model: nn.Layer,
        decay: float = 0.9998,
        decay_type: str = "threshold",
        cycle_epoch: int = -1,
        excluded: tuple[str, ...] = (),
    ):
        self.decay, self.decay_type, self.cycle_epoch = decay, decay_type, cycle_epoch
        self._weights = model.state_dict()
        self.excluded = {name for name in self._weights if any(part in name for part in excluded)}
        self.last_decay = decay
        self.reset()

    def reset(self) -> None:
        """Start a new average."""
        self.step = 0
        self.sums = {
            name: weight if name in self.excluded else paddle.zeros_like(weight)
            for name, weight in self._weights.items()
        }

    def update(self) -> None:
        """Add the current weights of the model."""
        decay = self.decay
        if self.decay_type == "threshold":
            decay = min(decay, (1 + self.step) / (10 + self.step))
        elif self.decay_type == "exponential":
            decay *= 1 - math.exp(-(self.step + 1) / 2000)
        self.last_decay = decay
        with paddle.no_grad():
            for name, value in self.sums.items():
                if name not in self.excluded:
                    value.scale_(decay)
                    value.add_((1 - decay) * self._weights[name])
        self.step += 1

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights by name: the sums, corrected for their start at zero."""
        if self.step == 0 or self.decay_type == "exponential":
            return dict(self.sums)
        correction = 1 - self.last_decay**self.step
        return {
            name: value if name in self.excluded else value / correction for name, value in self.sums.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"step": self.step, "epoch": 0, "decay": self.last_decay, "sums": dict(self.sums)}

    def set_state_dict(self, sums: Mapping[str, Any], step: int, decay: float | None = None) -> None:
        """Continue an average."""
        for name, tensor in self.sums.items():
            if name not in self.excluded:
                value = paddle.to_tensor(sums[name]).astype(tensor.dtype)
                if value.shape != tensor.shape:
                    raise ValueError(f"the average of {name} has shape {value.shape}, not {tensor.shape}")
                self.sums[name] = value
        self.step = step
        self.last_decay = self.decay if decay is None else decay


def build_ema(cfg: Mapping[str, Any], model: nn.Layer) -> ModelEMA | None:
    """Build the EMA of `ema_decay`, `ema_decay_type`, `cycle_epoch`, `ema_black_list`, if `use_ema`.

    Frozen weights are excluded: averaging would only round them. So are quantization ranges, which are
    averages already.
    """
    if not cfg.get("use_ema"):
        return None
    statistics = running_statistics(model)
    frozen = [
        name for name, weight in model.named_parameters() if weight.stop_gradient and name not in statistics
    ]
    return ModelEMA(
        model,
        cfg.get("ema_decay", 0.9998),
        cfg.get("ema_decay_type") or "threshold",
        cfg.get("cycle_epoch", -1),
        (*(cfg.get("ema_black_list") or ()), *frozen, *filter(is_range, model.state_dict())),
    )


def running_statistics(model: nn.Layer) -> set[str]:
    """Return the names of the batch-norm means and variances that training changes."""
    return {
        f"{name}.{statistic}"
        for name, layer in model.named_sublayers()
        if isinstance(layer, (nn.BatchNorm2D, nn.SyncBatchNorm)) and not layer._use_global_stats
        for statistic in ("_mean", "_variance")
    }


@contextlib.contextmanager
def ema_weights(model: nn.Layer, ema: ModelEMA | None) -> Iterator[dict[str, Tensor] | None]:
    """Give the model its EMA weights within the block.

    Yields:
        The raw weights, which the model gets back; None without an EMA.
    """
    if ema is None:
        yield None
        return
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.set_state_dict(ema.weights())
    try:
        yield raw
    finally:
        model.set_state_dict(raw)


def restart_ema_cycle(ema: ModelEMA | None, epoch: int) -> None:
    """Restart the average where a cycle ends; `epoch` counts from 0."""
    if ema is not None and ema.cycle_epoch > 0 and epoch and epoch % ema.cycle_epoch == 0:
        ema.reset()
