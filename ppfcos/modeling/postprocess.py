"""Post-processing: from the outputs of the head to boxes, in evaluation and in an exported program.

The code avoids operations that an exported program with unknown sizes expands to many, such as `expand` and
`where` with broadcasting. Coordinates only pass operations that Paddle Inference keeps in float32 in its bf16
mode, whose 8 bits are too few for a pixel: differences, quotients, `stack`, `split` and comparisons, but not
sums and `concat`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from ppdet.core.workspace import register, serializable
from ppdet.modeling.ops import multiclass_nms

from ppfcos.modeling.head import HeadOutputs
from ppfcos.modeling.layers import check_choice


class Candidates(NamedTuple):
    """The S = L·pre_nms_top_k candidates before NMS of each image.

    Attributes:
        boxes: [B, S, 4] in pixels of the original images, as NMS compares them.
        output_boxes: [B, S, 4] as they are returned: the same tensor if there is no difference. -1 if they
            are clipped after NMS and nothing is left.
        scores: [B, S], 0 for invalid candidates.
        labels: [B, S].
    """

    boxes: Tensor
    output_boxes: Tensor
    scores: Tensor
    labels: Tensor


@register
@serializable
@dataclass(eq=False)
class PPFCOSDecode:
    """Scores, top-k candidates of each level, boxes, and NMS by class.

    The score of a class at a point is sigmoid(class)·sigmoid(quality), or its square root. Without a quality
    branch it is sigmoid(class).

    Args:
        pre_nms_top_k: candidates (pairs of point and class) of each level.
        score_threshold: the score must be above it.
        nms_threshold: IoU above which NMS removes the box with the lower score.
        keep_top_k: maximum number of boxes of an image.
        sqrt_score: take the square root of the score. It keeps the order, but changes what the threshold
            means.
        class_threshold: sigmoid(class) must be above it.
        rank_by: what the top-k of a level go by: `score`, or `class` for sigmoid(class).
        class_top_k: maximum number of candidates of a class, over all levels, that enter NMS; -1: no limit.
        clip: when boxes are clipped to the image, and empty ones are removed: `before` NMS, `after` it, or
            `never`.
        inclusive: a box includes the pixels of both corners, as in early descendants of Detectron: it is
            clipped to the image size minus 1, and its sides are 1 longer than the difference of its corners.

    Raises:
        ValueError: `rank_by` or `clip` has an unknown value.
    """

    pre_nms_top_k: int = 1000
    score_threshold: float = 0.025
    nms_threshold: float = 0.6
    keep_top_k: int = 100
    sqrt_score: bool = False
    class_threshold: float = 0.0
    rank_by: str = "score"
    class_top_k: int = -1
    clip: str = "before"
    inclusive: bool = False

    def __post_init__(self) -> None:
        check_choice("PPFCOSDecode", "rank_by", self.rank_by, ("score", "class"))
        check_choice("PPFCOSDecode", "clip", self.clip, ("before", "after", "never"))

    def __call__(self, outputs: HeadOutputs, grids: list, im_shape: Tensor, scale_factor: Tensor) -> tuple:
        """Return the boxes of a batch.

        Args:
            outputs: of the head.
            grids: L × PointGrid.
            im_shape: [B, 2] height and width of each image in the network input, without padding.
            scale_factor: [B, 2] vertical and horizontal resize factors.

        Returns:
            [N, 6] label, score, x0, y0, x1, y1 in pixels of the original images, ordered by image, class and
            descending score; and the number of boxes of each image [B].
        """
        candidates = self.candidates(outputs, grids, im_shape, scale_factor)
        rows, _, counts = self.nms(candidates, outputs.class_logits[0].shape[1])
        if self.clip == "after" and not _is_known_empty(rows):
            return _remove_empty(rows, counts)
        return rows, counts

    def candidates(
        self, outputs: HeadOutputs, grids: list, im_shape: Tensor, scale_factor: Tensor
    ) -> Candidates:
        """Return the candidates before NMS. The arguments are those of a call."""
        levels = zip(outputs.class_logits, outputs.distances, outputs.quality_logits or [None] * len(grids))
        selected = [self._select(*level, grid) for level, grid in zip(levels, grids)]
        scores, labels, *corners = (paddle.stack(parts, axis=1).flatten(1) for parts in zip(*selected))
        if self.sqrt_score:
            scores = paddle.sqrt(scores)
        height, width = paddle.split(im_shape, 2, axis=1)
        if self.clip == "before":
            corners = _clip(corners, *((height - 1.0, width - 1.0) if self.inclusive else (height, width)))
        if self.inclusive:
            corners = [*corners[:2], *(corner + 1.0 for corner in corners[2:])]
        vertical, horizontal = paddle.split(scale_factor, 2, axis=1)
        corners = [corner / factor for corner, factor in zip(corners, [horizontal, vertical] * 2)]
        if self.clip == "before":  # boxes in the padding
            scores = scores * _has_area(corners).astype(scores.dtype)
        boxes = paddle.stack(corners, axis=-1)
        output_boxes = self._output_boxes(
            corners, height / vertical, width / horizontal, vertical, horizontal
        )
        return Candidates(boxes, boxes if output_boxes is None else output_boxes, scores, labels)

    def _select(
        self, class_logits: Tensor, distances: Tensor, quality_logits: Tensor | None, grid: tuple
    ) -> tuple:
        """Return scores, labels, x0, y0, x1, y1 of the pre_nms_top_k candidates of a level, [B, K] each."""
        scores = F.sigmoid(class_logits.flatten(2).astype("float32"))
        if self.class_threshold > 0:
            scores = F.thresholded_relu(scores, self.class_threshold)
        quality = None if quality_logits is None else F.sigmoid(quality_logits.flatten(2).astype("float32"))
        if quality is not None and self.rank_by == "score":
            scores = scores * quality
        height, width = _as_int64(grid.height), _as_int64(grid.width)
        scores, labels, points = top_k_pairs(scores, self.pre_nms_top_k, height * width)
        if quality is not None and self.rank_by == "class":
            scores = scores * _gather(quality, points).flatten(1)
        # (column + offset / 2)·step, in integers for as long as possible.
        x = ((2 * (points % width) + grid.offset) * _as_int64(grid.step_x)).astype("float32") / 2.0
        y = ((2 * (points // width) + grid.offset) * _as_int64(grid.step_y)).astype("float32") / 2.0
        distances = _gather(distances.flatten(2).astype("float32"), points)
        left, top, right, bottom = (side.flatten(1) for side in paddle.split(distances, 4, axis=1))
        # Differences instead of sums, see above.
        return scores, labels, x - left, y - top, x - (-right), y - (-bottom)

    def _output_boxes(
        self, corners: list, height: Tensor, width: Tensor, vertical: Tensor, horizontal: Tensor
    ) -> Tensor | None:
        """Return what `clip: after` and `inclusive` make of boxes in the original images; None: no change."""
        if self.clip != "after" and not self.inclusive:
            return None
        has_area = None
        if self.clip == "after":
            corners = _clip(corners, height, width)
            has_area = _has_area(corners)
        if self.inclusive:  # the last pixel of the network input becomes one of the original image
            x0, y0, x1, y1 = corners
            corners = [x0, y0, x1 - (1.0 / horizontal - 1.0), y1 - (1.0 / vertical - 1.0)]
        if self.clip == "after":
            corners = [paddle.where(has_area, each, paddle.full_like(each, -1.0)) for each in corners]
        return paddle.stack(corners, axis=-1)

    def nms(self, candidates: Candidates, num_classes: int) -> tuple:
        """Apply NMS by class.

        Returns:
            Rows and counts as of a call, except that boxes that `clip: after` leaves empty are still there;
            between them the indices of the rows in the flattened [B·S] candidates, [N, 1].
        """
        # The operator takes [B, C, S] scores. Those of the other classes are 0.
        one_hot = F.one_hot(candidates.labels, num_classes)
        class_scores = one_hot.transpose([0, 2, 1]) * candidates.scores.unsqueeze(1)
        if not paddle.in_dynamic_mode() and not paddle.framework.use_pir_api():  # export by Paddle 2.6
            rows, counts, indices = multiclass_nms(
                candidates.boxes,
                class_scores,
                self.score_threshold,
                self.class_top_k,
                self.keep_top_k,
                self.nms_threshold,
                return_index=True,
            )
        else:
            # Private: Paddle 3 cannot export PaddleDetection's multiclass_nms. The last arguments are: boxes
            # are normalized (have no extra pixel), eta of an adaptive threshold, background label.
            rows, indices, counts = paddle._C_ops.multiclass_nms3(
                candidates.boxes,
                class_scores,
                None,
                self.score_threshold,
                self.class_top_k,
                self.keep_top_k,
                self.nms_threshold,
                True,
                1.0,
                -1,
            )
        if candidates.output_boxes is not candidates.boxes and not _is_known_empty(rows):
            boxes = candidates.output_boxes.flatten(0, 1).gather(indices.flatten())
            columns = [*paddle.split(rows, 6, axis=1)[:2], *paddle.split(boxes, 4, axis=1)]
            rows = paddle.stack([column.flatten() for column in columns], axis=1)
        return rows, indices, counts


def top_k_pairs(scores: Tensor, k: int, num_points: int | Tensor) -> tuple:
    """Return the k best pairs of point and class.

    Two stages give the exact result in less time than one: the points of the k best pairs are among the k
    points with the best scores.

    Args:
        scores: [B, C, N], not negative.
        k: number of pairs.
        num_points: N, an integer or a scalar tensor.

    Returns:
        Scores, labels and points, [B, k] each. A level with too few points is padded with scores of 0.
    """
    if not (isinstance(num_points, int) and num_points >= k):
        scores = F.pad(scores, [0, k], data_format="NCL")
    _, points = paddle.topk(scores.max(axis=1), k, axis=-1)
    scores, pairs = paddle.topk(_gather(scores, points).flatten(1), k, axis=-1)
    labels = pairs // k
    points = paddle.take_along_axis(points, pairs - labels * k, axis=1, broadcast=False)
    return scores, labels, paddle.minimum(points, paddle.zeros_like(points) + (num_points - 1))


def _gather(maps: Tensor, points: Tensor) -> Tensor:
    """[B, N, P] at points [B, K] → [B, N, K]."""
    indices = points.unsqueeze(1).tile([1, maps.shape[1], 1])
    return paddle.take_along_axis(maps, indices, axis=2, broadcast=False)


def _as_int64(size: int | Tensor) -> int | Tensor:
    """Sizes of an exported program are tensors, unknown until it runs."""
    return size if isinstance(size, int) else size.astype("int64")


def _clip(corners: list, height: Tensor, width: Tensor) -> list:
    zero = paddle.zeros([1])
    return [
        paddle.minimum(paddle.maximum(corner, zero), limit)
        for corner, limit in zip(corners, [width, height] * 2)
    ]


def _has_area(corners: list) -> Tensor:
    x0, y0, x1, y1 = corners
    return (x1 > x0) & (y1 > y0)


def _is_known_empty(rows: Tensor) -> bool:
    """Whether there are no rows, which some versions of Paddle cannot compute with in dynamic mode."""
    return paddle.in_dynamic_mode() and rows.shape[0] == 0


def _remove_empty(rows: Tensor, counts: Tensor) -> tuple:
    """Remove rows [N, 6] whose boxes are -1, and count the others of each image [B]."""
    is_kept = rows[:, 2] >= 0
    ends = paddle.cumsum(counts).unsqueeze(0)
    image = (paddle.arange(paddle.shape(rows)[0]).unsqueeze(1) >= ends).astype("int32").sum(axis=1)
    of_image = image.unsqueeze(1) == paddle.arange(paddle.shape(counts)[0], dtype=image.dtype).unsqueeze(0)
    counts = (of_image & is_kept.unsqueeze(1)).astype(counts.dtype).sum(axis=0)
    return rows.gather(paddle.nonzero(is_kept).flatten()), counts
