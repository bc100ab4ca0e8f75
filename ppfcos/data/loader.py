"""Batches as Paddle tensors, read by processes of their own where the configuration wants it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ppfcos.data.image_cache import FirstResize, ImageCache
from ppfcos.data.records import DetectionData, RecordStore
from ppfcos.data.sampler import GlobalBatchSampler
from ppfcos.data.samples import Collate, EvaluationSamples, TrainingSamples
from ppfcos.data.transforms.pipeline import SampleTransforms, pad_stride
from ppfcos.data.transforms.uint8 import UInt8Resize
from ppfcos.data.workers import Batch, Items, Source, open_source
from ppfcos.errors import ConfigError


class TrainLoader:
    """One process's part of every training batch.

    A batch is the same, to the pixel, whatever worker_num is; and the parts of all processes, one after the
    other, hold the same images and boxes whatever the number of processes and of parts is (each part has its
    own padding).

    The reading processes live on from epoch to epoch, and work ahead into the next one.

    Args:
        cfg: The configuration: TrainReader, worker_num, seed; epoch, behind which nothing is read ahead.
        data: What to train on.
        world_size: The number of training processes.
        rank: This process, from 0.

    Raises:
        ConfigError: TrainReader is wrong, or the processes cannot share its batch evenly.
        DataError: There are too few images for one batch.
    """

    def __init__(self, cfg: Mapping[str, Any], data: DetectionData, world_size: int = 1, rank: int = 0):
        reader, seed = _reader(cfg, "TrainReader"), int(cfg.get("seed") or 0)
        total = reader.get("total_batch_size")
        if not isinstance(total, int) or total < 1:
            raise ConfigError(
                "TrainReader.total_batch_size is missing: the images of a step over all processes"
            )
        shuffle = reader.get("shuffle", True)
        self._indices = GlobalBatchSampler(
            len(data),
            total,
            world_size,
            rank,
            seed,
            shuffle,
            reader.get("drop_last", True),
            reader.get("accumulate_steps", 1),
            data.is_portrait if shuffle and reader.get("aspect_ratio_grouping", True) else None,
        )
        transforms = SampleTransforms(reader, "TrainReader")
        self._parts = reader.get("accumulate_steps", 1)
        self._open = functools.partial(
            open_source,
            _training_samples(reader, data, transforms, seed),
            collate=Collate(pad_stride(reader, "TrainReader")),
            workers=_worker_num(cfg),
            batch_bytes=total // world_size // self._parts * transforms.largest_bytes(),
        )
        self._epochs = cfg.get("epoch")
        self._epoch = self._first_step = 0
        self._ahead: tuple[int, Source] | None = None  # an epoch, and what stands at its beginning

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self._indices)

    def set_position(self, epoch: int, first_step: int = 0) -> None:
        """Chooses the order and the augmentation of the next iteration, and where in the epoch it starts.

        Args:
            epoch: From 0.
            first_step: How many of the epoch's steps are left out.
        """
        self._epoch, self._first_step = epoch, first_step

    def __iter__(self) -> Iterator[list[Batch]]:
        """The steps of the epoch.

        Yields:
            The parts of this process's share of a global batch, `accumulate_steps` of them, each with the
            tensors image [B, 3, H, W] uint8, im_shape and scale_factor [B, 2] float32, im_id [B, 1] int64,
            gt_bbox [B, M, 4] float32, gt_class [B, M, 1] int32; where crowds are ignored gt_crowd [B, K, 4]
            float32; bad_images, a list of 'path: reason'; and changes, a list of names of what reading did to
            pictures, told in the first epoch only.

        Raises:
            DataError: Images cannot be transformed or too many cannot be read, or a reading process died.
        """
        epoch, first_step = self._epoch, self._first_step
        source = self._source_at(epoch, first_step)
        try:
            for _ in range(first_step, len(self)):
                yield [next(source) for _ in range(self._parts)]
        except BaseException:  # the iteration is given up, too
            source.close()
            raise
        if epoch + 1 == self._epochs:
            source.close()
        else:
            self._ahead = epoch + 1, source

    def _source_at(self, epoch: int, first_step: int) -> Source:
        """The batches from there on: those that are being read ahead already, or else from the beginning."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if (epoch, first_step) == (ahead[0], 0):
                return ahead[1]
            ahead[1].close()
        return self._open(_items(self._indices, epoch, first_step, self._epochs))


