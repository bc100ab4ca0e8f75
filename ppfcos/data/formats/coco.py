"""COCO annotation files: one parser for training, the data-set checker and the converter.

`parse` walks over a file once and reports every issue to a callable. Training and the converter pass a
`RaiseOnError`, the checker collects all issues.
"""

from __future__ import annotations

import errno
import math
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ppdet.data.source.coco import COCODataSet

from ppfcos.data.formats.base import TOP_LEFT, check_box_form, column, find_file
from ppfcos.data.issues import RaiseOnError, Report, as_number, is_number
from ppfcos.data.records import MIN_BOX_SIDE, Record, clip_boxes
from ppfcos.data.statistics import LoadEvent, LoadStatistics
from ppfcos.errors import DataError
from ppfcos.json_files import MAX_BYTES_VARIABLE, JSONError, read_json

_NEAR = ("", "images", "JPEGImages", "train", "val", "images/train", "images/val", "images/default")
_SAMPLED_BOXES = 5_000  # annotations of which the form is checked
_SAMPLED = 200  # listed images that are looked for in a folder


class Entry(NamedTuple):
    """A category, image or annotation: its place in the file, its JSON object, and the checked values.

    After a lenient parse an id may be a string or None.
    """

    where: str
    raw: dict[str, Any]
    checked: dict[str, Any]


class CocoFile(NamedTuple):
    """A parsed annotation file.

    Attributes:
        categories: Their position is the label.
        images: The images whose files exist.
        annotations: Those of `images` that have a box of four numbers and a known category.
        shared_ids: Image ids that two different images have.
    """

    categories: list[Entry]
    images: list[Entry]
    annotations: list[Entry]
    shared_ids: set[int | str]

    def to_dict(self) -> dict[str, Any]:
        """The checked values as a COCO dict, without `info`."""
        return {
            key: [entry.checked for entry in getattr(self, key)]
            for key in ("images", "annotations", "categories")
        }


def read_coco(path: Path, image_dir: Path, section: str) -> tuple[dict[str, Any], LoadStatistics]:
    """Read and check a COCO annotation file for training or evaluation.

    A missing `area`, a missing `iscrowd` and unusable annotation ids are filled in. Images whose file is
    missing, annotations of unknown images and annotations without a box are left out.

    Args:
        path: The JSON file.
        image_dir: The folder of the images.
        section: The configuration's section, for messages.

    Returns:
        A COCO dict without segmentations (`annotations` is absent if the file has none), and what was left
        out and filled in.

    Raises:
        DataError: The file is missing, not JSON or not in COCO's format, or all images are missing.
    """
    content = load_json(path, section)
    report = RaiseOnError(f"{path}: ")
    file = parse(content, path, report, image_dir, section)
    if not file.images:
        raise _no_image(content["images"], path, image_dir, section)
    dataset = {"info": content.get("info", {}), **file.to_dict()}
    if "annotations" in content:
        report.tally.add(LoadEvent.RENUMBERED, number_annotations(dataset["annotations"]))
    else:
        del dataset["annotations"]
    return dataset, report.tally


def _no_image(entries: list[Any], path: Path, image_dir: Path, section: str) -> DataError:
    """An error that names the first path, and the folder that holds the images if it is near."""
    first = next((name for name in (_parse_text(entry, "file_name") for entry in entries) if name), "")
    found = find_image_dir(path, entries)
    cure = f"to {os.path.abspath(found)}" if found else f"to the folder that holds {first}"
    return DataError(
        f"{image_dir} holds none of the {len(entries)} images that {path} lists, the first would be "
        f"{os.path.join(image_dir, first)}: set {section}.image_dir {cure}"
    )


def find_image_dir(path: Path, images: Any) -> Path | None:
    """The folder near a COCO annotation file that holds most of its images.

    Args:
        path: The annotation file.
        images: The list `images` in it, unchecked.

    Returns:
        None if no image is found.
    """
    entries = (images if isinstance(images, list) else [])[:_SAMPLED]
    names = [name for name in (_parse_text(entry, "file_name") for entry in entries) if name]
    split = path.stem.split("_")[-1]  # instances_train2017
    near = (split, f"images/{split}", *_NEAR)
    folders = [top / name for top in (path.parent, path.parent.parent) for name in near]
    folders += sorted(folder for folder in path.parent.iterdir() if folder.is_dir())
    folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    found = [sum(find_file(name, [folder]) is not None for name in names) for folder in folders]
    return folders[found.index(max(found))] if any(found) else None


