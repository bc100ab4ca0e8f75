"""Records: one dict an image, stored as arrays; and the data set that they make with its categories.

A record is PaddleDetection's dict of one image:
    im_file str, im_id int64 [1], h and w in pixels (0: unknown), gt_bbox float32 [M, 4] x0y0x1y1 in pixels,
    gt_class int32 [M, 1], is_crowd int32 [M, 1], and from Pascal VOC difficult int32 [M, 1].
With PPFCOSTargets.ignore_crowd, all records also have gt_crowd float32 [K, 4], the boxes of crowds.
Records of an ImageFolder have im_file and im_id only.
"""

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

# A box with a shorter side (pixels) has no area: PaddleDetection's limit for COCO.
MIN_BOX_SIDE = 1e-5
# The keys of a record and of a sample with one row a box.
PER_BOX = ("gt_bbox", "gt_class", "is_crowd", "difficult")

# Optional keys of a record, in the order of the bits in the column `has`.
_OPTIONAL = ("h", "w", "gt_bbox", "gt_class", "is_crowd", "difficult", "gt_crowd")
_BOX_COLUMNS = {  # dtype and width
    "gt_bbox": (np.float32, 4),
    "gt_class": (np.int32, 1),
    "is_crowd": (np.int32, 1),
    "difficult": (np.int32, 1),
}


class RecordStore(Sequence):
    """Records in a few arrays, which forked workers share; each access creates a new dict.

    Args:
        columns: N records with M boxes in all, one record after another: folder, uint8, the common prefix
            of all paths; names, uint8, the rest of each path; name_ends [N] int64; im_id [N] int64;
            h, w [N]; has [N] uint8, one bit for each optional key of a record; box_ends [N] int64; gt_bbox
            [M, 4] float32; gt_class, is_crowd, difficult [M] in the smallest dtype that holds their values;
            crowd_ends [N] int64; gt_crowd [K, 4] float32.
    """

    def __init__(self, columns: dict[str, np.ndarray]):
        self.columns = columns
        self._folder = _text(columns["folder"])

    @classmethod
    def from_records(cls, records: Iterable[Record]) -> RecordStore:
        """Store records in their order."""
        records = list(records)
        paths = [str(record["im_file"]) for record in records]
        folder = os.path.commonprefix(paths)  # noqa: RUF071 - a prefix of characters, not of folders
        names = [path[len(folder) :].encode("utf-8", "surrogateescape") for path in paths]
        boxes = [len(record.get("gt_bbox", ())) for record in records]
        crowds = [len(record.get("gt_crowd", ())) for record in records]
        has = [sum((key in record) << bit for bit, key in enumerate(_OPTIONAL)) for record in records]
        columns = {
            "folder": np.frombuffer(folder.encode("utf-8", "surrogateescape"), np.uint8),
            "names": np.frombuffer(b"".join(names), np.uint8),
            "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
            "im_id": np.array([int(record["im_id"][0]) for record in records], dtype=np.int64),
            "has": np.array(has, dtype=np.uint8),
            "box_ends": np.cumsum(boxes, dtype=np.int64),
            "crowd_ends": np.cumsum(crowds, dtype=np.int64),
            "gt_crowd": _rows(records, crowds, "gt_crowd", np.float32, 4),
        }
        for key in ("h", "w"):
            sizes = np.array([record.get(key, 0) for record in records])
            columns[key] = sizes.astype(np.int32 if sizes.dtype.kind == "i" else np.float32)
        for key, (dtype, width) in _BOX_COLUMNS.items():
            columns[key] = _rows(records, boxes, key, dtype, width)
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
            "im_file": self._folder + _text(columns["names"][self._span("name_ends", index)]),
            "im_id": columns["im_id"][index : index + 1].copy(),
        }
        boxes, has = self._span("box_ends", index), int(columns["has"][index])
        for bit, key in enumerate(_OPTIONAL):
            if not has >> bit & 1:
                continue
            if key == "gt_crowd":
                record[key] = columns[key][self._span("crowd_ends", index)].copy()
            elif key in _BOX_COLUMNS:
                dtype, width = _BOX_COLUMNS[key]
                record[key] = columns[key][boxes].reshape(-1, width).astype(dtype)
            else:
                record[key] = columns[key][index].item()
        return record

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def number_of_boxes(self) -> int:
        """The number of boxes of all records, without crowds."""
        return len(self.columns["gt_bbox"])

    def number_of_crowds(self) -> int:
        """The number of crowd boxes of all records."""
        return len(self.columns["gt_crowd"])

    def without_crowds(self) -> RecordStore:
        """The same records without the key gt_crowd; all other columns are shared."""
        empty = {
            "crowd_ends": np.zeros_like(self.columns["crowd_ends"]),
            "gt_crowd": np.zeros((0, 4), np.float32),
        }
        has = self.columns["has"] & np.uint8(0xFF ^ (1 << _OPTIONAL.index("gt_crowd")))
        return RecordStore({**self.columns, **empty, "has": has})

    def _span(self, ends: str, index: int) -> slice:
        column = self.columns[ends]
        return slice(int(column[index - 1]) if index else 0, int(column[index]))


