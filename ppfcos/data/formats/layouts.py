"""Where the files of a data set are: the layouts of COCO, Pascal VOC and YOLO data sets.

The checker and the converter find data sets with these functions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ppfcos.data.formats import voc, yolo
from ppfcos.data.formats.coco import load_json
from ppfcos.data.images import IMAGE_SUFFIXES, is_clutter
from ppfcos.data.issues import TRAINING, VALIDATION
from ppfcos.errors import DataError
from ppfcos.fileio import require_regular

FORMATS = ("voc", "coco", "yolo")
XML_DIR, IMAGE_DIR = "Annotations", "JPEGImages"
ALL = "all"  # the split of a folder without splits
_PREFIX = "instances_"
_ROBOFLOW = "_annotations.coco.json"  # one in the folder of each split, beside its images
_NO_BOXES = ("captions", "person_keypoints", "image_info")  # COCO's other files
_NEAR = ("", "images", "JPEGImages", "train", "val", "images/train", "images/val")
_SAMPLED = 200  # listed images that are looked for in a folder
_VOC_LISTS = (("trainval", "test"), ("train", "val"), ("default", "test"))
_MAX_LINE = 10_000  # characters of a path


def detect_formats(path: Path) -> list[str]:
    """The formats that a file or folder may have, the likeliest first.

    Raises:
        DataError: The path does not exist.
    """
    if not path.exists():
        raise DataError(f"{path} is not there")
    if path.is_file():
        suffix = path.suffix.lower()
        return ["coco"] if suffix == ".json" else ["yolo"] if suffix in (".yaml", ".yml") else []
    labels = (path / "labels", *path.glob("*/labels"))
    is_format = {
        "voc": any(any(folder.glob("*.xml")) for folder in (path / XML_DIR, path)),
        "coco": bool(coco_files(path)),
        "yolo": any(folder.is_dir() for folder in labels) or bool(_described_splits(path)),
    }
    return [name for name in FORMATS if is_format[name]]


def detect_format(path: Path) -> str:
    """The only format that a file or folder may have.

    Raises:
        DataError: The path does not exist, or has none or several of the formats.
    """
    found = detect_formats(path)
    if not found:
        raise DataError(
            f"{path} looks like none of {', '.join(sorted(FORMATS))}: name the folder that holds "
            "annotations/*.json, Annotations/*.xml or labels/, or state the format with --from"
        )
    if len(found) > 1:
        raise DataError(f"{path} looks like {' and '.join(found)}: state the format with --from")
    return found[0]


def find_sections(path: Path, image_dir: Path | None = None) -> dict[str, Any]:
    """The data sets at a path, as sections of a configuration.

    Args:
        path: A COCO annotation file, a data.yaml, or a folder.
        image_dir: The folder of a COCO file's images; None searches near the file.

    Returns:
        TrainDataset, EvalDataset or both.

    Raises:
        DataError: There is no data set in a known layout.
    """
    found = detect_formats(path)
    if not found:
        raise DataError(
            f"{path} is in no known layout: it has neither Annotations (Pascal VOC), nor a .json file in it "
            "or in annotations (COCO), nor a data.yaml or labels (YOLO): name a file, or use -c"
        )
    if found[0] == "voc":
        return _voc_sections(path)
    if found[0] == "yolo":
        return _yolo_sections(path.parent if path.is_file() else path)
    files = _pick_sections(coco_files(path))
    return {section: _coco_section(file, image_dir) for section, file in files.items()}


def _pick_sections(splits: Mapping[str, Any]) -> dict[str, Any]:
    """The first split for training and the first one for validation, by their names."""
    chosen: dict[str, str] = {}
    for section, words in ((TRAINING, ("train",)), (VALIDATION, ("val", "test"))):
        fitting = (
            name for word in words for name in splits if word in name.lower() and name not in chosen.values()
        )
        name = next(fitting, None)
        if name is not None:
            chosen[section] = name
    if not chosen and splits:
        chosen[TRAINING] = next(iter(splits))
    return {section: splits[name] for section, name in chosen.items()}


# COCO ------------------------------------------------------------------------------------------------------


def coco_files(path: Path) -> dict[str, Path]:
    """The COCO annotation files at a path, by the names of their splits."""
    if path.is_file():
        return {coco_split_name(path): path} if path.suffix.lower() == ".json" else {}
    for pattern in (f"annotations/{_PREFIX}*.json", f"*/{_ROBOFLOW}", "annotations/*.json", "*.json"):
        files = [file for file in sorted(path.glob(pattern)) if not file.name.startswith(_NO_BOXES)]
        if files:
            return {coco_split_name(file): file for file in files}
    return {}


def coco_split_name(path: Path) -> str:
    """Such as train2017 of instances_train2017.json."""
    if path.name == _ROBOFLOW:
        return path.parent.name
    return path.stem[len(_PREFIX) :] if path.stem.startswith(_PREFIX) else path.stem


def find_image_dir(path: Path, images: Any) -> Path | None:
    """The folder near a COCO annotation file that holds most of its images.

    Args:
        path: The annotation file.
        images: The list `images` in it, unchecked.

    Returns:
        None if no image is found.
    """
    names = [
        entry["file_name"]
        for entry in (images if isinstance(images, list) else [])[:_SAMPLED]
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
    ]
    split = path.stem.split("_")[-1]  # instances_train2017
    near = (split, f"images/{split}", *_NEAR)
    folders = [top / name for top in (path.parent, path.parent.parent) for name in near]
    folders += sorted(folder for folder in path.parent.iterdir() if folder.is_dir())
    found = [sum(os.path.isfile(folder / name) for name in names) for folder in folders]
    return folders[found.index(max(found))] if any(found) else None


def _coco_section(path: Path, image_dir: Path | None) -> dict[str, Any]:
    folder = image_dir or find_image_dir(path, load_json(path, TRAINING).get("images"))
    if folder is None:
        raise DataError(f"no image that {path} lists was found near it: name their folder with --image_dir")
    return {"name": "COCODataSet", "dataset_dir": "", "anno_path": str(path), "image_dir": str(folder)}


# Pascal VOC ------------------------------------------------------------------------------------------------


class VOCLayout(NamedTuple):
    """The folders of XML files and images, and the image names of each split."""

    xml_dir: Path
    image_dir: Path
    splits: dict[str, list[str]]


def voc_layout(folder: Path) -> VOCLayout:
    """The layout of a VOC data set; without lists, everything is one split.

    Raises:
        DataError: There are no XML files.
    """
    xml_dir = folder / XML_DIR if (folder / XML_DIR).is_dir() else folder
    if not xml_dir.is_dir() or not voc.annotated_names(xml_dir):
        raise DataError(f"{xml_dir} holds no XML annotations: name the folder that holds {XML_DIR}")
    places = (folder / name for name in (IMAGE_DIR, "images"))
    image_dir = next((place for place in places if place.is_dir()), xml_dir)
    files = [path for path in sorted((folder / voc.LISTS).glob("*.txt")) if not is_clutter(path.name)]
    splits = {path.stem: voc.image_names(path) for path in files if not voc.is_list_of_one_class(path)}
    return VOCLayout(xml_dir, image_dir, splits or {ALL: voc.annotated_names(xml_dir)})


def _voc_sections(folder: Path) -> dict[str, Any]:
    layout = voc_layout(folder)
    there = [pair for pair in _VOC_LISTS if (folder / voc.LISTS / f"{pair[0]}.txt").is_file()]
    # without lists, all XML files are read
    sets = [name for name in there[0] if (folder / voc.LISTS / f"{name}.txt").is_file()] if there else [None]
    keys = {
        "name": "PPFCOSVOCDataSet",
        "dataset_dir": str(folder),
        "image_dir": os.path.relpath(layout.image_dir, folder),
        "anno_dir": os.path.relpath(layout.xml_dir, folder),
        "class_names": voc.class_names(folder, layout.xml_dir, skip_unreadable=True)[0],
    }
    return {section: {**keys, "image_set": name} for section, name in zip((TRAINING, VALIDATION), sets)}


# YOLO ------------------------------------------------------------------------------------------------------


def yolo_splits(folder: Path) -> dict[str, list[Path]]:
    """The folders or lists of images of each split.

    They come from a data.yaml and from lists such as train2017.txt, else from the folders in `images`, or
    from folders such as train/images; without any, everything is one split.
    """
    described = name_by_list(_described_splits(folder))
    lists = {path.stem: [path] for path in sorted(folder.glob("*.txt")) if is_image_list(path)}
    if described or lists:
        return {**described, **lists}
    images = folder / "images"
    inner = sorted(path for path in images.glob("*") if path.is_dir() and not is_clutter(path.name))
    if inner:
        return {path.name: [path] for path in inner}
    by_split = sorted(path for path in folder.glob("*/images") if path.is_dir())
    if by_split:
        return {path.parent.name: [path] for path in by_split}
    return {ALL: [images if images.is_dir() else folder]}


def _described_splits(folder: Path) -> dict[str, list[Path]]:
    """The splits of the first data.yaml in a folder that names any."""
    descriptions = yolo.descriptions_in(folder).values() if folder.is_dir() else ()
    return next((description.splits for description in descriptions if description.splits), {})


def name_by_list(splits: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """Name a split after its list: `train: train2017.txt` is the split train2017."""
    return {
        places[0].stem if len(places) == 1 and places[0].is_file() else key: places
        for key, places in splits.items()
    }


def is_image_list(path: Path) -> bool:
    """Whether a text file lists images; others are licenses, class names or labels."""
    try:
        require_regular(path)
        with open(path, encoding="utf-8-sig") as stream:
            return stream.readline(_MAX_LINE).strip().lower().endswith(IMAGE_SUFFIXES)
    except (OSError, UnicodeDecodeError):
        return False


def _yolo_sections(folder: Path) -> dict[str, Any]:
    keys = {"name": "PPFCOSYOLODataSet", "dataset_dir": str(folder)}
    described = _described_splits(folder)
    if described:
        names = _pick_sections({name: name for name in described})
        return {section: {**keys, "image_set": name} for section, name in names.items()}
    places = _pick_sections({name: place for name, [place] in yolo_splits(folder).items()})
    return {
        section: {**keys, "image_dir" if place.is_dir() else "anno_path": os.path.relpath(place, folder)}
        for section, place in places.items()
    }


def select_splits(found: Mapping[str, Any], wanted: Iterable[str], source: Path) -> dict[str, Any]:
    """The wanted splits; all if none is named.

    Raises:
        DataError: A wanted split does not exist.
    """
    wanted = list(wanted)
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise DataError(f"{source} has no split {unknown[0]!r}; it has: {', '.join(found)}")
    return {name: value for name, value in found.items() if not wanted or name in wanted}
