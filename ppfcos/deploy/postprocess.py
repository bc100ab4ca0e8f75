"""From a head's outputs to boxes, in numpy: what ppfcos/modeling/decode.py does in a network.

Nearly all of a head's outputs is background, so that nothing is computed for it: the score threshold becomes
a bound of the class logits (of the integers themselves, where the outputs are integers), one comparison finds
the few that are above it, and all arithmetic is done for these alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ppfcos.boxes import box_areas
from ppfcos.deploy.bundle import (
    ANCHORS,
    CLASS_LOGITS,
    DISTANCES,
    HEAD_OUTPUTS,
    NCHW,
    QUALITY_LOGITS,
    STRIDES,
    DecodeSettings,
    Heads,
    Level,
)
from ppfcos.errors import BundleError

# The bound is lowered by this much: what it lets through is held against the threshold once more, by its
# score in float32, whose rounding must not have been anticipated.
MARGIN = 1e-3
# Logits of a float16 or float32 sigmoid that is 0 or 1; beyond them no exponential overflows.
LARGEST_LOGIT = 80.0
NMS_BLOCK = 256
SIZES_KEPT = 64


class Candidates(NamedTuple):
    """Places and classes that may become boxes.

    Attributes:
        scores: [N] of the boxes.
        labels: [N] classes.
        boxes: [N, 4] x0, y0, x1, y1.
    """

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray

    def take(self, which: np.ndarray) -> Candidates:
        """Those at positions, or where a mask is true."""
        return Candidates(*(values[which] for values in self))


NO_CANDIDATES = Candidates(np.empty(0, np.float32), np.empty(0, np.int64), np.empty((0, 4), np.float32))


class HeadsDecoder:
    """Decodes the outputs of networks of the kind `heads`. Safe to call from several threads.

    Args:
        heads: which outputs there are, and what they mean.
        settings: what becomes a box.
    """

    def __init__(self, heads: Heads, settings: DecodeSettings):
        self.settings = settings
        self._levels = [_LevelDecoder(level, heads, settings) for level in heads.levels]

    def __call__(
        self,
        outputs: Mapping[str, np.ndarray],
        image_size: tuple[int, int],
        im_shape: np.ndarray,
        scale_factor: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes of a batch.

        Args:
            outputs: three arrays a level, [B, channels, H_l, W_l] or [B, H_l, W_l, channels]: floats, or
                integers where the level has scales.
            image_size: height and width of the network's input.
            im_shape: [B, 2] height and width of each image within the input, without padding.
            scale_factor: [B, 2] what the image was resized by, vertically and horizontally.

        Returns:
            [N, 6] float32: label, score, x0, y0, x1, y1 in pixels of the original images, image after image,
            the best first; and [B] int32, the number of each image.

        Raises:
            BundleError: an output is not of the form that the bundle says.
        """
        levels = [decoder.outputs(outputs) for decoder in self._levels]
        rows = []
        for image, (shape, factor) in enumerate(zip(np.float32(im_shape), np.float32(scale_factor))):
            found = [
                decoder.candidates(*(kind[image] for kind in level), image_size)
                for decoder, level in zip(self._levels, levels)
            ]
            rows.append(self._rows(_joined(found), shape, factor))
        return np.concatenate(rows), np.array([len(each) for each in rows], np.int32)

    def _rows(self, found: Candidates, im_shape: np.ndarray, scale_factor: np.ndarray) -> np.ndarray:
        """[N, 6] of one image with the im_shape [2] and the scale_factor [2]."""
        settings = self.settings
        boxes, scale = found.boxes, np.tile(scale_factor[::-1], 2)
        if settings.clip == "before":
            boxes = _clipped(boxes, im_shape - 1 if settings.inclusive else im_shape)
        if settings.inclusive:  # IoU is then that of whole pixels
            boxes = boxes + np.float32([0, 0, 1, 1])
        found = found._replace(boxes=boxes / scale)
        if settings.clip == "before":  # what lay wholly in the padding is no box
            found = found.take(box_areas(found.boxes) > 0)
        if settings.class_top_k >= 0:
            found = found.take(_best_of_classes(found.scores, found.labels, settings.class_top_k))
        found = found.take(
            suppress(found.boxes, found.scores, found.labels, settings.nms_threshold, settings.keep_top_k)
        )
        if settings.clip == "after":
            found = found._replace(boxes=_clipped(found.boxes, im_shape / scale_factor))
            found = found.take(box_areas(found.boxes) > 0)
        boxes = found.boxes
        if settings.inclusive:  # the last pixel, one of the network's input, becomes one of the original
            boxes = boxes + np.concatenate([np.zeros(2, np.float32), 1 - 1 / scale[:2]])
        return np.concatenate([found.labels[:, None], found.scores[:, None], boxes], 1, dtype=np.float32)


