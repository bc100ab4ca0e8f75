"""The batches of a training: fetched ahead, and spoken about with the other processes once a step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from ppfcos.engine import distributed
from ppfcos.errors import DataError, PPFCOSError

logger = logging.getLogger(__name__)


class BatchFeed:
    """Holds the batch to train on, and knows which images of any process could not be read.

    Args:
        loader: this process's TrainLoader.
        max_bad_images: number of unreadable images, over all processes, beyond which the training stops.

    Attributes:
        current: this process's batch; None behind an epoch's last.
    """

    def __init__(self, loader: Any, max_bad_images: int):
        self.current: dict | None = None
        self._seconds_waited = 0.0
        self._loader = loader
        self._max_bad_images = max_bad_images
        self._bad_images: set[str] = set()
        self._batches: Iterator[dict] = iter(())

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._loader)

    def start_epoch(self, epoch: int) -> None:
        """Fetch the first batch of an epoch.

        Args:
            epoch: from 0.

        Raises:
            PPFCOSError: a process has no batch.
        """
        self._loader.set_epoch(epoch)
        self._batches = iter(self._loader)
        self.advance(paddle.zeros([1]))

    def advance(self, values: Tensor) -> np.ndarray:
        """Fetch the next batch while the device computes, and then hear from the other processes.

        That a process has no batch must be known before the others start a step that they cannot finish
        without it. It travels with the losses, so that a step costs one message.

        Args:
            values: [N] float32 of this process.

        Returns:
            [N] their means over all processes.

        Raises:
            PPFCOSError: a process has no batch, or too many images cannot be read; the same in all processes.
        """
        failure = self._fetch()
        bad = [] if self.current is None else self.current["bad_images"]
        news = paddle.to_tensor([float(failure is not None), float(len(bad))])
        *means, failed, found_bad = distributed.mean(paddle.concat([values.detach(), news]))
        if failed:
            distributed.raise_in_all(failure)
        if found_bad:
            self._note([image for images in distributed.gather(bad) for image in images])
        return np.array(means)

    def take_seconds_waited(self) -> float:
        """Time spent waiting for batches since this was last asked.

        Returns:
            Seconds.
        """
        seconds, self._seconds_waited = self._seconds_waited, 0.0
        return seconds

    def _fetch(self) -> PPFCOSError | None:
        start = time.perf_counter()
        try:
            self.current = next(self._batches, None)
        except PPFCOSError as failure:
            self.current = None
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
