"""From the head's answers to boxes, in training's evaluation and in an exported program alike."""

from __future__ import annotations

import math
from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from ppdet.core.workspace import register, serializable

from ppfcos.modeling.head import HeadOutputs


def top_k_pairs(ranks: list, count: int, zero: Tensor) -> tuple:
    """The best pairs of each level.

    Args:
        ranks: L × [B, C, H_l, W_l], 0 or more.
        count: K, how many are wanted.
        zero: [B, 1] float32.

    Returns:
        [B, L, K] ranks, and numbers of the pairs: class·H_l·W_l + location. Of a level of fewer than K
        locations, there may be pairs of rank 0 among them that have numbers above all of its own.
    """
    num_classes = ranks[0].shape[1]
    groups = [level.reshape([0, -1, num_classes]) for level in ranks]
    none = zero.unsqueeze(2).tile([1, count, num_classes])
    groups = [
        level if _is_at_least(level.shape[1], count) else paddle.concat([level, none], axis=1)
        for level in groups
    ]
    first = paddle.stack([_best(level.max(axis=-1), count)[1] for level in groups], axis=1)
    members = _members(groups, first)
    size = _group_size(num_classes, count)
    groups = members.reshape([0, 0, -1, size])
    second = _best(groups.max(axis=-1), count)[1]
    places = second.unsqueeze(-1).tile([1, 1, 1, size])
    members = paddle.take_along_axis(groups, places, axis=2, broadcast=False)
    best, third = _best(members.flatten(2), count)
    return best, _numbers(first, num_classes, _numbers(second, size, third))


def _is_at_least(size: int | Tensor, count: int) -> bool:
    """Whether it is known to be: most sizes of an exported program are tensors, known when it runs."""
    return isinstance(size, int) and size >= count


def _group_size(num_classes: int, count: int) -> int:
    """Of the groups into which count·C members are parted.

    With the root of C, the groups and the members of the best ones are the fewest together.
    """
    return max(size for size in range(1, math.isqrt(num_classes) + 1) if num_classes * count % size == 0)


def _best(values: Tensor, count: int) -> tuple:
    """The highest `count` along the last axis, and where they are."""
    return paddle.topk(values, count, axis=-1)


def _members(groups: list, chosen: Tensor) -> Tensor:
    """L × [B, N_l, C] at chosen [B, L, K] → [B, L, K, C]."""
    images = paddle.arange(chosen.shape[0], dtype=chosen.dtype).unsqueeze([1, 2])
    places = paddle.stack([0 * chosen + images, chosen], axis=-1)
    of_levels = paddle.split(places, len(groups), axis=1)
    return paddle.concat([paddle.gather_nd(*level) for level in zip(groups, of_levels)], axis=1)


def _numbers(chosen: Tensor, size: int, members: Tensor) -> Tensor:
    """What numbers members of the chosen groups had before the groups of `size` were chosen."""
    group = members // size
    before = paddle.take_along_axis(chosen, group, axis=-1, broadcast=False)
    return size * before + (members - size * group)


FAR = 1e9  # more pixels than any image has


class Candidates(NamedTuple):
    """What enters the suppression, S of each image.

    Attributes:
        boxes: [B, S, 4] in pixels of the original images, as they are compared.
        shown: [B, S, 4] the same as they are given out: the same tensor where there is no difference. Where
            they are cut after the suppression, -1 if nothing was left.
        scores: [B, S], 0 of those that are none.
        classes: [B, S].
    """

    boxes: Tensor
    shown: Tensor
    scores: Tensor
    classes: Tensor


