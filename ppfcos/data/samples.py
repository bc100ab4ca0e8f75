"""Samples and batches: read an image, transform it with its boxes, and collate samples of different sizes."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from paddle.io import Dataset

from ppfcos.data.images import ImageUnreadable, load_events, read_image
from ppfcos.data.records import DetectionData, Record
from ppfcos.data.rng import global_generators
from ppfcos.data.transforms.pipeline import SampleTransforms, TransformError

logger = logging.getLogger(__name__)

Sample = dict[str, Any]

_MAX_UNREADABLE_IN_A_ROW = 100  # more are no accident
_BATCH_KEYS = {"im_shape": np.float32, "scale_factor": np.float32, "im_id": np.int64}


class _NoneReadableError(Exception):
    """Too many images in a row cannot be read."""


class TrainingSamples(Dataset):
    """Samples with their boxes. An image that cannot be read is replaced by the next one that can.

    A sample depends on (seed, epoch, index) only, whichever process loads it.

    Args:
        data: The records.
        transforms: Applied to each decoded image.
        seed: Of the augmentation.
    """

    def __init__(self, data: DetectionData, transforms: SampleTransforms, seed: int):
        super().__init__()
        self._data = data
        self._transforms = transforms
        self._seed = seed
        self._has_crowds = data.has_crowds

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        """The sample at (epoch, index).

        Returns:
            image [3, H, W] uint8, im_shape [2], scale_factor [2], im_id [1], gt_bbox [M, 4] float32, gt_class
            [M, 1] int32; where crowds are ignored gt_crowd [K, 4]; bad_images, a list of 'path: reason'; and
            changes, names of LoadEvents, in the first epoch only. After an error only `failure`, one line:
            exceptions do not always survive the way from a worker.
        """
        epoch, index = item
        bad_images: list[str] = []

        def draw_mix_image() -> Sample:
            return self._readable(epoch, np.random.randint(len(self)), bad_images)

        with global_generators(self._seed, epoch, index):
            try:
                sample = self._readable(epoch, index, bad_images)
                size = (int(sample["h"]), int(sample["w"]))
                events = load_events(sample["im_file"], size) if epoch == 0 else []
                sample = self._transforms(sample, draw_mix_image)
                crowds = _take_crowds(sample) if self._has_crowds else {}
            except Exception as error:  # reported by the training process
                return _failure(self._data.record(index, epoch), error)
        boxes, labels = sample["gt_bbox"].reshape(-1, 4), sample["gt_class"].reshape(-1, 1)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # a crop may have removed all of a box
        return {
            "image": sample["image"],
            **{key: sample[key] for key in _BATCH_KEYS},
            "gt_bbox": boxes[kept],
            "gt_class": labels[kept],
            **crowds,
            "bad_images": list(dict.fromkeys(bad_images)),
            "changes": [event.name for event in events],
        }

    def _readable(self, epoch: int, index: int, bad_images: list[str]) -> Sample:
        """The decoded sample at `index`, or the next one whose image can be read."""
        for step in range(min(len(self), _MAX_UNREADABLE_IN_A_ROW)):
            record = self._data.record((index + step) % len(self), epoch)
            try:
                return _add_boxes(_decode(record), record)
            except ImageUnreadable as error:
                bad_images.append(str(error))
        raise _NoneReadableError(f"{step + 1} images in a row cannot be read, the last is {bad_images[-1]}")


class EvaluationSamples(Dataset):
    """Samples without boxes, of all images that can be read.

    An item is as in `TrainingSamples`, without boxes and changes; of an unreadable image only bad_images.
    """

    def __init__(self, data: DetectionData, transforms: SampleTransforms):
        super().__init__()
        self._data = data
        self._transforms = transforms

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Sample:
        record = self._data.records[index]
        try:
            sample = self._transforms(_decode(record))
        except ImageUnreadable as error:
            return {"bad_images": [str(error)]}
        except Exception as error:  # reported by the evaluating process
            return _failure(record, error)
        return {"image": sample["image"], **{key: sample[key] for key in _BATCH_KEYS}, "bad_images": []}


def _decode(record: Record) -> Sample:
    """The sample that PaddleDetection's Decode makes of a record; h and w are the image's, not the stated."""
    stated = (int(record.get("h", 0)), int(record.get("w", 0)))
    image = read_image(record["im_file"], stated if min(stated) > 0 else None)
    height, width = image.shape[:2]
    return {
        "image": image,
        "h": float(height),
        "w": float(width),
        "im_shape": np.array([height, width], dtype=np.float32),
        "scale_factor": np.ones(2, dtype=np.float32),
        "im_id": record["im_id"],
        "im_file": record["im_file"],
    }


def _add_boxes(sample: Sample, record: Record) -> Sample:
    """Add copies of a record's boxes, since PaddleDetection's operators write into them.

    Crowds follow the objects, with is_crowd 1, so that the operators move them alike.
    """
    boxes = np.array(record.get("gt_bbox", ()), dtype=np.float32).reshape(-1, 4)
    labels = np.array(record.get("gt_class", ()), dtype=np.int32).reshape(-1, 1)
    is_crowd = np.array(record.get("is_crowd", np.zeros_like(labels)), dtype=np.int32)
    if "gt_crowd" in record:
        crowds = np.zeros((len(record["gt_crowd"]), 1), dtype=np.int32)
        boxes = np.concatenate([boxes, record["gt_crowd"]])
        labels = np.concatenate([labels, crowds])
        is_crowd = np.concatenate([np.zeros_like(is_crowd), crowds + 1])
    sample.update(gt_bbox=boxes, gt_class=labels, is_crowd=is_crowd)
    return sample


def _take_crowds(sample: Sample) -> dict[str, np.ndarray]:
    """Remove the crowds from a transformed sample; returns {gt_crowd: [K, 4]}."""
    boxes, labels = sample["gt_bbox"].reshape(-1, 4), sample["gt_class"].reshape(-1, 1)
    crowd = sample["is_crowd"].reshape(-1) != 0
    if len(crowd) != len(boxes):
        raise TransformError(
            f"{sample['im_file']}: the transforms left {len(boxes)} boxes, but {len(crowd)} values of "
            "is_crowd: remove the transform that does not keep is_crowd, or set PPFCOSTargets.ignore_crowd: "
            "false"
        )
    sample["gt_bbox"], sample["gt_class"] = boxes[~crowd], labels[~crowd]
    return {"gt_crowd": boxes[crowd]}


def _failure(record: Record, error: Exception) -> Sample:
    """One line that names the image."""
    logger.debug("%s", traceback.format_exc())
    reason = str(error)
    if not isinstance(error, (TransformError, _NoneReadableError)):
        reason = f"{record['im_file']}: {type(error).__name__}: {error}"
    return {"failure": " ".join(reason.split())}


class Collate:
    """Makes one batch of samples whose images may differ in size. Picklable, for the workers.

    Args:
        stride: The height and width of a batch are multiples of it.
    """

    def __init__(self, stride: int):
        self._stride = stride

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """One batch of B images.

        Args:
            samples: Of `TrainingSamples` or `EvaluationSamples`.

        Returns:
            image [B, 3, H, W] uint8, zero beyond the edges of a smaller image; im_shape, scale_factor [B, 2]
            float32; im_id [B, 1] int64; bad_images. With boxes also gt_bbox [B, M, 4] float32 and gt_class
            [B, M, 1] int32, padded with zeros, M >= 1; changes; and where crowds are ignored gt_crowd
            [B, K, 4]. Without any image only bad_images; after an error only `failure`.
        """
        for sample in samples:
            if "failure" in sample:
                return {"failure": sample["failure"]}
        batch: dict[str, Any] = {"bad_images": [line for sample in samples for line in sample["bad_images"]]}
        samples = [sample for sample in samples if "image" in sample]
        if not samples:
            return batch
        batch["image"] = pad_images([sample["image"] for sample in samples], self._stride)
        for key, dtype in _BATCH_KEYS.items():
            batch[key] = np.stack([np.asarray(sample[key], dtype=dtype).reshape(-1) for sample in samples])
        if "gt_bbox" in samples[0]:
            batch["changes"] = [name for sample in samples for name in sample["changes"]]
        for key, dtype in (("gt_bbox", np.float32), ("gt_class", np.int32), ("gt_crowd", np.float32)):
            if key in samples[0]:
                batch[key] = pad_rows([sample[key] for sample in samples], dtype)
        return batch


def pad_images(images: Sequence[np.ndarray], stride: int) -> np.ndarray:
    """Pad images [3, H_b, W_b] uint8 with zeros at the right and the bottom.

    Returns:
        [B, 3, H, W] uint8, where H and W are the smallest multiples of `stride` into which each image fits.
    """
    height, width = (-(-max(image.shape[axis] for image in images) // stride) * stride for axis in (1, 2))
    padded = np.zeros((len(images), 3, height, width), dtype=np.uint8)
    for target, image in zip(padded, images):
        target = target[:, : image.shape[1], : image.shape[2]]
        pixels = image.transpose(1, 2, 0)
        if pixels.flags.c_contiguous:  # still as decoded: several times faster than numpy's copy
            for channel in range(3):
                cv2.extractChannel(pixels, channel, target[channel])
        else:
            target[:] = image
    return padded


def pad_rows(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """Pad arrays [M_b, K] with rows of zeros to [B, M, K], where M is the largest M_b and at least 1."""
    rows = max(1, *(len(array) for array in arrays))
    padded = np.zeros((len(arrays), rows, arrays[0].shape[1]), dtype=dtype)
    for target, array in zip(padded, arrays):
        target[: len(array)] = array
    return padded
