"""The ranges of a network's activations, found while it trains."""

from __future__ import annotations

import paddle
import paddle.distributed as dist
from paddle import Tensor, nn

from ppfcos.modeling.quantization.fake import quantized_activations


class Ranges(nn.Layer):
    """The range of every activation that is held in eight bits: a moving average over the steps.

    The first step works with the ranges of its own batch, every other one with those of the steps before it.
    The extremes of a step are those over all processes, so that all have the same ranges.

    Args:
        count: of the activations, N.
        momentum: share of the ranges that a step keeps.
        freeze_after: forward passes of the training after which the ranges stay as they are.

    Attributes:
        limits: [N, 2] float32, the smallest value, 0 or less, and the largest, 0 or more. In the checkpoint.
        observed: [1] int64, the training's forward passes. In the checkpoint.
    """

    def __init__(self, count: int, momentum: float, freeze_after: int):
        super().__init__()
        self.momentum = momentum
        self.freeze_after = freeze_after
        self.register_buffer("limits", paddle.zeros([count, 2]))
        self.register_buffer("observed", paddle.zeros([1], "int64"))
        self._found: dict[int, Tensor] = {}  # extremes of this forward pass by row
        self._known = False

    def are_known(self) -> bool:
        """Whether there was a step to take ranges from, in this process or before the checkpoint."""
        self._known = self._known or bool(self.observed > 0)  # asked once: it waits for the device
        return self._known

    def quantized(self, row: int, x: Tensor) -> Tensor:
        """An activation in eight bits; a network that has never trained computes in float.

        Args:
            row: of the activation.
            x: its values; in training they count for the ranges to come.

        Returns:
            The same shape.
        """
        if not self.training:
            return quantized_activations(x, self.limits[row]) if self.are_known() else x
        with paddle.no_grad():
            zero = paddle.zeros([])
            # Not by clip, which makes the largest number of infinity.
            extremes = paddle.stack([paddle.minimum(x.amin(), zero), paddle.maximum(x.amax(), zero)])
        x = quantized_activations(x, self.limits[row] if self.are_known() else extremes)
        self._found[row] = extremes
        if len(self._found) == len(self.limits):
            self._update()
        return x

    @paddle.no_grad()
    def _update(self) -> None:
        extremes = paddle.stack([self._found[row] for row in range(len(self.limits))])
        self._found = {}
        extremes = _over_all_processes(extremes)
        share = paddle.where(
            self.observed == 0,
            paddle.ones([1]),
            (self.observed < self.freeze_after).astype("float32") * (1 - self.momentum),
        )
        moved = self.limits + share * (extremes - self.limits)
        # A step that is not finite moves no weights either.
        self.limits.set_value(paddle.where(paddle.isfinite(moved), moved, self.limits))
        self.observed.set_value(self.observed + 1)


def _over_all_processes(extremes: Tensor) -> Tensor:
    """[N, 2] smallest and largest values of a process → of all of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return extremes
    sign = paddle.to_tensor([-1.0, 1.0])
    outward = extremes * sign
    dist.all_reduce(outward, op=dist.ReduceOp.MAX)
    return outward * sign
