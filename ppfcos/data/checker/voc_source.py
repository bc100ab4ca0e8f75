"""Pascal VOC's lists and XML files as they stand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ppfcos.data import voc_xml
from ppfcos.data.checker.sources import RawBox, RawCategory, RawData, RawImage, as_number
from ppfcos.errors import DataError


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
        self._list = None if image_set is None else self._folder / voc_xml.LISTS / f"{image_set}.txt"
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
        names = self._names or voc_xml.class_names(self._folder, self._anno_dir)[0]
        self._labels = {name: label for label, name in enumerate(names)}
        self._raw.categories = [RawCategory(name) for name in names]
        pictures = voc_xml.pictures_by_stem(self._image_dir)
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
        return (
            voc_xml.annotated_names(self._anno_dir) if self._list is None else voc_xml.image_names(self._list)
        )

    def _read_image(self, picture: str, xml_file: Path) -> None:
        path = os.path.join(str(self._image_dir), picture)
        try:
            annotation = voc_xml.read_annotation(xml_file)
        except DataError as error:
            self._raw.find("annotation-file-unreadable", xml_file.name, str(error), path)
            return
        size = (voc_xml.stated_side(annotation, "height"), voc_xml.stated_side(annotation, "width"))
        if min(size) <= 0:
            stated = [annotation.findtext(f"size/{key}") for key in ("height", "width")]
            detail = f"height is {stated[0]!r}, width is {stated[1]!r}"
            self._raw.find("image-size-unstated", xml_file.name, detail, path)
        image = RawImage(path, picture, size if min(size) > 0 else None)
        for number, node in enumerate(annotation.findall("object"), start=1):
            self._read_object(node, f"object {number} of {xml_file.name}", image)
        self._raw.images.append(image)

    def _read_object(self, node: ElementTree.Element, where: str, image: RawImage) -> None:
        name = voc_xml.object_name(node)
        if name not in self._labels:
            self._raw.find("annotation-of-unknown-category", where, f"`name` is {name!r}", image.path)
            return
        written = [node.findtext(f"bndbox/{key}") for key in voc_xml.SIDES]
        corners = [as_number(value) for value in written]
        if None in corners:
            self._raw.find("box-malformed", where, f"`bndbox` is {written!r}", image.path)
            return
        crowd = voc_xml.is_set(node, voc_xml.CROWD)
        image.boxes.append(RawBox(where, self._labels[name], tuple(corners), crowd))
