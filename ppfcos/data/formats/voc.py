"""Pascal VOC: one XML file an image, and lists of names under ImageSets/Main, or no lists at all."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
from ppdet.core.workspace import register, serializable
from ppdet.data.source.dataset import DetDataset

from ppfcos.data.classes import checked_names, read_names
from ppfcos.data.images import IMAGE_SUFFIXES, is_clutter
from ppfcos.data.records import Record, drop_boxes_without_area, numbered
from ppfcos.data.statistics import LoadEvent, LoadStatistics
from ppfcos.errors import DataError
from ppfcos.fileio import read_bytes, read_text

logger = logging.getLogger(__name__)

NAME_FILES = ("label_list.txt", "labels.txt", "classes.txt")  # the first is PaddleDetection's
LISTS = Path("ImageSets", "Main")
SIDES = ("xmin", "ymin", "xmax", "ymax")
# A tag of our own: the box holds a crowd, as COCO has it. `difficult` is set beside it for everyone else.
CROWD = "iscrowd"
MAX_BYTES = 64 << 20  # of the XML file of one image, which has some kilobytes


def read_annotation(xml_file: Path) -> Element:
    """The root of an XML annotation.

    Raises:
        DataError: The file cannot be read or is not XML.
    """
    try:
        return ElementTree.fromstring(read_bytes(xml_file, MAX_BYTES))
    except (OSError, ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:  # encoding
        raise DataError(
            f"{xml_file} is not XML that can be read ({error}): repair it or take it off the list"
        ) from None


def object_name(node: Element) -> str:
    """The class of an <object>, "" where none is stated."""
    return (node.findtext("name") or "").strip()


def object_box(node: Element, xml_file: Path) -> list[float]:
    """The box of an <object>: [x0, y0, x1, y1] in pixels.

    Raises:
        DataError: A side is missing or no number.
    """
    try:
        box = [float(node.findtext(f"bndbox/{side}")) for side in SIDES]
    except (TypeError, ValueError):
        box = [math.nan]
    if not all(math.isfinite(side) for side in box):
        raise DataError(
            f"{xml_file}: an object {object_name(node)!r} lacks a number in its bndbox: repair or remove it"
        )
    return box


def is_set(node: Element, tag: str) -> bool:
    """Whether a mark such as `difficult` is set in an <object>."""
    return (node.findtext(tag) or "0").strip() not in ("", "0")


def stated_side(annotation: Element, side: str) -> int:
    """The stated `height` or `width`; 0 where nothing usable is stated (some tools write 0 themselves)."""
    try:
        return max(int(float(annotation.findtext(f"size/{side}"))), 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def image_names(list_file: Path) -> list[str]:
    """The names in an image set, without the second column (-1, 0, 1) that VOC's lists of one class have.

    Raises:
        DataError: It is no text.
    """
    names: dict[str, None] = {}
    for line in _lines(list_file):
        parts = line.split()
        if parts:
            names.setdefault(parts[0] if has_mark(parts) else line.strip())
    return list(names)


def is_list_of_one_class(list_file: Path) -> bool:
    """Whether an image set says of every image whether a class is in it, as VOC's `aeroplane_train.txt`."""
    rows = [line.split() for line in _lines(list_file) if line.strip()]
    return bool(rows) and all(has_mark(parts) for parts in rows)


def has_mark(parts: list[str]) -> bool:
    """Whether the words of a line are a name and the mark of a list of one class."""
    return len(parts) == 2 and parts[1] in ("-1", "0", "1")


def _lines(list_file: Path) -> list[str]:
    try:
        return read_text(list_file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file} cannot be read as a list of names: {error}") from None


