"""Weighted bidirectional feature pyramid: P3 to P5 from the backbone, and P6 and P7 pooled from P5.

Source: EfficientDet (Tan et al., arXiv 1911.09070), section 3. The paper leaves the downsampling open; this
is 2x2 max pooling as in Horizon Robotics' networks. (PaddleDetection's BiFPN takes P6 from a dense 3x3
convolution of C5, and has no synchronized batch norm.)
"""

from __future__ import annotations

import functools

import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.nn.initializer import Constant
from ppdet.core.workspace import register

from ppfcos.modeling.layers import BATCH_NORMS, Add, SeparableConv, batch_norm, check_choice
from ppfcos.modeling.necks.fpn import Pyramid

EPSILON = 1e-4  # of the fast normalised fusion, section 3.3


class Fusion(nn.Layer):
    """A node of the pyramid: weighted sum of feature maps, ReLU, separable convolution, batch norm.

    Args:
        num_inputs: number of feature maps.
        channels: of each.
        fusion: `fast`: Σ wᵢ·xᵢ / (ε + Σ wᵢ) with a learned wᵢ ≥ 0 for each input; `sum`: Σ xᵢ.
        norm_type: `bn` or `sync_bn`.
    """

    def __init__(self, num_inputs: int, channels: int, fusion: str, norm_type: str):
        super().__init__()
        self.weights = None
        if fusion == "fast":
            self.weights = self.create_parameter([num_inputs], default_initializer=Constant(1.0))
        self.conv = SeparableConv(channels, channels)
        self.norm = batch_norm(norm_type, channels)
        self.add = Add()
        self.relu = nn.ReLU()

    def forward(self, inputs: list) -> Tensor:
        """num_inputs × [B, channels, H_l, W_l] → [B, channels, H_l, W_l]."""
        if self.weights is not None:
            weights = F.relu(self.weights)
            weights = weights / (weights.sum() + EPSILON)
            inputs = [weight * each for weight, each in zip(weights.unbind(), inputs)]
        return self.norm(self.conv(self.relu(functools.reduce(self.add, inputs))))


class BiFPNLayer(nn.Layer):
    """A top-down and a bottom-up pass over L levels (figure 2d)."""

    def __init__(self, num_levels: int, channels: int, fusion: str, norm_type: str):
        super().__init__()
        inner = num_levels - 2  # levels with a node in both passes
        self.downward = nn.LayerList(  # the checkpoint has these names
            [Fusion(2, channels, fusion, norm_type) for _ in range(inner + 1)]  # finest first
        )
        self.upward = nn.LayerList(
            [Fusion(3, channels, fusion, norm_type) for _ in range(inner)]
            + [Fusion(2, channels, fusion, norm_type)]
        )

    def forward(self, levels: list) -> list:
        """L × [B, channels, H_l, W_l], finest first → the same shapes."""
        top_down = [levels[-1]]
        for level, fusion in zip(levels[-2::-1], reversed(list(self.downward))):
            top_down.insert(0, fusion([level, _upsample(top_down[0], level)]))
        outputs = [top_down[0]]
        for level, node, fusion in zip(levels[1:-1], top_down[1:-1], self.upward):
            outputs.append(fusion([level, node, _downsample(outputs[-1])]))
        # The coarsest level has no node in the top-down pass.
        return [*outputs, self.upward[-1]([levels[-1], _downsample(outputs[-1])])]


def _upsample(coarse: Tensor, fine: Tensor) -> Tensor:
    """Upsample by 2 and crop to the size of `fine`, which may be odd."""
    # Runtimes agree on factors of 2 only: for 5/3, oneDNN selects other nearest cells.
    height, width = fine.shape[2:]
    return F.interpolate(coarse, scale_factor=2, mode="nearest")[:, :, :height, :width]


def _downsample(fine: Tensor) -> Tensor:
    """Downsample by 2, rounded up, with 2x2 max pooling."""
    return F.max_pool2d(fine, 2, 2, ceil_mode=True)


@register
class PPFCOSBiFPN(Pyramid):
    """Bidirectional feature pyramid network with extra levels.

    Args:
        in_channels: of the backbone's feature maps, finest first; from the backbone.
        strides: of the feature maps in pixels; from the backbone.
        out_channels: of each level.
        num_layers: number of BiFPN layers.
        extra_levels: number of levels after the backbone's, each half the size of the one before.
        fusion: `fast`: weighted sums with learned weights; `sum`: unweighted sums, which need no products.
        norm_type: `bn` or `sync_bn`.

    Raises:
        ValueError: an option has an unknown value.
    """

    def __init__(
        self,
        in_channels: list,
        strides: list,
        out_channels: int = 64,
        num_layers: int = 3,
        extra_levels: int = 2,
        fusion: str = "fast",
        norm_type: str = "bn",
    ):
        super().__init__()
        check_choice("PPFCOSBiFPN", "fusion", fusion, ("fast", "sum"))
        check_choice("PPFCOSBiFPN", "norm_type", norm_type, BATCH_NORMS)
        self.out_channels = out_channels
        self.extra_levels = extra_levels
        self.strides = list(strides) + [strides[-1] * 2 ** (i + 1) for i in range(extra_levels)]
        if len(self.strides) < 2:
            raise ValueError("PPFCOSBiFPN needs two levels or more: increase extra_levels")
        # One for each level of the backbone, and one for the input of the extra levels.
        sources = list(in_channels) + ([in_channels[-1]] if extra_levels else [])
        self.laterals = nn.LayerList(
            [
                nn.Sequential(
                    nn.Conv2D(channels, out_channels, 1, bias_attr=False), batch_norm(norm_type, out_channels)
                )
                for channels in sources
            ]
        )
        self.layers = nn.LayerList(
            [BiFPNLayer(len(self.strides), out_channels, fusion, norm_type) for _ in range(num_layers)]
        )

    def forward(self, features: list) -> list:
        """Feature maps of the backbone, finest first → L × [B, out_channels, H_l, W_l]; sizes round up."""
        levels = [lateral(feature) for lateral, feature in zip(self.laterals, features)]
        if self.extra_levels:
            levels.append(_downsample(self.laterals[-1](features[-1])))
        for _ in range(self.extra_levels - 1):
            levels.append(_downsample(levels[-1]))
        for layer in self.layers:
            levels = layer(levels)
        return levels
