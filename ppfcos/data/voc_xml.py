"""The files of Pascal VOC's layout, one by one: XML annotations, lists of names, folders of pictures.

Boxes are (xmin, ymin, xmax, ymax) as they stand in the XML, in pixels from the picture's upper left corner,
and may have decimals. (VOC's own files count pixels from 1 and include the last one; hardly a tool that
writes the format today does, and none says which it does. Half a pixel matters little to a detector, and
boxes that stay as they are can be compared.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ppfcos.data.classes import checked_names, read_names
from ppfcos.data.images import IMAGE_SUFFIXES, is_clutter
from ppfcos.errors import DataError
from ppfcos.regular_files import read_bytes, read_text

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
