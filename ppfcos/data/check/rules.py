"""Annotations against their images, against each other, and training against validation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ppfcos.data.check.annotations import AnnotatedData, AnnotatedImage, Annotation
from ppfcos.data.check.images import ImageCheck, ImageTask, check_images
from ppfcos.data.check.levels import COVERED, NO_LOCATION, AssignedLevels, Geometry, assign_levels
from ppfcos.data.issues import OUTSIDE_TOLERANCE, RARE, Issue
from ppfcos.data.records import MIN_BOX_SIDE, clip_boxes

_BACKGROUND = ("background", "__background__", "_background_", "bg")

# Upper ends of the histogram's bins: the longer side of a box in pixels of the network's input.
SIDE_BINS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass
class Counts:
    """Numbers of a data set.

    Attributes:
        images: Images whose files exist.
        objects: Boxes that are trained on.
        crowds: Boxes around crowds.
        empty: Images without a box that is trained on.
        per_class: Objects of each class, by label.
        levels: [len(SIDE_BINS) + 1, L + 2] boxes by the bin of their longer side and by level; the last two
            columns are boxes that are covered by others, and boxes without a point.
    """

    images: int = 0
    objects: int = 0
    crowds: int = 0
    empty: int = 0
    per_class: list[int] = field(default_factory=list)
    levels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))


class SectionCheck:
    """The check of one data set.

    Args:
        dataset: Its annotations.
        geometry: The input and the levels of the model; None for boxes that are not trained on.
        limit: Detections that the model returns for an image.
        workers: Processes that decode images; 0 decodes in this one.

    Attributes:
        dataset: As given.
        image_checks: The result of decoding each image.
        issues: In the order of the file; first those of the annotations.
        counts: Numbers of the data set.
    """

    def __init__(self, dataset: AnnotatedData, geometry: Geometry | None, limit: int, workers: int):
        self.dataset = dataset
        self.image_checks: list[ImageCheck] = []
        self.issues = list(dataset.issues)
        levels = len(geometry.strides) if geometry else 0
        self.counts = Counts(len(dataset.images), per_class=[0] * len(dataset.categories))
        self.counts.levels = np.zeros((len(SIDE_BINS) + 1, levels + 2), dtype=np.int64)
        self._geometry, self._limit = geometry, limit
        tasks = [ImageTask(image.path, image.size) for image in dataset.images]
        for image, check in zip(dataset.images, check_images(tasks, workers, dataset.section)):
            self.image_checks.append(check)
            self._check_image(image, check)
        self._check_categories()

    def _add(self, kind: str, image: AnnotatedImage, detail: str, box: Annotation | None = None) -> None:
        where = f"{image.name}: {box.where}" if box else image.name
        corners = box.corners if box else None
        self.issues.append(Issue(kind, self.dataset.section, where, detail, image.path, corners))

    def _check_image(self, image: AnnotatedImage, check: ImageCheck) -> None:
        for kind, detail in check.issues:
            self._add(kind, image, detail)
        trained = self._check_boxes(image, check)
        self.counts.objects += trained
        self.counts.empty += not trained
        if not trained and not self.dataset.keeps_empty and self._geometry:
            crowds = sum(box.crowd for box in image.boxes)
            self._add("image-without-objects", image, f"{len(image.boxes)} boxes, {crowds} of them crowds")
        if trained > self._limit:
            self._add("too-many-boxes", image, f"{trained} objects")

    def _check_boxes(self, image: AnnotatedImage, check: ImageCheck) -> int:
        """Add the issues of an image's boxes; return how many are trained on."""
        for box in image.boxes:
            if box.crowd:
                self.counts.crowds += 1
                self._add("box-crowd", image, self._describe(box), box)
            elif box.ignored:
                self._add("box-ignored", image, self._describe(box), box)
        boxes = [box for box in image.boxes if box.crowd <= self.dataset.trains_crowds and not box.ignored]
        assigned = None
        if self._geometry and check.size and boxes:
            clipped, _ = clip_boxes(np.array([box.corners for box in boxes]), *check.size)
            assigned = assign_levels(clipped, *check.size, self._geometry)
        seen: set[tuple] = set()
        trained = 0
        for number, box in enumerate(boxes):
            if not self._has_area(image, box, image.size or check.size):
                continue
            trained += 1
            self.counts.per_class[box.label] += 1
            if (box.label, box.corners) in seen:
                self._add("box-twice", image, self._describe(box), box)
            seen.add((box.label, box.corners))
            if assigned is not None:
                self._check_level(image, box, assigned, number)
        return trained

    def _describe(self, box: Annotation) -> str:
        x0, y0, x1, y1 = (f"{value:g}" for value in box.corners)
        return f"{self.dataset.categories[box.label].name!r} from ({x0}, {y0}) to ({x1}, {y1})"

    def _has_area(self, image: AnnotatedImage, box: Annotation, size: tuple[int, int] | None) -> bool:
        x0, y0, x1, y1 = box.corners
        named = self._describe(box)
        if x1 < x0 or y1 < y0:
            self._add("box-upside-down", image, named, box)
            return False
        if min(x1 - x0, y1 - y0) <= MIN_BOX_SIDE:
            self._add("box-without-area", image, named, box)
            return False
        if size is None:
            return True
        height, width = size
        if not clip_boxes(np.array(box.corners), height, width)[1].all():
            self._add("box-outside", image, f"{named}, in {width}x{height} pixels", box)
            return False
        if max(-x0, -y0, x1 - width, y1 - height) > OUTSIDE_TOLERANCE:
            self._add("box-partly-outside", image, f"{named}, in {width}x{height} pixels", box)
        return True

    def _check_level(
        self, image: AnnotatedImage, box: Annotation, assigned: AssignedLevels, number: int
    ) -> None:
        level, sides = int(assigned.levels[number]), assigned.sides[number]
        kinds = {NO_LOCATION: "box-no-location", COVERED: "box-covered"}
        column = {NO_LOCATION: -1, COVERED: -2}.get(level, level)
        self.counts.levels[np.searchsorted(SIDE_BINS, sides.max()), column] += 1
        resized = f"{self._describe(box)}, {sides[0]:.1f}x{sides[1]:.1f} pixels after resizing"
        if min(sides) < self._geometry.strides[0] / 2:
            self._add("box-tiny", image, resized, box)
        if level in kinds:
            self._add(kinds[level], image, resized, box)

    def _check_categories(self) -> None:
        first: dict[str, str] = {}
        for label, category in enumerate(self.dataset.categories):
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
        self.issues.append(Issue(kind, self.dataset.section, f"category {name!r}", detail))


