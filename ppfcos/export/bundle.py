"""Export a trained model: Paddle program, ONNX, precisions, parity check, bundle folder."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paddle
import yaml
from paddle.vision.ops import DeformConv2D

from ppfcos.deploy import Predictor
from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import NetworkInput
from ppfcos.deploy.images import read_image
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.errors import BundleError, ConfigError, OutputError
from ppfcos.export.bundle_files import files_of, infer_config, manifest, without_rounding
from ppfcos.export.parity import (
    TOLERANCES,
    CachedRuntime,
    ExportedInputRuntime,
    compare,
    image_batches,
    noise_batches,
    without_padding,
)
from ppfcos.export.program import (
    EndToEndNetwork,
    HeadsNetwork,
    HeadsSpec,
    network_input,
    save_program,
)
from ppfcos.export.trained_model import CheckpointRuntime
from ppfcos.fileio import replace_folder
from ppfcos.modeling.fuse import fuse_batch_norms
from ppfcos.modeling.qat import clipped_copy, float_copy, get_ranges

if TYPE_CHECKING:  # needs the optional packages for ONNX
    from onnx import ModelProto

    from ppfcos.export.ptq import Calibration, Int8Network
    from ppfcos.export.qat_export import TrainedRanges

logger = logging.getLogger(__name__)

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxslim", "paddle2onnx")
DEFAULT_OPSET = 17
RUNTIMES = {names.PADDLE: "paddle", names.ONNX: "onnxruntime"}
FP32, FP16, INT8 = "fp32", "fp16", "int8"
INT8_CURE = (
    "calibrate with images that resemble those in use (--calibration_images), or leave more layers in float "
    "(--most_float)"
)

PARITY_CURE = "export it with another version of Paddle or paddle2onnx (requirements.txt has one that works)"


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        heads: outputs of the head; None: boxes.
        input_spec: the network's `image` input.
        formats: `paddle`, `onnx`, or both.
        precisions: of the ONNX model: `fp32`, `fp16`, `int8`; the Paddle program is in fp32.
        opset: ONNX opset version.
        images: image files for the parity check; noise is used if there are none.
        calibration: by images or by ranges of quantization-aware training; required for `int8` only.

    Raises:
        ConfigError: the options contradict one another.
    """

    heads: HeadsSpec | None = None
    input_spec: NetworkInput = field(default_factory=network_input)
    formats: Sequence[str] = (names.PADDLE,)
    precisions: Sequence[str] = (FP32,)
    opset: int = DEFAULT_OPSET
    images: Sequence[str] = ()
    calibration: Calibration | TrainedRanges | None = None

    def __post_init__(self) -> None:
        if tuple(self.precisions) != (FP32,) and names.ONNX not in self.formats:
            raise ConfigError(
                f"--precision {','.join(self.precisions)} is for ONNX: add onnx to --formats, or leave it out"
            )
        if (INT8 in self.precisions) != (self.calibration is not None):
            raise ConfigError("--precision int8 and a calibration go together: give both, or neither")
        has_integer_outputs = self.calibration is not None and self.calibration.integer_outputs
        is_int8_heads = self.heads is not None and tuple(self.precisions) == (INT8,)
        if has_integer_outputs and not (is_int8_heads and tuple(self.formats) == (names.ONNX,)):
            raise ConfigError(
                "--integer_outputs needs a bundle of one network, since the scales are the bundle's: "
                "use it with --kind heads --formats onnx --precision int8"
            )


