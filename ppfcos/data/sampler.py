"""Which images form which batch, consistently in every process of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ppfcos.data.rng import generator
from ppfcos.errors import ConfigError, DataError


def micro_batch_size(total_batch_size: int, world_size: int, accumulate_steps: int = 1) -> int:
    """Images of a global batch that one process trains on at once.

    Args:
        total_batch_size: Images in a batch over all processes.
        world_size: Number of processes.
        accumulate_steps: Micro-batches of each process in a step.

    Raises:
        ConfigError: The batch cannot be divided evenly; names the numbers that work.
    """
    parts = world_size * accumulate_steps
    size, rest = divmod(total_batch_size, parts)
    if not rest:
        return size
    sizes = " or ".join(str(n) for n in (size * parts, (size + 1) * parts) if n)
    if accumulate_steps == 1:
        divided, other = f"{world_size} processes", "start one of {} processes"
        numbers = _divisors(total_batch_size)
    else:
        divided = f"{world_size} process{'es' if world_size > 1 else ''}, {accumulate_steps} times each,"
        other = "set TrainReader.accumulate_steps to one of {}"
        numbers = _divisors(total_batch_size // world_size if total_batch_size % world_size == 0 else 0)
    alternative = f", or {other.format(', '.join(map(str, numbers)))}" if numbers else ""
    raise ConfigError(
        f"TrainReader.total_batch_size: {divided} cannot share {total_batch_size} images evenly: "
        f"set it to {sizes}{alternative}"
    )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


class GlobalBatchSampler:
    """The indices that one process trains on, step by step.

    Global batch k of epoch e holds the same images in the same order for any number of processes and
    micro-batches: the order depends on (seed, epoch) only, and each process takes a contiguous part of it.
    Without `drop_last`, the last batch is filled up with the first images of the epoch.

    Args:
        images: Number of images.
        total_batch_size: Images in a batch over all processes.
        world_size: Number of processes.
        rank: Of this process.
        seed: Of the order.
        shuffle: Whether each epoch has another order.
        drop_last: Whether the images that do not fill a batch are left out of the epoch.
        accumulate_steps: Micro-batches of each process in a step.
        shapes: For an epoch, the shape group of each image [images], such as portrait or landscape. As many
            batches as possible hold images of one group, because all images of a batch are padded to one
            size.

    Attributes:
        epoch: Decides the order.

    Raises:
        ConfigError: The batch cannot be divided evenly.
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
        self._size = micro_batch_size(total_batch_size, world_size, accumulate_steps)
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
        """For each step of the epoch the micro-batches of this process, each a list of indices."""
        first = self._rank * self._size * self._parts
        for batch in self.global_batches():
            mine = batch[first : first + self._size * self._parts]
            yield mine.reshape(self._parts, self._size).tolist()

    def global_batches(self) -> np.ndarray:
        """The indices of the epoch's batches over all processes, [steps, total_batch_size]."""
        order = np.arange(self._images)
        if self._shuffle:
            generator(self._seed, self.epoch).shuffle(order)
        if self._shapes is not None:
            order = self._grouped(order, np.asarray(self._shapes(self.epoch)))
        order = np.resize(order, self._batches * self._total)  # repeats it if it is too short
        return order.reshape(self._batches, self._total)

    def _grouped(self, order: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        """The same images, rearranged into batches of one shape group each.

        The images of a group keep their order. Batches are sorted by their last image, so that groups stay
        mixed over the epoch. The images that fill no batch of their group come last.
        """
        groups = shapes[order]
        full, rest = [], []
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            whole = len(places) // self._total * self._total
            full.append(places[:whole].reshape(-1, self._total))
            rest.append(places[whole:])
        batches = np.concatenate(full)
        batches = batches[np.argsort(batches[:, -1])]
        return order[np.concatenate([batches.reshape(-1), np.sort(np.concatenate(rest))])]
