"""A data set between two formats: COCO's dicts, split by split, and what no format could keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppfcos.console import printable
from ppfcos.data.images import ImageUnreadable, image_size
from ppfcos.errors import DataError

DECIMALS = 6  # of coordinates in pixels: far below what anyone annotates, far above what rounding spoils


@dataclass
class Split:
    """A part of a data set, such as train2017.

    Attributes:
        name: What it is called.
        folder: The folder of its pictures within that of all pictures; "" where they have none of their own.
        images: As in a COCO file: id, file_name, width and height (0: not stated), and whatever else is said.
        annotations: As in a COCO file: id, image_id, category_id, bbox [x, y, width, height], area and
            iscrowd; from Pascal VOC difficult, truncated, occluded and pose where they are set; and whatever
            else is said.
        pictures: The picture of each image id, for those that are there.
        head: What the COCO file said besides (info, licenses).
    """

    name: str
    folder: str
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    pictures: dict[int, Path]
    head: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Both become names of files, and stand in text files.
        self.name, self.folder = printable(self.name), printable(self.folder)

    def annotations_by_image(self) -> dict[int, list[dict[str, Any]]]:
        """The annotations of every image id, in their order."""
        found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        for annotation in self.annotations:
            found[annotation["image_id"]].append(annotation)
        return found


class Losses:
    """What a conversion cannot keep, and how much of it; and what it keeps in a way of its own."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._remarks: Counter[str] = Counter()

    def add(self, what: str, count: int = 1) -> None:
        """Count something that is lost.

        Args:
            what: A clause that follows its number, such as "crowd boxes are left out".
            count: How many more of it.
        """
        self._counts[what] += count

    def remark(self, what: str, count: int = 1) -> None:
        """Count something that is kept, but differently; as `add`."""
        self._remarks[what] += count

    def add_other_keys(self, entries: Iterable[dict[str, Any]], kept: Iterable[str], kind: str) -> None:
        """Count the keys that a format has no place for.

        Args:
            entries: Images, annotations or categories.
            kept: The keys that it has a place for.
            kind: What the entries are, such as "annotations".
        """
        known = set(kept)
        found = Counter(
            key
            for entry in entries
            for key, value in entry.items()
            if key not in known and value not in _EMPTY
        )
        for key, count in sorted(found.items()):
            self.add(f"{kind} lose their {key}", count)

    def lines(self) -> list[str]:
        """A line for each kind of thing that is lost."""
        return [f"{count} {what}" for what, count in self._counts.items() if count]

    def remarks(self) -> list[str]:
        """A line for each kind of thing that is kept differently."""
        return [f"{count} {what}" for what, count in self._remarks.items() if count]


_EMPTY = (None, "", [], {}, 0)


@dataclass
class AnnotatedSet:
    """A data set as it was read.

    Attributes:
        source: The folder or file.
        categories: As in a COCO file: id, name, and whatever else is said; the order is the labels'.
        splits: Its parts, which may overlap, as Pascal VOC's train and trainval do.
        losses: What is lost; the reader's, to which the writer adds.
    """

    source: Path
    categories: list[dict[str, Any]]
    splits: list[Split]
    losses: Losses = field(default_factory=Losses)

    def images(self) -> list[dict[str, Any]]:
        """The images of all splits; those that two splits share once."""
        return list({id(image): image for split in self.splits for image in split.images}.values())

    def annotations(self) -> list[dict[str, Any]]:
        """The annotations of all splits; those that two splits share once."""
        return list({id(note): note for split in self.splits for note in split.annotations}.values())


def split_name(wanted: Iterable[str], found: list[Any], names: list[str], source: Path) -> list[Any]:
    """The wanted ones of the splits that were found; all where none is named.

    Raises:
        DataError: One of them is not there.
    """
    wanted = list(wanted)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise DataError(f"{source} has no split {unknown[0]!r}; it has: {', '.join(names)}")
    return [each for each, name in zip(found, names) if not wanted or name in wanted]


def pixels(value: float) -> float:
    """A coordinate without what computing left behind its last decimal; whole numbers stay whole."""
    rounded = round(float(value), DECIMALS)
    return int(rounded) if rounded.is_integer() else rounded


def measure(image: dict[str, Any], picture: Path | None) -> None:
    """Fills in an image's size from its picture where it is not stated; 0 stays where neither says it.

    Raises:
        DataError: The picture cannot be read.
    """
    if min(image["width"], image["height"]) > 0 or picture is None:
        return
    try:
        image["height"], image["width"] = image_size(picture)
    except ImageUnreadable as error:
        raise DataError(f"{error}, and its annotation does not state its size") from None
