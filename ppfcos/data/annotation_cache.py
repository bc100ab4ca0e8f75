"""A cache of parsed annotations: a million images take minutes to parse, and seconds to open from the cache.

One file holds the columns of a `RecordStore`, the categories, and their source: the size and time of the
annotation file, the time of the image folder, and the keys that decide what is read. A cache of another
source, or a broken one, is written again. Subfolders of the image folder are not checked: delete the cache
after removing images from them.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np

from ppfcos.data.records import DetectionData, RecordStore, check_columns
from ppfcos.data.statistics import LoadStatistics
from ppfcos.errors import DataError, OutputError, one_line
from ppfcos.fileio import replacing, require_regular

logger = logging.getLogger(__name__)

_VERSION = 1
_MAX_HEADER = 1024  # bytes of a .npy file that hold its header; np.save writes 128
_META = "meta"  # beside the columns, a JSON text as bytes

Content = tuple[RecordStore, list[dict[str, Any]], LoadStatistics]


class AnnotationCache:
    """The cache of one data set.

    Args:
        folder: Where it lies, with those of others.
        annotations: The annotation file.
        images: The folder of its images.
        keys: What else decides what is read of them, such as the section's keys and the seed.
    """

    def __init__(self, folder: Path | str, annotations: Path, images: Path, keys: Mapping[str, Any]):
        fixed = {"annotations": os.path.abspath(annotations), "images": os.path.abspath(images), "keys": keys}
        text = json.dumps(fixed, sort_keys=True, default=str)
        # Columns are smaller than the annotations; the rest is headers, and the folder in every name.
        self._max_bytes = 2 * os.path.getsize(annotations) + (1 << 20)
        self._state = json.dumps([_VERSION, text, _state(annotations), _state(images)])
        self.path = Path(folder) / f"{annotations.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"

    def open_or_make(self, make: Callable[[], DetectionData]) -> Content:
        """Records, categories and statistics: from the cache if it is valid, or else from `make`."""
        found = self._open()
        if found is not None:
            logger.info("annotations from %s", self.path)
            return found
        data = make()
        content = RecordStore.from_records(data.records), data.categories, data.tally
        if os.environ.get("PADDLE_LOCAL_RANK", "0") != "0":  # the first process of the machine writes
            return content
        try:
            self.write(*content)
        except OutputError as error:
            logger.warning("annotations are not cached: %s", error)
        return content

    def _open(self) -> Content | None:
        try:
            columns = _read_arrays(self.path, self._max_bytes)
            state, categories, changes = json.loads(columns.pop(_META).tobytes())
            if state != self._state:
                logger.info("%s is of an earlier state of the data and is made anew", self.path)
                return None
            tally = LoadStatistics.from_dict(changes)
            check_columns(columns, len(check_categories(categories)))
            return RecordStore(columns), categories, tally
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever is wrong with the file, the annotations themselves are there
            logger.warning("%s is broken and is made anew: %s", self.path, one_line(error))
            return None

    def write(self, records: RecordStore, categories: list[dict[str, Any]], tally: LoadStatistics) -> None:
        """Write the cache; raises OutputError if it cannot be written."""
        meta = np.frombuffer(json.dumps([self._state, categories, tally.changes()]).encode(), dtype=np.uint8)
        # a stream, since np.savez would add a suffix to a name
        if self.path.is_symlink():  # `replacing` would write to the file that it points to
            self.path.unlink()
        with replacing(self.path) as unfinished, open(unfinished, "wb") as stream:
            np.savez(stream, **{_META: meta}, **records.columns)


def check_categories(categories: Any) -> list[dict[str, Any]]:
    """Return categories if each has an id and a name, or raise DataError."""
    if not (
        isinstance(categories, list)
        and all(isinstance(each, dict) for each in categories)
        and all(type(each.get("id")) is int and isinstance(each.get("name"), str) for each in categories)
    ):
        raise DataError("the categories have no id or no name")
    return categories


def _read_arrays(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    """The arrays of a file that np.savez wrote; never more memory than the file has bytes.

    np.load would decompress, and allocate whatever size an array claims.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger than `max_bytes`.
        ValueError, zipfile.BadZipFile, ...: It is something else.
    """
    require_regular(path)
    if os.path.getsize(path) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes} bytes")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed")
        if sum(member.file_size for member in members) > max_bytes:
            raise ValueError("its arrays are larger than the file")
        return {member.filename[: -len(".npy")]: _array(archive.read(member)) for member in members}


def _array(data: bytes) -> np.ndarray:
    """The array of numbers in a .npy file of version 1.

    Raises:
        ValueError: It is none, or its sizes contradict each other.
    """
    stream = io.BytesIO(data[:_MAX_HEADER])
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another version")
    shape, is_fortran, kind = np.lib.format.read_array_header_1_0(stream)
    if (
        kind.kind not in "iuf"
        or kind.itemsize > 8
        or len(shape) not in (1, 2)
        or (is_fortran and len(shape) > 1)
    ):
        raise ValueError("an array that is no column of numbers")
    return np.frombuffer(data, kind, offset=stream.tell()).reshape(shape)


def _state(path: Path) -> list[int]:
    about = os.stat(path)
    return [about.st_size, about.st_mtime_ns]
