"""Post-training quantization: calibration, and the choice of layers that stay in float."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx
from onnx import ModelProto
from paddle import nn

from ppfcos import console
from ppfcos.boxes import distance_areas, pairwise_iou
from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import BBOX, BBOX_NUM, DISTANCES, HEAD_OUTPUTS
from ppfcos.deploy.detections import Detections, split_batch
from ppfcos.deploy.images import read_image
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.errors import ConfigError, hint
from ppfcos.export.integer_heads import with_integer_outputs
from ppfcos.export.quantizer import METHODS, FloatNetwork, QuantizableLayer, Ranges, run_model
from ppfcos.fileio import replacing

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
TOP_POINTS = 300  # of a batch, by score, at which the outputs of heads are compared
MAX_ROWS = 12  # of the table of layers


@dataclass(frozen=True)
class QuantizationSettings:
    """Settings of the quantization.

    Args:
        method: how the range of an activation is found: `minmax` takes all values, `percentile` excludes the
            rarest, `entropy` loses the least information.
        percentile: percentage of the values inside the range, for that method.
        compared: the number of (first) calibration batches on which INT8 is compared with float.
        disagreement: acceptable fraction of the boxes, by score, that move or change their score.
        most_float: maximum fraction of the layers that stay in float to achieve that.

    Raises:
        ConfigError: a value is out of its range.
    """

    method: str = "minmax"
    percentile: float = 99.99
    compared: int = 4
    disagreement: float = 0.06
    most_float: float = 0.25

    def __post_init__(self):
        if self.method not in METHODS:
            raise ConfigError(f"the calibration method {self.method} is unknown{hint(self.method, METHODS)}")
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile must be above 50 and at most 100, not {self.percentile}")
        if self.compared < 1:
            raise ConfigError(f"compared must be at least 1 batch, not {self.compared}")
        if not self.disagreement >= 0:
            raise ConfigError(f"disagreement must be a fraction from 0, not {self.disagreement}")
        if not 0 <= self.most_float <= 1:
            raise ConfigError(f"most_float must be a fraction from 0 to 1, not {self.most_float}")


@dataclass(frozen=True)
class Calibration:
    """Post-training quantization with image files; with `integer_outputs` the heads output integers."""

    images: Sequence[str]
    settings: QuantizationSettings = field(default_factory=QuantizationSettings)
    integer_outputs: bool = False

    def __post_init__(self) -> None:
        if not self.images:
            raise ConfigError(
                "INT8 needs images to calibrate with; name some with --calibration_images FOLDER"
            )


class Int8Network(NamedTuple):
    """Keys of an INT8 network in the manifest; by integer output, the scales of its channels."""

    summary: dict[str, Any]
    scales: dict[str, list[float]]


class LayerEffect(NamedTuple):
    """The disagreement with the float network, from 0 to 1, if this layer alone is in INT8."""

    layer: QuantizableLayer
    disagreement: float


@dataclass(frozen=True)
class QuantizationReport:
    """The result of a quantization.

    Attributes:
        batches: number of calibration batches.
        layers: all quantizable layers.
        float_layers: those left in float, the most sensitive first.
        effects: of single layers, the most sensitive first; empty if INT8 throughout is good enough.
        before: disagreement of INT8 throughout with the float network.
        after: disagreement of the result.
        scales: of integer outputs, by output: the factor of each channel.
        float_bytes, bytes: sizes of the float and the INT8 file.
    """

    batches: int
    layers: tuple[QuantizableLayer, ...]
    float_layers: tuple[QuantizableLayer, ...]
    effects: tuple[LayerEffect, ...]
    before: float
    after: float
    scales: dict[str, list[float]]
    float_bytes: int
    bytes: int

    def table(self, names: Mapping[str, str] | None = None) -> str:
        """The most sensitive layers, and all that stay in float, as a Markdown table; empty without effects.

        `names` are better names of layers, by their names in the ONNX file.
        """
        if not self.effects:
            return ""
        lines = ["| layer | | disagreement of this one in INT8 | |", "|---|---|---|---|"]
        for layer, disagreement in self.effects[: max(MAX_ROWS, len(self.float_layers))]:
            precision = "float" if layer in self.float_layers else ""
            name = (names or {}).get(layer.name, layer.name)
            lines.append(f"| {name} | {layer.kind} | {disagreement:.4f} | {precision} |")
        return "\n".join(lines)


def write_int8(
    network: ModelProto, model: nn.Layer, target: Path, preprocess: Preprocess, calibration: Calibration
) -> Int8Network:
    """Quantize the float32 network of a bundle that was exported from `model`, which names the layers.

    Raises:
        BundleError: the network cannot be quantized, or cannot output integers.
        DataError: an image cannot be read.
    """
    batches = calibration_batches(preprocess, calibration.images)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / names.onnx_file("fp32")
        onnx.save(network, source)
        report = quantize(source, target, batches, calibration.settings, calibration.integer_outputs)
    layer_names = {name: name.removesuffix(".weight") for name, _ in model.named_parameters()}
    if report.effects:
        logger.info("layers that are sensitive to INT8:\n%s", report.table(names=layer_names))
    summary = {
        "method": calibration.settings.method,
        "images": len(calibration.images),
        "layers": len(report.layers),
        "layers_in_float": [layer_names.get(layer.name, layer.name) for layer in report.float_layers],
        "disagreement": round(report.after, 4),
    }
    return Int8Network(summary, report.scales)


def calibration_batches(preprocess: Preprocess, images: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one image, or of the network's fixed size; the last one is filled with the first images."""
    count = preprocess.input_spec.batch or 1
    for start in range(0, len(images), count):
        group = (images[i % len(images)] for i in range(start, start + count))
        yield preprocess([read_image(path) for path in group])


