"""A bundle's network in INT8, calibrated on pictures that are prepared as the bundle says."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from paddle import nn

from ppfcos.deploy import bundle as names
from ppfcos.deploy.images import read_image
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.errors import ConfigError
from ppfcos.export.integer_heads import quantize_heads
from ppfcos.export.ptq import QuantizationReport, QuantizationSettings, quantize

logger = logging.getLogger(__name__)

WEIGHT = ".weight"


@dataclass(frozen=True)
class Calibration:
    """How a network becomes INT8.

    Attributes:
        images: the files to calibrate with.
        settings: of the quantisation.
        integer_outputs: whether the head's answers are integers, with a scale for each channel.

    Raises:
        ConfigError: there are no images.
    """

    images: Sequence[str]
    settings: QuantizationSettings = field(default_factory=QuantizationSettings)
    integer_outputs: bool = False

    def __post_init__(self) -> None:
        if not self.images:
            raise ConfigError(
                "INT8 needs pictures to calibrate with; name some with --calibration_images FOLDER"
            )


@dataclass(frozen=True)
class Int8Network:
    """What there is to say of a network in INT8.

    Attributes:
        summary: plain strings, numbers and lists, for the manifest.
        scales: of integer outputs, by their name: what each channel is multiplied by.
    """

    summary: dict[str, Any]
    scales: dict[str, list[float]]


def write_int8(
    network: ModelProto, model: nn.Layer, target: Path, preprocess: Preprocess, calibration: Calibration
) -> Int8Network:
    """Quantise a network, and write it.

    Args:
        network: in float32.
        model: that it was made of; it knows what the layers are called.
        target: the ONNX file.
        preprocess: of the bundle.
        calibration: how.

    Returns:
        What was done.

    Raises:
        BundleError: the network cannot be quantised, or has no integers to give.
        DataError: a picture cannot be read.
    """
    scales: dict[str, list[float]] = {}
    batches = calibration_batches(preprocess, calibration.images)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / names.onnx_file("fp32")
        onnx.save(network, source)
        if calibration.integer_outputs:
            report, scales = quantize_heads(source, target, batches, calibration.settings)
        else:
            report = quantize(source, target, batches, calibration.settings)
    layer_names = {name: name.removesuffix(WEIGHT) for name, _ in model.named_parameters()}
    if report.effects:
        logger.info("layers that suffer from INT8:\n%s", report.table(names=layer_names))
    return Int8Network(_summary(report, calibration, layer_names), scales)


def calibration_batches(preprocess: Preprocess, images: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Pictures one by one, or as many at once as the network takes.

    Args:
        preprocess: of the bundle.
        images: files; at least one.

    Yields:
        Batches. The last one is filled up with the first pictures, for black ones would count as seen.

    Raises:
        DataError: a picture cannot be read.
    """
    count = preprocess.form.batch or 1
    for start in range(0, len(images), count):
        group = (images[i % len(images)] for i in range(start, start + count))
        yield preprocess([read_image(path) for path in group])


def _summary(
    report: QuantizationReport, calibration: Calibration, layer_names: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "method": calibration.settings.method,
        "images": len(calibration.images),
        "layers": len(report.layers),
        "layers_in_float": [layer_names.get(layer.name, layer.name) for layer in report.float_layers],
        "disagreement": round(report.after, 4),
    }
