"""One picture and its boxes, looked at in a reading process; many of them side by side.

Nothing here imports Paddle: it would cost every reading process seconds and hundreds of megabytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFile
from tqdm import tqdm

from ppfcos.data.checker.responsibility import Geometry, Responsibility, responsibility
from ppfcos.data.images import ImageCutShort, ImageOfAnotherSize, ImageUnreadable, read_image
from ppfcos.data.records import clip_boxes
from ppfcos.environment import most_pixels
from ppfcos.errors import DataError
from ppfcos.regular_files import require_regular

_EXIF_ORIENTATION = 0x0112
_TURNS_BY_A_QUARTER = (5, 6, 7, 8)
_TURNED_BY_OPENCV = ("JPEG", "MPO", "PNG", "TIFF")
_KIND_OF_MODE = {
    "1": "image-grey",
    "L": "image-grey",
    "LA": "image-grey",
    "I;16": "image-grey",
    "I;16B": "image-grey",
    "P": "image-palette",
    "PA": "image-palette",
    "CMYK": "image-cmyk",
}
_PNG_DEPTH_AT, _TIFF_BITS = 24, 258
_TASKS_AT_ONCE = 8


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


class _Header(NamedTuple):
    """What a file says of its picture before its pixels."""

    format: str
    width: int
    height: int
    mode: str
    orientation: int
    deep: bool
    transparent: bool


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
    header = _header(task.path)
    if header is not None and header.width * header.height > most_pixels():
        return Look((("image-huge", f"{header.width}x{header.height} pixels"),))
    try:
        image = read_image(task.path, task.size)
    except ImageUnreadable as error:
        return Look(((_kind_of_failure(task, error, header), error.reason),))
    size = (image.shape[0], image.shape[1])
    kinds = () if header is None else (*_colour_kinds(header), *_turn_kinds(header, task.size))
    content = hashlib.blake2b(repr(size).encode() + image.tobytes(), digest_size=16).hexdigest()
    if task.geometry is None:
        return Look(kinds, size, content)
    boxes, _ = clip_boxes(task.boxes, *size)
    return Look(kinds, size, content, responsibility(boxes, *size, task.geometry))


def _header(path: str) -> _Header | None:
    """What Pillow reads of a file's head; None where it knows no such format."""
    try:
        require_regular(path)
        with _pillow_set_up(), Image.open(path) as picture:
            return _Header(
                str(picture.format),
                picture.width,
                picture.height,
                picture.mode,
                _orientation(picture),
                _is_deep(picture, path),
                "A" in picture.getbands() or "transparency" in picture.info,
            )
    except Exception:  # a broken head makes Pillow raise whatever it stumbles over
        return None


def _orientation(picture: Image.Image) -> int:
    """From 1, the upright one, to 8.

    Not by `getexif`, which decodes the whole of a PNG, and believes XMP where OpenCV does not.
    """
    exif = Image.Exif()
    exif.load(picture.info.get("exif", b""))
    tags = getattr(picture, "tag_v2", {})  # a TIFF's
    return int(tags.get(_EXIF_ORIENTATION) or exif.get(_EXIF_ORIENTATION) or 1)


@contextlib.contextmanager
def _pillow_set_up() -> Iterator[None]:
    """Pillow opens a picture of any size, whose pixels nobody asks for, and does not pass over a missing end.

    Both are settings of the process, and PaddleDetection changes the second when it is imported.
    """
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _is_deep(picture: Image.Image, path: str) -> bool:
    """Whether a channel has more than 8 bits; Pillow's mode does not tell for colours."""
    if picture.mode.startswith(("I", "F")):
        return True
    if picture.format == "PNG":
        with open(path, "rb") as stream:
            return stream.read(_PNG_DEPTH_AT + 1)[_PNG_DEPTH_AT] > 8
    bits = getattr(picture, "tag_v2", {}).get(_TIFF_BITS, (8,))
    return max(bits if isinstance(bits, tuple) else (bits,)) > 8


def _colour_kinds(header: _Header) -> Iterator[tuple[str, str]]:
    detail = f"Pillow calls its mode {header.mode}"
    if header.mode in _KIND_OF_MODE:
        yield _KIND_OF_MODE[header.mode], detail
    if header.deep:
        yield "image-16-bit", detail
    if header.transparent:
        yield "image-alpha", detail


def _turn_kinds(header: _Header, stated: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
    """What `read_image` made of the EXIF orientation of a picture that it could read."""
    if not 2 <= header.orientation <= 8:
        return
    detail = f"EXIF orientation {header.orientation}"
    exchanges_sides = header.orientation in _TURNS_BY_A_QUARTER and header.width != header.height
    if header.format not in _TURNED_BY_OPENCV:
        yield "image-not-turned", f"{detail}, which OpenCV takes no notice of in {header.format}"
    elif stated is None or not exchanges_sides:
        yield "image-turn-unclear", detail
    # libtiff has turned a TIFF before anybody can ask for the stored pixels
    elif header.format == "TIFF" or stated == (header.width, header.height):
        yield "image-turned", detail
    else:
        yield "image-not-turned", f"{detail}, but the stated size is that of the stored pixels"


def _kind_of_failure(task: Task, error: ImageUnreadable, header: _Header | None) -> str:
    if isinstance(error, ImageOfAnotherSize):
        return "image-size-differs"
    if isinstance(error, ImageCutShort):
        return "image-truncated"
    if header is None:
        return "image-unreadable"
    try:
        with _pillow_set_up(), Image.open(task.path) as picture:
            picture.load()
    except Exception as reason:  # as in _header
        return "image-truncated" if "truncated" in str(reason) else "image-unreadable"
    return "image-unreadable"
