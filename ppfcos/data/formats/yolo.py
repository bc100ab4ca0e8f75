"""YOLO labels: one text file per image, and the class names in a data.yaml or a classes.txt."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import yaml
from ppdet.core.workspace import register, serializable

from ppfcos import yaml_files
from ppfcos.data.classes import checked_names, counted, read_names, shown
from ppfcos.data.formats.base import CENTER, FilesDataSet, check_box_form, column, find_file, find_place
from ppfcos.data.images import IMAGE_SUFFIXES, ImageUnreadable, image_size, is_clutter, list_images
from ppfcos.data.issues import RaiseOnError, Report, as_number
from ppfcos.data.records import Record, drop_boxes_without_area, image_ids, numbered
from ppfcos.data.statistics import LoadEvent
from ppfcos.errors import DataError
from ppfcos.fileio import read_text, require_regular

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")  # keys of a description
CATEGORY_IDS = "category_ids"  # a key of our own in it: the numbers that the classes have in COCO's files
_IMAGES, _LABELS = "images", "labels"
_BOX_COLUMNS, _LEAST_POLYGON_COLUMNS = 5, 7
_MOST_NODES = 50_000  # of a description
_MOST_ROWS = 5_000  # of which the form is checked
_MOST_PARTS = 8  # last parts of a path that are looked for
_MAX_LINE = 10_000  # characters of the first line of a text file
MAX_LABEL_BYTES = 64 << 20  # of the labels of one image, which have some kilobytes
_TOLERANCE = 0.01  # by which rounding may leave 0 to 1; more than that are pixels, or nonsense


class Row(NamedTuple):
    """One object of a label file.

    Attributes:
        label: The class, from 0.
        box: x0, y0, x1, y1 as fractions of the image's sides.
        is_polygon: Whether the row held a polygon, whose bounding box it is.
    """

    label: int
    box: tuple[float, float, float, float]
    is_polygon: bool


def read_rows(
    label_file: str | Path, num_classes: int, report: Report | None = None, image: str = ""
) -> list[Row]:
    """Read the objects in a label file; a missing file has none.

    Args:
        label_file: The file.
        num_classes: The number of classes.
        report: Called for each issue; may raise. By default every issue raises.
        image: The path of the image, for reports.

    Raises:
        DataError: The file cannot be read, or a row is wrong; the message names its line.
    """
    report = report or RaiseOnError("")
    try:
        lines = read_text(label_file, MAX_LABEL_BYTES).splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        report(
            "annotation-file-unreadable", str(label_file), f"cannot be read as YOLO labels: {error}", image
        )
        return []
    rows = []
    table = [line.split() for line in lines]
    what = _not_polygons([columns for columns in table if len(columns) >= _LEAST_POLYGON_COLUMNS])
    for number, columns in enumerate(table, start=1):
        if columns:
            try:
                rows.append(_parse_row(columns, num_classes))
                if what and len(columns) >= _LEAST_POLYGON_COLUMNS:
                    rows.pop()
                    raise _RowError("annotation-malformed", f"{len(columns)} columns, which are {what}")
            except _RowError as error:
                report(error.kind, f"{label_file}, line {number}", error.detail, image)
    return rows


def _not_polygons(rows: Sequence[Sequence[str]]) -> str:
    """What the rows of a file are, if the columns after a box are a track or keypoints; else "".

    A confidence and a track's number are 2 columns, a whole number last; a keypoint is x, y and a visibility
    of 0, 1 or 2. Points without a visibility are keypoints if all are in the box, of which 5 points are
    needed to say so.
    """
    if not rows or len({len(columns) for columns in rows}) > 1:
        return ""
    count = len(rows[0]) - _BOX_COLUMNS
    if count == 2 and all(columns[-1].isdigit() and "." in columns[-2] for columns in rows):
        return "a box, a confidence and the number of a track: keep the first 5 columns"
    if count == 3 or (count > 3 and count % 3 == 0 and all(map(_has_visibilities, rows))):
        return "a box and keypoints, which are not supported: keep the first 5 columns"
    if count >= 10 and count % 2 == 0 and len(rows) >= 2 and all(map(_is_around_its_points, rows)):
        return "a box and keypoints, which are not supported: keep the first 5 columns"
    return ""


def _has_visibilities(columns: Sequence[str]) -> bool:
    return all(as_number(value) in (0, 1, 2) for value in columns[_BOX_COLUMNS + 2 :: 3])


def _is_around_its_points(columns: Sequence[str]) -> bool:
    """Whether columns 2 to 5 are a box that holds all points of the other columns; (0, 0) is no point."""
    values = [as_number(value) for value in columns[1:]]
    if None in values:
        return False
    x0, y0, x1, y1 = _corners(*values[:4])
    points = [point for point in zip(values[4::2], values[5::2]) if point != (0, 0)]
    return all(x0 - 0.001 <= x <= x1 + 0.001 and y0 - 0.001 <= y <= y1 + 0.001 for x, y in points)


class _RowError(ValueError):
    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def _parse_row(columns: list[str], num_classes: int) -> Row:
    is_polygon = len(columns) >= _LEAST_POLYGON_COLUMNS and len(columns) % 2 == 1
    if len(columns) != _BOX_COLUMNS and not is_polygon:
        raise _RowError(
            "annotation-malformed",
            f"{len(columns)} columns, but a box has 5 (class, center x and y, width, height) "
            "and a polygon 7, 9, 11, ...: remove confidences, numbers of tracks and keypoints",
        )
    try:
        label, *values = (float(column) for column in columns)
    except ValueError as error:
        raise _RowError("annotation-malformed", str(error)) from None
    if not (label.is_integer() and 0 <= label < num_classes):
        raise _RowError(
            "annotation-of-unknown-category",
            f"the class is {columns[0]}, but there are {num_classes} classes, counted from 0: "
            "add its name to the class names, or correct the row",
        )
    outside = [value for value in values if not -_TOLERANCE <= value <= 1 + _TOLERANCE]  # NaN is, too
    if outside:
        raise _RowError(
            "box-malformed",
            f"{outside[0]:g} is not a fraction of the image's side, from 0 to 1: "
            "divide pixels by the side, and remove numbers of tracks and keypoints",
        )
    return Row(int(label), _bounding_box(values) if is_polygon else _corners(*values), is_polygon)


def _corners(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _bounding_box(polygon: Sequence[float]) -> tuple[float, float, float, float]:
    return min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])


def label_path(image: str) -> str:
    """Where YOLO's tools look for the labels of an image; the file need not exist.

    That is the image's path with its last folder `images` replaced by `labels`, or beside the image if there
    is no such folder, and the suffix .txt.
    """
    head, tail = os.path.split(os.path.splitext(image)[0] + ".txt")
    beside = os.path.join(head, tail)
    while os.path.basename(head) not in (_IMAGES, ""):
        head, inner = os.path.split(head)
        tail = os.path.join(inner, tail)
    return os.path.join(os.path.dirname(head), _LABELS, tail) if os.path.basename(head) else beside


def find_label_file(image: str) -> str:
    """The label file of an image, also with a suffix in capitals; `label_path` if there is none."""
    return _with_any_suffix(label_path(image))


def _with_any_suffix(path: str) -> str:
    stem = os.path.splitext(path)[0]
    names = (path, stem + ".TXT", stem + ".Txt")
    return next((name for name in names if os.path.exists(name)), path)


def report_orphans(images: Sequence[str], label_files: Sequence[str], report: Report) -> None:
    """Report label files beside those of the images that belong to no image.

    Args:
        images: The images of the data set.
        label_files: Where the labels of each image are, or would be.
        report: Called for each label file without an image in the folder of the images.
    """
    folders: dict[str, set[str]] = {}  # of labels: the folders of their images
    for image, label_file in zip(images, label_files):
        folders.setdefault(os.path.dirname(label_file), set()).add(os.path.dirname(image))
    for folder, image_folders in folders.items():
        names = _names_in(folder)
        labels = [name for name in names if name.lower().endswith(".txt") and not is_clutter(name)]
        if not labels:
            continue
        known = {
            os.path.splitext(name)[0]
            for place in image_folders
            for name in _names_in(place)
            if name.lower().endswith(IMAGE_SUFFIXES)
        }
        for name in labels:
            path = os.path.join(folder, name)
            if os.path.splitext(name)[0] not in known and _has_label_row(path):
                report("label-file-without-image", path, f"no image in {min(image_folders)} has this name")


def _names_in(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _has_label_row(path: str) -> bool:
    """Whether the first line of a text file is a row of labels; other files are lists and class names."""
    try:
        require_regular(path)
        with open(path, encoding="utf-8-sig") as stream:
            columns = stream.readline(_MAX_LINE).split()
    except (OSError, UnicodeDecodeError):
        return False
    return len(columns) >= _BOX_COLUMNS and all(as_number(value) is not None for value in columns[:5])


def read_list(list_file: Path, folder: Path) -> tuple[list[str], list[str]]:
    """The unique paths of existing images in a list such as train.txt, and the lines of missing ones.

    Paths are absolute, or relative to the list's or the data set's folder; see `find_file` for those that
    were written on another machine.

    Raises:
        DataError: The list cannot be read as text.
    """
    try:
        lines = read_text(list_file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file} cannot be read as a list of images: {error}") from None
    found, missing = {}, []
    for line in dict.fromkeys(line.strip() for line in lines):
        if not line:
            continue
        image = find_file(os.path.expanduser(line), (list_file.parent, folder))
        if image is None:  # below a folder `images` that was elsewhere
            _, separator, tail = line.replace("\\", "/").rpartition(f"/{_IMAGES}/")
            image = find_file(tail, [folder / _IMAGES]) if separator else None
        if image is None:
            missing.append(line)
        else:
            found[image] = None
    return list(found), missing


def images_at(place: Path, folder: Path, report: Report | None = None) -> list[str]:
    """The images of a folder (sorted) or of a list (in its order).

    Args:
        place: The folder or list.
        folder: The data set's.
        report: Called for each missing image; by default they are logged.

    Raises:
        DataError: The place does not exist, or none of its images does.
    """
    if not place.exists():
        raise DataError(f"{place} is not there: a folder of images, or a list of them, was expected")
    images, missing = (list_images(place), []) if place.is_dir() else read_list(place, folder)
    if not images:
        if not missing:
            raise DataError(f"{place} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        raise DataError(
            f"{place} lists {len(missing)} images, and none of them is there: the first would be "
            f"{os.path.join(place.parent, missing[0])}; write paths relative to {place.parent}"
        )
    for line in missing if report else ():
        report("image-missing", line, f"{place} lists it", line)
    if missing and not report:
        logger.warning(
            "%s: %d images are not there and are left out, the first is %s", place, len(missing), missing[0]
        )
    return images


class _TextLoader(yaml.SafeLoader):
    """Loads every plain scalar as the text that it is written as: `no`, `007` and `1e3` are class names."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}


