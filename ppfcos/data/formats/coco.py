"""COCO annotation files: read once, checked, and handed to PaddleDetection's COCODataSet.

PaddleDetection and pycocotools take a file as it is and stop with a KeyError where an annotation lacks
`area`, or silently match nothing where an annotation's id is 0. Here a file is either repaired in memory or
refused in one line.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pycocotools.coco

from ppfcos.data.statistics import LoadEvent, LoadStatistics
from ppfcos.errors import DataError
from ppfcos.json_files import MAX_BYTES_VARIABLE, JSONError, read_json


def read_coco(path: Path, image_dir: Path, section: str) -> tuple[dict[str, Any], LoadStatistics]:
    """Reads a COCO annotation file, checks it, and keeps what detection needs.

    Filled in: a missing `area` (or one of 0) from the box, a missing `iscrowd`, annotation ids where one is
    missing, double or 0. Left out: images whose file is missing, annotations of unknown images, annotations
    without a box.

    Args:
        path: The JSON file.
        image_dir: The folder of the images.
        section: The configuration's section, for messages.

    Returns:
        A COCO dict (info, images, annotations, categories) without segmentations (`annotations` is absent if
        the file has none), and what was left out and filled in.

    Raises:
        DataError: The file is missing, not JSON, not COCO's format, or all images are missing.
    """
    content = load_json(path, section)
    categories = read_categories(content, path)
    images = read_images(content, path)
    tally = LoadStatistics()
    images = _existing_images(images, path, image_dir, section, tally)
    dataset = {"info": content.get("info", {}), "images": images, "categories": categories}
    if "annotations" in content:
        pairs, of_annotations = read_annotations(content, path, images, categories)
        dataset["annotations"] = [checked for _, checked in pairs]
        tally.add_all(of_annotations)
    return dataset, tally


def load_categories(path: Path, section: str) -> list[dict[str, Any]]:
    """Only the categories of a COCO file, in the file's order, which is the labels' order."""
    return read_categories(load_json(path, section), path)


def read_categories(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Checks the `categories` of an opened file; {'id', 'name'} each.

    Raises:
        DataError: There is none, one lacks its id or name, or two share an id.
    """
    categories, seen = [], set()
    for position, entry in enumerate(_list_of(content, "categories", path)):
        where = f"{path}: categories[{position}]"
        category = {"id": _as_id(entry, "id", where), "name": _as_text(entry, "name", where)}
        if category["id"] in seen:
            raise DataError(
                f"{where}: the id {category['id']} is there twice: give every category its own id"
            )
        seen.add(category["id"])
        categories.append(category)
    if not categories:
        raise DataError(f"{path} names no categories: a detection data set needs at least one")
    return categories


@contextlib.contextmanager
def opened_for_paddledetection(dataset: dict[str, Any]) -> Iterator[None]:
    """While this lasts, PaddleDetection's COCODataSet finds `dataset` in whatever annotation file it opens.

    It opens its file with pycocotools by itself, and to read COCO's 450 MB twice would double the start.
    """
    original = pycocotools.coco.COCO
    index = original()
    index.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    pycocotools.coco.COCO = lambda _path: index
    try:
        yield
    finally:
        pycocotools.coco.COCO = original


def load_json(path: Path, section: str | None = None) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: The file.
        section: The configuration's section that names it, if one does; for messages.

    Raises:
        DataError: The file is missing, not JSON, or holds something else.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        cure = f": set {section}.dataset_dir and {section}.anno_path" if section else ""
        raise DataError(f"{path} is not there{cure}") from None
    except OSError as error:
        cure = (
            f"; the environment variable {MAX_BYTES_VARIABLE} sets the limit"
            if error.errno == errno.EFBIG
            else ""
        )
        raise DataError(f"{path} cannot be read: {error.strerror}{cure}") from None
    except JSONError as error:
        cure = f": {section}.anno_path must name a COCO annotation file" if section else ""
        raise DataError(f"{path} cannot be read as JSON ({error}){cure}") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a JSON {type(content).__name__}, not COCO's object with images and categories"
        )
    return content


def _list_of(content: dict[str, Any], key: str, path: Path) -> list[Any]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{path} has no list `{key}`: it is not a COCO annotation file")
    return entries


def _as_id(entry: Any, key: str, where: str) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: `{key}` must be a whole number, not {value!r}")
    if not -(2**63) <= value < 2**63:
        raise DataError(f"{where}: `{key}` has more than 64 bits: {value}")
    return value


