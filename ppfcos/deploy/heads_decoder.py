"""From a head's outputs to boxes, in numpy: what ppfcos/modeling/postprocess.py does in a network.

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

from ppfcos.deploy.bundle import (
    ANCHORS,
    CLASS_LOGITS,
    DISTANCES,
    HEAD_OUTPUTS,
    NCHW,
    QUALITY_LOGITS,
    STRIDES,
    DecodeOptions,
    Heads,
    Level,
)
from ppfcos.errors import BundleError

# The bound is lowered by this much: what it lets through is held against the threshold once more, by its
# score in float32, whose rounding must not have been anticipated.
MARGIN = 1e-3
LEAST_LOGIT = -80.0  # its sigmoid is 0 as good as any, and its exponential does not overflow
FEW = 4096  # values that are looked at one by one in no time
NMS_BLOCK = 128
# Of how many sizes of a level the grids are kept, and the bounds of integers, which take more and belong to
# networks of a fixed size.
GRIDS_KEPT, BOUNDS_KEPT = 64, 4

# Columns of what becomes the answer.
LABEL, SCORE, BOX = 0, 1, slice(2, 6)


class Candidates(NamedTuple):
    """Places and classes of one level that may become boxes.

    Attributes:
        class_logits: [N].
        quality_logits: [N].
        labels: [N] classes.
        boxes: [N, 4] x0, y0, x1, y1 in pixels of the network's input.
    """

    class_logits: np.ndarray
    quality_logits: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


class HeadsDecoder:
    """Decodes the outputs of networks of the kind `heads`. Safe to call from several threads.

    Args:
        heads: which outputs there are, and what they mean.
        settings: what becomes a box.
        num_classes: channels of the class logits; None: any number.
    """

    def __init__(self, heads: Heads, settings: DecodeOptions, num_classes: int | None = None):
        self.settings = settings
        self._levels = [_LevelDecoder(level, heads, settings, num_classes) for level in heads.levels]

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
            BundleError: an output is not of the form that the bundle says, or holds NaN or infinity where
                there may be a box.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            return self._decode(outputs, image_size, im_shape, scale_factor)

    def _decode(
        self,
        outputs: Mapping[str, np.ndarray],
        image_size: tuple[int, int],
        im_shape: np.ndarray,
        scale_factor: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        levels = [decoder.outputs(outputs, len(im_shape)) for decoder in self._levels]
        found = []
        for image, (shape, factor) in enumerate(zip(np.float32(im_shape), np.float32(scale_factor))):
            candidates = [
                decoder.candidates(*(kind[image] for kind in level), image_size)
                for decoder, level in zip(self._levels, levels)
            ]
            found.append(self._suppressed(self._scored(candidates), shape, factor))
        return np.concatenate(found), np.array([len(rows) for rows in found], np.int32)

    def _scored(self, levels: Sequence[Candidates]) -> np.ndarray:
        """[N, 6] label, score and box of the best `pre_nms_top_k` of each level, as far as they count."""
        settings = self.settings
        class_logits, quality_logits, labels, boxes = (np.concatenate(parts) for parts in zip(*levels))
        if np.isnan(class_logits).any() or np.isnan(quality_logits).any():
            raise BundleError("the network's logits hold NaN; export the bundle again")
        class_scores = _sigmoid(class_logits)
        scores = class_scores * _sigmoid(quality_logits)
        ranks = scores if settings.rank_by == "score" else class_scores
        eligible = class_scores > settings.class_threshold
        sizes = [len(level.labels) for level in levels]
        if max(sizes) > settings.pre_nms_top_k:
            eligible &= _best_of_levels(np.where(eligible, ranks, -1), sizes, settings.pre_nms_top_k)
        if settings.sqrt_score:
            scores = np.sqrt(scores)
        keep = np.flatnonzero(eligible & (scores > settings.score_threshold))
        rows = np.empty((len(keep), 6), np.float32)
        rows[:, LABEL] = labels[keep]
        rows[:, SCORE] = scores[keep]
        rows[:, BOX] = boxes[keep]
        return rows

    def _suppressed(self, rows: np.ndarray, im_shape: np.ndarray, scale_factor: np.ndarray) -> np.ndarray:
        """Rows [N, 6] of one image, of the im_shape [2] and scale_factor [2], that are its answer."""
        settings = self.settings
        width_and_height = im_shape[[1, 0, 1, 0]]
        scale = scale_factor[[1, 0, 1, 0]]
        boxes = rows[:, BOX]  # a view: what follows changes the rows
        if settings.clip == "before":
            _clip(boxes, width_and_height - 1 if settings.inclusive else width_and_height)
        if settings.inclusive:  # IoU is then that of whole pixels
            boxes[:, 2:] += 1
        boxes /= scale
        if not np.isfinite(boxes).all():
            raise BundleError("the network's distances hold NaN or infinity; export the bundle again")
        if settings.clip == "before":  # what lay wholly in the padding is no box
            rows = rows[_has_area(boxes)]
        if settings.class_top_k >= 0:
            rows = rows[_best_of_classes(rows[:, SCORE], rows[:, LABEL], settings.class_top_k)]
        rows = rows[suppress(rows, settings.nms_threshold, settings.keep_top_k)]
        if settings.clip == "after":
            _clip(rows[:, BOX], width_and_height / scale)
            rows = rows[_has_area(rows[:, BOX])]
        if settings.inclusive:  # the last pixel, one of the network's input, becomes one of the original
            rows[:, 4:] += 1 - 1 / scale[:2]
        return rows


class _LevelDecoder:
    """Finds the candidates of one level of the pyramid."""

    def __init__(self, level: Level, heads: Heads, settings: DecodeOptions, num_classes: int | None):
        self.level = level
        self.channels = {CLASS_LOGITS: num_classes, DISTANCES: 4, QUALITY_LOGITS: 1}
        self.heads = heads
        self.channels_first = heads.layout == NCHW
        self.scales = {kind: np.array(scales, np.float32) for kind, scales in level.scales.items()}
        # Left and top lie on the other side of a location than right and bottom.
        self.sides = np.float32([-1, -1, 1, 1]) * self.scales.get(DISTANCES, np.float32(1))
        if heads.distances == STRIDES:
            self.sides *= np.float32(level.stride)
        threshold = max(0.0, settings.score_threshold)
        # No factor of a score is above 1: the class's alone must be above the threshold of the product.
        least = max(threshold**2 if settings.sqrt_score else threshold, settings.class_threshold)
        self.bound = _logit(least) - MARGIN
        self._integer_bounds = functools.lru_cache(BOUNDS_KEPT)(self._make_integer_bounds)

    def outputs(self, outputs: Mapping[str, np.ndarray], images: int) -> list[np.ndarray]:
        """Class logits, distances and quality logits of this level among all outputs.

        Raises:
            BundleError: one is missing, or they are not [B, channels, H_l, W_l] or [B, H_l, W_l, channels] of
                one height and width.
        """
        found = [self._output(outputs, kind, images) for kind in HEAD_OUTPUTS]
        sizes = {each.shape[2:] if self.channels_first else each.shape[1:3] for each in found}
        if len(sizes) > 1:
            raise BundleError(
                f"the network's outputs at stride {self.level.stride} differ in height or width; "
                "export the bundle again"
            )
        return found

    def _output(self, outputs: Mapping[str, np.ndarray], kind: str, images: int) -> np.ndarray:
        name = self.level.outputs[kind]
        if name not in outputs:
            raise BundleError(f"the network has no output {name}; export the bundle again")
        values = outputs[name]
        dtype = values.dtype if isinstance(values, np.ndarray) else np.dtype(object)
        if dtype.kind != ("i" if self.scales else "f"):
            form = "integers" if self.scales else "floats"
            raise BundleError(f"the network's output {name} is {dtype}, not {form}; export the bundle again")
        channels = self.channels[kind]
        axis = 1 if self.channels_first else 3
        if (
            values.ndim != 4
            or not values.size
            or values.shape[axis] != (channels or values.shape[axis])
            or len(values) != images
        ):
            raise BundleError(
                f"the network's output {name} is {list(values.shape)}, not "
                f"{self._described(images, channels)}; export the bundle again"
            )
        return values

    def _described(self, images: int, channels: int | None) -> str:
        sides = ["H", "W"]
        sides.insert(0 if self.channels_first else 2, "C" if channels is None else str(channels))
        return f"[{images}, {', '.join(sides)}]"

    def candidates(
        self,
        class_logits: np.ndarray,
        distances: np.ndarray,
        quality_logits: np.ndarray,
        image_size: tuple[int, int],
    ) -> Candidates:
        """What may have a score above the threshold in one image.

        Args:
            class_logits: [C, H_l, W_l] or [H_l, W_l, C].
            distances: [4, H_l, W_l] or [H_l, W_l, 4].
            quality_logits: [1, H_l, W_l] or [H_l, W_l, 1].
            image_size: height and width of the network's input.
        """
        height, width = quality_logits.shape[1:] if self.channels_first else quality_logits.shape[:2]
        logits, quality = class_logits.reshape(-1), quality_logits.reshape(-1)
        positions = _flat_where(self._reaches_bound(logits, height * width))
        if self.channels_first:
            labels, where = np.divmod(positions, height * width)
            sides = distances.reshape(4, -1)[:, where].T
        else:
            where, labels = np.divmod(positions, class_logits.shape[-1])
            sides = distances.reshape(-1, 4).take(where, 0)
        class_values, quality_values = _float32(logits.take(positions)), _float32(quality.take(where))
        if self.scales:
            class_values = class_values * self.scales[CLASS_LOGITS].take(labels)
            quality_values = quality_values * self.scales[QUALITY_LOGITS]
        boxes = self._grid(height, width, image_size).take(where, 0) + _float32(sides) * self.sides
        return Candidates(class_values, quality_values, labels, boxes)

    def _grid(self, height: int, width: int, image_size: tuple[int, int]) -> np.ndarray:
        if self.heads.locations == ANCHORS:
            return anchor_grid(height, width, *image_size)
        return center_grid(height, width, self.level.stride)

    def _reaches_bound(self, logits: np.ndarray, locations: int) -> np.ndarray:
        """[N] of all the level's class logits [N]."""
        if self.scales:
            return logits >= self._integer_bounds(logits.dtype, locations)
        below = _float32(logits) < self.bound  # numpy compares float16 one by one
        return np.logical_not(below, out=below)  # so that NaN is among them, and refused

    def _make_integer_bounds(self, dtype: np.dtype, locations: int) -> np.ndarray:
        """The bound in units of each channel, for every one of the level's class logits, flat."""
        limits = np.iinfo(dtype)
        bounds = np.ceil(self.bound / self.scales[CLASS_LOGITS].astype(np.float64))
        bounds = np.clip(bounds, limits.min, limits.max).astype(dtype)
        return np.repeat(bounds, locations) if self.channels_first else np.tile(bounds, locations)


