"""What an annotation file says, as it stands: nothing repaired, nothing dropped."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ppfcos import environment
from ppfcos.data.checker.kinds import Finding
from ppfcos.errors import DataError


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
    findings: list[Finding] = field(default_factory=list)
    is_coco: bool = False
    keeps_empty: bool = False
    trains_crowds: bool = False

    def find(self, kind: str, where: str, detail: str, image: str = "") -> None:
        """Adds a finding about the annotations."""
        self.findings.append(Finding(kind, self.section, where, detail, image))


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