def _items(indices: GlobalBatchSampler, epoch: int, first_step: int, epochs: int | None) -> Iterator[Items]:
    """The parts of all steps from there on, over all the epochs that follow; (epoch, index) each.

    No method of the loader: what the reading processes are fed with must not keep alive who ends them.
    """
    while True:
        indices.epoch = epoch
        for step in list(indices)[first_step:]:
            yield from ([(epoch, index) for index in part] for part in step)
        epoch, first_step = epoch + 1, 0
        if epoch == epochs:
            return


class EvalLoader:
    """Every image of a data set once; of several processes, each takes every world_size-th.

    Args:
        cfg: The configuration: the reader's section, worker_num.
        data: The images.
        reader_section: EvalReader or TestReader.
        world_size: The number of processes.
        rank: This process, from 0.

    Attributes:
        bad_images: 'path: reason' of the unreadable pictures that the latest iteration left out.

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
            open_source,
            EvaluationSamples(data, transforms),
            collate=Collate(pad_stride(reader, reader_section)),
            workers=min(_worker_num(cfg), len(self._indices)),
            batch_bytes=size * transforms.largest_bytes(),
        )
        self.bad_images: list[str] = []

    def __len__(self) -> int:
        """The number of batches, if every picture can be read."""
        return len(self._indices)

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Yields:
            image, im_shape, scale_factor and im_id as TrainLoader does.

        Raises:
            DataError: An image cannot be transformed, or a reading process died.
        """
        self.bad_images = []
        source = self._open(self._indices)
        try:
            for batch in source:
                self.bad_images += batch.pop("bad_images")
                if batch:
                    yield batch
        finally:
            source.close()


def _reader(cfg: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    reader = cfg.get(section)
    if not reader:
        raise ConfigError(f"{section} is missing: it says how images are transformed and batched")
    return reader


def _training_samples(
    reader: Mapping[str, Any], data: DetectionData, transforms: SampleTransforms, seed: int
) -> TrainingSamples:
    """The samples, read as `image_cache` and `reduced_decoding` say."""
    place, reduced = reader.get("image_cache"), reader.get("reduced_decoding", False)
    if place is None and not reduced:
        return TrainingSamples(data, transforms, seed)
    split = transforms.without_leading_resize()
    if split is None:
        raise ConfigError(
            f"TrainReader.{'reduced_decoding' if place is None else 'image_cache'} needs Resize right behind "
            "Decode in TrainReader.sample_transforms: put it there, or leave the key out"
        )
    resize, rest = split
    cache = _image_cache(reader, data, resize) if place is not None else None
    return TrainingSamples(data, rest, seed, FirstResize(resize, cache, reduced))


def _image_cache(reader: Mapping[str, Any], data: DetectionData, resize: UInt8Resize) -> ImageCache:
    path = None
    if reader["image_cache"] == "disk":
        if not reader.get("image_cache_dir"):
            raise ConfigError("TrainReader.image_cache is disk: set TrainReader.image_cache_dir to a folder")
        path = Path(reader["image_cache_dir"]) / f"{Path(data.source).stem}.images"
    records = data.records if isinstance(data.records, RecordStore) else RecordStore.from_records(data.records)
    limit = reader.get("image_cache_gb", 8) * 1e9
    return ImageCache(records, resize, limit, path, reader.get("reduced_decoding", False))


def _worker_num(cfg: Mapping[str, Any]) -> int:
    return max(0, int(cfg.get("worker_num") or 0))
