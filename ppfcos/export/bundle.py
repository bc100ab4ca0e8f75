"""A trained model into a bundle: networks, and what a deployment needs to know of them."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import paddle
import yaml
from paddle.vision.ops import DeformConv2D

from ppfcos.deploy import Predictor
from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import NetworkInput
from ppfcos.deploy.images import read_image
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.errors import BundleError, ConfigError, OutputError
from ppfcos.export.bundle_files import files_of, infer_config, manifest
from ppfcos.export.program import network_input
from ppfcos.export.parity import (
    TOLERANCES,
    PixelsFirst,
    Remembering,
    compare,
    filled,
    noise_batches,
    picture_batches,
)
from ppfcos.export.program import (
    VERSIONS_THAT_CAN,
    EndToEndNetwork,
    HeadsSpec,
    HeadsNetwork,
    check_paddle,
    save_program,
)
from ppfcos.export.trained_model import CheckpointRuntime
from ppfcos.fileio import replace_folder
from ppfcos.modeling.fuse import fuse_batch_norms
from ppfcos.modeling.qat import float_copy, clipped_copy, get_ranges

if TYPE_CHECKING:  # without the packages for ONNX it cannot be imported
    from onnx import ModelProto

    from ppfcos.export.ptq import Calibration, Int8Network
    from ppfcos.export.qat_export import TrainedRanges

logger = logging.getLogger(__name__)

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxslim", "paddle2onnx")
DEFAULT_OPSET = 17
RUNTIMES = {names.PADDLE: "paddle", names.ONNX: "onnxruntime"}
FP32, FP16, INT8 = "fp32", "fp16", "int8"
INT8_CURE = (
    "calibrate with pictures that are more like those to come (--calibration_images), "
    "or leave more layers in float (--most_float)"
)


@dataclass(frozen=True)
class ExportOptions:
    """What an export shall make.

    Attributes:
        heads: how the network gives the head's answers; None: it gives boxes.
        form: of the network's input.
        formats: `paddle`, `onnx`, or both.
        precisions: of the ONNX model: `fp32`, and `fp16` and `int8` beside it. Paddle's program is in fp32.
        opset: version of ONNX's operators.
        pictures: files with which the networks are checked; without any it is done with noise.
        calibration: how `int8` is made, by pictures or by the ranges of a quantisation-aware training; None
            where there is no such network.

    Raises:
        ConfigError: the parts contradict one another.
    """

    heads: HeadsSpec | None = None
    form: NetworkInput = field(default_factory=network_input)
    formats: Sequence[str] = (names.PADDLE,)
    precisions: Sequence[str] = (FP32,)
    opset: int = DEFAULT_OPSET
    pictures: Sequence[str] = ()
    calibration: Calibration | TrainedRanges | None = None

    def __post_init__(self) -> None:
        if self.precisions != (FP32,) and names.ONNX not in self.formats:
            raise ConfigError(
                f"--precision {','.join(self.precisions)} is for ONNX: add onnx to --formats, or leave it out"
            )
        if (INT8 in self.precisions) != (self.calibration is not None):
            raise ConfigError("--precision int8 and a calibration go together: give both, or neither")
        if self.has_integer_outputs and (
            self.heads is None or tuple(self.formats) != (names.ONNX,) or tuple(self.precisions) != (INT8,)
        ):
            raise ConfigError(
                "--integer_outputs makes a bundle of one network, whose scales are the bundle's: "
                "it goes with --kind heads --formats onnx --precision int8"
            )

    @property
    def has_integer_outputs(self) -> bool:
        """Whether the head's answers are integers."""
        return self.calibration is not None and self.calibration.integer_outputs


