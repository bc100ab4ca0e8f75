"""Read the data set of a configuration section: TrainDataset, EvalDataset or TestDataset."""

from __future__ import annotations

import ppfcos.paddledetection  # noqa: F401  # isort: skip

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ppdet.core.workspace import global_config, register, serializable
from ppdet.data.source.coco import COCODataSet
from ppdet.data.source.dataset import DetDataset
from ppdet.data.source.voc import VOCDataSet, pascalvoc_label

from ppfcos.data.annotation_cache import AnnotationCache
from ppfcos.data.classes import check_num_classes, checked_names, counted, read_names
from ppfcos.data.formats import coco
from ppfcos.data.formats.concat import concatenate, merge_categories
from ppfcos.data.formats.voc import PPFCOSVOCDataSet
from ppfcos.data.formats.yolo import PPFCOSYOLODataSet
from ppfcos.data.images import IMAGE_SUFFIXES, list_images
from ppfcos.data.records import (
    DetectionData,
    EpochSampling,
    Record,
    RecordStore,
    drop_boxes_without_area,
    numbered,
    separate_crowds,
)
from ppfcos.data.rng import global_generators
from ppfcos.data.statistics import LoadEvent, LoadStatistics
from ppfcos.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_DATA_FIELDS = ["image", "gt_bbox", "gt_class", "is_crowd", "difficult"]
# How to get a data set of the configurations, by the name of its folder.
_WHERE_FROM = {
    "coco": "`python dataset/coco/download_coco.py` downloads COCO 2017, or ",
    "bccd": "`python dataset/bccd/download_bccd.py` downloads it, or ",
    "shapes": "`python dataset/shapes/generate_shapes.py` draws it, or ",
}
_PATH_KEYS = ("dataset_dir", "image_dir", "anno_path", "label_dir", "anno_dir", "image_set")
_LARGE_PART = 0.2  # of the annotations: more than this left out is a warning
_LARGE_FILE = 50 << 20  # bytes, which take seconds to parse


@register
@serializable
class PPFCOSJoinedDataSet(DetDataset):
    """Several data sets of any formats, concatenated.

    Classes of the same name are one class. Every data set should have boxes for all classes that occur in its
    images: an object with a box in one data set and without in another is learned as both.

    Args:
        datasets (list): Sections like TrainDataset, each with its `name` and keys; and `weight`, how often an
            epoch of training uses its images: 2 uses each twice, 0.25 a quarter of them, another quarter in
            the next epoch. Evaluation uses each image once.
        class_names (list): The order of the classes; by default the order in which they are first named. A
            class that is not in it is an error.
        data_fields (list): Accepted for PaddleDetection; all fields are always read.
        repeat (int): How often PaddleDetection's reader goes through the images in an epoch.
    """

    def __init__(
        self,
        datasets: Sequence[dict[str, Any]] = (),
        class_names: Sequence[str] | None = None,
        data_fields: Sequence[str] = ("image", "gt_bbox", "gt_class"),
        repeat: int = 1,
    ):
        super().__init__(data_fields=list(data_fields), repeat=repeat)
        self.datasets = list(datasets)
        self.class_names = [str(name) for name in class_names or ()]
        self.roidbs: list[Record] | None = None
        self.cname2cid: dict[str, int] = {}

    def check_or_download_dataset(self) -> None:
        """Do nothing: the data is the user's own."""

    def parse_dataset(self) -> None:
        """Read an epoch of all data sets into `roidbs`, for PaddleDetection's reader.

        Raises:
            ConfigError: A section is wrong.
            DataError: A data set is wrong, or the classes do not fit class_names.
        """
        section = {"name": type(self).__name__, "datasets": self.datasets, "class_names": self.class_names}
        data = build_dataset({"TrainDataset": section}, "TrainDataset")
        self.roidbs = [data.record(position) for position in range(len(data))]
        self.cname2cid = {name: label for label, name in enumerate(data.class_names)}


