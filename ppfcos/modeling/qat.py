"""The layers that take the places of others in a network under quantisation-aware training."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.autograd import PyLayer
from paddle.nn.initializer import Constant

from ppfcos.modeling.fuse import fused_weights

LARGEST_ACTIVATION = 255
LARGEST_WEIGHT = 127
TINY = 1.1754943508222875e-38  # the smallest normal float32: below it, ONNX Runtime takes a scale of 1


class _Rounded(PyLayer):
    """x as (integer − zero point) · scale; the gradient of what is inside of the integers' range."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, zero_point: Tensor, smallest: int, largest: int) -> Tensor:
        integers = paddle.round(x / scale) + zero_point
        ctx.save_for_backward((integers >= smallest) & (integers <= largest))
        return (integers.clip(smallest, largest) - zero_point) * scale

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        (inside,) = ctx.saved_tensor()
        return gradient * inside.astype(gradient.dtype), None, None


def fake_quantize_activations(x: Tensor, limits: Tensor) -> Tensor:
    """Activations as uint8 holds them.

    Args:
        x: any shape, float32.
        limits: [2] the smallest value, 0 or less, and the largest, 0 or more.

    Returns:
        The nearest values that there are; what is outside of the limits becomes the last one inside.
    """
    scale = _scale(limits[1] - limits[0], LARGEST_ACTIVATION)
    zero_point = paddle.round(-limits[0].astype("float64") / scale)
    return _Rounded.apply(x, scale.astype("float32"), zero_point.astype("float32"), 0, LARGEST_ACTIVATION)


def fake_quantize_weights(weight: Tensor) -> Tensor:
    """Weights as int8 holds them, each output channel with a scale of its own.

    Args:
        weight: [out_channels, in_channels, H, W].

    Returns:
        The nearest values that there are.
    """
    largest = weight.detach().abs().amax(axis=[1, 2, 3], keepdim=True)
    scale = _scale(largest, LARGEST_WEIGHT).astype("float32")
    return _Rounded.apply(weight, scale, paddle.zeros_like(scale), -LARGEST_WEIGHT, LARGEST_WEIGHT)


def _scale(span: Tensor, steps: int) -> Tensor:
    """What one of so many steps over a span is worth: float64, as in ONNX Runtime's tools."""
    span = span.astype("float64")
    scale = span / paddle.full_like(span, steps)  # by a number, Paddle would multiply with its reciprocal
    return paddle.where(scale < TINY, paddle.ones_like(scale), scale)


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

    def is_initialized(self) -> bool:
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
            return fake_quantize_activations(x, self.limits[row]) if self.is_initialized() else x
        with paddle.no_grad():
            zero = paddle.zeros([])
            # Not by clip, which makes the largest number of infinity.
            extremes = paddle.stack([paddle.minimum(x.amin(), zero), paddle.maximum(x.amax(), zero)])
        x = fake_quantize_activations(x, self.limits[row] if self.is_initialized() else extremes)
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


class Quantizer(nn.Layer):
    """Holds the results of a layer in eight bits.

    Args:
        ranges: of all activations.
        rows: for each time that the layer runs in a forward pass, the activation's row in the ranges; None
            where the result stays as it is.
    """

    def __init__(self, ranges: Ranges, rows: Sequence[int | None]):
        super().__init__()
        self.rows = list(rows)
        self._ranges = [ranges]  # in a list, for it is no part of this layer
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        row = self.rows[self._calls % len(self.rows)]
        self._calls += 1
        return x if row is None else self._ranges[0].quantized(row, x)

    def limits(self) -> list[tuple[float, float] | None]:
        """The smallest and the largest value, for each time that the layer runs."""
        known = self._ranges[0].limits.tolist()
        return [None if row is None else tuple(known[row]) for row in self.rows]


class Limits(nn.Layer):
    """What is left of a Quantizer for the export: its ranges, as limits that a converter can see.

    Args:
        limits: as `Quantizer.limits` gives them.
    """

    def __init__(self, limits: Sequence[tuple[float, float] | None]):
        super().__init__()
        self._limits = list(limits)
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        limits = self._limits[self._calls % len(self._limits)]
        self._calls += 1
        return x if limits is None else x.clip(*limits)


class Quantized(nn.Layer):
    """A layer without weights, and what holds its results in eight bits.

    Args:
        layer: such as ReLU.
        quantizer: a Quantizer, or Limits.
    """

    def __init__(self, layer: nn.Layer, quantizer: nn.Layer):
        super().__init__()
        self.layer = layer
        self.quantizer = quantizer

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the layer."""
        return self.quantizer(self.layer(*inputs))


class FoldedNorm(nn.Layer):
    """A batch norm whose work its convolution does: weights and frozen statistics, under their old names.

    Args:
        norm: the batch norm.
    """

    def __init__(self, norm: nn.Layer):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self._mean, self._variance = norm._mean, norm._variance
        self._epsilon = norm._epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Nothing is left to do."""
        return x


class QuantizedConv2D(nn.Conv2D):
    """A convolution whose weights, after the norm behind it is folded into them, have eight bits.

    Args:
        conv: its weights are taken over.
        norm: behind it; None where there is none.
        source: quantises what comes in; None where something else has done it.
        result: quantises what comes out; None where the activation behind it does.
    """

    def __init__(
        self,
        conv: nn.Conv2D,
        norm: FoldedNorm | None,
        source: Quantizer | None,
        result: Quantizer | None,
    ):
        super().__init__(**_form(conv), weight_attr=ParamAttr(initializer=Constant(0.0)), bias_attr=False)
        self.weight = conv.weight
        self.bias = conv.bias
        self._norm = [norm]  # in a list, for it has a name of its own in the model
        self.source = source
        self.result = result

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        inputs = inputs if self.source is None else self.source(inputs)
        weight, bias = self._folded()
        out = F.conv2d(
            inputs,
            fake_quantize_weights(weight),
            bias,
            self._stride,
            self._updated_padding,
            self._dilation,
            self._groups,
        )
        return out if self.result is None else self.result(out)

    def _folded(self) -> tuple[Tensor, Tensor | None]:
        norm = self._norm[0]
        return (self.weight, self.bias) if norm is None else fused_weights(self, norm)

    def plain(self) -> nn.Conv2D:
        """A convolution in float that does what this one and the norm behind it do."""
        weight, bias = self._folded()
        plain = nn.Conv2D(**_form(self), bias_attr=None if bias is not None else False)
        plain.weight.set_value(weight)
        if bias is not None:
            plain.bias.set_value(bias)
        return plain


def _form(conv: nn.Conv2D) -> dict:
    """What a convolution is, its weights apart."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(conv, f"_{name}") for name in names}
