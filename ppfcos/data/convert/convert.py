"""A data set of one format into another one's folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ppfcos.data.convert import coco, voc, yolo
from ppfcos.data.convert.annotated import AnnotatedSet
from ppfcos.data.convert.images import HOW, place_pictures
from ppfcos.errors import DataError, OutputError
from ppfcos.fileio import replace_folder

logger = logging.getLogger(__name__)

FORMATS: Mapping[str, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo}
PICTURES = (*HOW, "none")


class Conversion(NamedTuple):
    """What a conversion did.

    Attributes:
        source_format: coco, voc or yolo.
        sections: For every split, the section of a configuration that reads it.
        pictures: How many pictures were put beside the annotations.
        losses: A line for each kind of thing that the new format cannot keep, or that was not there.
        remarks: A line for each kind of thing that is kept in a way of its own.
    """

    source_format: str
    sections: dict[str, dict[str, Any]]
    pictures: int
    losses: list[str]
    remarks: list[str]


def detect_format(source: Path) -> str:
    """The format that a file or folder looks like.

    Args:
        source: What is to be converted.

    Returns:
        coco, voc or yolo.

    Raises:
        DataError: It is not there, or looks like none or several of them.
    """
    if not source.exists():
        raise DataError(f"{source} is not there")
    found = [name for name, module in FORMATS.items() if module.recognise(source)]
    if not found:
        raise DataError(
            f"{source} looks like none of {', '.join(FORMATS)}: name the folder that holds "
            "annotations/*.json, Annotations/*.xml or labels/, or say which it is with --from"
        )
    if len(found) > 1:
        raise DataError(f"{source} looks like {' and '.join(found)}: say which one to read, with --from")
    return found[0]


def convert(
    source: Path,
    target_format: str,
    output: Path,
    source_format: str | None = None,
    pictures: str = "link",
    splits: Sequence[str] = (),
    image_dir: Path | None = None,
    class_names: Sequence[str] = (),
    overwrite: bool = False,
) -> Conversion:
    """Writes a data set in another format, as a whole or not at all.

    Args:
        source: The data set's folder or annotation file.
        target_format: coco, voc or yolo.
        output: The new data set's folder.
        source_format: coco, voc or yolo; None: as it looks.
        pictures: What becomes of the pictures: link, copy or none.
        splits: Only these; empty: all.
        image_dir: The folder of the pictures; None: where the format has it.
        class_names: The classes in the order of their labels, for a VOC or YOLO source that does not say.
        overwrite: Whether a folder that is there, and all that it holds, is replaced.

    Returns:
        What was done.

    Raises:
        DataError: The source is missing or wrong.
        OutputError: The folder is there already, or cannot be written.
    """
    _check_output(output, source, overwrite)
    source_format = source_format or detect_format(source)
    data = FORMATS[source_format].read(source, splits, image_dir, class_names)
    if not any(split.images for split in data.splits):
        raise DataError(f"{source} has no images to convert")
    _log_contents(data, source_format)
    with replace_folder(output) as unfinished:
        names, sections = FORMATS[target_format].write(data, unfinished)
        placed = 0 if pictures == "none" else place_pictures(data, names, unfinished, pictures)
    in_folder = {
        name: {"name": keys["name"], "dataset_dir": str(output), **keys} for name, keys in sections.items()
    }
    return Conversion(source_format, in_folder, placed, data.losses.lines(), data.losses.remarks())


def _check_output(output: Path, source: Path, overwrite: bool) -> None:
    here, there = output.resolve(), source.resolve()
    if here == there or here in there.parents:
        raise OutputError(f"{output} is or holds the data set to convert: choose another folder")
    if output.is_dir() and (overwrite or not any(output.iterdir())):
        return
    if output.exists():
        raise OutputError(
            f"{output} is there already: choose another folder, or add --overwrite to replace it"
        )


def _log_contents(data: AnnotatedSet, source_format: str) -> None:
    for split in data.splits:
        logger.info(
            "%s of %s (%s): %d images, %d boxes, %d classes",
            split.name,
            data.source,
            source_format,
            len(split.images),
            len(split.annotations),
            len(data.categories),
        )