def pictures_by_stem(image_dir: Path) -> dict[str, str]:
    """{name without suffix: file name} of the pictures in a folder."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(image_dir)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and not is_clutter(name):
            found.setdefault(stem, name)
    return found


def annotated_names(anno_dir: Path) -> list[str]:
    """The names of all XML files in a folder, without the suffix, sorted."""
    return sorted(
        name[: -len(".xml")]
        for name in os.listdir(anno_dir)
        if name.endswith(".xml") and not is_clutter(name)
    )


def class_names(folder: Path, anno_dir: Path) -> tuple[list[str], str]:
    """The classes of a data set: those of its list if it has one, else all that its XML files name, sorted.

    Every XML file counts, in a list or not, so that training and validation agree.

    Args:
        folder: The data set's, where a label_list.txt, labels.txt or classes.txt may be.
        anno_dir: The XML files' folder.

    Returns:
        The names, and what says so.

    Raises:
        DataError: A file cannot be read, or there are no classes.
    """
    for name in NAME_FILES:
        if (folder / name).is_file():
            return read_names(folder / name), str(folder / name)
    files = (anno_dir / f"{name}.xml" for name in annotated_names(anno_dir))
    return checked_names(sorted(_classes_in(files)), str(anno_dir)), str(anno_dir)


def _classes_in(xml_files: Iterable[Path]) -> set[str]:
    found = {
        object_name(node) for xml_file in xml_files for node in read_annotation(xml_file).findall("object")
    }
    return found - {""}


@register
@serializable
class PPFCOSVOCDataSet(DetDataset):
    """A data set of XML files in Pascal VOC's form, read as its annotation tools wrote them.

    Boxes are (xmin, ymin, xmax, ymax) as they stand in the XML, clipped to the image; those without area are
    dropped. `difficult` boxes are kept and marked. What is left out is counted in `tally`.

    Plain folders, without ImageSets, are read with `image_set: null`; where XML files and pictures lie in
    one folder, with `image_dir: .` and `anno_dir: .` besides.

    Args:
        dataset_dir (str): The folder that holds ImageSets, Annotations and JPEGImages.
        image_set (str): The list ImageSets/Main/<image_set>.txt, one image name a line; null reads every
            XML file in anno_dir.
        class_names (list): The classes; the position is the label. Where they are not given they come from
            label_list.txt, labels.txt or classes.txt in dataset_dir, else from all XML files in anno_dir,
            sorted.
        allow_empty (bool): Whether images without objects are kept, as negatives.
        image_dir (str): The images' folder in dataset_dir.
        anno_dir (str): The XML files' folder in dataset_dir.
        sample_num (int): Read only so many images; -1 reads all.
        data_fields (list): Understood for PaddleDetection's sake; all fields are always read.
        repeat (int): How often an epoch goes through the images when PaddleDetection's reader is used.
    """

    def __init__(
        self,
        dataset_dir: str | None = None,
        image_set: str | None = "trainval",
        class_names: Sequence[str] | None = None,
        allow_empty: bool = False,
        image_dir: str = "JPEGImages",
        anno_dir: str = "Annotations",
        sample_num: int = -1,
        data_fields: Sequence[str] = ("image", "gt_bbox", "gt_class", "difficult"),
        repeat: int = 1,
    ):
        super().__init__(
            dataset_dir=dataset_dir,
            image_dir=image_dir,
            anno_path=anno_dir if image_set is None else str(LISTS / f"{image_set}.txt"),
            data_fields=list(data_fields),
            sample_num=sample_num,
            repeat=repeat,
        )
        self.image_set = image_set
        self.class_names = [str(name) for name in class_names or ()]
        self.allow_empty = allow_empty
        self.anno_dir = anno_dir
        self.roidbs: list[Record] | None = None
        self.cname2cid: dict[str, int] = {}
        self.categories: list[dict[str, Any]] = []
        self.tally = LoadStatistics()

    def check_or_download_dataset(self) -> None:
        """There is nothing to download: the data is the user's own."""

    def find_categories(self) -> list[dict[str, Any]]:
        """`id` and `name` of every class, given or found; `cname2cid` numbers them from then on.

        Raises:
            DataError: A file is missing or wrong, or a class is there twice.
        """
        folder = Path(self.dataset_dir)
        if self.class_names:
            names = checked_names(self.class_names, "class_names of PPFCOSVOCDataSet")
        else:
            self._require(folder / self.anno_dir)
            names, source = class_names(folder, folder / self.anno_dir)
            logger.info("classes from %s: %s", source, ", ".join(names))
        self.cname2cid = {name: label for label, name in enumerate(names)}
        self.categories = numbered(names)
        return self.categories

    def parse_dataset(self) -> None:
        """Reads the list and its XML files into `roidbs`.

        Raises:
            DataError: A folder or the list is missing, an XML file cannot be read, or a class is not in
                class_names.
        """
        folder = Path(self.dataset_dir)
        source, image_dir = folder / self.anno_path, folder / self.image_dir
        self._require(image_dir)
        names = self._names(source, folder / self.anno_dir)
        self.find_categories()
        pictures = pictures_by_stem(image_dir)
        records, missing = [], []
        self.tally = LoadStatistics()
        for image_id, name in enumerate(names):
            if 0 < self.sample_num <= len(records):
                break
            xml_file = folder / self.anno_dir / f"{name}.xml"
            picture = pictures.get(name)
            if picture is None or not xml_file.is_file():
                missing.append(str(xml_file if picture else image_dir / name))
                continue
            record = self._read_record(xml_file, os.path.join(image_dir, picture), image_id)
            if self.allow_empty or len(record["gt_bbox"]):
                records.append(record)
            else:
                self.tally.add(LoadEvent.EMPTY_IMAGE)
        self.tally.add(LoadEvent.MISSING_IMAGE, len(missing), missing[0] if missing else "")
        records = drop_boxes_without_area(records, self.allow_empty, self.tally)
        if not records:
            raise DataError(
                f"{source} gives no usable image: {len(missing)} are missing from {image_dir} or "
                f"{folder / self.anno_dir}, the others have no objects"
            )
        self.roidbs = records

    def _require(self, wanted: Path) -> None:
        if not wanted.is_dir():
            raise DataError(
                f"{wanted} is not there: set dataset_dir to the folder that holds ImageSets, "
                f"{self.anno_dir} and {self.image_dir}, or name those by anno_dir and image_dir"
            )

    def _names(self, source: Path, anno_dir: Path) -> list[str]:
        self._require(anno_dir)
        if self.image_set is None:
            return annotated_names(anno_dir)
        if not source.is_file():
            raise DataError(
                f"{source} is not there: set image_set to one of the lists in {source.parent}, "
                f"or to null to read all of {anno_dir}"
            )
        return image_names(source)

    def _read_record(self, xml_file: Path, image_file: str, image_id: int) -> Record:
        annotation = read_annotation(xml_file)
        nodes = annotation.findall("object")
        boxes = [object_box(node, xml_file) for node in nodes]
        return {
            "im_file": image_file,
            "im_id": np.array([image_id], dtype=np.int64),
            "h": stated_side(annotation, "height"),
            "w": stated_side(annotation, "width"),
            "gt_bbox": np.array(boxes, dtype=np.float32).reshape(-1, 4),
            "gt_class": _column([self._label(node, xml_file) for node in nodes]),
            "is_crowd": _column([is_set(node, CROWD) for node in nodes]),
            "difficult": _column([is_set(node, "difficult") for node in nodes]),
        }

    def _label(self, node: Element, xml_file: Path) -> int:
        name = object_name(node)
        if name not in self.cname2cid:
            raise DataError(
                f"{xml_file} names a class {name!r} that is not in class_names "
                f"({', '.join(self.cname2cid)}): add it there, and to num_classes"
            )
        return self.cname2cid[name]


def _column(values: Sequence[int]) -> np.ndarray:
    """[M, 1] int32."""
    return np.array(values, dtype=np.int32).reshape(-1, 1)
