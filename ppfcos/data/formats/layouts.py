"""Where the files of a data set are: COCO, Pascal VOC and YOLO in the layouts of the annotation tools.

The checker and the converter find data sets with these functions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ppfcos.data.formats import voc, yolo
from ppfcos.data.formats.coco import find_image_dir, load_json
from ppfcos.data.images import IMAGE_SUFFIXES, is_clutter, list_images
from ppfcos.data.issues import TRAINING, VALIDATION
from ppfcos.errors import DataError
from ppfcos.fileio import require_regular
from ppfcos.json_files import JSONError, read_json

FORMATS = ("voc", "coco", "yolo")
LABELME = "labelme"  # one JSON file per image, of LabelMe, or of LabelImg as CreateML: only converted
XML_DIR, IMAGE_DIR = "Annotations", "JPEGImages"
ALL = "all"  # the split of a folder without splits
_XML_DIRS, _IMAGE_DIRS = (XML_DIR, "annotations", "xmls", "labels"), (IMAGE_DIR, "images")
_SPLIT_DIRS = ("train", "valid", "val", "test")
_PREFIX = "instances_"
_ROBOFLOW = "_annotations.coco.json"  # one in the folder of each split, beside its images
_NO_BOXES = ("captions", "person_keypoints", "image_info")  # COCO's other files
_LARGE_JSON, _MOST_JSON = (
    4 << 20,
    50,
)  # bytes and files: of more, the content is not read to tell formats apart
_VOC_LISTS = (("trainval", "test"), ("train", "val"), ("default", "test"))
_MAX_LINE = 10_000  # characters of a path


def detect_formats(path: Path) -> list[str]:
    """The formats that a file or folder may have, the likeliest first.

    Raises:
        DataError: The path does not exist, or has the format of a tool that is not supported.
    """
    if not path.exists():
        raise DataError(f"{path} is not there")
    if path.is_file():
        if path.suffix.lower() == ".json":
            return [_json_format(path)]
        return ["yolo"] if path.suffix.lower() in (".yaml", ".yml") else []
    labels = [folder for folder in (path / "labels", *path.glob("*/labels")) if folder.is_dir()]
    is_format = {
        "voc": _voc_folder(path) is not None,
        "coco": bool(coco_files(path)),
        "yolo": any(not _has_xml(folder) for folder in labels) or bool(_described_splits(path)),
    }
    found = [name for name in FORMATS if is_format[name]]
    if found:
        return found
    if (path / "classes.txt").is_file() or any(path.glob("*.names")):
        return ["yolo"]  # LabelImg's labels beside the images, CVAT's YOLO 1.1
    return [LABELME] if labelme_files(path) else []


def _json_format(path: Path) -> str:
    """coco or LABELME, by the keys of a JSON file; coco for one that cannot be read.

    Raises:
        DataError: The file is Label Studio's own JSON.
    """
    try:
        content = read_json(path) if path.stat().st_size <= _LARGE_JSON else None
    except (OSError, JSONError):
        return "coco"
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(content, dict) and isinstance(content.get("shapes"), list):
        return LABELME
    if isinstance(first, dict) and "image" in first and "annotations" in first:
        return LABELME  # CreateML
    if isinstance(first, dict) and "data" in first:
        raise DataError(f"{path} is Label Studio's own JSON: export the project again as COCO")
    return "coco"


def labelme_files(path: Path) -> list[Path]:
    """The JSON files of LabelMe or CreateML in a folder and its subfolders, or the file itself."""
    if path.is_file():
        return [path]
    files = [file for file in sorted(path.rglob("*.json")) if not is_clutter(file.name)]
    return files if any(_json_format(file) == LABELME for file in files[:_MOST_JSON]) else []


def detect_format(path: Path) -> str:
    """The only format that a file or folder may have.

    Raises:
        DataError: The path does not exist, or has none or several of the formats.
    """
    found = detect_formats(path)
    if not found:
        raise _no_layout(path, "state the format with --from")
    if len(found) > 1:
        raise DataError(f"{path} looks like {' and '.join(found)}: state the format with --from")
    return found[0]


def _no_layout(path: Path, cure: str) -> DataError:
    return DataError(
        f"{path} looks like none of {', '.join(sorted(FORMATS))}: it has no XML files (Pascal VOC), no .json "
        f"file in it or in annotations (COCO), and no data.yaml, classes.txt or labels (YOLO): {cure}"
    )


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
        raise _no_layout(path, "name a file, or use -c")
    if found[0] == LABELME:
        raise DataError(
            f"{path} has one JSON file per image, as LabelMe writes them: convert them first with "
            f"`python tools/convert_data.py {path} --to coco -o {path}_coco`"
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
        files = [file for file in sorted(path.glob(pattern)) if not file.name.startswith((*_NO_BOXES, "."))]
        files = [file for file in files[:_MOST_JSON] if _may_be_coco(file)]
        if files:
            return {coco_split_name(file): file for file in files}
    return {}


def _may_be_coco(path: Path) -> bool:
    """Whether a JSON file is named as COCO's, has its lists, or cannot be read; LabelMe's have none."""
    if path.name.startswith(_PREFIX) or path.name == _ROBOFLOW:
        return True
    try:
        content = read_json(path) if path.stat().st_size <= _LARGE_JSON else {"images": []}
    except (OSError, JSONError):
        return True
    return isinstance(content, dict) and bool({"images", "annotations"} & content.keys())


def coco_split_name(path: Path) -> str:
    """Such as train2017 of instances_train2017.json."""
    if path.name == _ROBOFLOW:
        return path.parent.name
    return path.stem[len(_PREFIX) :] if path.stem.startswith(_PREFIX) else path.stem


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


def _has_xml(folder: Path) -> bool:
    """Whether a folder, its subfolders or theirs hold XML files."""
    return any(any(folder.glob(f"{depth}*.[xX][mM][lL]")) for depth in ("", "*/", "*/*/"))


def _voc_folder(folder: Path) -> Path | None:
    """The folder of the XML files in a data set; None if it has none."""
    places = [folder / name for name in _XML_DIRS if _has_xml(folder / name)]
    return places[0] if places else folder if folder.is_dir() and _has_xml(folder) else None


def voc_layout(folder: Path) -> VOCLayout:
    """The layout of a VOC data set.

    The splits are those of ImageSets/Main, else the folders train, valid, val and test, else all is one.

    Raises:
        DataError: There are no XML files.
    """
    xml_dir = _voc_folder(folder)
    if xml_dir is None:
        raise DataError(f"{folder} holds no XML annotations: name the folder that holds {XML_DIR}")
    places = [folder / name for name in _IMAGE_DIRS if (folder / name).is_dir()]
    image_dir = places[0] if places else xml_dir if list_images(xml_dir) else folder
    files = [path for path in sorted((folder / voc.LISTS).glob("*.txt")) if not is_clutter(path.name)]
    splits = {path.stem: voc.image_names(path) for path in files if not voc.is_list_of_one_class(path)}
    if splits:
        return VOCLayout(xml_dir, image_dir, splits)
    names = voc.annotated_names(xml_dir)
    for name in names:
        splits.setdefault(name.split(os.sep)[0], []).append(name)
    by_folder = set(splits) <= set(_SPLIT_DIRS)
    return VOCLayout(xml_dir, image_dir, splits if by_folder else {ALL: names})


def _voc_sections(folder: Path) -> dict[str, Any]:
    layout = voc_layout(folder)
    keys = {
        "name": "PPFCOSVOCDataSet",
        "dataset_dir": str(folder),
        "image_dir": os.path.relpath(layout.image_dir, folder),
        "anno_dir": os.path.relpath(layout.xml_dir, folder),
        "class_names": voc.class_names(folder, layout.xml_dir, skip_unreadable=True)[0],
        "image_set": None,
    }
    if list(layout.splits) == [ALL] and not (folder / voc.LISTS / f"{ALL}.txt").is_file():
        return {TRAINING: keys}
    by_name = {name.lower(): name for name in layout.splits}
    pair = next((pair for pair in _VOC_LISTS if pair[0] in by_name), None)
    if pair and (folder / voc.LISTS).is_dir():
        chosen = dict(zip((TRAINING, VALIDATION), (by_name[name] for name in pair if name in by_name)))
    else:
        chosen = _pick_sections({name: name for name in layout.splits})
    if (folder / voc.LISTS).is_dir():
        return {section: {**keys, "image_set": name} for section, name in chosen.items()}
    return {
        section: {**keys, **{key: os.path.join(keys[key], name) for key in ("image_dir", "anno_dir")}}
        for section, name in chosen.items()
    }


# YOLO ------------------------------------------------------------------------------------------------------


def yolo_splits(folder: Path) -> dict[str, list[Path]]:
    """The folders or lists of images of each split.

    They come from a data.yaml and from lists such as train2017.txt, else from the folders in `images`, or
    from folders such as train/images; without any, everything is one split.
    """
    described = name_by_list(_described_splits(folder))
    lists = {path.stem: [path] for path in sorted(folder.glob("*.txt")) if is_image_list(path)}
    if described or lists:
        used = {place for places in described.values() for place in places}
        return {**described, **{name: places for name, places in lists.items() if not used & set(places)}}
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
