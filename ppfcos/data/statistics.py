"""Counts of what was left out of a data set or changed in it while it was loaded, for one line in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple


class _Text(NamedTuple):
    """The words of an event in the log; `is_fault`: the data may be at fault."""

    verb: str
    one: str
    several: str
    is_fault: bool


class LoadEvent(Enum):
    """What a reader does to a data set, in the order of the log line."""

    MISSING_IMAGE = _Text("left out", "image that is missing", "images that are missing", True)
    UNREADABLE_IMAGE = _Text("left out", "image that cannot be read", "images that cannot be read", True)
    EMPTY_IMAGE = _Text("left out", "image without objects", "images without objects", False)
    UNKNOWN_IMAGE = _Text(
        "left out", "annotation of an unlisted image", "annotations of unlisted images", True
    )
    NO_BOX = _Text("left out", "annotation without a box", "annotations without a box", True)
    ORPHAN_LABELS = _Text("ignored", "label file without an image", "label files without an image", True)
    NO_LABEL_FILE = _Text("found no label file for", "image", "images", False)
    NO_AREA = _Text("left out", "box without area", "boxes without area", True)
    MARKED_IGNORE = _Text("left out", "box marked with ignore", "boxes marked with ignore", False)
    CROWD = _Text("left out", "crowd box", "crowd boxes", False)
    IGNORED_CROWD = _Text("ignores points inside", "crowd box", "crowd boxes", False)
    CLIPPED = _Text("clipped", "box", "boxes", False)
    POLYGON_BOX = _Text("computed", "box of a polygon", "boxes of polygons", False)
    FILLED_AREA = _Text("filled in", "area", "areas", False)
    RENUMBERED = _Text("renumbered", "annotation", "annotations", False)
    ROTATED = _Text("rotated", "image with an EXIF orientation", "images with an EXIF orientation", False)
    GRAYSCALE = _Text("converted", "grayscale image", "grayscale images", False)
    PALETTE = _Text("converted", "palette image", "palette images", False)
    CMYK = _Text("converted", "CMYK image", "CMYK images", False)
    SIXTEEN_BIT = _Text("converted", "16-bit image", "16-bit images", False)
    ALPHA = _Text("converted", "image with alpha", "images with alpha", False)


_LOSSES = (
    LoadEvent.UNKNOWN_IMAGE,
    LoadEvent.NO_BOX,
    LoadEvent.NO_AREA,
    LoadEvent.MARKED_IGNORE,
    LoadEvent.CROWD,
)


class LoadStatistics:
    """Counts events and remembers where each of them happened first."""

    def __init__(self) -> None:
        self._counts: dict[LoadEvent, int] = {}
        self._first: dict[LoadEvent, str] = {}

    @classmethod
    def from_dict(cls, counts: Mapping[str, Sequence]) -> LoadStatistics:
        """Restore from `changes()`; raises KeyError for an unknown event."""
        statistics = cls()
        for name, (count, first) in counts.items():
            statistics.add(LoadEvent[name], count, first)
        return statistics

    def changes(self) -> dict[str, tuple[int, str]]:
        """{event name: (count, first place)}, in plain values."""
        return {event.name: (count, self._first[event]) for event, count in self._counts.items()}

    def add(self, event: LoadEvent, number: int = 1, first: str = "") -> None:
        """Count an event `number` times; `first` is where it happened, such as an image file."""
        if number:
            self._counts[event] = self.count(event) + number
            self._first.setdefault(event, first)

    def add_all(self, other: LoadStatistics) -> None:
        """Add the counts of other statistics."""
        for event, number in other._counts.items():
            self.add(event, number, other._first[event])

    def move(self, event: LoadEvent, other: LoadEvent, number: int) -> None:
        """Count `number` occurrences of an event as another event."""
        self._counts[event] = self.count(event) - number
        self.add(other, number)

    def count(self, event: LoadEvent) -> int:
        """How often an event happened."""
        return self._counts.get(event, 0)

    def lost_annotations(self) -> int:
        """How many annotations were left out for any reason."""
        return sum(map(self.count, _LOSSES))

    @property
    def has_faults(self) -> bool:
        """Whether something was left out that may be a fault of the data."""
        return any(event.value.is_fault and count for event, count in self._counts.items())

    def __str__(self) -> str:
        """Such as `left out 2 boxes without area (first in 7.jpg), 8 crowd boxes; clipped 5 boxes`."""
        by_verb: dict[str, list[str]] = {}
        for event in LoadEvent:
            number, text = self.count(event), event.value
            if number:
                place = f" (first in {self._first[event]})" if text.is_fault and self._first[event] else ""
                counted = f"{number} {text.one if number == 1 else text.several}{place}"
                by_verb.setdefault(text.verb, []).append(counted)
        return "; ".join(f"{verb} {', '.join(counted)}" for verb, counted in by_verb.items())
