"""Training and evaluation loaders: sampler → workers → collate → batches of Paddle tensors."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from ppfcos.data.records import DetectionData
from ppfcos.data.sampler import GlobalBatchSampler
from ppfcos.data.samples import Collate, EvaluationSamples, TrainingSamples
from ppfcos.data.transforms.pipeline import SampleTransforms, pad_stride
from ppfcos.data.workers import Batch, Batches, Items, open_batches
from ppfcos.errors import ConfigError

logger = logging.getLogger(__name__)

_REMOVED_KEYS = ("image_cache", "reduced_decoding")  # old configurations may still set them


class TrainLoader:
    """The part of one process of every training batch.

    Batches are the same, to the pixel, for any worker_num. Together, the parts of all processes hold the same
    images and boxes for any number of processes and micro-batches; each micro-batch has its own padding.

    The workers live through all epochs, and load the next epoch ahead.

    Args:
        cfg: The configuration: TrainReader, worker_num, seed, and epoch, the number of epochs.
        data: The training data.
        world_size: Number of training processes.
        rank: Of this process.

    Raises:
        ConfigError: TrainReader is wrong, or the processes cannot share its batch evenly.
        DataError: There are too few images for one batch.
    """

    def __init__(self, cfg: Mapping[str, Any], data: DetectionData, world_size: int = 1, rank: int = 0):
        reader, seed = _reader(cfg, "TrainReader"), int(cfg.get("seed") or 0)
        for key in _REMOVED_KEYS:
            if reader.get(key):
                logger.warning("TrainReader.%s is no longer used", key)
        total = reader.get("total_batch_size")
        if not isinstance(total, int) or total < 1:
            raise ConfigError(
                "TrainReader.total_batch_size is missing: set it to the images of a step over all processes"
            )
        shuffle = reader.get("shuffle", True)
        self._parts = reader.get("accumulate_steps", 1)
        self._sampler = GlobalBatchSampler(
            len(data),
            total,
            world_size,
            rank,
            seed,
            shuffle,
            reader.get("drop_last", True),
            self._parts,
            data.is_portrait if shuffle and reader.get("aspect_ratio_grouping", True) else None,
        )
        transforms = SampleTransforms(reader, "TrainReader")
        self._open = functools.partial(
            open_batches,
            TrainingSamples(data, transforms, seed),
            collate=Collate(pad_stride(reader, "TrainReader")),
            workers=_worker_num(cfg),
            batch_bytes=total // world_size // self._parts * transforms.max_image_bytes(),
        )
        self._epochs = cfg.get("epoch")
        self._epoch = self._first_step = 0
        self._ahead: tuple[int, Batches] | None = None  # an epoch, and its batches from the first one on

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self._sampler)

    def set_position(self, epoch: int, first_step: int = 0) -> None:
        """Set the epoch, from 0, and the first step of the next iteration."""
        self._epoch, self._first_step = epoch, first_step

    def __iter__(self) -> Iterator[list[Batch]]:
        """The steps of the epoch.

        Yields:
            `accumulate_steps` micro-batches, each with the tensors image [B, 3, H, W] uint8, im_shape and
            scale_factor [B, 2] float32, im_id [B, 1] int64, gt_bbox [B, M, 4] float32, gt_class [B, M, 1]
            int32; where crowds are ignored gt_crowd [B, K, 4] float32; bad_images, a list of 'path: reason';
            and changes, names of LoadEvents, in the first epoch only.

        Raises:
            DataError: An image cannot be transformed, too many cannot be read, or a worker died.
        """
        epoch, first_step = self._epoch, self._first_step
        batches = self._batches_from(epoch, first_step)
        try:
            for _ in range(first_step, len(self)):
                yield [next(batches) for _ in range(self._parts)]
        except BaseException:  # also where the iteration is abandoned
            batches.close()
            raise
        if epoch + 1 == self._epochs:
            batches.close()
        else:
            self._ahead = epoch + 1, batches

    def _batches_from(self, epoch: int, first_step: int) -> Batches:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if (epoch, first_step) == (ahead[0], 0):
                return ahead[1]
            ahead[1].close()
        return self._open(_items(self._sampler, epoch, first_step, self._epochs))


def _items(sampler: GlobalBatchSampler, epoch: int, first_step: int, epochs: int | None) -> Iterator[Items]:
    """The micro-batches from a step on, through all following epochs, as lists of (epoch, index).

    This is no method: workers end when the loader is deleted, so their items must not refer to it.
    """
    while True:
        sampler.epoch = epoch
        for step in list(sampler)[first_step:]:
            yield from ([(epoch, index) for index in part] for part in step)
        epoch, first_step = epoch + 1, 0
        if epoch == epochs:
            return


class EvalLoader:
    """Every image of a data set once; each of several processes loads every world_size-th image.

    Args:
        cfg: The configuration: the reader's section, worker_num.
        data: The images.
        reader_section: EvalReader or TestReader.
        world_size: Number of processes.
        rank: Of this process.

    Attributes:
        bad_images: 'path: reason' of each unreadable image that the latest iteration left out.

    Raises:
        ConfigError: The reader's section is wrong.
    """

    def __init__(
        self,
        cfg: Mapping[str, Any],
        data: DetectionData,
        reader_section: str,
        world_size: int = 1,
        rank: int = 0,
    ):
        reader = _reader(cfg, reader_section)
        size = reader.get("batch_size", 1)
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"{reader_section}.batch_size must be a whole number from 1, not {size!r}")
        mine = list(range(rank, len(data), world_size))
        self._indices = [mine[start : start + size] for start in range(0, len(mine), size)]
        transforms = SampleTransforms(reader, reader_section)
        self._open = functools.partial(
            open_batches,
            EvaluationSamples(data, transforms),
            collate=Collate(pad_stride(reader, reader_section)),
            workers=min(_worker_num(cfg), len(self._indices)),
            batch_bytes=size * transforms.max_image_bytes(),
        )
        self.bad_images: list[str] = []

    def __len__(self) -> int:
        """The number of batches, if every image can be read."""
        return len(self._indices)

    def __iter__(self) -> Iterator[Batch]:
        """Batches with image, im_shape, scale_factor and im_id as in `TrainLoader`.

        Raises:
            DataError: An image cannot be transformed, or a worker died.
        """
        self.bad_images = []
        batches = self._open(self._indices)
        try:
            for batch in batches:
                self.bad_images += batch.pop("bad_images")
                if batch:
                    yield batch
        finally:
            batches.close()


def _reader(cfg: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    reader = cfg.get(section)
    if not reader:
        raise ConfigError(f"{section} is missing: it says how images are transformed and batched")
    return reader


def _worker_num(cfg: Mapping[str, Any]) -> int:
    return max(0, int(cfg.get("worker_num") or 0))
