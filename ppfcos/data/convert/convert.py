"""Convert a data set of one format into a new folder in another format."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ppfcos.data.classes import counted
from ppfcos.data.convert import coco, labelme, voc, yolo
from ppfcos.data.convert.annotated import place_images
from ppfcos.data.formats.layouts import detect_format
from ppfcos.errors import DataError, OutputError
from ppfcos.fileio import replace_folder

logger = logging.getLogger(__name__)

# read(source, splits, image_dir, class_names) returns an AnnotatedSet; write(data, folder) returns the paths
# of the images, and for every split the section of a configuration that reads it.
FORMATS: Mapping[str, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo, "labelme": labelme}


class Conversion(NamedTuple):
    """What a conversion did.

    Attributes:
        source_format: coco, voc or yolo.
        sections: For every split, the section of a configuration that reads it.
        images: How many images were put beside the annotations.
        boxes: How many boxes were read.
        dropped: A line for each kind of thing that is lost.
        notes: A line for each kind of thing that is kept in another form.
    """

    source_format: str
    sections: dict[str, dict[str, Any]]
    images: int
    boxes: int
    dropped: list[str]
    notes: list[str]


def convert(
    source: Path,
    target_format: str,
    output: Path,
    source_format: str | None = None,
    place: str = "link",
    splits: Sequence[str] = (),
    image_dir: Path | None = None,
    class_names: Sequence[str] = (),
    overwrite: bool = False,
) -> Conversion:
    """Write a data set in another format, as a whole or not at all.

    Args:
        source: The data set's folder or annotation file.
        target_format: coco, voc or yolo.
        output: The new data set's folder.
        source_format: coco, voc or yolo; None detects it.
        place: How images are put into the new folder: link, copy or none.
        splits: Only these; empty: all.
        image_dir: The folder of the images; None: where the format has it.
        class_names: The classes in the order of their labels, for a VOC or YOLO source that does not name
            them.
        overwrite: Whether an existing folder and all its contents are replaced.

    Raises:
        DataError: The source is missing or wrong.
        OutputError: The folder exists, or cannot be written.
    """
    _check_output(output, source, overwrite)
    source_format = source_format or detect_format(source)
    data = FORMATS[source_format].read(source, splits, image_dir, class_names)
    if not any(split.images for split in data.splits):
        raise DataError(f"{source} has no images to convert")
    for split in data.splits:
        logger.info(
            "%s of %s (%s): %s, %s, %s",
            split.name,
            source,
            source_format,
            counted(len(split.images), "image", "images"),
            counted(len(split.annotations), "box", "boxes"),
            counted(len(data.categories), "class", "classes"),
        )
    if not any(split.annotations for split in data.splits):
        data.notes["images are converted, and none of them has an object"] += len(data.images())
    with replace_folder(output) as unfinished:
        paths, sections = FORMATS[target_format].write(data, unfinished)
        placed = 0 if place == "none" else place_images(data, paths, unfinished, place)
    in_folder = {
        name: {"name": keys["name"], "dataset_dir": str(output), **keys} for name, keys in sections.items()
    }
    dropped, notes = (
        [f"{count} {clause}" for clause, count in counts.items() if count]
        for counts in (data.dropped, data.notes)
    )
    boxes = len(data.annotations())
    return Conversion(source_format, in_folder, placed, boxes, dropped, notes)


def _check_output(output: Path, source: Path, overwrite: bool) -> None:
    here, there = output.resolve(), source.resolve()
    if here == there or here in there.parents:
        raise OutputError(f"{output} is or holds the data set to convert: choose another folder")
    if output.is_dir() and (overwrite or not any(output.iterdir())):
        return
    if output.exists():
        raise OutputError(f"{output} exists: choose another folder, or replace it with --overwrite")
