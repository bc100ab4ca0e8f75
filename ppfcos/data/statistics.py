"""What reading left out of a data set or changed in it, counted for the line that the log has of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple


class _Words(NamedTuple):
    """How a change is told: what was done, to one and to several; and whether the data may be at fault."""

    verb: str
    one: str
    several: str
    is_fault: bool


class Change(Enum):
    """One kind of thing that a reader does to a data set, in the order in which they are told."""

    MISSING_IMAGE = _Words("left out", "image that is missing", "images that are missing", True)
    UNREADABLE_IMAGE = _Words("left out", "image that cannot be read", "images that cannot be read", True)
    EMPTY_IMAGE = _Words("left out", "image without objects", "images without objects", False)
    STRAY = _Words("left out", "annotation of an unlisted image", "annotations of unlisted images", True)
    BOXLESS = _Words("left out", "annotation without a box", "annotations without a box", True)
    NO_AREA = _Words("left out", "box without area", "boxes without area", True)
    MARKED_IGNORE = _Words("left out", "box marked with ignore", "boxes marked with ignore", False)
    CROWD = _Words("left out", "crowd box", "crowd boxes", False)
    IGNORED_CROWD = _Words("ignores what is in", "crowd box", "crowd boxes", False)
    CLIPPED = _Words("clipped", "box", "boxes", False)
    FILLED_AREA = _Words("filled in", "area", "areas", False)
    RENUMBERED = _Words("renumbered", "annotation", "annotations", False)
    TURNED = _Words("turned", "picture as its EXIF says", "pictures as their EXIF says", False)
    GREY = _Words("converted", "grey picture", "grey pictures", False)
    PALETTE = _Words("converted", "picture with a palette", "pictures with palettes", False)
    CMYK = _Words("converted", "CMYK picture", "CMYK pictures", False)
    DEEP = _Words("converted", "picture of 16 bits", "pictures of 16 bits", False)
    ALPHA = _Words("converted", "picture with transparency", "pictures with transparency", False)


class LoadStatistics:
    """Counts changes, and keeps the first place where each was made."""

    def __init__(self) -> None:
        self._counts: dict[Change, int] = {}
        self._first: dict[Change, str] = {}

    @classmethod
    def of(cls, changes: Mapping[str, Sequence]) -> LoadStatistics:
        """A tally again of what `changes` gave.

        Raises:
            KeyError: there is no such change.
        """
        tally = cls()
        for name, (number, first) in changes.items():
            tally.add(LoadEvent[name], number, first)
        return tally

    def changes(self) -> dict[str, tuple[int, str]]:
        """How often and where first, by the name of the change; plain values, to be written down."""
        return {change.name: (number, self._first[change]) for change, number in self._counts.items()}

    def add(self, change: Change, number: int = 1, first: str = "") -> None:
        """Count a change.

        Args:
            change: What was done.
            number: How often; 0 is nothing.
            first: Where it was done first, such as an image's file; told of what may be a fault of the data.
        """
        if number:
            self._counts[change] = self._counts.get(change, 0) + number
            self._first.setdefault(change, first)

    def add_all(self, other: LoadStatistics) -> None:
        """Count all that another tally counted."""
        for change, number in other._counts.items():
            self.add(change, number, other._first[change])

    def move(self, change: Change, other: Change, number: int) -> None:
        """Count something as another change than before.

        Args:
            change: As what it was counted.
            other: As what it counts.
            number: How often.
        """
        self._counts[change] = self.count(change) - number
        self.add(other, number)

    def count(self, change: Change) -> int:
        """How often a change was made."""
        return self._counts.get(change, 0)

    @property
    def has_faults(self) -> bool:
        """Whether something was left out that should perhaps have been there."""
        return any(change.value.is_fault for change in self._counts)

    def __str__(self) -> str:
        """Such as `left out 2 boxes without area (first in 7.jpg), 8 crowd boxes; clipped 5 boxes`."""
        told: dict[str, list[str]] = {}
        for change in Change:
            number, words = self.count(change), change.value
            if number:
                place = f" (first in {self._first[change]})" if words.is_fault and self._first[change] else ""
                named = f"{number} {words.one if number == 1 else words.several}{place}"
                told.setdefault(words.verb, []).append(named)
        return "; ".join(f"{verb} {', '.join(named)}" for verb, named in told.items())
