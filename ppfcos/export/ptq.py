"""Post-training quantisation: an ONNX network in float32 into one in INT8."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ppfcos.errors import ConfigError, hint
from ppfcos.export.quantizer import METHODS, FloatNetwork, Layer
from ppfcos.export.sensitivity import Choice, Effect, Reference, choose_float_layers
from ppfcos.fileio import replacing

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True)
class QuantizationSettings:
    """How a network is quantised.

    Args:
        method: how the range of an activation is found: `minmax` takes all values that were seen,
            `percentile` leaves out the rarest, `entropy` loses the least information.
        percentile: for that method: so many per cent of the values are inside.
        compared: the batches, the first of those for calibration, on which INT8 is compared with float.
        disagreement: that is good enough: the share of the boxes, by score, that are somewhere else or have
            another score.
        most_float: the largest share of the layers that may be left in float for it.

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
            raise ConfigError(
                f"the calibration method {self.method} is not known{hint(self.method, METHODS)}"
            )
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"a percentile of {self.percentile} is not possible; take 99.9 to 100")
        if self.compared < 1:
            raise ConfigError(
                f"INT8 cannot be compared with float on {self.compared} batches; take 1 or more"
            )
        if not self.disagreement >= 0:
            raise ConfigError(f"disagreement is a share of the boxes, from 0 on, not {self.disagreement}")
        if not 0 <= self.most_float <= 1:
            raise ConfigError(f"most_float is a share of the layers, from 0 to 1, not {self.most_float}")


@dataclass(frozen=True)
class QuantizationReport:
    """What became of a network.

    Attributes:
        batches: used for calibration.
        layers: of the network.
        float_layers: those left in float, the most sensitive first.
        effects: what each layer does to the boxes, the most sensitive first; empty where INT8 throughout was
            good enough.
        before: disagreement with the float network of INT8 throughout.
        after: disagreement of what was written.
        float_bytes: size of the float file.
        bytes: size of the file written.
    """

    batches: int
    layers: tuple[Layer, ...]
    float_layers: tuple[Layer, ...]
    effects: tuple[Effect, ...]
    before: float
    after: float
    float_bytes: int
    bytes: int

    def table(self, longest: int = 12, names: Mapping[str, str] | None = None) -> str:
        """The most sensitive layers in Markdown.

        Args:
            longest: rows at the most; the layers left in float are all there.
            names: what to call layers, by the names that they have in the ONNX file, such as a Paddle model's
                `{weight.name: name for name, weight in model.named_parameters()}`.

        Returns:
            Lines; none where no layer was looked at.
        """
        if not self.effects:
            return ""
        lines = ["| layer | | disagreement of this one in INT8 | |", "|---|---|---|---|"]
        for effect in self.effects[: max(longest, len(self.float_layers))]:
            layer = effect.layer
            left = "float" if layer in self.float_layers else ""
            name = (names or {}).get(layer.name, layer.name)
            lines.append(f"| {name} | {layer.kind} | {effect.disagreement:.4f} | {left} |")
        return "\n".join(lines)


def quantize(
    float_model: Path,
    target: Path,
    batches: Iterable[Mapping[str, np.ndarray]],
    settings: QuantizationSettings | None = None,
) -> QuantizationReport:
    """Write a network in INT8.

    Args:
        float_model: an ONNX file with boxes (bbox, bbox_num) or heads (class_logits_8 and so on) as outputs.
        target: the file to write.
        batches: network inputs of the images to calibrate with.
        settings: None: the standard ones.

    Returns:
        What was done.

    Raises:
        BundleError: the file is not a network that can be quantised, or a batch is not what it takes.
        DataError: there are no batches.
        OutputError: the target cannot be written.
    """
    network = FloatNetwork(float_model)
    choice, count = quantized(network, batches, settings or QuantizationSettings(), network.layers)
    with replacing(target) as unfinished:
        unfinished.write_bytes(choice.model.SerializeToString())
    return report(network, choice, count, float_model, target)


def quantized(
    network: FloatNetwork,
    batches: Iterable[Mapping[str, np.ndarray]],
    settings: QuantizationSettings,
    candidates: Sequence[Layer],
) -> tuple[Choice, int]:
    """Calibrate, and decide on the layers that stay in float.

    Args:
        network: the float network.
        batches: network inputs.
        settings: how.
        candidates: layers that may stay in float.

    Returns:
        The quantised network, and the number of batches.

    Raises:
        BundleError: a batch is not what the network takes.
        DataError: there are no batches.
    """
    compared: list[Mapping[str, np.ndarray]] = []
    seen = 0

    def watched() -> Iterator[Mapping[str, np.ndarray]]:
        nonlocal seen
        for seen, batch in enumerate(batches, start=1):
            if seen <= settings.compared:
                compared.append(batch)
            yield batch

    ranges = network.calibrate(watched(), settings.method, settings.percentile)
    most = int(settings.most_float * len(network.layers))
    choice = choose_float_layers(
        network, ranges, Reference(network, compared), settings.disagreement, candidates, most
    )
    if choice.after > settings.disagreement:
        logger.warning(
            "%.3f of the boxes, by score, differ from float, more than the %.3f that was asked for; "
            "calibrate on more images, by another method, or leave more layers in float",
            choice.after,
            settings.disagreement,
        )
    return choice, seen


def report(
    network: FloatNetwork, choice: Choice, batches: int, float_model: Path, target: Path
) -> QuantizationReport:
    """Put together what was done, and say it in the log."""
    logger.info(
        "INT8: %d of %d layers, calibrated on %d batches; %.3f of the boxes, by score, differ from float",
        len(network.layers) - len(choice.float_layers),
        len(network.layers),
        batches,
        choice.after,
    )
    return QuantizationReport(
        batches,
        network.layers,
        choice.float_layers,
        choice.effects,
        choice.before,
        choice.after,
        float_model.stat().st_size,
        target.stat().st_size,
    )


def evenly_chosen(items: Sequence[Item], count: int) -> list[Item]:
    """Some of a list, evenly spread over it, such as images to calibrate with.

    Args:
        items: all of them.
        count: how many.

    Returns:
        All of them where there are not more.

    Raises:
        ConfigError: the count is not positive.
    """
    if count < 1:
        raise ConfigError(f"{count} images are too few to calibrate with; take 32 or more")
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