def build_dataset(
    cfg: Mapping[str, Any], section: str, class_names: Sequence[str] | None = None
) -> DetectionData:
    """Read the data set of a section.

    An evaluation uses every image, whatever `allow_empty` says.

    Args:
        cfg: The configuration.
        section: TrainDataset, EvalDataset or TestDataset.
        class_names: The model's classes; if the data set has only some of them, its labels become theirs.

    Raises:
        ConfigError: The section or one of its keys is wrong.
        DataError: Files are missing or wrong, or the categories contradict num_classes, if that is set.
    """
    data = _read(cfg, section, cfg.get(section) or {})
    if not isinstance(data.records, RecordStore):
        data.records = RecordStore.from_records(data.records)
    _require_objects(data)
    if class_names is not None and set(data.class_names) < set(class_names):
        logger.info(
            "%s has %d of %d classes: they are matched by name",
            data.source,
            len(data.class_names),
            len(class_names),
        )
        tally = data.tally
        data = concatenate([data], section, class_names)
        data.records, data.tally = RecordStore.from_records(data.records), tally
    elif class_names is None:
        check_num_classes(cfg.get("num_classes"), data.class_names, data.source)
    _log(data)
    return data


def _require_objects(data: DetectionData) -> None:
    """Raise a DataError if there is nothing to train on or to compare with, even with `allow_empty`."""
    has_annotations = any("gt_bbox" in data.records[number] for number in range(min(len(data.records), 1)))
    if data.number_of_boxes or (data.records and not has_annotations):
        return
    purpose = "learn from" if _is_training(data.section) else "evaluate with"
    tally = data.tally
    crowds = tally.count(LoadEvent.CROWD) + tally.count(LoadEvent.IGNORED_CROWD)
    if data.read_ground_truth is not None and not crowds:
        crowds = sum(note["iscrowd"] for note in data.coco_ground_truth().get("annotations", ()))
    reasons = [f"{counted(crowds, 'annotation is', 'annotations are')} marked iscrowd"] if crowds else []
    reasons += [str(tally)] if str(tally) else []
    if crowds and data.read_ground_truth is not None and _is_training(data.section):
        cure = f"set {data.section}.load_crowd: true to take crowds for objects"
    elif tally.count(LoadEvent.ORPHAN_LABELS):
        cure = "name each label file like its image"
    elif tally.count(LoadEvent.MISSING_IMAGE):
        cure = f"set {data.section}.image_dir to the folder of the images"
    elif tally.count(LoadEvent.NO_LABEL_FILE):
        cure = "put the label files beside the folder of the images, or set label_dir"
    else:
        cure = "name another file, or annotate the images"
    raise DataError(
        f"{data.source} has no objects to {purpose} ({'; '.join(reasons) or 'no image has a box'}): {cure}"
    )


def describe_loss(data: DetectionData) -> str:
    """What part of the annotations is left out, if it is a large one; else ""."""
    lost = data.tally.lost_annotations()
    total = lost + data.number_of_boxes
    return f"{lost} of {total} annotations are left out" if lost > _LARGE_PART * total else ""


def _log(data: DetectionData) -> None:
    """Log the size of a data set and what was left out or repaired."""
    loss = describe_loss(data)
    changes = "; ".join(text for text in (str(data.tally), loss) if text)
    logger.log(
        logging.WARNING if data.tally.has_faults or loss else logging.INFO,
        "%s: %s, %s, %s from %s%s",
        data.section,
        counted(len(data), "image", "images"),
        counted(data.number_of_boxes, "object", "objects"),
        counted(len(data.categories), "class", "classes"),
        data.source,
        f"; {changes}" if changes else "",
    )


def _read(cfg: Mapping[str, Any], section: str, keys: Mapping[str, Any]) -> DetectionData:
    """Read the data set that `keys` describe, without checking `num_classes`."""
    arguments = with_paths(keys, section)
    name = arguments.pop("name", None)
    if not name:
        raise ConfigError(f"{section} is missing or has no `name`, such as COCODataSet")
    if name == "ImageFolder":
        return _image_folder(cfg, section, arguments)
    dataset = construct_dataset(name, arguments, section)
    if _ignores_crowds(cfg) and _is_training(section) and getattr(dataset, "load_crowd", False):
        raise ConfigError(
            f"{section}.load_crowd: true makes objects of the crowds that PPFCOSTargets.ignore_crowd: true "
            "leaves out of the loss: set only one of them"
        )
    if isinstance(dataset, PPFCOSJoinedDataSet):
        return _concatenated(cfg, section, dataset)
    # images without objects may be drawn (empty_ratio), and every process must draw the same
    with global_generators(int(cfg.get("seed") or 0)):
        if type(dataset).parse_dataset is not COCODataSet.parse_dataset:
            data = _other(dataset, section)
        else:
            data = _coco(cfg, dataset, section, keys)
    if data.has_crowds:
        if not isinstance(data.records, RecordStore):
            data.records = RecordStore.from_records(data.records)
        if _ignores_crowds(cfg):
            data.tally.move(LoadEvent.CROWD, LoadEvent.IGNORED_CROWD, data.records.number_of_crowds())
        else:
            data.records = data.records.without_crowds()
    return data


