"""`tools/export_model.py`: export a trained model into a bundle for deployment."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppfcos import environment
from ppfcos.cli import command
from ppfcos.deploy import bundle as names
from ppfcos.errors import ConfigError, DataError
from ppfcos.fileio import read_text

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ppfcos.export.bundle import ExportOptions
    from ppfcos.export.ptq import Calibration
    from ppfcos.export.qat_export import TrainedRanges

DESCRIPTION = (
    "Export a trained model for deployment: a folder with the Paddle program, the ONNX model, bundle.yml, "
    "which describes inputs, outputs and post-processing, and an infer_cfg.yml in PaddleDetection's format. "
    "Each network is compared with the model on three batches before anything is written."
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
INT8 = "int8"
EXPORTED_PRECISIONS = ("fp32", "fp16", INT8)
CHECK_IMAGES = 4  # for batches of 1, 2 and 1
CALIBRATION_IMAGES = 64
SECTIONS = ("TrainDataset", "TestDataset")
FOLDER_KEYS = ("dataset_dir", "image_dir", "datasets")
# Options and the settings that they set.
SETTINGS = {"calibration": "method", "disagreement": "disagreement", "most_float": "most_float"}
OF_CALIBRATION = ("calibration_images", "calibration_count", *SETTINGS)


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
        type=command.list_of(command.one_of(names.FORMATS)),
        metavar="LIST",
        help="paddle, onnx or both, separated by a comma (default: both, or paddle alone if the packages of "
        "ONNX are not installed or the model has deformable convolutions)",
    )
    add(
        "--precision",
        type=command.list_of(command.one_of(EXPORTED_PRECISIONS)),
        metavar="LIST",
        help="of the ONNX model: fp32, fp16, int8 or several, separated by commas (default: fp32, and int8 "
        "after quantization-aware training); runtimes compute in bf16 with the fp32 network",
    )
    add("--opset", type=int, default=17, help="ONNX opset (default: %(default)s)")
    add(
        "--kind",
        choices=names.KINDS,
        default=names.END_TO_END,
        help="outputs of the network: boxes, or those of the head by level, for tool chains of boards",
    )
    add("--layout", choices=names.LAYOUTS, default=names.NCHW, help="of the outputs of the head")
    add(
        "--distances",
        choices=names.DISTANCE_UNITS,
        default=names.PIXELS,
        help="unit of the distances of the head",
    )
    command.add_switch(
        parser,
        "--image_only",
        "without the second input, the image size without padding: images must have no padding",
    )
    add(
        "--input",
        choices=names.INPUT_TYPES,
        default=names.FLOAT32,
        help="type of the input image (default: float32)",
    )
    add("--channels", choices=names.CHANNEL_ORDERS, default=names.RGB, help="order of the image's channels")
    add("--fixed_size", type=command.image_size, metavar="H,W", help="size of the input image (default: any)")
    add("--batch", type=int, metavar="N", help="fixed batch size (default: any)")
    add(
        "--check_images",
        metavar="FOLDER",
        help="images that the networks are checked with (default: EvalDataset's, or noise without it)",
    )
    add(
        "--calibration_images",
        metavar="FOLDER|LIST",
        help="for int8: images like those of the application, in a folder or listed in a text file, one per "
        "line (default: TrainDataset's, else TestDataset's)",
    )
    add(
        "--calibration_count",
        type=int,
        metavar="N",
        help=f"for int8: number of images, evenly chosen (default: {CALIBRATION_IMAGES})",
    )
    add(
        "--calibration",
        metavar="METHOD",
        help="for int8: minmax, percentile or entropy, the method of the ranges (default: minmax)",
    )
    add(
        "--disagreement",
        type=float,
        metavar="X",
        help="for int8: fraction of the boxes, by score, that may differ from float before layers stay in "
        "float (default: 0.06)",
    )
    add(
        "--most_float",
        type=float,
        metavar="X",
        help="for int8: largest fraction of the layers that may stay in float (default: 0.25)",
    )
    command.add_switch(
        parser,
        "--integer_outputs",
        "for int8 and --kind heads: the outputs are integers, and bundle.yml has their scales",
    )
    return parser


def calibration(options: argparse.Namespace, cfg: Mapping[str, Any]) -> Calibration | TrainedRanges | None:
    """How the INT8 network is quantized; None if none is exported.

    Raises:
        ConfigError: an option has an impossible value, or no effect in this export.
        DataError: there are no calibration images.
    """
    given = [name for name in (*OF_CALIBRATION, "integer_outputs") if getattr(options, name) is not None]
    if INT8 not in options.precision:
        if given:
            raise ConfigError(f"--{given[0]} is for --precision int8: add it, or remove --{given[0]}")
        return None
    if cfg.get("quantization_aware_training") is not None:
        return _trained_ranges(options)
    from ppfcos.export.ptq import Calibration, QuantizationSettings, evenly_chosen

    values = {name: getattr(options, option) for option, name in SETTINGS.items()}
    settings = QuantizationSettings(**{name: value for name, value in values.items() if value is not None})
    if options.calibration_images is None:
        files = _images_of_datasets(cfg)
    else:
        files = _named_images(Path(options.calibration_images))
    count = CALIBRATION_IMAGES if options.calibration_count is None else options.calibration_count
    return Calibration(evenly_chosen(files, count), settings, bool(options.integer_outputs))


def _trained_ranges(options: argparse.Namespace) -> TrainedRanges:
    from ppfcos.export.qat_export import TrainedRanges

    for name in OF_CALIBRATION:
        if getattr(options, name) is not None:
            raise ConfigError(
                f"--{name} is for networks trained in float, and the ranges of this one are trained: remove "
                f"--{name}, or calibrate with -o quantization_aware_training=null"
            )
    return TrainedRanges(bool(options.integer_outputs))


def _named_images(path: Path) -> list[str]:
    """The images in a folder, or in a list, relative to the folder of the list."""
    from ppfcos.data.images import list_images

    if path.is_dir():
        files = list_images(path)
    else:
        try:
            lines = (line.strip() for line in read_text(path).splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"--calibration_images {path}: cannot be read ({getattr(error, 'strerror', None) or error}); "
                "name a folder of images, or a text file with one path per line"
            ) from error
        files = [str(path.parent / line) for line in lines if line]
        for file in files:
            if not Path(file).is_file():
                raise DataError(f"--calibration_images {path}: {file} does not exist; correct the list")
    if not files:
        raise DataError(f"--calibration_images {path}: contains no images; name another folder or list")
    return files


def _images_of_datasets(cfg: Mapping[str, Any]) -> list[str]:
    """The images of the first data set that exists."""
    from ppfcos.data.datasets import build_dataset

    reason = "the configuration has no data set"
    for section in SECTIONS:
        if not any((cfg.get(section) or {}).get(key) for key in FOLDER_KEYS):
            continue
        try:
            return [str(record["im_file"]) for record in build_dataset(cfg, section).records]
        except DataError as error:
            reason = str(error)
    raise DataError(
        f"there are no images to calibrate INT8 with ({reason}): name a folder or a list with "
        "--calibration_images"
    )


def export_model(options: argparse.Namespace) -> None:
    """Export as the command line says."""
    environment.configure_process()
    with environment.quiet_imports():
        import paddle

        from ppfcos.config import load_config
        from ppfcos.engine.checkpoint import saved_class_names
        from ppfcos.export.bundle import export_bundle, goes_to_onnx
        from ppfcos.export.trained_model import model_categories, trained_model
    cfg = load_config(options.config, options.opt)
    paddle.set_device("cpu")  # where the check of the boxes is exact
    wanted = _wanted(options, cfg)
    categories = model_categories(cfg, saved_class_names(cfg.get("weights")))
    class_names, ids = [each["name"] for each in categories], [each["id"] for each in categories]
    folder = Path(options.output_dir) / cfg["filename"]
    model = trained_model(cfg)
    if options.formats is None and wanted.precisions == ("fp32",) and not goes_to_onnx(model):
        logger.info("no ONNX model is exported: its runtimes have no deformable convolution")
        wanted = dataclasses.replace(wanted, formats=(names.PADDLE,))
    export_bundle(model, cfg, class_names, folder, ids, wanted)
    logger.info("run it with: python tools/infer.py --bundle %s --infer_img IMAGE", folder)


def _wanted(options: argparse.Namespace, cfg: Mapping[str, Any]) -> ExportOptions:
    from ppfcos.export.bundle import ExportOptions, onnx_is_installed
    from ppfcos.export.program import HeadsSpec, network_input

    formats = options.formats
    if formats is None and options.integer_outputs:
        formats = (names.ONNX,)
    if formats is None:
        formats = names.FORMATS if onnx_is_installed() else (names.PADDLE,)
        if formats == (names.PADDLE,):
            logger.info(
                "no ONNX model is exported, its packages are missing: `pip install -r requirements/onnx.txt`"
            )
    heads = None
    if options.kind == names.HEADS:
        heads = HeadsSpec(options.layout, options.distances, bool(options.image_only))
    elif (options.layout, options.distances, options.image_only) != (names.NCHW, names.PIXELS, None):
        raise ConfigError(
            "--layout, --distances and --image_only are for --kind heads: add it, or remove them"
        )
    if options.precision is None:
        trained = cfg.get("quantization_aware_training") is not None and names.ONNX in formats
        options.precision = ("fp32", INT8) if trained else ("fp32",)
    int8 = calibration(options, cfg)
    # An INT8 network is accurate on images like those of its calibration, and not on noise.
    images = _check_images(options.check_images, cfg) or list(getattr(int8, "images", ()))[:CHECK_IMAGES]
    return ExportOptions(
        heads=heads,
        input_spec=network_input(options.input, options.channels, options.batch, options.fixed_size),
        formats=formats,
        precisions=options.precision,
        opset=options.opset,
        images=images,
        calibration=int8,
    )


def _check_images(folder: str | None, cfg: Mapping[str, Any]) -> list[str]:
    """Images that the networks are checked with: those of the folder, or of EvalDataset if it exists."""
    from ppfcos.data.datasets import build_dataset, categories_of
    from ppfcos.data.images import list_images

    if folder is not None:
        found = list_images(Path(folder))
        if not found:
            raise DataError(f"--check_images {folder}: contains no images; name another folder")
        return found[:CHECK_IMAGES]
    if categories_of(cfg, "EvalDataset") is None:
        return []
    files = [str(record["im_file"]) for record in build_dataset(cfg, "EvalDataset").records[:CHECK_IMAGES]]
    return [file for file in files if Path(file).is_file()]


main = functools.partial(command.run, export_model, build_parser)
