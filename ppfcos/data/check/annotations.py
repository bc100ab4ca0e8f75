"""Pascal VOC's lists and XML files as they stand."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

from ppfcos import environment
from ppfcos.data.issues import Issue
from ppfcos.data.formats import voc
from ppfcos.data.formats.coco import load_json
from ppfcos.errors import ConfigError, DataError


@dataclass
class RawBox:
    """One annotation that has a box and belongs to a listed image.

    Attributes:
        where: Its place in the annotation file.
        label: Position of its class in the list of categories.
        corners: x0, y0, x1, y1 in the image's pixels, as written: may be outside or upside down.
        crowd: Whether it is a box around a crowd.
        ignored: Whether its file asks for it to be ignored.
        entry: What a COCO file says of it; empty in other formats.
    """

    where: str
    label: int
    corners: tuple[float, float, float, float]
    crowd: bool = False
    ignored: bool = False
    entry: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class RawImage:
    """One listed image whose file exists.

    Attributes:
        path: Its file.
        name: How the annotation file calls it, within the folder of the images.
        size: (height, width) that the annotation states; None where it states nothing usable.
        boxes: In the file's order.
        identity: Its id: a whole number, or the text that stands in its place.
        entry: What a COCO file says of it; empty in other formats.
        id_is_shared: Whether another image has the same id, so that nobody knows whose the boxes are.
    """

    path: str
    name: str
    size: tuple[int, int] | None
    boxes: list[RawBox] = field(default_factory=list)
    identity: int | str | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)
    id_is_shared: bool = False


@dataclass
class RawCategory:
    """One class.

    Attributes:
        name: As written.
        identity: Its id in a COCO file; None in other formats.
        entry: What a COCO file says of it; empty in other formats.
    """

    name: str
    identity: int | str | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class RawData:
    """One data set as its annotation file has it.

    Attributes:
        section: The configuration's section, such as TrainDataset.
        source: The annotation file or list.
        image_dir: The folder of the images.
        categories: The position is the label.
        images: Those whose files exist.
        findings: What is wrong with the annotations alone.
        is_coco: Whether it is a COCO file, which an evaluation reads as it stands.
        keeps_empty: Whether training keeps images without objects.
        trains_crowds: Whether training takes crowds for objects.
    """

    section: str
    source: str
    image_dir: str
    categories: list[RawCategory] = field(default_factory=list)
    images: list[RawImage] = field(default_factory=list)
    findings: list[Issue] = field(default_factory=list)
    is_coco: bool = False
    keeps_empty: bool = False
    trains_crowds: bool = False

    def find(self, kind: str, where: str, detail: str, image: str = "") -> None:
        """Adds a finding about the annotations."""
        self.findings.append(Issue(kind, self.section, where, detail, image))


class RawSource(Protocol):
    """One format of annotations."""

    def read(self) -> RawData:
        """Reads all of it.

        Raises:
            DataError: There is nothing that could be checked.
            ConfigError: The section of the configuration is wrong.
        """


class RecordsSource:
    """Any data set that `build_dataset` reads; what its reader repairs or leaves out shows in its warnings.

    Args:
        cfg: The configuration.
        section: The section of the data set.
    """

    def __init__(self, cfg: Mapping[str, Any], section: str):
        self._cfg = cfg
        self._section = section

    def read(self) -> RawData:
        """Reads the data set as training does; one that the reader refuses has no images."""
        with environment.quiet_imports():
            from ppfcos.data.datasets import build_dataset

        arguments = self._cfg[self._section]
        folder = str(arguments.get("dataset_dir") or "")
        try:
            with log_lines() as lines:
                data = build_dataset(self._cfg, self._section)
        except DataError:
            if not os.path.isdir(folder or "."):
                raise
            return RawData(self._section, folder, folder)
        raw = RawData(
            self._section,
            data.source,
            folder,
            [RawCategory(name) for name in data.class_names],
            keeps_empty=True,  # the records that are there are those that are trained on
        )
        for line in lines:
            raw.find("reader-warning", data.source, line)
        for record in data.records:
            size = (int(record.get("h", 0)), int(record.get("w", 0)))
            image = RawImage(record["im_file"], record["im_file"], size if min(size) > 0 else None)
            crowds = record["is_crowd"].ravel() if "is_crowd" in record else [0] * len(record["gt_bbox"])
            for number, corners in enumerate(record["gt_bbox"].tolist()):
                label = int(record["gt_class"][number, 0])
                where = f"object {number + 1} of {record['im_file']}"
                image.boxes.append(RawBox(where, label, tuple(corners), bool(crowds[number])))
            raw.images.append(image)
        return raw


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """Collects the warnings of the room data while this lasts, and keeps them from the log."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("ppfcos.data")
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def as_number(value: Any) -> float | None:
    """A finite number, also one that is written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no text."""
    return not isinstance(value, str) and as_number(value) is not None


