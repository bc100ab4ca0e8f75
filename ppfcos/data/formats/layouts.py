"""From a path to the sections that a configuration would have for the data there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ppfcos.data.issues import TRAINING, VALIDATION
from ppfcos.data.formats.coco import load_json
from ppfcos.data.formats.voc import (
    LISTS,
    NAME_FILES,
    annotated_names,
    class_names,
    object_name,
    read_annotation,
)
from ppfcos.data.formats.yolo import descriptions_in
from ppfcos.errors import DataError

_LOOKED_FOR = 200  # listed images that are looked for in a folder that may be theirs
_NO_BOXES = ("captions", "person_keypoints", "image_info")  # COCO's other files
_NEAR = ("", "images", "JPEGImages", "train", "val", "images/train", "images/val")
_VOC_LISTS = (("trainval", "test"), ("train", "val"), ("default", "test"))


def find_sections(path: Path, image_dir: Path | None = None) -> dict[str, Any]:
    """The data sets at a path, as sections of a configuration.

    Args:
        path: A COCO annotation file (.json), or a folder in COCO's, Pascal VOC's or YOLO's layout.
        image_dir: Where the images are; None looks for them around the annotation file.

    Returns:
        TrainDataset, EvalDataset or both.

    Raises:
        DataError: There is no data set that could be recognised.
    """
    if path.is_file() and path.suffix.lower() == ".json":
        return {TRAINING: _coco_section(path, image_dir)}
    if not path.is_dir():
        raise DataError(f"{path} is not there, or no .json file: name an annotation file or a folder")
    if (path / "Annotations").is_dir():
        return _voc_sections(path)
    files = sorted([*path.glob("*.json"), *path.glob("annotations/*.json")])
    sections = _coco_sections(files, image_dir) or _yolo_sections(path)
    if not sections:
        raise DataError(
            f"{path} is in no known layout: it has neither Annotations (Pascal VOC), nor a .json file in it "
            "or in annotations (COCO), nor a data.yaml (YOLO): name a file, or a configuration with -c"
        )
    return sections


def _coco_sections(files: list[Path], image_dir: Path | None) -> dict[str, Any]:
    """Of a folder's annotation files those of boxes, whose names say what they are for."""
    files = [file for file in files if not file.name.startswith(_NO_BOXES)]
    chosen: dict[str, Path] = {}
    for section, words in ((TRAINING, ("train",)), (VALIDATION, ("val", "test"))):
        fitting = [file for file in files if any(word in file.stem.lower() for word in words)]
        if fitting and fitting[0] not in chosen.values():
            chosen[section] = fitting[0]
    if not chosen and files:
        chosen[TRAINING] = files[0]
    return {section: _coco_section(file, image_dir) for section, file in chosen.items()}


def _coco_section(path: Path, image_dir: Path | None) -> dict[str, Any]:
    folder = image_dir or _folder_of_images(path)
    return {"name": "COCODataSet", "dataset_dir": "", "anno_path": str(path), "image_dir": str(folder)}


def _folder_of_images(path: Path) -> Path:
    """The folder near an annotation file that holds the most of its images."""
    images = load_json(path, TRAINING).get("images")
    names = [
        entry["file_name"]
        for entry in (images if isinstance(images, list) else [])[:_LOOKED_FOR]
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
    ]
    split = path.stem.split("_")[-1]  # instances_train2017
    folders = [
        top / name for top in (path.parent, path.parent.parent) for name in (split, f"images/{split}", *_NEAR)
    ]
    folders += sorted(folder for folder in path.parent.iterdir() if folder.is_dir())
    found = [sum(os.path.isfile(folder / name) for name in names) for folder in folders]
    if not any(found):
        raise DataError(f"no image that {path} lists was found near it: say where they are, with --image_dir")
    return folders[found.index(max(found))]


def _voc_sections(folder: Path) -> dict[str, Any]:
    there = [pair for pair in _VOC_LISTS if (folder / LISTS / f"{pair[0]}.txt").is_file()]
    # without lists every XML file is read
    sets = [name for name in there[0] if (folder / LISTS / f"{name}.txt").is_file()] if there else [None]
    keys = {
        "name": "PPFCOSVOCDataSet",
        "dataset_dir": str(folder),
        "class_names": _voc_classes(folder),
        **({} if (folder / "JPEGImages").is_dir() else {"image_dir": "images"}),
    }
    return {section: {**keys, "image_set": name} for section, name in zip((TRAINING, VALIDATION), sets)}


def _voc_classes(folder: Path) -> list[str]:
    """The data set's own list, or the names in the XML files that can be read."""
    if any((folder / name).is_file() for name in NAME_FILES):
        return class_names(folder, folder / "Annotations")[0]
    found = set()
    for name in annotated_names(folder / "Annotations"):
        with contextlib.suppress(DataError):  # reported once the files are read in earnest
            annotation = read_annotation(folder / "Annotations" / f"{name}.xml")
            found.update(object_name(node) for node in annotation.findall("object"))
    classes = sorted(found - {""})
    if not classes:
        raise DataError(f"{folder / 'Annotations'} names no class in any file")
    return classes


def _yolo_sections(folder: Path) -> dict[str, Any]:
    """The splits that a data.yaml names."""
    splits = {name for description in descriptions_in(folder).values() for name in description.splits}
    keys = {"name": "PPFCOSYOLODataSet", "dataset_dir": str(folder)}
    wanted = (
        (TRAINING, [name for name in ("train",) if name in splits]),
        (VALIDATION, [name for name in ("val", "test") if name in splits]),
    )
    return {section: {**keys, "image_set": names[0]} for section, names in wanted if names}
