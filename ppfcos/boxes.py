"""Box arithmetic.

Boxes are x0, y0, x1, y1 in pixels; distances are l, t, r, b from a point to the sides of a box. The areas take
NumPy arrays and Paddle tensors alike.
"""

from __future__ import annotations

import numpy as np


def box_areas(boxes):
    """Areas [...] of boxes [..., 4]; negative where a box is inverted in one direction."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def distance_areas(distances):
    """Areas [...] of boxes given as distances [..., 4]."""
    return (distances[..., 0] + distances[..., 2]) * (distances[..., 1] + distances[..., 3])


def pairwise_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU [N, M] of boxes [N, 4] and others [M, 4], NumPy arrays; 0 where both are empty."""
    sides = np.minimum(boxes[:, None, 2:], others[:, 2:])
    sides -= np.maximum(boxes[:, None, :2], others[:, :2])
    intersections = sides.clip(min=0).prod(axis=2)
    unions = box_areas(boxes)[:, None] + box_areas(others) - intersections
    return intersections / unions.clip(min=np.finfo(np.float32).tiny)