def evenly_chosen(items: Sequence[Item], count: int) -> list[Item]:
    """`count` evenly spaced items of a list, or all if there are fewer."""
    if count < 1:
        raise ConfigError(f"{count} images are too few to calibrate with; use 32 or more")
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def quantize(
    float_model: Path,
    target: Path,
    batches: Iterable[Mapping[str, np.ndarray]],
    settings: QuantizationSettings | None = None,
    integer_outputs: bool = False,
) -> QuantizationReport:
    """Quantize an ONNX file to INT8.

    Args:
        float_model: a file with the outputs of an end-to-end network or of the heads.
        target: the file to write.
        batches: network inputs of the calibration images.
        settings: None: the defaults.
        integer_outputs: the heads output int32; the layers that make them are always quantized.

    Raises:
        BundleError: the network cannot be quantized or cannot output integers, or a batch is not its input.
        DataError: there are no batches.
        OutputError: the target cannot be written.
    """
    settings = settings or QuantizationSettings()
    network = FloatNetwork(float_model)
    candidates = network.layers
    if integer_outputs:
        predictors = network.predictors()
        candidates = tuple(layer for layer in candidates if layer not in predictors)
    compared: list[Mapping[str, np.ndarray]] = []
    count = 0

    def keep_first() -> Iterator[Mapping[str, np.ndarray]]:
        nonlocal count
        for count, batch in enumerate(batches, start=1):
            if count <= settings.compared:
                compared.append(batch)
            yield batch

    ranges = network.calibrate(keep_first(), settings.method, settings.percentile)
    choice = _choose_float_layers(network, ranges, _Reference(network, compared), settings, candidates)
    if choice.after > settings.disagreement:
        logger.warning(
            "%.3f of the boxes, by score, differ from float, more than the requested %.3f; calibrate on more "
            "images or by another method, or leave more layers in float",
            choice.after,
            settings.disagreement,
        )
    model, scales = with_integer_outputs(choice.model) if integer_outputs else (choice.model, {})
    with replacing(target) as unfinished:
        unfinished.write_bytes(model.SerializeToString())
    logger.info(
        "INT8: %d of %d layers, calibrated on %d batches; %.3f of the boxes, by score, differ from float",
        len(network.layers) - len(choice.float_layers),
        len(network.layers),
        count,
        choice.after,
    )
    sizes = float_model.stat().st_size, target.stat().st_size
    _, float_layers, effects, before, after = choice
    return QuantizationReport(count, network.layers, float_layers, effects, before, after, scales, *sizes)


class _Choice(NamedTuple):
    """Fields as of `QuantizationReport`."""

    model: ModelProto
    float_layers: tuple[QuantizableLayer, ...]
    effects: tuple[LayerEffect, ...]
    before: float
    after: float


class _Reference:
    """Outputs of the float network for some batches."""

    def __init__(self, network: FloatNetwork, batches: Sequence[Mapping[str, np.ndarray]]):
        self._batches = [network.pick_inputs(batch) for batch in batches]
        self._expected = run_model(network.model, self._batches)

    def disagreement(self, model: ModelProto) -> float:
        """How much the outputs of a network differ: from 0, equal, to 1, nothing in common."""
        return float(np.mean([*map(_disagreement, self._expected, run_model(model, self._batches))]))


