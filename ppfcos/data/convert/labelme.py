"""JSON files of LabelMe, one per image, and of LabelImg as CreateML; they are read, never written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppfcos.data.classes import checked_names
from ppfcos.data.convert.annotated import AnnotatedSet, Split, box_area, fill_in_size, pixels
from ppfcos.data.formats.base import find_file
from ppfcos.data.formats.coco import load_json
from ppfcos.data.formats.layouts import ALL, labelme_files, select_splits
from ppfcos.data.images import IMAGE_SUFFIXES
from ppfcos.data.issues import as_number
from ppfcos.data.records import image_ids, numbered
from ppfcos.errors import DataError
from ppfcos.json_files import JSONError, read_json

_HAVE_AREA = ("polygon", "rectangle", "circle", "rotation", None)  # types of shapes


class _Image(NamedTuple):
    """An image: its JSON file, its path as written, the stated sides, and (class, x0, y0, x1, y1) each."""

    where: Path
    name: str
    width: int
    height: int
    objects: list[tuple[str, float, float, float, float]]


def read(
    source: Path, splits: Sequence[str] = (), image_dir: Path | None = None, class_names: Sequence[str] = ()
) -> AnnotatedSet:
    """Read all JSON files of a folder as the one split "all". Arguments as of `convert`."""
    select_splits({ALL: []}, splits, source)
    data = AnnotatedSet(source, [], [])
    images = [image for file in labelme_files(source) for image in _read_file(file, data)]
    found = sorted({each[0] for image in images for each in image.objects})
    names = checked_names(class_names or found, "--class_names" if class_names else str(source))
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise DataError(f"{source}: the class {unknown[0]!r} is not in --class_names: add it there")
    data.categories = numbered(names)
    ids = {category["name"]: category["id"] for category in data.categories}
    split = Split(ALL, "", [], [], {})
    files = [_find_image(image, image_dir) for image in images]
    written = [str(file or image.name) for file, image in zip(files, images)]
    for number, image, file in zip(image_ids(written), images, files):
        name = os.path.basename(file) if file else image.name
        entry = {"id": number, "file_name": name, "width": image.width, "height": image.height}
        if file is not None:
            split.files[number] = Path(file)
        fill_in_size(entry, split.files.get(number))
        split.images.append(entry)
        for label, x0, y0, x1, y1 in image.objects:
            box = [pixels(value) for value in (x0, y0, x1 - x0, y1 - y0)]
            note = {"id": len(split.annotations) + 1, "image_id": number, "category_id": ids[label]}
            split.annotations.append({**note, "bbox": box, "area": box_area(box), "iscrowd": 0})
    data.dropped["images are not there: only their annotations are converted"] += files.count(None)
    data.splits.append(split)
    return data


def _find_image(image: _Image, image_dir: Path | None) -> str | None:
    folder = image_dir or image.where.parent
    names = [image.name, *(image.where.with_suffix(suffix).name for suffix in IMAGE_SUFFIXES)]
    return next((file for file in (find_file(name, [folder]) for name in names) if file), None)


def _read_file(path: Path, data: AnnotatedSet) -> Iterator[_Image]:
    try:
        content = read_json(path)
    except (OSError, JSONError):
        content = load_json(path)  # raises an error that names the file
    if isinstance(content, list):
        for entry in content:
            objects = [_createml_object(each, path) for each in _list_in(entry, "annotations", path)]
            yield _Image(path, str(entry.get("image")), 0, 0, objects)
    elif isinstance(content, dict) and "shapes" in content:
        objects = []
        for shape in _list_in(content, "shapes", path):
            if isinstance(shape, dict) and shape.get("shape_type") in _HAVE_AREA:
                objects.append(_labelme_object(shape, path))
                kind = shape.get("shape_type") or "polygon"
                data.dropped[f"shapes ({kind}) become their bounding boxes"] += kind != "rectangle"
            else:
                data.dropped["shapes without an area (points and lines) are left out"] += 1
        sides = (as_number(content.get(key)) for key in ("imageWidth", "imageHeight"))
        width, height = (int(side) if side and side > 0 else 0 for side in sides)
        yield _Image(path, str(content.get("imagePath") or path.stem), width, height, objects)
    else:
        data.dropped["JSON files of another kind are left out"] += 1


def _list_in(entry: Any, key: str, path: Path) -> list[Any]:
    found = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{path} has no list `{key}`: export it again")
    return found


def _labelme_object(shape: dict[str, Any], path: Path) -> tuple[str, float, float, float, float]:
    points = shape.get("points")
    points = points if isinstance(points, list) else []
    numbers = [as_number(value) for point in points if isinstance(point, list) for value in point[:2]]
    if len(numbers) < 4 or None in numbers or len(numbers) % 2:
        raise DataError(f"{path}: a shape {shape.get('label')!r} has no two points: repair or remove it")
    xs, ys = numbers[::2], numbers[1::2]
    if shape.get("shape_type") == "circle":  # its center and a point on it
        radius = ((xs[1] - xs[0]) ** 2 + (ys[1] - ys[0]) ** 2) ** 0.5
        xs, ys = [xs[0] - radius, xs[0] + radius], [ys[0] - radius, ys[0] + radius]
    return _named(shape, path), min(xs), min(ys), max(xs), max(ys)


def _createml_object(entry: Any, path: Path) -> tuple[str, float, float, float, float]:
    box = entry.get("coordinates") if isinstance(entry, dict) else None
    values = [as_number((box or {}).get(key)) for key in ("x", "y", "width", "height")]
    if None in values:
        raise DataError(f"{path}: an annotation has no coordinates x, y, width and height: repair it")
    x, y, width, height = values  # of the center
    return _named(entry, path), x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _named(entry: dict[str, Any], path: Path) -> str:
    if not isinstance(entry.get("label"), str) or not entry["label"].strip():
        raise DataError(f"{path}: an object has no label: name or remove it")
    return entry["label"]
