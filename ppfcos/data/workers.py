"""Loads batches in worker processes, or in this process."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Union

import cv2
import numpy as np
import paddle

from ppfcos.data.samples import Collate
from ppfcos.errors import DataError, PPFCOSError

Batch = dict[str, Any]

Items = list[Any]  # the indices of a batch's samples

_PREFETCH = 2  # batches that each worker loads ahead
_BOX_BYTES = 1 << 20  # of a buffer, besides the pixels
_ALIGNMENT = 64  # bytes, of the arrays in a buffer
_POLL_SECONDS = 1.0
_STOPPED_SECONDS = 20  # until a stopped worker (SIGSTOP) is an error; other ranks wait 30 seconds
_SHUTDOWN_SECONDS = 3.0  # until workers that do not exit by themselves are killed
_HINT = "lower worker_num, or set it to 0 to load images in the training process"


class _Worker(NamedTuple):
    number: int
    process: multiprocessing.process.BaseProcess
    connection: Connection
    buffers: Sequence[memoryview]


class WorkerBatches:
    """An iterator over batches that worker processes load, in the order of the items.

    Requests and small values are sent through pipes. Arrays are written to anonymous shared memory, which the
    workers inherit: nothing is left in /dev/shm however the processes end, and its size does not matter.

    The workers end when this object is closed or deleted, or within seconds of the end of this process. No
    other process and no signal handler of this process is touched.

    Args:
        samples: The dataset.
        items: The indices of each batch; may be infinite.
        collate: Makes a batch of samples.
        workers: Number of worker processes.
        batch_bytes: Size of a large batch. Larger ones are sent through the pipes, which is slower.

    Raises:
        DataError: The workers cannot be started.
    """

    def __init__(
        self,
        samples: paddle.io.Dataset,
        items: Iterable[Items],
        collate: Collate,
        workers: int,
        batch_bytes: int,
    ):
        self._items = iter(items)
        self._workers: list[_Worker] = []
        self._pending: deque[tuple[_Worker, int]] = deque()  # the worker and the buffer of each batch
        # Runs once: on close(), on deletion or at exit; not in a fork of this process.
        self.close = util.Finalize(self, _shut_down, [self._workers], exitpriority=100)
        try:
            for _ in range(workers):
                self._start_worker(samples, collate, batch_bytes)
        except (OSError, MemoryError) as error:
            self.close()
            raise DataError(
                f"cannot start data-loading worker {len(self._workers)} of {workers} ({error}): {_HINT}"
            ) from None
        for buffer in range(_PREFETCH):
            for worker in self._workers:
                self._request(worker, buffer)

    def __iter__(self) -> WorkerBatches:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: A worker died or is stopped, or a sample cannot be made.
        """
        if not self._pending:
            self.close()
            raise StopIteration
        worker, buffer = self._pending.popleft()
        content, spans = self._receive(worker)
        batch = pickle.loads(content, buffers=[worker.buffers[buffer][start:stop] for start, stop in spans])
        if isinstance(batch, Exception):
            raise batch
        batch = _on_device(batch)  # copies: the worker reuses the buffer
        self._request(worker, buffer)
        return batch

    def _start_worker(self, samples: paddle.io.Dataset, collate: Collate, batch_bytes: int) -> None:
        size = batch_bytes + _BOX_BYTES
        memory = memoryview(mmap.mmap(-1, _PREFETCH * size))
        buffers = [memory[start : start + size] for start in range(0, len(memory), size)]
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        number = len(self._workers)
        others = [worker.connection for worker in self._workers]
        arguments = (number, theirs, [ours, *others], buffers, samples, collate)
        process = context.Process(target=_work, args=arguments, daemon=True)
        with theirs:
            process.start()
        self._workers.append(_Worker(number, process, ours, buffers))

    def _request(self, worker: _Worker, buffer: int) -> None:
        items = next(self._items, None)
        if items is None:
            return
        with contextlib.suppress(OSError):  # it died: an error once the batch is needed
            worker.connection.send((buffer, items))
        self._pending.append((worker, buffer))

    def _receive(self, worker: _Worker) -> tuple[bytes, list[tuple[int, int]]]:
        sentinels = [each.process.sentinel for each in self._workers]
        stopped = 0
        while stopped * _POLL_SECONDS < _STOPPED_SECONDS:
            ready = wait([worker.connection, *sentinels], _POLL_SECONDS)
            if worker.connection in ready:
                try:
                    return worker.connection.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    self._raise_death(worker)
            for each in self._workers:
                if each.process.sentinel in ready or not each.process.is_alive():
                    self._raise_death(each)
            stopped = stopped + 1 if _is_stopped(worker) else 0
        pid = worker.process.pid
        raise DataError(
            f"{self._name(worker)} is stopped (state T) and sends no batch: resume it with kill -CONT {pid} "
            f"within {_STOPPED_SECONDS} s, or start again"
        )

    def _raise_death(self, worker: _Worker) -> NoReturn:
        worker.process.join(_SHUTDOWN_SECONDS)
        code = worker.process.exitcode
        if code is None:  # another part of the program read the exit code
            end = "died"
        elif code >= 0:
            end = f"exited with code {code}"
        else:
            reason = "most often memory ran out" if -code == signal.SIGKILL else signal.strsignal(-code)
            end = f"was killed by signal {-code} ({reason})"
        raise DataError(f"{self._name(worker)} {end}: {_HINT}") from None

    def _name(self, worker: _Worker) -> str:
        return f"data-loading worker {worker.number} of {len(self._workers)} (pid {worker.process.pid})"


