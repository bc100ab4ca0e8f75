"""Test-time augmentation (TTA): several scales and flips of an image, merged by one NMS.

Sources: the authors' `bbox_aug.py` (github.com/tianzhi0549/FCOS), which merges the candidates of all passes
    in
one NMS; ATSS's `bbox_aug_vote.py` (github.com/sfzhang15/ATSS) for the range of box sizes of a pass; Gidaris
and Komodakis (ICCV 2015), section 5, for box voting.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import paddle
from paddle import nn

from ppfcos.boxes import box_areas
from ppfcos.config.keys import NESTED_KEYS
from ppfcos.data.samples import pad_images
from ppfcos.data.transforms.pipeline import pad_stride
from ppfcos.data.transforms.uint8 import UInt8Resize
from ppfcos.errors import ConfigError
from ppfcos.modeling.postprocess import Candidates

logger = logging.getLogger(__name__)

KEY = "tta"
READER_TRANSFORMS = ["Decode", "Resize", "Permute"]


def tta_config(cfg: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """Return the configuration for the reader: with `tta`, a copy without Resize, since TTAModel resizes.

    Raises:
        ConfigError: with `tta`, the reader has other transforms.
    """
    if cfg.get(KEY) is None:
        return cfg
    reader = cfg[section]
    _resize_of(reader, section)
    kept = [entry for entry in reader["sample_transforms"] if "Resize" not in entry]
    return {**cfg, section: {**reader, "sample_transforms": kept}}


def tta_model(model: nn.Layer, cfg: Mapping[str, Any], section: str) -> nn.Layer:
    """Return the model itself, or a TTAModel for the images of `tta_config` if the configuration has `tta`.

    Raises:
        ConfigError: `tta` contradicts itself or the reader.
    """
    if cfg.get(KEY) is None:
        return model
    options = {key: plain.default for key, plain in NESTED_KEYS[KEY].items()}
    options.update(cfg[KEY])
    resize = _resize_of(cfg[section], section)
    wrapper = TTAModel(
        model,
        stride=pad_stride(cfg[section], section),
        interp=resize.get("interp", cv2.INTER_LINEAR),
        rounding=resize.get("rounding", "none"),
        **options,
    )
    logger.info("test-time augmentation: %d passes per image, %s", wrapper.passes, options["merge"])
    return wrapper


def _resize_of(reader: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """The arguments of a reader's Resize."""
    transforms = reader.get("sample_transforms") or []
    if [name for entry in transforms for name in entry] != READER_TRANSFORMS:
        raise ConfigError(
            f"{KEY} resizes the images itself: {section}.sample_transforms must be "
            f"{', '.join(READER_TRANSFORMS)} and nothing else; or leave {KEY} out: -o {KEY}=null"
        )
    return transforms[1]["Resize"] or {}


