"""Parsed annotations on disk: a file of a million images takes minutes to parse, and this seconds to open.

One file holds the columns of a `RecordStore`, the categories, and what they were made of: the annotation
file's size and time, the time of the folder of images, and the keys that decide what is read. Whatever does
not agree with that, or cannot be read, is made anew. The times of folders below the folder of images are not
looked at: delete the cache after taking pictures out of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np

from ppfcos.data.record_store import RecordStore, check_columns
from ppfcos.data.records import DetectionData
from ppfcos.data.tally import Tally
from ppfcos.errors import DataError, OutputError
from ppfcos.files import replacing

logger = logging.getLogger(__name__)

_VERSION = 1
_META = "meta"  # beside the columns, a JSON text as bytes

Content = tuple[RecordStore, list[dict[str, Any]], Tally]


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
        self._state = json.dumps([_VERSION, text, _state(annotations), _state(images)])
        self.path = Path(folder) / f"{annotations.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"

    def open_or_make(self, make: Callable[[], DetectionData]) -> Content:
        """Records, categories and what reading left out: from the cache, if it is there and right.

        Args:
            make: Reads the annotations; called only where the cache is no use.
        """
        found = self._open()
        if found is not None:
            logger.info("annotations from %s", self.path)
            return found
        data = make()
        content = RecordStore.of(data.records), data.categories, data.tally
        try:
            self.write(*content)
        except OutputError as error:
            logger.warning("annotations are not cached: %s", error)
        return content

    def _open(self) -> Content | None:
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                columns = {key: stored[key] for key in stored.files}
            state, categories, changes = json.loads(columns.pop(_META).tobytes())
            tally = Tally.of(changes)
            check_columns(columns)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, DataError) as error:
            logger.warning("%s is broken and is made anew: %s", self.path, type(error).__name__)
            return None
        if state != self._state:
            logger.info("%s is of an earlier state of the data and is made anew", self.path)
            return None
        return RecordStore(columns), categories, tally

    def write(self, records: RecordStore, categories: list[dict[str, Any]], tally: Tally) -> None:
        """Keeps what was read of the annotations as they are now.

        Raises:
            OutputError: The file cannot be written.
        """
        meta = np.frombuffer(json.dumps([self._state, categories, tally.changes()]).encode(), dtype=np.uint8)
        # a stream, since np.savez would add a suffix to a name
        with replacing(self.path) as unfinished, open(unfinished, "wb") as stream:
            np.savez(stream, **{_META: meta}, **records.columns)


def _state(path: Path) -> list[int]:
    about = os.stat(path)
    return [about.st_size, about.st_mtime_ns]
