"""The feature pyramid of HRNet: all its resolutions joined at the finest, and averaged down from there.

Source: High-Resolution Representations for Labeling Pixels and Regions (Sun et al., arXiv 1904.04514).
PaddleDetection's begins at stride 4; FCOS begins at 8, in MMDetection by convolutions of stride 2.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn
from ppdet.core.workspace import register

from ppfcos.modeling.necks.fpn import Pyramid, pyramid_conv


@register
class PPFCOSHRFPN(Pyramid):
    """Feature pyramid of a network that keeps its resolution.

    Args:
        in_channels: of the backbone's feature maps, finest first; from the backbone.
        strides: of these feature maps in pixels, each twice the one before; from the backbone.
        out_channels: of every level.
        num_levels: how many; the first has twice the backbone's finest stride, each other one twice that of
            the one before.
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
        """Sizes of the levels for an image: averaging drops what does not fill its window.

        Args:
            height: H in pixels, a multiple of the backbone's coarsest stride.
            width: W in pixels, likewise.

        Returns:
            L × (H_l, W_l).
        """
        cells = [2**i for i in range(len(self.outputs))]
        sides = [[2 * side // self.strides[0] // count for count in cells] for side in (height, width)]
        return [(-(-rows // 2), -(-columns // 2)) for rows, columns in zip(*sides)]

    def forward(self, features: list) -> list:
        """Make the pyramid.

        Args:
            features: of the backbone, finest first, each [B, in_channels, H_l, W_l], each half the size of
                the one before.

        Returns:
            L feature maps [B, out_channels, H_l, W_l], finest first.
        """
        widened = [
            F.interpolate(feature, scale_factor=2 ** (i + 1), mode="bilinear")
            for i, feature in enumerate(features[1:])
        ]
        joined = self.reduction(paddle.concat([features[0], *widened], axis=1))
        averaged = [joined, *(F.avg_pool2d(joined, 2**i, stride=2**i) for i in range(1, len(self.outputs)))]
        return [output(level) for output, level in zip(self.outputs, averaged)]
