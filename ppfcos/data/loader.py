"""Batches as Paddle tensors, read by processes of their own where the configuration wants it."""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import paddle

from ppfcos.data.collate import Collate
from ppfcos.data.records import DetectionData
from ppfcos.data.sampler import GlobalBatches
from ppfcos.data.samples import EvaluationSamples, TrainingSamples
from ppfcos.data.transforms import SampleTransforms, pad_stride
from ppfcos.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Batch = dict[str, Any]

# With less shared memory free, a few batches of large images fill it, and the reading processes die of that.
_SHARED_MEMORY_NEEDED = 1 << 30


class TrainLoader:
    """One process's part of every training batch.

    A batch is the same, to the pixel, whatever worker_num is; and the parts of all processes, one after the
    other, hold the same images and boxes whatever the number of processes and of parts is (each part has its
    own padding).

    Args:
        cfg: The configuration: TrainReader, worker_num, seed.
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
        self._indices = GlobalBatches(
            len(data),
            total,
            world_size,
            rank,
            seed,
            shuffle,
            reader.get("drop_last", True),
            reader.get("accumulate_steps", 1),
            functools.partial(_shapes, data)
            if shuffle and reader.get("aspect_ratio_grouping", True)
            else None,
        )
        self._samples = TrainingSamples(data, SampleTransforms(reader, "TrainReader"), seed)
        self._collate = Collate(pad_stride(reader, "TrainReader"))
        self._workers = _worker_num(cfg)
        self._first_step = 0

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self._indices)

    def set_position(self, epoch: int, first_step: int = 0) -> None:
        """Chooses the order and the augmentation of the next iteration, and where in the epoch it starts.

        Args:
            epoch: From 0.
            first_step: How many of the epoch's steps are left out.
        """
        self._indices.epoch = self._samples.epoch = epoch
        self._first_step = first_step

    def __iter__(self) -> Iterator[list[Batch]]:
        """The steps of the epoch.

        Yields:
            The parts of this process's share of a global batch, `accumulate_steps` of them, each with the
            tensors image [B, 3, H, W] uint8, im_shape and scale_factor [B, 2] float32, im_id [B, 1] int64,
            gt_bbox [B, M, 4] float32, gt_class [B, M, 1] int32; where crowds are ignored gt_crowd [B, K, 4]
            float32; and bad_images, a list of 'path: reason'.

        Raises:
            DataError: Images cannot be transformed or too many cannot be read, or a reading process died.
        """
        steps = list(self._indices)[self._first_step :]
        batches = _batches(
            self._samples, [part for step in steps for part in step], self._collate, self._workers
        )
        for step in steps:
            yield list(itertools.islice(batches, len(step)))


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
        self._samples = EvaluationSamples(data, SampleTransforms(reader, reader_section))
        self._collate = Collate(pad_stride(reader, reader_section))
        self._workers = _worker_num(cfg)
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
        for batch in _batches(self._samples, self._indices, self._collate, self._workers):
            self.bad_images += batch.pop("bad_images")
            if batch:
                yield batch


def _reader(cfg: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    reader = cfg.get(section)
    if not reader:
        raise ConfigError(f"{section} is missing: it says how images are transformed and batched")
    return reader


def _shapes(data: DetectionData, epoch: int) -> list[int]:
    """Of each image of an epoch whether it is upright; one whose size is not stated counts as wide."""
    records = (data.record(position, epoch) for position in range(len(data)))
    return [int(record.get("h", 0) > record.get("w", 0)) for record in records]


def _worker_num(cfg: Mapping[str, Any]) -> int:
    return max(0, int(cfg.get("worker_num") or 0))


def _batches(
    samples: paddle.io.Dataset, indices: Sequence[list[int]], collate: Collate, workers: int
) -> Iterator[Batch]:
    """The batches with these indices, in this order."""
    source = _read_here(samples, indices, collate)
    if workers and indices:
        source = _read_elsewhere(samples, indices, collate, min(workers, len(indices)))
    for batch in source:
        if "failure" in batch:
            raise DataError(batch["failure"])
        yield batch


def _read_here(samples: paddle.io.Dataset, indices: Sequence[list[int]], collate: Collate) -> Iterator[Batch]:
    """Without Paddle's loader, which reads in a thread that would share the global random generators with
    us."""
    for batch_indices in indices:
        batch = collate([samples[index] for index in batch_indices])
        yield {
            key: paddle.to_tensor(value) if isinstance(value, np.ndarray) else value
            for key, value in batch.items()
        }


def _read_elsewhere(
    samples: paddle.io.Dataset, indices: Sequence[list[int]], collate: Collate, workers: int
) -> Iterator[Batch]:
    loader = paddle.io.DataLoader(
        samples,
        batch_sampler=indices,
        collate_fn=functools.partial(_collate_with_an_array, collate),
        num_workers=workers,
        return_list=True,
        use_shared_memory=_shared_memory_suffices(),
        worker_init_fn=_start_of_worker,
    )
    iterator = iter(loader)
    atexit.register(_kill_readers)  # runs before multiprocessing's own, which would wait for them for ever
    while True:
        try:
            batch, _ = next(iterator)
        except StopIteration:
            return
        except (SystemError, RuntimeError, OSError) as error:
            logger.debug("Paddle says: %s", error)
            raise DataError(
                f"one of the {workers} processes that read images died; most often memory ran out: "
                "lower worker_num, or set it to 0 to read in the training process"
            ) from None
        yield batch


def _kill_readers() -> None:
    """End the processes that read for an iterator that was not used up: they do not listen to SIGTERM."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Paddle's handler takes the end of one for an accident
    for process in multiprocessing.active_children():
        process.kill()


def _collate_with_an_array(collate: Collate, samples: list[dict[str, Any]]) -> tuple[Batch, np.ndarray]:
    """Paddle waits for ever for a batch that has no array in it, such as one of unreadable pictures only."""
    return collate(samples), np.zeros(1, dtype=np.uint8)


def _start_of_worker(_worker: int) -> None:
    # Ctrl-C and paddle.distributed.launch send their signals to the whole group of processes, but they are
    # for the training process, which finishes its step and then ends these itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)  # the processes are the parallelism, and OpenCV's threads do not survive a fork


def _shared_memory_suffices() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return shutil.disk_usage("/dev/shm").free > _SHARED_MEMORY_NEEDED
    except OSError:
        return False
