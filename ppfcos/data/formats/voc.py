"""Pascal VOC: one XML file per image, and optional lists of image names in ImageSets/Main."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
from ppdet.core.workspace import register, serializable

from ppfcos.data.classes import checked_names, read_names, shown
from ppfcos.data.formats.base import CORNERS, FilesDataSet, check_box_form, column
from ppfcos.data.images import list_files, list_images
from ppfcos.data.issues import RaiseOnError, Report, as_number
from ppfcos.data.records import Record, drop_boxes_without_area, numbered
from ppfcos.data.statistics import LoadEvent
from ppfcos.errors import DataError
from ppfcos.fileio import read_bytes, read_text

logger = logging.getLogger(__name__)

NAME_FILES = ("label_list.txt", "labels.txt", "classes.txt")  # the first is PaddleDetection's
LISTS = Path("ImageSets", "Main")
SIDES = ("xmin", "ymin", "xmax", "ymax")
# A tag of our own: the box holds a crowd, as COCO has it. `difficult` is set beside it for everyone else.
CROWD = "iscrowd"
_DECLARED_ENCODING = re.compile(rb"""\s*<\?xml[^>]{0,100}?encoding=["']([A-Za-z0-9._-]{1,20})["']""")
_ENCODINGS = {
    **dict.fromkeys(("gb2312", "gbk", "cp936", "gb18030", "gb_2312-80", "euc-cn"), "gb18030"),
    **dict.fromkeys(("big5", "big5-hkscs", "cp950"), "big5hkscs"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "cp932", "windows-31j"), "cp932"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "cp949"), "cp949"),
    "euc-jp": "euc_jp",
}
MAX_BYTES = 64 << 20  # of the XML file of one image, which has some kilobytes


class VOCObject(NamedTuple):
    """An object of an XML file.

    Attributes:
        node: Its XML element.
        label: The position of its class in the class names.
        box: x0, y0, x1, y1 in pixels, as written.
    """

    node: Element
    label: int
    box: tuple[float, float, float, float]

    def is_set(self, tag: str) -> bool:
        """Whether a flag such as `difficult` is set."""
        return (self.node.findtext(tag) or "0").strip() not in ("", "0")


class VOCFile(NamedTuple):
    """The XML file of one image: the root element, the stated size (0: not stated) and the objects."""

    root: Element
    height: int
    width: int
    objects: list[VOCObject]


def parse(xml_file: Path, labels: Mapping[str, int], report: Report, image: str = "") -> VOCFile | None:
    """Read and check the XML file of an image.

    Args:
        xml_file: The file.
        labels: The label of each class.
        report: Called for each issue; may raise.
        image: The path of the image, for reports.

    Returns:
        None if the file is no XML.
    """
    try:
        root = read_xml(xml_file)
    except DataError as error:
        detail = str(error)[len(str(xml_file)) + 1 :]
        report("annotation-file-unreadable", xml_file.name, detail, image)
        return None
    height, width = stated_side(root, "height"), stated_side(root, "width")
    if min(height, width) <= 0:
        stated = [root.findtext(f"size/{key}") for key in ("height", "width")]
        detail = f"height is {stated[0]!r}, width is {stated[1]!r}"
        report("image-size-unstated", xml_file.name, detail, image)
    objects = []
    for number, node in enumerate(root.findall("object"), start=1):
        where = f"{xml_file.name}, object {number}"
        name = object_name(node)
        if not name:
            report("annotation-malformed", where, "the object has no name: name or remove it", image)
            continue
        if name not in labels:
            detail = f"the class {name!r} is not in class_names ({shown(list(labels))}): add it there"
            report("annotation-of-unknown-category", where, detail, image)
            continue
        box, detail = _box_of(node)
        if box is None:
            report("box-malformed", where, f"{name!r} {detail}", image)
            continue
        objects.append(VOCObject(node, labels[name], box))
    return VOCFile(root, height, width, objects)


def _box_of(node: Element) -> tuple[tuple[float, ...] | None, str]:
    """The corners of an object, or None and what is wrong with it. A polygon without a box gives its box."""
    if node.find("bndbox") is None:
        polygon = node.find("polygon")
        if polygon is not None:
            values = [(each.tag, as_number(each.text)) for each in polygon.iter() if each is not polygon]
            xs = [value for tag, value in values if tag.startswith("x") and value is not None]
            ys = [value for tag, value in values if tag.startswith("y") and value is not None]
            if len(xs) >= 3 and len(ys) == len(xs):
                return (min(xs), min(ys), max(xs), max(ys)), ""
            return None, "is a polygon of fewer than 3 points: draw it again or remove it"
        if node.find("robndbox") is not None:
            return (
                None,
                "is a rotated box (robndbox), which is not supported: write its bndbox",
            )
        return None, "has no bndbox: draw its box or remove it"
    written = [node.findtext(f"bndbox/{side}") for side in SIDES]
    box = tuple(as_number(value) for value in written)
    if None in box:
        return None, f"must have four numbers in `bndbox`, not {written}: correct or remove it"
    return box, ""


