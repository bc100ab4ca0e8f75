"""The results of `tools/infer.py`: a JSON file that is whole after every image."""

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
    """What was found in one picture or frame.

    Attributes:
        number: of the picture among those named, or of the frame.
        name: of the picture's or the video's file.
        detections: all of them, drawn or not.
    """

    number: int
    name: str
    detections: Detections


class ResultsFile:
    """A list of results in a JSON file to which rows are added; whoever reads it in between finds it whole.

    Args:
        path: of the file. A regular file of this name is replaced.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self._end, self._separator = 0, b"[\n"
        with _named_where_it_fails(path):
            if os.path.isfile(path) or os.path.islink(path):
                path.unlink()
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by close()
            self._write(0, b"[" + _END)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows, and the end of the list after them.

        Raises:
            OutputError: they cannot be written; the file is as it was.
        """
        if not rows:
            return
        text = self._separator + ",\n".join(to_json(row) for row in rows).encode()
        with _named_where_it_fails(self.path):
            try:
                self._write(self._end, text + _END)
            except OSError:
                # What is overwritten here was written before, and needs no further room on a full disk.
                end = _END if self._end else b"[" + _END
                self._write(self._end, end)
                self._file.truncate(self._end + len(end))
                raise
        self._end += len(text)
        self._separator = b",\n"

    def close(self) -> None:
        """Close the file, once it is on the disk."""
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
    """The detections of an image as in COCO's result files, with the names of the file and the class."""
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
    """What was found so far, in memory and, where that is wanted, in a file.

    A context. Where it is left by an error or a signal, the file keeps what was found until then: under its
    own name in the first process, as `bbox.unfinished.N.json` in process N. A SIGKILL leaves
    `bbox.unfinished.json`, which is whole too.

    Args:
        path: of the file; None writes none.
        category_ids: by label.
        rank: of this process.

    Attributes:
        drawn: what was added.
    """

    def __init__(self, path: Path | None, category_ids: Sequence[int], rank: int = 0):
        self.drawn: list[Drawn] = []
        self._path, self._category_ids, self._rank = path, category_ids, rank
        self._file: ResultsFile | None = None

    def __enter__(self) -> Results:
        if self._path is not None:
            if self._path.exists() and not self._path.is_file():
                raise OutputError(
                    f"{self._path} is no regular file, and is not replaced: name another folder"
                )
            number = f".{self._rank}" if self._rank else ""
            self._file = ResultsFile(self._path.with_name(f"{self._path.stem}.unfinished{number}.json"))
        return self

    def add(self, drawn: Drawn) -> None:
        """Keep what was found in an image.

        Raises:
            OutputError: it cannot be written.
        """
        if self._file is not None:
            self._file.add(result_rows(drawn, self._category_ids))
        self.drawn.append(drawn)

    def finish(self, drawn: Sequence[Drawn]) -> None:
        """Put the file in place.

        Args:
            drawn: of all processes, in the order of the images.

        Raises:
            OutputError: it cannot be written.
        """
        if self._file is None or self._path is None:
            return
        if self._rank == 0:
            if len(drawn) > len(self.drawn):  # other processes have found some
                self._file.close()
                self._file = ResultsFile(self._file.path)
                for each in drawn:
                    self._file.add(result_rows(each, self._category_ids))
            self._file.close()
            with _named_where_it_fails(self._path):
                os.replace(self._file.path, self._path)
        else:
            self._file.close()
            self._file.path.unlink(missing_ok=True)
        self._file = None

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError, OutputError):  # what ended the run is reported, not this
            self._file.close()
            if not self.drawn:
                self._file.path.unlink(missing_ok=True)
                return
            if self._rank == 0 and self._path is not None:
                os.replace(self._file.path, self._path)
                self._file.path = self._path
            logger.warning("the boxes of the first %d images are in %s", len(self.drawn), self._file.path)


def tag(name: str) -> str:
    """The tag of an image in VisualDL."""
    return f"detections/{printable(name)}"