def check_columns(columns: dict[str, np.ndarray], classes: int) -> None:
    """Check that the columns of a RecordStore are consistent and hold valid values.

    Raises:
        DataError: They do not.
    """
    try:
        images, boxes, crowds = (len(columns[key]) for key in ("im_id", "gt_bbox", "gt_crowd"))
        shapes = {
            **dict.fromkeys(("im_id", "name_ends", "has", "box_ends", "crowd_ends", "h", "w"), (images,)),
            **dict.fromkeys(("gt_class", "is_crowd", "difficult"), (boxes,)),
            **{"gt_bbox": (boxes, 4), "gt_crowd": (crowds, 4)},
            **{key: (len(columns[key]),) for key in ("names", "folder")},
        }
        ends = {"name_ends": len(columns["names"]), "box_ends": boxes, "crowd_ends": crowds}
        integers = ("names", "folder", "has", "gt_class", "is_crowd", "difficult", "im_id", *ends)
        is_valid = (
            set(columns) == set(shapes)
            and all(columns[key].shape == shape for key, shape in shapes.items())
            and all(columns[key].dtype.kind in "iu" for key in integers)
            and all(columns[key].dtype == np.uint8 for key in ("names", "folder", "has"))
            and all(_are_ends(columns[key], total) for key, total in ends.items())
            and all(np.isfinite(columns[key]).all() for key in ("gt_bbox", "gt_crowd", "h", "w"))
            and all(_are_below(columns[key], 2) for key in ("is_crowd", "difficult"))
            and _are_below(columns["gt_class"], classes)
            and not any((columns[key] == 0).any() for key in ("names", "folder"))  # no path has a NUL
        )
    except (KeyError, TypeError):
        is_valid = False
    if not is_valid:
        raise DataError("the columns of the records are inconsistent: read the annotations again")


def _are_ends(column: np.ndarray, total: int) -> bool:
    """Whether the column divides `total` entries into consecutive parts."""
    last = int(column[-1]) if len(column) else 0
    return last == total and bool((np.diff(column.astype(np.int64), prepend=0) >= 0).all())


def _are_below(column: np.ndarray, end: int) -> bool:
    return not len(column) or bool(column.min() >= 0 and column.max() < end)


def _text(characters: np.ndarray) -> str:
    return characters.tobytes().decode("utf-8", "surrogateescape")


def _rows(records: Sequence[Record], counts: Sequence[int], key: str, dtype: type, width: int) -> np.ndarray:
    """One value or row for each box of all records; zeros where a record lacks the key."""
    parts = [
        np.asarray(record[key]).reshape(-1, width) if key in record else np.zeros((count, width), dtype)
        for record, count in zip(records, counts)
    ]
    rows = np.concatenate(parts or [np.zeros((0, width))]).astype(dtype)
    if width > 1:
        return rows
    smallest = np.min_scalar_type(int(rows.max())) if len(rows) and rows.min() >= 0 else np.dtype(dtype)
    return rows[:, 0].astype(np.uint8 if not len(rows) else smallest)


