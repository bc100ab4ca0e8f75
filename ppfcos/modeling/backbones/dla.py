"""DLA-34, the backbone of AdelaiDet's real-time FCOS.

Source: Deep Layer Aggregation (Yu et al., CVPR 2018, arXiv 1707.06484). The network is PaddleDetection's,
which returns all levels and does not report their strides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from paddle import nn
from paddle.nn.initializer import Normal
from ppdet.core.workspace import register, serializable
from ppdet.modeling.backbones.dla import DLA, Tree
from ppdet.modeling.shape_spec import ShapeSpec

from ppfcos.modeling.layers import BATCH_NORMS, check_choice


@register
@serializable
class PPFCOSDLA(DLA):
    """PaddleDetection's DLA for a feature pyramid.

    Args:
        depth: 34.
        norm_type: `bn`, or `sync_bn` for batch statistics over all ranks.
        return_idx: the returned levels, of six with the strides 1, 2, 4, 8, 16, 32.

    Raises:
        ValueError: `norm_type` is neither.
    """

    def __init__(self, depth: int = 34, norm_type: str = "bn", return_idx: Sequence[int] = (3, 4, 5)):
        super().__init__(depth=depth)
        check_choice("PPFCOSDLA", "norm_type", norm_type, BATCH_NORMS)
        self.norm_type = norm_type
        self.return_idx = list(return_idx)
        for layer in self.sublayers():
            if isinstance(layer, nn.Conv2D):  # as the authors; with PaddleDetection's, features vanish
                outputs, _, height, width = layer.weight.shape
                Normal(std=math.sqrt(2 / (outputs * height * width)))(layer.weight)
            if isinstance(layer, Tree) and layer.level > 1:
                # Its inner trees have their own projections. This one is unused and gets no gradient, which
                # distributed training would wait for.
                layer.project = None

    @property
    def out_shape(self) -> list:
        """Channels and stride of each level, finest first."""
        return [ShapeSpec(channels=self.channels[i], stride=2**i) for i in self.return_idx]

    def forward(self, inputs: dict) -> list:
        """`image` [B, 3, H, W] → the levels of `return_idx`, [B, channels, H / stride, W / stride] each."""
        levels = DLA.forward(self, inputs)  # not super(), which Paddle 2.6 cannot compile
        return [levels[i] for i in self.return_idx]
