"""From a section of the configuration (TrainDataset, EvalDataset, TestDataset) to records."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ppdet.core.workspace import global_config
from ppdet.data.source.coco import COCODataSet

from ppfcos.data.annotation_cache import AnnotationCache
from ppfcos.data.classes import read_names, set_num_classes
from ppfcos.data.formats import coco
from ppfcos.data.formats.concat import PPFCOSJoinedDataSet, join, join_categories
from ppfcos.data.formats.voc import PPFCOSVOCDataSet
from ppfcos.data.formats.yolo import PPFCOSYOLODataSet
from ppfcos.data.images import IMAGE_SUFFIXES, list_images
from ppfcos.data.records import (
    MIN_BOX_SIDE,
    DetectionData,
    EpochSampling,
    Record,
    RecordStore,
    clip_boxes,
    drop_boxes_without_area,
    numbered,
    separate_crowds,
)
from ppfcos.data.rng import global_generators
from ppfcos.data.statistics import LoadEvent, LoadStatistics
from ppfcos.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_DATA_FIELDS = ["image", "gt_bbox", "gt_class", "is_crowd", "difficult"]
# By the name of its folder, how a data set that the configurations name is got.
_WHERE_FROM = {
    "coco": "`python dataset/coco/download_coco.py` fetches COCO 2017, or ",
    "bccd": "`python dataset/bccd/download_bccd.py` fetches it, or ",
    "shapes": "`python dataset/shapes/generate_shapes.py` draws it, or ",
}
_LARGE_FILE = 50 << 20  # bytes, which take seconds to parse
_OURS = (PPFCOSVOCDataSet, PPFCOSYOLODataSet, PPFCOSJoinedDataSet)


def build_dataset(cfg: Mapping[str, Any], section: str) -> DetectionData:
    """Reads the data set that a section names.

    For evaluation every image counts, also one without objects: `allow_empty` is a matter of training.

    Args:
        cfg: The configuration.
        section: TrainDataset, EvalDataset or TestDataset.

    Returns:
        The records and categories.

    Raises:
        ConfigError: The section or one of its keys is wrong.
        DataError: Files are missing or wrong, or the categories contradict num_classes, if that is set.
    """
    data = _read(cfg, section, cfg.get(section) or {})
    if not isinstance(data.records, RecordStore):
        data.records = RecordStore.from_records(data.records)
    if cfg.get("num_classes") is not None:
        set_num_classes(cfg, data.class_names, data.source)
    _log(data)
    return data


def _log(data: DetectionData) -> None:
    """One line: what there is, and what was done to have it so."""
    changes = f"; {data.tally}" if str(data.tally) else ""
    logger.log(
        logging.WARNING if data.tally.has_faults else logging.INFO,
        "%s: %d images, %d objects, %d classes from %s%s",
        data.section,
        len(data),
        data.number_of_boxes,
        len(data.categories),
        data.source,
        changes,
    )


def _read(cfg: Mapping[str, Any], section: str, keys: Mapping[str, Any]) -> DetectionData:
    """The data set that `keys` describe, whatever `num_classes` says."""
    arguments = dict(keys)
    name = arguments.pop("name", None)
    if not name:
        raise ConfigError(f"{section} is missing or has no `name`, such as COCODataSet")
    if name == "ImageFolder":
        return _image_folder(cfg, section, arguments)
    dataset = _construct(name, arguments, section)
    if _ignores_crowds(cfg) and _is_training(section) and getattr(dataset, "load_crowd", False):
        raise ConfigError(
            f"{section}.load_crowd: true makes objects of the crowds that PPFCOSTargets.ignore_crowd: true "
            "leaves out of the loss: set only one of them"
        )
    if isinstance(dataset, PPFCOSJoinedDataSet):
        return _joined(cfg, section, dataset)
    # PaddleDetection draws some of the images without objects (empty_ratio): every process must draw the same
    with global_generators(int(cfg.get("seed") or 0)):
        data = _parsed(cfg, dataset, section, keys)
    if data.has_crowds:
        _settle_crowds(data, _ignores_crowds(cfg))
    return data


def _parsed(cfg: Mapping[str, Any], dataset: Any, section: str, keys: Mapping[str, Any]) -> DetectionData:
    if not isinstance(dataset, COCODataSet):
        return _other(dataset, section)
    if cfg.get("annotation_cache"):
        return _cached_coco(cfg, dataset, section, keys)
    return _coco(dataset, section)


def _ignores_crowds(cfg: Mapping[str, Any]) -> bool:
    """Whether a training leaves locations within crowds out of its loss."""
    return bool((cfg.get("PPFCOSTargets") or {}).get("ignore_crowd"))


def _settle_crowds(data: DetectionData, ignored: bool) -> None:
    """Takes the boxes around crowds away from the records, unless what is in them is to be ignored."""
    if not isinstance(data.records, RecordStore):
        data.records = RecordStore.from_records(data.records)
    if ignored:
        data.tally.move(LoadEvent.CROWD, LoadEvent.IGNORED_CROWD, data.records.number_of_crowds())
    else:
        data.records = data.records.without_crowds()


def _joined(cfg: Mapping[str, Any], section: str, dataset: PPFCOSJoinedDataSet) -> DetectionData:
    parts, weights = [], []
    for number, keys in enumerate(dataset.datasets):
        arguments = dict(keys)
        weights.append(arguments.pop("weight", 1))
        part = f"{section}.datasets.{number}"
        if not weights[-1] > 0:
            raise ConfigError(f"{part}.weight is {weights[-1]}: it must be above 0")
        if arguments.get("name") == "ImageFolder":
            raise ConfigError(f"{part} is an ImageFolder: pictures without annotations cannot be joined")
        parts.append(_read(cfg, part, arguments))
        _log(parts[-1])
    if not parts:
        raise ConfigError(f"{section}.datasets is empty: list the data sets to be joined")
    draw = None
    if _is_training(section) and any(weight != 1 for weight in weights):
        draw = EpochSampling([len(part.records) for part in parts], weights, int(cfg.get("seed") or 0))
    return join(parts, section, dataset.class_names, draw)


def _is_training(section: str) -> bool:
    return section.partition(".")[0] == "TrainDataset"


def dataset_of_images(
    cfg: Mapping[str, Any], images: Sequence[str], section: str = "TestDataset"
) -> DetectionData:
    """Pictures to be looked at only, in the given order; class names as for an ImageFolder.

    Args:
        cfg: The configuration.
        images: The pictures' paths.
        section: Where the class names come from: its `class_names` or `anno_path`, or else EvalDataset's.
    """
    records: list[Record] = [
        {"im_id": np.array([number], dtype=np.int64), "im_file": str(path)}
        for number, path in enumerate(images)
    ]
    return DetectionData(section, "the given images", records, _categories_without_annotations(cfg, section))


def _construct(name: str, arguments: dict[str, Any], section: str) -> Any:
    """An object of a data set class registered in the workspace. (`create` takes no arguments of ours.)"""
    schema = global_config.get(name)
    data_class = getattr(getattr(schema, "pymodule", None), name, None)
    if data_class is None or not hasattr(data_class, "parse_dataset"):
        raise ConfigError(
            f"{section}.name: {name} is not a data set: "
            f"use COCODataSet, {', '.join(kind.__name__ for kind in _OURS)} or ImageFolder"
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
    """Raises the DataError that says how to get a missing file or folder of the data set in `folder`."""
    if not path.exists():
        cure = _WHERE_FROM.get(folder.name, "")
        raise DataError(f"{path} is not there: {cure}set {section}.{key}")


def _coco(dataset: Any, section: str) -> DetectionData:
    if not str(dataset.anno_path).endswith(".json"):
        raise ConfigError(
            f"{section}.anno_path must name a .json file within dataset_dir, not {dataset.anno_path}"
        )
    folder = Path(dataset.dataset_dir)
    path, image_dir = folder / dataset.anno_path, folder / dataset.image_dir
    for wanted, key in ((folder, "dataset_dir"), (path, "anno_path"), (image_dir, "image_dir")):
        _require(wanted, section, key, folder)
    size = path.stat().st_size
    if size >= _LARGE_FILE:  # or nothing would be seen until it is done
        logger.info("%s: reading %s, %d MB", section, path, size >> 20)
    content, tally = coco.read_coco(path, image_dir, section)
    if "annotations" not in content and section != "TestDataset":
        raise DataError(f"{path} has no annotations, only images: {section} needs both")
    # the assertion is what PaddleDetection says of a file in which it finds no image to use
    with (
        coco.opened_for_paddledetection(content),
        _quiet_paddledetection(),
        contextlib.suppress(AssertionError),
    ):
        dataset.parse_dataset()
    of_boxes = LoadStatistics()
    records = [_plain(record) for record in getattr(dataset, "roidbs", None) or []]
    _count_left_out(dataset, content, records, of_boxes)
    records = drop_boxes_without_area(records, dataset.allow_empty, of_boxes)
    if not records:
        raise DataError(
            f"{path} gives no image with objects: set {section}.allow_empty: true to train on such images"
        )
    if _is_training(section):  # an evaluation has its boxes from the file, whatever is in the records
        tally.add_all(of_boxes)
        if not dataset.load_crowd:
            _add_crowds(records, content)
    return DetectionData(
        section,
        str(path),
        records,
        content["categories"],
        lambda: coco.read_coco(path, image_dir, section)[0],
        tally=tally,
    )


def _cached_coco(
    cfg: Mapping[str, Any], dataset: Any, section: str, keys: Mapping[str, Any]
) -> DetectionData:
    """What `_coco` gives, from `annotation_cache` where it was read before."""
    folder = Path(dataset.dataset_dir)
    path, image_dir = folder / str(dataset.anno_path), folder / str(dataset.image_dir)
    if not path.is_file() or not image_dir.is_dir():
        return _coco(dataset, section)  # which says what is wrong
    decisive = {
        "keys": dict(keys),
        "section": section,
        "seed": int(cfg.get("seed") or 0),
        "allow_empty": dataset.allow_empty,
    }
    cache = AnnotationCache(cfg["annotation_cache"], path, image_dir, decisive)
    records, categories, tally = cache.open_or_make(lambda: _coco(dataset, section))
    return DetectionData(
        section,
        str(path),
        records,
        categories,
        lambda: coco.read_coco(path, image_dir, section)[0],
        tally=tally,
    )


def _count_left_out(dataset: Any, content: dict[str, Any], records: list[Record], tally: LoadStatistics) -> None:
    """Counts what PaddleDetection left out without a word: images without objects, and boxes."""
    taken = {int(record["im_id"][0]) for record in records}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    if dataset.sample_num > 0:  # it read no further than that, in the order of the ids
        files = {number: name for number, name in files.items() if number <= max(taken, default=0)}
    tally.add(LoadEvent.EMPTY_IMAGE, len(files.keys() - taken))
    for note in content.get("annotations", ()):
        if note["image_id"] not in files:
            continue
        if note.get("ignore"):
            tally.add(LoadEvent.MARKED_IGNORE)
        elif note["iscrowd"] and not dataset.load_crowd:
            tally.add(LoadEvent.CROWD)
        elif min(note["bbox"][2], note["bbox"][3]) <= MIN_BOX_SIDE:
            tally.add(LoadEvent.NO_AREA, first=files[note["image_id"]])


def _add_crowds(records: list[Record], content: dict[str, Any]) -> None:
    """Gives each record the boxes around crowds, which PaddleDetection leaves out."""
    crowds: dict[int, list[list[float]]] = {}
    for note in content.get("annotations", ()):
        if note["iscrowd"] and not note.get("ignore"):
            x, y, width, height = note["bbox"]
            crowds.setdefault(note["image_id"], []).append([x, y, x + width, y + height])
    for record in records:
        boxes = np.array(crowds.get(int(record["im_id"][0]), ()), dtype=np.float32)
        clipped, with_area = clip_boxes(boxes, record["h"], record["w"])
        record["gt_crowd"] = clipped[with_area]


def _other(dataset: Any, section: str) -> DetectionData:
    """One of our data sets, or any of PaddleDetection's that numbers class names in `cname2cid`."""
    folder = Path(dataset.dataset_dir)
    images = folder / (dataset.image_dir or "") if folder.name in _WHERE_FROM else folder
    _require(images, section, "dataset_dir to the folder of your data", folder)
    with _quiet_paddledetection():
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
    """A record without what detection has no use for, polygons above all."""
    kept = ("im_file", "im_id", "h", "w", "gt_bbox", "gt_class", "is_crowd", "difficult")
    return {key: record[key] for key in kept if key in record}


