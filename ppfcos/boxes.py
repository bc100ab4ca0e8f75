"""Box arithmetic.

Boxes are x0, y0, x1, y1 in pixels; distances are l, t, r, b from a point to the sides of a box. The areas
take NumPy arrays and Paddle tensors alike.
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
    x0, y0, x1, y1 = boxes.T[:, :, None]
    other_x0, other_y0, other_x1, other_y1 = np.ascontiguousarray(others.T)
    intersections = np.minimum(x1, other_x1)
    intersections -= np.maximum(x0, other_x0)
    np.maximum(intersections, 0, out=intersections)
    heights = np.minimum(y1, other_y1)
    heights -= np.maximum(y0, other_y0)
    np.maximum(heights, 0, out=heights)
    intersections *= heights
    unions = box_areas(boxes)[:, None] + box_areas(others)
    unions -= intersections
    np.maximum(unions, np.finfo(np.float32).tiny, out=unions)
    return np.divide(intersections, unions, out=intersections)
