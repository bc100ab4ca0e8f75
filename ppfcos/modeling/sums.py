"""The sum of feature maps."""

from __future__ import annotations

from paddle import Tensor, nn


class Sum(nn.Layer):
    """Of two feature maps.

    A layer of its own, as convolutions and activations are: quantisation-aware training looks for the layers
    whose results the exported network keeps in eight bits.
    """

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Two of [B, channels, H, W] → [B, channels, H, W]."""
        return one + other
