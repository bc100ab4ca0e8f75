"""COCO's format, as a whole: instances_*.json and folders of pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ppfcos.data.convert.annotated import AnnotatedSet, Losses, Split, measure, split_name
from ppfcos.data.convert.images import Names, name_pictures
from ppfcos.data.formats import coco
from ppfcos.data.statistics import LoadEvent
from ppfcos.errors import DataError

_PREFIX = "instances_"
_ROBOFLOW = "_annotations.coco.json"  # one in each split's folder, among its pictures
_COMMON = "images"  # the folder of pictures that belong to no split alone


def recognise(source: Path) -> bool:
    """Whether a file or folder looks like COCO's format."""
    return bool(_annotation_files(source))


def _annotation_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".json" else []
    for pattern in (f"annotations/{_PREFIX}*.json", f"*/{_ROBOFLOW}", "annotations/*.json", "*.json"):
        files = sorted(source.glob(pattern))
        if files:
            return files
    return []


def _name_of(path: Path) -> str:
    if path.name == _ROBOFLOW:
        return path.parent.name
    return path.stem[len(_PREFIX) :] if path.stem.startswith(_PREFIX) else path.stem


def read(
    source: Path, splits: Sequence[str] = (), image_dir: Path | None = None, class_names: Sequence[str] = ()
) -> AnnotatedSet:
    """Reads one annotation file, or all of a folder.

    Args:
        source: The file, or the folder that holds annotations/instances_*.json or the like.
        splits: Only these, such as train2017; empty: all.
        image_dir: The folder of the pictures; None: wherever under `source` the first one is found.
        class_names: Must be empty: the files name their classes.

    Raises:
        DataError: A file is wrong, or two have different categories.
    """
    if class_names:
        raise DataError(f"{source}: COCO's files name their classes themselves: leave --class_names out")
    files = _annotation_files(source)
    if not files:
        raise DataError(f"{source} holds no COCO annotations: annotations/instances_*.json, or a .json file")
    names = [_name_of(path) for path in files]
    data = AnnotatedSet(source, [], [])
    for path in split_name(splits, files, names, source):
        content = coco.load_json(path)
        coco.read_categories(content, path)
        if data.splits and content["categories"] != data.categories:
            raise DataError(
                f"{path} has other categories than the split {data.splits[0].name}: convert them one by one, "
                "with --split"
            )
        data.categories = content["categories"]
        root = source if source.is_dir() else path.parent
        data.splits.append(_read_split(content, path, root, image_dir, data.losses))
    return data


def _read_split(
    content: dict[str, Any], path: Path, root: Path, image_dir: Path | None, losses: Losses
) -> Split:
    name = _name_of(path)
    checked = coco.read_images(content, path)
    images = [{**entry, **image} for entry, image in zip(content["images"], checked)]
    annotations = []
    if "annotations" in content:
        pairs, tally = coco.read_annotations(content, path, images, content["categories"])
        annotations = [{**entry, **annotation} for entry, annotation in pairs]
        for change in (LoadEvent.UNKNOWN_IMAGE, LoadEvent.NO_BOX):
            losses.add(f"{change.value.several} are left out of {path}", tally.count(change))
    place = image_dir or _find_pictures(images, name, path, root)
    pictures = {}
    if place is not None:
        found = ((image["id"], place / image["file_name"]) for image in images)
        pictures = {number: picture for number, picture in found if picture.is_file()}
    losses.add("pictures are not there: only their annotations are converted", len(images) - len(pictures))
    for image in images:
        measure(image, pictures.get(image["id"]))
    shared = place is not None and (place.name == _COMMON or place.resolve() == root.resolve())
    head = {
        key: value for key, value in content.items() if key not in ("images", "annotations", "categories")
    }
    folder = "" if shared else place.name if place is not None else name
    return Split(name, folder, images, annotations, pictures, head)


def _find_pictures(images: list[dict[str, Any]], name: str, path: Path, root: Path) -> Path | None:
    """The folder in which the first of the pictures that can be found lies."""
    base = root.parent if root.name == "annotations" else root
    places = [base / name, base / _COMMON / name, base / _COMMON, base, path.parent]
    for image in images[:100]:
        for place in places:
            if (place / image["file_name"]).is_file():
                return place
    return None


def write(data: AnnotatedSet, folder: Path) -> tuple[Names, dict[str, dict[str, Any]]]:
    """Writes annotations/instances_NAME.json for every split.

    Args:
        data: The data set.
        folder: Where to.

    Returns:
        Where the pictures belong, and for every split the section of a configuration that reads it.
    """
    names = name_pictures(data, lambda split, file_name: PurePosixPath(split.folder or _COMMON, file_name))
    (folder / "annotations").mkdir()
    sections = {}
    for split in data.splits:
        image_dir = split.folder or _COMMON
        file_names = {
            image["id"]: _file_name(names[split.name, image["id"]], image_dir) for image in split.images
        }
        content = {
            **split.head,
            "images": [{**image, "file_name": file_names[image["id"]]} for image in split.images],
            "annotations": split.annotations,
            "categories": data.categories,
        }
        path = Path("annotations", f"{_PREFIX}{split.name}.json")
        (folder / path).write_text(json.dumps(content), encoding="utf-8")
        sections[split.name] = {"name": "COCODataSet", "image_dir": image_dir, "anno_path": str(path)}
    return names, sections


def _file_name(path: PurePosixPath, image_dir: str) -> str:
    return str(path.relative_to(image_dir)) if path.parts[0] == image_dir else f"../{path}"