@register
@serializable
class PPFCOSDecode:
    """Scores, candidates, boxes, and non-maximum suppression by class.

    The score of a class at a location is sigmoid(class)·sigmoid(quality), or its square root; where the head
    predicts no quality, that counts as 1.

    Args:
        pre_nms_top_k: candidates (a location and a class) that each level sends on, best first.
        score_threshold: a candidate's score must be above it.
        nms_threshold: IoU above which, within a class, the lower score goes.
        keep_top_k: boxes of an image at the most.
        sqrt_score: take the square root of the score. It changes no order, but what the threshold means.
        class_threshold: sigmoid(class) alone must be above it.
        rank_by: what the best of a level are best by: `score`, or `class` for sigmoid(class) alone.
        class_top_k: candidates of one class over all levels that enter the suppression; -1: all.
        clip: when boxes are cut to the image, and those dropped that are left without area: `before` the
            suppression, `after` it, or `never`.
        inclusive: a box holds the pixels of both its corners, as in Detectron's early descendants: cut to one
            pixel less than the image, and one pixel wider and higher than its corners are apart.

    Raises:
        ValueError: `rank_by` or `clip` is none of those named.
    """

    def __init__(
        self,
        pre_nms_top_k: int = 1000,
        score_threshold: float = 0.025,
        nms_threshold: float = 0.6,
        keep_top_k: int = 100,
        sqrt_score: bool = False,
        class_threshold: float = 0.0,
        rank_by: str = "score",
        class_top_k: int = -1,
        clip: str = "before",
        inclusive: bool = False,
    ):
        if rank_by not in ("score", "class"):
            raise ValueError(f"PPFCOSDecode.rank_by is {rank_by!r}: it is score or class")
        if clip not in ("before", "after", "never"):
            raise ValueError(f"PPFCOSDecode.clip is {clip!r}: it is before, after or never")
        self.pre_nms_top_k = pre_nms_top_k
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.keep_top_k = keep_top_k
        self.sqrt_score = sqrt_score
        self.class_threshold = class_threshold
        self.rank_by = rank_by
        self.class_top_k = class_top_k
        self.clip = clip
        self.inclusive = inclusive

    def __call__(self, outputs: HeadOutputs, grids: list, im_shape: Tensor, scale_factor: Tensor) -> tuple:
        """Boxes of a batch.

        Args:
            outputs: of the head.
            grids: L `ppfcos.modeling.fcos.Grid`.
            im_shape: [B, 2] height and width of each image within the input, without padding.
            scale_factor: [B, 2] what the image was resized by, vertically and horizontally.

        Returns:
            [N, 6] label, score, x0, y0, x1, y1 in pixels of the original images, image after image, within an
            image class after class, within a class the best first; and [B] the number of each image.
        """
        candidates = self.candidates(outputs, grids, im_shape, scale_factor)
        rows, _, counts = self.suppress(candidates, outputs.class_logits[0].shape[1])
        if self.clip == "after" and not _is_known_empty(rows):
            return _visible_rows(rows, counts)
        return rows, counts

    def suppress(self, candidates: Candidates, num_classes: int) -> tuple:
        """All that happens after the candidates are there, but for the dropping of what `clip` left empty.

        Args:
            candidates: S of each image.
            num_classes: C.

        Returns:
            As a call; between rows and numbers [N, 1], where in the joined [B·S] candidates each row stood.
        """
        # The operator wants [B, C, S] scores; a candidate stands in the row of its class, and is 0 in the
        # others.
        one_hot = F.one_hot(candidates.labels, num_classes)
        per_class = one_hot.transpose([0, 2, 1]) * candidates.scores.unsqueeze(1)
        rows, where, counts = paddle._C_ops.multiclass_nms3(
            candidates.boxes, per_class, None, *self._nms_attributes()
        )
        if candidates.output_boxes is not candidates.boxes and not _is_known_empty(rows):
            shown = candidates.output_boxes.flatten(0, 1).gather(where.flatten())
            columns = [*paddle.split(rows, 6, axis=1)[:2], *paddle.split(shown, 4, axis=1)]
            rows = paddle.stack([column.flatten() for column in columns], axis=1)
        return rows, where, counts

    def candidates(
        self, outputs: HeadOutputs, grids: list, im_shape: Tensor, scale_factor: Tensor
    ) -> Candidates:
        """All that happens before the suppression.

        Args:
            outputs: as in a call.
            grids: likewise.
            im_shape: likewise.
            scale_factor: likewise.

        Returns:
            S = L·pre_nms_top_k candidates of each image.
        """
        height, width = paddle.split(im_shape, 2, axis=1)
        ranks = [
            self._ranks(*level)
            for level in zip(outputs.class_logits, outputs.quality_logits or [None] * len(grids))
        ]
        scores, pairs = top_k_pairs(ranks, self.pre_nms_top_k, 0.0 * height)
        rows, columns = _of_levels(grids, "height"), _of_levels(grids, "width")
        classes, where = _class_and_location(pairs, ranks[0].shape[1], rows * columns)
        if self.rank_by == "class" and outputs.quality_logits:
            scores = scores * F.sigmoid(_gather_maps(outputs.quality_logits, where)).flatten(2)
        if self.sqrt_score:
            scores = paddle.sqrt(paddle.maximum(scores, paddle.zeros([1])))
        corners = _corners(*_points(grids, columns, where), _gather_maps(outputs.distances, where))
        return self._on_the_originals(
            corners,
            scores.flatten(1),
            classes.flatten(1),
            [height, width],
            paddle.split(scale_factor, 2, axis=1),
        )

    def _ranks(self, class_logits: Tensor, quality_logits: Tensor | None) -> Tensor:
        """What the candidates of a level are ordered by: [B, C, H, W], 0 below the threshold of the class."""
        ranks = F.sigmoid(class_logits.astype("float32"))
        if self.class_threshold > 0:
            ranks = F.thresholded_relu(ranks, self.class_threshold)
        if quality_logits is None or self.rank_by == "class":
            return ranks
        return ranks * F.sigmoid(quality_logits.astype("float32"))

    def _on_the_originals(
        self, corners: list, scores: Tensor, classes: Tensor, im_shape: list, scale_factor: list
    ) -> Candidates:
        """Candidates in pixels of the original images.

        Args:
            corners: x0, y0, x1, y1, each [B, S], in pixels of the network's input.
            scores: [B, S].
            classes: likewise.
            im_shape: height and width, each [B, 1].
            scale_factor: vertical and horizontal, each [B, 1].
        """
        if self.clip == "before":
            corners = _clip(corners, [side - 1.0 for side in im_shape] if self.inclusive else im_shape)
        if self.inclusive:  # IoU is then that of whole pixels
            corners = [*corners[:2], *(corner + 1.0 for corner in corners[2:])]
        vertical, horizontal = scale_factor
        corners = [corner / factor for corner, factor in zip(corners, [horizontal, vertical] * 2)]
        if self.clip == "before":  # what lay wholly in the padding is no box
            scores = scores * _has_area(corners).astype(scores.dtype)
        boxes = paddle.stack(corners, axis=-1)
        shown = corners
        if self.clip == "after":
            shown = _clip(shown, [side / factor for side, factor in zip(im_shape, scale_factor)])
            full = _has_area(shown).astype(scores.dtype)
        if self.inclusive:  # the last pixel, one of the network's input, becomes one of the original image
            shown = [*shown[:2], shown[2] + (1.0 - 1.0 / horizontal), shown[3] + (1.0 - 1.0 / vertical)]
        if self.clip == "after":
            # All sides are 0 or more; what is not there comes to lie far below.
            shown = [paddle.maximum(corner - (1.0 - full) * FAR, paddle.full([1], -1.0)) for corner in shown]
        return Candidates(boxes, boxes if shown is corners else paddle.stack(shown, axis=-1), scores, classes)

    def _nms_attributes(self) -> tuple:
        """Of the operator, in its order: threshold, candidates of a class, boxes kept, IoU, normalised, eta,
        background."""
        limits = self.score_threshold, self.class_top_k, self.keep_top_k, self.nms_threshold
        return (*limits, True, 1.0, -1)


