"""The annotations of a data set with all issues of its files, from the readers that training uses."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ppdet.data.source.coco import COCODataSet

from ppfcos.data.datasets import build_dataset, construct_dataset, with_paths
from ppfcos.data.formats import coco, voc, yolo
from ppfcos.data.formats.base import CORNERS, check_box_form
from ppfcos.data.images import ImageUnreadable, image_size
from ppfcos.data.issues import Issue
from ppfcos.errors import ConfigError, DataError


@dataclass
class Annotation:
    """One annotation that has a box and belongs to a listed image.

    Attributes:
        where: Its place in the annotation file.
        label: Position of its class in the list of categories.
        corners: x0, y0, x1, y1 in the image's pixels, as written: may be outside or exchanged.
        crowd: Whether it is a box around a crowd.
        ignored: Whether its file asks to ignore it.
        entry: The JSON object of a COCO file; empty in other formats.
    """

    where: str
    label: int
    corners: tuple[float, float, float, float]
    crowd: bool = False
    ignored: bool = False
    entry: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class AnnotatedImage:
    """One listed image whose file exists.

    Attributes:
        path: Its file.
        name: Its name in the annotation file.
        size: (height, width) that the annotation states; None if it states nothing usable.
        boxes: In the file's order.
        identity: Its id, an integer or the text in its place.
        entry: The JSON object of a COCO file; empty in other formats.
        id_is_shared: Whether another image has the same id, so that the boxes are ambiguous.
    """

    path: str
    name: str
    size: tuple[int, int] | None
    boxes: list[Annotation] = field(default_factory=list)
    identity: int | str | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)
    id_is_shared: bool = False


@dataclass
class Category:
    """One class: its name, and in a COCO file its id and its JSON object."""

    name: str
    identity: int | str | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class AnnotatedData:
    """One data set as its annotation files have it.

    Attributes:
        section: The configuration's section, such as TrainDataset.
        source: The annotation file or list.
        image_dir: The folder of the images.
        categories: The position is the label.
        images: Those whose files exist.
        issues: What is wrong with the annotations alone.
        is_coco: Whether it is a COCO file, which an evaluation reads as it stands.
        keeps_empty: Whether training keeps images without objects.
        trains_crowds: Whether training takes crowds for objects.
    """

    section: str
    source: str
    image_dir: str
    categories: list[Category] = field(default_factory=list)
    images: list[AnnotatedImage] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    is_coco: bool = False
    keeps_empty: bool = False
    trains_crowds: bool = False

    def report(self, kind: str, where: str, detail: str, image: str = "") -> None:
        """Add an issue of the annotations; a `Report` for the readers."""
        self.issues.append(Issue(kind, self.section, where, detail, image if os.path.isfile(image) else ""))


def read_annotations(cfg: Mapping[str, Any], section: str) -> AnnotatedData:
    """Read the annotations of a section with all their issues.

    Raises:
        DataError: There is nothing to check.
        ConfigError: The section is wrong.
    """
    arguments = with_paths(cfg[section], section)
    arguments.pop("name", None)
    read = {"PPFCOSVOCDataSet": _read_voc, "PPFCOSYOLODataSet": _read_yolo, "COCODataSet": _read_coco}
    name = cfg[section].get("name")
    if name not in read:
        return _read_records(cfg, section)
    return read[name](construct_dataset(name, arguments, section), section)


def _read_coco(dataset: COCODataSet, section: str) -> AnnotatedData:
    if not str(dataset.anno_path).lower().endswith(".json"):
        raise ConfigError(f"{section}.anno_path must name a .json file within dataset_dir")
    folder = Path(dataset.dataset_dir or "")
    path, image_dir = folder / dataset.anno_path, folder / (dataset.image_dir or "")
    data = AnnotatedData(
        section,
        str(path),
        str(image_dir),
        is_coco=True,
        keeps_empty=dataset.allow_empty,
        trains_crowds=dataset.load_crowd,
    )
    file = coco.parse(coco.load_json(path, section), path, data.report, image_dir, section)
    data.categories = [
        Category(category.checked["name"], category.checked["id"], category.raw)
        for category in file.categories
    ]
    labels: dict[Any, int] = {}
    for label, category in enumerate(data.categories):
        labels.setdefault(category.identity, label)
    by_id = {}
    for entry in file.images:
        number, name = entry.checked["id"], entry.checked["file_name"]
        size = (entry.checked["height"], entry.checked["width"])
        image = AnnotatedImage(
            os.path.join(image_dir, name),
            name,
            size if min(size) > 0 else None,
            identity=number,
            entry=entry.raw,
            id_is_shared=number in file.shared_ids,
        )
        data.images.append(image)
        by_id[number] = image
    for entry in file.annotations:
        checked = entry.checked
        x, y, width, height = checked["bbox"]
        # to a thousandth of a pixel, as PaddleDetection rounds them
        corners = tuple(round(float(value), 3) for value in (x, y, x + width, y + height))
        label, crowd = labels[checked["category_id"]], bool(checked["iscrowd"])
        by_id[checked["image_id"]].boxes.append(
            Annotation(entry.where, label, corners, crowd, "ignore" in checked, entry.raw)
        )
    return data


def _read_voc(dataset: voc.PPFCOSVOCDataSet, section: str) -> AnnotatedData:
    folder = Path(dataset.dataset_dir or "")
    data = AnnotatedData(
        section,
        str(folder / dataset.anno_path),
        str(folder / dataset.image_dir),
        keeps_empty=dataset.allow_empty,
    )
    data.categories = [Category(entry["name"]) for entry in dataset.find_categories(skip_unreadable=True)]
    for _, path, file in dataset.parse(data.report):
        size = (file.height, file.width)
        image = AnnotatedImage(path, os.path.basename(path), size if min(size) > 0 else None)
        image.boxes = [
            Annotation(f"object {number}", each.label, each.box, each.is_set(voc.CROWD))
            for number, each in enumerate(file.objects, start=1)
        ]
        data.images.append(image)
    boxes = [(box.corners, image.size or (0, 0)) for image in data.images for box in image.boxes]
    corners, sizes = [box for box, _ in boxes], [size[::-1] for _, size in boxes]
    check_box_form(corners, sizes, CORNERS, "bndbox of the objects", data.report)
    return data


def _read_yolo(dataset: yolo.PPFCOSYOLODataSet, section: str) -> AnnotatedData:
    folder = str(dataset.dataset_dir or "")
    data = AnnotatedData(section, folder, folder, keeps_empty=dataset.allow_empty)
    paths, data.source = dataset.find_images(data.report)
    label_files = [dataset.label_file(path) for path in paths]
    yolo.report_orphans(paths, label_files, data.report)
    all_rows: list[yolo.Row] = []
    data.categories = [Category(entry["name"]) for entry in dataset.find_categories()]
    for path, label_file in zip(paths, label_files):
        image = AnnotatedImage(path, os.path.relpath(path, folder), None)
        data.images.append(image)
        rows = yolo.read_rows(label_file, len(data.categories), data.report, path)
        try:
            boxes = yolo.boxes_in_pixels(rows, *image_size(path))
        except ImageUnreadable:  # reported when the image is decoded
            continue
        all_rows += rows
        where = f"object {{}} of {os.path.relpath(label_file, folder)}"
        image.boxes = [
            Annotation(where.format(number), row.label, tuple(box.tolist()))
            for number, (row, box) in enumerate(zip(rows, boxes), start=1)
        ]
    yolo.check_form(all_rows, data.source, data.report)
    return data


def _read_records(cfg: Mapping[str, Any], section: str) -> AnnotatedData:
    """Any other data set, by the records and warnings of its reader; without images if it refuses."""
    folder = str(cfg[section].get("dataset_dir") or "")
    try:
        with captured_warnings() as lines:
            read = build_dataset(cfg, section)
    except DataError:
        if not os.path.isdir(folder or "."):
            raise
        return AnnotatedData(section, folder, folder)
    # only images that are trained on have records
    data = AnnotatedData(section, read.source, folder, keeps_empty=True)
    data.categories = [Category(name) for name in read.class_names]
    for line in lines:
        data.report("reader-warning", read.source, line)
    for record in read.records:
        size = (int(record.get("h", 0)), int(record.get("w", 0)))
        image = AnnotatedImage(record["im_file"], record["im_file"], size if min(size) > 0 else None)
        crowds = record.get("is_crowd", np.zeros((len(record["gt_bbox"]), 1))).ravel()
        image.boxes = [
            Annotation(f"object {number}", int(label), tuple(corners), bool(crowd))
            for number, (label, corners, crowd) in enumerate(
                zip(record["gt_class"].ravel(), record["gt_bbox"].tolist(), crowds), start=1
            )
        ]
        data.images.append(image)
    return data


@contextmanager
def captured_warnings() -> Iterator[list[str]]:
    """Collect the warnings of ppfcos.data in a list instead of logging them."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("ppfcos.data")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
