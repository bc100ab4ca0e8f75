"""Records of a large data set in a few arrays, for a list of dicts takes ten times their memory.

A reading process is a fork of the training process and shares its memory until one of them writes to it.
Python writes to every object that it looks at (it counts references), and so copies a list of dicts page by
page; of an array it only touches the header.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ppfcos.errors import DataError

Record = dict[str, Any]

# What a record may lack, in the order of the bits that say what it has.
_OPTIONAL = ("h", "w", "gt_bbox", "gt_class", "is_crowd", "difficult", "gt_crowd")
_PER_BOX = {
    "gt_bbox": (np.float32, 4),
    "gt_class": (np.int32, 1),
    "is_crowd": (np.int32, 1),
    "difficult": (np.int32, 1),
}


class RecordStore(Sequence):
    """Records (see `ppfcos.data.records.Record`) that are made anew whenever one is asked for.

    To change a record that was given out changes nothing here.

    Args:
        columns: What `columns` gave, or a file of them.

    Attributes:
        columns: N records and M boxes of all of them, one record's behind another's: folder, uint8, and
            names, uint8, the text that all paths begin with and what follows it; name_ends [N] int64; im_id
            [N] int64; h, w [N]; has [N] uint8, a bit for each key that a record has; box_ends [N] int64;
            gt_bbox [M, 4] float32; gt_class, is_crowd, difficult [M], as small as their values allow; and
            apart from these crowd_ends [N] int64 and gt_crowd [K, 4] float32.
    """

    def __init__(self, columns: dict[str, np.ndarray]):
        self.columns = columns
        self._folder = columns["folder"].tobytes().decode("utf-8", "surrogateescape")
        self._bits = [(1 << bit, key) for bit, key in enumerate(_OPTIONAL)]

    @classmethod
    def of(cls, records: Iterable[Record]) -> RecordStore:
        """Puts records into arrays; the order stays."""
        records = list(records)
        paths = [str(record["im_file"]) for record in records]
        folder = os.path.commonprefix(paths)  # noqa: RUF071 - any text that all begin with will do
        names = [path[len(folder) :].encode("utf-8", "surrogateescape") for path in paths]
        boxes = [len(record.get("gt_bbox", ())) for record in records]
        has = [sum((key in record) << bit for bit, key in enumerate(_OPTIONAL)) for record in records]
        columns = {
            "folder": _bytes(folder.encode("utf-8", "surrogateescape")),
            "names": _bytes(b"".join(names)),
            "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
            "im_id": np.array([int(record["im_id"][0]) for record in records], dtype=np.int64),
            "has": np.array(has, dtype=np.uint8),
            "box_ends": np.cumsum(boxes, dtype=np.int64),
        }
        for key in ("h", "w"):
            sizes = np.array([record.get(key, 0) for record in records])
            columns[key] = sizes.astype(np.int32 if sizes.dtype.kind == "i" else np.float32)
        for key, (kind, width) in _PER_BOX.items():
            columns[key] = _rows(records, boxes, key, kind, width)
        crowds = [len(record.get("gt_crowd", ())) for record in records]
        columns["crowd_ends"] = np.cumsum(crowds, dtype=np.int64)
        columns["gt_crowd"] = _rows(records, crowds, "gt_crowd", np.float32, 4)
        return cls(columns)

    def __len__(self) -> int:
        return len(self.columns["im_id"])

    def __getitem__(self, index: int | slice) -> Any:
        """A record, or a list of them."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        columns = self.columns
        record: Record = {
            "im_file": self._folder + self._name(index),
            "im_id": columns["im_id"][index : index + 1].copy(),
        }
        start, end = self._span("box_ends", index)
        has = int(columns["has"][index])
        for bit, key in self._bits:
            if not has & bit:
                continue
            if key == "gt_crowd":
                first, last = self._span("crowd_ends", index)
                record[key] = columns[key][first:last].copy()
            elif key in _PER_BOX:
                kind, width = _PER_BOX[key]
                record[key] = columns[key][start:end].reshape(-1, width).astype(kind)
            else:
                record[key] = columns[key][index].item()
        return record

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def number_of_boxes(self) -> int:
        """The boxes of all records."""
        return len(self.columns["gt_bbox"])

    def number_of_crowds(self) -> int:
        """The boxes around crowds, of all records."""
        return len(self.columns["gt_crowd"])

    def without_crowds(self) -> RecordStore:
        """The same records without the key gt_crowd; all other columns are shared."""
        rest = self.columns["has"] & np.uint8(0xFF ^ (1 << _OPTIONAL.index("gt_crowd")))
        nothing = {
            "crowd_ends": np.zeros_like(self.columns["crowd_ends"]),
            "gt_crowd": np.zeros((0, 4), np.float32),
        }
        return RecordStore({**self.columns, **nothing, "has": rest})

    def _name(self, index: int) -> str:
        start, end = self._span("name_ends", index)
        return self.columns["names"][start:end].tobytes().decode("utf-8", "surrogateescape")

    def _span(self, ends: str, index: int) -> tuple[int, int]:
        column = self.columns[ends]
        return (int(column[index - 1]) if index else 0), int(column[index])


