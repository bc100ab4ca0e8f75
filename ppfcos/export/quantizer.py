"""ONNX Runtime's quantisation, applied to the part of an FCOS network that gains by it.

Weights become int8 with a scale per output channel and no zero point; activations uint8 with a scale and a
zero point per tensor. That is the pair that CPUs with VNNI or AMX multiply in one instruction, and that ONNX
Runtime and OpenVINO give them. The file says it by QuantizeLinear and DequantizeLinear (QDQ).
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppfcos.deploy.onnx_files import read_onnx
from ppfcos.environment import MissingLibraryError
from ppfcos.errors import BundleError, DataError, one_line

try:
    import onnx
    import onnxruntime
    from onnx import GraphProto, ModelProto, NodeProto
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData as Ranges
    from onnxruntime.quantization.calibrate import create_calibrator
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ImportError as error:
    raise MissingLibraryError(
        f"quantisation needs ONNX Runtime ({error}); pip install -r requirements/onnx.txt"
    ) from error

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
OLDEST_OPSET = 13  # the first whose DequantizeLinear takes a scale per channel
CONVOLUTION = "Conv"
SUM = "Add"
# They only pass integers on, or are done by the limits of the integers before them.
FOLLOWING = ("Relu", "Clip", "MaxPool", "Resize")
QUANTISED = (CONVOLUTION, SUM, *FOLLOWING)
ONNX_DOMAINS = ("", "ai.onnx")
WARNINGS, ERRORS_ONLY = 2, 3  # ONNX Runtime's log levels; the first is where it begins


@dataclass(frozen=True)
class Layer:
    """What is quantised as one, or left in float as one.

    Attributes:
        name: of the weights, or of the node where there are none.
        kind: such as `Conv 256→4 3×3`.
        nodes: names of its nodes: a convolution of the head has one for every level.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]


class FloatNetwork:
    """A float network, made ready, and its layers.

    Batch norms behind a convolution are folded into it, and so are sums of a convolution and a constant.

    Args:
        path: the ONNX file.

    Raises:
        BundleError: it is not an ONNX file, its opset is too old, or it has no convolution to quantise.
    """

    def __init__(self, path: Path):
        _check(path)
        self.model = _prepared(path)
        self.inputs = tuple(each.name for each in self.model.graph.input)
        self.layers = _layers(self.model.graph)
        between = _between_convolutions(self.model.graph)
        self._following = [
            node.name for node in self.model.graph.node if node.op_type in FOLLOWING and node.name in between
        ]
        if not self.layers:
            raise BundleError(f"{path}: there is no convolution with constant weights in it to quantise")

    def predictors(self) -> tuple[Layer, ...]:
        """The last convolutions, which make the head's answers."""
        convolved = _convolved_values(self.model.graph)
        last = {
            node.name
            for node in self.model.graph.node
            if node.op_type == CONVOLUTION and not convolved.intersection(node.output)
        }
        return tuple(layer for layer in self.layers if last.intersection(layer.nodes))

    def calibrate(
        self, batches: Iterable[Mapping[str, np.ndarray]], method: str, percentile: float
    ) -> Ranges:
        """Find the ranges of the activations.

        Args:
            batches: network inputs; they are run one after another, and not kept.
            method: of `METHODS`.
            percentile: for that method: so many per cent of the values are inside.

        Returns:
            Smallest and largest value of every tensor, for `quantized`.

        Raises:
            DataError: there are no batches.
            BundleError: a batch lacks an input, or cannot be run.
        """
        with tempfile.TemporaryDirectory() as folder, _silence():
            file = Path(folder) / "float.onnx"
            onnx.save(self.model, file)
            calibrator = create_calibrator(
                file,
                QUANTISED,
                augmented_model_path=str(Path(folder) / "calibrated.onnx"),
                calibrate_method=METHODS[method],
                extra_options={"percentile": percentile},
            )
            seen = 0
            # One by one, for ONNX Runtime keeps all activations of what it is given at once.
            for batch in batches:
                inputs = self.pick_inputs(batch)
                try:
                    calibrator.collect_data(_OneBatch(inputs))
                except Exception as error:  # ONNX Runtime's errors have no type in common
                    raise BundleError(f"calibration batch {seen}: {one_line(error)}") from error
                seen += 1
            if not seen:
                raise DataError(
                    "there are no images to calibrate with; name a folder or a list that has some"
                )
            return calibrator.compute_data()

    def pick_inputs(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Take from a batch what this network takes.

        Raises:
            BundleError: the batch lacks an input.
        """
        missing = [name for name in self.inputs if name not in batch]
        if missing:
            raise BundleError(f"the network takes {missing[0]}, which the calibration batches do not hold")
        return {name: batch[name] for name in self.inputs}

    def quantized(self, ranges: Ranges, float_layers: Iterable[str] = ()) -> ModelProto:
        """The network in INT8.

        Args:
            ranges: of `calibrate`.
            float_layers: names of layers that stay as they are.

        Returns:
            A model with the same inputs and outputs.
        """
        model = copy.deepcopy(self.model)
        left = set(float_layers)
        nodes = [node for layer in self.layers if layer.name not in left for node in layer.nodes]
        if not nodes:  # to ONNX Runtime an empty list means every node
            return model
        nodes += self._following
        with _silence():
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=False,  # only CPUs without VNNI need 7 bits
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=copy.deepcopy(ranges),  # it is written to
                nodes_to_quantize=nodes,
                nodes_to_exclude=[],
                op_types_to_quantize=list(QUANTISED),
                extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        return quantizer.model.model


def known_ranges(limits: Mapping[str, tuple[float, float]]) -> Ranges:
    """Ranges that were found elsewhere, for `FloatNetwork.quantized`.

    Args:
        limits: the smallest and the largest value of every activation, by its name.

    Returns:
        The same as ONNX Runtime wants it.
    """
    arrays = {name: tuple(np.float32(value) for value in pair) for name, pair in limits.items()}
    return Ranges(CalibrationMethod.MinMax, arrays)


class _OneBatch(CalibrationDataReader):
    """One batch in the form that ONNX Runtime reads."""

    def __init__(self, batch: dict[str, np.ndarray]):
        self._batches = iter([batch])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The batch, and then nothing."""
        return next(self._batches, None)


def _check(path: Path) -> None:
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(str(path))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: there is no such file; export the network to ONNX first") from error
    except Exception as error:  # of protobuf or of the checker
        raise BundleError(f"{path}: this is not a valid ONNX file ({one_line(error)})") from error
    read_onnx(path)  # refuses data in other files, which the optimizer would follow
    opset = max(each.version for each in model.opset_import if each.domain in ONNX_DOMAINS)
    if opset < OLDEST_OPSET:
        raise BundleError(
            f"{path}: opset {opset} has no weights with a scale per channel; export with opset "
            f"{OLDEST_OPSET} or later"
        )


def _prepared(path: Path) -> ModelProto:
    """Norms folded, constants computed, types of all tensors known."""
    with tempfile.TemporaryDirectory() as folder, _silence():
        target = Path(folder) / "prepared.onnx"
        try:
            # Symbolic shapes are for transformers, and fail where the number of boxes is not known.
            quant_pre_process(str(path), str(target), skip_symbolic_shape=True)
        except Exception as error:  # of ONNX Runtime's optimizer, without a type in common
            raise BundleError(f"{path}: ONNX Runtime cannot prepare it ({one_line(error)})") from error
        model = onnx.load(target)
    _keep_used_domains(model)
    _name_nodes(model.graph)
    return model


def _keep_used_domains(model: ModelProto) -> None:
    """The optimizer lists all domains that it knows, ONNX's own even twice."""
    used = {"" if node.domain in ONNX_DOMAINS else node.domain for node in model.graph.node}
    versions = {each.domain: each.version for each in model.opset_import if each.domain in used}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*each) for each in versions.items())


