"""The locations of the feature maps in the input image (FCOS paper, section 3.1).

Shape letters of this package: B images, L levels, H_l and W_l height and width of a level, P locations over
all levels, M boxes (padded), C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor


class Grid(NamedTuple):
    """The locations of one level, numbered row by row.

    Attributes:
        height: H_l of the feature map, an integer or a scalar tensor (in an exported program).
        width: W_l of the feature map, likewise.
        step_y: pixels of the network's input from one row to the next, likewise.
        step_x: from one column to the next, likewise.
        offset: from the image's corner to the first location, in half steps: 1 for the middle of a cell.
    """

    height: int | Tensor
    width: int | Tensor
    step_y: int | Tensor
    step_x: int | Tensor
    offset: int

    def locations(self) -> Tensor:
        """[H_l·W_l, 2] x, y in pixels of the network's input."""
        xs = (paddle.arange(self.width, dtype="float32") + 0.5 * self.offset) * self.step_x
        ys = (paddle.arange(self.height, dtype="float32") + 0.5 * self.offset) * self.step_y
        return paddle.stack([part.flatten() for part in paddle.meshgrid(ys, xs)][::-1], axis=-1)


def center_grid(height: int | Tensor, width: int | Tensor, stride: int) -> Grid:
    """The centres of the cells of one feature map: (i + 0.5)·stride.

    Args:
        height: H_l of the feature map, an integer or a scalar tensor (in an exported program).
        width: W_l of the feature map, likewise.
        stride: of the level, in pixels.
    """
    return Grid(height, width, stride, stride, offset=1)


def anchor_grid(
    height: int | Tensor, width: int | Tensor, image_height: int | Tensor, image_width: int | Tensor
) -> Grid:
    """The centres of the anchors that torchvision's FCOS lays on one feature map.

    They begin in the image's corner, and are apart by the whole pixels that fit: less than the stride where
    the image is no multiple of it.

    Args:
        height: H_l of the feature map, an integer or a scalar tensor (in an exported program).
        width: W_l of the feature map, likewise.
        image_height: of the network's input, likewise.
        image_width: likewise.
    """
    return Grid(height, width, image_height // height, image_width // width, offset=0)
