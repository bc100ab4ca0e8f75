"""The feature pyramid of FCOS: P3 to P5 from the backbone, P6 and P7 above them.

Source: FPN (Lin et al., CVPR 2017); the extra levels as in the FCOS paper, section 3.2, which takes them from
P5 (RetinaNet takes them from C5).
"""

from __future__ import annotations

import paddle.nn.functional as F
from paddle import Tensor, nn
from ppdet.core.workspace import register

from ppfcos.modeling.necks.pyramid import Pyramid, pyramid_conv
from ppfcos.modeling.sums import Sum


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
