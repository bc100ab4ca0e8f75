"""Fake quantisation: floats that take only the values which eight bits will have.

The integers are those of the exported INT8 network (ppfcos/export/quantizer.py), to the last bit: activations
uint8 with a scale and a zero point per tensor, weights int8 from −127 to 127 with a scale per output channel.
Gradients pass as if nothing was rounded, but not where a value was cut off: the straight-through estimator
(Bengio et al., arXiv 1308.3432), as Jacob et al. (arXiv 1712.05877, section 3) use it.
"""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

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


def quantized_activations(x: Tensor, limits: Tensor) -> Tensor:
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


def quantized_weights(weight: Tensor) -> Tensor:
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