def export_bundle(
    model: paddle.nn.Layer,
    cfg: Mapping[str, Any],
    class_names: Sequence[str],
    directory: str | os.PathLike,
    category_ids: Sequence[int] | None = None,
    wanted: ExportOptions | None = None,
) -> Path:
    """Write a bundle, after having run its networks beside the model.

    Args:
        model: a PPFCOS with its weights; it is left in the state, training or evaluation, that it came in.
        cfg: the configuration that it was built from.
        class_names: the name of every class, in the order of the labels.
        directory: the bundle's folder. A bundle that is there is replaced by the complete and checked one.
        category_ids: the number of every class in its data set; None numbers them from 0.
        wanted: what is made; None: Paddle's program, end to end.

    Returns:
        The folder.

    Raises:
        BundleError: this Paddle cannot export the model, ONNX cannot hold it, it has no ranges for INT8, or
            an exported network's boxes are not the model's.
        ConfigError: the TestReader holds a transform that a bundle cannot carry.
        DataError: a picture to check the networks with cannot be read.
        OutputError: the folder cannot be written, or holds files that are not a bundle's.
    """
    check_paddle()
    wanted = wanted or ExportOptions()
    _check_ranges(model, wanted)
    if names.ONNX in wanted.formats and not goes_to_onnx(model):
        raise BundleError(
            "the model has deformable convolutions, which no runtime here runs in ONNX: "
            "export it with --formats paddle and --precision fp32"
        )
    description = infer_config(cfg, class_names, category_ids)
    target = Path(directory)
    _check_target(target)
    with replace_folder(target) as unfinished, _evaluating(model):
        preprocess = Preprocess(description["Preprocess"], wanted.form)
        plain = model if get_ranges(model) is None else float_copy(model)
        folded = _Network(fuse_batch_norms(plain), model)
        networks, scales = _write_networks(folded, wanted, preprocess, unfinished)
        if _paddledetection_can_run(wanted):
            _write_yaml(unfinished / names.CONFIG_FILE, description)
        says = manifest(model, cfg, description, wanted.form, wanted.heads, networks, scales)
        _write_yaml(unfinished / names.MANIFEST_FILE, {**says, "files": files_of(unfinished)})
        _check_answers(_Network(plain, model), wanted, preprocess, unfinished)
    logger.info("exported to %s", target)
    return target


def goes_to_onnx(model: paddle.nn.Layer) -> bool:
    """Whether a model has an ONNX form that runtimes run: one without deformable convolutions."""
    return not any(isinstance(layer, DeformConv2D) for layer in model.sublayers())


def onnx_is_installed() -> bool:
    """Whether the packages are there that an ONNX model is made and checked with."""
    return all(importlib.util.find_spec(package) is not None for package in ONNX_PACKAGES)


def _check_ranges(model: paddle.nn.Layer, wanted: ExportOptions) -> None:
    """Refuse INT8 by trained ranges where there are none."""
    if INT8 not in wanted.precisions:
        return
    from ppfcos.export.qat_export import TrainedRanges

    ranges = get_ranges(model)
    trained = ranges is not None and ranges.is_initialized()
    if isinstance(wanted.calibration, TrainedRanges) and not trained:
        raise BundleError(
            "the network has no trained ranges for INT8: train it with quantization_aware_training first, or "
            "calibrate it with -o quantization_aware_training=null"
        )


def _check_target(target: Path) -> None:
    """Refuse a target that is not a bundle, for it would be replaced as a whole."""
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(
            f"{target}: a file of this name is in the way of the bundle's folder; choose another folder"
        )
    strangers = sorted(path.name for path in target.iterdir() if path.name not in names.FILES)
    if strangers:
        raise OutputError(
            f"{target}: holds {', '.join(strangers[:3])}, which is not part of a bundle and would be lost; "
            "move it away or choose another folder"
        )


@contextlib.contextmanager
def _evaluating(model: paddle.nn.Layer) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _paddledetection_can_run(wanted: ExportOptions) -> bool:
    """Whether `infer_cfg.yml` would be true: PaddleDetection's script feeds floats and wants boxes."""
    form = wanted.form
    usual = form.type == names.FLOAT32 and form.channels == names.RGB
    return usual and wanted.heads is None and names.PADDLE in wanted.formats


class _Network(NamedTuple):
    """A model as the networks in float have it, and as it was trained: with eight bits, it may be."""

    plain: paddle.nn.Layer
    trained: paddle.nn.Layer


