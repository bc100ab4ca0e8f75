"""Which images make which batch, in every process of a training alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ppfcos.data.rng import generator
from ppfcos.errors import ConfigError, DataError


def micro_batch_size(total_batch_size: int, world_size: int, accumulate_steps: int = 1) -> int:
    """How many images of the global batch one process takes at once.

    Args:
        total_batch_size: Images in a batch over all processes.
        world_size: The number of processes.
        accumulate_steps: Into how many parts each process splits its share.

    Returns:
        The images in one of these parts.

    Raises:
        ConfigError: The batch cannot be split evenly; names the numbers with which it could.
    """
    parts = world_size * accumulate_steps
    size, rest = divmod(total_batch_size, parts)
    if not rest:
        return size
    sizes = " or ".join(str(n) for n in (size * parts, (size + 1) * parts) if n)
    if accumulate_steps == 1:
        takers, other = f"{world_size} processes", "start one of {} processes"
        numbers = _divisors(total_batch_size)
    else:
        takers = f"{world_size} process{'es' if world_size > 1 else ''}, {accumulate_steps} times each,"
        other = "set TrainReader.accumulate_steps to one of {}"
        numbers = _divisors(total_batch_size // world_size if total_batch_size % world_size == 0 else 0)
    cure = f", or {other.format(', '.join(map(str, numbers)))}" if numbers else ""
    raise ConfigError(
        f"TrainReader.total_batch_size: {takers} cannot share {total_batch_size} images evenly: "
        f"set it to {sizes}{cure}"
    )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


class GlobalBatchSampler:
    """The indices that one process trains on, step by step.

    Global batch k of epoch e holds the same images in the same order however many processes share it and in
    however many parts they take their shares: the order comes from (seed, epoch) alone, and each process
    takes a contiguous share of it, each part a contiguous piece of the share. Without `drop_last`, the last
    batch is filled up from the beginning of the epoch's order, so that every process has images in it.

    Args:
        images: The number of images.
        total_batch_size: Images in a batch over all processes.
        world_size: The number of processes.
        rank: This process, from 0.
        seed: Of the order.
        shuffle: Whether the order changes at all.
        drop_last: Whether the images that do not fill a batch are left out of the epoch.
        accumulate_steps: Into how many parts this process splits its share of a batch.
        shapes: For an epoch, [images] the kind of shape of each image, such as upright or wide; images of one
            kind are put into batches together as far as they go, since all images of a batch are padded to
            one size.

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
        accumulate_steps: int = 1,
        shapes: Callable[[int], Sequence[int]] | None = None,
    ):
        self._part = micro_batch_size(total_batch_size, world_size, accumulate_steps)
        self._parts = accumulate_steps
        self._images, self._total, self._rank = images, total_batch_size, rank
        self._seed, self._shuffle = seed, shuffle
        self._shapes = shapes
        self._batches = images // total_batch_size if drop_last else -(-images // total_batch_size)
        self.epoch = 0
        if not self._batches:
            raise DataError(
                f"there are {images} images, too few for one batch: lower TrainReader.total_batch_size "
                f"({total_batch_size}) or set TrainReader.drop_last: false"
            )

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[list[int]]]:
        """The steps of the epoch.

        Yields:
            The parts of this process's share of a global batch, each a list of indices.
        """
        first = self._rank * self._part * self._parts
        for batch in self.global_batches():
            share = batch[first : first + self._part * self._parts]
            yield share.reshape(self._parts, self._part).tolist()

    def global_batches(self) -> np.ndarray:
        """The indices of the epoch's batches, over all processes: [steps, total_batch_size]."""
        order = np.arange(self._images)
        if self._shuffle:
            generator(self._seed, self.epoch).shuffle(order)
        if self._shapes is not None:
            order = self._grouped(order, np.asarray(self._shapes(self.epoch)))
        order = np.resize(order, self._batches * self._total)  # too short: from its beginning again
        return order.reshape(self._batches, self._total)

    def _grouped(self, order: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        """The same images so arranged that most batches hold images of one shape.

        Each shape's images keep their order and are cut into batches. A batch's place is that of its last
        image, as if images were dealt out in their order and a batch left the table once it is full. The
        images that fill no batch of their own shape come last.
        """
        kinds = shapes[order]
        full, left = [], []
        for kind in np.unique(kinds):
            places = np.flatnonzero(kinds == kind)
            whole = len(places) // self._total * self._total
            full.append(places[:whole].reshape(-1, self._total))
            left.append(places[whole:])
        batches = np.concatenate(full)
        batches = batches[np.argsort(batches[:, -1])]
        return order[np.concatenate([batches.reshape(-1), np.sort(np.concatenate(left))])]
