"""Box arithmetic, nothing else.

Boxes are x0, y0, x1, y1 in pixels; distances are l, t, r, b from a location to the sides of a box. Everything
here is plain arithmetic and indexing, so that it takes numpy arrays and Paddle tensors alike.
"""

from __future__ import annotations


def box_areas(boxes):
    """Areas of boxes.

    Args:
        boxes: [..., 4] x0, y0, x1, y1.

    Returns:
        [...] in square pixels; negative where a box is upside down in one direction.
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def distance_areas(distances):
    """Areas of boxes given as distances.

    Args:
        distances: [..., 4] l, t, r, b.

    Returns:
        [...] in square pixels.
    """
    return (distances[..., 0] + distances[..., 2]) * (distances[..., 1] + distances[..., 3])
