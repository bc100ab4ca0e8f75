"""From the head's answers to boxes, in training's evaluation and in an exported program alike."""

from __future__ import annotations

from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from ppdet.core.workspace import register, serializable

from ppfcos.boxes import box_areas
from ppfcos.modeling.head import HeadOutputs


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
            shown = candidates.shown.reshape([-1, 4]).gather(where.flatten())
            rows = paddle.concat([rows[:, :2], shown], axis=1)
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
            self._level_candidates(*level)
            for level in zip(outputs.class_logits, outputs.distances, quality_logits, locations)
        ]
        boxes, scores, classes = (paddle.concat(parts, axis=1) for parts in zip(*levels))
        if self.clip == "before":
            boxes = _clip(boxes, im_shape - 1.0 if self.inclusive else im_shape)
        if self.inclusive:  # IoU is then that of whole pixels
            boxes = boxes + paddle.to_tensor([0.0, 0.0, 1.0, 1.0])
        boxes = boxes / _box_scale(scale_factor)
        if self.clip == "before":  # what lay wholly in the padding is no box
            scores = scores * (box_areas(boxes) > 0).astype(scores.dtype)
        return Candidates(boxes, self._shown(boxes, im_shape, scale_factor), scores, classes)

    def _shown(self, boxes: Tensor, im_shape: Tensor, scale_factor: Tensor) -> Tensor:
        """The boxes [B, S, 4] as they are given out: cut, and -1 where nothing is left then; widened."""
        shown, full = boxes, None
        if self.clip == "after":
            shown = _clip(boxes, im_shape / scale_factor)
            full = box_areas(shown) > 0
        if self.inclusive:  # the last pixel, one of the network's input, becomes one of the original image
            missing = 1.0 - 1.0 / _box_scale(scale_factor)
            shown = shown + missing * paddle.to_tensor([0.0, 0.0, 1.0, 1.0])
        if full is not None:
            full = full.unsqueeze(-1).astype(shown.dtype)
            shown = shown * full + (full - 1.0)
        return shown

    def _nms_attributes(self) -> tuple:
        """Of the operator, in its order: threshold, candidates of a class, boxes kept, IoU, normalised, eta,
        background."""
        limits = self.score_threshold, self.class_top_k, self.keep_top_k, self.nms_threshold
        return (*limits, True, 1.0, -1)

    def _level_candidates(
        self, class_logits: Tensor, distances: Tensor, quality_logits: Tensor | None, locations: Tensor
    ) -> tuple:
        """The best `pre_nms_top_k` of a level: boxes [B, K, 4], scores [B, K], classes [B, K].

        A location outside the best K by its best class cannot own one of the best K candidates, so that only
        K locations need more than the largest of their C logits.
        """
        num_classes = class_logits.shape[1]
        logits = class_logits.reshape([0, num_classes, -1])
        if quality_logits is None:
            quality = paddle.ones_like(logits[:, 0], dtype="float32")
        else:
            quality = F.sigmoid(quality_logits.reshape([0, -1]).astype("float32"))
        best = self._rank(F.sigmoid(logits.max(axis=1).astype("float32")), quality)
        where, found = _best_locations(best, self.pre_nms_top_k)
        quality = _at(quality, where)
        scores = self._rank(F.sigmoid(_gather_locations(logits, where)), quality.unsqueeze(1))
        scores = (scores * found.unsqueeze(1)).reshape([0, -1])
        scores, pair = paddle.topk(scores, self.pre_nms_top_k, axis=1)
        place = pair % self.pre_nms_top_k
        where = _at(where, place)
        distances = _gather_locations(distances.reshape([0, 4, -1]), where).transpose([0, 2, 1])
        points = locations.gather(where.flatten()).reshape([-1, self.pre_nms_top_k, 2])
        boxes = paddle.concat([points - distances[..., :2], points + distances[..., 2:]], axis=-1)
        if self.rank_by == "class":
            scores = scores * _at(quality, place)
        if self.sqrt_score:
            scores = paddle.sqrt(scores.clip(min=0.0))
        return boxes, scores, pair // self.pre_nms_top_k

    def _rank(self, class_scores: Tensor, quality: Tensor) -> Tensor:
        """What candidates are ordered by; 0 for those whose class is not above its threshold."""
        rank = class_scores * quality if self.rank_by == "score" else class_scores
        if self.class_threshold <= 0:
            return rank
        return rank * (class_scores > self.class_threshold).astype(rank.dtype)


# What follows is written in operations that become one each of an exported program: a `where` or an `expand`
# whose sizes are not known becomes ten.


def _best_locations(scores: Tensor, count: int) -> tuple:
    """Where the `count` highest of each row [B, N] are, [B, count], and 1 there; where N is smaller, 0 and 0.

    The filling keeps `count` a constant of an exported program, whose N is not known before it runs.
    """
    # Not by F.pad: Paddle Inference with oneDNN then writes beyond its memory.
    filling = (0.0 * scores[:, :1] - 1.0).tile([1, count])
    values, indices = paddle.topk(paddle.concat([scores, filling], axis=1), count, axis=1)
    found = values >= 0
    # Rows that fill up must not become candidates a second time, whatever location they name.
    return indices * found.astype(indices.dtype), found.astype(values.dtype)


def _at(values: Tensor, where: Tensor) -> Tensor:
    """values [B, N] at where [B, Q] → [B, Q]."""
    return paddle.take_along_axis(values, where, axis=1, broadcast=False)


def _gather_locations(maps: Tensor, where: Tensor) -> Tensor:
    """maps [B, K, N] at where [B, Q] → [B, K, Q] float32."""
    where = where.unsqueeze(1).tile([1, maps.shape[1], 1])
    return paddle.take_along_axis(maps, where, axis=2, broadcast=False).astype("float32")


def _clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes [B, K, 4] cut to the height and width in limits [B, 2]."""
    height, width = limits[:, :1].unsqueeze(-1), limits[:, 1:].unsqueeze(-1)
    return paddle.minimum(boxes.clip(min=0.0), paddle.concat([width, height, width, height], axis=-1))


def _box_scale(scale_factor: Tensor) -> Tensor:
    """Vertical and horizontal factors [B, 2] as factors of x0, y0, x1, y1 [B, 1, 4]."""
    vertical, horizontal = scale_factor[:, :1], scale_factor[:, 1:]
    return paddle.concat([horizontal, vertical, horizontal, vertical], axis=-1).unsqueeze(1)


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
