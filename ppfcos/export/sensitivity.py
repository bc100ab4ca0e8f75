"""Which layers of a network suffer from eight bits, judged by what they do to its boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import ModelProto

from ppfcos import console
from ppfcos.boxes import box_areas, distance_areas
from ppfcos.deploy.bundle import BBOX, BBOX_NUM, DISTANCES, HEAD_OUTPUTS
from ppfcos.deploy.detections import Detections, split_batch
from ppfcos.export.quantizer import ERRORS_ONLY, FloatNetwork, Layer, Ranges

CANDIDATES = 300  # of a batch, where heads are compared
NO_AREA = 1e-6


@dataclass(frozen=True)
class Effect:
    """What one layer in INT8, all others in float, does to the boxes.

    Attributes:
        layer: the layer.
        disagreement: with the float network, from 0 to 1.
    """

    layer: Layer
    disagreement: float


@dataclass(frozen=True)
class Choice:
    """The outcome of a search.

    Attributes:
        model: the quantised network.
        float_layers: what was left in float, the most sensitive first.
        effects: of the layers, the most sensitive first; empty where INT8 throughout was good enough.
        before: disagreement of INT8 throughout.
        after: disagreement of `model`.
    """

    model: ModelProto
    float_layers: tuple[Layer, ...]
    effects: tuple[Effect, ...]
    before: float
    after: float


class Reference:
    """What the float network says to some batches.

    Args:
        network: the float network.
        batches: network inputs.
    """

    def __init__(self, network: FloatNetwork, batches: Sequence[Mapping[str, np.ndarray]]):
        self._batches = [network.pick_inputs(batch) for batch in batches]
        self._expected = _run(network.model, self._batches)

    def disagreement(self, model: ModelProto) -> float:
        """How far a network's answers are from the float network's: 0 the same, 1 nothing in common."""
        return float(np.mean([*map(_disagreement, self._expected, _run(model, self._batches))]))


def choose_float_layers(
    network: FloatNetwork,
    ranges: Ranges,
    reference: Reference,
    target: float,
    candidates: Sequence[Layer],
    most: int,
) -> Choice:
    """Leave as few layers in float as the target takes.

    Every candidate is quantised alone, which tells its effect; then the number of the worst that must stay in
    float is found by bisection.

    Args:
        network: the float network.
        ranges: of its activations.
        reference: what it says.
        target: the disagreement that is good enough.
        candidates: layers that may stay in float.
        most: how many of them at the most.

    Returns:
        The quantised network; the nearest to the target where it is out of reach.
    """
    throughout = network.quantized(ranges)
    before = reference.disagreement(throughout)
    if before <= target or not candidates or most < 1:
        return Choice(throughout, (), (), before, before)
    effects = _ranked(network, ranges, reference, candidates)
    layers = [effect.layer for effect in effects][:most]
    fails, enough = 0, len(layers)
    model, after = _with_float(network, ranges, reference, layers)
    if after > target and after >= before:  # float where it does not help costs time only
        return Choice(throughout, (), effects, before, before)
    while after <= target and enough - fails > 1:
        middle = (fails + enough) // 2
        tried, disagreement = _with_float(network, ranges, reference, layers[:middle])
        if disagreement <= target:
            enough, model, after = middle, tried, disagreement
        else:
            fails = middle
    return Choice(model, tuple(layers[:enough]), effects, before, after)


def _ranked(
    network: FloatNetwork, ranges: Ranges, reference: Reference, candidates: Sequence[Layer]
) -> tuple[Effect, ...]:
    effects = []
    with console.bar("looking for sensitive layers", len(candidates)) as bar:
        for layer in candidates:
            others = {each.name for each in network.layers} - {layer.name}
            effects.append(Effect(layer, reference.disagreement(network.quantized(ranges, others))))
            bar.advance()
    return tuple(sorted(effects, key=lambda effect: -effect.disagreement))


def _with_float(
    network: FloatNetwork, ranges: Ranges, reference: Reference, layers: Sequence[Layer]
) -> tuple[ModelProto, float]:
    model = network.quantized(ranges, [layer.name for layer in layers])
    return model, reference.disagreement(model)


def _run(model: ModelProto, batches: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The outputs for every batch, by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(batch)))) for batch in batches]


def _disagreement(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Of two networks' outputs for a batch, boxes or heads."""
    if BBOX not in expected:
        return _heads_disagreement(_Answers(expected), _Answers(found))
    pairs = zip(
        split_batch(expected[BBOX], expected[BBOX_NUM], ()), split_batch(found[BBOX], found[BBOX_NUM], ())
    )
    return float(np.mean([(_lost(ones, others) + _lost(others, ones)) / 2 for ones, others in pairs]))


def _lost(ones: Detections, others: Detections) -> float:
    """The share of `ones`, by score, that `others` lack, or have in another place or with another score."""
    if not len(ones):
        return 0.0
    if not len(others):
        return 1.0
    found = _overlaps(ones.boxes, others.boxes) * (ones.labels[:, None] == others.labels)
    found *= 1 - np.abs(ones.scores[:, None] - others.scores)
    return float(np.average(1 - found.max(axis=1), weights=ones.scores))


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of boxes [N, 4] with others [M, 4]: [N, M]."""
    corners = np.maximum(boxes[:, None, :2], others[:, :2])
    sides = np.clip(np.minimum(boxes[:, None, 2:], others[:, 2:]) - corners, 0, None)
    shared = sides[..., 0] * sides[..., 1]
    return _ratio(shared, box_areas(boxes)[:, None] + box_areas(others))


def _ratio(shared: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """IoU, of the areas shared and the sums of both areas; 1 for two boxes without any area."""
    return (shared + NO_AREA) / (areas - shared + NO_AREA)


class _Answers:
    """The head's answers of all levels in rows, a location each.

    Attributes:
        classes: [P, C] scores.
        distances: [P, 4].
        qualities: [P] scores.
    """

    def __init__(self, outputs: Mapping[str, np.ndarray]):
        levels = [name[len(DISTANCES) :] for name in outputs if name.startswith(DISTANCES)]
        parts = [_location_rows(*(outputs[kind + level] for kind in HEAD_OUTPUTS)) for level in levels]
        class_logits, self.distances, quality_logits = (np.concatenate(rows) for rows in zip(*parts))
        self.classes = _sigmoid(class_logits)
        self.qualities = _sigmoid(quality_logits[:, 0])


def _location_rows(class_logits: np.ndarray, distances: np.ndarray, quality_logits: np.ndarray) -> tuple:
    """Each as [B·H_l·W_l, K]. The axis of the channels, 1 or 3, is where distances and quality differ."""
    axis = next(i for i in (1, 3) if distances.shape[i] != quality_logits.shape[i])
    return tuple(
        np.moveaxis(each, axis, -1).reshape(-1, each.shape[axis])
        for each in (class_logits, distances, quality_logits)
    )


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _heads_disagreement(expected: _Answers, found: _Answers) -> float:
    """Of the answers at the locations that become boxes, by score."""
    scores = expected.classes.max(axis=1) * expected.qualities
    rows = np.argsort(-scores, kind="stable")[:CANDIDATES]
    labels = expected.classes[rows].argmax(axis=1)
    changes = np.abs(scores[rows] - found.classes[rows, labels] * found.qualities[rows])
    ones, others = expected.distances[rows], found.distances[rows]
    shared = distance_areas(np.minimum(ones, others))
    overlaps = _ratio(shared, distance_areas(ones) + distance_areas(others))
    return float(np.average(1 - overlaps * (1 - changes), weights=scores[rows]))
