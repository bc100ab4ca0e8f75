"""`tools/convert_data.py`: a data set from one annotation format into another."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ppfcos import environment
from ppfcos.cli import command

logger = logging.getLogger(__name__)

FORMATS = ("coco", "voc", "yolo")
PICTURES = ("link", "copy", "none")

DESCRIPTION = (
    "Convert a data set between COCO's JSON, Pascal VOC's XML and YOLO's text labels. The new data set is a "
    "folder with annotations and pictures, and is there as a whole or not at all. What its format cannot "
    "hold is printed, with numbers. Boxes stay what they are, to a millionth of a pixel."
)
EXAMPLE = """
    python tools/convert_data.py dataset/coco --to voc -o dataset/coco_as_voc
    python tools/convert_data.py dataset/VOC2012 --to yolo -o dataset/voc_as_yolo --images copy
    python tools/convert_data.py dataset/roboflow/data.yaml --to coco -o dataset/mine --split train val
    python tools/convert_data.py coco2017labels/coco --from yolo --to coco -o mine --class_names names.txt
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line.

    Returns:
        Its parser.
    """
    parser = command.plain_parser(DESCRIPTION, EXAMPLE)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        help="the data set's folder; or COCO's .json file, or YOLO's data.yaml",
    )
    parser.add_argument(
        "--from", dest="source_format", choices=FORMATS, help="its format (default: what it looks like)"
    )
    parser.add_argument(
        "--to", dest="target_format", choices=FORMATS, required=True, help="the format that is wanted"
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, required=True, help="the new data set's folder"
    )
    parser.add_argument(
        "--images",
        dest="pictures",
        choices=PICTURES,
        default="link",
        help="put symbolic links to the pictures into it, or copies, or none (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        dest="splits",
        nargs="+",
        default=[],
        metavar="NAME",
        help="convert only these, such as train2017 (of instances_train2017.json), trainval (of "
        "ImageSets/Main/trainval.txt) or train (of data.yaml)",
    )
    parser.add_argument(
        "--image_dir", metavar="FOLDER", type=Path, help="where the pictures are, if they are not found"
    )
    parser.add_argument(
        "--class_names",
        metavar="FILE",
        type=Path,
        help="a class a line, in the order of the labels, where a VOC or YOLO data set has no such list",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the new folder, and all that it holds, if it is there",
    )
    return parser


def convert_data(options: argparse.Namespace) -> None:
    """Convert as the command line says.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: it cannot be done.
    """
    with environment.quiet_imports():
        import yaml

        from ppfcos.data.classes import read_names
        from ppfcos.data.convert.convert import convert

    done = convert(
        options.source,
        options.target_format,
        options.output,
        options.source_format,
        options.pictures,
        options.splits,
        options.image_dir,
        read_names(options.class_names) if options.class_names else (),
        options.overwrite,
    )
    for remark in done.remarks:
        logger.info("note: %s", remark)
    for loss in done.dropped:
        logger.info("lost: %s", loss)
    if not done.dropped:
        logger.info("nothing is lost")
    how = {"link": "linked", "copy": "copied", "none": "placed"}[options.pictures]
    logger.info("%s written to %s, %d pictures %s", options.target_format, options.output, done.images, how)
    for split, section in done.sections.items():
        text = yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=float("inf")).strip()
        logger.info("to read %s, set TrainDataset or EvalDataset: %s", split, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(convert_data, build_parser(), argv)
