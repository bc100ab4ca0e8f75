"""Which location answers for which box, and what it should say (FCOS paper, sections 3.1 and 3.2).

All of it is computed on the device, for the whole batch, from padded boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import paddle
from paddle import Tensor
from ppdet.core.workspace import register, serializable

from ppfcos.boxes import box_areas


class Targets(NamedTuple):
    """What the head should say.

    Attributes:
        labels: [B·P] integers; C is the background.
        positives: [N⁺] indices into B·P of the locations that answer for a box.
        distances: [N⁺, 4] l, t, r, b in pixels.
        centerness: [N⁺] in (0, 1].
        strides: [N⁺] of their levels, in pixels.
        counted: [N] indices into B·P of the locations that the classification loss is the sum over, all
            positives among them; None: all locations.
    """

    labels: Tensor
    positives: Tensor
    distances: Tensor
    centerness: Tensor
    strides: Tensor
    counted: Tensor | None = None


def compute_centerness(distances: Tensor) -> Tensor:
    """sqrt(min(l, r)/max(l, r) · min(t, b)/max(t, b)), equation 3 of the paper.

    Args:
        distances: [N, 4] l, t, r, b, all above zero.

    Returns:
        [N].
    """
    left, top, right, bottom = distances.unbind(axis=-1)
    horizontal = paddle.minimum(left, right) / paddle.maximum(left, right)
    vertical = paddle.minimum(top, bottom) / paddle.maximum(top, bottom)
    return paddle.sqrt(horizontal * vertical)


@register
@serializable
class PPFCOSTargets:
    """Assigns boxes to locations.

    A location is positive for a box if it lies inside (and, with center sampling, within radius·stride of the
    box's centre) and its largest distance to a side is in its level's range, open below and closed above; of
    several boxes it takes the smallest, of equally small ones the first.

    Args:
        size_ranges: upper ends in pixels of the ranges of all levels but the last, which has none.
        center_sampling_radius: in strides; 0 or less takes the whole box.
        chunk_elements: location-box pairs that are compared at once; bounds the memory (about 60 bytes a
            pair).
        ignore_crowd: whether locations inside a box around a crowd that answer for no box are left out of the
            classification loss, being neither object nor background, as COCO's evaluation has it. (The data
            gives the boxes of crowds only where this is set.)
    """

    def __init__(
        self,
        size_ranges: list = (64, 128, 256, 512),
        center_sampling_radius: float = 1.5,
        chunk_elements: int = 4_194_304,
        ignore_crowd: bool = False,
    ):
        self.size_ranges = list(size_ranges)
        self.center_sampling_radius = center_sampling_radius
        self.chunk_elements = chunk_elements
        self.ignore_crowd = ignore_crowd

    @paddle.no_grad()
    def __call__(
        self,
        locations: list,
        strides: list,
        boxes: Tensor,
        labels: Tensor,
        num_classes: int,
        crowds: Tensor | None = None,
    ) -> Targets:
        """Targets of a batch.

        Args:
            locations: L × [H_l·W_l, 2] x, y in pixels.
            strides: of the L levels, in pixels.
            boxes: [B, M, 4] x0, y0, x1, y1 in pixels; padding is rows of zeros, which hold no location.
            labels: [B, M] class of each box.
            num_classes: C.
            crowds: [B, K, 4] boxes around crowds, padded like `boxes`; None where there are none.

        Returns:
            The targets of all B·P locations.

        Raises:
            ValueError: `size_ranges` does not fit the number of levels.
        """
        self.check_levels(strides)
        points = paddle.concat(locations)
        point_strides = _of_every_point(strides, locations)
        limits = (*self._size_limits(locations), self._reach() * point_strides)
        matched = self._matched_boxes(points, tuple(limit.unsqueeze(1) for limit in limits), boxes)
        box_count = boxes.shape[1]
        positives = (matched < box_count).flatten().nonzero().flatten()
        # Flat index of each positive's box: its image's first box plus the number within the image.
        image = positives // points.shape[0]
        chosen = image * box_count + matched.flatten().gather(positives)
        box = boxes.reshape([-1, 4]).gather(chosen)
        number = positives % points.shape[0]
        point = points.gather(number)
        # A positive is inside its box, so that all four are above zero. Paddle 2.6 can do this without any
        # positive, but cannot concatenate nothing.
        distances = (box - point.tile([1, 2])).abs()
        padded = paddle.concat([labels, paddle.full_like(labels[:, :1], num_classes)], axis=1)
        all_labels = paddle.take_along_axis(padded.astype("int64"), matched, axis=1).flatten()
        counted = None
        if self.ignore_crowd and crowds is not None:
            counted = self._counted(points, crowds, matched < box_count)
        own_strides = point_strides.gather(number)
        return Targets(all_labels, positives, distances, compute_centerness(distances), own_strides, counted)

    def check_levels(self, strides: list) -> None:
        """Raise ValueError if `size_ranges` does not fit the number of levels, whose strides these are."""
        if len(self.size_ranges) != len(strides) - 1:
            raise ValueError(
                f"PPFCOSTargets.size_ranges has {len(self.size_ranges)} upper ends: "
                f"{len(strides)} levels need {len(strides) - 1}"
            )

    def _counted(self, points: Tensor, crowds: Tensor, is_positive: Tensor) -> Tensor | None:
        """Indices of the locations that are positive [B, P] or in no crowd; None if that is all of them."""
        in_crowd = paddle.zeros_like(is_positive)
        chunk = max(1, self.chunk_elements // in_crowd.size)
        for first in range(0, crowds.shape[1], chunk):
            some = crowds[:, first : first + chunk].unsqueeze(1)  # [B, 1, K, 4] with points [P, 1, 2]
            inside = (points.unsqueeze(1) > some[..., :2]) & (points.unsqueeze(1) < some[..., 2:])
            in_crowd = in_crowd | inside.all(axis=-1).any(axis=-1)
        counted = (is_positive | ~in_crowd).flatten().nonzero().flatten()
        return counted if counted.shape[0] < in_crowd.size else None

    def _reach(self) -> float:
        """Strides between a box's centre and the locations that may answer for it, at the most."""
        return self.center_sampling_radius if self.center_sampling_radius > 0 else math.inf

    def _size_limits(self, locations: list) -> tuple:
        """Ends of the size range of each location: 2 × [P]."""
        ends = [0.0, *self.size_ranges, math.inf]
        return _of_every_point(ends[:-1], locations), _of_every_point(ends[1:], locations)

    def _matched_boxes(self, points: Tensor, limits: tuple, boxes: Tensor) -> Tensor:
        """[B, P] number of the smallest box that each location answers for, M where there is none."""
        batch, box_count = boxes.shape[:2]
        smallest = paddle.full([batch, points.shape[0]], math.inf)
        matched = paddle.full([batch, points.shape[0]], box_count, dtype="int64")
        chunk = max(1, self.chunk_elements // (batch * points.shape[0]))
        for first in range(0, box_count, chunk):
            areas = self._candidate_areas(points, limits, boxes[:, first : first + chunk])
            # Strictly smaller, so that of equal boxes the first keeps the location, within a chunk and
            # between.
            better = areas.min(axis=-1) < smallest
            matched = paddle.where(better, areas.argmin(axis=-1) + first, matched)
            smallest = paddle.minimum(areas.min(axis=-1), smallest)
        return matched

    @staticmethod
    def _candidate_areas(points: Tensor, limits: tuple, boxes: Tensor) -> Tensor:
        """[B, P, K] area of each of K boxes that a location may answer for, infinity elsewhere."""
        lower, upper, radius = limits
        x, y = points[:, :1], points[:, 1:]
        x0, y0, x1, y1 = (side.unsqueeze(1) for side in boxes.unbind(axis=-1))
        left, right, top, bottom = x - x0, x1 - x, y - y0, y1 - y
        nearest = paddle.minimum(paddle.minimum(left, right), paddle.minimum(top, bottom))
        farthest = paddle.maximum(paddle.maximum(left, right), paddle.maximum(top, bottom))
        # |left - right| / 2 is the distance to the centre's column: no need for the centre itself.
        off_centre = paddle.maximum((left - right).abs(), (top - bottom).abs()) / 2
        allowed = (nearest > 0) & (farthest > lower) & (farthest <= upper) & (off_centre < radius)
        areas = box_areas(boxes).unsqueeze(1)
        return paddle.where(allowed, areas, paddle.full_like(areas, math.inf))


def _of_every_point(values: Sequence[float], locations: list) -> Tensor:
    """[P] the value of each location's level."""
    return paddle.concat([paddle.full([level.shape[0]], value) for level, value in zip(locations, values)])