def plain_name(name: str) -> str:
    """A class name in lower case, without repeated spaces and dashes."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def is_background(name: str) -> bool:
    """Whether a class names the background, for which FCOS needs no class."""
    return name.strip().casefold() in _BACKGROUND


def find_duplicates(section: SectionCheck) -> list[Issue]:
    """Issues of images of one data set with the same file or the same pixels."""
    issues = []
    paths: set[str] = set()
    contents: dict[str, str] = {}
    name = section.dataset.section
    for image, check in zip(section.dataset.images, section.image_checks):
        if image.path in paths:
            detail = f"entry {image.identity!r} names this file again"
            issues.append(Issue("image-listed-twice", name, image.name, detail, image.path))
        elif check.content in contents:
            detail = f"is the same as {contents[check.content]}"
            issues.append(Issue("image-duplicate", name, image.name, detail, image.path))
        elif check.content:
            contents[check.content] = image.name
        paths.add(image.path)
    return issues


def compare_sections(training: SectionCheck, validation: SectionCheck) -> list[Issue]:
    """Issues between training and validation data: leaks, and different lists of classes."""
    issues = list(_leaks(training, validation))
    ours, theirs = (
        [category.name for category in each.dataset.categories] for each in (training, validation)
    )
    if ours != theirs and not set(theirs) < set(ours):  # a part of the classes is matched by name
        detail = _difference(ours, theirs)
        issues.append(
            Issue("categories-differ", validation.dataset.section, validation.dataset.source, detail)
        )
    learnt = dict(zip(ours, training.counts.per_class))
    for name, objects in zip(theirs, validation.counts.per_class):
        if objects and not learnt.get(name):
            detail = f"{objects} objects in validation, none in training"
            where = f"category {name!r}"
            issues.append(Issue("category-only-in-validation", training.dataset.section, where, detail))
    return issues


def _leaks(training: SectionCheck, validation: SectionCheck) -> Iterator[Issue]:
    contents = {
        check.content: image.path
        for image, check in zip(validation.dataset.images, validation.image_checks)
        if check.content
    }
    for image, check in zip(training.dataset.images, training.image_checks):
        if check.content and check.content in contents:
            detail = f"is the same as {contents[check.content]}"
            yield Issue("image-leak", training.dataset.section, image.name, detail, image.path)


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    parts = [
        f"{where}: {', '.join(map(repr, names))}"
        for where, names in (
            ("only in training", sorted(set(ours) - set(theirs))),
            ("only in validation", sorted(set(theirs) - set(ours))),
        )
        if names
    ]
    if parts:
        return "; ".join(parts)
    moved = next(i for i, (one, other) in enumerate(zip(ours, theirs)) if one != other)
    return f"the order: number {moved} is {ours[moved]!r} in training and {theirs[moved]!r} in validation"