class Description(NamedTuple):
    """What a data.yaml says.

    Attributes:
        categories: `id` and `name` of every class.
        splits: By name (train, val, test), the folders or lists of pictures.
    """

    categories: list[dict[str, Any]]
    splits: dict[str, list[Path]]


def read_description(path: Path) -> Description | None:
    """Read a data.yaml; None if it has no `names` and so is another kind of file.

    Raises:
        DataError: It cannot be read, or contradicts itself.
    """
    try:
        content = yaml_files.load_yaml(_read_small(path), _TextLoader, max_nodes=_MOST_NODES)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("names"), (list, dict)):
        return None
    if "kpt_shape" in content:
        raise DataError(f"{path} has kpt_shape: its labels are keypoints, which are not supported")
    categories = _categories(content, path)
    return Description(
        categories,
        {
            key: _split(content, key, path)
            for key in SPLITS
            if content.get(key) and not _is_nothing(content[key])
        },
    )


def _read_small(path: Path) -> str:
    size = path.stat().st_size
    if size > yaml_files.MAX_BYTES:
        raise ValueError(f"it has {size >> 20} MiB, and a description at most {yaml_files.MAX_BYTES >> 20}")
    return read_text(path)


def _categories(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    names = content["names"]
    if isinstance(names, dict):
        by_label = {_whole(key): name for key, name in names.items()}
        if set(by_label) != set(range(len(names))):
            raise DataError(
                f"{path}: names should be numbered from 0 to {len(names) - 1}, with none left out"
            )
        names = [by_label[label] for label in range(len(names))]
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: names should be a list of texts")
    categories = numbered(checked_names(names, str(path)))
    stated = content.get("nc", "")
    if not _is_nothing(stated) and _whole(stated) != len(names):
        raise DataError(f"{path} has {len(names)} names, but nc is {str(stated)[:100]}: correct one of them")
    ids = content.get(CATEGORY_IDS)
    if ids is None:
        return categories
    ids = [_whole(number) for number in ids] if isinstance(ids, list) else []
    if None in ids or len(ids) != len(names) or len(set(ids)) != len(ids):
        raise DataError(
            f"{path}: {CATEGORY_IDS} should be {len(names)} whole numbers below 2^31, no two alike"
        )
    return [{**category, "id": number} for category, number in zip(categories, ids)]


def _whole(text: Any) -> int | None:
    """A whole number below 2^31 that is written as text; None for anything else."""
    if not isinstance(text, str) or not re.fullmatch(r"-?[0-9]{1,10}", text) or abs(int(text)) >= 2**31:
        return None
    return int(text)


def _is_nothing(value: Any) -> bool:
    return value in (None, "", "~", "null", "Null", "NULL")


def _split(content: dict[str, Any], key: str, path: Path) -> list[Path]:
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    stated = "" if _is_nothing(content.get("path")) else content["path"]
    if not all(isinstance(entry, str) for entry in (stated, *entries)):
        raise DataError(f"{path}: path and {key} should be folders or lists of images, as text")
    return [_find_entry(entry, stated, path.parent) for entry in entries]


def _find_entry(entry: str, stated: str, folder: Path) -> Path:
    """A split's folder or list: below `path`, or else below the description's own folder.

    `path` is often where the data was for its author, and `../train/images` means train/images to many tools.
    """
    entry, stated = entry.replace("\\", "/"), os.path.expanduser(stated.replace("\\", "/"))
    inner = entry[len("../") :] if entry.startswith("../") else entry
    bases = (folder / stated, folder)
    places = [os.path.join(base, os.path.expanduser(part)) for base in bases for part in (entry, inner)]
    parts = [part for part in entry.split("/") if part][-_MOST_PARTS:]
    places += [os.path.join(folder, *parts[start:]) for start in range(1, len(parts))]
    return Path(next((place for place in places if os.path.exists(place)), places[0]))


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
class PPFCOSYOLODataSet(FilesDataSet):
    """A data set with YOLO's text labels.

    The labels of `images/train2017/x.jpg` are in `labels/train2017/x.txt`, or beside the image if no folder
    is called `images`. An image without a label file has no objects. Polygons become their bounding boxes.
    Boxes are clipped to the image; boxes without area are dropped. `tally` counts what is left out.

    One of `image_dir`, `anno_path` and `image_set` selects the images.

    Args:
        dataset_dir (str): The data set's folder; all other paths are relative to it.
        image_dir (str): A folder of images, including its subfolders, such as images/train2017.
        anno_path (str): A list of images, one path per line, such as train2017.txt.
        image_set (str): train, val or test, as in the data.yaml in dataset_dir.
        label_dir (str): The folder of the label files, if they are elsewhere; only with image_dir.
        class_names (list): The classes; the position is the label. By default they come from the *.yaml,
            classes.txt or *.names in dataset_dir, or the classes.txt among the labels.
        allow_empty (bool): Whether images without objects are kept as background.
        sample_num (int): Read at most this many images; -1 reads all.
        data_fields (list): Accepted for PaddleDetection; all fields are always read.
        repeat (int): How often PaddleDetection's reader goes through the images in an epoch.
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
            class_names,
            allow_empty,
            dataset_dir=dataset_dir,
            image_dir=image_dir,
            anno_path=anno_path,
            data_fields=list(data_fields),
            sample_num=sample_num,
            repeat=repeat,
        )
        self.image_set = image_set
        self.label_dir = label_dir

    def find_names(self, folder: Path, skip_unreadable: bool) -> list[dict[str, Any]]:
        """The classes that a file names."""
        if not folder.is_dir():
            raise DataError(f"{folder} is not there: set dataset_dir to the folder of your data")
        label_dirs = [folder / "labels", *([folder / self.label_dir] if self.label_dir else [])]
        categories, source = find_categories(folder, label_dirs)
        logger.info("%s from %s", counted(len(categories), "class", "classes"), source)
        return categories

    def parse_dataset(self) -> None:
        """Read the images' sizes and labels into `roidbs`.

        Raises:
            DataError: A folder or a list is missing, or a label file is wrong.
        """
        report = RaiseOnError("")
        self.tally = report.tally
        images, source = self.find_images(report)
        num_classes = len(self.find_categories())
        records, all_rows, first_labels = [], [], ""
        label_files = [self.label_file(image) for image in images]
        report_orphans(images, label_files, report)
        for number, image, label_file in zip(image_ids(images), images, label_files):
            if 0 < self.sample_num <= len(records):
                break
            rows = read_rows(label_file, num_classes, report, image)
            if not rows and not os.path.isfile(label_file):
                self.tally.add(LoadEvent.NO_LABEL_FILE)
            elif rows and len(all_rows) < _MOST_ROWS:
                all_rows += rows
                first_labels = first_labels or label_file
            if not rows and not self.allow_empty:
                self.tally.add(LoadEvent.EMPTY_IMAGE)
                continue
            try:
                records.append(_record(image, number, rows))
            except ImageUnreadable as error:
                self.tally.add(LoadEvent.UNREADABLE_IMAGE, first=str(error))
        if not first_labels and not any(map(os.path.isfile, label_files)):
            orphans = self.tally.count(LoadEvent.ORPHAN_LABELS)
            cure = (
                f"name {counted(orphans, 'label file', 'label files')} like the images"
                if orphans
                else "set label_dir"
            )
            raise DataError(
                f"{source}: none of {len(images)} images has a label file, the first would be "
                f"{label_files[0]}: {cure}"
            )
        check_form(all_rows, first_labels, report)
        self.roidbs = drop_boxes_without_area(records, self.allow_empty, self.tally)

    def find_images(self, report: Report) -> tuple[list[str], str]:
        """The images' paths, and the folders or lists that they come from."""
        given = [key for key in ("image_dir", "anno_path", "image_set") if getattr(self, key)]
        if len(given) != 1:
            raise DataError(
                f"PPFCOSYOLODataSet of {self.dataset_dir} needs one of image_dir (a folder), anno_path (a "
                f"list) and image_set (of data.yaml), and has {' and '.join(given) or 'none of them'}"
            )
        folder = Path(self.dataset_dir)
        if self.image_set:
            places = self._places_of_split(folder)
        else:
            name = self.image_dir or self.anno_path
            places = [find_place(name, [folder]) or folder / name]
        images = [image for place in places for image in images_at(place, folder, report)]
        return list(dict.fromkeys(images)), ", ".join(map(str, places))

    def _places_of_split(self, folder: Path) -> list[Path]:
        described = descriptions_in(folder) if folder.is_dir() else {}
        for description in described.values():
            if self.image_set in description.splits:
                return description.splits[self.image_set]
        files = ", ".join(map(str, described)) or f"a data.yaml in {folder}"
        raise DataError(f"image_set is {self.image_set!r}, which is no split of {files}")

    def label_file(self, image: str) -> str:
        """Where the labels of an image are, if it has any."""
        if not self.label_dir:
            return find_label_file(image)
        inner = os.path.relpath(image, os.path.join(self.dataset_dir, self.image_dir or ""))
        return _with_any_suffix(
            os.path.join(self.dataset_dir, self.label_dir, os.path.splitext(inner)[0] + ".txt")
        )


def check_form(rows: Sequence[Row], where: str, report: Report) -> None:
    """Report boxes that are not written as center, width and height."""
    boxes = np.array([row.box for row in rows if not row.is_polygon], dtype=np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    values = np.hstack([boxes[:, :2] + sides / 2, sides])
    check_box_form(values.tolist(), np.ones((len(boxes), 2)).tolist(), CENTER, where, report)


def _record(image: str, number: int, rows: Sequence[Row]) -> Record:
    height, width = image_size(image)
    return {
        "im_file": image,
        "im_id": np.array([number], dtype=np.int64),
        "h": height,
        "w": width,
        "gt_bbox": boxes_in_pixels(rows, height, width),
        "gt_class": column([row.label for row in rows]),
        "is_crowd": column([0] * len(rows)),
    }


def boxes_in_pixels(rows: Sequence[Row], height: int, width: int) -> np.ndarray:
    """[M, 4] float32 x0, y0, x1, y1 of an image of this size."""
    boxes = np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4)
    return (boxes * [width, height, width, height]).astype(np.float32)
