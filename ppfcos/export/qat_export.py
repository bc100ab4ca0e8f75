"""An INT8 network whose ranges were trained with it, so that no picture is needed to find them.

The ranges come in the network itself: behind every activation that is to have eight bits stands a Clip to
its range (ppfcos/modeling/quantization). No table has to say which tensor of the file is which of the model,
and an activation without a range is an error.
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
from ppfcos.export.ptq import Int8Network
from ppfcos.export.integer_heads import with_integer_outputs
from ppfcos.export.quantizer import FloatNetwork, known_ranges
from ppfcos.fileio import replacing

logger = logging.getLogger(__name__)

Range = tuple[float, float]
LIMIT = "Clip"
CURE = "take another --opset, or calibrate: -o quantization_aware_training=null"
RECTIFYING = ("Relu", "Clip")
PASSING = ("MaxPool", "Resize", "Slice", "Pad", "Identity")  # they give what they were given, or zeros


@dataclass(frozen=True)
class TrainedRanges:
    """How a network becomes INT8 whose ranges were trained.

    Attributes:
        integer_outputs: whether the head's answers are integers, with a scale for each channel.
    """

    integer_outputs: bool = False


def write_trained_int8(
    network: ModelProto, limits: Iterable[Range], target: Path, how: TrainedRanges
) -> Int8Network:
    """Quantise a network by the ranges that stand in it, and write it.

    Args:
        network: in float32, with a Clip for each range.
        limits: the ranges, float32 numbers.
        target: the ONNX file.
        how: what comes out.

    Returns:
        What was done.

    Raises:
        BundleError: a range is not in the network, or an activation has none.
    """
    plain, found = _without_limits(network, set(limits))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / names.onnx_file("fp32")
        onnx.save(plain, source)
        float_network = FloatNetwork(source)
    quantised = _quantised(float_network, found)
    scales: dict[str, list[float]] = {}
    if how.integer_outputs:
        quantised, scales = with_integer_outputs(quantised)
    with replacing(target) as unfinished:
        unfinished.write_bytes(quantised.SerializeToString())
    count = len(float_network.layers)
    logger.info("INT8: all %d layers, with the %d ranges of the training", count, len(found))
    summary = {"ranges": "trained", "layers": count, "layers_in_float": []}
    return Int8Network(summary, scales)


def _without_limits(network: ModelProto, limits: set[Range]) -> tuple[ModelProto, dict[str, Range]]:
    """The network without the Clips that are ranges, and the ranges of its values."""
    model = ModelProto()
    model.CopyFrom(network)
    graph = model.graph
    constants = _constants(graph)
    makers = {name: node for node in graph.node for name in node.output}
    takers = {name for node in graph.node if node.op_type != LIMIT for name in node.input}
    found: dict[str, Range] = {}
    for node in [node for node in graph.node if node.op_type == LIMIT]:
        limit = tuple(constants.get(name) for name in node.input[1:])
        if limit not in limits:
            continue
        source, result = node.input[0], node.output[0]
        if source in takers:
            raise BundleError(f"{source} goes past its trained range to other operations; {CURE}")
        maker = makers[source]
        maker.output[list(maker.output).index(source)] = result  # an output of the network keeps its name
        makers[result] = maker
        found.pop(source, None)  # a ReLU6 in front of its range looks the same where that is 0 to 6
        found[result] = limit
        graph.node.remove(node)
    missing = limits - set(found.values())
    if missing:
        raise BundleError(
            f"{len(missing)} of {len(limits)} trained ranges are not in the ONNX network, such as "
            f"{min(missing)}; {CURE}"
        )
    return model, found


def _constants(graph: GraphProto) -> dict[str, float]:
    """Numbers by the name of their value."""
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            arrays[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return {name: float(array.reshape(-1)[0]) for name, array in arrays.items() if array.size == 1}


def _quantised(network: FloatNetwork, found: dict[str, Range]) -> ModelProto:
    """The network in INT8, which has eight bits where the training had them, and nowhere else."""
    try:
        model = network.quantized(known_ranges(_spread(network.model.graph, found)))
    except (KeyError, ValueError) as error:
        raise BundleError(
            f"an activation of the network has no trained range ({one_line(error)}); {CURE}"
        ) from error
    scales = {each.name for each in model.graph.initializer}
    unused = [name for name in found if f"{name}_scale" not in scales]
    if unused:
        raise BundleError(
            f"{len(unused)} activations that were trained in eight bits, such as {unused[0]}, are in float "
            f"in the network; {CURE}"
        )
    return model


def _spread(graph: GraphProto, found: dict[str, Range]) -> dict[str, Range]:
    """The ranges, and those of values that are passed on as they are, or to a ReLU and nowhere else."""
    ranges = dict(found)
    takers = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        if node.op_type in PASSING and node.input[0] in ranges:
            ranges.setdefault(node.output[0], ranges[node.input[0]])
        elif node.op_type in RECTIFYING and node.output[0] in ranges and takers[node.input[0]] == 1:
            ranges.setdefault(node.input[0], ranges[node.output[0]])
    return ranges