class _LevelDecoder:
    """Finds the candidates of one level of the pyramid."""

    def __init__(self, level: Level, heads: Heads, settings: DecodeSettings):
        self.level = level
        self.heads = heads
        self.settings = settings
        self.channels_first = heads.layout == NCHW
        self.scales = {kind: np.array(scales, np.float32) for kind, scales in level.scales.items()}
        threshold = max(0.0, settings.score_threshold)
        # No factor of a score is above 1: the class's alone must be above the threshold of the product.
        least = max(threshold**2 if settings.sqrt_score else threshold, settings.class_threshold)
        self.bound = _logit(least) - MARGIN
        self._integer_bounds = functools.lru_cache(SIZES_KEPT)(self._make_integer_bounds)

    def outputs(self, outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Class logits, distances and quality logits of this level among all outputs."""
        return [self._output(outputs, kind) for kind in HEAD_OUTPUTS]

    def _output(self, outputs: Mapping[str, np.ndarray], kind: str) -> np.ndarray:
        name = self.level.outputs[kind]
        if name not in outputs:
            raise BundleError(f"the network has no output {name}; export the bundle again")
        values = outputs[name]
        if values.dtype.kind != ("i" if self.scales else "f"):
            form = "integers" if self.scales else "floats"
            raise BundleError(
                f"the network's output {name} is {values.dtype}, not {form}; export the bundle again"
            )
        return values

    def candidates(
        self,
        class_logits: np.ndarray,
        distances: np.ndarray,
        quality_logits: np.ndarray,
        image_size: tuple[int, int],
    ) -> Candidates:
        """The best `pre_nms_top_k` of one image whose scores are above the thresholds.

        Args:
            class_logits: [C, H_l, W_l] or [H_l, W_l, C].
            distances: [4, H_l, W_l] or [H_l, W_l, 4].
            quality_logits: [1, H_l, W_l] or [H_l, W_l, 1].
            image_size: height and width of the network's input.
        """
        settings = self.settings
        values, where, labels = self._above_bound(class_logits)
        if not len(values):
            return NO_CANDIDATES
        class_scores = _sigmoid(self._dequantized(values, CLASS_LOGITS, labels))
        quality = self._dequantized(quality_logits.reshape(-1)[where], QUALITY_LOGITS, 0)
        scores = class_scores * _sigmoid(quality)
        ranks = scores if settings.rank_by == "score" else class_scores
        if settings.sqrt_score:
            scores = np.sqrt(scores)
        keep = np.flatnonzero(class_scores > settings.class_threshold)
        if len(keep) > settings.pre_nms_top_k:
            keep = keep[np.argpartition(-ranks[keep], settings.pre_nms_top_k - 1)[: settings.pre_nms_top_k]]
        keep = keep[scores[keep] > settings.score_threshold]
        return Candidates(scores[keep], labels[keep], self._boxes(distances, where[keep], image_size))

    def _above_bound(self, class_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[N] class logits that reach the bound, their locations and their classes."""
        flat = class_logits.reshape(-1)
        classes = class_logits.shape[0 if self.channels_first else -1]
        locations = flat.size // classes
        if self.scales:
            hits = flat >= self._integer_bounds(flat.dtype, locations)
        elif flat.dtype == np.float32:
            hits = flat >= self.bound
        else:  # numpy compares float16 one by one
            hits = flat.astype(np.float32) >= self.bound
        positions = _flat_where(hits)
        if self.channels_first:
            labels, where = np.divmod(positions, locations)
        else:
            where, labels = np.divmod(positions, classes)
        return flat[positions], where, labels

    def _make_integer_bounds(self, dtype: np.dtype, locations: int) -> np.ndarray:
        """The bound in units of each channel, for every one of the level's class logits, flat."""
        limits = np.iinfo(dtype)
        bounds = np.ceil(self.bound / self.scales[CLASS_LOGITS].astype(np.float64))
        bounds = np.clip(bounds, limits.min, limits.max).astype(dtype)
        return np.repeat(bounds, locations) if self.channels_first else np.tile(bounds, locations)

    def _boxes(self, distances: np.ndarray, where: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
        """[N, 4] boxes in pixels of the network's input at locations [N]."""
        if self.channels_first:
            size, values = distances.shape[1:], distances.reshape(4, -1)[:, where].T
        else:
            size, values = distances.shape[:2], distances.reshape(-1, 4)[where]
        values = self._dequantized(values, DISTANCES, slice(None))
        if self.heads.distances == STRIDES:
            values = values * np.float32(self.level.stride)
        if self.heads.locations == ANCHORS:
            boxes = anchor_grid(*size, *image_size)[where]
        else:
            boxes = center_grid(*size, self.level.stride)[where]
        boxes[:, :2] -= values[:, :2]
        boxes[:, 2:] += values[:, 2:]
        return boxes

    def _dequantized(self, values: np.ndarray, kind: str, channels: object) -> np.ndarray:
        """Values as float32; integers times the scales of their channels."""
        values = values.astype(np.float32)
        return values * self.scales[kind][channels] if self.scales else values


@functools.lru_cache(maxsize=SIZES_KEPT)
def center_grid(height: int, width: int, stride: int) -> np.ndarray:
    """[height·width, 4] x, y, x, y of the centres of a level's cells, in pixels; not to be changed."""
    return _grid((np.arange(height) + 0.5) * stride, (np.arange(width) + 0.5) * stride)


@functools.lru_cache(maxsize=SIZES_KEPT)
def anchor_grid(height: int, width: int, image_height: int, image_width: int) -> np.ndarray:
    """The same for the anchors that torchvision lays, see `modeling.locations.anchor_locations`."""
    return _grid(np.arange(height) * (image_height // height), np.arange(width) * (image_width // width))


def _grid(ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    grid = np.empty((len(ys), len(xs), 4), np.float32)
    grid[..., 0::2] = xs[None, :, None]
    grid[..., 1::2] = ys[:, None, None]
    grid.setflags(write=False)
    return grid.reshape(-1, 4)


def suppress(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float, most: int
) -> np.ndarray:
    """Non-maximum suppression within each class.

    Candidates are taken in blocks, the best first. A box that was kept before the block suppresses within it;
    then the block's own boxes do. It is over as soon as there are enough.

    Args:
        boxes: [N, 4] x0, y0, x1, y1.
        scores: [N].
        labels: [N] classes.
        threshold: IoU above which the lower score goes.
        most: boxes kept of all classes; negative: all.

    Returns:
        Positions of the kept boxes, the best first.
    """
    order = np.argsort(-scores, kind="stable")
    most = most if most >= 0 else len(order)
    kept = np.empty(0, np.int64)
    for start in range(0, len(order), NMS_BLOCK):
        block = order[start : start + NMS_BLOCK]
        if len(kept):
            block = block[~_overlap(boxes, labels, kept, block, threshold).any(axis=0)]
        kept = np.concatenate([kept, block[_greedy(_overlap(boxes, labels, block, block, threshold))]])
        if len(kept) >= most:
            return kept[:most]
    return kept


def _overlap(
    boxes: np.ndarray, labels: np.ndarray, ones: np.ndarray, others: np.ndarray, threshold: float
) -> np.ndarray:
    """[ones, others] whether two boxes are of one class and their IoU is above the threshold."""
    first, second = boxes[ones], boxes[others]
    inner = np.ones(1, np.float32)
    for low, high in ((0, 2), (1, 3)):
        side = np.minimum(first[:, None, high], second[:, high])
        side -= np.maximum(first[:, None, low], second[:, low])
        inner = inner * np.maximum(side, 0)
    union = box_areas(first)[:, None] + box_areas(second) - inner
    return (inner > np.float32(threshold) * union) & (labels[ones][:, None] == labels[others])


def _greedy(overlap: np.ndarray) -> np.ndarray:
    """[N] whether each box is kept, where overlap [N, N] says which would suppress which, the best first."""
    keep = [True] * len(overlap)
    suppressors, suppressed = np.nonzero(np.triu(overlap, 1))
    for i, j in zip(suppressors.tolist(), suppressed.tolist()):
        if keep[i]:
            keep[j] = False
    return np.array(keep, bool)


def _best_of_classes(scores: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Positions of the `most` best of each class."""
    order = np.lexsort((-scores, labels))
    sorted_labels = labels[order]
    first = np.searchsorted(sorted_labels, sorted_labels, side="left")
    return order[np.arange(len(order)) - first < most]


def _joined(levels: Sequence[Candidates]) -> Candidates:
    return Candidates(*(np.concatenate(parts) for parts in zip(*levels)))


def _clipped(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] cut to height and width [2]."""
    return np.minimum(np.maximum(boxes, 0), np.tile(size[::-1], 2))


def _flat_where(hits: np.ndarray) -> np.ndarray:
    """Positions at which hits [N] are true, where these are few: eight are looked at as one word first."""
    whole = len(hits) // 8 * 8
    words = np.flatnonzero(hits[:whole].view(np.uint64) != 0)
    rows, columns = np.nonzero(hits[:whole].reshape(-1, 8)[words])
    rest = np.flatnonzero(hits[whole:]) + whole
    return np.concatenate([words[rows] * 8 + columns, rest])


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)))


def _logit(score: float) -> float:
    """The logit of a score from 0 to 1."""
    if score <= 0:
        return -math.inf
    return math.inf if score >= 1 else math.log(score / (1 - score))