# All of this is written in operations that become one each of an exported program: a `where` or an `expand`
# whose sizes are not known becomes ten. And from the distances on, coordinates see only operations that
# Paddle Inference leaves in float32 when it computes in bfloat16, whose 8 bits are too few for a pixel:
# split, stack, flatten, gather, differences, quotients, comparisons, but not concat, reshape, slices,
# transpositions, sums and products, other than of integers, or with a number.


def _of_levels(grids: list, attribute: str) -> Tensor:
    """[1, L, 1] what each grid has."""
    values = [getattr(grid, attribute) for grid in grids]
    if all(isinstance(value, int) for value in values):
        return paddle.to_tensor(values, dtype="int64").unsqueeze([0, 2])
    return paddle.stack([value.astype("int64") for value in values]).unsqueeze([0, 2])


def _class_and_location(pairs: Tensor, num_classes: int, sizes: Tensor) -> tuple:
    """What pairs [B, L, K] are of: [B, L, K] each. `sizes` [1, L, 1] is how many locations each level has."""
    pairs = paddle.minimum(pairs, num_classes * sizes - 1)  # a level with too few got others behind its own
    where = pairs % sizes
    # By halves: ONNX divides in float32, then rounds down, and these numbers may have more than 24 bits.
    return (pairs - where + sizes // 2) // sizes, where


def _points(grids: list, columns: Tensor, where: Tensor) -> tuple:
    """x, y of the locations `where` [B, L, K] of levels of so many columns [1, L, 1]: [B, L, K] float32."""
    column = where % columns
    row = (where - column) // columns
    x = (2 * column + grids[0].offset) * _of_levels(grids, "step_x")
    y = (2 * row + grids[0].offset) * _of_levels(grids, "step_y")
    return 0.5 * x.astype("float32"), 0.5 * y.astype("float32")


def _gather_maps(maps: list, where: Tensor) -> Tensor:
    """L × [B, N, H_l, W_l] at where [B, L, K] → [B, L, N, K] float32."""
    channels = maps[0].shape[1]
    places = where.unsqueeze(2).tile([1, 1, channels, 1]).flatten(1, 2)
    of_levels = [
        paddle.take_along_axis(level.flatten(2), at, axis=2, broadcast=False).astype("float32")
        for level, at in zip(maps, paddle.split(places, len(maps), axis=1))
    ]
    return paddle.stack(of_levels, axis=1)


def _corners(x: Tensor, y: Tensor, distances: Tensor) -> list:
    """x0, y0, x1, y1, each [B, L·K], that are away from x, y [B, L, K] by distances [B, L, 4, K]."""
    x, y = x.flatten(1), y.flatten(1)
    left, top, right, bottom = (part.flatten(1) for part in paddle.split(distances, 4, axis=2))
    return [x - left, y - top, x - (0.0 - right), y - (0.0 - bottom)]


def _clip(corners: list, limits: list) -> list:
    """x0, y0, x1, y1 cut to a height and a width."""
    height, width = limits
    zero = paddle.zeros([1])
    return [
        paddle.minimum(paddle.maximum(corner, zero), limit)
        for corner, limit in zip(corners, [width, height] * 2)
    ]


def _has_area(corners: list) -> Tensor:
    """Whether there is something between x0, y0 and x1, y1."""
    x0, y0, x1, y1 = corners
    return (x1 > x0) & (y1 > y0)


def _is_known_empty(rows: Tensor) -> bool:
    """Whether there are no rows: with none of them not every version of Paddle can compute.

    How many an exported program will have is not known, and its operators can do it.
    """
    return paddle.in_dynamic_mode() and rows.shape[0] == 0


def _image_of_rows(rows: Tensor, counts: Tensor) -> Tensor:
    """[N] the number of the image that each row is of, where the images have `counts` [B] of them."""
    ends = paddle.cumsum(counts).unsqueeze(0)
    return (paddle.arange(paddle.shape(rows)[0]).unsqueeze(1) >= ends).astype("int32").sum(axis=1)


def _visible_rows(rows: Tensor, counts: Tensor) -> tuple:
    """Rows [N, 6] of whose boxes something was left, and how many of them each of the images has."""
    full = rows[:, 2] >= 0
    image = _image_of_rows(rows, counts)
    of_image = image.unsqueeze(1) == paddle.arange(paddle.shape(counts)[0], dtype=image.dtype).unsqueeze(0)
    counts = (of_image & full.unsqueeze(1)).astype(counts.dtype).sum(axis=0)
    return rows.gather(paddle.nonzero(full).flatten()), counts
