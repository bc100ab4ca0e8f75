"""`tools/export_model.py`: a trained model into a bundle that runs by itself."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ppfcos import environment
from ppfcos.cli import command

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Export a trained model for deployment: a folder with the Paddle program (NMS included), its parameters "
    "and an infer_cfg.yml in PaddleDetection's form. The exported program is run beside the model first; if "
    "their boxes differ, nothing is written."
)
EXAMPLE = """
    python tools/export_model.py -c configs/fcos_r50_fpn_1x_coco.yml \\
        -o weights=output/fcos_r50_fpn_1x_coco/best_model.pdparams
    python tools/infer.py --bundle output_inference/fcos_r50_fpn_1x_coco --infer_img photo.jpg
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.option_parser(DESCRIPTION, EXAMPLE)
    parser.add_argument(
        "--output_dir",
        default="output_inference",
        metavar="FOLDER",
        help="the bundle becomes FOLDER/<name of the configuration> (default: %(default)s)",
    )
    return parser


def export_model(options: argparse.Namespace) -> None:
    """Export what the command line names.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: what is wrong with the configuration, the weights or the output folder.
    """
    with environment.quiet_imports():
        import paddle

        from ppfcos.config import load_config
        from ppfcos.engine.checkpoint import saved_class_names
        from ppfcos.export.bundle import export_bundle
        from ppfcos.export.checkpoint import model_categories, trained_model
    cfg = load_config(options.config, options.opt)
    paddle.set_device("cpu")  # the bundle runs anywhere; the check of its boxes is exact on a CPU only
    categories = model_categories(cfg, saved_class_names(cfg.get("weights")))
    names, ids = [each["name"] for each in categories], [each["id"] for each in categories]
    folder = Path(options.output_dir) / cfg["filename"]
    export_bundle(trained_model(cfg), cfg, names, folder, ids)
    logger.info("run it with: python tools/infer.py --bundle %s --infer_img IMAGE", folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(export_model, build_parser(), argv)
