"""`tools/convert_data.py`: convert a data set from one annotation format into another."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ppfcos import environment
from ppfcos.cli import command

logger = logging.getLogger(__name__)

FORMATS = ("coco", "voc", "yolo")
PLACED = {"link": "linked", "copy": "copied", "none": "placed"}

DESCRIPTION = (
    "Convert a data set between COCO's JSON, Pascal VOC's XML and YOLO's text labels. The new folder holds "
    "annotations and images and is written completely or not at all. What the new format cannot hold is "
    "printed with its number. Boxes keep their place to a millionth of a pixel."
)
EXAMPLE = """
    python tools/convert_data.py dataset/coco --to voc -o dataset/coco_as_voc
    python tools/convert_data.py dataset/VOC2012 --to yolo -o dataset/voc_as_yolo --images copy
    python tools/convert_data.py dataset/roboflow/data.yaml --to coco -o dataset/mine --split train val
    python tools/convert_data.py coco2017labels/coco --from yolo --to coco -o mine --class_names names.txt
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.plain_parser(DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        type=Path,
        help="the data set's folder, a COCO .json file, or a YOLO data.yaml",
    )
    add("--from", dest="source_format", choices=(*FORMATS, "labelme"), help="its format (default: detected)")
    add("--to", dest="target_format", choices=FORMATS, required=True, help="the new format")
    add("-o", "--output", metavar="FOLDER", type=Path, required=True, help="the new data set's folder")
    add(
        "--images",
        choices=tuple(PLACED),
        default="link",
        help="put symbolic links to the images into it, copies, or none (default: %(default)s)",
    )
    add(
        "--split",
        dest="splits",
        nargs="+",
        default=[],
        metavar="NAME",
        help="convert only these, such as train2017 (of instances_train2017.json), trainval (of "
        "ImageSets/Main/trainval.txt) or train (of data.yaml)",
    )
    add("--image_dir", metavar="FOLDER", type=Path, help="the folder of the images, if they are not found")
    add(
        "--class_names",
        metavar="FILE",
        type=Path,
        help="one class per line in the order of the labels, for a VOC or YOLO data set without such a list",
    )
    add("--overwrite", action="store_true", help="replace the new folder and all its contents if it exists")
    return parser


def convert_data(options: argparse.Namespace) -> None:
    """Convert a data set.

    Args:
        options: Of `build_parser`.

    Raises:
        PPFCOSError: The conversion is impossible.
    """
    with environment.quiet_imports():
        import yaml

        from ppfcos.data.classes import counted, read_names
        from ppfcos.data.convert.convert import convert

    done = convert(
        options.source.expanduser(),
        options.target_format,
        options.output.expanduser(),
        options.source_format,
        options.images,
        options.splits,
        options.image_dir and options.image_dir.expanduser(),
        read_names(options.class_names) if options.class_names else (),
        options.overwrite,
    )
    for line in done.notes:
        logger.info("note: %s", line)
    for line in done.dropped:
        logger.info("lost: %s", line)
    if not done.dropped and done.boxes:
        logger.info("nothing is lost")
    logger.info(
        "%s written to %s, %s %s",
        options.target_format,
        options.output,
        counted(done.images, "image", "images"),
        PLACED[options.images],
    )
    for split, section in done.sections.items():
        text = yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=float("inf")).strip()
        logger.info("to read %s, set TrainDataset or EvalDataset: %s", split, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return command.run(convert_data, build_parser(), argv)