class EpochSampling:
    """Which records an epoch of a concatenated data set uses: each part as often as its weight says.

    A part of weight 2 is used twice, one of weight 0.5 with half of its images: another half in each epoch,
    in an order that depends on the seed, so that all images are used equally often.

    Args:
        sizes: Number of records of each part; the parts follow one another in the list of records.
        weights: How often an epoch uses each part.
        seed: Decides the order in which the images of a part are used.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        self._parts = list(zip(sizes, weights))
        self._orders = [generator(seed, part).permutation(size) for part, size in enumerate(sizes)]
        self._drawn: tuple[int, np.ndarray] = (0, self._draw(0))

    def __len__(self) -> int:
        return len(self._drawn[1])

    def positions(self, epoch: int) -> np.ndarray:
        """Positions in the list of records, int64 [len(self)]; `epoch` counts from 0."""
        if self._drawn[0] != epoch:
            self._drawn = (epoch, self._draw(epoch))
        return self._drawn[1]

    def _draw(self, epoch: int) -> np.ndarray:
        drawn, start = [], 0
        for (size, weight), order in zip(self._parts, self._orders):
            repeats, rest = divmod(max(1, round(size * weight)), size)
            used = (epoch * rest + np.arange(rest)) % size
            drawn += [np.tile(np.arange(size), repeats) + start, order[used] + start]
            start += size
        return np.concatenate(drawn).astype(np.int64)


@dataclass
class DetectionData:
    """The records of one data set and the classes of their labels.

    Attributes:
        section: The section of the configuration, such as TrainDataset; for messages.
        source: The annotation file or folder; for messages.
        records: A list of records or a RecordStore.
        categories: {'id', 'name'} of every class; the position is the label.
        read_ground_truth: Reads the annotation file again, for data sets in COCO's format.
        draw: Which records an epoch of training uses; None: each of them once.
        tally: What the reader left out or changed.
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
        """The record at a position of an epoch."""
        return self.records[self.record_index(position, epoch)]

    def record_index(self, position: int, epoch: int = 0) -> int:
        """Index in `records` of a position of an epoch."""
        return position if self.draw is None else int(self.draw.positions(epoch)[position])

    def is_portrait(self, epoch: int = 0) -> np.ndarray:
        """Whether each image of an epoch is higher than wide, bool [len(self)]; False for unknown sizes."""
        if isinstance(self.records, RecordStore):
            portrait = self.records.columns["h"] > self.records.columns["w"]
        else:
            portrait = np.array([each.get("h", 0) > each.get("w", 0) for each in self.records], dtype=bool)
        return portrait if self.draw is None else portrait[self.draw.positions(epoch)]

    @property
    def class_names(self) -> list[str]:
        """The names of the classes; the position is the label."""
        return [category["name"] for category in self.categories]

    @property
    def number_of_boxes(self) -> int:
        """The number of boxes of all records, without crowds."""
        if isinstance(self.records, RecordStore):
            return self.records.number_of_boxes()
        return sum(len(record.get("gt_bbox", ())) for record in self.records)

    @property
    def has_crowds(self) -> bool:
        """Whether the records hold crowd boxes in gt_crowd."""
        return bool(self.records) and "gt_crowd" in self.records[0]

    def coco_ground_truth(self) -> dict[str, Any]:
        """A COCO dict (info, images, annotations, categories) of the images in `records`.

        For a COCO data set these are the annotations of the file, crowds included.
        """
        if self._ground_truth is None:
            if self.read_ground_truth is None:
                self._ground_truth = ground_truth_of_records(self.records, self.categories)
            else:
                self._ground_truth = _only_images(self.read_ground_truth(), self.records)
        return self._ground_truth


def stated_size(record: Record) -> tuple[int, int] | None:
    """(height, width) in pixels that the annotation of an image states, if any."""
    height, width = int(record.get("h", 0)), int(record.get("w", 0))
    return (height, width) if height and width else None


