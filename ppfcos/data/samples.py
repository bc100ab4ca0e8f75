"""Records into samples: read the picture, transform it and its boxes."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from paddle.io import Dataset

from ppfcos.data.image_cache import FirstResize
from ppfcos.data.images import ImageUnreadable, load_events, read_image
from ppfcos.data.records import DetectionData, Record
from ppfcos.data.rng import global_generators
from ppfcos.data.transforms.pipeline import SampleTransforms, TransformError

logger = logging.getLogger(__name__)

Sample = dict[str, Any]


class Collate:
    """Joins samples whose pictures may differ in size. Picklable, for the reading processes.

    Args:
        stride: Height and width of the batch become multiples of this.
    """

    def __init__(self, stride: int):
        self._stride = stride

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """One batch of B images.

        Args:
            samples: As `ppfcos.data.samples` makes them; those without an image only report bad_images.

        Returns:
            image [B, 3, H, W] uint8, zero beyond a smaller picture's edges; im_shape, scale_factor [B, 2]
            float32; im_id [B, 1] int64; bad_images. With boxes also gt_bbox [B, M, 4] float32 and gt_class
            [B, M, 1] int32, zero in rows that an image does not need, M >= 1, changes, and where crowds are
            ignored gt_crowd [B, K, 4] likewise. Without any image only bad_images; after a failure only
            `failure`.
        """
        for sample in samples:
            if "failure" in sample:
                return {"failure": sample["failure"]}
        batch: dict[str, Any] = {"bad_images": [line for sample in samples for line in sample["bad_images"]]}
        samples = [sample for sample in samples if "image" in sample]
        if not samples:
            return batch
        batch["image"] = pad_images([sample["image"] for sample in samples], self._stride)
        for key, kind in (("im_shape", np.float32), ("scale_factor", np.float32), ("im_id", np.int64)):
            batch[key] = np.stack([np.asarray(sample[key], dtype=kind).reshape(-1) for sample in samples])
        if "gt_bbox" in samples[0]:
            batch["changes"] = [name for sample in samples for name in sample["changes"]]
            batch["gt_bbox"] = pad_rows([sample["gt_bbox"] for sample in samples], np.float32)
            batch["gt_class"] = pad_rows([sample["gt_class"] for sample in samples], np.int32)
        if "gt_crowd" in samples[0]:
            batch["gt_crowd"] = pad_rows([sample["gt_crowd"] for sample in samples], np.float32)
        return batch


def pad_images(images: Sequence[np.ndarray], stride: int) -> np.ndarray:
    """Pads pictures at the right and the bottom with zeros.

    Args:
        images: [3, H_b, W_b] uint8 each.
        stride: The sides of the result are the smallest multiples of this into which every picture fits.

    Returns:
        [B, 3, H, W] uint8.
    """
    height, width = (-(-max(image.shape[axis] for image in images) // stride) * stride for axis in (1, 2))
    padded = np.zeros((len(images), 3, height, width), dtype=np.uint8)
    for target, image in zip(padded, images):
        _copy_planes(image, target[:, : image.shape[1], : image.shape[2]])
    return padded


def _copy_planes(image: np.ndarray, target: np.ndarray) -> None:
    """Copies [3, H, W] pixels.

    Mostly they still lie as they were decoded, [H, W, 3], and Permute only turned the view: OpenCV takes the
    channels of such apart several times faster than numpy copies them.
    """
    pixels = image.transpose(1, 2, 0)
    if not pixels.flags.c_contiguous:
        target[:] = image
        return
    for channel in range(3):
        cv2.extractChannel(pixels, channel, target[channel])


def pad_rows(arrays: Sequence[np.ndarray], kind: type) -> np.ndarray:
    """Pads [M_b, K] arrays with rows of zeros to [B, M, K], where M is the largest M_b and at least 1."""
    rows = max(1, *(len(array) for array in arrays))
    padded = np.zeros((len(arrays), rows, arrays[0].shape[1]), dtype=kind)
    for target, array in zip(padded, arrays):
        target[: len(array)] = array
    return padded


# So many pictures one after the other that cannot be read are no accident.
_MOST_IN_A_ROW = 100


class _NoneReadable(Exception):
    """Too many pictures in a row cannot be read."""


class TrainingSamples(Dataset):
    """Samples with their boxes; a picture that cannot be read is replaced by the next one that can.

    What comes out depends on (seed, epoch, index) alone, whichever process computes it, and whether it was
    cached.

    Args:
        data: The records.
        transforms: What is done to each behind decoding; with a `first_resize`, behind that.
        seed: Of the augmentation.
        first_resize: Gives images decoded and resized, if it is to do both in one.
    """

    def __init__(
        self,
        data: DetectionData,
        transforms: SampleTransforms,
        seed: int,
        first_resize: FirstResize | None = None,
    ):
        super().__init__()
        self._data = data
        self._transforms = transforms
        self._seed = seed
        self._keeps_crowds = data.has_crowds
        self._first_resize = first_resize

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """The sample of an epoch at an index.

        Args:
            item: (epoch, index); the epoch chooses the augmentation, and travels with each item because a
                reading process lives through many epochs.

        Returns:
            image [3, H, W] uint8, im_shape [2], scale_factor [2], im_id [1], gt_bbox [M, 4] float32, gt_class
            [M, 1] int32, where crowds are ignored gt_crowd [K, 4] float32, and bad_images, a list of 'path:
            reason', and `changes`, the names of what reading did to the picture, told in the first epoch
            only; or only `failure`, one line, since an exception would not leave a reading process in one
            piece.
        """
        epoch, index = item
        bad_images: list[str] = []
        with global_generators(self._seed, epoch, index):
            try:
                first = self._readable(epoch, index, bad_images)
                changes = _changes(first) if epoch == 0 else []
                sample = self._transforms(first, lambda: self._any_readable(epoch, bad_images))
                crowds = _crowds_taken_out(sample) if self._keeps_crowds else {}
            except Exception as error:  # reported in the training process
                return _failure(self._data.record(index, epoch), error)
        news = {"bad_images": list(dict.fromkeys(bad_images)), "changes": changes}
        return {**_training_sample(sample), **crowds, **news}

    def _any_readable(self, epoch: int, bad_images: list[str]) -> dict[str, Any]:
        """A decoded sample for an operator that mixes several: from anywhere, whoever reads which part."""
        return self._readable(epoch, np.random.randint(len(self)), bad_images)

    def _readable(self, epoch: int, index: int, bad_images: list[str]) -> dict[str, Any]:
        """The decoded sample at `index`, or the next one whose picture can be read."""
        for step in range(min(len(self), _MOST_IN_A_ROW)):
            try:
                return self._read(self._data.record_index((index + step) % len(self), epoch))
            except ImageUnreadable as error:
                bad_images.append(str(error))
        raise _NoneReadable(f"{step + 1} images in a row cannot be read, the last is {bad_images[-1]}")

    def _read(self, position: int) -> dict[str, Any]:
        """The record at a position as a sample: decoded, and with a `first_resize` resized, too."""
        record = self._data.records[position]
        if self._first_resize is None:
            return _with_boxes(_decoded(record), record)
        sample = _with_boxes(_sample(record, *self._first_resize.image(position, record)), record)
        return self._first_resize.scale_annotation(sample)


class EvaluationSamples(Dataset):
    """Samples without boxes; a picture that cannot be read is left out."""

    def __init__(self, data: DetectionData, transforms: SampleTransforms):
        super().__init__()
        self._data = data
        self._transforms = transforms

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As `TrainingSamples`, without boxes; of a picture that cannot be read only bad_images."""
        record = self._data.records[index]
        try:
            sample = self._transforms(_decoded(record))
        except ImageUnreadable as error:
            return {"bad_images": [str(error)]}
        except Exception as error:  # reported in the evaluating process
            return _failure(record, error)
        return {**_what_every_batch_has(sample), "bad_images": []}


