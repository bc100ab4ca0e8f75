"""One picture and its boxes, looked at in a reading process; many of them side by side.

Nothing here imports Paddle: it would cost every reading process seconds and hundreds of megabytes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from ppfcos.data.check.levels import Geometry, Responsibility, responsibility
from ppfcos.data.images import (
    ImageTruncated,
    ImageSizeMismatch,
    ImageTooLarge,
    ImageUnreadable,
    color_issues,
    read_header,
    read_image,
    orientation_issues,
)
from ppfcos.data.records import clip_boxes
from ppfcos.errors import DataError

_TASKS_AT_ONCE = 8
_KIND_OF_FAILURE = {
    ImageSizeMismatch: "image-size-differs",
    ImageTruncated: "image-truncated",
    ImageTooLarge: "image-huge",
    ImageUnreadable: "image-unreadable",
}


class Task(NamedTuple):
    """One picture to look at.

    Attributes:
        path: Its file.
        size: (height, width) that the annotation states, or None.
        boxes: [M, 4] float32 x0y0x1y1 for which somebody should be responsible.
        geometry: By what that is decided; None where it does not matter.
    """

    path: str
    size: tuple[int, int] | None
    boxes: np.ndarray
    geometry: Geometry | None


class Look(NamedTuple):
    """What was seen of one picture.

    Attributes:
        kinds: (kind of finding, detail) each.
        size: (height, width) in the frame of the annotation; None where it could not be decoded.
        content: Of the decoded pixels the same text for the same picture; empty where there are none.
        responsibility: Of its boxes, where that was asked for.
    """

    kinds: tuple[tuple[str, str], ...]
    size: tuple[int, int] | None = None
    content: str = ""
    responsibility: Responsibility | None = None


def look_at_all(tasks: Sequence[Task], workers: int, title: str) -> list[Look]:
    """Looks at pictures in processes of their own, with a progress bar on a terminal.

    Args:
        tasks: The pictures.
        workers: The number of processes; 0 looks in this one.
        title: Of the progress bar.

    Returns:
        One answer a task, in their order.

    Raises:
        DataError: A reading process died.
    """
    looks: list[Look] = []
    source = map(look_at, tasks) if workers == 0 else _look_elsewhere(tasks, workers)
    bar = tqdm(source, title, len(tasks), unit="image", disable=not sys.stderr.isatty())
    try:
        looks.extend(bar)
    except BrokenProcessPool:
        raise DataError(
            f"one of {workers} processes that read images died at {tasks[len(looks)].path} or soon after: "
            "most often memory ran out: lower --workers, or set it to 0 to read in one process"
        ) from None
    return looks


def _look_elsewhere(tasks: Sequence[Task], workers: int) -> Iterator[Look]:
    # spawn: a fork of a process in which Paddle has started threads may hang
    context = multiprocessing.get_context("spawn")
    workers = min(workers, -(-len(tasks) // _TASKS_AT_ONCE)) or 1
    with ProcessPoolExecutor(workers, context, _start_of_worker) as pool:
        try:
            yield from pool.map(look_at, tasks, chunksize=_TASKS_AT_ONCE)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_of_worker() -> None:
    cv2.setNumThreads(0)  # the processes are the parallelism
    # libpng and libtiff complain of every bad picture there, across the progress bar
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def look_at(task: Task) -> Look:
    """Everything that is to be known of one picture.

    Args:
        task: The picture and its boxes.

    Returns:
        What was seen; a picture that training cannot read has one kind only, the reason.
    """
    try:
        image = read_image(task.path, task.size)
    except ImageUnreadable as error:
        kinds = (kind for error_class, kind in _KIND_OF_FAILURE.items() if isinstance(error, error_class))
        return Look(((next(kinds), error.reason),))
    header = read_header(task.path)
    size = (image.shape[0], image.shape[1])
    kinds = () if header is None else (*color_issues(header), *orientation_issues(header, task.size))
    content = hashlib.blake2b(repr(size).encode() + image.tobytes(), digest_size=16).hexdigest()
    if task.geometry is None:
        return Look(kinds, size, content)
    boxes, _ = clip_boxes(task.boxes, *size)
    return Look(kinds, size, content, responsibility(boxes, *size, task.geometry))