def read_xml(xml_file: Path) -> Element:
    """The root of an XML file.

    Raises:
        DataError: The file cannot be read, is not XML, or is the XML of another format.
    """
    try:
        data = read_bytes(xml_file, MAX_BYTES)
        declared = _DECLARED_ENCODING.match(data)
        encoding = _ENCODINGS.get(declared[1].decode().lower()) if declared else None
        # expat does not know these; the declaration in a text is ignored
        root = ElementTree.fromstring(data.decode(encoding) if encoding else data)
    except (OSError, ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:  # encoding
        raise DataError(
            f"{xml_file} cannot be read as XML ({error}): repair it or take it off the list"
        ) from None
    if root.tag == "annotations" and root.find("image") is not None:
        raise DataError(
            f"{xml_file} is CVAT's own XML, not Pascal VOC's: export as PASCAL VOC 1.1 or COCO 1.0"
        )
    return root


def object_name(node: Element) -> str:
    """The class of an <object>, "" where none is stated."""
    return (node.findtext("name") or "").strip()


def stated_side(annotation: Element, side: str) -> int:
    """The stated `height` or `width`; 0 where nothing usable is stated (some tools write 0 themselves)."""
    try:
        return max(int(float(annotation.findtext(f"size/{side}"))), 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def image_names(list_file: Path) -> list[str]:
    """The image names in an image set, without the second column (-1, 0, 1) of VOC's lists of one class.

    Raises:
        DataError: The file is no text.
    """
    names: dict[str, None] = {}
    for line in _lines(list_file):
        parts = line.split()
        if parts:
            names.setdefault(parts[0] if has_mark(parts) else line.strip())
    return list(names)


def is_list_of_one_class(list_file: Path) -> bool:
    """Whether an image set states for every image whether it has a class, as `aeroplane_train.txt`."""
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


def images_by_stem(image_dir: Path) -> dict[str, str]:
    """{path without suffix: path} of the images in a folder and its subfolders, relative to the folder."""
    found: dict[str, str] = {}
    for path in list_images(image_dir):
        name = os.path.relpath(path, image_dir)
        found.setdefault(os.path.splitext(name)[0], name)
    return found


def annotated_names(anno_dir: Path) -> list[str]:
    """The paths of all XML files in a folder and its subfolders, relative to it, without suffix, sorted."""
    return [os.path.splitext(os.path.relpath(path, anno_dir))[0] for path in list_files(anno_dir, (".xml",))]


def xml_path(anno_dir: Path, name: str) -> Path:
    """The XML file of a name, also with a suffix in capitals; the usual one if there is none."""
    paths = [Path(anno_dir, f"{name}{suffix}") for suffix in (".xml", ".XML")]
    return next((path for path in paths if os.path.isfile(path)), paths[0])


def class_names(folder: Path, anno_dir: Path, skip_unreadable: bool = False) -> tuple[list[str], str]:
    """The classes in a data set's list if it has one, else all that its XML files name, sorted.

    Every XML file counts, in an image set or not, so that training and validation agree.

    Args:
        folder: The data set's, where a label_list.txt, labels.txt or classes.txt may be.
        anno_dir: The XML files' folder.
        skip_unreadable: Whether XML files that cannot be read are skipped.

    Returns:
        The names, and the file or folder that they come from.

    Raises:
        DataError: A file cannot be read, or there are no classes.
    """
    for name in NAME_FILES:
        if (folder / name).is_file():
            return read_names(folder / name), str(folder / name)
    found: set[str] = set()
    first_error = None
    for name in annotated_names(anno_dir):
        try:
            found.update(map(object_name, read_xml(xml_path(anno_dir, name)).findall("object")))
        except DataError as error:
            first_error = first_error or error
            if not skip_unreadable:
                raise
    if not found and first_error is not None:
        raise first_error
    return checked_names(sorted(found - {""}), str(anno_dir)), str(anno_dir)


@register
@serializable
class PPFCOSVOCDataSet(FilesDataSet):
    """A data set of XML files in Pascal VOC's format.

    Boxes are (xmin, ymin, xmax, ymax) as written, clipped to the image; boxes without area are dropped.
    `difficult` boxes are kept and marked. `tally` counts what is left out.

    Use `image_set: null` for folders without ImageSets, and `image_dir: .` and `anno_dir: .` where XML files
    and images are in one folder.

    Args:
        dataset_dir (str): The folder that holds ImageSets, Annotations and JPEGImages.
        image_set (str): The list ImageSets/Main/<image_set>.txt, one image name a line; null reads every
            XML file in anno_dir.
        class_names (list): The classes; the position is the label. By default they come from
            label_list.txt, labels.txt or classes.txt in dataset_dir, else from all XML files in anno_dir,
            sorted.
        allow_empty (bool): Whether images without objects are kept as background.
        image_dir (str): The images' folder in dataset_dir.
        anno_dir (str): The XML files' folder in dataset_dir.
        sample_num (int): Read at most this many images; -1 reads all.
        data_fields (list): Accepted for PaddleDetection; all fields are always read.
        repeat (int): How often PaddleDetection's reader goes through the images in an epoch.
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
            class_names,
            allow_empty,
            dataset_dir=dataset_dir,
            image_dir=image_dir,
            anno_path=anno_dir if image_set is None else str(LISTS / f"{image_set}.txt"),
            data_fields=list(data_fields),
            sample_num=sample_num,
            repeat=repeat,
        )
        self.image_set = image_set
        self.anno_dir = anno_dir

    def find_names(self, folder: Path, skip_unreadable: bool) -> list[dict[str, Any]]:
        """The classes in the data set's list, or of all XML files."""
        self._require(folder / self.anno_dir)
        names, source = class_names(folder, folder / self.anno_dir, skip_unreadable)
        logger.info("classes from %s: %s", source, ", ".join(names))
        return numbered(names)

    def parse_dataset(self) -> None:
        """Read the image set and its XML files into `roidbs`.

        Raises:
            DataError: A folder or the image set is missing, an XML file cannot be read, or a class is not in
                class_names.
        """
        folder = Path(self.dataset_dir)
        self._require(folder / self.image_dir)
        report = RaiseOnError(f"{folder / self.anno_dir}{os.sep}")
        self.find_categories()
        records: list[Record] = []
        boxes, sizes = [], []
        self.tally = report.tally
        for image_id, image, file in self.parse(report):
            record = _record(file, image, image_id)
            boxes += [each.box for each in file.objects]
            sizes += [(file.width, file.height)] * len(file.objects)
            if self.allow_empty or len(record["gt_bbox"]):
                records.append(record)
            else:
                self.tally.add(LoadEvent.EMPTY_IMAGE)
            if 0 < self.sample_num <= len(records):
                break
        check_box_form(boxes, sizes, CORNERS, "bndbox of the objects", report)
        self.roidbs = drop_boxes_without_area(records, self.allow_empty, self.tally)

    def parse(self, report: Report) -> Iterator[tuple[int, str, VOCFile]]:
        """Position, image path and annotation of every listed image; `find_categories` goes first.

        Args:
            report: Called for each issue; may raise.
        """
        folder = Path(self.dataset_dir)
        image_dir, anno_dir = folder / self.image_dir, folder / self.anno_dir
        self._require(image_dir)
        names = self._names(folder / self.anno_path, anno_dir)
        images = images_by_stem(image_dir)
        for position, name in enumerate(names):
            image_name = _known(name, images)
            xml_file = xml_path(anno_dir, os.path.splitext(image_name)[0] if image_name else name)
            if image_name is None:
                missing = os.path.join(image_dir, name)
                report("image-missing", name, f"{image_dir} has no image of this name", missing)
            elif not xml_file.is_file():
                report("annotation-file-missing", name, f"{xml_file} is not there", str(xml_file))
            else:
                image = os.path.join(image_dir, image_name)
                file = parse(xml_file, self.cname2cid, report, image)
                if file is not None:
                    yield position, image, file

    def _require(self, wanted: Path) -> None:
        if not wanted.is_dir():
            raise DataError(
                f"{wanted} is not there: set dataset_dir to the folder that holds {self.anno_dir} and "
                f"{self.image_dir}, or name those by anno_dir and image_dir"
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


def _known(name: str, images: Mapping[str, str]) -> str | None:
    r"""The image of a name in a list, which may have a suffix, or `\` for `/`."""
    for each in (name, os.path.splitext(name)[0], name.replace("\\", "/")):
        if each in images:
            return images[each]
    return None


def _record(file: VOCFile, image: str, image_id: int) -> Record:
    objects = file.objects
    return {
        "im_file": image,
        "im_id": np.array([image_id], dtype=np.int64),
        "h": file.height,
        "w": file.width,
        "gt_bbox": np.array([each.box for each in objects], dtype=np.float32).reshape(-1, 4),
        "gt_class": column([each.label for each in objects]),
        "is_crowd": column([each.is_set(CROWD) for each in objects]),
        "difficult": column([each.is_set("difficult") for each in objects]),
    }