def _choose_float_layers(
    network: FloatNetwork,
    ranges: Ranges,
    reference: _Reference,
    settings: QuantizationSettings,
    candidates: Sequence[QuantizableLayer],
) -> _Choice:
    """Leave as few layers in float as the acceptable disagreement allows.

    Each candidate is quantized alone, which tells its effect; then the number of the most sensitive layers
    that stay in float is found by bisection. If the disagreement cannot be reached, the result is the best
    one.
    """
    int8 = network.quantized(ranges)
    target, before = settings.disagreement, reference.disagreement(int8)
    limit = int(settings.most_float * len(network.layers))
    if before <= target or not candidates or limit < 1:
        return _Choice(int8, (), (), before, before)

    all_names = {layer.name for layer in network.layers}
    effects = []
    with console.bar("looking for sensitive layers", len(candidates)) as bar:
        for layer in candidates:
            alone = network.quantized(ranges, all_names - {layer.name})
            effects.append(LayerEffect(layer, reference.disagreement(alone)))
            bar.advance()
    effects = tuple(sorted(effects, key=lambda effect: -effect.disagreement))
    layers = tuple(effect.layer for effect in effects)[:limit]

    def with_float(count: int) -> tuple[ModelProto, float]:
        model = network.quantized(ranges, [layer.name for layer in layers[:count]])
        return model, reference.disagreement(model)

    too_few, enough = 0, len(layers)
    model, after = with_float(enough)
    if after > target and after >= before:  # float layers that do not help only cost time
        return _Choice(int8, (), effects, before, before)
    while after <= target and enough - too_few > 1:
        middle = (too_few + enough) // 2
        tried, disagreement = with_float(middle)
        if disagreement <= target:
            enough, model, after = middle, tried, disagreement
        else:
            too_few = middle
    return _Choice(model, layers[:enough], effects, before, after)


def _disagreement(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Of two networks' outputs for a batch, boxes or heads."""
    if BBOX not in expected:
        return _heads_disagreement(_flatten_heads(expected), _flatten_heads(found))
    images = zip(*(split_batch(each[BBOX], each[BBOX_NUM], ()) for each in (expected, found)))
    return float(
        np.mean([(_unmatched(ones, others) + _unmatched(others, ones)) / 2 for ones, others in images])
    )


def _unmatched(boxes: Detections, others: Detections) -> float:
    """The fraction of the boxes, by score, that `others` lack, or have elsewhere or with another score."""
    if not len(boxes):
        return 0.0
    if not len(others):
        return 1.0
    similarity = pairwise_iou(boxes.boxes, others.boxes) * (boxes.labels[:, None] == others.labels)
    similarity *= 1 - np.abs(boxes.scores[:, None] - others.scores)
    return float(np.average(1 - similarity.max(axis=1), weights=boxes.scores))


class _FlatHeads(NamedTuple):
    """Outputs of the head at all points: class scores [P, C], distances [P, 4], quality scores [P]."""

    classes: np.ndarray
    distances: np.ndarray
    qualities: np.ndarray


def _flatten_heads(outputs: Mapping[str, np.ndarray]) -> _FlatHeads:
    levels = [name[len(DISTANCES) :] for name in outputs if name.startswith(DISTANCES)]
    parts = [_flatten_level(*(outputs[kind + level] for kind in HEAD_OUTPUTS)) for level in levels]
    class_logits, distances, quality_logits = (np.concatenate(rows) for rows in zip(*parts))
    return _FlatHeads(_sigmoid(class_logits), distances, _sigmoid(quality_logits[:, 0]))


def _flatten_level(class_logits: np.ndarray, distances: np.ndarray, quality_logits: np.ndarray) -> tuple:
    """Each as [B·H_l·W_l, K]. The channel axis, 1 or 3, is where distances and quality differ."""
    axis = next(i for i in (1, 3) if distances.shape[i] != quality_logits.shape[i])
    return tuple(
        np.moveaxis(each, axis, -1).reshape(-1, each.shape[axis])
        for each in (class_logits, distances, quality_logits)
    )


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _heads_disagreement(expected: _FlatHeads, found: _FlatHeads) -> float:
    """Of the outputs at the points of the highest scores, weighted by score."""
    scores = expected.classes.max(axis=1) * expected.qualities
    rows = np.argsort(-scores, kind="stable")[:TOP_POINTS]
    labels = expected.classes[rows].argmax(axis=1)
    changes = np.abs(scores[rows] - found.classes[rows, labels] * found.qualities[rows])
    ones, others = expected.distances[rows], found.distances[rows]
    intersections = distance_areas(np.minimum(ones, others))
    unions = distance_areas(ones) + distance_areas(others) - intersections
    ious = (intersections + 1e-6) / (unions + 1e-6)  # 1 for two empty boxes
    return float(np.average(1 - ious * (1 - changes), weights=scores[rows]))