def numbered(names: Iterable[Any]) -> list[dict[str, Any]]:
    """Categories of class names, with ids from 1."""
    return [{"id": label + 1, "name": str(name)} for label, name in enumerate(names)]


def image_ids(files: Sequence[str | Path]) -> list[int]:
    """Unique ids for image files: the numbers that are their names, as in COCO, or else 1, 2, 3, ..."""
    stems = [Path(file).stem for file in files]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        ids = [int(stem) for stem in stems]
        if len(set(ids)) == len(ids) and max(ids, default=0) < 2**53:  # exact in every JSON reader
            return ids
    return list(range(1, len(files) + 1))


def separate_crowds(records: list[Record], keep_empty: bool, tally: LoadStatistics) -> list[Record]:
    """Move crowd boxes to gt_crowd, in place.

    Args:
        records: Records; those without is_crowd have no crowds.
        keep_empty: Whether an image that loses its last box is kept as one without objects.
        tally: Counts the crowds and the images left out.

    Returns:
        The records that are kept.
    """
    kept_records = []
    for record in records:
        boxes = record.get("gt_bbox", np.zeros((0, 4), dtype=np.float32))
        crowd = record["is_crowd"][:, 0] != 0 if "is_crowd" in record else np.zeros(len(boxes), dtype=bool)
        record["gt_crowd"] = boxes[crowd]
        tally.add(LoadEvent.CROWD, int(crowd.sum()))
        if crowd.any():
            _keep_boxes(record, ~crowd)
        if keep_empty or not crowd.any() or not crowd.all():
            kept_records.append(record)
    tally.add(LoadEvent.EMPTY_IMAGE, len(records) - len(kept_records))
    return kept_records


def _keep_boxes(record: Record, kept: np.ndarray) -> None:
    for key in PER_BOX:
        if key in record:
            record[key] = record[key][kept]


def clip_boxes(boxes: np.ndarray, height: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to an image.

    Args:
        boxes: [M, 4] x0y0x1y1 in pixels.
        height: Of the image in pixels; 0 if unknown: then nothing is clipped.
        width: The same.

    Returns:
        The clipped boxes [M, 4] float32, and whether each of them has an area, bool [M].
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    if height > 0 and width > 0:
        limits = np.array([width, height, width, height], dtype=np.float32)
        boxes = np.minimum(np.maximum(boxes, 0), limits)  # ten times faster than np.clip on a few boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes, (sides > MIN_BOX_SIDE).all(axis=1)


def drop_boxes_without_area(records: list[Record], keep_empty: bool, tally: LoadStatistics) -> list[Record]:
    """Clip boxes to their images and drop those without an area, in place.

    Args:
        records: Records; those without gt_bbox are not changed.
        keep_empty: Whether an image that loses its last box is kept as one without objects.
        tally: Counts the clipped and dropped boxes and the images left out.

    Returns:
        The records that are kept.
    """
    kept_records = []
    for record in records:
        if "gt_bbox" not in record:
            kept_records.append(record)
            continue
        annotated = record["gt_bbox"]
        record["gt_bbox"], kept = clip_boxes(annotated, record["h"], record["w"])
        dropped = len(kept) - int(kept.sum())
        tally.add(LoadEvent.CLIPPED, int(((record["gt_bbox"] != annotated).any(axis=1) & kept).sum()))
        if dropped:
            tally.add(LoadEvent.NO_AREA, dropped, record["im_file"])
            _keep_boxes(record, kept)
        if keep_empty or not dropped or kept.any():
            kept_records.append(record)
    tally.add(LoadEvent.EMPTY_IMAGE, len(records) - len(kept_records))
    return kept_records


def ground_truth_of_records(records: Sequence[Record], categories: list[dict[str, Any]]) -> dict[str, Any]:
    """A COCO dict of the boxes of records; those marked `difficult` count like any other."""
    images, annotations = [], []
    for record in records:
        image_id = int(record["im_id"][0])
        size = {"width": int(record.get("w", 0)), "height": int(record.get("h", 0))}
        images.append({"id": image_id, "file_name": record["im_file"], **size})
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
