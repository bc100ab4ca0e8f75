"""YOLO's format, as a whole: images, labels, a list of pictures for every split, and a data.yaml."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ppfcos.data.classes import checked_names
from ppfcos.data.convert.annotated import AnnotatedSet, Losses, Split, pixels, split_name
from ppfcos.data.convert.images import Names, name_pictures
from ppfcos.data.formats import yolo
from ppfcos.data.images import IMAGE_SUFFIXES, ImageUnreadable, image_size, is_clutter
from ppfcos.data.records import image_ids, numbered
from ppfcos.errors import DataError
from ppfcos.fileio import require_regular

_IMAGES, _LABELS = "images", "labels"
_MAX_LINE = 10_000  # characters of a path
_EVERYTHING = "all"  # the split of a folder that says nothing of splits
_DIGITS = 12  # significant ones of a fraction: a millionth of a pixel on any picture
_FINEST = 1e-9

_IMAGE_KEYS = ("id", "file_name", "width", "height")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


def recognise(source: Path) -> bool:
    """Whether a folder or a data.yaml looks like YOLO's format."""
    if source.is_file():
        return source.suffix in (".yaml", ".yml")
    folders = (source / _LABELS, *source.glob(f"*/{_LABELS}"))
    return any(place.is_dir() for place in folders) or bool(_splits_described_in(source))


def read(
    source: Path, splits: Sequence[str] = (), image_dir: Path | None = None, class_names: Sequence[str] = ()
) -> AnnotatedSet:
    """Reads the splits of a data.yaml, else the lists (train2017.txt), else the folders below images.

    Args:
        source: The folder, or its data.yaml.
        splits: Only these, such as train; empty: all.
        image_dir: The one folder of pictures to read; None: as above.
        class_names: The classes in the order of their labels; empty: from the file that names them.

    Raises:
        DataError: A file is wrong, or nothing names the classes.
    """
    folder = source.parent if source.is_file() else source
    if not folder.is_dir():
        raise DataError(f"{folder} is not there")
    categories, places = _described(source) if source.is_file() else (None, _places(folder))
    if class_names:
        categories = numbered(checked_names(class_names, "--class_names"))
    elif categories is None:
        categories = yolo.find_categories(folder, [folder / _LABELS])[0]
    places = {image_dir.name: [image_dir]} if image_dir else places or _places(folder)
    chosen = dict(split_name(splits, list(places.items()), list(places), source))
    data = AnnotatedSet(source, categories, [])
    pictures_of = _pictures_of(chosen, folder, data.losses, must_be_there=len(splits) > 0 or len(chosen) == 1)
    read_once = _read_pictures(list(dict.fromkeys(p for some in pictures_of.values() for p in some)), data)
    for name, some in pictures_of.items():
        there = [picture for picture in some if picture in read_once]
        data.splits.append(_split(name, there, read_once, folder))
    return data


def _described(path: Path) -> tuple[list[dict[str, Any]], dict[str, list[Path]]]:
    """The categories and splits of a data.yaml."""
    description = yolo.read_description(path)
    if description is None:
        raise DataError(f"{path} describes no data set: it has no `names`")
    return description.categories, _named_as_their_lists(description.splits)


def _places(folder: Path) -> dict[str, list[Path]]:
    """The splits of a folder, by name: folders or lists of pictures."""
    described = _splits_described_in(folder)
    lists = {path.stem: [path] for path in sorted(folder.glob("*.txt")) if is_image_list(path)}
    if described or lists:
        return {**_named_as_their_lists(described), **lists}
    images = folder / _IMAGES
    inner = sorted(path for path in images.glob("*") if path.is_dir() and not is_clutter(path.name))
    if inner:
        return {path.name: [path] for path in inner}
    by_split = sorted(path for path in folder.glob(f"*/{_IMAGES}") if path.is_dir())
    if by_split:
        return {path.parent.name: [path] for path in by_split}
    return {_EVERYTHING: [images if images.is_dir() else folder]}


def _splits_described_in(folder: Path) -> dict[str, list[Path]]:
    """The splits of the first data.yaml in a folder that names any."""
    for description in yolo.descriptions_in(folder).values() if folder.is_dir() else ():
        if description.splits:
            return description.splits
    return {}


