"""ONNX Runtime's QDQ quantization, applied to the part of an FCOS network that gains by it.

Weights are int8 with a scale per output channel and no zero point; activations are uint8 with a scale and a
zero point per tensor. CPUs with VNNI or AMX multiply this pair in one instruction, in ONNX Runtime and
OpenVINO.

`quantize_static` calibrates in every call; the search for sensitive layers quantizes dozens of times, so its
two steps, `create_calibrator` and `QDQQuantizer`, are called separately.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppfcos.deploy.onnx_files import read_onnx
from ppfcos.environment import MissingLibraryError
from ppfcos.errors import BundleError, DataError, one_line
from ppfcos.export.onnx_graph import is_conv, values_after, values_before

try:
    import onnx
    import onnxruntime
    from onnx import GraphProto, ModelProto
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QDQQuantizer,
        QuantType,
        create_calibrator,
        quant_pre_process,
    )
    from onnxruntime.quantization.calibrate import TensorsData as Ranges
except ImportError as error:
    raise MissingLibraryError(
        f"quantization needs ONNX Runtime ({error}); pip install -r requirements/onnx.txt"
    ) from error

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
MIN_OPSET = 13  # the first whose DequantizeLinear takes a scale per channel
# They only pass integers on, or are done by saturating the integers before them.
FOLLOWING = ("Relu", "Clip", "MaxPool", "Resize")
QUANTIZED_OPERATORS = ("Conv", "Add", *FOLLOWING)
ONNX_DOMAINS = ("", "ai.onnx")
DEFAULT_LOG_LEVEL, ERRORS_ONLY = 2, 3  # of ONNX Runtime


@dataclass(frozen=True)
class QuantizableLayer:
    """Nodes that are quantized, or left in float, together.

    Attributes:
        name: name of the weights, or of the node if there are none.
        kind: such as `Conv 256→4 3×3`.
        nodes: names of the nodes: a convolution of the head has one per level.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]


