"""`tools/export_model.py`: a trained model into a bundle that runs by itself."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from ppfcos import environment
from ppfcos.cli import calibration, command
from ppfcos.deploy import bundle as names
from ppfcos.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ppfcos.export.bundle import Wanted

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Export a trained model for deployment: a folder with the Paddle program and the ONNX model, bundle.yml, "
    "which says what they want, and an infer_cfg.yml in PaddleDetection's form. Every network is run three "
    "times beside the model first; if their boxes differ, nothing is written."
)
EXAMPLE = """
    python tools/export_model.py -c configs/fcos_r50_fpn_1x_coco.yml \\
        -o weights=output/fcos_r50_fpn_1x_coco/best_model.pdparams
    python tools/infer.py --bundle output_inference/fcos_r50_fpn_1x_coco --infer_img photo.jpg
    python tools/export_model.py -c configs/fcos_r50_fpn_1x_coco.yml -o weights=best_model.pdparams \\
        --kind heads --layout nhwc --input nv12 --fixed_size 512,896 --batch 1 --formats onnx
    python tools/export_model.py -c configs/fcos_r50_fpn_1x_coco.yml -o weights=best_model.pdparams \\
        --precision fp32,int8 --calibration_images pictures
"""
PICTURES = 4  # what the checks' batches of 1, 2 and 1 hold
EXPORTED_PRECISIONS = ("fp32", "fp16", calibration.INT8)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.option_parser(DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add(
        "--output_dir",
        default="output_inference",
        metavar="FOLDER",
        help="the bundle becomes FOLDER/<name of the configuration> (default: %(default)s)",
    )
    add(
        "--formats",
        type=_list_of(names.FORMATS),
        metavar="LIST",
        help="paddle, onnx, or both with a comma between them (default: both, or paddle alone where ONNX's "
        "packages are not installed or the model has deformable convolutions)",
    )
    add(
        "--precision",
        type=_list_of(EXPORTED_PRECISIONS),
        metavar="LIST",
        help="of the ONNX model: fp32, fp16, int8, or several with commas between them (default: fp32, and "
        "int8 after a quantisation-aware training); runtimes compute in bf16 with the fp32 network",
    )
    add("--opset", type=int, default=17, help="version of ONNX's operators (default: %(default)s)")
    add(
        "--kind",
        choices=names.KINDS,
        default=names.END_TO_END,
        help="what the network gives: boxes, or the head's answers by level for tool chains of boards",
    )
    add("--layout", choices=names.LAYOUTS, default=names.NCHW, help="of the head's answers")
    add(
        "--distances",
        choices=names.DISTANCE_UNITS,
        default=names.PIXELS,
        help="what the head's distances are counted in",
    )
    command.add_switch(
        parser, "--image_only", "no second input says where padding begins: pictures must fill the image"
    )
    add(
        "--input",
        choices=names.INPUT_TYPES,
        default=names.FLOAT32,
        help="what the image is (default: float32)",
    )
    add("--channels", choices=names.CHANNEL_ORDERS, default=names.RGB, help="order of the image's channels")
    add("--fixed_size", type=_size, metavar="H,W", help="of the image in pixels (default: any)")
    add("--batch", type=int, metavar="N", help="images at once, a fixed number (default: any)")
    add(
        "--check_images",
        metavar="FOLDER",
        help="pictures to check the networks with (default: EvalDataset's; noise where it is not there)",
    )
    calibration.add_options(parser)
    return parser


def _list_of(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """What reads a list such as `paddle,onnx`."""

    def read(text: str) -> tuple[str, ...]:
        values = tuple(dict.fromkeys(text.split(",")))
        for value in values:
            if value not in choices:
                raise argparse.ArgumentTypeError(f"{value!r} is none of {', '.join(choices)}")
        return values

    return read


def _size(text: str) -> tuple[int, int]:
    height, comma, width = text.partition(",")
    if not (comma and height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a height and a width, such as 800,1344")
    return int(height), int(width)


def export_model(options: argparse.Namespace) -> None:
    """Export what the command line names.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: what is wrong with the configuration, the weights, the options or the output folder.
    """
    with environment.quiet_imports():
        import paddle

        from ppfcos.config import load_config
        from ppfcos.engine.checkpoint import saved_class_names
        from ppfcos.export.bundle import export_bundle, goes_to_onnx
        from ppfcos.export.checkpoint import model_categories, trained_model
    cfg = load_config(options.config, options.opt)
    paddle.set_device("cpu")  # the bundle runs anywhere; the check of its boxes is exact on a CPU only
    wanted = _wanted(options, cfg)
    categories = model_categories(cfg, saved_class_names(cfg.get("weights")))
    class_names, ids = [each["name"] for each in categories], [each["id"] for each in categories]
    folder = Path(options.output_dir) / cfg["filename"]
    model = trained_model(cfg)
    if options.formats is None and wanted.precisions == ("fp32",) and not goes_to_onnx(model):
        logger.info("no ONNX model is made: runtimes of ONNX do not run deformable convolutions")
        wanted = dataclasses.replace(wanted, formats=(names.PADDLE,))
    export_bundle(model, cfg, class_names, folder, ids, wanted)
    logger.info("run it with: python tools/infer.py --bundle %s --infer_img IMAGE", folder)


def _wanted(options: argparse.Namespace, cfg: Mapping[str, Any]) -> Wanted:
    from ppfcos.export.bundle import Wanted, onnx_is_installed
    from ppfcos.export.inputs import network_input
    from ppfcos.export.program import HeadsForm

    formats = options.formats
    if formats is None and options.integer_outputs:
        formats = (names.ONNX,)
    if formats is None:
        formats = names.FORMATS if onnx_is_installed() else (names.PADDLE,)
        if formats == (names.PADDLE,):
            logger.info(
                "no ONNX model is made, its packages are missing: `pip install -r requirements/onnx.txt`"
            )
    heads = None
    if options.kind == names.HEADS:
        heads = HeadsForm(options.layout, options.distances, bool(options.image_only))
    elif (options.layout, options.distances, options.image_only) != (names.NCHW, names.PIXELS, None):
        raise ConfigError(
            "--layout, --distances and --image_only are for --kind heads; add it or leave them out"
        )
    if options.precision is None:
        trained = cfg.get("quantization_aware_training") is not None and names.ONNX in formats
        options.precision = ("fp32", calibration.INT8) if trained else ("fp32",)
    int8 = calibration.calibration(options, cfg)
    # A network in INT8 is true on pictures like those that it was calibrated with, and not on noise.
    pictures = _pictures(options.check_images, cfg) or list(getattr(int8, "images", ()))[:PICTURES]
    return Wanted(
        heads=heads,
        form=network_input(options.input, options.channels, options.batch, options.fixed_size),
        formats=formats,
        precisions=options.precision,
        opset=options.opset,
        pictures=pictures,
        calibration=int8,
    )


def _pictures(folder: str | None, cfg: Mapping[str, Any]) -> list[str]:
    """Files to check the networks with: of the folder, else of EvalDataset where that is there."""
    from ppfcos.data.datasets import build_dataset, categories_of
    from ppfcos.data.images import list_images

    if folder is not None:
        found = list_images(Path(folder))
        if not found:
            raise DataError(f"--check_images {folder}: holds no pictures; name a folder that does")
        return found[:PICTURES]
    if categories_of(cfg, "EvalDataset") is None:
        return []
    files = [str(record["im_file"]) for record in build_dataset(cfg, "EvalDataset").records[:PICTURES]]
    return [file for file in files if Path(file).is_file()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(export_model, build_parser(), argv)
