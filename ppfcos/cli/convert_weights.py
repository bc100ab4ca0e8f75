"""`tools/convert_weights.py`: convert weights of other projects, with their configuration."""

from __future__ import annotations

import argparse
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ppfcos import environment
from ppfcos.cli import command

if TYPE_CHECKING:
    from ppfcos.convert.convert import Conversion

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Convert FCOS weights of MMDetection, the FCOS authors, AdelaiDet, torchvision and PaddleDetection, and "
    "ImageNet backbones of Detectron, torchvision, PaddleClas, PaddleDetection and the authors of DLA. The "
    "configuration that gives the result of their own project is written beside the weights. No code of a "
    "checkpoint is run."
)
EXAMPLE = """
    python tools/convert_weights.py fcos_r50_caffe_fpn_gn-head_1x_coco-821213aa.pth -o weights/mmdet.pdparams
    python tools/convert_weights.py model_final.pth --from adelaidet --recipe iou -o weights/adet.pdparams
    python tools/convert_weights.py R-50.pkl -o weights/msra_r50.pdparams
"""
FORMATS = (
    *("mmdet", "fcos", "adelaidet", "torchvision", "paddledet"),
    *("detectron", "torchvision-backbone", "paddleclas", "paddleclas-vd", "paddledet-backbone", "dla"),
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.plain_parser(DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add("source", metavar="SOURCE", type=Path, help="the checkpoint of the other project")
    add(
        "-o",
        "--output",
        metavar="OUT.pdparams",
        type=Path,
        required=True,
        help="the weights to write; their configuration is written beside them, as OUT.yml",
    )
    add(
        "--from",
        dest="format_name",
        choices=FORMATS,
        help="the project (default: recognized by the names of the weights)",
    )
    add(
        "--recipe",
        metavar="NAME",
        help="which of the project's models it is (default: by a configuration in the file, or its name)",
    )
    add(
        "--allow",
        nargs="+",
        default=[],
        metavar="NAME",
        help="missing or unexpected weights that are no error; * matches any part of a name",
    )
    add("--list", action="store_true", help="print every weight and its source")
    return parser


def convert_weights(options: argparse.Namespace) -> None:
    """Convert as the command line says."""
    environment.configure_process()
    with environment.quiet_imports():
        from ppfcos.convert.convert import convert
    target = options.output
    target = target if target.suffix == ".pdparams" else target.with_name(target.name + ".pdparams")
    done = convert(options.source, target, options.format_name, options.recipe, options.allow)
    if options.list:
        for ours, theirs in done.translation.sources.items():
            logger.info("%s <- %s", ours, theirs)
    _report(done, target)


def _report(done: Conversion, target: Path) -> None:
    translation, recipe = done.translation, done.settings
    logger.info("%s, %s: %s", done.format.project, done.recipe, recipe.description)
    logger.info("%d weights converted", len(translation.weights))
    for reason in sorted(set(translation.ignored.values())):
        names = [name for name, why in translation.ignored.items() if why == reason]
        logger.info("%d ignored, %s: %s", len(names), reason, _some(names))
    if done.allowed:
        logger.info("%d missing or unexpected, as allowed: %s", len(done.allowed), _some(done.allowed))
    for note in done.notes:
        logger.info("%s", note)
    logger.info("backbone: %s", translation.backbone.description)
    for name, section in recipe.sections(translation.backbone).items():
        logger.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in section.items()))
    logger.info("images are padded to multiples of %d", recipe.pad_to_stride)
    if recipe.bgr:
        logger.info("the first convolution is converted from BGR to RGB")
    logger.info("weights written to %s", target)
    train = command.command_line("train", "-c", done.config, "--eval")
    if done.format.backbone_only:
        logger.info("train with: %s", train)
    else:
        logger.info("evaluate with: %s", command.command_line("eval", "-c", done.config))
        logger.info("fine-tune with: %s (for images of your own, set the data sets in it)", train)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


main = functools.partial(command.run, convert_weights, build_parser)
