"""Assigns ground-truth boxes to points (FCOS paper, sections 3.1 and 3.2).

Runs on the device, for the whole batch, on padded boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import paddle
from paddle import Tensor
from ppdet.core.workspace import register, serializable

from ppfcos.boxes import box_areas


class Targets(NamedTuple):
    """What the head should predict at the B·P points of a batch.

    Attributes:
        labels: [B·P] integers; C is the background.
        positives: [N⁺] indices of the positive points.
        distances: [N⁺, 4] l, t, r, b in pixels.
        centerness: [N⁺] in (0, 1].
        strides: [N⁺] of their levels, in pixels.
        valid: [N] indices of the points in the classification loss, which include all positives; None for
            all points.
    """

    labels: Tensor
    positives: Tensor
    distances: Tensor
    centerness: Tensor
    strides: Tensor
    valid: Tensor | None = None


def compute_centerness(distances: Tensor) -> Tensor:
    """Return sqrt(min(l, r)/max(l, r) · min(t, b)/max(t, b)), equation 3: positive [N, 4] → [N]."""
    left, top, right, bottom = distances.unbind(axis=-1)
    horizontal = paddle.minimum(left, right) / paddle.maximum(left, right)
    vertical = paddle.minimum(top, bottom) / paddle.maximum(top, bottom)
    return paddle.sqrt(horizontal * vertical)


@register
@serializable
@dataclass(eq=False)
class PPFCOSTargets:
    """Assigns boxes to points.

    A point is positive for a box if it lies inside (and, with center sampling, within radius·stride of the
    box center) and its largest distance to a side is in the size range of its level, open below and closed
    above. Of several boxes the smallest wins, of equally small ones the first.

    Args:
        size_ranges: upper limits in pixels of the size ranges of all levels but the last, which has none.
        center_sampling_radius: in strides; 0 or less disables center sampling.
        chunk_elements: point-box pairs that are compared at once. Limits the memory to about 60 bytes a pair.
        ignore_crowd: exclude points inside a crowd box that are not positive from the classification loss, as
            COCO's evaluation ignores detections there. The data sets return crowd boxes only if this is set.
    """

    size_ranges: list = (64, 128, 256, 512)
    center_sampling_radius: float = 1.5
    chunk_elements: int = 4_194_304
    ignore_crowd: bool = False

    @paddle.no_grad()
    def __call__(
        self,
        points: list,
        strides: list,
        boxes: Tensor,
        labels: Tensor,
        num_classes: int,
        crowds: Tensor | None = None,
    ) -> Targets:
        """Compute the targets of a batch.

        Args:
            points: L × [H_l·W_l, 2] x, y in pixels.
            strides: of the L levels, in pixels.
            boxes: [B, M, 4] x0, y0, x1, y1 in pixels, padded with zeros.
            labels: [B, M].
            num_classes: C.
            crowds: [B, K, 4] crowd boxes, padded with zeros.

        Raises:
            ValueError: `size_ranges` does not fit the number of levels.
        """
        self.check_levels(strides)
        limits = [0.0, *self.size_ranges, math.inf]
        radius = self.center_sampling_radius if self.center_sampling_radius > 0 else math.inf
        lower, upper = _per_point(limits[:-1], points), _per_point(limits[1:], points)
        point_strides = _per_point(strides, points)
        points = paddle.concat(points)
        num_points, num_boxes = points.shape[0], boxes.shape[1]

        conditions = [value.unsqueeze(1) for value in (lower, upper, radius * point_strides)]
        matched = self._match(points, conditions, boxes)
        is_positive = matched < num_boxes
        positives = is_positive.flatten().nonzero().flatten()
        padded_labels = paddle.concat([labels, paddle.full_like(labels[:, :1], num_classes)], axis=1)
        point_labels = paddle.take_along_axis(padded_labels.astype("int64"), matched, axis=1).flatten()

        valid = None
        if self.ignore_crowd and crowds is not None:
            valid = self._valid_points(points, crowds, is_positive)
        if not positives.shape[0]:  # Paddle 2.6 cannot compute with empty tensors on a GPU
            none = paddle.zeros([0])
            return Targets(point_labels, positives, paddle.zeros([0, 4]), none, none, valid)
        image, index = positives // num_points, positives % num_points
        box = boxes.reshape([-1, 4]).gather(image * num_boxes + matched.flatten().gather(positives))
        # A positive is inside its box, so l, t, r, b > 0: abs() gives the signs.
        distances = (box - points.gather(index).tile([1, 2])).abs()
        return Targets(
            point_labels,
            positives,
            distances,
            compute_centerness(distances),
            point_strides.gather(index),
            valid,
        )

    def check_levels(self, strides: list) -> None:
        """Raise ValueError if `size_ranges` does not fit the number of levels."""
        if len(self.size_ranges) != len(strides) - 1:
            raise ValueError(
                f"PPFCOSTargets.size_ranges has {len(self.size_ranges)} upper ends: "
                f"{len(strides)} levels need {len(strides) - 1}"
            )

    def _valid_points(self, points: Tensor, crowds: Tensor, is_positive: Tensor) -> Tensor | None:
        """Return the indices of points that are positive [B, P] or in no crowd; None if these are all."""
        in_crowd = paddle.zeros_like(is_positive)
        chunk = max(1, self.chunk_elements // in_crowd.size)
        points = points.unsqueeze(1)  # [P, 1, 2]
        for first in range(0, crowds.shape[1], chunk):
            boxes = crowds[:, first : first + chunk].unsqueeze(1)  # [B, 1, K, 4]
            inside = (points > boxes[..., :2]) & (points < boxes[..., 2:])
            in_crowd = in_crowd | inside.all(axis=-1).any(axis=-1)
        valid = (is_positive | ~in_crowd).flatten().nonzero().flatten()
        return valid if valid.shape[0] < in_crowd.size else None

    def _match(self, points: Tensor, conditions: list, boxes: Tensor) -> Tensor:
        """Return the index of the smallest box that each point is positive for [B, P]; M if there is none."""
        batch, num_boxes = boxes.shape[:2]
        smallest = paddle.full([batch, points.shape[0]], math.inf)
        matched = paddle.full([batch, points.shape[0]], num_boxes, dtype="int64")
        chunk = max(1, self.chunk_elements // (batch * points.shape[0]))
        for first in range(0, num_boxes, chunk):
            areas = self._candidate_areas(points, conditions, boxes[:, first : first + chunk])
            # Strictly smaller: of equally small boxes the first wins, within a chunk and between chunks.
            better = areas.min(axis=-1) < smallest
            matched = paddle.where(better, areas.argmin(axis=-1) + first, matched)
            smallest = paddle.minimum(areas.min(axis=-1), smallest)
        return matched

    @staticmethod
    def _candidate_areas(points: Tensor, conditions: list, boxes: Tensor) -> Tensor:
        """Return the areas of the boxes [B, K, 4] that each point is positive for, infinity elsewhere."""
        lower, upper, radius = conditions
        x, y = points[:, :1], points[:, 1:]
        x0, y0, x1, y1 = (side.unsqueeze(1) for side in boxes.unbind(axis=-1))
        left, right, top, bottom = x - x0, x1 - x, y - y0, y1 - y
        nearest = paddle.minimum(paddle.minimum(left, right), paddle.minimum(top, bottom))
        farthest = paddle.maximum(paddle.maximum(left, right), paddle.maximum(top, bottom))
        # |l − r| / 2 is the horizontal distance to the box center.
        off_center = paddle.maximum((left - right).abs(), (top - bottom).abs()) / 2
        is_positive = (nearest > 0) & (farthest > lower) & (farthest <= upper) & (off_center < radius)
        areas = box_areas(boxes).unsqueeze(1)
        return paddle.where(is_positive, areas, paddle.full_like(areas, math.inf))


def _per_point(values: Sequence[float], points: list) -> Tensor:
    """Repeat the value of each level for its points: [P]."""
    return paddle.concat([paddle.full([level.shape[0]], value) for level, value in zip(points, values)])
