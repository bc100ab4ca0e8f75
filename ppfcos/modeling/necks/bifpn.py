"""The weighted bidirectional feature pyramid: P3 to P5 from the backbone, P6 and P7 pooled above them.

Source: EfficientDet (Tan et al., arXiv 1911.09070), section 3. The paper leaves open how a feature map is
halved: here, as in Horizon Robotics' networks, by the largest of the four cells that a coarser one covers.
(PaddleDetection's BiFPN takes P6 from a dense 3x3 convolution of C5, and has no norm over all processes.)
"""

from __future__ import annotations

import functools

import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.nn.initializer import Constant
from ppdet.core.workspace import register

from ppfcos.modeling.layers import BATCH_NORMS, SeparableConv, Sum, batch_norm
from ppfcos.modeling.necks.fpn import Pyramid

FUSIONS = ("fast", "sum")
EPSILON = 1e-4  # of the fast normalised fusion, section 3.3


class Fusion(nn.Layer):
    """One node of the pyramid: feature maps of one size into one, ReLU, separable convolution, batch norm.

    Args:
        num_inputs: feature maps that arrive.
        channels: of each.
        fusion: `fast`: Σ wᵢ·xᵢ / (ε + Σ wᵢ) with learnt wᵢ ≥ 0, one for each input; `sum`: Σ xᵢ.
        norm_type: `bn` or `sync_bn`.
    """

    def __init__(self, num_inputs: int, channels: int, fusion: str, norm_type: str):
        super().__init__()
        self.weights = None
        if fusion == "fast":
            self.weights = self.create_parameter([num_inputs], default_initializer=Constant(1.0))
        self.conv = SeparableConv(channels, channels)
        self.norm = batch_norm(norm_type, channels)
        self.add = Sum()
        self.relu = nn.ReLU()

    def forward(self, inputs: list) -> Tensor:
        """num_inputs × [B, channels, H_l, W_l] → [B, channels, H_l, W_l]."""
        if self.weights is not None:
            weights = F.relu(self.weights)
            shares = weights / (weights.sum() + EPSILON)
            inputs = [share * each for share, each in zip(shares.unbind(), inputs)]
        return self.norm(self.conv(self.relu(functools.reduce(self.add, inputs))))


class BiFPNLayer(nn.Layer):
    """Once down from the coarsest level to the finest, and up again (figure 2d).

    Args:
        num_levels: L.
        channels: of every level.
        fusion: of each node, as `Fusion` takes it.
        norm_type: likewise.
    """

    def __init__(self, num_levels: int, channels: int, fusion: str, norm_type: str):
        super().__init__()
        inner = num_levels - 2  # levels that are met on the way down and on the way up
        self.downward = nn.LayerList(
            [Fusion(2, channels, fusion, norm_type) for _ in range(inner + 1)]  # finest first
        )
        self.upward = nn.LayerList(
            [Fusion(3, channels, fusion, norm_type) for _ in range(inner)]
            + [Fusion(2, channels, fusion, norm_type)]
        )

    def forward(self, levels: list) -> list:
        """L × [B, channels, H_l, W_l], finest first → likewise."""
        middle = [levels[-1]]
        for level, fusion in zip(levels[-2::-1], reversed(list(self.downward))):
            middle.insert(0, fusion([level, _enlarged(middle[0], level)]))
        outputs = [middle[0]]
        for level, met, fusion in zip(levels[1:-1], middle[1:-1], self.upward):
            outputs.append(fusion([level, met, _halved(outputs[-1])]))
        # The coarsest level was not met on the way down.
        return [*outputs, self.upward[-1]([levels[-1], _halved(outputs[-1])])]


def _enlarged(coarse: Tensor, fine: Tensor) -> Tensor:
    """Each cell of `coarse` four times, cut to the size of `fine`: one less than twice where that is odd."""
    # To enlarge by 5/3 or the like is not the same in all runtimes: oneDNN looks for another nearest cell.
    height, width = fine.shape[2:]
    return F.interpolate(coarse, scale_factor=2, mode="nearest")[:, :, :height, :width]


def _halved(fine: Tensor) -> Tensor:
    """Half the size, rounded up: the largest of the four cells, at an odd edge of the two or the one."""
    return F.max_pool2d(fine, 2, 2, ceil_mode=True)


@register
class PPFCOSBiFPN(Pyramid):
    """Bidirectional feature pyramid network with extra levels.

    Args:
        in_channels: of the backbone's feature maps, finest first; from the backbone.
        strides: of these feature maps in pixels; from the backbone.
        out_channels: of every level.
        num_layers: how many times down and up.
        extra_levels: levels above the backbone's, each half the size of the one before.
        fusion: `fast`: weighted by learnt shares of 1; `sum`: unweighted, so that nothing is multiplied.
        norm_type: `bn` or `sync_bn`.

    Raises:
        ValueError: an option is none of those named.
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
        if fusion not in FUSIONS:
            raise ValueError(f"PPFCOSBiFPN.fusion is {fusion!r}: it is fast or sum")
        if norm_type not in BATCH_NORMS:
            raise ValueError(f"PPFCOSBiFPN.norm_type is {norm_type!r}: it is bn or sync_bn")
        self.out_channels = out_channels
        self.extra_levels = extra_levels
        self.strides = list(strides) + [strides[-1] * 2 ** (i + 1) for i in range(extra_levels)]
        if len(self.strides) < 2:
            raise ValueError("PPFCOSBiFPN needs two levels or more: increase extra_levels")
        # One for each level of the backbone, and one for what the extra levels are pooled from.
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
        """Make the pyramid.

        Args:
            features: of the backbone, finest first, each [B, in_channels, H_l, W_l], each half the size of
                the one before.

        Returns:
            L feature maps [B, out_channels, H_l, W_l], finest first; sizes of the extra levels round up.
        """
        levels = [lateral(feature) for lateral, feature in zip(self.laterals, features)]
        if self.extra_levels:
            levels.append(_halved(self.laterals[-1](features[-1])))
        for _ in range(self.extra_levels - 1):
            levels.append(_halved(levels[-1]))
        for layer in self.layers:
            levels = layer(levels)
        return levels
