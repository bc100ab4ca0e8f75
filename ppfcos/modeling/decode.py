"""From the head's answers to boxes, in training's evaluation and in an exported program alike."""

from __future__ import annotations

from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from ppdet.core.workspace import register, serializable

from ppfcos.modeling.head import HeadOutputs

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

    def __call__(
        self, outputs: HeadOutputs, locations: list, im_shape: Tensor, scale_factor: Tensor
    ) -> tuple:
        """Boxes of a batch.

        Args:
            outputs: of the head.
            locations: L × [H_l·W_l, 2] x, y in pixels of the network's input.
            im_shape: [B, 2] height and width of each image within the input, without padding.
            scale_factor: [B, 2] what the image was resized by, vertically and horizontally.

        Returns:
            [N, 6] label, score, x0, y0, x1, y1 in pixels of the original images, image after image, within an
            image class after class, within a class the best first; and [B] the number of each image.
        """
        candidates = self.candidates(outputs, locations, im_shape, scale_factor)
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
        one_hot = F.one_hot(candidates.classes, num_classes)
        per_class = one_hot.transpose([0, 2, 1]) * candidates.scores.unsqueeze(1)
        rows, where, counts = paddle._C_ops.multiclass_nms3(
            candidates.boxes, per_class, None, *self._nms_attributes()
        )
        if candidates.shown is not candidates.boxes and not _is_known_empty(rows):
            shown = candidates.shown.flatten(0, 1).gather(where.flatten())
            columns = [*paddle.split(rows, 6, axis=1)[:2], *paddle.split(shown, 4, axis=1)]
            rows = paddle.stack([column.flatten() for column in columns], axis=1)
        return rows, where, counts

    def candidates(
        self, outputs: HeadOutputs, locations: list, im_shape: Tensor, scale_factor: Tensor
    ) -> Candidates:
        """All that happens before the suppression.

        Args:
            outputs: as in a call.
            locations: likewise.
            im_shape: likewise.
            scale_factor: likewise.

        Returns:
            S = L·pre_nms_top_k candidates of each image.
        """
        quality_logits = outputs.quality_logits or [None] * len(locations)
        levels = [
            self._best_of_level(*level)
            for level in zip(outputs.class_logits, outputs.distances, quality_logits, locations)
        ]
        logits, quality, ranks, distances, points = (paddle.stack(parts, axis=1) for parts in zip(*levels))
        scores, pair = self._best_pairs(logits, quality, ranks)
        place = pair % self.pre_nms_top_k
        if self.rank_by == "class":
            scores = scores * _at(quality, place)
        if self.sqrt_score:
            scores = paddle.sqrt(paddle.maximum(scores, paddle.zeros([1])))
        sides = _gather_locations(_sides(points, distances), place)
        corners = [side.flatten(1) for side in paddle.split(sides, 4, axis=2)]
        return self._on_the_originals(
            corners,
            scores.flatten(1),
            (pair // self.pre_nms_top_k).flatten(1),
            paddle.split(im_shape, 2, axis=1),
            paddle.split(scale_factor, 2, axis=1),
        )

    def _best_of_level(
        self, class_logits: Tensor, distances: Tensor, quality_logits: Tensor | None, locations: Tensor
    ) -> tuple:
        """The K = `pre_nms_top_k` best locations of a level by their best class.

        A location outside the best K by its best class cannot own one of the best K candidates, so that only
        K locations need more than the largest of their C logits.

        Returns:
            Class logits [B, C, K], quality [B, K], what they are ranked by [B, K], below 0 where there is no
            location, distances [B, 4, K], and x and y [B, K, 2].
        """
        logits = class_logits.flatten(2)
        if quality_logits is None:
            quality = paddle.ones_like(logits[:, 0], dtype="float32")
        else:
            quality = F.sigmoid(quality_logits.flatten(1).astype("float32"))
        ranks = self._rank(F.sigmoid(logits.max(axis=1).astype("float32")), quality)
        where, ranks = _best_locations(ranks, self.pre_nms_top_k)
        distances = _gather_locations(distances.flatten(2), where)
        points = paddle.gather_nd(locations, where.unsqueeze(-1))
        return _gather_locations(logits, where), _at(quality, where), ranks, distances, points

    def _best_pairs(self, logits: Tensor, quality: Tensor, ranks: Tensor) -> tuple:
        """The K best pairs of a class and a location of each level.

        Args:
            logits: [B, L, C, K].
            quality: [B, L, K].
            ranks: [B, L, K], below 0 where the location fills up, and may be a candidate already.

        Returns:
            [B, L, K] what the pairs are ranked by, and their numbers: class·K + location.
        """
        found = (ranks >= 0).astype(quality.dtype)
        scores = self._rank(F.sigmoid(logits), quality.unsqueeze(2)) * found.unsqueeze(2)
        return paddle.topk(scores.flatten(2), self.pre_nms_top_k, axis=2)

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

    def _rank(self, class_scores: Tensor, quality: Tensor) -> Tensor:
        """What candidates are ordered by; 0 for those whose class is not above its threshold."""
        rank = class_scores * quality if self.rank_by == "score" else class_scores
        if self.class_threshold <= 0:
            return rank
        return rank * (class_scores > self.class_threshold).astype(rank.dtype)


# All of this is written in operations that become one each of an exported program: a `where` or an `expand`
# whose sizes are not known becomes ten. And from the distances on, coordinates see only operations that
# Paddle Inference leaves in float32 when it computes in bfloat16, whose 8 bits are too few for a pixel:
# split, stack, flatten, gather, differences, quotients, comparisons, but not concat, reshape, slices,
# transpositions, sums and products.


def _best_locations(scores: Tensor, count: int) -> tuple:
    """Where the `count` highest of each row [B, N] are, and these; where N is smaller, 0 and -1.

    The filling keeps `count` a constant of an exported program, whose N is not known before it runs.
    """
    # Not by F.pad: Paddle Inference with oneDNN then writes beyond its memory.
    filling = (0.0 * scores[:, :1] - 1.0).tile([1, count])
    values, indices = paddle.topk(paddle.concat([scores, filling], axis=1), count, axis=1)
    return indices * (values >= 0).astype(indices.dtype), values


def _at(values: Tensor, where: Tensor) -> Tensor:
    """values [..., N] at where [..., Q] → [..., Q]."""
    return paddle.take_along_axis(values, where, axis=-1, broadcast=False)


def _gather_locations(maps: Tensor, where: Tensor) -> Tensor:
    """maps [..., K, N] at where [..., Q] → [..., K, Q] float32."""
    repeats = [1] * (maps.ndim - 2) + [maps.shape[-2], 1]
    return _at(maps, where.unsqueeze(-2).tile(repeats)).astype("float32")


def _sides(points: Tensor, distances: Tensor) -> Tensor:
    """x0, y0, x1, y1 [B, L, 4, K] that are away from points [B, L, K, 2] by distances [B, L, 4, K]."""
    x, y = (part.flatten(2) for part in paddle.split(points, 2, axis=3))
    left, top, right, bottom = (part.flatten(2) for part in paddle.split(distances, 4, axis=2))
    return paddle.stack([x - left, y - top, x - (0.0 - right), y - (0.0 - bottom)], axis=2)


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