def _ignores_crowds(cfg: Mapping[str, Any]) -> bool:
    """Whether the loss ignores points in crowds."""
    return bool((cfg.get("PPFCOSTargets") or {}).get("ignore_crowd"))


def _concatenated(cfg: Mapping[str, Any], section: str, dataset: PPFCOSJoinedDataSet) -> DetectionData:
    parts, weights = [], []
    for number, keys in enumerate(dataset.datasets):
        arguments = dict(keys)
        weights.append(arguments.pop("weight", 1))
        part = f"{section}.datasets.{number}"
        if not weights[-1] > 0:
            raise ConfigError(f"{part}.weight is {weights[-1]}: it must be above 0")
        if arguments.get("name") == "ImageFolder":
            raise ConfigError(f"{part} is an ImageFolder, which has no annotations: leave it out")
        parts.append(_read(cfg, part, arguments))
        _log(parts[-1])
    if not parts:
        raise ConfigError(f"{section}.datasets is empty: list the data sets to concatenate")
    draw = None
    if _is_training(section) and any(weight != 1 for weight in weights):
        draw = EpochSampling([len(part.records) for part in parts], weights, int(cfg.get("seed") or 0))
    data = concatenate(parts, section, dataset.class_names, draw)
    if not data.number_of_boxes:  # else each part has logged its own
        for part in parts:
            data.tally.add_all(part.tally)
    return data


def _is_training(section: str) -> bool:
    return section.partition(".")[0] == "TrainDataset"


def dataset_of_images(
    cfg: Mapping[str, Any], images: Sequence[str], section: str = "TestDataset"
) -> DetectionData:
    """A data set of images without annotations, in the given order.

    Args:
        cfg: The configuration.
        images: The images' paths.
        section: The section whose `class_names` or `anno_path` name the classes, or else EvalDataset's.
    """
    records: list[Record] = [
        {"im_id": np.array([number], dtype=np.int64), "im_file": str(path)}
        for number, path in enumerate(images)
    ]
    return DetectionData(section, "the given images", records, _categories_without_annotations(cfg, section))