def _write_networks(
    model: _Network, wanted: ExportOptions, preprocess: Preprocess, folder: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """Make all networks; their files by format and precision, and the scales of integer outputs."""
    networks: dict[str, dict[str, Any]] = {}
    scales: dict[str, list[float]] = {}
    if names.PADDLE in wanted.formats:
        network = (
            EndToEndNetwork(model.plain, wanted.form)
            if wanted.heads is None
            else HeadsNetwork(model.plain, wanted.form, wanted.heads)
        )
        save_program(network, folder / names.MODEL_PREFIX)
        networks[names.PADDLE] = {FP32: {"program": names.PROGRAM_FILE, "weights": names.WEIGHTS_FILE}}
    if names.ONNX in wanted.formats:
        networks[names.ONNX], scales = _write_onnx(model, wanted, preprocess, folder)
    return networks, scales


def _write_onnx(
    model: _Network, wanted: ExportOptions, preprocess: Preprocess, folder: Path
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    if not onnx_is_installed():
        raise BundleError(
            f"ONNX needs the packages {', '.join(ONNX_PACKAGES)}: `pip install -r requirements/onnx.txt`, "
            "or export with --formats paddle"
        )
    import onnx

    from ppfcos.export.fp16 import convert_to_fp16

    network = _onnx_network(model.plain, wanted)
    makers = {FP32: lambda network: network, FP16: convert_to_fp16}
    files: dict[str, Any] = {}
    scales: dict[str, list[float]] = {}
    for precision in wanted.precisions:
        file = names.onnx_file(precision)
        files[precision] = {"file": file, "opset": wanted.opset}
        if precision in makers:
            onnx.save(makers[precision](network), folder / file)
            continue
        quantised = _write_int8(network, model, wanted, preprocess, folder / file)
        files[precision] |= quantised.summary
        scales = quantised.scales
    return files, scales


def _onnx_network(model: paddle.nn.Layer, wanted: ExportOptions) -> ModelProto:
    from ppfcos.export.onnx_export import end_to_end_model, heads_model

    if wanted.heads is None:
        return end_to_end_model(model, wanted.form, wanted.opset)
    return heads_model(model, wanted.form, wanted.heads, wanted.opset)


def _write_int8(
    network: ModelProto, model: _Network, wanted: ExportOptions, preprocess: Preprocess, target: Path
) -> Int8Network:
    from ppfcos.export.ptq import write_int8
    from ppfcos.export.qat_export import TrainedRanges, write_trained_int8

    if not isinstance(wanted.calibration, TrainedRanges):
        return write_int8(network, model.plain, target, preprocess, wanted.calibration)
    limits = get_ranges(model.trained).limits.tolist()
    limited = _onnx_network(clipped_copy(model.trained), wanted)
    return write_trained_int8(limited, map(tuple, limits), target, wanted.calibration)


def _check_answers(model: _Network, wanted: ExportOptions, preprocess: Preprocess, folder: Path) -> None:
    """Run every network beside the model: one in INT8 beside the model as it was trained.

    Raises:
        BundleError: they disagree.
    """
    plain = Remembering(PixelsFirst(wanted.form, CheckpointRuntime(model.plain)))
    trained = plain
    if model.trained is not model.plain:
        trained = Remembering(PixelsFirst(wanted.form, CheckpointRuntime(model.trained)))
    batches = list(_check_batches(wanted, preprocess))
    device = "gpu" if "gpu" in paddle.get_device() else "cpu"
    for kind, precisions in names.read_bundle(folder).networks.items():
        for precision in precisions:
            on = device if kind == names.PADDLE else "cpu"
            candidate = Predictor(folder, RUNTIMES[kind], precision, device=on).runtime
            reference = trained if precision == INT8 else plain
            agreement = compare(reference, candidate, batches, TOLERANCES[precision])
            if not agreement.holds:
                raise BundleError(
                    f"the {kind} network in {precision} that Paddle {paddle.__version__} exported disagrees "
                    f"with the model on {agreement.unmatched} of {agreement.boxes} boxes, so no bundle was "
                    f"written; {INT8_CURE if precision == INT8 else VERSIONS_THAT_CAN}"
                )
            logger.info("%s %s gave the model's boxes (%d compared)", kind, precision, agreement.boxes // 2)
    if not wanted.pictures:
        logger.warning(
            "the networks were checked with noise, for there are no pictures of EvalDataset; "
            "--check_images FOLDER checks them with real ones"
        )
    if not agreement.boxes:
        logger.warning(
            "the model finds nothing in the test images, so the exported networks' boxes were not compared"
        )


def _check_batches(wanted: ExportOptions, preprocess: Preprocess) -> Iterator[dict[str, Any]]:
    if wanted.pictures:
        batches = picture_batches(preprocess, [read_image(path) for path in wanted.pictures])
    else:
        batches = noise_batches(wanted.form)
    whole = wanted.heads is not None and wanted.heads.image_only
    for batch in batches:
        yield filled(wanted.form, batch) if whole else batch