class FloatNetwork:
    """A float32 ONNX network, with batch norms folded into convolutions, and its quantizable layers.

    Args:
        path: the ONNX file.

    Raises:
        BundleError: it is not an ONNX file, its opset is too old, or it has no convolution to quantize.
    """

    def __init__(self, path: Path):
        _check(path)
        self.model = _prepare(path)
        nodes = self.model.graph.node
        self.inputs = tuple(each.name for each in self.model.graph.input)
        self._before_convs = values_before(nodes)
        after_convs = values_after(nodes)
        between = {
            node.name
            for node in nodes
            if after_convs.intersection(node.input) and self._before_convs.intersection(node.output)
        }
        self.layers = _layers(self.model.graph, between)
        self._following = [node.name for node in nodes if node.op_type in FOLLOWING and node.name in between]
        if not self.layers:
            raise BundleError(f"{path}: it has no convolution with constant weights to quantize")

    def predictors(self) -> tuple[QuantizableLayer, ...]:
        """The last convolutions, which output class logits, distances and quality logits."""
        last = {
            node.name
            for node in self.model.graph.node
            if is_conv(node) and not self._before_convs.intersection(node.output)
        }
        return tuple(layer for layer in self.layers if last.intersection(layer.nodes))

    def calibrate(
        self, batches: Iterable[Mapping[str, np.ndarray]], method: str, percentile: float
    ) -> Ranges:
        """Find the ranges of the activations, with one batch in memory at a time.

        Raises:
            DataError: there are no batches.
            BundleError: a batch lacks an input, or cannot be run.
        """
        with tempfile.TemporaryDirectory() as folder, _silenced():
            file = Path(folder) / "float.onnx"
            onnx.save(self.model, file)
            calibrator = create_calibrator(
                file,
                QUANTIZED_OPERATORS,
                augmented_model_path=str(Path(folder) / "calibrated.onnx"),
                calibrate_method=METHODS[method],
                extra_options={"percentile": percentile},
            )
            number = -1
            # One by one: ONNX Runtime keeps all activations of one call.
            for number, batch in enumerate(batches):
                inputs = self.pick_inputs(batch)
                try:
                    calibrator.collect_data(_OneBatch(inputs))
                except Exception as error:  # ONNX Runtime's errors have no common base
                    raise BundleError(f"calibration batch {number}: {one_line(error)}") from error
            if number < 0:
                raise DataError("there are no images to calibrate with; name a folder or a list of images")
            return calibrator.compute_data()

    def pick_inputs(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inputs of this network from a batch; a `BundleError` if one is missing."""
        missing = [name for name in self.inputs if name not in batch]
        if missing:
            raise BundleError(f"the network takes {missing[0]}, which the calibration batches do not have")
        return {name: batch[name] for name in self.inputs}

    def quantized(self, ranges: Ranges, float_layers: Iterable[str] = ()) -> ModelProto:
        """The network in INT8, except for the layers of these names."""
        model = copy.deepcopy(self.model)
        in_float = set(float_layers)
        nodes = [node for layer in self.layers if layer.name not in in_float for node in layer.nodes]
        if not nodes:  # ONNX Runtime would take an empty list for all nodes
            return model
        with _silenced():
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=False,  # only CPUs without VNNI need 7 bits
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=copy.deepcopy(ranges),  # it is modified
                nodes_to_quantize=nodes + self._following,
                nodes_to_exclude=[],
                op_types_to_quantize=list(QUANTIZED_OPERATORS),
                extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        return quantizer.model.model


def known_ranges(limits: Mapping[str, tuple[float, float]]) -> Ranges:
    """Ranges for `FloatNetwork.quantized` from (min, max) by activation."""
    arrays = {name: tuple(np.float32(value) for value in pair) for name, pair in limits.items()}
    return Ranges(CalibrationMethod.MinMax, arrays)


def run_model(model: ModelProto, batches: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The outputs of a network for every batch, by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    output_names = [each.name for each in session.get_outputs()]
    return [dict(zip(output_names, session.run(output_names, dict(batch)))) for batch in batches]


class _OneBatch(CalibrationDataReader):
    """A single batch for ONNX Runtime's calibrators."""

    def __init__(self, batch: dict[str, np.ndarray]):
        self._batches = iter([batch])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The batch, then None."""
        return next(self._batches, None)


def _check(path: Path) -> None:
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(str(path))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: there is no such file; export the network to ONNX first") from error
    except Exception as error:  # of protobuf or the checker
        raise BundleError(f"{path}: not a valid ONNX file ({one_line(error)})") from error
    read_onnx(path)  # refuses external data, which the optimizer would read
    opset = max(each.version for each in model.opset_import if each.domain in ONNX_DOMAINS)
    if opset < MIN_OPSET:
        raise BundleError(
            f"{path}: opset {opset} has no scales per channel; export with opset {MIN_OPSET} or later"
        )


def _prepare(path: Path) -> ModelProto:
    """Fold batch norms and constants, infer types, and name all nodes."""
    with tempfile.TemporaryDirectory() as folder, _silenced():
        target = Path(folder) / "prepared.onnx"
        try:
            # Symbolic shapes are for transformers, and fail for an unknown number of boxes.
            quant_pre_process(str(path), str(target), skip_symbolic_shape=True)
        except Exception as error:  # errors of ONNX Runtime's optimizer have no common base
            raise BundleError(f"{path}: ONNX Runtime cannot prepare it ({one_line(error)})") from error
        model = onnx.load(target)
    # The optimizer lists all domains that it knows, ONNX's own twice.
    used = {"" if node.domain in ONNX_DOMAINS else node.domain for node in model.graph.node}
    versions = {each.domain: each.version for each in model.opset_import if each.domain in used}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*each) for each in versions.items())
    node_names = {node.name for node in model.graph.node}
    if len(node_names) < len(model.graph.node) or "" in node_names:  # names are optional in ONNX
        for node in model.graph.node:
            node.name = f"{node.op_type}.{node.output[0]}"
    _copy_shared_biases(model.graph)
    return model


def _copy_shared_biases(graph: GraphProto) -> None:
    """Give every convolution a bias of its own: its scale is that of the input times that of the weights.

    ONNX Runtime below 1.20 takes the first level's scale for all levels of a shared head.
    """
    biases = {each.name: each for each in graph.initializer}
    seen = set()
    for node in graph.node:
        if not is_conv(node) or len(node.input) < 3 or node.input[2] not in biases:
            continue
        if node.input[2] in seen:
            copied = graph.initializer.add()
            copied.CopyFrom(biases[node.input[2]])
            copied.name = node.input[2] = f"{copied.name}.{node.name}"
        seen.add(node.input[2])


def _layers(graph: GraphProto, between: set[str]) -> tuple[QuantizableLayer, ...]:
    """Convolutions, grouped by weights, and additions of two maps between convolutions.

    After the last convolutions, additions compute boxes and scores, for which INT8 is too coarse.
    """
    weights = {each.name: tuple(each.dims) for each in graph.initializer}
    kinds: dict[str, str] = {}
    nodes: dict[str, list[str]] = {}
    for node in graph.node:
        if is_conv(node) and node.input[1] in weights:
            name = node.input[1]
            channels, in_channels, *kernel = weights[name]
            kinds[name] = f"Conv {in_channels}→{channels} {'×'.join(map(str, kernel))}"
        elif node.op_type == "Add" and node.name in between and not weights.keys() & set(node.input):
            name = node.name
            kinds[name] = "Add of two maps"
        else:
            continue
        nodes.setdefault(name, []).append(node.name)
    return tuple(QuantizableLayer(name, kinds[name], tuple(nodes[name])) for name in nodes)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Suppress what ONNX Runtime's tools print, and the warnings of their sessions."""
    onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(DEFAULT_LOG_LEVEL)