def with_paths(keys: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The keys of a section with `~` expanded in paths, and whole numbers in them as text.

    Raises:
        ConfigError: A path is neither text nor a whole number.
    """
    arguments = dict(keys)
    for key in _PATH_KEYS:
        value = arguments.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ConfigError(f"{section}.{key} is {value!r}, not a text: put it into quotes")
        arguments[key] = os.path.expanduser(str(value))
    return arguments


def construct_dataset(name: str, arguments: dict[str, Any], section: str) -> Any:
    """Make an object of a registered data set class with these arguments."""
    schema = global_config.get(name)
    data_class = getattr(getattr(schema, "pymodule", None), name, None)
    if data_class is None or not hasattr(data_class, "parse_dataset"):
        raise ConfigError(
            f"{section}.name: {name} is not a data set: "
            "use COCODataSet, PPFCOSVOCDataSet, PPFCOSYOLODataSet, PPFCOSJoinedDataSet or ImageFolder"
        )
    if section.partition(".")[0] == "EvalDataset":
        every_image = {"allow_empty": True, "empty_ratio": 1.0}
        arguments = {
            **arguments,
            **{key: value for key, value in every_image.items() if key in schema.schema},
        }
    try:
        return data_class(**{**arguments, "data_fields": list(_DATA_FIELDS)})
    except TypeError as error:
        raise ConfigError(f"{section}: {name} does not take these keys ({error})") from None


def _require(path: Path, section: str, key: str, folder: Path) -> None:
    """Raise a DataError that says how to get a missing file or folder of the data set in `folder`."""
    if not path.exists():
        cure = _WHERE_FROM.get(folder.name, "")
        raise DataError(f"{path} is not there: {cure}set {section}.{key}")


def _coco(cfg: Mapping[str, Any], dataset: Any, section: str, keys: Mapping[str, Any]) -> DetectionData:
    """A COCO data set, through `annotation_cache` if that is set."""
    if not str(dataset.anno_path).lower().endswith(".json"):
        raise ConfigError(
            f"{section}.anno_path must name a .json file within dataset_dir, not {dataset.anno_path}"
        )
    folder = Path(dataset.dataset_dir or "")
    path, image_dir = folder / dataset.anno_path, folder / (dataset.image_dir or "")
    for wanted, key in ((folder, "dataset_dir"), (path, "anno_path"), (image_dir, "image_dir")):
        _require(wanted, section, key, folder)

    def read() -> DetectionData:
        return _parse_coco(dataset, section, path, image_dir)

    if not cfg.get("annotation_cache"):
        return read()
    decisive = {
        "keys": dict(keys),
        "section": section,
        "seed": int(cfg.get("seed") or 0),
        "allow_empty": dataset.allow_empty,
    }
    cache = AnnotationCache(cfg["annotation_cache"], path, image_dir, decisive)
    records, categories, tally = cache.open_or_make(read)
    ground_truth = functools.partial(_coco_ground_truth, path, image_dir, section)
    return DetectionData(section, str(path), records, categories, ground_truth, tally=tally)


def _coco_ground_truth(path: Path, image_dir: Path, section: str) -> dict[str, Any]:
    return coco.read_coco(path, image_dir, section)[0]


def _parse_coco(dataset: Any, section: str, path: Path, image_dir: Path) -> DetectionData:
    size = path.stat().st_size
    if size >= _LARGE_FILE:
        logger.info("%s: reading %s, %d MB", section, path, size >> 20)
    content, tally = coco.read_coco(path, image_dir, section)
    if "annotations" not in content and section != "TestDataset":
        raise DataError(f"{path} has no annotations, only images: {section} needs both")
    of_boxes = LoadStatistics()
    records = coco.make_records(content, dataset, image_dir, of_boxes)
    records = drop_boxes_without_area(records, dataset.allow_empty, of_boxes)
    if _is_training(section):
        tally.add_all(of_boxes)
    if not _is_training(section) or dataset.load_crowd:  # an evaluation reads its crowds from the file
        for record in records:
            record.pop("gt_crowd", None)
    ground_truth = functools.partial(_coco_ground_truth, path, image_dir, section)
    return DetectionData(section, str(path), records, content["categories"], ground_truth, tally=tally)


def _other(dataset: Any, section: str) -> DetectionData:
    """A VOC or YOLO data set, or any of PaddleDetection's that numbers class names in `cname2cid`."""
    folder = Path(dataset.dataset_dir)
    images = folder / (dataset.image_dir or "") if folder.name in _WHERE_FROM else folder
    _require(images, section, "dataset_dir to the folder of your data", folder)
    try:
        dataset.parse_dataset()
    except (AssertionError, OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{folder} cannot be read by {type(dataset).__name__}: {error}") from None
    names = getattr(dataset, "cname2cid", None)
    if not names:
        raise ConfigError(f"{section}: {type(dataset).__name__} does not say which classes it has")
    tally, keep_empty = LoadStatistics(), getattr(dataset, "allow_empty", False)
    tally.add_all(getattr(dataset, "tally", LoadStatistics()))
    records = drop_boxes_without_area([_plain(record) for record in dataset.roidbs], keep_empty, tally)
    if _is_training(section):
        records = separate_crowds(records, keep_empty, tally)
    categories = getattr(dataset, "categories", None) or numbered(sorted(names, key=names.get))
    source = folder / (dataset.anno_path or dataset.image_dir or "")
    return DetectionData(section, str(source), records, categories, tally=tally)


def _plain(record: Record) -> Record:
    """A record without what detection does not use, such as polygons."""
    kept = ("im_file", "im_id", "h", "w", "gt_bbox", "gt_class", "is_crowd", "difficult")
    return {key: record[key] for key in kept if key in record}


def _image_folder(cfg: Mapping[str, Any], section: str, arguments: dict[str, Any]) -> DetectionData:
    dataset_dir = Path(arguments.get("dataset_dir") or "")
    folder = dataset_dir / (arguments.get("image_dir") or "")
    _require(folder, section, "image_dir to a folder of images", dataset_dir)
    images = list_images(folder)
    if not images:
        raise DataError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}): set {section}.image_dir")
    return dataset_of_images(cfg, images, section)


