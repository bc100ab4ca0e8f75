"""Feature pyramid of HRNet: concatenates all resolutions at the finest one, then pools to each level.

Source: High-Resolution Representations for Labeling Pixels and Regions (Sun et al., arXiv 1904.04514).
PaddleDetection's HRFPN starts at stride 4. FCOS starts at 8, with convolutions of stride 2 as in MMDetection.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn
from ppdet.core.workspace import register

from ppfcos.modeling.necks.fpn import Pyramid, pyramid_conv


@register
class PPFCOSHRFPN(Pyramid):
    """Feature pyramid of a high-resolution network.

    Args:
        in_channels: of the feature maps, finest first; from the backbone.
        strides: of the feature maps in pixels; from the backbone.
        out_channels: of each level.
        num_levels: number of levels; the first has twice the finest stride of the backbone.
    """

    def __init__(self, in_channels: list, strides: list, out_channels: int = 256, num_levels: int = 5):
        super().__init__()
        self.out_channels = out_channels
        self.strides = [int(strides[0]) * 2 ** (i + 1) for i in range(num_levels)]
        self.reduction = pyramid_conv(sum(in_channels), out_channels, 1)
        self.outputs = nn.LayerList(
            [pyramid_conv(out_channels, out_channels, 3, stride=2) for _ in range(num_levels)]
        )

    def level_sizes(self, height: int, width: int) -> list:
        """Return the L × (H_l, W_l) of an image. Pooling rounds down, the convolutions after it round up."""
        pooling = [2**i for i in range(len(self.outputs))]
        sides = [[2 * side // self.strides[0] // size for size in pooling] for side in (height, width)]
        return [(-(-rows // 2), -(-columns // 2)) for rows, columns in zip(*sides)]

    def forward(self, features: list) -> list:
        """Feature maps of the backbone, finest first → L × [B, out_channels, H_l, W_l]."""
        upsampled = [
            F.interpolate(feature, scale_factor=2 ** (i + 1), mode="bilinear")
            for i, feature in enumerate(features[1:])
        ]
        fused = self.reduction(paddle.concat([features[0], *upsampled], axis=1))
        pooled = [fused, *(F.avg_pool2d(fused, 2**i, stride=2**i) for i in range(1, len(self.outputs)))]
        return [output(level) for output, level in zip(self.outputs, pooled)]
