"""The results of `tools/infer.py`: a JSON file that is complete after every image."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppfcos.console import printable
from ppfcos.deploy import Detections
from ppfcos.errors import OutputError
from ppfcos.json_files import to_json

logger = logging.getLogger(__name__)

_END = b"\n]\n"


class Drawn(NamedTuple):
    """The detections of one image or frame: its number, its file's name, and all detections."""

    number: int
    name: str
    detections: Detections


class ResultsFile:
    """A JSON file with a list, to which rows are added; it is valid after each addition.

    Args:
        path: of the file; a regular file of this name is replaced.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self._end, self._separator = 0, b"[\n"
        with _named_where_it_fails(path):
            if os.path.isfile(path) or os.path.islink(path):
                path.unlink()
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115
            self._write(0, b"[" + _END)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows; if that fails with an OutputError, the file is unchanged."""
        if not rows:
            return
        text = self._separator + ",\n".join(to_json(row) for row in rows).encode()
        with _named_where_it_fails(self.path):
            try:
                self._write(self._end, text + _END)
            except OSError:
                # Overwriting needs no space on a full disk.
                end = _END if self._end else b"[" + _END
                self._write(self._end, end)
                self._file.truncate(self._end + len(end))
                raise
        self._end += len(text)
        self._separator = b",\n"

    def close(self) -> None:
        """Sync the file to the disk and close it."""
        with _named_where_it_fails(self.path), self._file:
            os.fsync(self._file.fileno())

    def _write(self, position: int, data: bytes) -> None:
        self._file.seek(position)
        while data:
            data = data[self._file.write(data) :]


@contextlib.contextmanager
def _named_where_it_fails(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def result_rows(drawn: Drawn, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections in COCO's result format, with the names of the file and the class."""
    detections = drawn.detections
    rows = []
    for box, label, score in zip(detections.boxes.tolist(), detections.labels, detections.scores):
        x0, y0, x1, y1 = box
        rows.append(
            {
                "image_id": drawn.number,
                "file_name": drawn.name,
                "category_id": category_ids[int(label)],
                "category_name": detections.class_names[int(label)],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(score),
            }
        )
    return rows


class Results:
    """A context manager for detections in memory and, with a path, in a JSON file.

    The file is written as `bbox.unfinished.json` and is valid after each image. `finish` renames it to
    `bbox.json`, and so does an error or a signal other than SIGKILL. Of several processes, each writes
    `bbox.unfinished.RANK.json`, and only `finish` writes `bbox.json`.

    Args:
        path: of the file, or None.
        category_ids: by label.
    """

    def __init__(self, path: Path | None, category_ids: Sequence[int], rank: int = 0, processes: int = 1):
        self.drawn: list[Drawn] = []
        self._path, self._category_ids, self._rank = path, category_ids, rank
        self._is_alone = processes == 1
        self._file: ResultsFile | None = None

    def __enter__(self) -> Results:
        if self._path is not None:
            if self._path.exists() and not self._path.is_file():
                raise OutputError(
                    f"{self._path} is not a regular file, and is not replaced: name another folder"
                )
            number = "" if self._is_alone else f".{self._rank}"
            self._file = ResultsFile(self._path.with_name(f"{self._path.stem}.unfinished{number}.json"))
        return self

    def add(self, drawn: Drawn) -> None:
        """Add the detections of an image."""
        if self._file is not None:
            self._file.add(result_rows(drawn, self._category_ids))
        self.drawn.append(drawn)

    def finish(self, drawn: Sequence[Drawn]) -> None:
        """Put the file in place, with the detections of all processes in the order of the images."""
        if self._file is None or self._path is None:
            return
        if self._rank == 0:
            if len(drawn) > len(self.drawn):  # those of other processes
                self._file.close()
                self._file = ResultsFile(self._file.path)
                for each in drawn:
                    self._file.add(result_rows(each, self._category_ids))
            self._file.close()
            with _named_where_it_fails(self._path):
                os.replace(self._file.path, self._path)
                for left in self._path.parent.glob(f"{self._path.stem}.unfinished*.json"):
                    left.unlink(missing_ok=True)  # of other processes and of earlier interrupted runs
        else:
            self._file.close()
            self._file.path.unlink(missing_ok=True)
        self._file = None

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError, OutputError):  # the first error is reported
            self._file.close()
            if not self.drawn:
                self._file.path.unlink(missing_ok=True)
                return
            if self._is_alone and self._path is not None:
                os.replace(self._file.path, self._path)
                self._file.path = self._path
            logger.warning("the boxes of %d images are in %s", len(self.drawn), self._file.path)


def tag(name: str) -> str:
    """The tag of an image in VisualDL."""
    return f"detections/{printable(name)}"
