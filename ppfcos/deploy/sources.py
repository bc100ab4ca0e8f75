"""Where images come from: pictures, folders of them, videos, cameras."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Union

import cv2
import numpy as np

from ppfcos.deploy.images import Image, NV12Image, read_image
from ppfcos.errors import DataError

logger = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")
ADDRESS = "://"

Name = Union[Path, int]
Source = Union[str, "os.PathLike[str]", int, Iterable[Image]]


def open_source(source: Source) -> Iterator[tuple[Name, Image]]:
    """The images of a source, one after the other.

    Args:
        source: a picture's file; a folder of pictures, see `read_pictures`; a video's file; the number of a
            camera, or the address of one, such as rtsp://…; or images of any kind that can be gone through.

    Returns:
        Each image with its name: the path of a picture's file, else its number from 0 on.

    Raises:
        DataError: it cannot be opened.
    """
    if isinstance(source, int):
        return read_frames(source)
    if isinstance(source, (str, os.PathLike)):
        return _open_name(source)
    if isinstance(source, (bytes, np.ndarray, NV12Image)) or not isinstance(source, Iterable):
        raise DataError("stream takes a path, a camera's number or several images: put one image into a list")
    return enumerate(source)


def _open_name(name: str | os.PathLike[str]) -> Iterator[tuple[Name, Image]]:
    if isinstance(name, str) and ADDRESS in name:
        return read_frames(name)
    path = Path(name)
    if path.is_dir():
        return read_pictures(list_pictures(path))
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return read_frames(path)
    return iter([(path, read_image(path))])


def list_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder by name; those in folders below it are not taken.

    Raises:
        DataError: there are none.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    return paths


def read_pictures(paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """The pictures that can be read, [H, W, 3] uint8; the others are named in the log and left out."""
    for path in paths:
        try:
            image = read_image(path)
        except DataError as error:
            logger.warning("left out: %s", error)
            continue
        yield path, image


def read_frames(source: Path | str | int) -> Iterator[tuple[int, np.ndarray]]:
    """The frames of a video or of a camera, which never ends, with their numbers.

    Args:
        source: the video's file, the address of a video or of a camera, or the camera's number.

    Returns:
        Numbers from 0, and [H, W, 3] uint8, blue first.

    Raises:
        DataError: it cannot be opened; at once, not when the first frame is asked for.
    """
    return _frames(_opened(source))


@contextlib.contextmanager
def opened_video(source: Path | str | int) -> Iterator[cv2.VideoCapture]:
    """A video or a camera, to be asked for its size and frame rate; closed in the end."""
    capture = _opened(source)
    try:
        yield capture
    finally:
        capture.release()


def _opened(source: Path | str | int) -> cv2.VideoCapture:
    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"{source}: there is no such file")
    capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    # where no video opens, OpenCV takes x1.mp4, x2.mp4 and so on for images, which nothing here has checked
    if not capture.isOpened() or capture.getBackendName() == "CV_IMAGES":
        what = f"camera {source}" if isinstance(source, int) else f"{source}: this video"
        raise DataError(f"{what} cannot be opened by OpenCV; see that it is there and of a known kind")
    return capture


def _frames(capture: cv2.VideoCapture) -> Iterator[tuple[int, np.ndarray]]:
    try:
        number = 0
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield number, frame
            number += 1
    finally:
        capture.release()