def _categories_without_annotations(cfg: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    """The section's class names, else EvalDataset's, else numbers."""
    for name in (section, "EvalDataset"):
        found = categories_of(cfg, name)
        if found is not None:
            return found
    if cfg.get("num_classes") is None:
        raise ConfigError(
            f"nothing says what the classes are: set {section}.class_names, or let {section}.anno_path name "
            "an annotation file that is there"
        )
    logger.warning(
        "%s: classes are numbered: neither it nor EvalDataset has class_names or an anno_path that is there; "
        "set %s.class_names",
        section,
        section,
    )
    return numbered(f"class {label}" for label in range(int(cfg["num_classes"])))


def categories_of(
    cfg: Mapping[str, Any], section: str, class_names: Sequence[str] | None = None
) -> list[dict[str, Any]] | None:
    """The classes of a section, without reading its images.

    Args:
        cfg: The configuration.
        section: TrainDataset, EvalDataset or TestDataset.
        class_names: The model's classes, which are returned if the section has only some of them.

    Returns:
        `id` and `name` of every class in the order of the labels; None if the section does not name them or
        its files are missing.

    Raises:
        DataError: A file is wrong, or the categories contradict num_classes.
    """
    found = _named_classes(section, cfg.get(section) or {})
    if found is None:
        return None
    if class_names is not None and set(found.class_names) < set(class_names):
        return merge_categories([found], class_names)
    check_num_classes(cfg.get("num_classes"), found.class_names, found.source)
    return found.categories


def _named_classes(section: str, keys: Mapping[str, Any]) -> DetectionData | None:
    """The classes that a section's keys name, as a data set without images; None if they name none."""
    keys = with_paths(keys, section)
    name, folder = keys.get("name"), Path(keys.get("dataset_dir") or "")
    if name == PPFCOSJoinedDataSet.__name__:
        parts = [
            _named_classes(f"{section}.datasets.{number}", part)
            for number, part in enumerate(keys.get("datasets") or ())
        ]
        if not parts or any(part is None for part in parts):
            return None
        source = " + ".join(part.source for part in parts)
        return DetectionData(section, source, [], merge_categories(parts, keys.get("class_names") or ()))
    if keys.get("class_names"):
        source = f"{section}.class_names"
        return DetectionData(section, source, [], numbered(checked_names(keys["class_names"], source)))
    if name in (PPFCOSVOCDataSet.__name__, PPFCOSYOLODataSet.__name__):
        if not (keys.get("dataset_dir") and folder.is_dir()):
            return None
        arguments = {key: value for key, value in keys.items() if key != "name"}
        dataset = construct_dataset(name, arguments, section)
        return DetectionData(section, str(folder), [], dataset.find_categories())
    if name == VOCDataSet.__name__:  # PaddleDetection's: its anno_path lists images
        path = folder / (keys.get("label_list") or "")
        if not keys.get("label_list"):
            labels = pascalvoc_label()
            return DetectionData(section, name, [], numbered(sorted(labels, key=labels.get)))
        return DetectionData(section, str(path), [], numbered(read_names(path))) if path.is_file() else None
    path = folder / (keys.get("anno_path") or "")
    if keys.get("anno_path") and path.is_file():
        return DetectionData(section, str(path), [], _categories_in_file(path, section))
    return None


def _categories_in_file(path: Path, section: str) -> list[dict[str, Any]]:
    """Of a COCO file, or of a text file with one name per line (PaddleDetection's label_list.txt)."""
    if path.suffix.lower() == ".json":
        return coco.load_categories(path, section)
    return numbered(read_names(path))
