"""The locations of the feature maps in the input image (FCOS paper, section 3.1).

Shape letters of this package: B images, L levels, H_l and W_l height and width of a level, P locations over
all levels, M boxes (padded), C classes.
"""

from __future__ import annotations

import paddle
from paddle import Tensor


def level_locations(height: int, width: int, stride: int) -> Tensor:
    """Centres of the cells of one feature map.

    Args:
        height: H_l of the feature map, an integer or a scalar tensor (in an exported program).
        width: W_l of the feature map, likewise.
        stride: of the level, in pixels.

    Returns:
        [H_l·W_l, 2] x, y in pixels of the network's input, row by row: (i + 0.5)·stride.
    """
    xs = (paddle.arange(width, dtype="float32") + 0.5) * stride
    ys = (paddle.arange(height, dtype="float32") + 0.5) * stride
    grid_y, grid_x = paddle.meshgrid(ys, xs)
    return paddle.stack([grid_x.flatten(), grid_y.flatten()], axis=-1)