class TTAModel(nn.Layer):
    """Wraps a model: runs it on several versions of an image and merges the detections.

    Args:
        model: a PPFCOS; its post-processing has thresholds and limits.
        stride: divides the sides of the network's inputs.
        interp: OpenCV's number of the interpolation.
        target_size: of each pass, as for PaddleDetection's Resize with `keep_ratio`: shorter side, limit of
            the longer side.
        flip: also run on each image mirrored horizontally.
        merge: `nms`, or `vote`: a box that NMS keeps becomes the mean, weighted by scores, of all boxes of
            its class with an IoU of at least `vote_iou`.
        vote_iou: from 0 to 1.
        size_ranges: for each of `target_size`, the range of the square root of a box's area, in pixels of the
            resized image, in which boxes count; None: all count.
        rounding: as of the reader's Resize.

    Attributes:
        passes: per image.

    Raises:
        ConfigError: `size_ranges` and `target_size` differ in length.
    """

    def __init__(
        self,
        model: nn.Layer,
        stride: int,
        interp: int,
        target_size: Sequence[Sequence[int]],
        flip: bool,
        merge: str,
        vote_iou: float,
        size_ranges: Sequence[Sequence[float]] | None,
        rounding: str = "none",
    ):
        super().__init__()
        if size_ranges is not None and len(size_ranges) != len(target_size):
            raise ConfigError(
                f"{KEY}.size_ranges has {len(size_ranges)} ranges, and {KEY}.target_size "
                f"{len(target_size)} sizes: each size needs its range"
            )
        self.model = model
        self._stride = stride
        self._resizes = [UInt8Resize(list(size), True, interp, rounding) for size in target_size]
        self._ranges = size_ranges or [None] * len(target_size)
        self._flips = (False, True) if flip else (False,)
        self._vote_iou = vote_iou if merge == "vote" else None
        self.passes = len(self._resizes) * len(self._flips)

    def forward(self, batch: dict) -> dict:
        """Detect.

        Args:
            batch: `image` [B, 3, H, W] RGB from 0 to 255, not resized, and `im_shape` [B, 2], height and
                width of each image without padding.

        Returns:
            `bbox` [N, 6] and `bbox_num` [B], as PPFCOS returns them.
        """
        images = _unpad(batch)
        passes = [
            found for view in zip(self._resizes, self._ranges) for found in self._run_passes(images, *view)
        ]
        merged = [self._merge(Candidates(*map(np.concatenate, zip(*image)))) for image in zip(*passes)]
        return {
            "bbox": paddle.to_tensor(np.concatenate(merged)),
            "bbox_num": paddle.to_tensor([len(rows) for rows in merged], dtype="int32"),
        }

    def _run_passes(
        self, images: list[np.ndarray], resize: UInt8Resize, size_range: Sequence[float] | None
    ) -> Iterator[list[Candidates]]:
        """Yield the candidates of all images at one size, as they are and flipped."""
        samples = [resize.apply({"image": image}) for image in images]
        scales = [sample["scale_factor"] for sample in samples]
        for mirrored in self._flips:
            found = self._candidates(samples, mirrored)
            if mirrored:
                found = [_flip_back(each, image.shape[1]) for each, image in zip(found, images)]
            if size_range is not None:
                found = [
                    _select(each, _is_in_range(each, scale, size_range)) for each, scale in zip(found, scales)
                ]
            yield found

    def _candidates(self, samples: list[dict], mirrored: bool) -> list[Candidates]:
        """Candidates above the score threshold, [K, ...] arrays of each image."""
        pixels = [cv2.flip(sample["image"], 1) if mirrored else sample["image"] for sample in samples]
        padded = pad_images([image.transpose(2, 0, 1) for image in pixels], self._stride)
        batch = {
            "image": paddle.to_tensor(padded),
            "im_shape": paddle.to_tensor(np.stack([sample["im_shape"] for sample in samples])),
            "scale_factor": paddle.to_tensor(np.stack([sample["scale_factor"] for sample in samples])),
        }
        found = (
            Candidates(*image) for image in zip(*(part.numpy() for part in self.model.candidates(batch)))
        )
        return [_select(image, image.scores > self.model.decode.score_threshold) for image in found]

    def _merge(self, candidates: Candidates) -> np.ndarray:
        """[N, 6] label, score, x0, y0, x1, y1 of one image."""
        if not len(candidates.scores):
            return np.zeros((0, 6), np.float32)
        decode = self.model.decode
        of_batch = Candidates(*(paddle.to_tensor(part).unsqueeze(0) for part in candidates))
        rows, where, _ = (part.numpy() for part in decode.nms(of_batch, self.model.head.num_classes))
        if self._vote_iou is not None:
            rows[:, 2:] = vote_boxes(candidates, where.flatten(), self._vote_iou)
        return rows[box_areas(rows[:, 2:]) > 0] if decode.clip == "after" else rows


def vote_boxes(candidates: Candidates, kept: np.ndarray, least_iou: float) -> np.ndarray:
    """Box voting: replace each kept box by the mean, weighted by scores, of overlapping boxes of its class.

    Returns:
        [N, 4].
    """
    result = candidates.output_boxes[kept]
    visible = box_areas(candidates.output_boxes) > 0
    for row, place in zip(result, kept):
        near = _ious(candidates.boxes[place], candidates.boxes) >= least_iou
        voters = _select(candidates, visible & near & (candidates.labels == candidates.labels[place]))
        if len(voters.scores):  # a box without area has no IoU with itself
            row[:] = np.average(voters.output_boxes, axis=0, weights=voters.scores)
    return result


def _select(candidates: Candidates, chosen: np.ndarray) -> Candidates:
    """Select candidates of one image by a mask [K]."""
    return Candidates(*(part[chosen] for part in candidates))


def _ious(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU [K] of a box [4] with boxes [K, 4]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    intersections = sides.clip(min=0).prod(axis=1)
    unions = box_areas(box) + box_areas(boxes) - intersections
    return intersections / unions.clip(min=np.finfo(np.float32).tiny)


def _flip_back(candidates: Candidates, width: int) -> Candidates:
    """Convert candidates of the flipped image to those of the image."""
    boxes, shown = (
        np.stack([width - x1, y0, width - x0, y1], axis=1)
        for x0, y0, x1, y1 in (candidates.boxes.T, candidates.output_boxes.T)
    )
    return candidates._replace(boxes=boxes, output_boxes=shown)


def _is_in_range(candidates: Candidates, scale: np.ndarray, size_range: Sequence[float]) -> np.ndarray:
    """[K] whether the square root of a box's area, in pixels of the resized image, is within a range."""
    sides = np.sqrt(box_areas(candidates.boxes).clip(min=0) * scale.prod())
    return (sides > size_range[0]) & (sides < size_range[1])


def _unpad(batch: dict) -> list[np.ndarray]:
    """Return the images of a batch without padding, [H_b, W_b, 3] uint8 each."""
    pixels = batch["image"].numpy().astype(np.uint8, copy=False)
    sizes = np.rint(batch["im_shape"].numpy()).astype(int)
    return [np.ascontiguousarray(image[:, :h, :w].transpose(1, 2, 0)) for image, (h, w) in zip(pixels, sizes)]
