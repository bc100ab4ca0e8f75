"""Decode the outputs of the head in NumPy, as ppfcos/modeling/postprocess.py does within a network.

Nearly all outputs are background, so nothing is computed for them: the score threshold becomes a bound on the
class logits (on the integers themselves, if the outputs are integers), one comparison selects the few values
above it, and all arithmetic is done for these alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ppfcos.boxes import pairwise_iou
from ppfcos.decode_options import DecodeOptions
from ppfcos.deploy.bundle import (
    ANCHORS,
    CLASS_LOGITS,
    DISTANCES,
    HEAD_OUTPUTS,
    NCHW,
    QUALITY_LOGITS,
    STRIDES,
    Heads,
    Level,
)
from ppfcos.errors import BundleError

# The bound is lower by this much: the float32 score of what passes is compared with the threshold again.
MARGIN = 1e-3
MIN_LOGIT = -80.0  # its sigmoid is practically 0, and its exponential does not overflow
PLAIN_SEARCH_SIZE = 4096  # arrays up to this size are searched value by value
NMS_BLOCK = 128
# Sizes of a level for which the points are cached, and the integer bounds, which take more memory and belong
# to networks of a fixed size.
CACHED_POINTS, CACHED_BOUNDS = 64, 4

LABEL, SCORE, BOX = 0, 1, slice(2, 6)  # columns of the detections


class LevelCandidates(NamedTuple):
    """Candidates of one level: points and classes that may exceed the threshold.

    Attributes:
        class_logits: [N].
        quality_logits: [N].
        labels: [N].
        boxes: [N, 4] in pixels of the network's input.
    """

    class_logits: np.ndarray
    quality_logits: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


class HeadsDecoder:
    """Decodes the outputs of networks of kind `heads`. Thread-safe.

    Args:
        heads: the network's outputs.
        options: decode options.
        num_classes: channels of the class logits; None: any number.
    """

    def __init__(self, heads: Heads, options: DecodeOptions, num_classes: int | None = None):
        self.options = options
        self._levels = [_LevelDecoder(level, heads, options, num_classes) for level in heads.levels]

    def __call__(
        self,
        outputs: Mapping[str, np.ndarray],
        image_size: tuple[int, int],
        im_shape: np.ndarray,
        scale_factor: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode a batch.

        Args:
            outputs: three arrays per level, [B, channels, H_l, W_l] or [B, H_l, W_l, channels]: floats, or
                integers if the level has scales.
            image_size: height and width of the network's input.
            im_shape: [B, 2] height and width of each image within the input, without padding.
            scale_factor: [B, 2] vertical and horizontal scale of each image.

        Returns:
            [N, 6] float32: label, score, x0, y0, x1, y1 in pixels of the original images, image after image,
            best first; and [B] int32, the number of detections in each image.

        Raises:
            BundleError: an output is not as the bundle describes it, or a candidate is NaN or infinite.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are an error below
            levels = [decoder.outputs(outputs, len(im_shape)) for decoder in self._levels]
            detections = []
            for image, (shape, scale) in enumerate(zip(np.float32(im_shape), np.float32(scale_factor))):
                candidates = [
                    decoder.candidates(*(maps[image] for maps in level), image_size)
                    for decoder, level in zip(self._levels, levels)
                ]
                detections.append(self._nms(self._top_candidates(candidates), shape, scale))
        return np.concatenate(detections), np.array([len(rows) for rows in detections], np.int32)

    def _top_candidates(self, levels: Sequence[LevelCandidates]) -> np.ndarray:
        """Rows [N, 6] of the `pre_nms_top_k` candidates of each level that are above the thresholds."""
        options = self.options
        class_logits, quality_logits, labels, boxes = (np.concatenate(parts) for parts in zip(*levels))
        if np.isnan(class_logits).any() or np.isnan(quality_logits).any():
            raise BundleError("the network's logits hold NaN; export the bundle again")
        class_scores = _sigmoid(class_logits)
        scores = class_scores * _sigmoid(quality_logits)
        ranked_by = scores if options.rank_by == "score" else class_scores
        keep = class_scores > options.class_threshold
        sizes = [len(level.labels) for level in levels]
        if max(sizes) > options.pre_nms_top_k:
            keep &= _is_top_of_level(np.where(keep, ranked_by, -1), sizes, options.pre_nms_top_k)
        if options.sqrt_score:
            scores = np.sqrt(scores)
        keep = np.flatnonzero(keep & (scores > options.score_threshold))
        rows = np.empty((len(keep), 6), np.float32)
        rows[:, LABEL] = labels[keep]
        rows[:, SCORE] = scores[keep]
        rows[:, BOX] = boxes[keep]
        return rows

    def _nms(self, rows: np.ndarray, im_shape: np.ndarray, scale_factor: np.ndarray) -> np.ndarray:
        """Detections [N, 6] of one image from its candidates [K, 6], which are changed in place."""
        options = self.options
        width_and_height = im_shape[[1, 0, 1, 0]]
        scale = scale_factor[[1, 0, 1, 0]]
        boxes = rows[:, BOX]
        if options.clip == "before":
            _clip(boxes, width_and_height - 1 if options.inclusive else width_and_height)
        if options.inclusive:  # the IoU is that of whole pixels
            boxes[:, 2:] += 1
        boxes /= scale
        if not np.isfinite(boxes).all():
            raise BundleError("the network's distances hold NaN or infinity; export the bundle again")
        if options.clip == "before":  # drop boxes within the padding
            rows = rows[_has_area(boxes)]
        if options.class_top_k >= 0:
            rows = rows[_top_of_classes(rows[:, SCORE], rows[:, LABEL], options.class_top_k)]
        rows = rows[nms(rows, options.nms_threshold, options.keep_top_k)]
        if options.clip == "after":
            _clip(rows[:, BOX], width_and_height / scale)
            rows = rows[_has_area(rows[:, BOX])]
        if options.inclusive:  # the last pixel of the input becomes one pixel of the original image
            rows[:, 4:] += 1 - 1 / scale[:2]
        return rows


class _LevelDecoder:
    """Selects the candidates of one level."""

    def __init__(self, level: Level, heads: Heads, options: DecodeOptions, num_classes: int | None):
        self.level = level
        self.channels = {CLASS_LOGITS: num_classes, DISTANCES: 4, QUALITY_LOGITS: 1}
        self.locations = heads.locations
        self.channels_first = heads.layout == NCHW
        self.scales = {kind: np.array(scales, np.float32) for kind, scales in level.scales.items()}
        # From a point, the left and top sides lie in the negative direction.
        self.directions = np.float32([-1, -1, 1, 1]) * self.scales.get(DISTANCES, np.float32(1))
        if heads.distances == STRIDES:
            self.directions *= np.float32(level.stride)
        threshold = max(0.0, options.score_threshold)
        # No factor of a score exceeds 1, so the class score alone must exceed the threshold of the product.
        least = max(threshold**2 if options.sqrt_score else threshold, options.class_threshold)
        self.bound = _logit(least) - MARGIN
        self._integer_bounds = functools.lru_cache(CACHED_BOUNDS)(self._make_integer_bounds)

    def outputs(self, outputs: Mapping[str, np.ndarray], batch: int) -> list[np.ndarray]:
        """Checked class logits, distances and quality logits of this level."""
        maps = [self._output(outputs, kind, batch) for kind in HEAD_OUTPUTS]
        if len({each.shape[2:] if self.channels_first else each.shape[1:3] for each in maps}) > 1:
            raise BundleError(
                f"the network's outputs at stride {self.level.stride} differ in height or width; "
                "export the bundle again"
            )
        return maps

    def _output(self, outputs: Mapping[str, np.ndarray], kind: str, batch: int) -> np.ndarray:
        name = self.level.outputs[kind]
        if name not in outputs:
            raise BundleError(f"the network has no output {name}; export the bundle again")
        values = outputs[name]
        dtype = values.dtype if isinstance(values, np.ndarray) else np.dtype(object)
        if dtype.kind != ("i" if self.scales else "f"):
            expected = "integers" if self.scales else "floats"
            raise BundleError(
                f"the network's output {name} is {dtype}, not {expected}; export the bundle again"
            )
        channels = "C" if self.channels[kind] is None else self.channels[kind]
        expected = [batch, channels, "H", "W"] if self.channels_first else [batch, "H", "W", channels]
        if (
            values.ndim != 4
            or not values.size
            or any(isinstance(size, int) and size != found for size, found in zip(expected, values.shape))
        ):
            raise BundleError(
                f"the network's output {name} is {list(values.shape)}, not "
                f"[{', '.join(map(str, expected))}]; export the bundle again"
            )
        return values

    def candidates(
        self,
        class_logits: np.ndarray,
        distances: np.ndarray,
        quality_logits: np.ndarray,
        image_size: tuple[int, int],
    ) -> LevelCandidates:
        """Candidates of one image.

        Args:
            class_logits: [C, H_l, W_l] or [H_l, W_l, C].
            distances: [4, H_l, W_l] or [H_l, W_l, 4].
            quality_logits: [1, H_l, W_l] or [H_l, W_l, 1].
            image_size: height and width of the network's input.
        """
        height, width = quality_logits.shape[1:] if self.channels_first else quality_logits.shape[:2]
        logits, quality = class_logits.reshape(-1), quality_logits.reshape(-1)
        positions = _flat_nonzero(self._exceeds_bound(logits, height * width))
        if self.channels_first:
            labels, points = np.divmod(positions, height * width)
            sides = distances.reshape(4, -1)[:, points].T
        else:
            points, labels = np.divmod(positions, class_logits.shape[-1])
            sides = distances.reshape(-1, 4).take(points, 0)
        class_values, quality_values = _float32(logits.take(positions)), _float32(quality.take(points))
        if self.scales:
            class_values = class_values * self.scales[CLASS_LOGITS].take(labels)
            quality_values = quality_values * self.scales[QUALITY_LOGITS]
        if self.locations == ANCHORS:
            grid = anchor_grid(height, width, *image_size)
        else:
            grid = center_grid(height, width, self.level.stride)
        boxes = grid.take(points, 0) + _float32(sides) * self.directions
        return LevelCandidates(class_values, quality_values, labels, boxes)

    def _exceeds_bound(self, logits: np.ndarray, num_points: int) -> np.ndarray:
        """Mask of the flat class logits of the level."""
        if self.scales:
            return logits >= self._integer_bounds(logits.dtype, num_points)
        below = _float32(logits) < self.bound  # NumPy is slow at comparing float16
        return np.logical_not(below, out=below)  # NaN included, which is an error later

    def _make_integer_bounds(self, dtype: np.dtype, num_points: int) -> np.ndarray:
        """The bound in units of each channel, for every flat class logit of the level."""
        limits = np.iinfo(dtype)
        bounds = np.ceil(self.bound / self.scales[CLASS_LOGITS].astype(np.float64))
        bounds = np.clip(bounds, limits.min, limits.max).astype(dtype)
        return np.repeat(bounds, num_points) if self.channels_first else np.tile(bounds, num_points)


@functools.lru_cache(maxsize=CACHED_POINTS)
def center_grid(height: int, width: int, stride: int) -> np.ndarray:
    """Cell centers of a level, x, y, x, y in pixels: [height·width, 4], read-only."""
    return _grid((np.arange(height) + 0.5) * stride, (np.arange(width) + 0.5) * stride)


@functools.lru_cache(maxsize=CACHED_POINTS)
def anchor_grid(height: int, width: int, image_height: int, image_width: int) -> np.ndarray:
    """The same for torchvision's anchors (`ppfcos.modeling.fcos.anchor_grid`)."""
    return _grid(np.arange(height) * (image_height // height), np.arange(width) * (image_width // width))


def _grid(ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    grid = np.empty((len(ys), len(xs), 4), np.float32)
    grid[..., 0::2] = xs[None, :, None]
    grid[..., 1::2] = ys[:, None, None]
    grid.setflags(write=False)
    return grid.reshape(-1, 4)


def nms(rows: np.ndarray, threshold: float, keep_top_k: int) -> np.ndarray:
    """Non-maximum suppression per class, in blocks of descending scores.

    The kept boxes suppress within the next block, then the boxes of the block suppress one another; it ends
    as soon as there are `keep_top_k` (negative: all).

    Args:
        rows: [N, 6] label, score, x0, y0, x1, y1.
        threshold: IoU above which the box of the lower score is dropped.
        keep_top_k: maximum number of boxes over all classes.

    Returns:
        Positions of the kept rows, best first.
    """
    order = np.argsort(-rows[:, SCORE], kind="stable")
    limit = keep_top_k if keep_top_k >= 0 else len(order)
    kept = np.empty(0, np.int64)
    for start in range(0, len(order), NMS_BLOCK):
        block = order[start : start + NMS_BLOCK]
        if len(kept):
            block = block[~_overlaps(rows[kept], rows[block], threshold).any(axis=0)]
        own = rows[block]
        kept = np.concatenate([kept, block[_greedy(_overlaps(own, own, threshold))]])
        if len(kept) >= limit:
            return kept[:limit]
    return kept


def _overlaps(rows: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """[N, M] whether rows [N, 6] and [M, 6] are of one class with an IoU above the threshold."""
    overlaps = pairwise_iou(rows[:, BOX], others[:, BOX]) > np.float32(threshold)
    overlaps &= rows[:, LABEL, None] == others[:, LABEL]
    return overlaps


def _greedy(overlaps: np.ndarray) -> np.ndarray:
    """[N] whether each box is kept, given which pairs [N, N] overlap, best first."""
    keep = [True] * len(overlaps)
    suppressors, suppressed = np.divmod(_flat_nonzero(overlaps.reshape(-1)), max(1, len(overlaps)))
    later = suppressors < suppressed
    for i, j in zip(suppressors[later].tolist(), suppressed[later].tolist()):
        if keep[i]:
            keep[j] = False
    return np.array(keep, bool)


def _is_top_of_level(scores: np.ndarray, sizes: Sequence[int], top_k: int) -> np.ndarray:
    """[N] whether each score is among the top-k of its level; levels of these sizes are concatenated."""
    is_top = np.ones(len(scores), bool)
    start = 0
    for size in sizes:
        if size > top_k:
            order = np.argpartition(-scores[start : start + size], top_k)
            is_top[start + order[top_k:]] = False
        start += size
    return is_top


def _top_of_classes(scores: np.ndarray, labels: np.ndarray, top_k: int) -> np.ndarray:
    """Positions of the top-k of each class."""
    order = np.lexsort((-scores, labels))
    sorted_labels = labels[order]
    first = np.searchsorted(sorted_labels, sorted_labels, side="left")
    return order[np.arange(len(order)) - first < top_k]


def _clip(boxes: np.ndarray, limits: np.ndarray) -> None:
    """Clip boxes [N, 4] to width, height, width, height [4], in place."""
    np.maximum(boxes, 0, out=boxes)
    np.minimum(boxes, limits, out=boxes)


def _has_area(boxes: np.ndarray) -> np.ndarray:
    """[N] whether boxes [N, 4] have positive width and height; negative distances invert boxes."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False)


def _flat_nonzero(mask: np.ndarray) -> np.ndarray:
    """Positions at which a sparse mask [N] is true; eight values are tested as one word first."""
    if len(mask) < PLAIN_SEARCH_SIZE or len(mask) % 8:
        return np.flatnonzero(mask)
    words = np.flatnonzero(mask.view(np.uint64) != 0)
    rows, columns = np.nonzero(mask.reshape(-1, 8).take(words, 0))
    return words.take(rows) * 8 + columns


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.maximum(logits, MIN_LOGIT)))


def _logit(score: float) -> float:
    if score <= 0:
        return -math.inf
    return math.inf if score >= 1 else math.log(score / (1 - score))
