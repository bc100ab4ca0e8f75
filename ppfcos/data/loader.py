"""Batches as Paddle tensors, read by processes of their own where the configuration wants it."""

from __future__ import annotations

import atexit
import functools
import logging
import multiprocessing
import shutil
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, Union

import cv2
import numpy as np
import paddle

from ppfcos.data.collate import Collate
from ppfcos.data.first_resize import FirstResize
from ppfcos.data.image_cache import ImageCache
from ppfcos.data.pixel_operators import PixelResize
from ppfcos.data.record_store import RecordStore
from ppfcos.data.records import DetectionData
from ppfcos.data.sampler import GlobalBatches
from ppfcos.data.samples import EvaluationSamples, TrainingSamples
from ppfcos.data.transforms import SampleTransforms, pad_stride
from ppfcos.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Batch = dict[str, Any]

# A batch before it is read: what its samples are asked for by.
Items = list[Any]

_SHARED_MEMORY = "/dev/shm"
_READ_AHEAD = 2  # batches that each reading process works ahead
_PATIENCE = 3  # seconds that one gets to end by itself


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
        self._indices = GlobalBatches(
            len(data),
            total,
            world_size,
            rank,
            seed,
            shuffle,
            reader.get("drop_last", True),
            reader.get("accumulate_steps", 1),
            data.is_upright if shuffle and reader.get("aspect_ratio_grouping", True) else None,
        )
        transforms = SampleTransforms(reader, "TrainReader")
        self._parts = reader.get("accumulate_steps", 1)
        self._open = functools.partial(
            _open,
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
            gt_bbox [B, M, 4] float32, gt_class [B, M, 1] int32; and bad_images, a list of 'path: reason'.

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


def _items(indices: GlobalBatches, epoch: int, first_step: int, epochs: int | None) -> Iterator[Items]:
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
            _open,
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


def _image_cache(reader: Mapping[str, Any], data: DetectionData, resize: PixelResize) -> ImageCache:
    path = None
    if reader["image_cache"] == "disk":
        if not reader.get("image_cache_dir"):
            raise ConfigError("TrainReader.image_cache is disk: set TrainReader.image_cache_dir to a folder")
        path = Path(reader["image_cache_dir"]) / f"{Path(data.source).stem}.images"
    records = data.records if isinstance(data.records, RecordStore) else RecordStore.of(data.records)
    limit = reader.get("image_cache_gb", 8) * 1e9
    return ImageCache(records, resize, limit, path, reader.get("reduced_decoding", False))


def _worker_num(cfg: Mapping[str, Any]) -> int:
    return max(0, int(cfg.get("worker_num") or 0))


class ReadingProcesses:
    """Batches that other processes read, some ahead of being asked for.

    Args:
        samples: What gives a sample for each of a batch's items.
        items: The batches, without end if need be.
        collate: Makes a batch of samples.
        workers: The number of processes.
        shares_memory: Whether pixels travel in shared memory; or else through pipes, which takes longer.
    """

    def __init__(
        self,
        samples: paddle.io.Dataset,
        items: Iterable[Items],
        collate: Collate,
        workers: int,
        shares_memory: bool,
    ):
        self._iterator = iter(
            paddle.io.DataLoader(
                samples,
                batch_sampler=items,
                collate_fn=functools.partial(_collate_with_an_array, collate),
                num_workers=workers,
                return_list=True,
                use_shared_memory=shares_memory,
                prefetch_factor=_READ_AHEAD,
                worker_init_fn=_start_of_worker,
            )
        )
        atexit.register(_kill_readers)  # before multiprocessing's own, which would wait for them for ever
        _name_deaths()

    def __iter__(self) -> ReadingProcesses:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: A process died, or a sample cannot be made.
        """
        try:
            batch, _ = next(self._iterator)
        except (SystemError, RuntimeError, OSError) as error:
            logger.debug("Paddle says: %s", error)
            raise _death() from None
        return _checked(batch)

    def close(self) -> None:
        """Ends the processes. Paddle does so by itself at the end of the items only."""
        self._iterator._try_shutdown_all(_PATIENCE)
        for process in self._iterator._workers:
            if process.is_alive():  # it waits for a lock that one that died had
                process.kill()

    def __del__(self) -> None:
        if hasattr(self, "_iterator"):
            self.close()


Source = Union[ReadingProcesses, Generator[Batch, None, None]]


def _open(
    samples: paddle.io.Dataset, items: Iterable[Items], collate: Collate, workers: int, batch_bytes: int
) -> Source:
    """The batches of these items, in this order."""
    if not workers:
        return _read_here(samples, items, collate)
    return ReadingProcesses(samples, items, collate, workers, _shared_memory_suffices(workers, batch_bytes))


def _read_here(
    samples: paddle.io.Dataset, items: Iterable[Items], collate: Collate
) -> Generator[Batch, None, None]:
    """Without Paddle's loader, which reads in a thread that would share the global random generators with
    us."""
    for of_batch in items:
        batch = _checked(collate([samples[item] for item in of_batch]))
        yield {
            key: paddle.to_tensor(value) if isinstance(value, np.ndarray) else value
            for key, value in batch.items()
        }


def _checked(batch: Batch) -> Batch:
    if "failure" in batch:
        raise DataError(batch["failure"])
    return batch


def _death() -> DataError:
    return DataError(
        "one of the processes that read images died; most often memory ran out: "
        "lower worker_num, or set it to 0 to read in the training process"
    )


def _name_deaths() -> None:
    """A process may die while nobody waits for its batches: Paddle's handler raises its own error then."""
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and getattr(handler, "func", None) is not _on_end_of_child:
        signal.signal(signal.SIGCHLD, functools.partial(_on_end_of_child, handler))


def _on_end_of_child(handler: Callable[[int, Any], Any], number: int, frame: Any) -> None:
    try:
        handler(number, frame)
    except SystemError as error:
        logger.debug("Paddle says: %s", error)
        raise _death() from None


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


def _shared_memory_suffices(workers: int, batch_bytes: int) -> bool:
    """Whether the batches that are read ahead, and two that are in use, fit; if not, says what they need.

    Where they do not, the reading processes would die in the middle of the training.
    """
    if not sys.platform.startswith("linux"):
        return False
    needed = (_READ_AHEAD * workers + 2) * batch_bytes
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        free = 0
    if free < needed:
        logger.warning(
            "%s has %d MB free, and %d reading processes may need %d MB: they go on without it, which is "
            "slower; give the container more (docker run --shm-size=%dm) or lower worker_num",
            _SHARED_MEMORY,
            free >> 20,
            workers,
            -(-needed >> 20),
            -(-needed >> 20),
        )
    return free >= needed
