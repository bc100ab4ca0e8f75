"""YOLO data sets: images, labels, a list of images for every split, and a data.yaml."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ppfcos.data.classes import checked_names
from ppfcos.data.convert.annotated import (
    AnnotatedSet,
    ImagePaths,
    Split,
    box_area,
    has_another_area,
    name_images,
    pixels,
    require_same,
)
from ppfcos.data.formats import yolo
from ppfcos.data.formats.layouts import name_by_list, select_splits, yolo_splits
from ppfcos.data.images import ImageUnreadable, image_size
from ppfcos.data.issues import RaiseOnError
from ppfcos.data.records import image_ids, numbered
from ppfcos.data.statistics import LoadEvent
from ppfcos.errors import DataError

_DIGITS = 12  # significant ones of a fraction: a millionth of a pixel in any image
_FINEST = 1e-9
_IMAGE_KEYS = ("id", "file_name", "width", "height")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
# {image file: its image and annotations}
_Entries = dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]


def read(
    source: Path, splits: Sequence[str] = (), image_dir: Path | None = None, class_names: Sequence[str] = ()
) -> AnnotatedSet:
    """Read the splits of a data.yaml, else the lists (train2017.txt), else the folders in `images`.

    Arguments as of `convert`.
    """
    folder = source.parent if source.is_file() else source
    if not folder.is_dir():
        raise DataError(f"{folder} is not there")
    categories, places = None, {}
    if source.is_file():
        description = yolo.read_description(source)
        if description is None:
            raise DataError(f"{source} describes no data set: it has no `names`")
        categories, places = description.categories, name_by_list(description.splits)
    if class_names:
        categories = numbered(checked_names(class_names, "--class_names"))
    elif categories is None:
        categories = yolo.find_categories(folder, [folder / "labels"])[0]
    places = {image_dir.name: [image_dir]} if image_dir else places or yolo_splits(folder)
    data = AnnotatedSet(source, categories, [])
    files = _find_images(select_splits(places, splits, source), folder, data, must_exist=bool(splits))
    entries = _read_images(list(dict.fromkeys(file for some in files.values() for file in some)), data)
    for name, some in files.items():
        data.splits.append(_split(name, [file for file in some if file in entries], entries, folder))
    return data


def _find_images(
    splits: dict[str, list[Path]], folder: Path, data: AnnotatedSet, must_exist: bool
) -> dict[str, list[str]]:
    """The images of every split. A split without images is left out, unless it must exist."""
    found = {}
    for name, places in splits.items():
        report = RaiseOnError("")
        try:
            images = [image for place in places for image in yolo.images_at(place, folder, report)]
        except DataError:
            if must_exist or len(splits) == 1:
                raise
            data.dropped[f"split is left out, for none of its images is there: {name}"] += 1
            continue
        data.dropped["listed images are not there"] += report.tally.count(LoadEvent.MISSING_IMAGE)
        found[name] = list(dict.fromkeys(images))
    return found


def _read_images(files: list[str], data: AnnotatedSet) -> _Entries:
    found: _Entries = {}
    numbers = itertools.count(1)
    report = RaiseOnError("")
    yolo.report_orphans(files, [yolo.label_path(file) for file in files], report)
    data.dropped["label files belong to no image"] += report.tally.count(LoadEvent.ORPHAN_LABELS)
    all_rows: list[yolo.Row] = []
    for image_id, file in zip(image_ids(files), files):
        rows = yolo.read_rows(yolo.find_label_file(file), len(data.categories), report, file)
        all_rows += rows
        data.dropped["polygons become their bounding boxes"] += sum(row.is_polygon for row in rows)
        try:
            height, width = image_size(file)
        except ImageUnreadable:
            data.dropped["images that cannot be read are left out"] += 1
            continue
        image = {"id": image_id, "file_name": file, "width": width, "height": height}
        notes = []
        for row in rows:
            x0, y0, x1, y1 = row.box
            box = [pixels(v) for v in (x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height)]
            notes.append(
                {
                    "id": next(numbers),
                    "image_id": image_id,
                    "category_id": data.categories[row.label]["id"],
                    "bbox": box,
                    "area": box_area(box),
                    "iscrowd": 0,
                }
            )
        found[file] = image, notes
    yolo.check_form(all_rows, str(data.source), report)
    return found


def _split(name: str, files: list[str], entries: _Entries, root: Path) -> Split:
    inner = {file: _inner_path(file, root) for file in files}
    tops = {path.parts[0] if len(path.parts) > 1 else "" for path in inner.values()}
    folder = tops.pop() if len(tops) == 1 else ""
    images, annotations = [], []
    for file in files:
        image, notes = entries[file]
        file_name = str(inner[file].relative_to(folder)) if folder else str(inner[file])
        images.append({**image, "file_name": file_name})
        annotations += notes
    return Split(name, folder, images, annotations, {entries[file][0]["id"]: Path(file) for file in files})


def _inner_path(file: str, root: Path) -> PurePosixPath:
    """The path of an image below `root`, without the folder `images`."""
    path = Path(os.path.relpath(file, root))
    if path.parts[0] == os.pardir:
        return PurePosixPath(path.name)
    parts = list(path.parts)
    if "images" in parts[:-1]:
        parts.remove("images")
    return PurePosixPath(*parts)


def write(data: AnnotatedSet, folder: Path) -> tuple[ImagePaths, dict[str, dict[str, Any]]]:
    """Write a label file for every image with objects, a list for every split, and data.yaml.

    Raises:
        DataError: An image's size is unknown, or two splits have other boxes for one image.
    """
    paths = name_images(data, lambda split, file_name: PurePosixPath("images", split.folder, file_name))
    labels = {category["id"]: label for label, category in enumerate(data.categories)}
    written: dict[str, str] = {}
    sections = {}
    for split in data.splits:
        notes_of, lines = split.annotations_by_image(), []
        for image in split.images:
            path = paths[split.name, image["id"]]
            text = _label_rows(image, notes_of[image["id"]], labels, data)
            require_same(written, str(path), text, image["file_name"], split)
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
    crowds = sum(bool(note.get("iscrowd")) for note in data.annotations())
    data.dropped["crowd boxes are left out, for YOLO has no mark for them"] += crowds
    data.dropped["areas are not those of their boxes"] += sum(map(has_another_area, data.annotations()))
    data.drop_keys(_IMAGE_KEYS, _ANNOTATION_KEYS)
    return paths, sections


def _label_rows(
    image: dict[str, Any], notes: list[dict[str, Any]], labels: dict[int, int], data: AnnotatedSet
) -> str:
    """The rows of a label file. YOLO's tools refuse an image with a number outside 0 to 1."""
    across, down = image["width"], image["height"]
    if notes and min(across, down) <= 0:
        raise DataError(
            f"{image['file_name']}: YOLO's boxes are fractions of the image, which is not there and whose "
            "size is not stated"
        )
    rows = []
    for note in notes:
        if note.get("iscrowd"):
            continue
        x, y, width, height = note["bbox"]
        row = [(x + width / 2) / across, (y + height / 2) / down, width / across, height / down]
        if not all(0 <= value <= 1 for value in row):
            row = _clip(*row)
            data.dropped["boxes are clipped" if row else "boxes outside their image are left out"] += 1
        if row:
            columns = " ".join(f"{value:.{_DIGITS}g}" for value in row)
            rows.append(f"{labels[note['category_id']]} {columns}\n")
    return "".join(rows)


