"""Fetches the next batch while the device computes, and agrees with the other ranks once a step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from ppfcos.data.statistics import LoadEvent, LoadStatistics
from ppfcos.engine import distributed
from ppfcos.engine.profiling import DATA_WAIT, NoProfiler, StepProfiler
from ppfcos.errors import DataError, PPFCOSError

logger = logging.getLogger(__name__)

_NO_PROFILER = NoProfiler()


class Prefetcher:
    """Holds the batches of the current step, and counts the unreadable images of all ranks.

    Args:
        loader: TrainLoader of this rank.
        max_bad_images: unreadable images over all ranks beyond which the training stops.

    Attributes:
        current: micro-batches of this rank; empty after the last step of an epoch.
    """

    def __init__(self, loader: Any, max_bad_images: int):
        self.current: list[dict] = []
        self._seconds_waited = 0.0
        self._loader = loader
        self._max_bad_images = max_bad_images
        self._bad_images: set[str] = set()
        self._changes = LoadStatistics()
        self._steps: Iterator[list[dict]] = iter(())

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self._loader)

    def start_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Fetch the first batch of an epoch, counted from 0, after `first_step` finished steps."""
        self._loader.set_position(epoch, first_step)
        self._steps = iter(self._loader)
        self.advance(paddle.zeros([1]))

    def advance(self, values: Tensor, profiler: NoProfiler | StepProfiler = _NO_PROFILER) -> np.ndarray:
        """Fetch the next batch while the device computes, then exchange values with the other ranks.

        If a rank has no batch, all must know before they start a step that would wait for it. All
        micro-batches of the global batch are padded to one size, because padding influences the outputs
        (GroupNorm): the losses do not depend on which rank takes which image. Both travel with `values`, so
        that a step needs one collective.

        Args:
            values: [N] float32 of this rank.

        Returns:
            [ranks, N] float64, the values of all ranks.

        Raises:
            PPFCOSError: a rank has no batch, or too many images are unreadable; the same on all ranks.
        """
        with profiler.phase(DATA_WAIT):
            failure = self._fetch()
        bad = [image for batch in self.current for image in batch["bad_images"]]
        for batch in self.current:
            for name in batch["changes"]:
                self._changes.add(LoadEvent[name])
        sizes = [batch["image"].shape[2:] for batch in self.current]
        extra = [failure is not None, len(bad), *np.max(sizes or [[0, 0]], axis=0)]
        rows = distributed.all_gather_rows(
            paddle.concat([values.detach(), paddle.to_tensor(extra, "float32")])
        )
        failed, found_bad, height, width = rows[:, -4:].max(axis=0)
        if failed:
            distributed.raise_on_all_ranks(failure)
        if found_bad:
            self._report_bad([image for images in distributed.all_gather_object(bad) for image in images])
        for batch in self.current:
            batch["image"] = _pad(batch["image"], int(height), int(width))
        return rows[:, :-4]

    def report_changes(self) -> None:
        """Log the load statistics of all ranks since the last call. All must call it."""
        changes = LoadStatistics()
        for found in distributed.all_gather_object(self._changes.changes()):
            changes.add_all(LoadStatistics.from_dict(found))
        self._changes = LoadStatistics()
        if str(changes):
            logger.info("TrainDataset: %s", changes)

    def close(self) -> None:
        """Stop fetching."""
        self._steps = iter(())
        self.current = []

    def take_seconds_waited(self) -> float:
        """Return the seconds spent waiting for batches since the last call."""
        seconds, self._seconds_waited = self._seconds_waited, 0.0
        return seconds

    def _fetch(self) -> PPFCOSError | None:
        start = time.perf_counter()
        self.current = []
        try:
            self.current = next(self._steps, [])
        except PPFCOSError as failure:
            return failure
        finally:
            self._seconds_waited += time.perf_counter() - start
        return None

    def _report_bad(self, images: list[str]) -> None:
        for image in sorted(set(images) - self._bad_images):
            self._bad_images.add(image)
            logger.warning("unreadable image %d, replaced by another: %s", len(self._bad_images), image)
        if len(self._bad_images) > self._max_bad_images:
            raise DataError(
                f"{len(self._bad_images)} images cannot be read, more than max_bad_images "
                f"({self._max_bad_images}); the last one: {images[-1]}"
            )


def _pad(image: Tensor, height: int, width: int) -> Tensor:
    """Pad [B, 3, H, W] uint8 with zeros at the bottom and the right."""
    batch, channels, old_height, old_width = image.shape
    if (old_height, old_width) == (height, width):
        return image
    padded = paddle.zeros([batch, channels, height, width], image.dtype)
    padded[:, :, :old_height, :old_width] = image
    return padded
