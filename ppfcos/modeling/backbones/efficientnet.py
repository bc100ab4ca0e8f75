"""EfficientNet B0 to B7 (Tan and Le, arXiv 1905.11946), without the classifier.

Weight names, with dots within names, and padding are those of PaddleClas
(ppcls/arch/backbone/model_zoo/efficientnet.py), so its ImageNet weights load by name. The padding is
TensorFlow's "SAME" at the image size that each network was trained with, and does not depend on the actual
image size: a layer with stride 2 pads one pixel more at the bottom and right if its training size was even.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import KaimingNormal
from ppdet.core.workspace import register
from ppdet.modeling.shape_spec import ShapeSpec

from ppfcos.modeling.layers import BATCH_NORMS, Add, batch_norm, check_choice


class Scale(NamedTuple):
    """Width and depth multipliers of B1 to B7, and the image size of the ImageNet training."""

    width: float
    depth: float
    resolution: int


class Stage(NamedTuple):
    """A stage (table 1 of the paper). Its first block has the stride, the others have stride 1."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


SCALES = {
    "b0": Scale(1.0, 1.0, 224),
    "b1": Scale(1.0, 1.1, 240),
    "b2": Scale(1.1, 1.2, 260),
    "b3": Scale(1.2, 1.4, 300),
    "b4": Scale(1.4, 1.8, 380),
    "b5": Scale(1.6, 2.2, 456),
    "b6": Scale(1.8, 2.6, 528),
    "b7": Scale(2.0, 3.1, 600),
}
STEM_CHANNELS = 32
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
ENDS = {3: 8, 5: 16, 7: 32}  # stages, from 1, whose outputs are feature maps, and their strides
SQUEEZE = 4  # ratio of input channels to squeeze-and-excitation channels
NORM = {"momentum": 0.99, "epsilon": 1e-3}
ACTIVATIONS = {"swish": nn.Swish, "relu": nn.ReLU, "relu6": nn.ReLU6}


def scaled_channels(channels: int, scale: Scale) -> int:
    """Scale the channels of B0 to the nearest multiple of 8 that is at most 10 % less."""
    wanted = channels * scale.width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _padding(kernel_size: int, stride: int, size: int) -> list:
    """Return TensorFlow's "SAME" padding of an image of `size`: top, bottom, left, right."""
    total = max(kernel_size - (size % stride or stride), 0)
    return [total // 2, total - total // 2] * 2


class ConvNorm(nn.Layer):
    """Convolution without bias, and batch norm. `geometry` are further arguments of the convolution."""

    def __init__(self, in_channels: int, out_channels: int, norm_type: str, **geometry):
        super().__init__()
        conv = nn.Conv2D(in_channels, out_channels, weight_attr=_initialized(), bias_attr=False, **geometry)
        self.add_sublayer("_conv._conv._conv", conv)
        self.add_sublayer("_conv._bn", batch_norm(norm_type, out_channels, **NORM))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        conv, norm = list(self.children())
        return norm(conv(inputs))


class SqueezeExcitation(nn.Layer):
    """Squeeze-and-excitation (Hu et al., CVPR 2018) with `squeezed` channels between its convolutions."""

    def __init__(self, channels: int, squeezed: int, activation: str):
        super().__init__()
        self.add_sublayer("_conv1._conv", nn.Conv2D(channels, squeezed, 1, weight_attr=_initialized()))
        self.add_sublayer("_conv2._conv", nn.Conv2D(squeezed, channels, 1, weight_attr=_initialized()))
        self.add_sublayer("activate", ACTIVATIONS[activation]())

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, channels, H, W] → [B, channels, H, W]."""
        reduce, expand, activate = list(self.children())
        return inputs * F.sigmoid(expand(activate(reduce(F.adaptive_avg_pool2d(inputs, 1)))))


class Block(nn.Layer):
    """Inverted bottleneck: expansion, depthwise convolution, squeeze-and-excitation, projection.

    Args:
        in_channels: of the input.
        stage: of the block; its `stride` is that of the block.
        size: of the input in the ImageNet training, which determines the padding.
        activation: one of ACTIVATIONS.
        squeeze_excitation: whether the block has it.
        norm_type: `bn` or `sync_bn`.
    """

    def __init__(
        self,
        in_channels: int,
        stage: Stage,
        size: int,
        activation: str,
        squeeze_excitation: bool,
        norm_type: str,
    ):
        super().__init__()
        inner = in_channels * stage.expansion
        self.activate = ACTIVATIONS[activation]()
        self.add = Add() if stage.stride == 1 and in_channels == stage.channels else None
        self._ecn = self._se = None
        if stage.expansion != 1:
            self._ecn = ConvNorm(in_channels, inner, norm_type, kernel_size=1)
        self._dcn = ConvNorm(
            inner,
            inner,
            norm_type,
            kernel_size=stage.kernel_size,
            stride=stage.stride,
            padding=_padding(stage.kernel_size, stage.stride, size),
            groups=inner,
        )
        if squeeze_excitation:
            self._se = SqueezeExcitation(inner, max(1, in_channels // SQUEEZE), activation)
        self._pcn = ConvNorm(inner, stage.channels, norm_type, kernel_size=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, stage.channels, H / stride, W / stride]."""
        x = inputs if self._ecn is None else self.activate(self._ecn(inputs))
        x = self.activate(self._dcn(x))
        x = self._pcn(x if self._se is None else self._se(x))
        return x if self.add is None else self.add(x, inputs)


