"""The feature pyramid of FCOS: P3 to P5 from the backbone, P6 and P7 above them.

Source: FPN (Lin et al., CVPR 2017); the extra levels as in the FCOS paper, section 3.2, which takes them from
P5 (RetinaNet takes them from C5).
"""

from __future__ import annotations

import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import KaimingUniform
from ppdet.core.workspace import register
from ppdet.modeling.shape_spec import ShapeSpec

from ppfcos.modeling.layers import Conv2D, Sum


class Pyramid(nn.Layer):
    """A neck whose levels have the same number of channels.

    Attributes:
        out_channels: of every level.
        strides: of the levels in pixels, finest first.
    """

    out_channels: int
    strides: list

    @classmethod
    def from_config(cls, cfg, input_shape: list) -> dict:
        """What the workspace takes from the backbone's `out_shape`.

        Raises:
            ValueError: a feature map has not twice the stride of the one before.
        """
        strides = [shape.stride for shape in input_shape]
        if any(second != 2 * first for first, second in zip(strides, strides[1:])):
            raise ValueError(
                f"the backbone's feature maps have the strides {strides}, and each should be twice the one "
                "before: change the backbone's return_idx"
            )
        return {
            "in_channels": [shape.channels for shape in input_shape],
            "strides": strides,
        }

    @property
    def out_shape(self) -> list:
        """Channels and stride of each level, finest first."""
        return [ShapeSpec(channels=self.out_channels, stride=stride) for stride in self.strides]


def pyramid_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> Conv2D:
    """A convolution of a feature pyramid, padded by half its kernel.

    Args:
        in_channels: of its input.
        out_channels: of its output.
        kernel_size: odd.
        stride: of the convolution.

    Returns:
        The layer.
    """
    # Uniform within ±sqrt(3 / fan_in), as the authors' code initialises its pyramid.
    initializer = KaimingUniform(negative_slope=1.0, nonlinearity="leaky_relu")
    return Conv2D(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        weight_attr=ParamAttr(initializer=initializer),
    )


@register
class PPFCOSFPN(Pyramid):
    """Feature pyramid network with extra levels.

    Args:
        in_channels: of the backbone's feature maps, finest first; from the backbone.
        strides: of these feature maps in pixels; from the backbone.
        out_channels: of every level.
        extra_levels: levels above the backbone's, each of twice the stride of the one before.
        extra_source: `p5` (FCOS) or `c5` (RetinaNet): what the first extra level is made of, the coarsest
            level of the pyramid or that of the backbone.

    Raises:
        ValueError: `extra_source` is neither.
    """

    def __init__(
        self,
        in_channels: list,
        strides: list,
        out_channels: int = 256,
        extra_levels: int = 2,
        extra_source: str = "p5",
    ):
        super().__init__()
        if extra_source not in ("p5", "c5"):
            raise ValueError(f"PPFCOSFPN.extra_source is {extra_source!r}: it is p5 or c5")
        self.extra_source = extra_source
        self.out_channels = out_channels
        self.strides = list(strides) + [strides[-1] * 2 ** (i + 1) for i in range(extra_levels)]
        self.laterals = nn.LayerList([pyramid_conv(channels, out_channels, 1) for channels in in_channels])
        self.outputs = nn.LayerList([pyramid_conv(out_channels, out_channels, 3) for _ in in_channels])
        first = out_channels if extra_source == "p5" else in_channels[-1]
        sources = [first] + [out_channels] * (extra_levels - 1)
        self.add = Sum()
        self.relu = nn.ReLU()
        self.extras = nn.LayerList(
            [pyramid_conv(source, out_channels, 3, stride=2) for source in sources[:extra_levels]]
        )

    def forward(self, features: list) -> list:
        """Make the pyramid.

        Args:
            features: of the backbone, finest first, each [B, in_channels, H_l, W_l], each half the size of
                the one before.

        Returns:
            L feature maps [B, out_channels, H_l, W_l], finest first.
        """
        inner = self.laterals[-1](features[-1])
        levels = [self.outputs[-1](inner)]
        for i in range(len(features) - 2, -1, -1):
            inner = self.add(
                self.laterals[i](features[i]), F.interpolate(inner, scale_factor=2, mode="nearest")
            )
            levels.insert(0, self.outputs[i](inner))
        return levels + self._extra_levels(levels[-1] if self.extra_source == "p5" else features[-1])

    def _extra_levels(self, source: Tensor) -> list:
        levels = []
        for i, conv in enumerate(self.extras):
            source = conv(source if i == 0 else self.relu(source))
            levels.append(source)
        return levels
