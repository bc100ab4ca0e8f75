"""What every data set becomes: a list of records, one an image, and the categories behind the labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import numpy as np

from ppfcos.data.rng import generator
from ppfcos.data.statistics import LoadEvent, LoadStatistics
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


# A record is PaddleDetection's dict of one image:
#   im_file str, im_id int64 [1], h and w (0: not stated), gt_bbox float32 [M, 4] x0y0x1y1 in pixels,
#   gt_class int32 [M, 1], is_crowd int32 [M, 1], and from Pascal VOC difficult int32 [M, 1].
# Where crowds are ignored in training, all records also have gt_crowd float32 [K, 4], boxes like gt_bbox.
# Images to be looked at only (ImageFolder) have im_file and im_id.

# A side this short (pixels) is no side: PaddleDetection's limit for COCO.
MIN_BOX_SIDE = 1e-5
# What a record and a sample say of each box, row by row.
PER_BOX = ("gt_bbox", "gt_class", "is_crowd", "difficult")


class EpochSampling:
    """Which records an epoch of a joined data set goes through: each part as often as its weight says.

    A part of weight 2 comes twice, one of weight 0.5 with half of its images. That half is another one in
    every epoch, in an order that the seed decides, until all have had their turn.

    Args:
        sizes: The number of records of each part; the parts follow one another in the list of records.
        weights: How often an epoch goes through each part.
        seed: Decides the order in which the images of a part have their turns.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        self._parts = list(zip(sizes, weights))
        self._orders = [generator(seed, part).permutation(size) for part, size in enumerate(sizes)]
        self._drawn: tuple[int, np.ndarray] = (0, self._draw(0))

    def __len__(self) -> int:
        return len(self._drawn[1])

    def positions(self, epoch: int) -> np.ndarray:
        """Positions in the list of records, int64 [len(self)].

        Args:
            epoch: From 0.
        """
        if self._drawn[0] != epoch:
            self._drawn = (epoch, self._draw(epoch))
        return self._drawn[1]

    def _draw(self, epoch: int) -> np.ndarray:
        drawn, start = [], 0
        for (size, weight), order in zip(self._parts, self._orders):
            rounds, more = divmod(max(1, round(size * weight)), size)
            turns = (epoch * more + np.arange(more)) % size
            drawn += [np.tile(np.arange(size), rounds) + start, order[turns] + start]
            start += size
        return np.concatenate(drawn).astype(np.int64)


@dataclass
class DetectionData:
    """The records of one data set and what their labels mean.

    Attributes:
        section: The configuration's section it came from, such as TrainDataset; for messages.
        source: The annotation file or folder it came from; for messages.
        records: One dict an image, see `Record`; a list, or a RecordStore, which makes them when asked.
        categories: {'id', 'name'} of every class; the position is the label.
        read_ground_truth: Reads the annotation file again, for data sets that have one in COCO's format.
        draw: Which records an epoch of training goes through; None: each of them once.
        tally: What the reader left out and mended.
    """

    section: str
    source: str
    records: Sequence[Record]
    categories: list[dict[str, Any]]
    read_ground_truth: Callable[[], dict[str, Any]] | None = None
    draw: EpochSampling | None = None
    tally: LoadStatistics = field(default_factory=LoadStatistics)
    _ground_truth: dict[str, Any] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        """Images in an epoch."""
        return len(self.records) if self.draw is None else len(self.draw)

    def record(self, position: int, epoch: int = 0) -> Record:
        """The record of an epoch's image.

        Args:
            position: In the epoch, from 0 to len(self) − 1.
            epoch: From 0.
        """
        return self.records[self.record_index(position, epoch)]

    def record_index(self, position: int, epoch: int = 0) -> int:
        """Where in `records` an epoch's image stands. Arguments as of `record`."""
        return position if self.draw is None else int(self.draw.positions(epoch)[position])

    def is_portrait(self, epoch: int = 0) -> np.ndarray:
        """Of each image of an epoch whether it is higher than wide, bool [len(self)]; False if not stated.

        Args:
            epoch: From 0.
        """
        if isinstance(self.records, RecordStore):
            upright = self.records.columns["h"] > self.records.columns["w"]
        else:
            upright = np.array(
                [record.get("h", 0) > record.get("w", 0) for record in self.records], dtype=bool
            )
        return upright if self.draw is None else upright[self.draw.positions(epoch)]

    @property
    def class_names(self) -> list[str]:
        """The classes' names; the position is the label."""
        return [category["name"] for category in self.categories]

    @property
    def number_of_boxes(self) -> int:
        """The boxes of all records."""
        if isinstance(self.records, RecordStore):
            return self.records.number_of_boxes()
        return sum(len(record.get("gt_bbox", ())) for record in self.records)

    @property
    def has_crowds(self) -> bool:
        """Whether the records have the boxes around crowds, apart from those of objects."""
        return bool(self.records) and "gt_crowd" in self.records[0]

    def coco_ground_truth(self) -> dict[str, Any]:
        """The annotations of the images in `records`, as a COCO dict (info, images, annotations, categories).

        For a COCO data set these are the file's own (crowds included), not what training made of them.
        """
        if self._ground_truth is None:
            if self.read_ground_truth is None:
                self._ground_truth = ground_truth_of_records(self.records, self.categories)
            else:
                self._ground_truth = _only_images(self.read_ground_truth(), self.records)
        return self._ground_truth