def check_columns(columns: dict[str, np.ndarray], classes: int) -> None:
    """Whether columns belong together, and hold nothing that reading annotations does not give.

    Args:
        columns: As in `RecordStore`.
        classes: The number of classes.

    Raises:
        DataError: They do not.
    """
    try:
        images, boxes, crowds = (len(columns[key]) for key in ("im_id", "gt_bbox", "gt_crowd"))
        lengths = {
            **dict.fromkeys(("name_ends", "has", "box_ends", "crowd_ends", "h", "w"), (images,)),
            **dict.fromkeys(("gt_class", "is_crowd", "difficult"), (boxes,)),
            **{"gt_bbox": (boxes, 4), "gt_crowd": (crowds, 4), "im_id": (images,)},
            **{"names": (len(columns["names"]),), "folder": (len(columns["folder"]),)},
        }
        ends = {"name_ends": len(columns["names"]), "box_ends": boxes, "crowd_ends": crowds}
        whole = ("names", "folder", "has", "gt_class", "is_crowd", "difficult", "im_id", *ends)
        fits = (
            set(columns) == set(lengths)
            and all(columns[key].shape == shape for key, shape in lengths.items())
            and all(columns[key].dtype.kind in "iu" for key in whole)
            and all(columns[key].dtype == np.uint8 for key in ("names", "folder", "has"))
            and all(_are_ends(columns[key], total) for key, total in ends.items())
            and all(np.isfinite(columns[key]).all() for key in ("gt_bbox", "gt_crowd", "h", "w"))
            and all(_are_below(columns[key], 2) for key in ("is_crowd", "difficult"))
            and _are_below(columns["gt_class"], classes)
            and not any((columns[key] == 0).any() for key in ("names", "folder"))  # no path has a NUL
        )
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise DataError("the columns of the records do not fit one another: read the annotations again")


def _are_ends(column: np.ndarray, total: int) -> bool:
    """Whether they divide a column of `total` entries into parts, one behind another."""
    last = int(column[-1]) if len(column) else 0
    return last == total and bool((np.diff(column.astype(np.int64), prepend=0) >= 0).all())


def _are_below(column: np.ndarray, end: int) -> bool:
    """Whether they are whole numbers from 0 to before `end`."""
    return not len(column) or bool(column.min() >= 0 and column.max() < end)


def _bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, dtype=np.uint8)


def _rows(records: Sequence[Record], boxes: Sequence[int], key: str, kind: type, width: int) -> np.ndarray:
    """One value or row for each box of all records, zeros where a record lacks the key."""
    parts = [
        np.asarray(record[key]).reshape(-1, width) if key in record else np.zeros((count, width), kind)
        for record, count in zip(records, boxes)
    ]
    rows = np.concatenate(parts or [np.zeros((0, width))]).astype(kind)
    if width > 1:
        return rows
    smallest = np.min_scalar_type(int(rows.max())) if len(rows) and rows.min() >= 0 else np.dtype(kind)
    return rows[:, 0].astype(np.uint8 if not len(rows) else smallest)
