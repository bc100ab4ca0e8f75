"""Annotations against their pictures, against each other, and training against validation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ppfcos.data.check.levels import COVERED, NO_LOCATION, Geometry
from ppfcos.data.check.images import Look
from ppfcos.data.issues import OUTSIDE_TOLERANCE, RARE, Issue
from ppfcos.data.check.annotations import RawBox, RawData, RawImage
from ppfcos.data.records import MIN_BOX_SIDE, clip_boxes

_BACKGROUND = ("background", "__background__", "_background_", "bg")

# Upper ends of the histogram's bins: the longer side of a box in pixels of the network's input.
SIDE_BINS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass
class Counts:
    """What there is in a data set.

    Attributes:
        images: Images whose files exist.
        objects: Boxes that are trained on.
        crowds: Boxes around crowds.
        empty: Images without a box that is trained on.
        per_class: Objects of each class, by label.
        levels: [len(SIDE_BINS) + 1, L + 2] boxes by the bin of their longer side and by level; the last two
            columns are boxes that are covered by others, and boxes without a location.
    """

    images: int = 0
    objects: int = 0
    crowds: int = 0
    empty: int = 0
    per_class: list[int] = field(default_factory=list)
    levels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))


class SectionCheck:
    """Everything about one data set that one of them alone can tell.

    Args:
        raw: What its annotations say.
        looks: What was seen of each of its images.
        geometry: Of the training; None where its boxes are not trained on.
        limit: Boxes that the model gives for an image.

    Attributes:
        raw: As given.
        looks: As given.
        findings: In the order of the file; first those of the annotations.
        counts: What there is.
    """

    def __init__(self, raw: RawData, looks: Sequence[Look], geometry: Geometry | None, limit: int):
        self.raw, self.looks = raw, looks
        self.findings = list(raw.findings)
        levels = len(geometry.strides) if geometry else 0
        self.counts = Counts(len(raw.images), per_class=[0] * len(raw.categories))
        self.counts.levels = np.zeros((len(SIDE_BINS) + 1, levels + 2), dtype=np.int64)
        self._geometry, self._limit = geometry, limit
        for image, look in zip(raw.images, looks):
            self._check_image(image, look)
        self._check_categories()

    def _find(self, kind: str, image: RawImage, detail: str, box: RawBox | None = None) -> None:
        where = f"{image.name}: {box.where}" if box else image.name
        corners = box.corners if box else None
        self.findings.append(Issue(kind, self.raw.section, where, detail, image.path, corners))

    def _check_image(self, image: RawImage, look: Look) -> None:
        for kind, detail in look.kinds:
            self._find(kind, image, detail)
        trained = self._check_boxes(image, look)
        self.counts.objects += trained
        self.counts.empty += not trained
        if not trained and not self.raw.keeps_empty and self._geometry:
            crowds = sum(box.crowd for box in image.boxes)
            self._find("image-without-objects", image, f"{len(image.boxes)} boxes, {crowds} of them crowds")
        if trained > self._limit:
            self._find("too-many-boxes", image, f"{trained} objects")

    def _check_boxes(self, image: RawImage, look: Look) -> int:
        """Findings about an image's boxes; returns how many are trained on."""
        size = image.size or look.size
        seen: set[tuple] = set()
        number = trained = 0
        for box in image.boxes:
            if box.crowd:
                self.counts.crowds += 1
                self._find("box-crowd", image, self._named(box), box)
            elif box.ignored:
                self._find("box-ignored", image, self._named(box), box)
            if not is_trained(box, self.raw):
                continue
            number += 1
            if not self._has_area(image, box, size):
                continue
            trained += 1
            self.counts.per_class[box.label] += 1
            if (box.label, box.corners) in seen:
                self._find("box-twice", image, self._named(box), box)
            seen.add((box.label, box.corners))
            if look.responsibility is not None:
                self._check_responsibility(image, box, look, number - 1)
        return trained

    def _named(self, box: RawBox) -> str:
        x0, y0, x1, y1 = (f"{value:g}" for value in box.corners)
        return f"{self.raw.categories[box.label].name!r} from ({x0}, {y0}) to ({x1}, {y1})"

    def _has_area(self, image: RawImage, box: RawBox, size: tuple[int, int] | None) -> bool:
        x0, y0, x1, y1 = box.corners
        named = self._named(box)
        if x1 < x0 or y1 < y0:
            self._find("box-upside-down", image, named, box)
            return False
        if min(x1 - x0, y1 - y0) <= MIN_BOX_SIDE:
            self._find("box-without-area", image, named, box)
            return False
        if size is None:
            return True
        height, width = size
        if not clip_boxes(np.array(box.corners), height, width)[1].all():
            self._find("box-outside", image, f"{named}, in {width}x{height} pixels", box)
            return False
        if max(-x0, -y0, x1 - width, y1 - height) > OUTSIDE_TOLERANCE:
            self._find("box-partly-outside", image, f"{named}, in {width}x{height} pixels", box)
        return True

    def _check_responsibility(self, image: RawImage, box: RawBox, look: Look, number: int) -> None:
        level, sides = int(look.responsibility.levels[number]), look.responsibility.sides[number]
        kinds = {NO_LOCATION: "box-no-location", COVERED: "box-covered"}
        column = {NO_LOCATION: -1, COVERED: -2}.get(level, level)
        self.counts.levels[np.searchsorted(SIDE_BINS, sides.max()), column] += 1
        resized = f"{self._named(box)}, {sides[0]:.1f}x{sides[1]:.1f} pixels after resizing"
        if min(sides) < self._geometry.strides[0] / 2:
            self._find("box-tiny", image, resized, box)
        if level in kinds:
            self._find(kinds[level], image, resized, box)

    def _check_categories(self) -> None:
        first: dict[str, str] = {}
        for label, category in enumerate(self.raw.categories):
            name, objects = category.name, self.counts.per_class[label]
            plain = plain_name(name)
            if plain in first:
                self._about_category("category-names-alike", name, f"is the same as {first[plain]!r}")
            first.setdefault(plain, name)
            if is_background(name):
                self._about_category("category-background", name, f"{objects} objects")
            elif not objects:
                self._about_category("category-never-seen", name, "no objects")
            elif objects < RARE and self._geometry:
                self._about_category("category-rare", name, f"{objects} objects")

    def _about_category(self, kind: str, name: str, detail: str) -> None:
        self.findings.append(Issue(kind, self.raw.section, f"category {name!r}", detail))


