"""Box areas, for NumPy arrays and Paddle tensors.

Boxes are x0, y0, x1, y1 in pixels; distances are l, t, r, b from a point to the sides of a box.
"""

from __future__ import annotations

import numpy as np

def box_areas(boxes):
    """[..., 4] boxes → [...] areas in square pixels; negative if one side is negative."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def distance_areas(distances):
    """[..., 4] distances → [...] areas in square pixels."""
    return (distances[..., 0] + distances[..., 2]) * (distances[..., 1] + distances[..., 3])