def stated_size(record: Record) -> tuple[int, int] | None:
    """What an annotation says of its image's size.

    Args:
        record: of the image.

    Returns:
        Height and width in pixels; None where it says nothing.
    """
    height, width = int(record.get("h", 0)), int(record.get("w", 0))
    return (height, width) if height and width else None


def numbered(names: Iterable[Any]) -> list[dict[str, Any]]:
    """Categories for class names, with ids from 1."""
    return [{"id": label + 1, "name": str(name)} for label, name in enumerate(names)]


def image_ids(files: Sequence[str | Path]) -> list[int]:
    """Numbers for pictures that have none: those in their names if all have one, as COCO's, else from 1.

    Args:
        files: The pictures, which are different files.

    Returns:
        An id for each, no two alike.
    """
    stems = [Path(file).stem for file in files]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        found = [int(stem) for stem in stems]
        if len(set(found)) == len(found) and max(found, default=0) < 2**53:  # exact in every JSON reader
            return found
    return list(range(1, len(files) + 1))


def separate_crowds(records: list[Record], keep_empty: bool, tally: LoadStatistics) -> list[Record]:
    """Moves the boxes of crowds to gt_crowd, in place: they are one box around many objects.

    Args:
        records: The records; those without is_crowd have no crowds.
        keep_empty: Whether an image that loses its last box stays, as an image without objects.
        tally: Where it is counted.

    Returns:
        The records that remain.
    """
    remaining = []
    for record in records:
        boxes = record.get("gt_bbox", np.zeros((0, 4), dtype=np.float32))
        crowd = record["is_crowd"][:, 0] != 0 if "is_crowd" in record else np.zeros(len(boxes), dtype=bool)
        record["gt_crowd"] = boxes[crowd]
        tally.add(LoadEvent.CROWD, int(crowd.sum()))
        if crowd.any():
            _keep_boxes(record, ~crowd)
        if keep_empty or not crowd.any() or not crowd.all():
            remaining.append(record)
    tally.add(LoadEvent.EMPTY_IMAGE, len(records) - len(remaining))
    return remaining


def _keep_boxes(record: Record, kept: np.ndarray) -> None:
    for key in PER_BOX:
        if key in record:
            record[key] = record[key][kept]


def clip_boxes(boxes: np.ndarray, height: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes to their image and says which of them still have an area.

    Args:
        boxes: [M, 4] x0y0x1y1 in pixels.
        height: The image's height in pixels, 0 if it is not known; then nothing is clipped.
        width: The same for the width.

    Returns:
        The clipped boxes [M, 4] float32, and bool [M].
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    if height > 0 and width > 0:
        limits = np.array([width, height, width, height], dtype=np.float32)
        boxes = np.minimum(np.maximum(boxes, 0), limits)  # np.clip takes ten times as long on so few
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes, (sides > MIN_BOX_SIDE).all(axis=1)


def drop_boxes_without_area(records: list[Record], keep_empty: bool, tally: LoadStatistics) -> list[Record]:
    """Clips all boxes to their images, in place, and drops those without an area.

    Args:
        records: The records; those without gt_bbox are left alone.
        keep_empty: Whether an image that loses its last box stays, as an image without objects.
        tally: Where it is counted.

    Returns:
        The records that remain.
    """
    remaining = []
    for record in records:
        if "gt_bbox" not in record:
            remaining.append(record)
            continue
        written = record["gt_bbox"]
        record["gt_bbox"], kept = clip_boxes(written, record["h"], record["w"])
        lost = len(kept) - int(kept.sum())
        tally.add(LoadEvent.CLIPPED, int(((record["gt_bbox"] != written).any(axis=1) & kept).sum()))
        if lost:
            tally.add(LoadEvent.NO_AREA, lost, record["im_file"])
            _keep_boxes(record, kept)
        if keep_empty or not lost or kept.any():
            remaining.append(record)
    tally.add(LoadEvent.EMPTY_IMAGE, len(records) - len(remaining))
    return remaining


def ground_truth_of_records(records: Sequence[Record], categories: list[dict[str, Any]]) -> dict[str, Any]:
    """A COCO dict of the records' boxes; those marked `difficult` count like any other."""
    images, annotations = [], []
    for record in records:
        image_id = int(record["im_id"][0])
        images.append(
            {
                "id": image_id,
                "file_name": record["im_file"],
                "width": int(record.get("w", 0)),
                "height": int(record.get("h", 0)),
            }
        )
        boxes = record.get("gt_bbox", np.zeros((0, 4)))
        for i, (x0, y0, x1, y1) in enumerate(boxes.astype(np.float64).tolist()):
            annotations.append(
                {
                    # from 1: pycocotools takes a match with annotation 0 for no match
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[int(record["gt_class"][i, 0])]["id"],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(record["is_crowd"][i, 0]) if "is_crowd" in record else 0,
                }
            )
    return {"info": {}, "images": images, "annotations": annotations, "categories": list(categories)}


def _only_images(ground_truth: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    wanted = {int(record["im_id"][0]) for record in records}
    return {
        **ground_truth,
        "images": [image for image in ground_truth["images"] if image["id"] in wanted],
        "annotations": [note for note in ground_truth["annotations"] if note["image_id"] in wanted],
    }