def number_annotations(annotations: list[dict[str, Any]]) -> int:
    """Set the ids 1, 2, ... unless all are unique integers above 0; return how many were set.

    pycocotools takes a match with the annotation 0 for no match.
    """
    ids = [annotation["id"] for annotation in annotations]
    usable = all(isinstance(i, int) and not isinstance(i, bool) and i > 0 for i in ids)
    if usable and len(set(ids)) == len(ids):
        return 0
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return len(annotations)


def make_records(
    content: dict[str, Any], dataset: COCODataSet, image_dir: Path, tally: LoadStatistics
) -> list[Record]:
    """Records as PaddleDetection's COCODataSet makes them, and the boxes of crowds in `gt_crowd`.

    COCODataSet opens the file itself, with pycocotools; reading COCO's 450 MB twice would double the start.
    Images without objects come last, and `empty_ratio` draws some of them from Python's global generator.

    Args:
        content: As `read_coco` gives it.
        dataset: Its load_crowd, allow_empty, empty_ratio and sample_num are used.
        image_dir: The folder of the images.
        tally: Counts the images and boxes that are left out.
    """
    annotations: dict[int, list[dict[str, Any]]] = {}
    for annotation in content.get("annotations", ()):
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    labels = {category["id"]: label for label, category in enumerate(content["categories"])}
    records, empty = [], []
    for image in sorted(content["images"], key=lambda image: image["id"]):
        record = {
            "im_file": os.path.join(image_dir, image["file_name"]),
            "im_id": np.array([image["id"]], dtype=np.int64),
            "h": float(image["height"]),
            "w": float(image["width"]),
        }
        if "annotations" not in content:
            records.append(record)
        else:
            _add_boxes(record, annotations.get(image["id"], ()), labels, dataset.load_crowd, image, tally)
            if len(record["gt_bbox"]):
                records.append(record)
            elif dataset.allow_empty:
                empty.append(record)
            else:
                tally.add(LoadEvent.EMPTY_IMAGE)
        if 0 < dataset.sample_num <= len(records) + len(empty):
            break
    if 0 <= dataset.empty_ratio < 1:
        wanted = int(len(records) * dataset.empty_ratio / (1 - dataset.empty_ratio))
        drawn = random.sample(empty, min(wanted, len(empty))) if empty else []
        tally.add(LoadEvent.EMPTY_IMAGE, len(empty) - len(drawn))
        empty = drawn
    return records + empty


def _add_boxes(
    record: Record,
    annotations: Sequence[dict[str, Any]],
    labels: dict[int, int],
    load_crowd: bool,
    image: dict[str, Any],
    tally: LoadStatistics,
) -> None:
    kept, boxes, crowds = [], [], []
    for annotation in annotations:
        x, y, width, height = annotation["bbox"]
        corners = [x, y, x + width, y + height]
        if annotation.get("ignore"):
            tally.add(LoadEvent.MARKED_IGNORE)
        elif annotation["iscrowd"] and not load_crowd:
            tally.add(LoadEvent.CROWD)
            crowds.append(corners)
        elif min(corners[2] - x, corners[3] - y) <= MIN_BOX_SIDE:
            tally.add(LoadEvent.NO_AREA, first=image["file_name"])
        else:
            kept.append(annotation)
            boxes.append([round(float(value), 3) for value in corners])
    record["gt_bbox"] = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    record["gt_class"] = column([labels[annotation["category_id"]] for annotation in kept])
    record["is_crowd"] = column([annotation["iscrowd"] for annotation in kept])
    clipped, with_area = clip_boxes(np.array(crowds, dtype=np.float32), record["h"], record["w"])
    record["gt_crowd"] = clipped[with_area]


def load_categories(path: Path, section: str) -> list[dict[str, Any]]:
    """Read only the categories of a COCO file; their order is the labels' order."""
    content = load_json(path, section)
    return [entry.checked for entry in _parse_categories(content, path, RaiseOnError(f"{path}: "))]