def _named_as_their_lists(described: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """`train: train2017.txt` is the split train2017."""
    return {
        places[0].stem if len(places) == 1 and places[0].is_file() else key: places
        for key, places in described.items()
    }


def _pictures_of(
    places_of: dict[str, list[Path]], folder: Path, losses: Losses, must_be_there: bool
) -> dict[str, list[str]]:
    """The pictures of every split. One whose pictures are elsewhere is left out, unless it must be there."""
    found = {}
    for name, places in places_of.items():
        try:
            pictures = [picture for place in places for picture in yolo.pictures_at(place, folder)]
        except DataError:
            if must_be_there:
                raise
            losses.add(f"split is left out, for none of its pictures is there: {name}")
            continue
        found[name] = list(dict.fromkeys(pictures))
    return found


def is_image_list(path: Path) -> bool:
    """Whether a text file lists pictures; others are licences, class names or labels."""
    try:
        require_regular(path)
        with open(path, encoding="utf-8-sig") as stream:
            return stream.readline(_MAX_LINE).strip().lower().endswith(IMAGE_SUFFIXES)
    except (OSError, UnicodeDecodeError):
        return False


# {picture: its image and annotations}
_Read = dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]


def _read_pictures(pictures: list[str], data: AnnotatedSet) -> _Read:
    found: _Read = {}
    numbers = itertools.count(1)
    for image_id, picture in zip(image_ids(pictures), pictures):
        rows = yolo.read_rows(yolo.label_path(picture), len(data.categories))
        data.losses.add("polygons become their bounding boxes", sum(row.is_polygon for row in rows))
        try:
            height, width = image_size(picture)
        except ImageUnreadable:
            data.losses.add("pictures that cannot be read are left out")
            continue
        image = {"id": image_id, "file_name": picture, "width": width, "height": height}
        notes = [_annotation(row, next(numbers), image, data.categories) for row in rows]
        found[picture] = (image, notes)
    return found


def _annotation(
    row: yolo.Row, number: int, image: dict[str, Any], categories: list[dict[str, Any]]
) -> dict[str, Any]:
    width, height = image["width"], image["height"]
    x0, y0, x1, y1 = row.box
    box = [pixels(value) for value in (x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height)]
    return {
        "id": number,
        "image_id": image["id"],
        "category_id": categories[row.label]["id"],
        "bbox": box,
        "area": pixels(box[2] * box[3]),
        "iscrowd": 0,
    }


def _split(name: str, pictures: list[str], read_once: _Read, root: Path) -> Split:
    inner = {picture: _inner_path(picture, root) for picture in pictures}
    tops = {path.parts[0] if len(path.parts) > 1 else "" for path in inner.values()}
    folder = tops.pop() if len(tops) == 1 else ""
    images, annotations, there = [], [], {}
    for picture in pictures:
        image, notes = read_once[picture]
        file_name = str(inner[picture].relative_to(folder)) if folder else str(inner[picture])
        images.append({**image, "file_name": file_name})
        annotations += notes
        there[image["id"]] = Path(picture)
    return Split(name, folder, images, annotations, there)


def _inner_path(picture: str, root: Path) -> PurePosixPath:
    """The path of a picture below `root`, without the folder `images`."""
    path = Path(os.path.relpath(picture, root))
    if path.parts[0] == os.pardir:
        return PurePosixPath(path.name)
    parts = list(path.parts)
    if _IMAGES in parts[:-1]:
        parts.remove(_IMAGES)
    return PurePosixPath(*parts)


