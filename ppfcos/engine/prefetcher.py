"""The batches of a training: fetched ahead, and spoken about with the other processes once a step."""

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
    """Holds what this process trains on in a step, and knows which images of any process could not be read.

    Args:
        loader: this process's TrainLoader.
        max_bad_images: number of unreadable images, over all processes, beyond which the training stops.

    Attributes:
        current: this process's parts of the global batch; empty behind an epoch's last step.
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
        """Fetch the first batch.

        Args:
            epoch: from 0.
            first_step: steps of the epoch that were done already.

        Raises:
            PPFCOSError: a process has no batch.
        """
        self._loader.set_position(epoch, first_step)
        self._steps = iter(self._loader)
        self.advance(paddle.zeros([1]))

    def advance(self, values: Tensor, profiler: NoProfiler | StepProfiler = _NO_PROFILER) -> np.ndarray:
        """Fetch the next batch while the device computes, and then hear from the other processes.

        That a process has no batch must be known before the others start a step that they cannot finish
        without it. And all parts of the global batch are padded to one size, since what is found in an image
        depends on its padding (GroupNorm sees it): so the losses do not depend on who took which image. Both
        travel with the values, so that a step costs one message.

        Args:
            values: [N] float32 of this process.
            profiler: told of the wait for the batch.

        Returns:
            [processes, N] those of all processes, float64.

        Raises:
            PPFCOSError: a process has no batch, or too many images cannot be read; the same in all processes.
        """
        with profiler.phase(DATA_WAIT):
            failure = self._fetch()
        bad = [image for batch in self.current for image in batch["bad_images"]]
        for batch in self.current:
            for name in batch["changes"]:
                self._changes.add(LoadEvent[name])
        sizes = [batch["image"].shape[2:] for batch in self.current]
        news = [failure is not None, len(bad), *np.max(sizes or [[0, 0]], axis=0)]
        rows = distributed.all_gather_rows(paddle.concat([values.detach(), paddle.to_tensor(news, "float32")]))
        failed, found_bad, height, width = rows[:, -4:].max(axis=0)
        if failed:
            distributed.raise_on_all_ranks(failure)
        if found_bad:
            self._note([image for images in distributed.all_gather_object(bad) for image in images])
        for batch in self.current:
            batch["image"] = _padded(batch["image"], int(height), int(width))
        return rows[:, :-4]

    def report_changes(self) -> None:
        """Say what reading did to the pictures since this was last called; all processes must call it."""
        changes = LoadStatistics()
        for found in distributed.all_gather_object(self._changes.changes()):
            changes.add_all(LoadStatistics.from_dict(found))
        self._changes = LoadStatistics()
        if str(changes):
            logger.info("TrainDataset: %s", changes)

    def close(self) -> None:
        """Fetch no more."""
        self._steps = iter(())
        self.current = []

    def take_seconds_waited(self) -> float:
        """Time spent waiting for batches since this was last asked.

        Returns:
            Seconds.
        """
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

    def _note(self, images: list[str]) -> None:
        for image in sorted(set(images) - self._bad_images):
            self._bad_images.add(image)
            logger.warning("unreadable image %d, replaced by another: %s", len(self._bad_images), image)
        if len(self._bad_images) > self._max_bad_images:
            raise DataError(
                f"{len(self._bad_images)} images cannot be read, more than max_bad_images "
                f"({self._max_bad_images}); the last one: {images[-1]}"
            )


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    """[B, 3, H, W] uint8 with zeros added at the bottom and the right."""
    batch, channels, old_height, old_width = image.shape
    if (old_height, old_width) == (height, width):
        return image
    padded = paddle.zeros([batch, channels, height, width], image.dtype)
    padded[:, :, :old_height, :old_width] = image
    return padded
