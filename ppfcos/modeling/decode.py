"""From the head's answers to boxes, in training's evaluation and in an exported program alike."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from ppdet.core.workspace import register, serializable

from ppfcos.boxes import box_areas
from ppfcos.modeling.head import HeadOutputs


@register
@serializable
class PPFCOSDecode:
    """Scores, candidates, boxes, and non-maximum suppression by class.

    The score of a class at a location is sigmoid(class)·sigmoid(quality), or its square root; of a head that
    predicts no quality, sigmoid(class) takes the place of the product.

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
        num_classes = outputs.class_logits[0].shape[1]
        candidates = self.candidates(outputs, locations, im_shape, scale_factor)
        kept, _, counts = self.suppress(*candidates, num_classes)
        if self.clip == "after":
            kept, counts = clipped_rows(kept, counts, im_shape / scale_factor)
        return _widened(kept, counts, scale_factor) if self.inclusive else kept, counts

    def candidates(
        self, outputs: HeadOutputs, locations: list, im_shape: Tensor, scale_factor: Tensor
    ) -> tuple:
        """Boxes before the suppression, arguments as of `__call__`.

        Args:
            outputs: of the head.
            locations: L × [H_l·W_l, 2].
            im_shape: [B, 2].
            scale_factor: [B, 2].

        Returns:
            boxes [B, K, 4] x0, y0, x1, y1 in pixels of the original images (with `inclusive`, the far corners
            are a pixel of the network's input further); scores [B, K], not all of them above
            `score_threshold`; classes [B, K].
        """
        levels = zip(
            outputs.class_logits,
            outputs.distances,
            outputs.quality_logits or [None] * len(locations),
            locations,
        )
        candidates = [self._level_candidates(*level) for level in levels]
        boxes, scores, classes = (paddle.concat(parts, axis=1) for parts in zip(*candidates))
        if self.clip == "before":
            boxes = _clip(boxes, im_shape - 1.0 if self.inclusive else im_shape)
        if self.inclusive:  # IoU is then that of whole pixels
            boxes = boxes + paddle.to_tensor([0.0, 0.0, 1.0, 1.0])
        boxes = boxes / _box_scale(scale_factor)
        if self.clip == "before":  # what lay wholly in the padding is no box
            scores = paddle.where(box_areas(boxes) > 0, scores, paddle.zeros_like(scores))
        return boxes, scores, classes

    def suppress(self, boxes: Tensor, scores: Tensor, classes: Tensor, num_classes: int) -> tuple:
        """Non-maximum suppression by class.

        Args:
            boxes: [B, K, 4] x0, y0, x1, y1.
            scores: [B, K].
            classes: [B, K].
            num_classes: C.

        Returns:
            [N, 6] and [B] as `__call__`; between them [N, 1] the row of each box in the joined [B·K].
        """
        # The operator wants [B, C, K] scores; a candidate stands in the row of its class, and is 0 in the
        # others.
        per_class = F.one_hot(classes, num_classes).transpose([0, 2, 1]) * scores.unsqueeze(1)
        return paddle._C_ops.multiclass_nms3(boxes, per_class, None, *self._nms_attributes())

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
        logits = class_logits.flatten(2)
        if quality_logits is None:
            quality = paddle.ones_like(logits[:, 0].astype("float32"))
        else:
            quality = F.sigmoid(quality_logits.flatten(2).squeeze(1).astype("float32"))
        best = self._rank(F.sigmoid(logits.max(axis=1).astype("float32")), quality)
        best, where = _top_k(best, self.pre_nms_top_k)
        logits = _gather_locations(logits.transpose([0, 2, 1]), where).astype("float32")
        quality = paddle.take_along_axis(quality, where, axis=1)
        scores = self._rank(F.sigmoid(logits), quality.unsqueeze(-1))
        # Rows that _top_k added to fill up repeat a location: they must not become candidates a second time.
        scores = paddle.where((best >= 0).unsqueeze(-1), scores, paddle.zeros_like(scores))
        num_classes = scores.shape[-1]
        scores, pair = _top_k(scores.flatten(1), self.pre_nms_top_k)
        row = pair // num_classes
        distances = _gather_locations(distances.flatten(2).transpose([0, 2, 1]), where).astype("float32")
        distances = _gather_locations(distances, row)
        points = locations.gather(paddle.take_along_axis(where, row, axis=1).flatten())
        points = points.reshape([-1, self.pre_nms_top_k, 2])
        boxes = paddle.concat([points - distances[..., :2], points + distances[..., 2:]], axis=-1)
        if self.rank_by == "class":
            scores = scores * paddle.take_along_axis(quality, row, axis=1)
        if self.sqrt_score:
            scores = paddle.sqrt(scores.clip(min=0.0))
        return boxes, scores, pair % num_classes

    def _rank(self, class_scores: Tensor, quality: Tensor) -> Tensor:
        """What candidates are ordered by; 0 for those whose class is not above its threshold."""
        rank = class_scores * quality if self.rank_by == "score" else class_scores
        if self.class_threshold <= 0:
            return rank
        return paddle.where(class_scores > self.class_threshold, rank, paddle.zeros_like(rank))