@functools.lru_cache(maxsize=GRIDS_KEPT)
def center_grid(height: int, width: int, stride: int) -> np.ndarray:
    """[height·width, 4] x, y, x, y of the centres of a level's cells, in pixels; not to be changed."""
    return _grid((np.arange(height) + 0.5) * stride, (np.arange(width) + 0.5) * stride)


@functools.lru_cache(maxsize=GRIDS_KEPT)
def anchor_grid(height: int, width: int, image_height: int, image_width: int) -> np.ndarray:
    """The same for the anchors that torchvision lays, see `modeling.locations.anchor_grid`."""
    return _grid(np.arange(height) * (image_height // height), np.arange(width) * (image_width // width))


def _grid(ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    grid = np.empty((len(ys), len(xs), 4), np.float32)
    grid[..., 0::2] = xs[None, :, None]
    grid[..., 1::2] = ys[:, None, None]
    grid.setflags(write=False)
    return grid.reshape(-1, 4)


def suppress(rows: np.ndarray, threshold: float, most: int) -> np.ndarray:
    """Non-maximum suppression within each class.

    Rows are taken in blocks, the best first. A box that was kept before the block suppresses within it; then
    the block's own boxes do. It is over as soon as there are enough.

    Args:
        rows: [N, 6] label, score, x0, y0, x1, y1.
        threshold: IoU above which the lower score goes.
        most: boxes kept of all classes; negative: all.

    Returns:
        Positions of the kept rows, the best first.
    """
    order = np.argsort(-rows[:, SCORE], kind="stable")
    most = most if most >= 0 else len(order)
    columns = np.ascontiguousarray(rows.T)
    kept = np.empty(0, np.int64)
    for start in range(0, len(order), NMS_BLOCK):
        block = order[start : start + NMS_BLOCK]
        if len(kept):
            block = block[~_overlap(columns[:, kept], columns[:, block], threshold).any(axis=0)]
        own = columns[:, block]
        kept = np.concatenate([kept, block[_greedy(_overlap(own, own, threshold))]])
        if len(kept) >= most:
            return kept[:most]
    return kept


def _overlap(ones: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """[N, M] whether of columns [6, N] and [6, M] two are of one class with an IoU above the threshold."""
    labels, _, x0, y0, x1, y1 = ones[:, :, None]
    other_labels, _, other_x0, other_y0, other_x1, other_y1 = others
    widths = np.minimum(x1, other_x1)
    widths -= np.maximum(x0, other_x0)
    np.maximum(widths, 0, out=widths)  # one side is enough: a product with a negative one is below any area
    inner = np.minimum(y1, other_y1)
    inner -= np.maximum(y0, other_y0)
    inner *= widths
    union = (x1 - x0) * (y1 - y0) + (other_x1 - other_x0) * (other_y1 - other_y0)
    union -= inner
    union *= np.float32(threshold)
    overlap = inner > union
    overlap &= labels == other_labels
    return overlap


def _greedy(overlap: np.ndarray) -> np.ndarray:
    """[N] whether each box is kept, where overlap [N, N] says which would suppress which, the best first."""
    keep = [True] * len(overlap)
    suppressors, suppressed = np.divmod(_flat_where(overlap.reshape(-1)), max(1, len(overlap)))
    later = suppressors < suppressed
    for i, j in zip(suppressors[later].tolist(), suppressed[later].tolist()):
        if keep[i]:
            keep[j] = False
    return np.array(keep, bool)


def _best_of_levels(ranks: np.ndarray, sizes: Sequence[int], most: int) -> np.ndarray:
    """[N] whether each is one of its level's `most` best; the levels follow one another."""
    best = np.ones(len(ranks), bool)
    start = 0
    for size in sizes:
        if size > most:
            order = np.argpartition(-ranks[start : start + size], most)
            best[start + order[most:]] = False
        start += size
    return best


def _best_of_classes(scores: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Positions of the `most` best of each class."""
    order = np.lexsort((-scores, labels))
    sorted_labels = labels[order]
    first = np.searchsorted(sorted_labels, sorted_labels, side="left")
    return order[np.arange(len(order)) - first < most]


def _clip(boxes: np.ndarray, limits: np.ndarray) -> None:
    """Cut boxes [N, 4] to width, height, width, height [4], in place."""
    np.maximum(boxes, 0, out=boxes)
    np.minimum(boxes, limits, out=boxes)


def _has_area(boxes: np.ndarray) -> np.ndarray:
    """[N] whether boxes [N, 4] are wider and higher than 0; negative distances turn boxes inside out."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False)


def _flat_where(hits: np.ndarray) -> np.ndarray:
    """Positions at which hits [N] are true, where these are few: eight are looked at as one word first."""
    if len(hits) < FEW or len(hits) % 8:
        return np.flatnonzero(hits)
    words = np.flatnonzero(hits.view(np.uint64) != 0)
    rows, columns = np.nonzero(hits.reshape(-1, 8).take(words, 0))
    return words.take(rows) * 8 + columns


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.maximum(logits, LEAST_LOGIT)))


def _logit(score: float) -> float:
    """The logit of a score from 0 to 1."""
    if score <= 0:
        return -math.inf
    return math.inf if score >= 1 else math.log(score / (1 - score))