def _name_nodes(graph: GraphProto) -> None:
    """Nodes are picked by name, which ONNX does not ask for, and every node makes a value of its own."""
    taken = {node.name for node in graph.node}
    if len(taken) < len(graph.node) or "" in taken:
        for node in graph.node:
            node.name = f"{node.op_type}.{node.output[0]}"


def _layers(graph: GraphProto) -> tuple[Layer, ...]:
    """Convolutions, those of the same weights together, and sums of maps that lie between convolutions.

    Sums behind the last convolutions are arithmetic of boxes and scores, where eight bits are not enough.
    """
    weights = {each.name: tuple(each.dims) for each in graph.initializer}
    between = _between_convolutions(graph)
    kinds: dict[str, str] = {}
    nodes: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type == CONVOLUTION and node.input[1] in weights:
            name = node.input[1]
            kinds[name] = _convolution_kind(weights[name])
        elif node.name in between and node.op_type == SUM and not weights.keys() & set(node.input):
            name = node.name
            kinds[name] = "sum of two maps"
        else:
            continue
        nodes.setdefault(name, []).append(node.name)
    return tuple(Layer(name, kinds[name], tuple(nodes[name])) for name in nodes)


def _convolution_kind(shape: Sequence[int]) -> str:
    return f"Conv {shape[1]}→{shape[0]} {'×'.join(map(str, shape[2:]))}"


def _between_convolutions(graph: GraphProto) -> set[str]:
    """Names of the nodes that have convolutions both before and behind them."""
    behind = _reached(graph.node, lambda node: (node.input, node.output))
    ahead = _convolved_values(graph)
    both = (
        node for node in graph.node if behind.intersection(node.input) and ahead.intersection(node.output)
    )
    return {node.name for node in both}


def _convolved_values(graph: GraphProto) -> set[str]:
    """Values from which a path leads to a convolution."""
    return _reached(reversed(graph.node), lambda node: (node.output, node.input))


def _reached(
    nodes: Iterable[NodeProto], ends: Callable[[NodeProto], tuple[Iterable[str], Iterable[str]]]
) -> set[str]:
    """Values that a path from a convolution leads to, when the nodes are walked in this order."""
    reached: set[str] = set()
    for node in nodes:
        sources, targets = ends(node)
        if node.op_type == CONVOLUTION or reached.intersection(sources):
            reached.update(targets)
    return reached


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """ONNX Runtime's tools print what they do, and its sessions in them what they could not simplify."""
    onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(WARNINGS)