def write(data: AnnotatedSet, folder: Path) -> tuple[Names, dict[str, dict[str, Any]]]:
    """Writes a label file for every picture with objects, a list for every split, and data.yaml.

    Args:
        data: The data set; what YOLO's labels cannot hold is added to its losses.
        folder: Where to.

    Returns:
        Where the pictures belong, and for every split the section of a configuration that reads it.

    Raises:
        DataError: A picture's size is unknown, or two splits have other boxes for one picture.
    """
    names = name_pictures(data, lambda split, file_name: PurePosixPath(_IMAGES, split.folder, file_name))
    labels = {category["id"]: label for label, category in enumerate(data.categories)}
    written: dict[str, str] = {}
    sections = {}
    for split in data.splits:
        notes_of, lines = split.annotations_by_image(), []
        for image in split.images:
            path = names[split.name, image["id"]]
            text = "".join(_rows(image, notes_of[image["id"]], labels))
            if written.setdefault(str(path), text) != text:
                raise DataError(
                    f"{image['file_name']} has other annotations in {split.name} than in a split before it: "
                    "convert them one by one, with --split"
                )
            lines.append(f"./{path}\n")
        (folder / f"{split.name}.txt").write_text("".join(lines), encoding="utf-8")
        sections[split.name] = {"name": "PPFCOSYOLODataSet", "anno_path": f"{split.name}.txt"}
    for path, text in written.items():
        label_file = Path(yolo.label_path(str(folder / path)))
        label_file.parent.mkdir(parents=True, exist_ok=True)
        if text:
            label_file.write_text(text, encoding="utf-8")
    description = yaml.safe_dump(_description(data), sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(description, encoding="utf-8")
    _count_losses(data)
    return names, sections


def _rows(image: dict[str, Any], notes: list[dict[str, Any]], labels: dict[int, int]) -> list[str]:
    if notes and min(image["width"], image["height"]) <= 0:
        raise DataError(
            f"{image['file_name']}: YOLO's boxes are fractions of a picture, and this one is not "
            "there, nor its size stated"
        )
    rows = []
    for note in notes:
        fractions = _fractions(note["bbox"], image)
        if not _fits(fractions):
            fractions = _clipped(fractions)
        if fractions and not note.get("iscrowd"):
            columns = " ".join(f"{value:.{_DIGITS}g}" for value in fractions)
            rows.append(f"{labels[note['category_id']]} {columns}\n")
    return rows


def _fractions(box: Sequence[float], image: dict[str, Any]) -> list[float]:
    """Centre x and y, width and height of a box, as fractions of its picture's sides."""
    x, y, width, height = box
    across, down = image["width"], image["height"]
    return [(x + width / 2) / across, (y + height / 2) / down, width / across, height / down]


def _fits(fractions: Sequence[float]) -> bool:
    """Whether YOLO's tools take a box: they do if it only reaches over its picture's edge."""
    return all(0 <= value <= 1 for value in fractions)


def _clipped(fractions: Sequence[float]) -> list[float]:
    """The part of a box that is in its picture; empty if none is."""
    x, y, width, height = fractions
    x0, x1, y0, y1 = (
        min(max(value, 0.0), 1.0) for value in (x - width / 2, x + width / 2, y - height / 2, y + height / 2)
    )
    if x1 - x0 < _FINEST or y1 - y0 < _FINEST:
        return []
    return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]


def _description(data: AnnotatedSet) -> dict[str, Any]:
    """A data.yaml; without `path`, YOLO's tools take its own folder."""
    ids = [category["id"] for category in data.categories]
    content: dict[str, Any] = {}
    for key in yolo.SPLITS:
        names = sorted(split.name for split in data.splits if split.name.startswith(key))
        if names:
            content[key] = f"{names[0]}.txt"
    content["nc"] = len(ids)
    content["names"] = {label: category["name"] for label, category in enumerate(data.categories)}
    if ids != list(range(1, len(ids) + 1)):
        content[yolo.CATEGORY_IDS] = ids
    return content


def _count_losses(data: AnnotatedSet) -> None:
    losses, images, notes = data.losses, data.images(), data.annotations()
    losses.add_other_keys(data.categories, ("id", "name"), "categories")
    losses.add_other_keys(images, _IMAGE_KEYS, "images")
    losses.add_other_keys(notes, _ANNOTATION_KEYS, "annotations")
    losses.add_other_keys([split.head for split in data.splits], (), "splits")
    ids = image_ids([image["file_name"] for image in images])
    losses.add("images lose their number", sum(i["id"] != number for i, number in zip(images, ids)))
    losses.add("annotations lose their number", sum(n["id"] != at for at, n in enumerate(notes, start=1)))
    areas = [
        note for note in notes if note["area"] != pixels(max(note["bbox"][2], 0) * max(note["bbox"][3], 0))
    ]
    losses.add("annotations lose their area, which is not that of their box", len(areas))
    crowds = [note for note in notes if note.get("iscrowd")]
    losses.add("crowd boxes are left out, for YOLO has no mark for them", len(crowds))
    for split in data.splits:
        _count_changed_boxes(split, losses)


def _count_changed_boxes(split: Split, losses: Losses) -> None:
    images = {image["id"]: image for image in split.images}
    for note in split.annotations:
        fractions = _fractions(note["bbox"], images[note["image_id"]])
        if not note.get("iscrowd") and not _fits(fractions):
            what = (
                "are clipped to their picture"
                if _clipped(fractions)
                else "outside of their picture are left out"
            )
            losses.add(f"boxes of {split.name} {what}")
    for number, picture in split.pictures.items():
        stated = images[number]["height"], images[number]["width"]
        with contextlib.suppress(ImageUnreadable):
            what = f"pictures of {split.name} are not as large as their annotation says: boxes are displaced"
            losses.add(what, image_size(picture) != stated)
