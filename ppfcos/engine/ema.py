"""A moving average of the weights (EMA), which often detects better than the weights themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import paddle
from paddle import nn
from ppdet.optimizer import ModelEMA

from ppfcos.modeling.qat import is_range


class InPlaceAverage(ModelEMA):
    """PaddleDetection's average to the last bit, in memory that stays, which takes a quarter of the time."""

    def update(self) -> None:
        """Move the average towards the weights of the model as they are now."""
        averaged, self.state_dict = self.state_dict, {}
        super().update()  # settles the decay of this step, and finds nothing to average
        self.state_dict = averaged
        with paddle.no_grad():
            for name, average in averaged.items():
                if name not in self.ema_black_list:
                    average.scale_(self._decay)
                    average.add_((1 - self._decay) * self._model_state[name]())


def build_ema(cfg: Mapping[str, Any], model: nn.Layer) -> InPlaceAverage | None:
    """The average, where the configuration wants one.

    Args:
        cfg: `use_ema`, and its `ema_decay`, `ema_decay_type`, `cycle_epoch` and `ema_black_list`.
        model: whose weights are averaged.

    Returns:
        The average, still empty; None without `use_ema`.
    """
    if not cfg.get("use_ema"):
        return None
    # ModelEMA's own `ema_filter_no_grad` fails in PaddleDetection 2.6.0. What is not trained does not change,
    # so it is left out in any case: the average would only round it.
    statistics = running_statistics(model)
    fixed = [
        name for name, weight in model.named_parameters() if weight.stop_gradient and name not in statistics
    ]
    return InPlaceAverage(
        model,
        decay=cfg.get("ema_decay", 0.9998),
        ema_decay_type=cfg.get("ema_decay_type") or "threshold",
        cycle_epoch=cfg.get("cycle_epoch", -1),
        # Ranges are averages already, and have their own way to begin.
        ema_black_list=[*(cfg.get("ema_black_list") or []), *fixed, *filter(is_range, model.state_dict())],
    )


def running_statistics(model: nn.Layer) -> set[str]:
    """Names of the means and variances that change, which Paddle counts among the parameters.

    Args:
        model: with batch norms.

    Returns:
        Their names in its `state_dict`.
    """
    return {
        f"{name}.{statistic}"
        for name, layer in model.named_sublayers()
        if isinstance(layer, (nn.BatchNorm2D, nn.SyncBatchNorm)) and not layer._use_global_stats
        for statistic in ("_mean", "_variance")
    }


@contextlib.contextmanager
def ema_weights(model: nn.Layer, average: ModelEMA | None) -> Iterator[dict[str, paddle.Tensor] | None]:
    """Within it, the model has the averaged weights.

    Args:
        model: has its own weights again afterwards.
        average: of its weights; without one nothing happens.

    Yields:
        The model's own weights; None without an average.
    """
    if average is None:
        yield None
        return
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.set_state_dict(_applied(average))
    try:
        yield own
    finally:
        model.set_state_dict(own)


def _applied(average: ModelEMA) -> dict[str, paddle.Tensor]:
    """The average. PaddleDetection counts how often it is asked for it, and starts afresh by that number."""
    cycle, average.cycle_epoch = average.cycle_epoch, -1
    weights = average.apply()
    average.cycle_epoch, average.epoch = cycle, 0
    return weights


def restart_ema_cycle(average: ModelEMA | None, epoch: int) -> None:
    """Let the average start afresh if its cycle is over.

    Args:
        average: with its `cycle_epoch`; without one nothing happens.
        epoch: that begins, from 0.
    """
    if average is not None and average.cycle_epoch > 0 and epoch and epoch % average.cycle_epoch == 0:
        average.reset()
