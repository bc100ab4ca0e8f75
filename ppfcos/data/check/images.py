"""Decode images in workers and report what is wrong with them.

Nothing here imports Paddle, which would cost every worker seconds and hundreds of megabytes.
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
from tqdm import tqdm

from ppfcos.data.images import (
    ImageSizeMismatch,
    ImageTooLarge,
    ImageTruncated,
    ImageUnreadable,
    color_issues,
    orientation_issues,
    read_header,
    read_image,
)
from ppfcos.errors import DataError

_CHUNK = 8
_ISSUE_OF_ERROR = {
    ImageSizeMismatch: "image-size-differs",
    ImageTruncated: "image-truncated",
    ImageTooLarge: "image-huge",
    ImageUnreadable: "image-unreadable",
}


class ImageTask(NamedTuple):
    """An image to check: its file, and the (height, width) that its annotation states, or None."""

    path: str
    size: tuple[int, int] | None


class ImageCheck(NamedTuple):
    """The result of decoding an image.

    Attributes:
        issues: (issue type, detail) each.
        size: (height, width) in the frame of the annotation; None if the image cannot be decoded.
        content: A digest of the decoded pixels; empty if there are none.
    """

    issues: tuple[tuple[str, str], ...]
    size: tuple[int, int] | None = None
    content: str = ""


def check_images(tasks: Sequence[ImageTask], workers: int, title: str) -> Iterator[ImageCheck]:
    """Check images in worker processes, with a progress bar on a terminal.

    Args:
        tasks: The images.
        workers: The number of processes; 0 uses this one.
        title: Of the progress bar.

    Yields:
        One result per task, in their order.

    Raises:
        DataError: A worker died.
    """
    results = map(check_image, tasks) if workers == 0 else _check_in_workers(tasks, workers)
    done = 0
    try:
        for result in tqdm(results, title, len(tasks), unit="image", disable=not sys.stderr.isatty()):
            yield result
            done += 1
    except BrokenProcessPool:
        raise DataError(
            f"one of {workers} workers died at {tasks[done].path} or soon after, most often because memory "
            "ran out: lower --workers, or set it to 0 to read in one process"
        ) from None


def _check_in_workers(tasks: Sequence[ImageTask], workers: int) -> Iterator[ImageCheck]:
    # spawn: a fork of a process in which Paddle has started threads may hang
    context = multiprocessing.get_context("spawn")
    workers = min(workers, -(-len(tasks) // _CHUNK)) or 1
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        try:
            yield from pool.map(check_image, tasks, chunksize=_CHUNK)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(0)  # the processes are the parallelism
    # libpng and libtiff print there for every bad image, across the progress bar
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def check_image(task: ImageTask) -> ImageCheck:
    """Decode an image; one that training cannot read has a single issue, the reason."""
    try:
        image = read_image(task.path, task.size)
    except ImageUnreadable as error:
        kind = next(kind for error_class, kind in _ISSUE_OF_ERROR.items() if isinstance(error, error_class))
        return ImageCheck(((kind, error.reason),))
    header = read_header(task.path)
    size = (image.shape[0], image.shape[1])
    issues = () if header is None else (*color_issues(header), *orientation_issues(header, task.size))
    content = hashlib.blake2b(repr(size).encode() + image.tobytes(), digest_size=16).hexdigest()
    return ImageCheck(issues, size, content)
