"""Decoded, resized images, kept in memory or in a file, for all the processes of a training that read.

Every image has its place from the beginning, since its size follows from the one that its annotation states
and from Resize. So nobody has to ask anybody for room: a process writes the pixels, and then says in the
index that they are there. Two that write one image write the same.

The layout of the file, and of the memory: a header that says of which images and which Resize it is; a row
for every image (`_ROW`); the pixels, [H, W, 3] uint8 RGB each.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import mmap
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ppfcos.data.images import read_image, read_reduced_image
from ppfcos.data.records import RecordStore
from ppfcos.data.transforms.uint8 import UInt8Resize
from ppfcos.errors import ConfigError, OutputError
from ppfcos.fileio import replacing, require_regular

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class FirstResize:
    """Images as Resize leaves them.

    Args:
        resize: What is done to each image right after decoding.
        cache: Where the results are kept, if anywhere.
        reduced: Whether a JPEG more than twice as large as it is wanted may be decoded at a reduced scale.
            Its pixels are then other ones, by a few levels.
    """

    def __init__(self, resize: UInt8Resize, cache: ImageCache | None = None, reduced: bool = False):
        self._resize = resize
        self._cache = cache
        self._reduced = reduced

    def image(self, position: int, record: Record) -> tuple[np.ndarray, int, int]:
        """The resized image of a record.

        Args:
            position: Where the record stands in its data set.
            record: The record.

        Returns:
            [H, W, 3] uint8 RGB, and the height and width that it had in its file.

        Raises:
            ImageUnreadable: It cannot be read.
        """
        path, stated = record["im_file"], (int(record.get("h", 0)), int(record.get("w", 0)))
        image = self._cache.find(position, path) if self._cache is not None else None
        if image is not None:
            return image, *stated  # right, or it would not have been kept
        image, height, width = self._read(path, stated)
        if self._cache is not None:
            self._cache.keep(position, path, image)
        return image, height, width

    def scale_annotation(self, sample: dict[str, Any]) -> dict[str, Any]:
        """What Resize does to a sample besides its pixels. Its `h` and `w` are those of the file."""
        return self._resize.scale_annotation(sample, int(sample["h"]), int(sample["w"]))

    def _read(self, path: str, stated: tuple[int, int]) -> tuple[np.ndarray, int, int]:
        if self._reduced and min(stated) > 0:
            (height, width), wanted = stated, self._resize.size_of(*stated)
            image = read_reduced_image(path, stated, wanted)
        else:
            image = read_image(path, stated if min(stated) > 0 else None)
            height, width = image.shape[:2]
        if image.shape[:2] == (height, width):
            return self._resize.resized(image), height, width
        return cv2.resize(image, wanted[::-1], interpolation=self._resize.interp), height, width


_VERSION = 1
_HEADER = 4096  # bytes
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOFOLLOW
# The picture's file as it was when it was read, the checksum of the pixels, and whether they are there.
_ROW = np.dtype([("size", "<i8"), ("mtime_ns", "<i8"), ("checksum", "<u4"), ("filled", "<u4")])


class ImageCache:
    """What Resize makes of each image, as far as there is room.

    An image whose size is not stated, or which has no room left, is not kept. One whose file has changed
    since, or whose pixels do not have their checksum, counts as not there and is replaced.

    Args:
        records: The images.
        resize: What is done to each, right after decoding.
        limit: The bytes that may be taken.
        path: The file; None: in memory, for as long as the processes live. A file of other images, of
            another Resize or another decoding is replaced.
        reduced: Whether what is kept may be decoded at a reduced scale.

    Raises:
        ConfigError: This machine cannot do that, or the file cannot be made.
    """

    def __init__(
        self,
        records: RecordStore,
        resize: UInt8Resize,
        limit: float,
        path: Path | None = None,
        reduced: bool = False,
    ):
        if not sys.platform.startswith("linux"):
            raise ConfigError("TrainReader.image_cache works on Linux only: set it to null")
        self._sizes = _resized_sizes(records, resize)
        start = _HEADER + -(-len(records) * _ROW.itemsize // _HEADER) * _HEADER
        self._ends = start + np.cumsum(self._sizes.prod(axis=1, dtype=np.int64) * 3)
        self._sizes[self._ends > limit] = 0
        kept = self._ends[self._sizes[:, 0] > 0]
        length = int(kept.max(initial=start))
        header = _header(records, [*_settings(resize), reduced, length])
        descriptor = _memory(length, header) if path is None else _file(path, length, header)
        try:
            self._bytes = mmap.mmap(descriptor, length)
        finally:
            os.close(descriptor)
        self._rows = np.frombuffer(self._bytes, _ROW, len(records), _HEADER)
        self._was_checked = np.zeros(len(records), dtype=bool)  # by this process
        logger.info(
            "image cache: %s, room for %d of %d images, %.1f GB",
            path or "in memory", len(kept), len(records), length / 1e9,
        )  # fmt: skip

    def find(self, index: int, picture: str) -> np.ndarray | None:
        """The resized image, if it is there and right.

        Args:
            index: Of its record.
            picture: Its file.

        Returns:
            [H, W, 3] uint8 RGB, the caller's own.
        """
        row = self._rows[index].copy()
        if (
            not row["filled"]
            or not self._sizes[index, 0]
            or _state(picture) != (row["size"], row["mtime_ns"])
        ):
            return None
        pixels = self._pixels(index)
        if not self._was_checked[index]:
            if zlib.crc32(pixels) != row["checksum"]:
                logger.debug("the cached pixels of %s are damaged", picture)
                return None
            self._was_checked[index] = True
        return pixels.copy()

    def keep(self, index: int, picture: str, image: np.ndarray) -> None:
        """Takes an image in, if it has a place.

        Args:
            index: Of its record.
            picture: Its file.
            image: [H, W, 3] uint8 RGB, resized.
        """
        state = _state(picture)
        if state is None or not self._sizes[index, 0] or image.shape[:2] != tuple(self._sizes[index]):
            return
        self._rows["filled"][index] = 0
        self._pixels(index)[:] = image
        self._rows[index] = (*state, zlib.crc32(np.ascontiguousarray(image)), 1)

    def _pixels(self, index: int) -> np.ndarray:
        height, width = (int(side) for side in self._sizes[index])
        count = height * width * 3
        flat = np.frombuffer(self._bytes, np.uint8, count, int(self._ends[index]) - count)
        return flat.reshape(height, width, 3)


def _resized_sizes(records: RecordStore, resize: UInt8Resize) -> np.ndarray:
    """[N, 2] height and width of what Resize makes of each image, 0 where its size is not stated."""
    stated = np.stack([records.columns["h"], records.columns["w"]], axis=1).astype(np.int64)
    kinds, which = np.unique(stated, axis=0, return_inverse=True)  # far fewer than images
    resized = [resize.size_of(int(h), int(w)) if h > 0 and w > 0 else (0, 0) for h, w in kinds]
    return np.array(resized, dtype=np.int32).reshape(-1, 2)[which.reshape(-1)]


def _settings(resize: UInt8Resize) -> list[Any]:
    return [_VERSION, resize.target_size, resize.keep_ratio, resize.interp, cv2.__version__]


def _header(records: RecordStore, settings: list[Any]) -> bytes:
    """What tells a cache of these images, made with these settings, from any other one."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for key in ("folder", "names", "name_ends", "h", "w"):
        digest.update(np.ascontiguousarray(records.columns[key]))
    return f"ppfcos image cache {digest.hexdigest()}\n".encode()


