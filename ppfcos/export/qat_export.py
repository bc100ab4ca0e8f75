"""INT8 networks with ranges from quantization-aware training (QAT), without calibration images.

In the float network that is converted, a Clip to its range follows every quantized activation
(ppfcos/modeling/qat): it gives the tensor of the ONNX file that the range belongs to.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, numpy_helper

from ppfcos.deploy import bundle as names
from ppfcos.errors import BundleError, one_line
from ppfcos.export.integer_heads import with_integer_outputs
from ppfcos.export.ptq import Int8Network
from ppfcos.export.quantizer import FloatNetwork, known_ranges
from ppfcos.fileio import replacing

logger = logging.getLogger(__name__)

Range = tuple[float, float]
CURE = "use another --opset, or calibrate: -o quantization_aware_training=null"
RECTIFYING = ("Relu", "Clip")
PASSING = ("MaxPool", "Resize", "Slice", "Pad", "Identity")  # they output their inputs, or zeros


@dataclass(frozen=True)
class TrainedRanges:
    """INT8 with the ranges of QAT; with `integer_outputs` the heads output integers."""

    integer_outputs: bool = False


def write_trained_int8(
    network: ModelProto, limits: Iterable[Range], target: Path, ranges: TrainedRanges
) -> Int8Network:
    """Quantize a float32 network that has a Clip for each range of `limits`, float32 numbers.

    Raises:
        BundleError: a range is not in the network, or an activation has none.
    """
    plain, range_of = _remove_clips(network, set(limits))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / names.onnx_file("fp32")
        onnx.save(plain, source)
        float_network = FloatNetwork(source)
    model = _quantize(float_network, range_of)
    scales: dict[str, list[float]] = {}
    if ranges.integer_outputs:
        model, scales = with_integer_outputs(model)
    with replacing(target) as unfinished:
        unfinished.write_bytes(model.SerializeToString())
    count = len(float_network.layers)
    logger.info("INT8: all %d layers, with %d trained ranges", count, len(range_of))
    return Int8Network({"ranges": "trained", "layers": count, "layers_in_float": []}, scales)


def _remove_clips(network: ModelProto, limits: set[Range]) -> tuple[ModelProto, dict[str, Range]]:
    """A copy of the network without the Clips to `limits`, and the ranges of its values."""
    model = ModelProto()
    model.CopyFrom(network)
    graph = model.graph
    constants = _scalar_constants(graph)
    makers = {name: node for node in graph.node for name in node.output}
    used = {name for node in graph.node if node.op_type != "Clip" for name in node.input}
    ranges: dict[str, Range] = {}
    for node in [node for node in graph.node if node.op_type == "Clip"]:
        limit = tuple(constants.get(name) for name in node.input[1:])
        if limit not in limits:
            continue
        source, result = node.input[0], node.output[0]
        if source in used:
            raise BundleError(f"{source} is also used without its trained range; {CURE}")
        maker = makers[source]
        maker.output[list(maker.output).index(source)] = result  # keeps the names of the network's outputs
        makers[result] = maker
        ranges.pop(source, None)  # a ReLU6 before its range looks like a range if that is 0 to 6
        ranges[result] = limit
        graph.node.remove(node)
    missing = limits - set(ranges.values())
    if missing:
        raise BundleError(
            f"{len(missing)} of {len(limits)} trained ranges are not in the ONNX network, such as "
            f"{min(missing)}; {CURE}"
        )
    return model, ranges


def _scalar_constants(graph: GraphProto) -> dict[str, float]:
    """Constants of one element, by name."""
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            arrays[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return {name: float(array.reshape(-1)[0]) for name, array in arrays.items() if array.size == 1}


def _quantize(network: FloatNetwork, ranges: dict[str, Range]) -> ModelProto:
    """The network in INT8, in which the same activations are quantized as in training."""
    try:
        model = network.quantized(known_ranges(_propagate(network.model.graph, ranges)))
    except (KeyError, ValueError) as error:
        raise BundleError(
            f"an activation of the network has no trained range ({one_line(error)}); {CURE}"
        ) from error
    constants = {each.name for each in model.graph.initializer}
    unused = [name for name in ranges if f"{name}_scale" not in constants]
    if unused:
        raise BundleError(
            f"{len(unused)} activations that QAT quantized are in float in the network, such as {unused[0]}; "
            f"{CURE}"
        )
    return model


def _propagate(graph: GraphProto, ranges: dict[str, Range]) -> dict[str, Range]:
    """The ranges, also of values that are passed on unchanged, or go to a ReLU only."""
    ranges = dict(ranges)
    uses = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        if node.op_type in PASSING and node.input[0] in ranges:
            ranges.setdefault(node.output[0], ranges[node.input[0]])
        elif node.op_type in RECTIFYING and node.output[0] in ranges and uses[node.input[0]] == 1:
            ranges.setdefault(node.input[0], ranges[node.output[0]])
    return ranges
