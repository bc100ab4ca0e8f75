"""Sources of images: files, folders, videos, cameras."""

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
NETWORK_SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "udp", "srt")

Name = Union[Path, int]
Source = Union[str, "os.PathLike[str]", int, Iterable[Image]]


def open_source(source: Source, allow_network: bool = False) -> Iterator[tuple[Name, Image]]:
    """Iterate over the images of a source.

    Args:
        source: an image file; a folder of images, see `read_pictures`; a video file; the index of a camera;
            an address, such as rtsp://…; or an iterable of images.
        allow_network: open addresses. OpenCV's FFmpeg connects to the host in an address, and to others that
            this host names, so an address must not come from an untrusted user.

    Returns:
        (name, image) pairs: the name is the path of an image file, otherwise the index of the frame.

    Raises:
        DataError: the source cannot be opened, or it is an address that is not allowed.
    """
    if isinstance(source, int):
        return read_frames(source)
    if isinstance(source, str) and ADDRESS in source:
        _check_address(source, allow_network)
        return read_frames(source)
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source))
    if isinstance(source, (bytes, np.ndarray, NV12Image)) or not isinstance(source, Iterable):
        raise DataError(
            "stream takes a path, a camera index or a list of images: put a single image into a list"
        )
    return enumerate(source)


def _check_address(address: str, allow_network: bool) -> None:
    if not allow_network:
        raise DataError(
            f"{address}: network addresses are not opened; pass allow_network=True to open this one"
        )
    if address.split(ADDRESS)[0].lower() not in NETWORK_SCHEMES:
        raise DataError(f"{address}: an address must start with one of {', '.join(NETWORK_SCHEMES)}")


def _open_path(path: Path) -> Iterator[tuple[Name, Image]]:
    if path.is_dir():
        return read_pictures(list_pictures(path))
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return read_frames(path)
    return iter([(path, read_image(path))])


def list_pictures(folder: Path) -> list[Path]:
    """The image files of a folder, sorted, without subfolders; a `DataError` if there are none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: contains no images ({', '.join(PICTURE_SUFFIXES)})")
    return paths


def read_pictures(paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Read image files as [H, W, 3] BGR uint8; files that cannot be read are logged and skipped."""
    for path in paths:
        try:
            image = read_image(path)
        except DataError as error:
            logger.warning("skipped: %s", error)
            continue
        yield path, image


def read_frames(source: Path | str | int) -> Iterator[tuple[int, np.ndarray]]:
    """Read the frames of a video or camera: (index, [H, W, 3] BGR uint8) pairs.

    Args:
        source: the path of a video, the address of a video or camera, or the index of a camera.

    Raises:
        DataError: it cannot be opened; raised by this call, not by the first frame.
    """
    return _frames(_opened(source))


@contextlib.contextmanager
def opened_video(source: Path | str | int) -> Iterator[cv2.VideoCapture]:
    """Open a video or camera, for its size and frame rate."""
    capture = _opened(source)
    try:
        yield capture
    finally:
        capture.release()


def _opened(source: Path | str | int) -> cv2.VideoCapture:
    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"{source}: there is no such file")
    # An absolute path is a file to FFmpeg; other names may be protocols, such as `concat:a|b.mp4`.
    name = str(source.absolute()) if isinstance(source, Path) else source
    capture = cv2.VideoCapture(name)
    # If it cannot open a video, OpenCV reads x1.mp4, x2.mp4 and so on as unchecked images.
    if not capture.isOpened() or capture.getBackendName() == "CV_IMAGES":
        what = f"camera {source}" if isinstance(source, int) else f"{source}: this video"
        raise DataError(f"{what} cannot be opened by OpenCV; check that it exists and has a known format")
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
