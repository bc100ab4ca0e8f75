"""`tools/check_data.py`: check the data before training."""

from __future__ import annotations

import argparse
import logging
import traceback
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Callable

from ppfcos import console, environment
from ppfcos.cli import command
from ppfcos.errors import ConfigError, DataError, OutputError
from ppfcos.json_files import to_json

if TYPE_CHECKING:  # imported where it is used: it imports PaddleDetection
    from ppfcos.data.check.check import DataReport
    from ppfcos.data.check.levels import CountPoints, Geometry

logger = logging.getLogger(__name__)

CLEAN, ISSUES, COULD_NOT_RUN = 0, 1, 2
FAIL_ON = ("error", "warning", "note")  # severities, worst first
JSON_FILE, PAGE_FILE = "report.json", "report.html"
STRIDES, SIZE_RANGES = (8, 16, 32, 64, 128), (64, 128, 256, 512)  # of the default configuration
DESCRIPTION = (
    "Read all images and annotations of a data set once, and report what is wrong with them and what\n"
    "training does about it. With a configuration, TrainDataset and EvalDataset are checked, also against\n"
    "each other. The exit code is 0 without warnings and errors, 1 with them (see --fail-on), and 2 if the\n"
    "check is impossible."
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
    add("--image_dir", metavar="FOLDER", help="the folder of the images of PATH, if they are not found")
    add(
        "--output_dir",
        default="output/check_data",
        metavar="FOLDER",
        help=f"for {JSON_FILE} and {PAGE_FILE} (default: %(default)s)",
    )
    add(
        "--fix",
        metavar="OUT.json",
        help="write a COCO annotation file of TrainDataset, or of PATH, without the issues that can be fixed",
    )
    add(
        "--fail-on",
        choices=FAIL_ON,
        default="warning",
        help="lowest severity of an issue that makes the exit code 1 (default: %(default)s)",
    )
    add("--accept", nargs="+", default=[], metavar="TYPE", help="issue types that are known and accepted")
    add(
        "--workers",
        type=_non_negative,
        default=environment.available_cores(),
        metavar="N",
        help="processes that decode images; 0 uses none (default: one per core, %(default)s)",
    )
    return parser


def check(options: argparse.Namespace) -> int:
    """Check the data that the command line names.

    Args:
        options: Of `build_parser`.

    Returns:
        CLEAN or ISSUES.

    Raises:
        PPFCOSError: The check is impossible.
    """
    environment.configure_process()
    with environment.quiet_imports():
        from ppfcos.data.check.check import check_data
        from ppfcos.data.issues import ISSUE_TYPES
    from ppfcos.visualize.data_report import text_report

    unknown = [kind for kind in options.accept if kind not in ISSUE_TYPES]
    if unknown:
        raise ConfigError(f"--accept {unknown[0]} is not an issue type; choose from {', '.join(ISSUE_TYPES)}")
    cfg, geometry = _select_data(options)
    _refuse_to_overwrite(options.fix, cfg)
    report = check_data(cfg, geometry, options.workers)
    console.show(text_report(report, options.accept))
    _write_reports(report, Path(options.output_dir), options.config or options.path, options.accept)
    if options.fix:
        _write_fixed(report, Path(options.fix))
    fatal = FAIL_ON[: FAIL_ON.index(options.fail_on) + 1]
    kinds = {issue.kind for issue in report.issues}.difference(options.accept)
    return ISSUES if any(ISSUE_TYPES[kind].severity.value in fatal for kind in kinds) else CLEAN


def _select_data(options: argparse.Namespace) -> tuple[Mapping[str, Any], Geometry]:
    """The user's configuration, or one that is made for a path, and the geometry of the model."""
    from ppfcos.data.formats.layouts import find_sections

    if bool(options.path) == bool(options.config):
        raise ConfigError("name either a configuration (-c FILE) or a path, and not both")
    if options.config:
        from ppfcos.config import load_config

        if options.image_dir:
            raise ConfigError("--image_dir goes with a path; with -c it is -o TrainDataset.image_dir=FOLDER")
        cfg = load_config(options.config, options.opt)
        return cfg, configured_geometry(cfg)
    if options.opt:
        raise ConfigError("-o changes keys of a configuration; a path has none: leave out -o, or use -c")
    image_dir = Path(options.image_dir).expanduser() if options.image_dir else None
    return find_sections(Path(options.path).expanduser(), image_dir), default_geometry()


def configured_geometry(cfg: MutableMapping[str, Any]) -> Geometry:
    """The geometry of a configuration, with the assigner of its model."""
    from ppdet.core.workspace import create

    from ppfcos.config.workspace import use_config
    from ppfcos.data.check.levels import input_geometry
    from ppfcos.engine.model import construction_errors

    num_classes = cfg.get("num_classes")
    try:
        cfg["num_classes"] = num_classes or 1  # the assigner does not depend on it
        with construction_errors(cfg):
            use_config(cfg)
            model = create(cfg["architecture"])
    finally:
        cfg["num_classes"] = num_classes
    strides = model.head.strides
    return input_geometry(cfg, count_points_of(model.assign, strides), strides, model.targets)


def default_geometry(radius: float = 1.5) -> Geometry:
    """The geometry of the default configuration."""
    from ppfcos.data.check.levels import Geometry
    from ppfcos.modeling.assigner import PPFCOSTargets
    from ppfcos.modeling.fcos import center_grid

    assigner = PPFCOSTargets(list(SIZE_RANGES), radius)

    def assign(batch: Mapping[str, Any]) -> Any:
        height, width = batch["image"].shape[2:]
        points = [center_grid(-(-height // s), -(-width // s), s).points() for s in STRIDES]
        return assigner(points, list(STRIDES), batch["gt_bbox"], batch["gt_class"], 1)

    return Geometry(count_points_of(assign, STRIDES), STRIDES, size_ranges=SIZE_RANGES, radius=radius)


def count_points_of(assign: Callable[[Mapping[str, Any]], Any], strides: Sequence[int]) -> CountPoints:
    """Count the points that an assigner assigns to each box on each level.

    Args:
        assign: Gives the targets of a batch, as `PPFCOS.assign`.
        strides: Of the levels.
    """
    import numpy as np
    import paddle

    def count(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        images, number = boxes.shape[:2]
        # each box has a class of its own, so that the label of a point names its box
        labels = np.tile(np.arange(number), (images, 1))
        batch = {
            "image": SimpleNamespace(shape=[images, 3, height, width]),
            "gt_bbox": paddle.to_tensor(boxes),
            "gt_class": paddle.to_tensor(labels),
        }
        targets = assign(batch)
        positives, all_labels = targets.positives.numpy(), targets.labels.numpy()
        image = positives // (len(all_labels) // images)
        level = np.searchsorted(strides, targets.strides.numpy())
        counts = np.zeros((images, number, len(strides)), dtype=np.int64)
        np.add.at(counts, (image, all_labels[positives], level), 1)
        return counts

    return count


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


def _write_fixed(report: DataReport, path: Path) -> None:
    from ppfcos.data.check.fix import clean
    from ppfcos.data.issues import ISSUE_TYPES
    from ppfcos.fileio import replacing

    data = report.sections[0].dataset
    content = clean(report)
    if not content["images"]:
        raise DataError(f"--fix {path}: none of the images of {data.source} would stay; nothing is written")
    with replacing(path) as unfinished:
        unfinished.write_text(to_json(content), encoding="utf-8")
    left = 0
    for kind, section, issues in report.by_type():
        if section is report.sections[0] and ISSUE_TYPES[kind].fix:
            logger.info("--fix: %s: %d; it %s", kind, len(issues), ISSUE_TYPES[kind].fix)
        elif section is report.sections[0]:
            left += len(issues)
    logger.info(
        "%s: %d of %d images, %d of %d boxes, %d of %d classes; image_dir is %s; %d issues are left",
        path,
        len(content["images"]),
        len(data.images),
        len(content["annotations"]),
        sum(len(image.boxes) for image in data.images),
        len(content["categories"]),
        len(data.categories),
        data.image_dir,
        left,
    )


def _non_negative(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    try:
        return command.run(check, build_parser(), argv)
    except Exception:  # Python's own exit code for it, 1, means here that there are issues
        console.complain(traceback.format_exc(), keep="\n")
        return COULD_NOT_RUN
