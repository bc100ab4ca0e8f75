"""A data set between two formats, and its images in the new folder."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Callable

from ppfcos.console import printable
from ppfcos.data.images import ImageUnreadable, image_size
from ppfcos.errors import DataError, OutputError

DECIMALS = 6  # of coordinates in pixels: far below what is annotated, far above rounding errors
_MAX_NAME = 255  # bytes of a file name, on all common file systems
_EMPTY = (None, "", [], {}, 0)
PLACE_IMAGE = {"link": lambda source, target: os.symlink(source.resolve(), target), "copy": shutil.copyfile}
# {(name of the split, image id): path in the new data set}
ImagePaths = Mapping[tuple[str, int], PurePosixPath]


@dataclass
class Split:
    """A part of a data set, such as train2017.

    Attributes:
        name: Its name.
        folder: The folder of its images within that of all images; "" if it has none of its own.
        images: As in a COCO file; width and height are 0 if they are not stated.
        annotations: As in a COCO file; from Pascal VOC also difficult, truncated, occluded and pose, if set.
        files: The file of each image id, for those that exist.
        head: What else a COCO file contains (info, licenses).
    """

    name: str
    folder: str
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    files: dict[int, Path]
    head: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Both become names of files, and occur in text files.
        self.name, self.folder = printable(self.name), printable(self.folder)

    def annotations_by_image(self) -> dict[int, list[dict[str, Any]]]:
        """The annotations of every image id, in their order."""
        found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        for annotation in self.annotations:
            found[annotation["image_id"]].append(annotation)
        return found


@dataclass
class AnnotatedSet:
    """A data set as it was read.

    Attributes:
        source: The folder or file.
        categories: As in a COCO file; their order is the labels' order.
        splits: Its parts, which may share images, as Pascal VOC's train and trainval do.
        dropped: What is lost, by a clause that follows its number.
        notes: What is kept in another form.
    """

    source: Path
    categories: list[dict[str, Any]]
    splits: list[Split]
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def images(self) -> list[dict[str, Any]]:
        """The images of all splits; shared ones once."""
        return list({id(image): image for split in self.splits for image in split.images}.values())

    def annotations(self) -> list[dict[str, Any]]:
        """The annotations of all splits; shared ones once."""
        return list({id(note): note for split in self.splits for note in split.annotations}.values())

    def drop_keys(self, image_keys: Iterable[str], annotation_keys: Iterable[str]) -> None:
        """Count the keys of COCO that the new format does not keep."""
        kept = {"categories": ("id", "name"), "images": image_keys, "annotations": annotation_keys}
        entries = {"categories": self.categories, "images": self.images(), "annotations": self.annotations()}
        for name, known in kept.items():
            found = Counter(
                key
                for entry in entries[name]
                for key, value in entry.items()
                if key not in known and value not in _EMPTY
            )
            for key, count in sorted(found.items()):
                self.dropped[f"{name} lose their {key}"] += count


def pixels(value: float) -> float:
    """A coordinate without rounding errors; whole numbers become integers."""
    rounded = round(float(value), DECIMALS)
    return int(rounded) if rounded.is_integer() else rounded


def box_area(box: list[float]) -> float:
    """Of [x, y, width, height]."""
    return pixels(max(box[2], 0) * max(box[3], 0))


def has_another_area(annotation: dict[str, Any]) -> bool:
    """Whether the area is not that of the box, such as that of a mask; rounding does not count."""
    area = box_area(annotation["bbox"])
    return abs(annotation["area"] - area) > 1e-5 * max(area, 1)


def fill_in_size(image: dict[str, Any], file: Path | None) -> None:
    """Read an image's size from its file if it is not stated; 0 stays if there is no file.

    Raises:
        DataError: The file cannot be read.
    """
    if min(image["width"], image["height"]) > 0 or file is None:
        return
    try:
        image["height"], image["width"] = image_size(file)
    except ImageUnreadable as error:
        raise DataError(f"{error}, and its annotation does not state its size") from None


def require_same(written: dict[str, str], key: str, text: str, file_name: str, split: Split) -> None:
    """Store the new annotations of an image.

    Raises:
        DataError: An earlier split has other annotations for it.
    """
    if written.setdefault(key, text) != text:
        raise DataError(
            f"{file_name} has other annotations in {split.name} than in a split before it: "
            "convert them one by one, with --split"
        )


# Images in the new folder ----------------------------------------------------------------------------------


def name_images(data: AnnotatedSet, wanted: Callable[[Split, PurePosixPath], PurePosixPath]) -> ImagePaths:
    """A path for every image, unique even without its suffix; an image of several splits gets one path.

    Args:
        data: The data set; its notes count the renamed images.
        wanted: The path that an image should get, from its split and its file name.

    Returns:
        The paths, relative to the new data set.
    """
    paths: dict[tuple[str, int], PurePosixPath] = {}
    by_file: dict[str, PurePosixPath] = {}
    taken: set[PurePosixPath] = set()
    for split in data.splits:
        for image in split.images:
            file = split.files.get(image["id"])
            key = f"{split.folder}/{image['file_name']}" if file is None else os.path.abspath(file)
            if key not in by_file:
                path = wanted(split, _inside(image["file_name"]))
                by_file[key] = free = _free(_escape(path), split.name, taken)
                taken.add(free.with_suffix(""))
                data.notes["images are renamed: their names are taken, too long or not printable"] += (
                    free != path
                )
            paths[split.name, image["id"]] = by_file[key]
    return paths


def _inside(file_name: str) -> PurePosixPath:
    """A file name that leads nowhere out of its folder, whatever an annotation file says."""
    parts = [part for part in PurePosixPath(file_name).parts if part not in ("/", "..", ".")]
    return PurePosixPath(*(parts or ["unnamed"]))


def _escape(path: PurePosixPath) -> PurePosixPath:
    """The path with escapes for what lists and XML cannot hold, and with its longest parts shortened."""
    return PurePosixPath(*(_shorten(printable(part)) for part in path.parts))


def _shorten(name: str) -> str:
    """The name, or its beginning and a digest of the rest if no file can have it."""
    stem, suffix = os.path.splitext(name)
    # Annotations have suffixes of four letters.
    if len(stem.encode()) <= _MAX_NAME - 4 and len(name.encode()) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    beginning = stem.encode()[: _MAX_NAME // 2].decode(errors="ignore")
    return f"{beginning}-{digest}{suffix if len(suffix) < 10 else ''}"


def _free(path: PurePosixPath, prefix: str, taken: set[PurePosixPath]) -> PurePosixPath:
    candidate, number = path, 0
    while candidate.with_suffix("") in taken:
        candidate = path.with_name(_shorten(f"{prefix}_{number or ''}{path.name}"))
        number += 1
    return candidate


def place_images(data: AnnotatedSet, paths: ImagePaths, folder: Path, how: str) -> int:
    """Link or copy every existing image into the new folder.

    Args:
        data: The data set.
        paths: Of `name_images`.
        folder: The new data set's.
        how: A key of PLACE_IMAGE.

    Returns:
        The number of images.

    Raises:
        OutputError: One cannot be read or written.
    """
    placed = 0
    for split in data.splits:
        for number, file in split.files.items():
            target = folder / paths[split.name, number]
            if os.path.lexists(target):  # of an earlier split
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                PLACE_IMAGE[how](file, target)
            except OSError as error:
                raise OutputError(
                    f"{file} cannot be put into the new data set: {error.strerror or error}"
                ) from error
            placed += 1
    return placed
