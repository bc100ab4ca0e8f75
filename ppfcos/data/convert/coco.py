"""COCO data sets: annotations/instances_*.json and folders of images."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ppfcos.data.convert.annotated import AnnotatedSet, ImagePaths, Split, fill_in_size, name_images
from ppfcos.data.formats import coco
from ppfcos.data.formats.base import find_file
from ppfcos.data.formats.coco import find_image_dir
from ppfcos.data.formats.layouts import coco_files, select_splits
from ppfcos.data.issues import RaiseOnError
from ppfcos.data.statistics import LoadEvent
from ppfcos.errors import DataError

_COMMON = "images"  # the folder of images that belong to several splits


def read(
    source: Path, splits: Sequence[str] = (), image_dir: Path | None = None, class_names: Sequence[str] = ()
) -> AnnotatedSet:
    """Read one annotation file, or all of a folder; without `class_names`. Arguments as of `convert`."""
    if class_names:
        raise DataError(f"{source}: COCO's files name their classes themselves: leave --class_names out")
    files = coco_files(source)
    if not files:
        raise DataError(f"{source} holds no COCO annotations: annotations/instances_*.json, or a .json file")
    data = AnnotatedSet(source, [], [])
    for name, path in select_splits(files, splits, source).items():
        content = coco.load_json(path)
        split, categories = _read_split(name, content, path, image_dir, data)
        if data.splits and categories != data.categories:
            raise DataError(
                f"{path} has other categories than the split {data.splits[0].name}: convert them one by one, "
                "with --split"
            )
        data.categories = categories
        data.splits.append(split)
    return data


def _read_split(
    name: str, content: dict[str, Any], path: Path, image_dir: Path | None, data: AnnotatedSet
) -> tuple[Split, list[dict[str, Any]]]:
    report = RaiseOnError(f"{path}: ")
    file = coco.parse(content, path, report)
    # every other key of an entry is kept too
    images, annotations, categories = (
        [{**entry.raw, **entry.checked} for entry in entries]
        for entries in (file.images, file.annotations, file.categories)
    )
    coco.number_annotations(annotations)
    for change in (LoadEvent.UNKNOWN_IMAGE, LoadEvent.NO_BOX):
        data.dropped[f"{change.value.several} are left out of {path}"] += report.tally.count(change)
    polygons = report.tally.count(LoadEvent.POLYGON_BOX)
    data.notes["annotations without a box get the bounding box of their polygons"] += polygons
    folder = image_dir or find_image_dir(path, images)
    files = {}
    if folder is not None:
        for image in images:
            file = find_file(image["file_name"], [folder])
            if file is not None:
                files[image["id"]] = Path(file)
                if not (folder / image["file_name"]).is_file():  # a path of another machine
                    image["file_name"] = os.path.relpath(file, folder)
    data.dropped["images are not there: only their annotations are converted"] += len(images) - len(files)
    for image in images:
        fill_in_size(image, files.get(image["id"]))
    head = {
        key: value for key, value in content.items() if key not in ("images", "annotations", "categories")
    }
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    is_shared = folder is not None and (folder.name == _COMMON or folder.resolve() == root.resolve())
    own_folder = "" if is_shared else folder.name if folder is not None else name
    return Split(name, own_folder, images, annotations, files, head), categories


def write(data: AnnotatedSet, folder: Path) -> tuple[ImagePaths, dict[str, dict[str, Any]]]:
    """Write annotations/instances_NAME.json for every split."""
    paths = name_images(data, lambda split, file_name: PurePosixPath(split.folder or _COMMON, file_name))
    (folder / "annotations").mkdir()
    sections = {}
    for split in data.splits:
        image_dir = split.folder or _COMMON
        images = [
            {**image, "file_name": _relative(paths[split.name, image["id"]], image_dir)}
            for image in split.images
        ]
        content = {
            **split.head,
            "images": images,
            "annotations": split.annotations,
            "categories": data.categories,
        }
        path = Path("annotations", f"instances_{split.name}.json")
        (folder / path).write_text(json.dumps(content), encoding="utf-8")
        sections[split.name] = {"name": "COCODataSet", "image_dir": image_dir, "anno_path": str(path)}
    return paths, sections


def _relative(path: PurePosixPath, image_dir: str) -> str:
    return str(path.relative_to(image_dir)) if path.parts[0] == image_dir else f"../{path}"