def export_bundle(
    model: paddle.nn.Layer,
    cfg: Mapping[str, Any],
    class_names: Sequence[str],
    directory: str | os.PathLike,
    category_ids: Sequence[int] | None = None,
    options: ExportOptions | None = None,
) -> Path:
    """Export a model to a bundle, and check each network against the model before the bundle is written.

    Args:
        model: a PPFCOS with its weights; its training mode is restored.
        cfg: its configuration.
        class_names: by label.
        directory: the bundle's folder. An existing bundle is replaced once the new one is complete.
        category_ids: by label, the category of the data set; None numbers them from 0.
        options: None: an end-to-end Paddle program.

    Returns:
        The folder.

    Raises:
        BundleError: this Paddle cannot export the model, ONNX cannot represent it, it has no ranges for INT8,
            or an exported network outputs other boxes.
        ConfigError: the TestReader has a transform that a bundle cannot have.
        DataError: an image for the parity check cannot be read.
        OutputError: the folder cannot be written, or has files that are not a bundle's.
    """
    options = options or ExportOptions()
    _check_trained_ranges(model, options)
    if names.ONNX in options.formats and not goes_to_onnx(model):
        raise BundleError(
            "the model has deformable convolutions, which the ONNX runtimes do not support: "
            "export it with --formats paddle and --precision fp32"
        )
    description = infer_config(cfg, class_names, category_ids)
    preprocess = Preprocess(description["Preprocess"], options.input_spec)
    target = Path(directory)
    _check_target(target)
    with replace_folder(target) as folder, _evaluation_mode(model):
        float_model = model if get_ranges(model) is None else float_copy(model)
        folded = fuse_batch_norms(float_model)
        networks: dict[str, dict[str, dict[str, Any]]] = {}
        scales: dict[str, list[float]] = {}
        if names.PADDLE in options.formats:
            networks[names.PADDLE] = _write_paddle(folded, options, folder)
        if names.ONNX in options.formats:
            networks[names.ONNX], scales = _write_onnx(folded, model, options, preprocess, folder)
        if _runs_in_paddledetection(options):
            _write_yaml(folder / names.CONFIG_FILE, without_rounding(description))
        content = manifest(model, cfg, description, options.input_spec, options.heads, networks, scales)
        _write_yaml(folder / names.MANIFEST_FILE, {**content, "files": files_of(folder)})
        _check_parity(float_model, model, options, preprocess, folder)
    logger.info("exported to %s", target)
    return target


def goes_to_onnx(model: paddle.nn.Layer) -> bool:
    """Whether the ONNX runtimes can run a model: it has no deformable convolutions."""
    return not any(isinstance(layer, DeformConv2D) for layer in model.sublayers())


def onnx_is_installed() -> bool:
    """Whether the packages for creating and checking ONNX models are installed."""
    return all(importlib.util.find_spec(package) is not None for package in ONNX_PACKAGES)


def _check_trained_ranges(model: paddle.nn.Layer, options: ExportOptions) -> None:
    if INT8 not in options.precisions:
        return
    from ppfcos.export.qat_export import TrainedRanges

    ranges = get_ranges(model)
    is_trained = ranges is not None and ranges.is_initialized()
    if isinstance(options.calibration, TrainedRanges) and not is_trained:
        raise BundleError(
            "the network has no trained ranges for INT8: train it with quantization_aware_training first, or "
            "calibrate it with -o quantization_aware_training=null"
        )


def _check_target(target: Path) -> None:
    """Refuse to replace anything but a bundle."""
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"{target}: a file of this name is in the way of the bundle; choose another folder")
    others = sorted(path.name for path in target.iterdir() if path.name not in names.FILES)
    if others:
        raise OutputError(
            f"{target}: contains {', '.join(others[:3])}, not part of a bundle, which would be lost; "
            "move it away or choose another folder"
        )


@contextlib.contextmanager
def _evaluation_mode(model: paddle.nn.Layer) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _runs_in_paddledetection(options: ExportOptions) -> bool:
    """Whether PaddleDetection's script, which feeds RGB floats and expects boxes, can run the bundle."""
    spec = options.input_spec
    is_float_rgb = spec.type == names.FLOAT32 and spec.channels == names.RGB
    return is_float_rgb and options.heads is None and names.PADDLE in options.formats


def _write_paddle(model: paddle.nn.Layer, options: ExportOptions, folder: Path) -> dict[str, dict[str, str]]:
    """Write the Paddle program, and return its file names by precision and role."""
    if options.heads is None:
        network = EndToEndNetwork(model, options.input_spec)
    else:
        network = HeadsNetwork(model, options.input_spec, options.heads)
    program = save_program(network, folder / names.MODEL_PREFIX)
    return {FP32: {"program": program.name, "weights": names.WEIGHTS_FILE}}


