"""`tools/export_model.py`: a trained model into a bundle that runs by itself."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from ppfcos import environment
from ppfcos.cli import command
from ppfcos.deploy import bundle as names
from ppfcos.errors import ConfigError, DataError
from ppfcos.fileio import read_text

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ppfcos.export.ptq import Calibration
    from ppfcos.export.qat_export import TrainedRanges

INT8 = "int8"
COUNT = 64
SECTIONS = ("TrainDataset", "TestDataset")
FOLDER_KEYS = ("dataset_dir", "image_dir", "datasets")
# Each option and the name of what it sets.
SETTINGS = {"calibration": "method", "disagreement": "disagreement", "most_float": "most_float"}
OF_CALIBRATION = ("calibration_images", "calibration_count", *SETTINGS)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; those not given are None."""
    add = parser.add_argument
    add(
        "--calibration_images",
        metavar="FOLDER|LIST",
        help="for int8: pictures like those to come, in a folder or named in a text file, one a line "
        "(default: TrainDataset's, else TestDataset's)",
    )
    add(
        "--calibration_count",
        type=int,
        metavar="N",
        help=f"for int8: take so many of them, evenly chosen (default: {COUNT})",
    )
    add(
        "--calibration",
        metavar="METHOD",
        help="for int8: minmax, percentile or entropy, by which the ranges are found (default: minmax)",
    )
    add(
        "--disagreement",
        type=float,
        metavar="X",
        help="for int8: the share of the boxes, by score, that may differ from float before layers are left "
        "in float (default: 0.06)",
    )
    add(
        "--most_float",
        type=float,
        metavar="X",
        help="for int8: the largest share of the layers that may be left in float (default: 0.25)",
    )
    command.add_switch(
        parser,
        "--integer_outputs",
        "for int8 and --kind heads: integers come out, and bundle.yml has their scales",
    )


def calibration(options: argparse.Namespace, cfg: Mapping[str, Any]) -> Calibration | TrainedRanges | None:
    """What the options say. After a quantisation-aware training there is nothing to calibrate.

    Args:
        options: the parsed command line, of which `precision` counts too.
        cfg: the configuration, whose data sets have the pictures where the options name none.

    Returns:
        None where no network in INT8 is wanted.

    Raises:
        ConfigError: an option has an impossible value, or is given without `--precision int8`, or to a
            configuration whose ranges were trained.
        DataError: there are no pictures.
    """
    given = [name for name in (*OF_CALIBRATION, "integer_outputs") if getattr(options, name) is not None]
    if INT8 not in options.precision:
        if given:
            raise ConfigError(f"--{given[0]} is for --precision int8; add it or leave --{given[0]} out")
        return None
    if cfg.get("quantization_aware_training") is not None:
        return _trained_ranges(options)
    from ppfcos.export.ptq import Calibration
    from ppfcos.export.ptq import QuantizationSettings, evenly_chosen

    values = {name: getattr(options, option) for option, name in SETTINGS.items()}
    settings = QuantizationSettings(**{name: value for name, value in values.items() if value is not None})
    if options.calibration_images is None:
        files = _images_of_datasets(cfg)
    else:
        files = _named_images(Path(options.calibration_images))
    count = COUNT if options.calibration_count is None else options.calibration_count
    return Calibration(evenly_chosen(files, count), settings, bool(options.integer_outputs))


def _trained_ranges(options: argparse.Namespace) -> TrainedRanges:
    from ppfcos.export.qat_export import TrainedRanges

    for name in OF_CALIBRATION:
        if getattr(options, name) is not None:
            raise ConfigError(
                f"--{name} is for a network that was trained in float, and this one's ranges were trained "
                f"with it: leave --{name} out, or calibrate anew with -o quantization_aware_training=null"
            )
    return TrainedRanges(bool(options.integer_outputs))


def _named_images(path: Path) -> list[str]:
    """The pictures in a folder, or those that a list names, relative to the list's folder."""
    from ppfcos.data.images import list_images

    if path.is_dir():
        files = list_images(path)
    else:
        try:
            lines = (line.strip() for line in read_text(path).splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"--calibration_images {path}: cannot be read ({getattr(error, 'strerror', None) or error}); "
                "name a folder of pictures, or a text file with the path of a picture on each line"
            ) from error
        files = [str(path.parent / line) for line in lines if line]
        for file in files:
            if not Path(file).is_file():
                raise DataError(
                    f"--calibration_images {path}: names {file}, which is not there; correct the list"
                )
    if not files:
        raise DataError(f"--calibration_images {path}: holds no pictures; name a folder or a list that does")
    return files


def _images_of_datasets(cfg: Mapping[str, Any]) -> list[str]:
    """The pictures of the first data set that is there."""
    from ppfcos.data.datasets import build_dataset

    reason = "the configuration names none"
    for section in SECTIONS:
        if not any((cfg.get(section) or {}).get(key) for key in FOLDER_KEYS):
            continue
        try:
            return [str(record["im_file"]) for record in build_dataset(cfg, section).records]
        except DataError as error:
            reason = str(error)
    raise DataError(
        f"there are no pictures to calibrate INT8 with ({reason}); "
        "name a folder or a list of some with --calibration_images"
    )


if TYPE_CHECKING:
    from ppfcos.export.bundle import ExportOptions


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
EXPORTED_PRECISIONS = ("fp32", "fp16", INT8)


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
    add_options(parser)
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
        from ppfcos.export.trained_model import model_categories, trained_model
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


def _wanted(options: argparse.Namespace, cfg: Mapping[str, Any]) -> ExportOptions:
    from ppfcos.export.bundle import ExportOptions, onnx_is_installed
    from ppfcos.export.program import network_input
    from ppfcos.export.program import HeadsSpec

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
        heads = HeadsSpec(options.layout, options.distances, bool(options.image_only))
    elif (options.layout, options.distances, options.image_only) != (names.NCHW, names.PIXELS, None):
        raise ConfigError(
            "--layout, --distances and --image_only are for --kind heads; add it or leave them out"
        )
    if options.precision is None:
        trained = cfg.get("quantization_aware_training") is not None and names.ONNX in formats
        options.precision = ("fp32", INT8) if trained else ("fp32",)
    int8 = calibration(options, cfg)
    # A network in INT8 is true on pictures like those that it was calibrated with, and not on noise.
    pictures = _pictures(options.check_images, cfg) or list(getattr(int8, "images", ()))[:PICTURES]
    return ExportOptions(
        heads=heads,
        input_spec=network_input(options.input, options.channels, options.batch, options.fixed_size),
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