def _memory(length: int, header: bytes) -> int:
    """A descriptor of memory that forked processes share; unlike /dev/shm, containers do not limit it."""
    descriptor = os.memfd_create("ppfcos-images")
    os.truncate(descriptor, length)
    os.pwrite(descriptor, header, 0)
    return descriptor


def _file(path: Path, length: int, header: bytes) -> int:
    """A descriptor of the cache at `path`, made anew unless it is one of these images."""
    with contextlib.suppress(OSError):
        return _open(path, length, header)
    try:
        if os.path.lexists(path):
            if path.exists():
                require_regular(path)
            logger.info("%s is stale or broken and is made anew", path)
        _make_file(path, length, header)
        return _open(path, length, header)
    except (OSError, OutputError) as error:
        with contextlib.suppress(OSError):  # another process of the training was faster
            return _open(path, length, header)
        raise ConfigError(
            f"TrainReader.image_cache_dir: {error} ({length >> 20} MB wanted): name another folder, "
            "or lower TrainReader.image_cache_gb"
        ) from None


def _open(path: Path, length: int, header: bytes) -> int:
    """A descriptor of the cache at `path`.

    Raises:
        OSError: It cannot be read and written, or is not the cache of these images.
    """
    require_regular(path)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        if os.fstat(descriptor).st_size != length or os.pread(descriptor, len(header), 0) != header:
            raise OSError(errno.EINVAL, "is not the cache of these images", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _make_file(path: Path, length: int, header: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        descriptor = os.open(unfinished, _NEW_FILE, 0o666)
        try:
            # all of it now: a full disk would end the process that writes to the mapped file later
            os.posix_fallocate(descriptor, 0, length)
            os.pwrite(descriptor, header, 0)
        finally:
            os.close(descriptor)


def _state(picture: str) -> tuple[int, int] | None:
    """Size and time of a picture's file; None if it is not there."""
    try:
        about = os.stat(picture)
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns
