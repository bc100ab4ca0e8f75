"""`tools/convert_weights.py`: weights of other projects into ours, with the configuration they need."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppfcos import environment
from ppfcos.cli import command

if TYPE_CHECKING:
    from ppfcos.convert.convert import Conversion

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Convert the FCOS weights of MMDetection, the FCOS authors, AdelaiDet, torchvision and PaddleDetection, "
    "and the ImageNet backbones of Detectron, torchvision, PaddleClas, PaddleDetection and DLA's authors. "
    "Beside the weights it writes the configuration under which they give their own project's result. No "
    "code of a checkpoint is run."
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
    """The command line.

    Returns:
        Its parser.
    """
    parser = command.plain_parser(DESCRIPTION, EXAMPLE)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the checkpoint of the other project")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT.pdparams",
        type=Path,
        required=True,
        help="the weights to write; their configuration is written beside them, as OUT.yml",
    )
    parser.add_argument(
        "--from",
        dest="format_name",
        choices=FORMATS,
        help="the project (default: what the names of the weights look like)",
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="which of the project's models it is (default: what the file's name speaks for)",
    )
    parser.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="NAME",
        help="weights, of the file or of the model, that may stay without partner; * stands for any part",
    )
    parser.add_argument("--list", action="store_true", help="print every weight and where it came from")
    return parser


def convert_weights(options: argparse.Namespace) -> None:
    """Convert as the command line says.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: it cannot be done.
    """
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
    translation = done.translation
    recipe = done.format.recipes[done.recipe]
    logger.info("%s, %s: %s", done.format.project, done.recipe, recipe.description)
    logger.info("%d weights matched", len(translation.weights))
    for reason in sorted(set(translation.left_out.values())):
        names = [name for name, why in translation.left_out.items() if why == reason]
        logger.info("%d left out, %s: %s", len(names), reason, _some(names))
    if done.allowed:
        logger.info("%d without partner, as allowed: %s", len(done.allowed), _some(done.allowed))
    logger.info("backbone: %s", translation.backbone.description)
    for name, section in recipe.sections(translation.backbone).items():
        logger.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in section.items()))
    logger.info("images are padded to multiples of %d", recipe.pad_to_stride)
    if recipe.blue_first:
        logger.info("the first convolution was turned from blue, green, red to red, green, blue")
    logger.info("weights written to %s", target)
    if done.format.backbone_only:
        logger.info("train with: %s", command.command_line("train", "-c", done.config))
    else:
        logger.info("evaluate with: %s", command.command_line("eval", "-c", done.config))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(convert_weights, build_parser(), argv)