def _decoded(record: Record) -> dict[str, Any]:
    """What PaddleDetection's Decode leaves of a record: h and w are the picture's, whatever was stated."""
    stated = (int(record.get("h", 0)), int(record.get("w", 0)))
    image = read_image(record["im_file"], stated if min(stated) > 0 else None)
    return _sample(record, image, *image.shape[:2])


def _sample(record: Record, image: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """A sample whose picture has this size in its file."""
    return {
        "image": image,
        "h": float(height),
        "w": float(width),
        "im_shape": np.array([height, width], dtype=np.float32),
        "scale_factor": np.ones(2, dtype=np.float32),
        "im_id": record["im_id"],
        "im_file": record["im_file"],
    }


def _changes(sample: dict[str, Any]) -> list[str]:
    """The names of what reading did to a sample's picture."""
    return [each.name for each in load_events(sample["im_file"], (int(sample["h"]), int(sample["w"])))]


def _with_boxes(sample: dict[str, Any], record: Record) -> dict[str, Any]:
    # copies: PaddleDetection's operators write into the arrays that they are given
    sample["gt_bbox"] = np.array(record.get("gt_bbox", ()), dtype=np.float32).reshape(-1, 4)
    sample["gt_class"] = np.array(record.get("gt_class", ()), dtype=np.int32).reshape(-1, 1)
    sample["is_crowd"] = np.array(record.get("is_crowd", np.zeros_like(sample["gt_class"])), dtype=np.int32)
    if "gt_crowd" in record:
        _append_crowds(sample, record["gt_crowd"])
    return sample


def _append_crowds(sample: dict[str, Any], crowds: np.ndarray) -> None:
    """Adds boxes to those of the objects, for the operators to move them alike; is_crowd tells which."""
    column = np.zeros((len(crowds), 1), dtype=np.int32)
    sample["gt_bbox"] = np.concatenate([sample["gt_bbox"], crowds])
    sample["gt_class"] = np.concatenate([sample["gt_class"], column])
    sample["is_crowd"] = np.concatenate([np.zeros_like(sample["is_crowd"]), column + 1])


def _crowds_taken_out(sample: dict[str, Any]) -> dict[str, np.ndarray]:
    """{gt_crowd: [K, 4]} of a transformed sample, whose boxes are those of objects alone from then on."""
    boxes, labels = sample["gt_bbox"].reshape(-1, 4), sample["gt_class"].reshape(-1, 1)
    crowd = sample["is_crowd"].reshape(-1) != 0
    if len(crowd) != len(boxes):
        raise TransformError(
            f"{sample['im_file']}: the transforms left {len(boxes)} boxes, but is_crowd of {len(crowd)}: "
            "one of them cannot be used with PPFCOSTargets.ignore_crowd"
        )
    sample["gt_bbox"], sample["gt_class"] = boxes[~crowd], labels[~crowd]
    return {"gt_crowd": boxes[crowd]}


def _training_sample(sample: dict[str, Any]) -> dict[str, Any]:
    boxes, labels = sample["gt_bbox"].reshape(-1, 4), sample["gt_class"].reshape(-1, 1)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # a crop may have cut all of a box away
    return {**_what_every_batch_has(sample), "gt_bbox": boxes[kept], "gt_class": labels[kept]}


def _what_every_batch_has(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: sample[key] for key in ("image", "im_shape", "scale_factor", "im_id")}


def _failure(record: Record, error: Exception) -> dict[str, Any]:
    """One line, which names the image at fault where the error knows better than the record."""
    logger.debug("%s", traceback.format_exc())
    reason = str(error)
    if not isinstance(error, (TransformError, _NoneReadable)):
        reason = f"{record['im_file']}: {type(error).__name__}: {error}"
    return {"failure": " ".join(reason.split())}
