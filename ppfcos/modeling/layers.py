"""Layers that several parts of the network share."""

from __future__ import annotations

from collections.abc import Iterable

import paddle
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import KaimingNormal
from ppdet.modeling.backbones.resnet import ConvNormLayer

BATCH_NORMS = ("bn", "sync_bn")


def check_choice(owner: str, key: str, value: object, allowed: Iterable[str]) -> None:
    """Raise a ValueError that names the configuration key if `value` is not allowed."""
    if value not in allowed:
        *others, last = allowed
        raise ValueError(f"{owner}.{key} is {value!r}: it is {', '.join(others)} or {last}")


def batch_norm(norm_type: str, channels: int, momentum: float = 0.9, epsilon: float = 1e-5) -> nn.Layer:
    """Return a batch norm.

    Args:
        norm_type: `bn`, or `sync_bn` for statistics over all ranks.
        channels: of the feature map.
        momentum: fraction of the running statistics that a step keeps.
        epsilon: added to the variance.
    """
    # Paddle's SyncBatchNorm needs an accelerator; in one process on a CPU it equals BatchNorm.
    synchronized = norm_type == "sync_bn" and paddle.get_device() != "cpu"
    kind = nn.SyncBatchNorm if synchronized else nn.BatchNorm2D
    return kind(channels, momentum=momentum, epsilon=epsilon)


class Add(nn.Layer):
    """Adds two feature maps. A layer, so that quantization-aware training can observe its output."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Two of [B, channels, H, W] → [B, channels, H, W]."""
        return one + other


class SeparableConv(nn.Layer):
    """Depthwise 3x3 and pointwise 1x1 convolution without biases, to be followed by a norm."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        # Two initializations with the usual 0.01 would leave less than the epsilon of the norm after them.
        options = {"weight_attr": ParamAttr(initializer=KaimingNormal()), "bias_attr": False}
        self.depthwise = nn.Conv2D(in_channels, in_channels, 3, padding=1, groups=in_channels, **options)
        self.pointwise = nn.Conv2D(in_channels, out_channels, 1, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H, W]."""
        return self.pointwise(self.depthwise(inputs))


class FrozenConvNorm(nn.Layer):
    """PaddleDetection's ConvNormLayer, with a frozen batch norm folded into the convolution in training.

    The norm is a constant factor and shift per channel. Folding saves its pass over the feature map and its
    copy of it for the backward pass, and ReLU can run in place. The weights keep their names. In evaluation
    mode convolution and norm stay apart, so exported programs show both.
    """

    def __init__(self, layer: ConvNormLayer):
        super().__init__()
        self.conv = layer.conv
        self.norm = layer.norm
        self.act = layer.act

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        conv, norm = self.conv, self.norm
        if self.training:
            with paddle.amp.auto_cast(enable=False):
                factor = norm.weight / paddle.sqrt(norm._variance + norm._epsilon)
                shift = norm.bias - norm._mean * factor
                weight = conv.weight * factor.reshape([-1, 1, 1, 1])
            geometry = {"stride": conv._stride, "padding": conv._padding, "groups": conv._groups}
            out = F.conv2d(inputs, weight, shift, **geometry)
            return F.relu_(out) if self.act == "relu" else out
        out = norm(conv(inputs))
        return getattr(F, self.act)(out) if self.act else out


def fold_frozen_norms(backbone: nn.Layer) -> nn.Layer:
    """Replace each ConvNormLayer of a backbone that has a frozen batch norm by FrozenConvNorm, in place."""
    for parent in backbone.sublayers(include_self=True):
        for name, child in parent.named_children():
            if isinstance(child, ConvNormLayer) and not child.dcn_v2 and _is_frozen(child.norm):
                setattr(parent, name, FrozenConvNorm(child))
    return backbone


def _is_frozen(norm: nn.Layer) -> bool:
    return bool(norm._use_global_stats and norm.weight.stop_gradient and norm.bias.stop_gradient)
