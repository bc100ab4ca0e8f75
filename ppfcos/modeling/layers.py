"""Convolutions as a training step on a CPU wants them.

Paddle adds a convolution's bias by broadcasting, which on a CPU takes a fifth of the convolution's own time,
and keeps three feature maps of every convolution, norm and ReLU for the backward pass. Here the bias goes in
by the batch-norm kernel, which runs through a channel at a stroke, and a norm and ReLU in front of a
convolution are done again in the backward pass: one feature map is kept. Results are the same; weights,
names and exported programs are those of plain layers.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.autograd import PyLayer
from paddle.nn.initializer import KaimingNormal

from ppfcos.paddle_versions import HAS_CONV2D_GRAD, is_autocast_enabled

BATCH_NORMS = ("bn", "sync_bn")


def batch_norm(norm_type: str, channels: int, momentum: float = 0.9, epsilon: float = 1e-5) -> nn.Layer:
    """A batch norm.

    Args:
        norm_type: `bn`, or `sync_bn` for statistics over all processes.
        channels: of the feature map.
        momentum: share of the running statistics that a step keeps.
        epsilon: added to the variance.

    Returns:
        The layer.
    """
    # SyncBatchNorm exists on accelerators only; in one process on a CPU it is the same as BatchNorm.
    synchronized = norm_type == "sync_bn" and paddle.get_device() != "cpu"
    kind = nn.SyncBatchNorm if synchronized else nn.BatchNorm2D
    return kind(channels, momentum=momentum, epsilon=epsilon)


class Sum(nn.Layer):
    """Of two feature maps.

    A layer of its own, as convolutions and activations are: quantisation-aware training looks for the layers
    whose results the exported network keeps in eight bits.
    """

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Two of [B, channels, H, W] → [B, channels, H, W]."""
        return one + other


class SeparableConv(nn.Layer):
    """Depthwise 3x3 and pointwise 1x1 convolution, for a norm to follow: neither has a bias.

    Args:
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        # Two of the usual 0.01 in a row would leave less than the epsilon of the norm behind them.
        options = {"weight_attr": ParamAttr(initializer=KaimingNormal()), "bias_attr": False}
        self.depthwise = nn.Conv2D(in_channels, in_channels, 3, padding=1, groups=in_channels, **options)
        self.pointwise = nn.Conv2D(in_channels, out_channels, 1, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H, W]."""
        return self.pointwise(self.depthwise(inputs))


def trains_on_cpu(layer: nn.Layer, inputs: Tensor) -> bool:
    """Whether this call is a training step on a CPU, in float32, that is executed as it is written.

    Args:
        layer: whose mode counts.
        inputs: of the layer.

    Returns:
        True if the functions of this file apply.
    """
    return (
        HAS_CONV2D_GRAD
        and layer.training
        and paddle.in_dynamic_mode()
        and inputs.place.is_cpu_place()
        and inputs.dtype == paddle.float32
        and not is_autocast_enabled()
    )


class _ChannelBias(PyLayer):
    """x [B, C, H, W] + bias [C]."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor) -> Tensor:
        ctx.learns_x, ctx.learns_bias = not x.stop_gradient, not bias.stop_gradient
        ones = paddle.ones_like(bias)
        # Mean 0, variance 1, epsilon 0, weight 1: nothing is left of the norm but its shift.
        return F.batch_norm(x, paddle.zeros_like(bias), ones, ones, bias, training=False, epsilon=0.0)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        return gradient if ctx.learns_x else None, gradient.sum([0, 2, 3]) if ctx.learns_bias else None


class _NormReluConv(PyLayer):
    """conv(ReLU(GroupNorm(x))), 3x3, stride 1, of which only x is kept."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, groups: int, epsilon: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, kernel)
        ctx.groups, ctx.epsilon = groups, epsilon
        return F.conv2d(F.relu_(F.group_norm(x, groups, epsilon, weight, bias)), kernel, padding=1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        x, weight, bias, kernel = (tensor.detach() for tensor in ctx.saved_tensor())
        with paddle.enable_grad():
            for tensor in (x, weight, bias):
                tensor.stop_gradient = False
            activated = F.relu(F.group_norm(x, ctx.groups, ctx.epsilon, weight, bias))
        activated_gradient, kernel_gradient = paddle._C_ops.conv2d_grad(
            activated.detach(), kernel, gradient, [1, 1], [1, 1], "EXPLICIT", [1, 1], 1, "NCHW"
        )
        gradients = paddle.grad([activated], [x, weight, bias], [activated_gradient])
        return (*gradients, kernel_gradient)


class _ScaledConv(PyLayer):
    """Convolution with kernel·factor, of which no copy is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx, x: Tensor, kernel: Tensor, factor: Tensor, stride: list, padding: list, groups: int
    ) -> Tensor:
        ctx.save_for_backward(x, kernel, factor)
        ctx.geometry = stride, padding, groups
        ctx.learns_x, ctx.learns_kernel = not x.stop_gradient, not kernel.stop_gradient
        return F.conv2d(x, kernel * factor.reshape([-1, 1, 1, 1]), None, stride, padding, groups=groups)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        x, kernel, factor = ctx.saved_tensor()
        factor = factor.reshape([-1, 1, 1, 1])
        stride, padding, groups = ctx.geometry
        x_gradient, kernel_gradient = paddle._C_ops.conv2d_grad(
            x, kernel * factor, gradient, stride, padding, "EXPLICIT", [1, 1], groups, "NCHW"
        )
        return (
            x_gradient if ctx.learns_x else None,
            kernel_gradient * factor if ctx.learns_kernel else None,
            None,
        )


class Conv2D(nn.Conv2D):
    """`paddle.nn.Conv2D`, with a cheaper bias when it trains on a CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        if self.bias is None or not trains_on_cpu(self, inputs):
            return nn.Conv2D.forward(self, inputs)  # not super(), which Paddle 2.6 cannot compile
        out = F.conv2d(
            inputs, self.weight, None, self._stride, self._updated_padding, self._dilation, self._groups
        )
        return _ChannelBias.apply(out, self.bias)


def scaled_conv(inputs: Tensor, conv: nn.Conv2D, factor: Tensor, shift: Tensor) -> Tensor:
    """A convolution followed by a constant factor and shift per channel, in one.

    Args:
        inputs: [B, in_channels, H, W].
        conv: a layer without bias.
        factor: [out_channels], which does not learn.
        shift: [out_channels], which does not learn.

    Returns:
        [B, out_channels, H', W'].
    """
    if not trains_on_cpu(conv, inputs):
        geometry = {"stride": conv._stride, "padding": conv._updated_padding, "groups": conv._groups}
        return F.conv2d(inputs, conv.weight * factor.reshape([-1, 1, 1, 1]), shift, **geometry)
    out = _ScaledConv.apply(
        inputs, conv.weight, factor, list(conv._stride), list(conv._updated_padding), conv._groups
    )
    return _ChannelBias.apply(out, shift)


def norm_relu_conv(x: Tensor, norm: nn.GroupNorm, weight: Tensor, bias: Tensor) -> Tensor:
    """conv(ReLU(norm(x))) + bias, 3x3, stride 1, padding 1; only where `trains_on_cpu` holds.

    Args:
        x: [B, channels, H, W].
        norm: with weight and bias.
        weight: [out_channels, channels, 3, 3].
        bias: [out_channels].

    Returns:
        [B, out_channels, H, W].
    """
    out = _NormReluConv.apply(x, norm.weight, norm.bias, weight, norm._num_groups, norm._epsilon)
    return _ChannelBias.apply(out, bias)
