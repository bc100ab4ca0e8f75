"""Samples into a batch: pixels stay 8-bit, and boxes are padded to the image with the most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

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