def load_json(path: Path, section: str | None = None) -> dict[str, Any]:
    """Read a JSON file that holds an object.

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


def parse(
    content: dict[str, Any],
    path: Path,
    report: Report,
    image_dir: Path | None = None,
    section: str = "TrainDataset",
) -> CocoFile:
    """Check the content of an annotation file.

    Args:
        content: The file's JSON object.
        path: The file, for messages.
        report: Called for each issue; may raise.
        image_dir: The folder of the images; None keeps images whose files are missing.
        section: The configuration's section, for messages.

    Raises:
        DataError: A list is missing or empty, or all images are missing.
    """
    categories = list(_parse_categories(content, path, report))
    all_images = _list_of(content, "images", path)
    listed: dict[int | str, Entry] = {}
    shared: set[int | str] = set()
    images = list(_parse_images(all_images, report, listed, shared))
    if not all_images:
        raise DataError(f"{path} lists no images: name another file")
    if image_dir is not None:
        images = _keep_existing(images, image_dir, section, report)
    annotations = _list_of(content, "annotations", path) if "annotations" in content else []
    kept = {entry.checked["id"]: entry for entry in images if entry.checked["id"] is not None}
    labels = {entry.checked["id"] for entry in categories}
    paths = {number: os.path.join(image_dir or "", e.checked["file_name"]) for number, e in kept.items()}
    kept_annotations = list(_parse_annotations(annotations, report, listed, paths, labels))
    _check_form(kept_annotations[:_SAMPLED_BOXES], kept, path, report)
    return CocoFile(categories, images, kept_annotations, shared)


def _check_form(annotations: list[Entry], images: dict[Any, Entry], path: Path, report: Report) -> None:
    sizes = [images[entry.checked["image_id"]].checked for entry in annotations]
    check_box_form(
        [entry.checked["bbox"] for entry in annotations],
        [(size["width"], size["height"]) for size in sizes],
        TOP_LEFT,
        "annotations",
        report,
    )


def _list_of(content: dict[str, Any], key: str, path: Path) -> list[Any]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{path} has no list `{key}`: it is not a COCO annotation file")
    return entries


def _parse_categories(content: dict[str, Any], path: Path, report: Report) -> Iterator[Entry]:
    names: dict[int | str, str] = {}
    entries = _list_of(content, "categories", path)
    if not entries:
        raise DataError(f"{path} names no categories: a detection data set needs at least one")
    for position, entry in enumerate(entries):
        where = f"categories[{position}]"
        number = _parse_id(entry, "id", where, report)
        name = _parse_text(entry, "name")
        if not name:
            detail = f"`name` must be a text that can be written, not {_value(entry, 'name')!r}"
            report("category-malformed", where, detail)
            name = f"class {number if number is not None else position}"
        if number in names:
            report(
                "category-id-twice",
                where,
                f"the id {number} is there twice ({names[number]!r} and {name!r}): "
                "give every category its own id",
            )
            if names[number] == name:
                continue
        elif number is not None:
            names[number] = name
        if number == 0:
            report("category-id-zero", where, f"{name!r} has the id 0")
        yield Entry(where, _as_dict(entry), {"id": number, "name": name})


def _parse_images(
    entries: list[Any], report: Report, listed: dict[int | str, Entry], shared: set[int | str]
) -> Iterator[Entry]:
    for position, entry in enumerate(entries):
        where = f"images[{position}]"
        number = _parse_id(entry, "id", where, report)
        name = _parse_text(entry, "file_name")
        if not name:
            detail = f"`file_name` must be a text that can be written, not {_value(entry, 'file_name')!r}"
            report("image-malformed", where, detail)
            continue
        if number is not None and number in listed:
            report("image-id-twice", where, f"the id {number} is there twice: give every image its own id")
            if listed[number].checked["file_name"] != name:
                shared.add(number)
            continue
        # 0 stands for "not stated": the size is then read from the image
        height, width = (
            int(side) if is_number(side) and side > 0 else 0 for side in map(entry.get, ("height", "width"))
        )
        image = Entry(where, entry, {"id": number, "file_name": name, "width": width, "height": height})
        if number is not None:
            listed[number] = image
        yield image


def _keep_existing(images: list[Entry], image_dir: Path, section: str, report: Report) -> list[Entry]:
    if not image_dir.is_dir():
        raise DataError(f"{image_dir}, the folder of the images, is not there: set {section}.image_dir")
    existing = []
    for image in images:
        name = image.checked["file_name"]
        file = os.path.join(image_dir, name)
        if not os.path.isfile(file):
            found = find_file(name, [image_dir])  # of a path of another machine
            if found is None:
                report("image-missing", name, f"{file} is not there", file)
                continue
            name = image.checked["file_name"] = os.path.relpath(found, image_dir)
        if not (image.checked["height"] and image.checked["width"]):
            stated = f"height is {image.raw.get('height')!r}, width is {image.raw.get('width')!r}"
            report("image-size-unstated", name, stated, file)
        existing.append(image)
    return existing


def _parse_annotations(
    entries: list[Any],
    report: Report,
    listed: dict[int | str, Entry],
    paths: dict[int | str, str],
    category_ids: set[int | str],
) -> Iterator[Entry]:
    seen: set[int] = set()
    for position, entry in enumerate(entries):
        where = f"annotations[{position}]"
        if not isinstance(entry, dict):
            report("annotation-malformed", where, f"an annotation must be an object, not {entry!r}")
            continue
        image_id = _parse_id(entry, "image_id", where, report)
        if image_id not in paths:
            if image_id is not None and image_id not in listed:
                report("annotation-of-unknown-image", where, f"`image_id` is {image_id!r}")
            continue
        path = paths[image_id]
        written = entry.get("bbox")
        if written in (None, []):
            written = _box_of_polygons(entry.get("segmentation"))
            kind = "box-missing" if written is None else "box-from-polygon"
            report(kind, where, f"`bbox` is {entry.get('bbox')!r}", path)
            if written is None:
                continue
        category_id = _parse_id(entry, "category_id", where, report)
        if category_id is not None and category_id not in category_ids:
            report(
                "annotation-of-unknown-category",
                where,
                f"the category {category_id} is not among the file's categories: "
                "add it there or remove the annotation",
                path,
            )
        box = _parse_box(written, where, report, path)
        annotation_id = entry.get("id")
        _check_annotation_id(annotation_id, where, report, path, seen)
        crowd = entry.get("iscrowd")
        if crowd not in (None, 0, 1):
            report("crowd-unclear", where, f"`iscrowd` is {crowd!r}", path)
        if box is None or category_id not in category_ids:
            continue
        area = entry.get("area")
        if not is_number(area) or area <= 0:
            area = max(box[2], 0) * max(box[3], 0)
            if area > 0:
                report("area-missing", where, f"`area` is {entry.get('area')!r}", path)
        annotation = {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd in (1, True)),
        }
        if entry.get("ignore"):
            annotation["ignore"] = 1
        yield Entry(where, entry, annotation)


def _check_annotation_id(number: Any, where: str, report: Report, path: str, seen: set[int]) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        report("annotation-id-missing", where, f"`id` is {number!r}", path)
    elif number <= 0:
        report("annotation-id-zero", where, f"`id` is {number}", path)
    elif number in seen:
        report("annotation-id-twice", where, f"`id` is {number}", path)
    else:
        seen.add(number)


def _parse_id(entry: Any, key: str, where: str, report: Report) -> int | str | None:
    """The id as an integer; where a lenient parse goes on, a text that is no integer, or None."""
    value = _value(entry, key)
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    if isinstance(value, str) and value:
        report("id-as-text", where, f"`{key}` must be a whole number, not {value!r}")
        return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else value
    if type(value) is int:
        report("id-missing", where, f"`{key}` has more than 64 bits: {value}")
    else:
        report("id-missing", where, f"`{key}` must be a whole number, not {value!r}")
    return None


def _parse_box(box: Any, where: str, report: Report, path: str) -> list[float] | None:
    """[x, y, width, height] as in the file, or with texts as numbers; None if it is not four numbers."""
    try:
        x, y, width, height = box
        if math.isfinite(x + y + width + height):
            return box
    except (TypeError, ValueError, OverflowError):
        pass
    detail = f"`bbox` must be four numbers [x, y, width, height], not {box!r}"
    numbers = [as_number(value) for value in box] if isinstance(box, list) else []
    if len(numbers) == 4 and None not in numbers and any(isinstance(value, str) for value in box):
        report("box-as-text", where, detail, path)
        return numbers
    report("box-malformed", where, detail, path)
    return None


def _box_of_polygons(segmentation: Any) -> list[float] | None:
    """[x, y, width, height] around polygons [[x, y, x, y, ...], ...]; None if there is none of 3 points."""
    polygons = segmentation if isinstance(segmentation, list) else []
    polygons = [each for each in polygons if isinstance(each, list) and len(each) >= 6 and len(each) % 2 == 0]
    points = [value for polygon in polygons for value in polygon]
    if not points or not all(map(is_number, points)):
        return None
    left, top = min(points[::2]), min(points[1::2])
    return [left, top, max(points[::2]) - left, max(points[1::2]) - top]


def _value(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _as_dict(entry: Any) -> dict[str, Any]:
    return entry if isinstance(entry, dict) else {}


def _parse_text(entry: Any, key: str) -> str:
    """A text without lone surrogates, which JSON can contain and no file can; else an empty one."""
    value = _value(entry, key)
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        return ""
    return value
