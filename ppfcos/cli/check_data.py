"""`tools/check_data.py`: find what is wrong with data before a training does."""

from __future__ import annotations

import argparse
import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppfcos import console, environment
from ppfcos.cli import command
from ppfcos.errors import ConfigError, DataError, OutputError
from ppfcos.json_files import to_json

if TYPE_CHECKING:  # imported where it is used: it brings PaddleDetection with it
    from ppfcos.data.check.check import DataReport
    from ppfcos.data.check.levels import Geometry

logger = logging.getLogger(__name__)

CLEAN, FINDINGS, COULD_NOT_RUN = 0, 1, 2
JSON_FILE, PAGE_FILE = "report.json", "report.html"
DESCRIPTION = (
    "Read all images and annotations of a data set once and report what is wrong with them, and what a\n"
    "training will do about it. Of a configuration, TrainDataset and EvalDataset are checked, also against\n"
    "each other; of a path, what lies there. The exit code is 0 if nothing was found, 1 if something was,\n"
    "and 2 if the check could not be done."
)
EXAMPLE = """
python tools/check_data.py -c configs/fcos_r18_bccd.yml
python tools/check_data.py dataset/mine/annotations.json --image_dir dataset/mine/photos --fix cleaned.json
python tools/check_data.py dataset/voc/VOC2012 --workers 8 --output_dir reports
python tools/check_data.py -c configs/fcos_r50_fpn_1x_coco.yml --accept box-crowd image-without-objects
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.option_parser(DESCRIPTION, EXAMPLE, config_required=False)
    add = parser.add_argument
    add(
        "path",
        nargs="?",
        metavar="PATH",
        help="a COCO annotation file, or the folder of a data set; instead of -c",
    )
    add("--image_dir", metavar="FOLDER", help="of the images of PATH, where they are not found near it")
    add(
        "--output_dir",
        default="output/check_data",
        metavar="FOLDER",
        help=f"for {JSON_FILE} and {PAGE_FILE} (default: %(default)s)",
    )
    add(
        "--fix",
        metavar="OUT.json",
        help="write a cleaned COCO annotation file of TrainDataset, or of PATH: what is safe to repair is "
        "repaired, what cannot be is left out",
    )
    add("--accept", nargs="+", default=[], metavar="KIND", help="kinds of findings that are known and right")
    add(
        "--workers",
        type=_from_zero,
        default=environment.available_cores(),
        metavar="N",
        help="processes that read images; 0 reads without any (default: one a core, %(default)s)",
    )
    return parser


def check(options: argparse.Namespace) -> int:
    """Check the data that the command line names.

    Args:
        options: of `build_parser`.

    Returns:
        CLEAN or FINDINGS.

    Raises:
        PPFCOSError: it cannot be done.
    """
    environment.configure_process()
    with environment.quiet_imports():
        from ppfcos.data.check.check import check_data
    from ppfcos.visualize.data_report import text_report

    _check_kinds(options.accept)
    cfg, geometry = _what_to_check(options)
    _refuse_to_overwrite(options.fix, cfg)
    report = check_data(cfg, geometry, options.workers)
    console.show(text_report(report, options.accept))
    _write_reports(report, Path(options.output_dir), options.config or options.path, options.accept)
    if options.fix:
        _write_cleaned(report, Path(options.fix))
    return FINDINGS if any(finding.kind not in options.accept for finding in report.issues) else CLEAN


def _check_kinds(accepted: Sequence[str]) -> None:
    from ppfcos.data.issues import ISSUE_TYPES

    unknown = [kind for kind in accepted if kind not in KINDS]
    if unknown:
        raise ConfigError(f"--accept {unknown[0]}: there is no such kind; there are {', '.join(KINDS)}")


def _what_to_check(options: argparse.Namespace) -> tuple[Mapping[str, Any], Geometry]:
    """A configuration, the user's own or one that is made for a path, and at which sizes to look at boxes."""
    from ppfcos.data.check.levels import Geometry, geometry_of
    from ppfcos.data.formats.layouts import find_sections

    if bool(options.path) == bool(options.config):
        raise ConfigError("name either a configuration (-c FILE) or a path, and not both")
    if options.config:
        from ppfcos.config import load_config

        if options.image_dir:
            raise ConfigError("--image_dir goes with a path; with -c it is -o TrainDataset.image_dir=FOLDER")
        cfg = load_config(options.config, options.opt)
        return cfg, geometry_of(cfg, _strides(cfg))
    if options.opt:
        raise ConfigError("-o changes keys of a configuration; a path has none: leave out -o, or take -c")
    return find_sections(Path(options.path), Path(options.image_dir) if options.image_dir else None), Geometry()


def _strides(cfg: Mapping[str, Any]) -> list[int]:
    """Of the levels, as the parts of the model themselves say."""
    from ppdet.core.workspace import create

    from ppfcos.engine.model import construction_errors

    architecture = cfg[cfg["architecture"]]
    with construction_errors(cfg):
        backbone = create(architecture["backbone"])
        neck = create(architecture["neck"], input_shape=backbone.out_shape)
    return [shape.stride for shape in neck.out_shape]


def _refuse_to_overwrite(fixed: str | None, cfg: Mapping[str, Any]) -> None:
    for section in ("TrainDataset", "EvalDataset"):
        arguments = cfg.get(section) or {}
        source = Path(arguments.get("dataset_dir") or "", arguments.get("anno_path") or "")
        if fixed and source.is_file() and Path(fixed).resolve() == source.resolve():
            raise OutputError(f"--fix {fixed} is the annotation file that is read: name another")


def _write_reports(report: DataReport, folder: Path, title: str, accepted: Sequence[str]) -> None:
    from ppfcos.fileio import replacing
    from ppfcos.visualize.data_report import html_page, json_report

    content = json_report(report, accepted)
    with replacing(folder / JSON_FILE) as unfinished:
        unfinished.write_text(to_json(content, indent=1), encoding="utf-8")
    with replacing(folder / PAGE_FILE) as unfinished:
        unfinished.write_text(html_page(report, title, accepted), encoding="utf-8")
    logger.info("reports: %s and %s", folder / JSON_FILE, folder / PAGE_FILE)


def _write_cleaned(report: DataReport, path: Path) -> None:
    from ppfcos.data.check.fix import clean
    from ppfcos.data.issues import ISSUE_TYPES
    from ppfcos.fileio import replacing

    raw = report.sections[0].raw
    content = clean(report)
    if not content["images"]:
        raise DataError(f"--fix {path}: none of the images of {raw.source} would stay; nothing is written")
    with replacing(path) as unfinished:
        unfinished.write_text(to_json(content), encoding="utf-8")
    left = 0
    for kind, section, findings in report.by_type():
        if section is report.sections[0] and ISSUE_TYPES[kind].fix:
            logger.info("--fix: %s: %d; it %s", kind, len(findings), ISSUE_TYPES[kind].fix)
        elif section is report.sections[0]:
            left += len(findings)
    logger.info(
        "%s: %d of %d images, %d of %d boxes, %d of %d classes; image_dir is %s; %d findings stay",
        path,
        len(content["images"]),
        len(raw.images),
        len(content["annotations"]),
        sum(len(image.boxes) for image in raw.images),
        len(content["categories"]),
        len(raw.categories),
        raw.image_dir,
        left,
    )


def _from_zero(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit code.
    """
    try:
        return command.run(check, build_parser(), argv)
    except Exception:  # Python's own exit code for it, 1, says here that the data was read
        console.complain(traceback.format_exc(), keep="\n")
        return COULD_NOT_RUN
