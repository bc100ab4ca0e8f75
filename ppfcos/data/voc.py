"""Pascal VOC: one XML file an image, and lists of names under ImageSets/Main."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from ppdet.core.workspace import register, serializable
from ppdet.data.source.dataset import DetDataset

from ppfcos.data.records import Record, drop_boxes_without_area, log_dropped_boxes
from ppfcos.errors import DataError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@register
@serializable
class PPFCOSVOCDataSet(DetDataset):
    """A data set in Pascal VOC's layout, read as its annotation tools wrote it.

    Boxes are (xmin, ymin, xmax, ymax) as they stand in the XML, clipped to the image; those without area are
    dropped and counted in the log. `difficult` boxes are kept and marked.

    Args:
        dataset_dir (str): The folder that holds ImageSets, Annotations and JPEGImages.
        image_set (str): The list ImageSets/Main/<image_set>.txt, one image name a line.
        class_names (list): The classes; the position is the label.
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
        image_set: str = "trainval",
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
            anno_path=os.path.join("ImageSets", "Main", f"{image_set}.txt"),
            data_fields=list(data_fields),
            sample_num=sample_num,
            repeat=repeat,
        )
        self.image_set = image_set
        self.class_names = [str(name) for name in class_names or ()]
        self.allow_empty = allow_empty
        self.anno_dir = anno_dir
        self.roidbs: list[Record] | None = None
        self.cname2cid = {name: label for label, name in enumerate(self.class_names)}

    def check_or_download_dataset(self) -> None:
        """There is nothing to download: the data is the user's own."""

    def parse_dataset(self) -> None:
        """Reads the list and its XML files into `roidbs`.

        Raises:
            DataError: A folder or the list is missing, an XML file cannot be read, or a class is not in
                class_names.
        """
        folder = Path(self.dataset_dir)
        list_file, image_dir = folder / self.anno_path, folder / self.image_dir
        self._check_layout(list_file, image_dir, folder / self.anno_dir)
        pictures = pictures_by_stem(image_dir)
        records, missing = [], []
        for image_id, name in enumerate(image_names(list_file)):
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
        if missing:
            logger.warning(
                "%s: %d images are left out because their picture or XML file is missing, the first is %s",
                list_file,
                len(missing),
                missing[0],
            )
        records, dropped, first = drop_boxes_without_area(records, self.allow_empty)
        log_dropped_boxes(str(list_file), dropped, first)
        if not records:
            raise DataError(
                f"{list_file} gives no usable image: {len(missing)} are missing from {image_dir} or "
                f"{folder / self.anno_dir}, the others have no objects"
            )
        self.roidbs = records

    def _check_layout(self, list_file: Path, *folders: Path) -> None:
        if not self.class_names:
            raise DataError(
                "PPFCOSVOCDataSet needs `class_names`, the list of the classes in the order of their labels"
            )
        if len(self.cname2cid) != len(self.class_names):
            raise DataError(
                f"`class_names` of PPFCOSVOCDataSet names a class twice: {', '.join(self.class_names)}"
            )
        for wanted in folders:
            if not wanted.is_dir():
                raise DataError(
                    f"{wanted} is not there: set dataset_dir to the folder that holds ImageSets, "
                    f"{self.anno_dir} and {self.image_dir}"
                )
        if not list_file.is_file():
            raise DataError(
                f"{list_file} is not there: set image_set to one of the lists in {list_file.parent}"
            )

    def _read_record(self, xml_file: Path, image_file: str, image_id: int) -> Record:
        try:
            annotation = ElementTree.parse(xml_file).getroot()
        except (OSError, ElementTree.ParseError, ValueError) as error:
            raise DataError(
                f"{xml_file} is not XML that can be read ({error}): repair it or take it off the list"
            ) from None
        objects = [self._read_object(node, xml_file) for node in annotation.findall("object")]
        return {
            "im_file": image_file,
            "im_id": np.array([image_id], dtype=np.int64),
            "h": stated_side(annotation, "height"),
            "w": stated_side(annotation, "width"),
            "gt_bbox": np.array([box for box, _, _ in objects], dtype=np.float32).reshape(-1, 4),
            "gt_class": np.array([label for _, label, _ in objects], dtype=np.int32).reshape(-1, 1),
            "is_crowd": np.zeros((len(objects), 1), dtype=np.int32),
            "difficult": np.array([difficult for _, _, difficult in objects], dtype=np.int32).reshape(-1, 1),
        }

    def _read_object(self, node: ElementTree.Element, xml_file: Path) -> tuple[list[float], int, int]:
        name = (node.findtext("name") or "").strip()
        if name not in self.cname2cid:
            raise DataError(
                f"{xml_file} names a class {name!r} that is not in class_names "
                f"({', '.join(self.class_names)}): add it there, and to num_classes"
            )
        try:
            box = [float(node.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        except (TypeError, ValueError):
            box = [np.nan]
        if not np.isfinite(box).all():
            raise DataError(
                f"{xml_file}: an object {name!r} lacks a number in its bndbox: repair or remove it"
            )
        difficult = (node.findtext("difficult") or "0").strip()
        return box, self.cname2cid[name], int(difficult not in ("", "0"))


def stated_side(annotation: ElementTree.Element, key: str) -> int:
    """The stated height or width; 0 where nothing usable is stated (some tools write 0 themselves)."""
    try:
        return max(int(float(annotation.findtext(f"size/{key}"))), 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def image_names(list_file: Path) -> list[str]:
    """The names in an image set, without the second column (-1, 0, 1) that VOC's lists of one class have."""
    try:
        lines = list_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file} cannot be read as a list of names: {error}") from None
    names: dict[str, None] = {}
    for line in lines:
        parts = line.split()
        if parts:
            names.setdefault(parts[0] if len(parts) == 2 and parts[1] in ("-1", "0", "1") else line.strip())
    return list(names)


def pictures_by_stem(image_dir: Path) -> dict[str, str]:
    """{name without suffix: file name} of the pictures in a folder."""
    found: dict[str, Any] = {}
    for name in sorted(os.listdir(image_dir)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(stem, name)
    return found
