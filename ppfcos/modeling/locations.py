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
    return _grid(xs, ys)


def anchor_locations(height: int, width: int, image_height: int, image_width: int) -> Tensor:
    """Centres of the anchors that torchvision's FCOS lays on one feature map.

    They begin in the image's corner, and are apart by the whole pixels that fit: less than the stride where
    the image is no multiple of it.

    Args:
        height: H_l of the feature map, an integer or a scalar tensor (in an exported program).
        width: W_l of the feature map, likewise.
        image_height: of the network's input, likewise.
        image_width: likewise.

    Returns:
        [H_l·W_l, 2] x, y in pixels of the network's input, row by row.
    """
    xs = paddle.arange(width, dtype="float32") * (image_width // width)
    ys = paddle.arange(height, dtype="float32") * (image_height // height)
    return _grid(xs, ys)


def _grid(xs: Tensor, ys: Tensor) -> Tensor:
    # By sums, for which an exported program needs a tenth of the operations that a meshgrid takes.
    grid_x = xs.unsqueeze(0) + 0.0 * ys.unsqueeze(1)
    grid_y = ys.unsqueeze(1) + 0.0 * xs.unsqueeze(0)
    return paddle.stack([grid_x.flatten(), grid_y.flatten()], axis=-1)
