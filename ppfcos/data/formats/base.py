"""What all readers use: paths that other tools wrote, the form of boxes, the base class of VOC and YOLO."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ppdet.data.source.dataset import DetDataset

from ppfcos.data.classes import checked_names
from ppfcos.data.issues import Report
from ppfcos.data.records import Record, numbered
from ppfcos.data.statistics import LoadStatistics

_MOST_PARTS = 8  # last parts of a path that are looked for
_SAMPLED_BOXES = 5_000  # boxes of which the form is checked
_LEAST_BOXES = 3  # fewer say nothing about the form of all
_MOST_INSIDE, _LEAST_FITTING = (
    0.7,
    0.98,
)  # fractions of boxes inside their images: as read, and in another form
CORNERS, TOP_LEFT, CENTER = "[x0, y0, x1, y1]", "[x, y, width, height]", "[center x, center y, width, height]"


class FilesDataSet(DetDataset):
    """Base of the data sets with one annotation file per image.

    Subclasses implement `find_names` and `parse_dataset`. `tally` counts what is left out.
    """

    def __init__(self, class_names: Sequence[str] | None, allow_empty: bool, **arguments: Any):
        super().__init__(**arguments)
        self.class_names = [str(name) for name in class_names or ()]
        self.allow_empty = allow_empty
        self.roidbs: list[Record] | None = None
        self.cname2cid: dict[str, int] = {}
        self.categories: list[dict[str, Any]] = []
        self.tally = LoadStatistics()

    def check_or_download_dataset(self) -> None:
        """Do nothing: the data is the user's own."""

    def find_categories(self, skip_unreadable: bool = False) -> list[dict[str, Any]]:
        """Set and return `categories`, the id and name of every class, and set `cname2cid`.

        Raises:
            DataError: No file names the classes, a file is wrong, or a class occurs twice.
        """
        if self.class_names:
            self.categories = numbered(
                checked_names(self.class_names, f"class_names of {type(self).__name__}")
            )
        else:
            self.categories = self.find_names(Path(self.dataset_dir), skip_unreadable)
        self.cname2cid = {category["name"]: label for label, category in enumerate(self.categories)}
        return self.categories


def column(values: Sequence[int]) -> np.ndarray:
    """[M, 1] int32."""
    return np.array(values, dtype=np.int32).reshape(-1, 1)


def find_file(name: str, folders: Iterable[str | Path]) -> str | None:
    r"""The existing file that a path in an annotation file means; None if there is none.

    Tools write paths of their own machine: `images\x.jpg`, `D:\data\images\x.jpg`, `/data/upload/x.jpg`. The
    path is looked for as written, then with `/` for `\`, then by its last parts, the longest first. The file
    name alone is enough only for a path that leads out of its folder, or that repeats the folder's name.
    """
    folders = [os.fspath(folder) for folder in folders]
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return os.path.normpath(path)
    parts = [part for part in re.split(r"[/\\]+", name) if part not in ("", ".")][-_MOST_PARTS:]
    leads_out = (
        name[:1] in ("/", "\\", "~") or ".." in parts or (parts[:1] == [name[:2]] and name[1:2] == ":")
    )
    parts = [part for part in parts if part != ".."]
    for start in range(len(parts)):
        for folder in folders:
            is_name_alone = start > 0 and start == len(parts) - 1
            repeats = is_name_alone and parts[start - 1] == os.path.basename(os.path.abspath(folder))
            path = os.path.join(folder, *parts[start:])
            if (leads_out or repeats or not is_name_alone) and os.path.isfile(path):
                return os.path.normpath(path)
    return None


def find_place(name: str, folders: Iterable[str | Path]) -> Path | None:
    r"""The existing file or folder of a path relative to one of the folders, also with `\` for `/`."""
    names = dict.fromkeys((name, name.replace("\\", "/")))
    places = (Path(folder, os.path.expanduser(each)) for each in names for folder in folders)
    return next((place for place in places if os.path.exists(place)), None)


def check_box_form(
    values: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]], form: str, where: str, report: Report
) -> None:
    """Report boxes that are fractions where pixels are expected, or that are in another form.

    Args:
        values: [N, 4] as written.
        sizes: [N, 2] width and height of their images, in the unit of `values`; 0 if unknown.
        form: CORNERS, TOP_LEFT or CENTER.
        where: The annotation file, for the report.
        report: Called for an issue.
    """
    boxes = np.array(values[:_SAMPLED_BOXES], dtype=np.float64).reshape(-1, 4)
    limits = np.array(sizes[:_SAMPLED_BOXES], dtype=np.float64).reshape(-1, 2)
    known = limits.min(axis=1, initial=np.inf) > 0
    boxes, limits = boxes[known], limits[known]
    if not len(boxes):
        return
    in_pixels = limits.max() > 1
    if in_pixels and boxes.min() >= -0.01 and boxes.max() <= 1.01 and (boxes != np.round(boxes)).any():
        report(
            "boxes-normalized",
            where,
            f"all boxes lie between 0 and 1, such as {boxes[0].tolist()}: they are fractions of the image, "
            "but the format has pixels; multiply them by the width and height of the image",
        )
    elif len(boxes) >= _LEAST_BOXES and _inside(boxes, limits, form) <= _MOST_INSIDE:
        for other in (CORNERS, TOP_LEFT, CENTER):
            if other != form and _inside(boxes, limits, other) >= _LEAST_FITTING:
                report(
                    "boxes-in-another-form",
                    where,
                    f"the boxes, such as {boxes[0].round(4).tolist()}, fit their images only as {other}, but "
                    f"the format has {form}: convert them",
                )
                return


def _inside(boxes: np.ndarray, limits: np.ndarray, form: str) -> float:
    """The fraction of boxes that have an area and are inside their images, read in a form."""
    first, second = boxes[:, :2], boxes[:, 2:]
    with np.errstate(over="ignore"):
        if form == TOP_LEFT:
            second = first + second
        elif form == CENTER:
            first, second = first - second / 2, first + second / 2
    tolerance = 0.01 * limits
    fits = (second > first) & (first >= -tolerance) & (second <= limits + tolerance)
    return float(fits.all(axis=1).mean())
