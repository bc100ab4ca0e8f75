"""EfficientNet B0 to B7 (Tan and Le, arXiv 1905.11946), without the classifier.

The weights have the names that PaddleClas gives them (ppcls/arch/backbone/model_zoo/efficientnet.py), dots
within names and all, so that its ImageNet weights fit as they are published. The padding is PaddleClas's,
too: TensorFlow's "SAME" at the image size that each network was trained with, a constant of each layer
whatever the size of the image. Where a layer with stride 2 met an even size then, it pads one more at the
bottom and the right; where an odd one, all sides alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import KaimingNormal
from ppdet.core.workspace import register
from ppdet.modeling.shape_spec import ShapeSpec

from ppfcos.modeling.layers import BATCH_NORMS, Sum, batch_norm


class Scale(NamedTuple):
    """What B1 to B7 have more of than B0: factors of channels and of depth, and the size trained with."""

    width: float
    depth: float
    resolution: int


class Stage(NamedTuple):
    """Blocks of one kind (table 1 of the paper); the first has the stride, the others 1."""

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
ENDS = {3: 8, 5: 16, 7: 32}  # stages, from 1, that end a feature map, and its stride
SQUEEZE = 4  # a block's input channels to those that its squeeze-and-excitation has inside
NORM = {"momentum": 0.99, "epsilon": 1e-3}
ACTIVATIONS = {"swish": nn.Swish, "relu": nn.ReLU, "relu6": nn.ReLU6}


def scaled_channels(channels: int, scale: Scale) -> int:
    """Channels of B0 in another network: the nearest multiple of 8, and no more than 10 % less.

    Args:
        channels: in B0.
        scale: of the network.

    Returns:
        Its channels.
    """
    wanted = channels * scale.width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _padding(kernel_size: int, stride: int, size: int) -> list:
    """Top, bottom, left, right: what TensorFlow adds to sides of `size` for outputs of ⌈size / stride⌉."""
    total = max(kernel_size - (size % stride or stride), 0)
    return [total // 2, total - total // 2] * 2


class ConvNorm(nn.Layer):
    """Convolution without bias, and batch norm.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        norm_type: `bn` or `sync_bn`.
        geometry: further arguments of the convolution.
    """

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
    """Weighs each channel by what all of them hold on average (Hu et al., CVPR 2018).

    Args:
        channels: of the feature map.
        squeezed: channels between the two convolutions.
        activation: behind the first.
    """

    def __init__(self, channels: int, squeezed: int, activation: str):
        super().__init__()
        self.add_sublayer("_conv1._conv", nn.Conv2D(channels, squeezed, 1, weight_attr=_initialized()))
        self.add_sublayer("_conv2._conv", nn.Conv2D(squeezed, channels, 1, weight_attr=_initialized()))
        self.add_sublayer("activate", ACTIVATIONS[activation]())

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, channels, H, W] → likewise."""
        reduce, expand, activate = list(self.children())
        return inputs * F.sigmoid(expand(activate(reduce(F.adaptive_avg_pool2d(inputs, 1)))))


class Block(nn.Layer):
    """Inverted bottleneck: expand, convolve each channel by itself, weigh the channels, project.

    Args:
        in_channels: of the input.
        stage: whose block it is; its `stride` is this block's.
        size: side of the input in the images that the network was trained with; settles the padding.
        activation: of ACTIVATIONS.
        squeeze_excitation: whether the channels are weighed.
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
        self.add = Sum() if stage.stride == 1 and in_channels == stage.channels else None
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

    As published it has `swish` and squeeze-and-excitation. Integer hardware wants neither: swish takes a
    table, and the excitation a sigmoid, and products of two things that are both computed.

    Args:
        scale: `b0` to `b7`.
        activation: `swish`, `relu` or `relu6`.
        squeeze_excitation: whether every block weighs its channels by their averages.
        norm_type: `bn` or `sync_bn`.

    Raises:
        ValueError: an option is none of those named.
    """

    def __init__(
        self,
        scale: str = "b0",
        activation: str = "swish",
        squeeze_excitation: bool = True,
        norm_type: str = "bn",
    ):
        super().__init__()
        for key, value, allowed in (
            ("scale", scale, SCALES),
            ("activation", activation, ACTIVATIONS),
            ("norm_type", norm_type, BATCH_NORMS),
        ):
            if value not in allowed:
                raise ValueError(f"PPFCOSEfficientNet.{key} is {value!r}: it is one of {', '.join(allowed)}")
        factors = SCALES[scale]
        channels, size = scaled_channels(STEM_CHANNELS, factors), factors.resolution
        stem = ConvNorm(3, channels, norm_type, kernel_size=3, stride=2, padding=_padding(3, 2, size))
        self.add_sublayer("_ef._conv_stem", stem)
        size = math.ceil(size / 2)
        self.ends: dict[int, ShapeSpec] = {}  # by the number of the block that ends a feature map
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
        """Compute the feature maps.

        Args:
            inputs: `image` [B, 3, H, W], normalised; H and W multiples of 32.

        Returns:
            C3, C4, C5: [B, channels, H / stride, W / stride].
        """
        stem, *blocks, activate = list(self.children())
        x = activate(stem(inputs["image"]))
        features = []
        for i, block in enumerate(blocks):
            x = block(x)
            if i in self.ends:
                features.append(x)
        return features