def _clip(x: float, y: float, width: float, height: float) -> list[float]:
    """The part of a box in its image, as center and size; empty if none is."""
    x0, x1, y0, y1 = (
        min(max(value, 0.0), 1.0) for value in (x - width / 2, x + width / 2, y - height / 2, y + height / 2)
    )
    if x1 - x0 < _FINEST or y1 - y0 < _FINEST:
        return []
    return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]


def _splits_by_key(data: AnnotatedSet) -> dict[str, list[str]]:
    """The splits of train, val and test: those called so, and others that begin so and have other images.

    VOC's trainval, with the images of train and of val, is left out beside these.
    """
    files = {
        split.name: {str(split.files.get(image["id"], image["file_name"])) for image in split.images}
        for split in data.splits
    }
    found = {key: [key] if key in files else [] for key in yolo.SPLITS}
    used = set().union(*(files[key] for names in found.values() for key in names))
    for key, names in found.items():
        for name in sorted(files):
            if name.startswith(key) and name != key and not files[name] & used:
                names.append(name)
                used |= files[name]
    return {key: names for key, names in found.items() if names}


def _description(data: AnnotatedSet) -> dict[str, Any]:
    """A data.yaml; without `path`, YOLO's tools use its own folder."""
    ids = [category["id"] for category in data.categories]
    content: dict[str, Any] = {}
    for key, names in _splits_by_key(data).items():
        content[key] = f"{names[0]}.txt" if len(names) == 1 else [f"{name}.txt" for name in names]
    content["nc"] = len(ids)
    content["names"] = {label: category["name"] for label, category in enumerate(data.categories)}
    if ids != list(range(1, len(ids) + 1)):
        content[yolo.CATEGORY_IDS] = ids
    return content