Batches = Union[WorkerBatches, Generator[Batch, None, None]]


def open_batches(
    samples: paddle.io.Dataset, items: Iterable[Items], collate: Collate, workers: int, batch_bytes: int
) -> Batches:
    """Batches as `WorkerBatches` loads them; with 0 workers, and not on Linux, this process loads them."""
    if not workers or not sys.platform.startswith("linux"):
        return _load_here(samples, items, collate)
    return WorkerBatches(samples, items, collate, workers, batch_bytes)


def _load_here(
    samples: paddle.io.Dataset, items: Iterable[Items], collate: Collate
) -> Generator[Batch, None, None]:
    for indices in items:
        yield _on_device(collate([samples[index] for index in indices]))


def _on_device(batch: Batch) -> Batch:
    """Copy arrays to tensors on the current device."""
    if "failure" in batch:
        raise DataError(batch["failure"])
    return {
        key: paddle.to_tensor(value) if isinstance(value, np.ndarray) else value
        for key, value in batch.items()
    }


def _is_stopped(worker: _Worker) -> bool:
    """Whether the worker is stopped by a signal or a debugger."""
    try:
        stat = Path(f"/proc/{worker.process.pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in "Tt"


def _shut_down(workers: list[_Worker]) -> None:
    """Close the pipes, upon which workers exit after their current batch; kill those that do not."""
    for worker in workers:
        worker.connection.close()
    until = time.monotonic() + _SHUTDOWN_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.is_alive():  # stopped, or blocked by a file
            worker.process.kill()
            worker.process.join(_SHUTDOWN_SECONDS)


def _work(
    number: int,
    connection: Connection,
    inherited: list[Connection],
    buffers: Sequence[memoryview],
    samples: paddle.io.Dataset,
    collate: Collate,
) -> None:
    """Run a worker: load the requested batches until the training process closes the pipe."""
    # Ctrl-C, paddle.distributed.launch and systemd signal all processes; the training process handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for fatal in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
        signal.signal(fatal, signal.SIG_DFL)  # the training process reports it
    for other in inherited:  # they would stay open after the end of the training process
        other.close()
    parent = multiprocessing.parent_process()
    threading.Thread(target=_exit_after, args=[parent.pid], daemon=True).start()
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork
    warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF
    while True:
        try:
            buffer, items = connection.recv()
        except (EOFError, OSError):
            return
        try:
            batch = collate([samples[item] for item in items])
        except PPFCOSError as error:
            batch = error
        except MemoryError:
            batch = DataError(f"data-loading worker {number} ran out of memory: {_HINT}")
        except Exception:
            batch = RuntimeError(f"in data-loading worker {number}:\n{traceback.format_exc()}")
        try:
            connection.send(_packed(batch, buffers[buffer]))
        except OSError:
            return


def _exit_after(parent: int) -> None:
    """Exit when the training process has ended, even if another process holds the pipe open."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _packed(batch: Any, buffer: memoryview) -> tuple[bytes, list[tuple[int, int]]]:
    """Write the arrays of a batch to the buffer; returns the pickled rest and the spans of the arrays."""
    arrays: list[pickle.PickleBuffer] = []
    content = pickle.dumps(batch, protocol=5, buffer_callback=arrays.append)
    views, spans, stop = [array.raw() for array in arrays], [], 0
    for view in views:
        start = -(-stop // _ALIGNMENT) * _ALIGNMENT
        stop = start + view.nbytes
        spans.append((start, stop))
    if stop > len(buffer):
        return pickle.dumps(batch, protocol=5), []
    for view, (start, stop) in zip(views, spans):
        buffer[start:stop] = view
    return content, spans
