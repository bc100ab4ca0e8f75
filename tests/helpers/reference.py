"""FCOS by the formulas of the paper, point by point, in plain loops and double precision.

It uses nothing of the package.
"""

from __future__ import annotations

import math

import numpy as np


def locations(height: int, width: int, strides: list) -> list:
    """Return level, x, y of each point of an image, level by level, row by row."""
    found = []
    for level, stride in enumerate(strides):
        for row in range(math.ceil(height / stride)):
            for column in range(math.ceil(width / stride)):
                found.append((level, (column + 0.5) * stride, (row + 0.5) * stride))
    return found


def target(level, x, y, boxes, strides, size_ranges, radius):
    """Return the index of the box assigned to a point and its (l, t, r, b), or None."""
    lower, upper = [0, *size_ranges][level], [*size_ranges, math.inf][level]
    best, best_area = None, math.inf
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        sides = (x - x0, y - y0, x1 - x, y1 - y)
        if min(sides) <= 0 or not lower < max(sides) <= upper:
            continue
        if radius > 0:
            reach = radius * strides[level]
            if abs(x - (x0 + x1) / 2) >= reach or abs(y - (y0 + y1) / 2) >= reach:
                continue
        area = (x1 - x0) * (y1 - y0)
        if area < best_area:
            best, best_area = (index, sides), area
    return best


def centerness(sides) -> float:
    left, top, right, bottom = sides
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value)) if value >= 0 else value - math.log1p(math.exp(value))


def focal(logits: np.ndarray, labels: np.ndarray, alpha: float, gamma: float) -> float:
    """Sum over [N, C] logits; a label of C is the background."""
    total = 0.0
    for row, label in zip(logits, labels):
        for index, logit in enumerate(row):
            if index == label:
                total -= alpha * (1 - sigmoid(logit)) ** gamma * log_sigmoid(logit)
            else:
                total -= (1 - alpha) * sigmoid(logit) ** gamma * log_sigmoid(-logit)
    return total


def iou_and_giou(predicted, wanted, smoothing=0.0) -> tuple:
    """Return IoU and GIoU of two boxes around a point, each l, t, r, b; the smoothing is an area."""
    a = (-predicted[0], -predicted[1], predicted[2], predicted[3])
    b = (-wanted[0], -wanted[1], wanted[2], wanted[3])
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    union = area_a + area_b - intersection
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = (intersection + smoothing) / (union + smoothing)
    return iou, iou - (hull - union) / hull


def box_loss(predicted, wanted, kind: str, smoothing: float = 0.0) -> float:
    iou, giou = iou_and_giou(predicted, wanted, smoothing)
    return {"giou": 1 - giou, "linear_iou": 1 - iou, "iou": -math.log(max(iou, 1e-7))}[kind]


def bce(logit: float, wanted: float) -> float:
    return -(wanted * log_sigmoid(logit) + (1 - wanted) * log_sigmoid(-logit))


def gradient(function, array: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a function of one float64 array."""
    result = np.zeros_like(array)
    for index in np.ndindex(*array.shape):
        kept = array[index]
        array[index] = kept + step
        above = function(array)
        array[index] = kept - step
        result[index] = (above - function(array)) / (2 * step)
        array[index] = kept
    return result


def box_iou(a, b, extra=0.0) -> float:
    """`extra` is added to every width and height."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def decode(
    levels,
    strides,
    shape,
    scale,
    *,
    top_k,
    threshold,
    nms_iou,
    keep,
    sqrt_score=False,
    class_threshold=0.0,
    rank_by="score",
    clip="before",
    inclusive=False,
) -> list:
    """(label, score, x0, y0, x1, y1), best first, of one image.

    `levels` holds (class logits [C, H, W], distances [4, H, W], quality logits [1, H, W]); `shape` is the
    height and width without padding, `scale` the vertical and horizontal factor of the resizing.
    """
    extra = 1.0 if inclusive else 0.0

    def cut(box):
        limits = [shape[1] - extra, shape[0] - extra] * 2 if clip == "before" else [shape[1], shape[0]] * 2
        return (*box[:2], *(min(max(side, 0.0), limit) for side, limit in zip(box[2:], limits)))

    def has_area(box):
        return box[4] + extra > box[2] and box[5] + extra > box[3]

    candidates = []
    for (logits, distances, quality), stride in zip(levels, strides):
        level = []
        for row in range(logits.shape[1]):
            for column in range(logits.shape[2]):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                left, top, right, bottom = (float(value) for value in distances[:, row, column])
                for label in range(logits.shape[0]):
                    of_class = sigmoid(float(logits[label, row, column]))
                    score = of_class * sigmoid(float(quality[0, row, column]))
                    rank = of_class if rank_by == "class" else score
                    score = math.sqrt(score) if sqrt_score else score
                    if of_class > class_threshold:
                        level.append((rank, (label, score, x - left, y - top, x + right, y + bottom)))
        level.sort(key=lambda ranked: -ranked[0])
        candidates += [box for _, box in level[:top_k] if box[1] > threshold]
    if clip == "before":
        candidates = [box for box in map(cut, candidates) if has_area(box)]
    candidates.sort(key=lambda box: -box[1])
    kept = []
    for box in candidates:
        if all(box[0] != other[0] or box_iou(box[2:], other[2:], extra) <= nms_iou for other in kept):
            kept.append(box)
    kept = kept[:keep]
    if clip == "after":  # inclusive corners, one pixel of the original image
        kept = [(*box[:4], box[4] + extra, box[5] + extra) for box in kept]
        kept = [box for box in map(cut, kept) if box[4] > box[2] and box[5] > box[3]]
        kept = [(*box[:4], box[4] - extra, box[5] - extra) for box in kept]
    sides = [scale[1], scale[0]] * 2
    ends = [0.0, 0.0, extra, extra]
    return [
        (*box[:2], *(side / factor + end for side, factor, end in zip(box[2:], sides, ends))) for box in kept
    ]