def is_trained(box: RawBox, raw: RawData) -> bool:
    """Whether training would take a box if it had an area."""
    return (not box.crowd or raw.trains_crowds) and not box.ignored


def trained_boxes(image: RawImage, raw: RawData) -> np.ndarray:
    """[M, 4] float32 of those boxes of an image that training would take if they had an area."""
    corners = [box.corners for box in image.boxes if is_trained(box, raw)]
    return np.array(corners, dtype=np.float32).reshape(-1, 4)


def plain_name(name: str) -> str:
    """A class's name without what people do not hear: capitals, spaces, dashes."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def is_background(name: str) -> bool:
    """Whether a class is what FCOS needs no class for."""
    return name.strip().casefold() in _BACKGROUND


def duplicates(check: SectionCheck) -> list[Issue]:
    """Images of one data set with the same file or the same pixels."""
    findings = []
    paths: set[str] = set()
    contents: dict[str, str] = {}
    for image, look in zip(check.raw.images, check.looks):
        section = check.raw.section
        if image.path in paths:
            detail = f"entry {image.identity!r} is one more of this file"
            findings.append(Issue("image-listed-twice", section, image.name, detail, image.path))
        elif look.content in contents:
            detail = f"is the same as {contents[look.content]}"
            findings.append(Issue("image-duplicate", section, image.name, detail, image.path))
        elif look.content:
            contents[look.content] = image.name
        paths.add(image.path)
    return findings


def between(training: SectionCheck, validation: SectionCheck) -> list[Issue]:
    """What is wrong with two data sets that may each be right: leaks, and different lists of classes."""
    findings = list(_leaks(training, validation))
    ours, theirs = ([category.name for category in each.raw.categories] for each in (training, validation))
    if ours != theirs:
        detail = _difference(ours, theirs)
        findings.append(Issue("categories-differ", validation.raw.section, validation.raw.source, detail))
    learnt = dict(zip(ours, training.counts.per_class))
    for name, objects in zip(theirs, validation.counts.per_class):
        if objects and not learnt.get(name):
            detail = f"{objects} objects in validation, none in training"
            where = f"category {name!r}"
            findings.append(Issue("category-only-in-validation", training.raw.section, where, detail))
    return findings


def _leaks(training: SectionCheck, validation: SectionCheck) -> Iterable[Issue]:
    contents = {
        look.content: image.path
        for image, look in zip(validation.raw.images, validation.looks)
        if look.content
    }
    for image, look in zip(training.raw.images, training.looks):
        if look.content and look.content in contents:
            detail = f"is the same as {contents[look.content]}"
            yield Issue("image-leak", training.raw.section, image.name, detail, image.path)


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    parts = [
        f"{where}: {', '.join(map(repr, names))}"
        for where, names in (
            ("only in training", [name for name in ours if name not in theirs]),
            ("only in validation", [name for name in theirs if name not in ours]),
        )
        if names
    ]
    if parts:
        return "; ".join(parts)
    moved = next(i for i, (one, other) in enumerate(zip(ours, theirs)) if one != other)
    return f"the order: number {moved} is {ours[moved]!r} in training and {theirs[moved]!r} in validation"
