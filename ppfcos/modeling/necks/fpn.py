"""Feature pyramid network of FCOS: P3 to P5 from the backbone, and the extra levels P6 and P7.

Source: FPN (Lin et al., CVPR 2017); extra levels as in the FCOS paper, section 3.2, from P5 (RetinaNet: from
C5).
"""

from __future__ import annotations

import paddle.nn.functional as F
from paddle import ParamAttr, nn
from paddle.nn.initializer import KaimingUniform
from ppdet.core.workspace import register
from ppdet.modeling.shape_spec import ShapeSpec

from ppfcos.modeling.layers import Add, check_choice


class Pyramid(nn.Layer):
    """Base class of necks whose levels have the same number of channels.

    Attributes:
        out_channels: of each level.
        strides: of the levels in pixels, finest first.
    """

    out_channels: int
    strides: list

    @classmethod
    def from_config(cls, cfg, input_shape: list) -> dict:
        """Return the arguments that depend on the `out_shape` of the backbone.

        Raises:
            ValueError: the strides do not double from one feature map to the next.
        """
        strides = [shape.stride for shape in input_shape]
        if any(second != 2 * first for first, second in zip(strides, strides[1:])):
            raise ValueError(
                f"the backbone's feature maps have the strides {strides}; each must be twice the one before: "
                "change the backbone's return_idx"
            )
        return {
            "in_channels": [shape.channels for shape in input_shape],
            "strides": strides,
        }

    @property
    def out_shape(self) -> list:
        """Channels and stride of each level, finest first."""
        return [ShapeSpec(channels=self.out_channels, stride=stride) for stride in self.strides]


def pyramid_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2D:
    """Return a convolution with "same" padding, initialized as in the authors' feature pyramid."""
    # Uniform within ±sqrt(3 / fan_in).
    initializer = KaimingUniform(negative_slope=1.0, nonlinearity="leaky_relu")
    return nn.Conv2D(
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
        in_channels: of the feature maps, finest first; from the backbone.
        strides: of the feature maps in pixels; from the backbone.
        out_channels: of each level.
        extra_levels: number of levels after the backbone's, each with twice the stride of the one before.
        extra_source: input of the first extra level: `p5`, the coarsest level of the pyramid (FCOS), or `c5`,
            that of the backbone (RetinaNet).

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
        check_choice("PPFCOSFPN", "extra_source", extra_source, ("p5", "c5"))
        self.extra_source = extra_source
        self.out_channels = out_channels
        self.strides = list(strides) + [strides[-1] * 2 ** (i + 1) for i in range(extra_levels)]
        self.laterals = nn.LayerList([pyramid_conv(channels, out_channels, 1) for channels in in_channels])
        self.outputs = nn.LayerList([pyramid_conv(out_channels, out_channels, 3) for _ in in_channels])
        first = out_channels if extra_source == "p5" else in_channels[-1]
        sources = [first] + [out_channels] * (extra_levels - 1)
        self.add = Add()
        self.relu = nn.ReLU()
        self.extras = nn.LayerList(
            [pyramid_conv(source, out_channels, 3, stride=2) for source in sources[:extra_levels]]
        )

    def forward(self, features: list) -> list:
        """Feature maps of the backbone, finest first → L × [B, out_channels, H_l, W_l]."""
        inner = self.laterals[-1](features[-1])
        levels = [self.outputs[-1](inner)]
        for i in range(len(features) - 2, -1, -1):
            inner = self.add(
                self.laterals[i](features[i]), F.interpolate(inner, scale_factor=2, mode="nearest")
            )
            levels.insert(0, self.outputs[i](inner))
        source = levels[-1] if self.extra_source == "p5" else features[-1]
        for i, conv in enumerate(self.extras):
            source = conv(source if i == 0 else self.relu(source))
            levels.append(source)
        return levels
