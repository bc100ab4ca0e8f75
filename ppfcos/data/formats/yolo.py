"""YOLO's text labels: a text file an image, and the class names in a data.yaml or a classes.txt."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from ppdet.core.workspace import register, serializable
from ppdet.data.source.dataset import DetDataset

from ppfcos import yaml_files
from ppfcos.data.classes import checked_names, read_names, shown
from ppfcos.data.images import ImageUnreadable, image_size, is_clutter, list_images
from ppfcos.data.records import Record, drop_boxes_without_area, image_ids, numbered
from ppfcos.data.statistics import LoadEvent, LoadStatistics
from ppfcos.errors import DataError
from ppfcos.fileio import read_text

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")  # keys of a description
CATEGORY_IDS = "category_ids"  # a key of our own in it: the numbers that the classes have in COCO's files
_IMAGES, _LABELS = "images", "labels"
_BOX_COLUMNS, _LEAST_POLYGON_COLUMNS = 5, 7
_MOST_NODES = 50_000  # of a description
MAX_LABEL_BYTES = 64 << 20  # of the labels of one image, which have some kilobytes
_TOLERANCE = 0.01  # by which rounding may leave 0 to 1; more than that are pixels, or nonsense


class Row(NamedTuple):
    """One object of a label file.

    Attributes:
        label: The class, from 0.
        box: x0, y0, x1, y1 as fractions of the picture's sides.
        is_polygon: Whether the row held a polygon, whose bounding box this is.
    """

    label: int
    box: tuple[float, float, float, float]
    is_polygon: bool


def read_rows(label_file: str | Path, num_classes: int) -> list[Row]:
    """The objects in a label file; none where there is no such file, as is the custom.

    Args:
        label_file: The file.
        num_classes: The number of classes; a row of another one is an error.

    Raises:
        DataError: The file cannot be read, or a row is wrong; the message names its line.
    """
    try:
        lines = read_text(label_file, MAX_LABEL_BYTES).splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{label_file} cannot be read as YOLO labels: {error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_row(line.split(), num_classes, f"{label_file}, line {number}"))
    return rows


def _row(columns: list[str], num_classes: int, where: str) -> Row:
    is_polygon = len(columns) >= _LEAST_POLYGON_COLUMNS and len(columns) % 2 == 1
    if len(columns) != _BOX_COLUMNS and not is_polygon:
        raise DataError(
            f"{where}: {len(columns)} columns, but a box has 5 (class, centre x and y, width, height) "
            "and a polygon 7, 9, 11, ..."
        )
    try:
        label, *values = (float(column) for column in columns)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    if not (label.is_integer() and 0 <= label < num_classes):
        raise DataError(
            f"{where}: the class is {columns[0]}, but there are {num_classes} classes, counted from 0: "
            "add its name to the class names, or repair the row"
        )
    outside = [value for value in values if not -_TOLERANCE <= value <= 1 + _TOLERANCE]  # NaN is, too
    if outside:
        raise DataError(f"{where}: {outside[0]:g} is no fraction of the picture's side, from 0 to 1")
    return Row(int(label), _bounding_box(values) if is_polygon else _corners(*values), is_polygon)


def _corners(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _bounding_box(polygon: Sequence[float]) -> tuple[float, float, float, float]:
    return min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])


def label_path(picture: str) -> str:
    """Where YOLO's tools look for a picture's labels.

    Args:
        picture: The picture's path.

    Returns:
        The path with its last folder `images` made `labels`, or beside the picture where there is no such
        folder, and the suffix .txt. Whether the file is there is another matter.
    """
    head, tail = os.path.split(os.path.splitext(picture)[0] + ".txt")
    beside = os.path.join(head, tail)
    while os.path.basename(head) not in (_IMAGES, ""):
        head, inner = os.path.split(head)
        tail = os.path.join(inner, tail)
    return os.path.join(os.path.dirname(head), _LABELS, tail) if os.path.basename(head) else beside


def read_list(list_file: Path, folder: Path) -> tuple[list[str], list[str]]:
    """The pictures in a list such as train.txt, one path a line.

    Paths are taken as they are, or from the list's folder, or from the data set's. A path into a folder that
    was elsewhere when the list was written is found again by what follows `images` in it.

    Args:
        list_file: The list.
        folder: The data set's.

    Returns:
        The paths of the pictures that are there, each once, and the lines of those that are not.

    Raises:
        DataError: The list cannot be read as text.
    """
    try:
        lines = read_text(list_file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file} cannot be read as a list of pictures: {error}") from None
    found, missing = {}, []
    for line in dict.fromkeys(line.strip() for line in lines):
        if not line:
            continue
        places = (os.path.normpath(place) for place in _places(line, list_file, folder))
        picture = next((place for place in places if os.path.isfile(place)), None)
        if picture is None:
            missing.append(line)
        else:
            found[picture] = None
    return list(found), missing


def _places(line: str, list_file: Path, folder: Path) -> Iterator[str]:
    yield os.path.join(list_file.parent, line)  # `line` itself, if that is absolute
    yield os.path.join(folder, line)
    _, separator, tail = line.rpartition(f"/{_IMAGES}/")
    if separator:
        yield os.path.join(folder, _IMAGES, tail)


def pictures_at(place: Path, folder: Path) -> list[str]:
    """The pictures of a folder or of a list, sorted or in the list's order.

    Args:
        place: The folder or list.
        folder: The data set's.

    Raises:
        DataError: It is not there, or none of its pictures is.
    """
    if not place.exists():
        raise DataError(f"{place} is not there: a folder of pictures, or a list of them, was expected")
    pictures, missing = (list_images(place), []) if place.is_dir() else read_list(place, folder)
    if not pictures:
        what = f"none of its {len(missing)} pictures is there" if missing else "there are no pictures in it"
        raise DataError(f"{place}: {what}{f', the first is {missing[0]}' if missing else ''}")
    if missing:
        logger.warning(
            "%s: %d pictures are not there and are left out, the first is %s",
            place,
            len(missing),
            missing[0],
        )
    return pictures


class Description(NamedTuple):
    """What a data.yaml says.

    Attributes:
        categories: `id` and `name` of every class.
        splits: By name (train, val, test), the folders or lists of pictures.
    """

    categories: list[dict[str, Any]]
    splits: dict[str, list[Path]]


def read_description(path: Path) -> Description | None:
    """Reads a data.yaml.

    Args:
        path: A YAML file.

    Returns:
        None if it is one of something else, without `names`.

    Raises:
        DataError: It cannot be read, or contradicts itself.
    """
    try:
        content = yaml_files.load_yaml(_read_small(path), max_nodes=_MOST_NODES)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("names"), (list, dict)):
        return None
    if "kpt_shape" in content:
        raise DataError(f"{path} has kpt_shape: its labels are keypoints, which are not read")
    categories = _categories(content, path)
    return Description(categories, {key: _split(content, key, path) for key in SPLITS if content.get(key)})


def _read_small(path: Path) -> str:
    size = path.stat().st_size
    if size > yaml_files.MAX_BYTES:
        raise ValueError(f"it has {size >> 20} MiB, and a description at most {yaml_files.MAX_BYTES >> 20}")
    return read_text(path)


def _categories(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    names = content["names"]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(
                f"{path}: names should be numbered from 0 to {len(names) - 1}, with none left out"
            )
        names = [names[label] for label in range(len(names))]
    if not all(isinstance(name, (str, int, float, bool)) for name in names):
        raise DataError(f"{path}: names should be a list of texts")
    categories = numbered(checked_names(names, str(path)))
    if content.get("nc", len(names)) != len(names):
        stated = str(content["nc"])[:100]
        raise DataError(f"{path} has {len(names)} names, but nc is {stated}: correct one of them")
    ids = content.get(CATEGORY_IDS)
    if ids is None:
        return categories
    whole = isinstance(ids, list) and all(_is_id(number) for number in ids)
    if not whole or len(ids) != len(names) or len(set(ids)) != len(ids):
        raise DataError(
            f"{path}: {CATEGORY_IDS} should be {len(names)} whole numbers below 2^31, no two alike"
        )
    return [{**category, "id": number} for category, number in zip(categories, ids)]


def _is_id(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**31


def _split(content: dict[str, Any], key: str, path: Path) -> list[Path]:
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    stated = content.get("path") or ""
    if not all(isinstance(entry, str) for entry in (stated, *entries)):
        raise DataError(f"{path}: path and {key} should be folders or lists of pictures, as text")
    return [_find_entry(entry, stated, path.parent) for entry in entries]


def _find_entry(entry: str, stated: str, folder: Path) -> Path:
    """A split's folder or list: below `path`, or else below the description's own folder.

    `path` is often where the data was for its author, and `../train/images` means train/images to many tools.
    """
    inner = entry[len("../") :] if entry.startswith("../") else entry
    places = [base / part for base in (folder / stated, folder) for part in (entry, inner)]
    return next((place for place in places if place.exists()), places[0])


def find_categories(folder: Path, label_dirs: Sequence[Path] = ()) -> tuple[list[dict[str, Any]], str]:
    """The classes of a data set, from whatever file in it names them; several must say the same.

    Args:
        folder: The data set's: *.yaml with `names`, classes.txt, *.names.
        label_dirs: Where LabelImg puts its classes.txt.

    Returns:
        The categories, and the file.

    Raises:
        DataError: No file names the classes, or two of them contradict each other.
    """
    found = [(path, description.categories) for path, description in descriptions_in(folder).items()]
    texts = [place / "classes.txt" for place in (folder, *label_dirs)] + sorted(folder.glob("*.names"))
    found += [(path, numbered(read_names(path))) for path in texts if path.is_file()]
    if not found:
        raise DataError(
            f"{folder} does not say what its classes are called: put a data.yaml with `names` there, "
            "or a classes.txt with a name a line, or set class_names"
        )
    first, categories = found[0]
    for path, others in found[1:]:
        names, other_names = ([each["name"] for each in some] for some in (categories, others))
        if names != other_names:
            raise DataError(
                f"{first} and {path} name other classes ({shown(names)}; {shown(other_names)}): "
                "remove the wrong one, or set class_names"
            )
    return categories, str(first)


def descriptions_in(folder: Path) -> dict[Path, Description]:
    """The descriptions in a folder by their paths, data.yaml first."""
    files = [
        path
        for path in folder.iterdir()
        if path.suffix in (".yaml", ".yml") and path.is_file() and not is_clutter(path.name)
    ]
    files.sort(key=lambda path: (path.stem != "data", path.name))
    read = ((path, read_description(path)) for path in files)
    return {path: description for path, description in read if description is not None}


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
        self.tally = LoadStatistics()

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
            self.categories, source = find_categories(folder, label_dirs)
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
        self.tally = LoadStatistics()
        for number, picture in zip(image_ids(pictures), pictures):
            if 0 < self.sample_num <= len(records):
                break
            label_file = self._label_file(picture)
            labelled += os.path.isfile(label_file)
            rows = read_rows(label_file, num_classes)
            if not rows and not self.allow_empty:
                self.tally.add(LoadEvent.EMPTY_IMAGE)
                continue
            try:
                records.append(_record(picture, number, rows))
            except ImageUnreadable as error:
                self.tally.add(LoadEvent.UNREADABLE_IMAGE, first=str(error))
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
        pictures = [picture for place in places for picture in pictures_at(place, folder)]
        return list(dict.fromkeys(pictures)), ", ".join(map(str, places))

    def _places_of_split(self, folder: Path) -> list[Path]:
        described = descriptions_in(folder) if folder.is_dir() else {}
        for description in described.values():
            if self.image_set in description.splits:
                return description.splits[self.image_set]
        files = ", ".join(map(str, described)) or f"a data.yaml in {folder}"
        raise DataError(f"image_set is {self.image_set!r}, which is no split of {files}")

    def _label_file(self, picture: str) -> str:
        if not self.label_dir:
            return label_path(picture)
        inner = os.path.relpath(picture, os.path.join(self.dataset_dir, self.image_dir or ""))
        return os.path.join(self.dataset_dir, self.label_dir, os.path.splitext(inner)[0] + ".txt")


def _record(picture: str, number: int, rows: Sequence[Row]) -> Record:
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