def _write_onnx(
    model: paddle.nn.Layer,
    trained: paddle.nn.Layer,
    options: ExportOptions,
    preprocess: Preprocess,
    folder: Path,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Write the ONNX networks, and return their keys in the manifest and the scales of integer outputs."""
    if not onnx_is_installed():
        raise BundleError(
            f"ONNX needs the packages {', '.join(ONNX_PACKAGES)}: `pip install -r requirements/onnx.txt`, "
            "or export with --formats paddle"
        )
    import onnx

    from ppfcos.export.fp16 import convert_to_fp16

    network = _convert_to_onnx(model, options)
    files: dict[str, Any] = {}
    scales: dict[str, list[float]] = {}
    for precision in options.precisions:
        file = names.onnx_file(precision)
        files[precision] = {"file": file, "opset": options.opset}
        if precision == INT8:
            int8 = _write_int8(network, model, trained, options, preprocess, folder / file)
            files[precision] |= int8.summary
            scales = int8.scales
        else:
            onnx.save(convert_to_fp16(network) if precision == FP16 else network, folder / file)
    return files, scales


def _convert_to_onnx(model: paddle.nn.Layer, options: ExportOptions) -> ModelProto:
    from ppfcos.export.onnx_export import end_to_end_model, heads_model

    if options.heads is None:
        return end_to_end_model(model, options.input_spec, options.opset)
    return heads_model(model, options.input_spec, options.heads, options.opset)


def _write_int8(
    network: ModelProto,
    model: paddle.nn.Layer,
    trained: paddle.nn.Layer,
    options: ExportOptions,
    preprocess: Preprocess,
    target: Path,
) -> Int8Network:
    from ppfcos.export.ptq import write_int8
    from ppfcos.export.qat_export import TrainedRanges, write_trained_int8

    if not isinstance(options.calibration, TrainedRanges):
        return write_int8(network, model, target, preprocess, options.calibration)
    limits = get_ranges(trained).limits.tolist()
    clipped = _convert_to_onnx(clipped_copy(trained), options)
    return write_trained_int8(clipped, map(tuple, limits), target, options.calibration)


def _check_parity(
    float_model: paddle.nn.Layer,
    trained: paddle.nn.Layer,
    options: ExportOptions,
    preprocess: Preprocess,
    folder: Path,
) -> None:
    """Compare each network with the float model, and INT8 with the model as trained, maybe in INT8.

    Raises:
        BundleError: the boxes differ.
    """
    references = {
        id(model): CachedRuntime(ExportedInputRuntime(options.input_spec, CheckpointRuntime(model)))
        for model in (float_model, trained)
    }
    batches = list(_check_batches(options, preprocess))
    device = "gpu" if "gpu" in paddle.get_device() else "cpu"
    for kind, precisions in names.read_bundle(folder).networks.items():
        for precision in precisions:
            on = device if kind == names.PADDLE else "cpu"
            candidate = Predictor(folder, RUNTIMES[kind], precision, device=on).runtime
            reference = references[id(trained if precision == INT8 else float_model)]
            check = compare(reference, candidate, batches, TOLERANCES[precision])
            if not check.holds:
                raise BundleError(
                    f"the {kind} network in {precision} that Paddle {paddle.__version__} exported disagrees "
                    f"with the model on {check.unmatched} of {check.boxes} boxes, so no bundle was "
                    f"written; {INT8_CURE if precision == INT8 else PARITY_CURE}"
                )
            logger.info("%s %s gave the model's boxes (%d compared)", kind, precision, check.boxes // 2)
    if not options.images:
        logger.warning(
            "the networks were checked with noise, since EvalDataset has no images; "
            "use --check_images FOLDER to check them with real ones"
        )
    if not check.boxes:
        logger.warning("the model finds nothing in the test images, so no boxes were compared")


def _check_batches(options: ExportOptions, preprocess: Preprocess) -> Iterator[dict[str, Any]]:
    if options.images:
        batches = image_batches(preprocess, [read_image(path) for path in options.images])
    else:
        batches = noise_batches(options.input_spec)
    is_image_only = options.heads is not None and options.heads.image_only
    for batch in batches:
        yield without_padding(options.input_spec, batch) if is_image_only else batch