def _image_folder(cfg: Mapping[str, Any], section: str, arguments: dict[str, Any]) -> DetectionData:
    dataset_dir = Path(arguments.get("dataset_dir") or "")
    folder = dataset_dir / (arguments.get("image_dir") or "")
    _require(folder, section, "image_dir to a folder of pictures", dataset_dir)
    images = list_images(folder)
    if not images:
        raise DataError(f"{folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)}): set {section}.image_dir")
    return dataset_of_images(cfg, images, section)


def _categories_without_annotations(cfg: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    """Class names for pictures without annotations: the section's, else EvalDataset's, else numbers."""
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


def categories_of(cfg: Mapping[str, Any], section: str) -> list[dict[str, Any]] | None:
    """The classes of a section, without reading its annotations where something shorter names them.

    Args:
        cfg: The configuration.
        section: TrainDataset, EvalDataset or TestDataset.

    Returns:
        `id` and `name` of every class in the order of the labels; None where the section says nothing of
        them, or its files are not there.

    Raises:
        DataError: A file is wrong, or the categories contradict num_classes.
    """
    found = _named_classes(section, cfg.get(section) or {})
    if found is not None and cfg.get("num_classes") is not None:
        set_num_classes(cfg, found.class_names, found.source)
    return found.categories if found is not None else None


def _named_classes(section: str, keys: Mapping[str, Any]) -> DetectionData | None:
    """The classes that a section's keys lead to, as a data set without images; None where they do not."""
    name, folder = keys.get("name"), Path(keys.get("dataset_dir") or "")
    if name == PPFCOSJoinedDataSet.__name__:
        parts = [
            _named_classes(f"{section}.datasets.{number}", part)
            for number, part in enumerate(keys.get("datasets") or ())
        ]
        if not parts or any(part is None for part in parts):
            return None
        source = " + ".join(part.source for part in parts)
        return DetectionData(section, source, [], join_categories(parts, keys.get("class_names") or ()))
    if keys.get("class_names"):
        return DetectionData(section, f"{section}.class_names", [], numbered(keys["class_names"]))
    if name in (PPFCOSVOCDataSet.__name__, PPFCOSYOLODataSet.__name__):
        if not (keys.get("dataset_dir") and folder.is_dir()):
            return None
        dataset = _construct(name, {key: value for key, value in keys.items() if key != "name"}, section)
        return DetectionData(section, str(folder), [], dataset.find_categories())
    path = folder / (keys.get("anno_path") or "")
    if keys.get("anno_path") and path.is_file():
        return DetectionData(section, str(path), [], _categories_in_file(path, section))
    return None


def _categories_in_file(path: Path, section: str) -> list[dict[str, Any]]:
    """Of a COCO file, or of a text file with one name a line (PaddleDetection's label_list.txt)."""
    if path.suffix.lower() == ".json":
        return coco.load_categories(path, section)
    return numbered(read_names(path))


@contextlib.contextmanager
def _quiet_paddledetection() -> Iterator[None]:
    """PaddleDetection and pycocotools report to standard output; what matters of it we log ourselves."""
    loggers = [
        entry
        for name, entry in logging.root.manager.loggerDict.items()
        if name.startswith("ppdet") and isinstance(entry, logging.Logger)
    ]
    before = [entry.disabled for entry in loggers]
    for entry in loggers:
        entry.disabled = True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for entry, disabled in zip(loggers, before):
            entry.disabled = disabled