class CocoSource:
    """A section whose data set is COCODataSet.

    Args:
        section: The section's name.
        arguments: Its keys.
    """

    def __init__(self, section: str, arguments: Mapping[str, Any]):
        folder = Path(arguments.get("dataset_dir") or "")
        if not str(arguments.get("anno_path")).endswith(".json"):
            raise ConfigError(f"{section}.anno_path must name a .json file within dataset_dir")
        self._path = folder / arguments["anno_path"]
        self._image_dir = folder / (arguments.get("image_dir") or "")
        self._raw = RawData(
            section,
            str(self._path),
            str(self._image_dir),
            is_coco=True,
            keeps_empty=bool(arguments.get("allow_empty")),
            trains_crowds=bool(arguments.get("load_crowd")),
        )
        self._images: dict[int | str, RawImage] = {}
        self._listed: set[int | str] = set()
        self._labels: dict[int | str, int] = {}

    def read(self) -> RawData:
        """Reads the file; the steps are those of `ppfcos.data.formats.coco.read_coco`, in its order."""
        content = load_json(self._path, self._raw.section)
        if not self._image_dir.is_dir():
            raise DataError(f"{self._image_dir}, the folder of the images, is not there: set image_dir")
        for key in ("images", "categories"):
            if not isinstance(content.get(key), list):
                raise DataError(f"{self._path} has no list `{key}`: it is not a COCO annotation file")
        for position, entry in enumerate(content["categories"]):
            self._read_category(entry, f"categories[{position}]")
        for position, entry in enumerate(content["images"]):
            self._read_image(entry, f"images[{position}]")
        annotations = content.get("annotations", [])
        if not isinstance(annotations, list):
            raise DataError(f"{self._path} has no list `annotations`: it is not a COCO annotation file")
        seen: set[int] = set()
        for position, entry in enumerate(annotations):
            self._read_annotation(entry, f"annotations[{position}]", seen)
        return self._raw

    def _identity(self, entry: Any, key: str, where: str) -> int | str | None:
        """An id, with a finding where it is not the whole number that it should be."""
        value = entry.get(key) if isinstance(entry, Mapping) else None
        if isinstance(value, str) and value:
            self._raw.find("id-as-text", where, f"`{key}` is {value!r}")
            return int(value) if value.isascii() and value.isdigit() else value
        if is_number(value) and float(value).is_integer():
            return int(value)
        self._raw.find("id-missing", where, f"`{key}` is {value!r}")
        return None

    def _read_category(self, entry: Any, where: str) -> None:
        identity = self._identity(entry, "id", where)
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not name:
            self._raw.find("category-malformed", where, f"`name` is {name!r}")
            name = f"class {identity if identity is not None else len(self._raw.categories)}"
        if identity in self._labels:
            first = self._raw.categories[self._labels[identity]].name
            self._raw.find("category-id-twice", where, f"{identity} is the id of {first!r} and of {name!r}")
            if first == name:
                return
        elif identity is not None:
            self._labels[identity] = len(self._raw.categories)
        if identity == 0:
            self._raw.find("category-id-zero", where, f"{name!r} has the id 0")
        self._raw.categories.append(RawCategory(name, identity, entry if isinstance(entry, Mapping) else {}))

    def _read_image(self, entry: Any, where: str) -> None:
        identity = self._identity(entry, "id", where)
        name = entry.get("file_name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not name:
            self._raw.find("image-malformed", where, f"`file_name` is {name!r}")
            return
        if identity is not None and identity in self._listed:
            self._raw.find("image-id-twice", where, f"{identity} is the id of {name} and of an earlier image")
            first = self._images.get(identity)
            if first is not None and first.name != name:
                first.id_is_shared = True
            return
        if identity is not None:
            self._listed.add(identity)
        path = os.path.join(str(self._image_dir), name)
        if not os.path.isfile(path):
            self._raw.find("image-missing", name, f"{path} is not there")
            return
        image = RawImage(path, name, self._stated_size(entry, path), [], identity, entry)
        self._raw.images.append(image)
        if identity is not None:
            self._images[identity] = image

    def _stated_size(self, entry: Mapping[str, Any], path: str) -> tuple[int, int] | None:
        sides = [entry.get(key) for key in ("height", "width")]
        whole = [int(side) if is_number(side) and side > 0 else 0 for side in sides]
        if min(whole) > 0:
            return whole[0], whole[1]
        stated = f"height is {sides[0]!r}, width is {sides[1]!r}"
        self._raw.find("image-size-unstated", str(entry["file_name"]), stated, path)
        return None

    def _read_annotation(self, entry: Any, where: str, seen: set[int]) -> None:
        if not isinstance(entry, Mapping):
            self._raw.find("annotation-malformed", where, f"is {entry!r}")
            return
        identity = self._identity(entry, "image_id", where)
        if identity is None or identity not in self._images:
            if identity is not None and identity not in self._listed:
                self._raw.find("annotation-of-unknown-image", where, f"`image_id` is {identity!r}")
            return
        image = self._images[identity]
        if entry.get("bbox") in (None, []):
            self._raw.find("box-missing", where, f"`bbox` is {entry.get('bbox')!r}", image.path)
            return
        category = self._identity(entry, "category_id", where)
        if category is not None and category not in self._labels:
            self._raw.find(
                "annotation-of-unknown-category", where, f"`category_id` is {category!r}", image.path
            )
        corners = self._corners(entry["bbox"], where, image.path)
        self._check_rest(entry, where, image.path, seen)
        if corners is not None and category in self._labels:
            crowd = entry.get("iscrowd") in (1, True)
            ignored = bool(entry.get("ignore"))
            image.boxes.append(RawBox(where, self._labels[category], corners, crowd, ignored, entry))

    def _corners(self, box: Any, where: str, path: str) -> tuple[float, float, float, float] | None:
        numbers = [as_number(value) for value in box] if isinstance(box, list) else []
        if len(numbers) != 4 or None in numbers:
            self._raw.find("box-malformed", where, f"`bbox` is {box!r}", path)
            return None
        if any(isinstance(value, str) for value in box):
            self._raw.find("box-as-text", where, f"`bbox` is {box!r}", path)
        x, y, width, height = numbers
        # to a thousandth of a pixel, as PaddleDetection's COCODataSet rounds them
        return round(x, 3), round(y, 3), round(x + width, 3), round(y + height, 3)

    def _check_rest(self, entry: Mapping[str, Any], where: str, path: str, seen: set[int]) -> None:
        area, crowd, identity = entry.get("area"), entry.get("iscrowd"), entry.get("id")
        if (not is_number(area) or area <= 0) and not _has_no_area(entry["bbox"]):
            self._raw.find("area-missing", where, f"`area` is {area!r}", path)
        if crowd not in (None, 0, 1):
            self._raw.find("crowd-unclear", where, f"`iscrowd` is {crowd!r}", path)
        if isinstance(identity, bool) or not isinstance(identity, int):
            self._raw.find("annotation-id-missing", where, f"`id` is {identity!r}", path)
        elif identity <= 0:
            self._raw.find("annotation-id-zero", where, f"`id` is {identity}", path)
        elif identity in seen:
            self._raw.find("annotation-id-twice", where, f"`id` is {identity}", path)
        else:
            seen.add(identity)


def _has_no_area(box: Any) -> bool:
    """Whether an area of 0 is only right."""
    sides = [as_number(side) for side in box[2:4]] if isinstance(box, list) else []
    return any(side is not None and side <= 0 for side in sides)


class VocSource:
    """A section whose data set is PPFCOSVOCDataSet.

    Args:
        section: The section's name.
        arguments: Its keys.
    """

    def __init__(self, section: str, arguments: Mapping[str, Any]):
        self._folder = Path(arguments.get("dataset_dir") or "")
        self._image_dir = self._folder / arguments.get("image_dir", "JPEGImages")
        self._anno_dir = self._folder / arguments.get("anno_dir", "Annotations")
        image_set = arguments.get("image_set", "trainval")
        self._list = None if image_set is None else self._folder / voc.LISTS / f"{image_set}.txt"
        self._names = [str(name) for name in arguments.get("class_names") or ()]
        self._labels: dict[str, int] = {}
        self._raw = RawData(
            section,
            str(self._list or self._anno_dir),
            str(self._image_dir),
            keeps_empty=bool(arguments.get("allow_empty")),
        )

    def read(self) -> RawData:
        """Reads the list and its XML files."""
        for folder in (self._image_dir, self._anno_dir):
            if not folder.is_dir():
                raise DataError(f"{folder} is not there: set {self._raw.section}.dataset_dir")
        if self._list is not None and not self._list.is_file():
            raise DataError(
                f"{self._list} is not there: set image_set to one of the lists in {self._list.parent}"
            )
        names = self._names or voc.class_names(self._folder, self._anno_dir)[0]
        self._labels = {name: label for label, name in enumerate(names)}
        self._raw.categories = [RawCategory(name) for name in names]
        pictures = voc.pictures_by_stem(self._image_dir)
        for name in self._listed():
            picture, xml_file = pictures.get(name), self._anno_dir / f"{name}.xml"
            if picture is None:
                self._raw.find("image-missing", name, f"{self._image_dir} holds no picture of this name")
            elif not xml_file.is_file():
                self._raw.find("annotation-file-missing", name, f"{xml_file} is not there")
            else:
                self._read_image(picture, xml_file)
        return self._raw

    def _listed(self) -> list[str]:
        return voc.annotated_names(self._anno_dir) if self._list is None else voc.image_names(self._list)

    def _read_image(self, picture: str, xml_file: Path) -> None:
        path = os.path.join(str(self._image_dir), picture)
        try:
            annotation = voc.read_xml(xml_file)
        except DataError as error:
            self._raw.find("annotation-file-unreadable", xml_file.name, str(error), path)
            return
        size = (voc.stated_side(annotation, "height"), voc.stated_side(annotation, "width"))
        if min(size) <= 0:
            stated = [annotation.findtext(f"size/{key}") for key in ("height", "width")]
            detail = f"height is {stated[0]!r}, width is {stated[1]!r}"
            self._raw.find("image-size-unstated", xml_file.name, detail, path)
        image = RawImage(path, picture, size if min(size) > 0 else None)
        for number, node in enumerate(annotation.findall("object"), start=1):
            self._read_object(node, f"object {number} of {xml_file.name}", image)
        self._raw.images.append(image)

    def _read_object(self, node: ElementTree.Element, where: str, image: RawImage) -> None:
        name = voc.object_name(node)
        if name not in self._labels:
            self._raw.find("annotation-of-unknown-category", where, f"`name` is {name!r}", image.path)
            return
        written = [node.findtext(f"bndbox/{key}") for key in voc.SIDES]
        corners = [as_number(value) for value in written]
        if None in corners:
            self._raw.find("box-malformed", where, f"`bndbox` is {written!r}", image.path)
            return
        crowd = voc.is_set(node, voc.CROWD)
        image.boxes.append(RawBox(where, self._labels[name], tuple(corners), crowd))
