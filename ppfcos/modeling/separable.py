"""A 3x3 convolution in two: of each channel by itself, then over the channels of each pixel."""

from __future__ import annotations

from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import KaimingNormal


class SeparableConv(nn.Layer):
    """Depthwise 3x3 and pointwise 1x1 convolution, for a norm to follow: neither has a bias.

    Args:
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        # Two of the usual 0.01 in a row would leave less than the epsilon of the norm behind them.
        options = {"weight_attr": ParamAttr(initializer=KaimingNormal()), "bias_attr": False}
        self.depthwise = nn.Conv2D(in_channels, in_channels, 3, padding=1, groups=in_channels, **options)
        self.pointwise = nn.Conv2D(in_channels, out_channels, 1, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H, W]."""
        return self.pointwise(self.depthwise(inputs))
