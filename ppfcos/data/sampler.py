"""Which images make which batch, in every process of a training alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ppfcos.data.randomness import generator
from ppfcos.errors import ConfigError, DataError


def share_of_batch(total_batch_size: int, world_size: int) -> int:
    """How many images of the global batch one process takes.

    Raises:
        ConfigError: The processes cannot share the batch evenly; names the numbers with which they could.
    """
    share, rest = divmod(total_batch_size, world_size)
    if not rest:
        return share
    sizes = " or ".join(str(n) for n in (share * world_size, (share + 1) * world_size) if n)
    processes = ", ".join(str(n) for n in range(1, total_batch_size + 1) if total_batch_size % n == 0)
    raise ConfigError(
        f"TrainReader.total_batch_size: {world_size} processes cannot share {total_batch_size} images "
        f"evenly: set it to {sizes}, or start one of {processes} processes"
    )


class GlobalBatches:
    """The indices that one process trains on, batch by batch.

    Global batch k of epoch e holds the same images in the same order however many processes share it: the
    order comes from (seed, epoch) alone, and each process takes its contiguous part. Without `drop_last`, the
    last batch is filled up from the beginning of the epoch's order, so that every process has images in it.

    Args:
        images: The number of images.
        total_batch_size: Images in a batch over all processes.
        world_size: The number of processes.
        rank: This process, from 0.
        seed: Of the order.
        shuffle: Whether the order changes at all.
        drop_last: Whether the images that do not fill a batch are left out of the epoch.

    Attributes:
        epoch: Chooses the order.

    Raises:
        ConfigError: The processes cannot share a batch evenly.
        DataError: There are too few images for one batch.
    """

    def __init__(
        self,
        images: int,
        total_batch_size: int,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
    ):
        self._share = share_of_batch(total_batch_size, world_size)
        self._images, self._total, self._rank = images, total_batch_size, rank
        self._seed, self._shuffle = seed, shuffle
        self._batches = images // total_batch_size if drop_last else -(-images // total_batch_size)
        self.epoch = 0
        if not self._batches:
            raise DataError(
                f"there are {images} images, too few for one batch: lower TrainReader.total_batch_size "
                f"({total_batch_size}) or set TrainReader.drop_last: false"
            )

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self._images)
        if self._shuffle:
            generator(self._seed, self.epoch).shuffle(order)
        order = np.resize(order, self._batches * self._total)  # too short: from its beginning again
        first = self._rank * self._share
        for batch in order.reshape(self._batches, self._total):
            yield batch[first : first + self._share].tolist()
