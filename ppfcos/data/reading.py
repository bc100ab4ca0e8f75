"""Batches that processes of their own read, or this one."""

from __future__ import annotations

import atexit
import ctypes
import functools
import logging
import multiprocessing
import shutil
import signal
import sys
import threading
from collections.abc import Generator, Iterable
from typing import Any, Callable, Union

import cv2
import numpy as np
import paddle

from ppfcos.data.collate import Collate
from ppfcos.errors import DataError

logger = logging.getLogger(__name__)

Batch = dict[str, Any]

# A batch before it is read: what its samples are asked for by.
Items = list[Any]

_SHARED_MEMORY = "/dev/shm"
_READ_AHEAD = 2  # batches that each reading process works ahead
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_PATIENCE = 3  # seconds that one gets to end by itself


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


def open_source(
    samples: paddle.io.Dataset, items: Iterable[Items], collate: Collate, workers: int, batch_bytes: int
) -> Source:
    """The batches of these items, in this order.

    Args:
        samples: What gives a sample for each of a batch's items.
        items: The batches, without end if need be.
        collate: Makes a batch of samples.
        workers: The number of processes that read; 0: none, this process reads.
        batch_bytes: The most that a batch takes, to find out whether shared memory suffices.
    """
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
    _die_with_the_training()
    cv2.setNumThreads(0)  # the processes are the parallelism, and OpenCV's threads do not survive a fork


def _die_with_the_training() -> None:
    """Paddle's reading process waits for work for ever where the training process was killed."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


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
