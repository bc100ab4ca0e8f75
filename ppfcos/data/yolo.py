"""YOLO's text labels: a text file an image, and the class names in a data.yaml or a classes.txt."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ppdet.core.workspace import register, serializable
from ppdet.data.source.dataset import DetDataset

from ppfcos.data import yolo_text
from ppfcos.data.classes import checked_names
from ppfcos.data.images import ImageUnreadable, image_size
from ppfcos.data.records import Record, drop_boxes_without_area, image_ids, numbered
from ppfcos.data.tally import Change, Tally
from ppfcos.errors import DataError

logger = logging.getLogger(__name__)


@register
@serializable
class PPFCOSYOLODataSet(DetDataset):
    """A data set with YOLO's text labels.

    The labels of `images/train2017/x.jpg` are in `labels/train2017/x.txt`, or beside the picture where no
    folder is called `images`. A picture without a label file has no objects. Rows of segmentation become the
    bounding box of their polygon. Boxes are clipped to the image; those without area are dropped. What is
    left out is counted in `tally`.

    Which pictures there are is said by one of `image_dir`, `anno_path` and `image_set`.

    Args:
        dataset_dir (str): The data set's folder; all other paths are in it.
        image_dir (str): The folder of the pictures, with those below it, such as images/train2017.
        anno_path (str): A list of pictures, one path a line, such as train2017.txt.
        image_set (str): train, val or test, as the data.yaml in dataset_dir has it.
        label_dir (str): The folder of the label files, if it is not found as above; only with image_dir.
        class_names (list): The classes; the position is the label. Where they are not given they come from
            the *.yaml, classes.txt or *.names in dataset_dir, or the classes.txt among the labels.
        allow_empty (bool): Whether images without objects are kept, as negatives.
        sample_num (int): Read only so many images; -1 reads all.
        data_fields (list): Understood for PaddleDetection's sake; all fields are always read.
        repeat (int): How often an epoch goes through the images when PaddleDetection's reader is used.
    """

    def __init__(
        self,
        dataset_dir: str | None = None,
        image_dir: str | None = None,
        anno_path: str | None = None,
        image_set: str | None = None,
        label_dir: str | None = None,
        class_names: Sequence[str] | None = None,
        allow_empty: bool = False,
        sample_num: int = -1,
        data_fields: Sequence[str] = ("image", "gt_bbox", "gt_class"),
        repeat: int = 1,
    ):
        super().__init__(
            dataset_dir=dataset_dir,
            image_dir=image_dir,
            anno_path=anno_path,
            data_fields=list(data_fields),
            sample_num=sample_num,
            repeat=repeat,
        )
        self.image_set = image_set
        self.label_dir = label_dir
        self.class_names = [str(name) for name in class_names or ()]
        self.allow_empty = allow_empty
        self.roidbs: list[Record] | None = None
        self.cname2cid: dict[str, int] = {}
        self.categories: list[dict[str, Any]] = []
        self.tally = Tally()

    def check_or_download_dataset(self) -> None:
        """There is nothing to download: the data is the user's own."""

    def find_categories(self) -> list[dict[str, Any]]:
        """`id` and `name` of every class; `cname2cid` numbers them from then on.

        Raises:
            DataError: No file names the classes, or two contradict each other.
        """
        folder = Path(self.dataset_dir)
        if self.class_names:
            self.categories = numbered(checked_names(self.class_names, "class_names of PPFCOSYOLODataSet"))
        elif not folder.is_dir():
            raise DataError(f"{folder} is not there: set dataset_dir to the folder of your data")
        else:
            label_dirs = [folder / "labels", *([folder / self.label_dir] if self.label_dir else [])]
            self.categories, source = yolo_text.find_categories(folder, label_dirs)
            logger.info("%d classes from %s", len(self.categories), source)
        self.cname2cid = {category["name"]: label for label, category in enumerate(self.categories)}
        return self.categories

    def parse_dataset(self) -> None:
        """Reads the pictures' sizes and labels into `roidbs`.

        Raises:
            DataError: A folder or a list is missing, a label file is wrong, or no picture has objects.
        """
        pictures, source = self._pictures()
        num_classes = len(self.find_categories())
        records, labelled = [], 0
        self.tally = Tally()
        for number, picture in zip(image_ids(pictures), pictures):
            if 0 < self.sample_num <= len(records):
                break
            label_file = self._label_file(picture)
            labelled += os.path.isfile(label_file)
            rows = yolo_text.read_rows(label_file, num_classes)
            if not rows and not self.allow_empty:
                self.tally.add(Change.EMPTY_IMAGE)
                continue
            try:
                records.append(_record(picture, number, rows))
            except ImageUnreadable as error:
                self.tally.add(Change.UNREADABLE_IMAGE, first=str(error))
        records = drop_boxes_without_area(records, self.allow_empty, self.tally)
        if not labelled:
            raise DataError(
                f"{source}: none of {len(pictures)} pictures has a label file, the first would be "
                f"{self._label_file(pictures[0])}: set label_dir"
            )
        if not records:
            raise DataError(f"{source} gives no image with objects: set allow_empty: true to read it still")
        self.roidbs = records

    def _pictures(self) -> tuple[list[str], str]:
        """The pictures' paths, and what says so."""
        given = [key for key in ("image_dir", "anno_path", "image_set") if getattr(self, key)]
        if len(given) != 1:
            raise DataError(
                f"PPFCOSYOLODataSet of {self.dataset_dir} needs one of image_dir (a folder), anno_path (a "
                f"list) and image_set (of data.yaml), and has {' and '.join(given) or 'none of them'}"
            )
        folder, places = Path(self.dataset_dir), []
        if self.image_set:
            places = self._places_of_split(folder)
        else:
            places = [folder / (self.image_dir or self.anno_path)]
        pictures = [picture for place in places for picture in yolo_text.pictures_at(place, folder)]
        return list(dict.fromkeys(pictures)), ", ".join(map(str, places))

    def _places_of_split(self, folder: Path) -> list[Path]:
        described = yolo_text.descriptions_in(folder) if folder.is_dir() else {}
        for description in described.values():
            if self.image_set in description.splits:
                return description.splits[self.image_set]
        files = ", ".join(map(str, described)) or f"a data.yaml in {folder}"
        raise DataError(f"image_set is {self.image_set!r}, which is no split of {files}")

    def _label_file(self, picture: str) -> str:
        if not self.label_dir:
            return yolo_text.label_file_of(picture)
        inner = os.path.relpath(picture, os.path.join(self.dataset_dir, self.image_dir or ""))
        return os.path.join(self.dataset_dir, self.label_dir, os.path.splitext(inner)[0] + ".txt")


def _record(picture: str, number: int, rows: Sequence[yolo_text.Row]) -> Record:
    height, width = image_size(picture)
    boxes = np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4)
    return {
        "im_file": picture,
        "im_id": np.array([number], dtype=np.int64),
        "h": height,
        "w": width,
        "gt_bbox": (boxes * [width, height, width, height]).astype(np.float32),
        "gt_class": np.array([row.label for row in rows], dtype=np.int32).reshape(-1, 1),
        "is_crowd": np.zeros((len(rows), 1), dtype=np.int32),
    }