def _as_text(entry: Any, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: `{key}` must be a text, not {value!r}")
    if not is_unicode(value):
        raise DataError(f"{where}: `{key}` is no text that could be written: {value!r}")
    return value


def is_unicode(text: str) -> bool:
    """Whether a text can be written at all: JSON can name halves of characters."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _is_box(value: Any) -> bool:
    try:
        x, y, width, height = value
        return math.isfinite(x + y + width + height)
    except (TypeError, ValueError, OverflowError):
        return False


def read_images(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Checks the `images` of an opened file; {'id', 'file_name', 'width', 'height'} each, 0 if not stated.

    Raises:
        DataError: There is none, one lacks its id or name, or two share an id.
    """
    images, seen = [], set()
    for position, entry in enumerate(_list_of(content, "images", path)):
        where = f"{path}: images[{position}]"
        image = {"id": _as_id(entry, "id", where), "file_name": _as_text(entry, "file_name", where)}
        if image["id"] in seen:
            raise DataError(f"{where}: the id {image['id']} is there twice: give every image its own id")
        seen.add(image["id"])
        for key in ("width", "height"):
            value = entry.get(key)
            # 0 stands for "not stated": the size is then taken from the picture itself
            image[key] = int(value) if _is_number(value) and value > 0 else 0
        images.append(image)
    if not images:
        raise DataError(f"{path} lists no images: name another file")
    return images


def _existing_images(
    images: list[dict[str, Any]], path: Path, image_dir: Path, section: str, tally: LoadStatistics
) -> list[dict[str, Any]]:
    if not image_dir.is_dir():
        raise DataError(f"{image_dir}, the folder of the images, is not there: set {section}.image_dir")
    existing = [image for image in images if os.path.isfile(os.path.join(image_dir, image["file_name"]))]
    missing = len(images) - len(existing)
    if not existing:
        raise DataError(
            f"{image_dir} holds none of the {missing} images that {path} lists: set {section}.image_dir"
        )
    if missing:
        here = {image["id"] for image in existing}
        first = next(image["file_name"] for image in images if image["id"] not in here)
        tally.add(LoadEvent.MISSING_IMAGE, missing, os.path.join(image_dir, first))
    return existing


def read_annotations(
    content: dict[str, Any],
    path: Path,
    images: list[dict[str, Any]],
    categories: list[dict[str, Any]],
) -> tuple[list[tuple[dict[str, Any], dict[str, Any]]], LoadStatistics]:
    """Checks the `annotations` of an opened file, and fills in what they lack.

    Args:
        content: The file's.
        path: The file; for messages.
        images: Of `read_images`; annotations of others are left out.
        categories: Of `read_categories`.

    Returns:
        Each annotation as it stands in the file, and as detection needs it; and what was left out and filled
        in.

    Raises:
        DataError: One is wrong.
    """
    listed = {int(entry["id"]) for entry in content["images"]}
    here = {image["id"] for image in images}
    known_categories = {category["id"] for category in categories}
    pairs, tally = [], LoadStatistics()
    for position, entry in enumerate(_list_of(content, "annotations", path)):
        where = f"{path}: annotations[{position}]"
        image_id = _as_id(entry, "image_id", where)
        if image_id not in here:
            tally.add(LoadEvent.UNKNOWN_IMAGE, int(image_id not in listed), f"annotations[{position}]")
            continue
        if entry.get("bbox") in (None, []):
            tally.add(LoadEvent.NO_BOX, first=f"annotations[{position}]")
            continue
        if _as_id(entry, "category_id", where) not in known_categories:
            raise DataError(
                f"{where}: the category {entry['category_id']} is not among the file's categories: "
                "add it there or remove the annotation"
            )
        checked = _read_annotation(entry, where)
        tally.add(LoadEvent.FILLED_AREA, int(0 < checked["area"] != entry.get("area")))
        pairs.append((entry, checked))
    tally.add(LoadEvent.RENUMBERED, _number_annotations([checked for _, checked in pairs]))
    return pairs, tally


def _read_annotation(entry: dict[str, Any], where: str) -> dict[str, Any]:
    box = entry["bbox"]
    if not _is_box(box):
        raise DataError(f"{where}: `bbox` must be four numbers [x, y, width, height], not {box!r}")
    area = entry.get("area")
    if not _is_number(area) or area <= 0:
        area = max(box[2], 0) * max(box[3], 0)
    annotation = {
        "id": entry.get("id"),
        "image_id": int(entry["image_id"]),
        "category_id": int(entry["category_id"]),
        "bbox": box,
        "area": area,
        "iscrowd": int(entry.get("iscrowd") in (1, True)),
    }
    if entry.get("ignore"):
        annotation["ignore"] = 1
    return annotation


def _number_annotations(annotations: list[dict[str, Any]]) -> int:
    """Numbers them from 1 unless their own ids will do (pycocotools takes a match with id 0 for no match).

    Returns:
        How many were numbered: all or none.
    """
    ids = [annotation["id"] for annotation in annotations]
    usable = all(isinstance(i, int) and not isinstance(i, bool) and i > 0 for i in ids)
    if usable and len(set(ids)) == len(ids):
        return 0
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return len(annotations)