def _top_k(scores: Tensor, count: int) -> tuple:
    """The `count` highest of each row [B, N], and where: [B, count] each.

    Where N is smaller, the rest is −1 at 0.

    The filling keeps `count` a constant of an exported program, whose N is not known before it runs.
    """
    batch = paddle.shape(scores)[0] if scores.shape[0] == -1 else scores.shape[0]
    filled = paddle.concat([scores, paddle.full([batch, count], -1.0)], axis=1)
    values, indices = paddle.topk(filled, count, axis=1)
    return values, paddle.where(values < 0, paddle.zeros_like(indices), indices)


def _gather_locations(rows: Tensor, where: Tensor) -> Tensor:
    """rows [B, N, K] at where [B, Q] → [B, Q, K]."""
    return paddle.take_along_axis(rows, where.unsqueeze(-1), axis=1, broadcast=True)


def _clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes [B, K, 4] cut to the height and width in limits [B, 2]."""
    height, width = limits[:, :1].unsqueeze(-1), limits[:, 1:].unsqueeze(-1)
    return paddle.minimum(boxes.clip(min=0.0), paddle.concat([width, height, width, height], axis=-1))


def _box_scale(scale_factor: Tensor) -> Tensor:
    """Vertical and horizontal factors [B, 2] as factors of x0, y0, x1, y1 [B, 1, 4]."""
    vertical, horizontal = scale_factor[:, :1], scale_factor[:, 1:]
    return paddle.concat([horizontal, vertical, horizontal, vertical], axis=-1).unsqueeze(1)


def _image_of_rows(rows: Tensor, counts: Tensor) -> Tensor:
    """[N] the number of the image that each row is of, where the images have `counts` [B] of them."""
    ends = paddle.cumsum(counts).unsqueeze(0)
    return (paddle.arange(paddle.shape(rows)[0]).unsqueeze(1) >= ends).astype("int32").sum(axis=1)


def clipped_rows(rows: Tensor, counts: Tensor, sizes: Tensor) -> tuple:
    """Cut boxes to their images, and drop those that are left without area.

    Args:
        rows: [N, 6] label, score, x0, y0, x1, y1, image after image.
        counts: [B] the number of each image.
        sizes: [B, 2] the images' heights and widths.

    Returns:
        Rows and counts as they came.
    """
    image = _image_of_rows(rows, counts)
    limits = sizes.gather(image).flip(1)
    boxes = paddle.minimum(rows[:, 2:].clip(min=0.0), paddle.concat([limits, limits], axis=1))
    full = box_areas(boxes) > 0
    of_image = image.unsqueeze(1) == paddle.arange(paddle.shape(counts)[0], dtype=image.dtype).unsqueeze(0)
    counts = (of_image & full.unsqueeze(1)).astype(counts.dtype).sum(axis=0)
    return paddle.concat([rows[:, :2], boxes], axis=1).gather(paddle.nonzero(full).flatten()), counts


def _widened(rows: Tensor, counts: Tensor, scale_factor: Tensor) -> Tensor:
    """Rows [N, 6] whose last pixel, one of the network's input, becomes one of the original image."""
    missing = 1.0 - 1.0 / scale_factor.gather(_image_of_rows(rows, counts))
    return paddle.concat([rows[:, :4], rows[:, 4:5] + missing[:, 1:], rows[:, 5:] + missing[:, :1]], axis=-1)
