"""A small network with the operators whose attributes differ between versions of Paddle.

tests/fixtures/programs holds it as Paddle 2.6.2 and 3.3.1 save it: `python -m helpers.small_program PREFIX`.
"""

from __future__ import annotations

import sys

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.static import InputSpec


class SmallNetwork(nn.Layer):
    """Convolution, group norm, pooling, padding and upsampling, with fixed weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        random = np.random.default_rng(0)
        for weight in self.parameters():
            weight.set_value(random.normal(0, 0.3, weight.shape).astype(np.float32))

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        features = F.leaky_relu(self.norm(self.conv(image)))
        pooled = F.max_pool2d(F.pad(features, [1, 1, 1, 1]), 2)
        return F.interpolate(pooled, scale_factor=2, mode="nearest")


def save(prefix: str) -> None:
    """Save the network with this version of Paddle."""
    spec = InputSpec([-1, 3, -1, -1], "float32", "image")
    paddle.jit.save(paddle.jit.to_static(SmallNetwork(), input_spec=[spec], full_graph=True), prefix)


if __name__ == "__main__":
    save(sys.argv[1])