def _initialized() -> ParamAttr:
    return ParamAttr(initializer=KaimingNormal())


@register
class PPFCOSEfficientNet(nn.Layer):
    """EfficientNet's feature maps C3, C4 and C5.

    The published networks have `swish` and squeeze-and-excitation, which suit integer hardware badly: both
    need a sigmoid and products of two activations.

    Args:
        scale: `b0` to `b7`.
        activation: `swish`, `relu` or `relu6`.
        squeeze_excitation: whether each block has squeeze-and-excitation.
        norm_type: `bn` or `sync_bn`.

    Raises:
        ValueError: an option has an unknown value.
    """

    def __init__(
        self,
        scale: str = "b0",
        activation: str = "swish",
        squeeze_excitation: bool = True,
        norm_type: str = "bn",
    ):
        super().__init__()
        check_choice("PPFCOSEfficientNet", "scale", scale, SCALES)
        check_choice("PPFCOSEfficientNet", "activation", activation, ACTIVATIONS)
        check_choice("PPFCOSEfficientNet", "norm_type", norm_type, BATCH_NORMS)
        factors = SCALES[scale]
        channels, size = scaled_channels(STEM_CHANNELS, factors), factors.resolution
        stem = ConvNorm(3, channels, norm_type, kernel_size=3, stride=2, padding=_padding(3, 2, size))
        self.add_sublayer("_ef._conv_stem", stem)
        size = math.ceil(size / 2)
        self.ends: dict[int, ShapeSpec] = {}  # by the index of the block that returns the feature map
        count = 0
        for number, stage in enumerate(STAGES, start=1):
            stage = stage._replace(channels=scaled_channels(stage.channels, factors))
            for repeat in range(math.ceil(stage.repeats * factors.depth)):
                block = Block(channels, stage, size, activation, squeeze_excitation, norm_type)
                self.add_sublayer(f"_ef.{'block' if repeat else '_blocks'}.{count}.", block)
                channels, size = stage.channels, math.ceil(size / stage.stride)
                stage = stage._replace(stride=1)
                count += 1
            if number in ENDS:
                self.ends[count - 1] = ShapeSpec(channels=channels, stride=ENDS[number])
        self.add_sublayer("activate", ACTIVATIONS[activation]())

    @property
    def out_shape(self) -> list:
        """Channels and stride of each feature map, finest first."""
        return list(self.ends.values())

    def forward(self, inputs: dict) -> list:
        """`image` [B, 3, H, W] → C3, C4, C5: [B, channels, H / stride, W / stride]; H, W multiples of 32."""
        stem, *blocks, activate = list(self.children())
        x = activate(stem(inputs["image"]))
        features = []
        for i, block in enumerate(blocks):
            x = block(x)
            if i in self.ends:
                features.append(x)
        return features
