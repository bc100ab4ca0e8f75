"""Groups the nodes of an ONNX network into layers, and finds the precision in which they compute.

A convolution with its bias, norm and activation is one layer, as is an addition, a pooling or a resize. All
nodes before the first convolution are one layer, and so are decoding and NMS after the last ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ppfcos.analysis.network import (
    DEQUANTIZE,
    INTEGER_PRODUCTS,
    MATRIX_PRODUCTS,
    PRODUCTS,
    QUANTIZE,
    Network,
    NodeProto,
    Value,
    helper,
)

INPUT, BACKBONE, NECK, HEAD, DECODE = PARTS = ("input", "backbone", "neck", "head", "decode")
NETWORK = "network"  # the part where weights do not have this project's names
WITH_OWN_LAYER = ("AveragePool", "GlobalAveragePool", "MaxPool", "Resize")
# Runtimes fuse these into the convolution before them.
FUSED = ("Add", "BatchNormalization", "Clip", "Div", "Mul", "Relu", QUANTIZE, DEQUANTIZE)
FUSED_NAMES = {
    "BatchNormalization": "norm", "Clip": "clip", "Exp": "exp", "GroupNormalization": "norm",
    "HardSigmoid": "hard sigmoid", "HardSwish": "hard swish", "InstanceNormalization": "norm",
    "LeakyRelu": "leaky ReLU", "Relu": "ReLU", "Sigmoid": "sigmoid", "Tanh": "tanh",
}  # fmt: skip
WEIGHT_SUFFIXES = ("_quantized_unsigned", "_quantized", ".half", ".weight")

# Operators with integer kernels in ONNX Runtime and OpenVINO, or that pass integers on.
INTEGER_OPERATORS = {
    *("Add", "AveragePool", "Clip", "Concat", "Conv", "Gemm", "GlobalAveragePool", "LeakyRelu", "MatMul"),
    *("MaxPool", "Mul", "Pad", "Relu", "Resize", "Sigmoid", "Split"),
}
# Operators that only move data, so that they cannot fall back to float.
MOVES = {
    *("Cast", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
    *("Identity", "Pad", "Range", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose"),
    *("Unsqueeze", "ScatterND", QUANTIZE, DEQUANTIZE),
}
FLOAT_NAMES = {"float32": "fp32", "float16": "fp16"}


@dataclass
class Layer:
    """Nodes that are drawn and counted as one.

    Attributes:
        name: of the weight as in the model, or of the first node.
        kind: such as `Conv 3×3 256→256 /2`.
        part: one of PARTS, or NETWORK.
        nodes: the first one determines the kind.
        sources: indices of the layers whose outputs it takes.
        stride: of its output, in pixels of the image; None if that is no map.
    """

    name: str
    kind: str
    part: str
    nodes: list[NodeProto]
    sources: list[int] = field(default_factory=list)
    stride: int | None = None


class Layers:
    """The layers of a network.

    Args:
        network: the network.
        height: of the image in pixels.

    Attributes:
        all: the layers, in topological order.
        of_value: index of the layer that computes a value.
    """

    def __init__(self, network: Network, height: int):
        self._network = network
        self._height = height
        after_product = _reachable(network.nodes, lambda node: (node.input, node.output))
        before_product = _reachable(reversed(network.nodes), lambda node: (node.output, node.input))
        decoding = self._decoding_nodes(before_product)
        self.all: list[Layer] = []
        self.of_value: dict[str, int] = {}
        pixels: int | None = None
        for node in network.nodes:
            name = node.output[0]
            if name in decoding:
                continue
            if node.op_type not in PRODUCTS and name not in after_product:
                if pixels is None:
                    pixels = self._append(Layer("pixels", "Pixels", INPUT, []))
                self.all[pixels].nodes.append(node)
                index = pixels
            else:
                index = self._join_or_open(node)
            self.of_value.update(dict.fromkeys(node.output, index))
        if decoding:
            nodes = [node for node in network.nodes if node.output[0] in decoding]
            index = self._append(Layer("decode", "Decode and NMS", DECODE, nodes))
            self.of_value.update({name: index for node in nodes for name in node.output})
        for index, layer in enumerate(self.all):
            self._connect(index, layer)

    def outputs(self, index: int) -> list[str]:
        """The values that leave a layer; without sizes if there are others."""
        network = self._network
        names = [
            name
            for node in self.all[index].nodes
            for name in node.output
            if name in network.outputs
            or any(self.of_value[taker.output[0]] != index for taker in network.takers.get(name, ()))
        ]
        return [name for name in names if network.value(name).type != "int64"] or names

    def stored_outputs(self, index: int) -> list[Value]:
        """The outputs as they are stored: of dequantized values the integers."""
        makers = {name: self._network.makers[name] for name in self.outputs(index)}
        stored = [maker.input[0] if maker.op_type == DEQUANTIZE else name for name, maker in makers.items()]
        return [self._network.value(name) for name in dict.fromkeys(stored)]

    def _append(self, layer: Layer) -> int:
        self.all.append(layer)
        return len(self.all) - 1

    def _decoding_nodes(self, before_product: set[str]) -> set[str]:
        """First outputs of the nodes of decoding and NMS: all after the head's outputs."""
        nodes = self._network.nodes
        if all(node.op_type != "NonMaxSuppression" for node in nodes):
            return set()
        head_outputs: set[str] = set()
        for node in nodes:
            variables = self._network.variables(node)
            is_fused = node.op_type in FUSED and len(variables) == 1 and variables[0] in head_outputs
            if is_fused or (node.op_type in PRODUCTS and node.output[0] not in before_product):
                head_outputs.add(node.output[0])
        return {node.output[0] for node in nodes} - before_product - head_outputs

    def _join_or_open(self, node: NodeProto) -> int:
        """The layer whose map a node takes; a new one for products, poolings and nodes of several maps."""
        network = self._network
        names = network.maps(node) or network.variables(node)[:1]
        makers = list(dict.fromkeys(self.of_value[name] for name in names if name in self.of_value))
        if node.op_type not in (*PRODUCTS, *WITH_OWN_LAYER) and len(makers) == 1:
            self.all[makers[0]].nodes.append(node)
            return makers[0]
        name = node.name or node.output[0]
        if node.op_type in PRODUCTS:
            name = network.weight(node) or name
            for suffix in WEIGHT_SUFFIXES:
                name = name.removesuffix(suffix)
        part = name.split(".")[0]
        if part not in PARTS:
            before = {self.all[index].part for index in makers} - {INPUT}
            part = max(before, key=(*PARTS, NETWORK).index, default=NETWORK)
        return self._append(Layer(name, self._kind(node), part, [node]))

    def _connect(self, index: int, layer: Layer) -> None:
        network = self._network
        names = [
            name
            for node in layer.nodes
            for name in (network.variables(node) if layer.part == DECODE else network.maps(node))
        ]
        layer.sources = sorted({self.of_value[name] for name in names if name in self.of_value} - {index})
        if layer.part not in (INPUT, DECODE):
            shape = network.value(layer.nodes[0].output[0]).shape
            if shape is not None and len(shape) == 4 and shape[2] and shape[2] <= self._height:
                layer.stride = 2 ** round(math.log2(self._height / shape[2]))

    def _kind(self, node: NodeProto) -> str:
        weight = self._network.value(node.input[1]).shape if node.op_type in PRODUCTS else None
        if not weight or None in weight:
            return node.op_type
        if node.op_type in MATRIX_PRODUCTS:
            return f"{node.op_type} {'×'.join(map(str, weight))}"
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        groups, stride = attributes.get("group", 1), max(attributes.get("strides", [1]))
        if groups == weight[0] > 1:
            channels = f"depthwise {groups}"
        else:
            channels = f"{weight[1] * groups}→{weight[0]}" + (f" in {groups}" if groups > 1 else "")
        kind = f"{node.op_type} {weight[2]}×{weight[3]} {channels}"
        return kind + (f" /{stride}" if stride > 1 else "")


def fused_names(layer: Layer) -> list[str]:
    """What a layer does after its first node, such as `norm` and `ReLU`."""
    if layer.part in (INPUT, DECODE):
        return []
    names = (FUSED_NAMES[node.op_type] for node in layer.nodes[1:] if node.op_type in FUSED_NAMES)
    return list(dict.fromkeys(names))


def _reachable(
    nodes: Iterable[NodeProto], ends: Callable[[NodeProto], tuple[Iterable[str], Iterable[str]]]
) -> set[str]:
    """First outputs of the nodes that follow a product along edges whose `ends` are (source, target)."""
    values: set[str] = set()
    reached: set[str] = set()
    for node in nodes:
        sources, targets = ends(node)
        if values.intersection(sources):
            reached.add(node.output[0])
            values.update(targets)
        elif node.op_type in PRODUCTS:
            values.update(targets)
    return reached


class Precisions:
    """The precision in which the nodes of a network compute.

    A runtime computes a node in INT8 if its inputs come from DequantizeLinear and its outputs go to
    QuantizeLinear, directly or through other integer operators.
    """

    def __init__(self, network: Network):
        self._network = network
        self._from_integers: set[str] = set()
        self._to_integers: set[str] = set()
        for node in network.nodes:
            if node.op_type in INTEGER_OPERATORS and self._comes_from_integers(node):
                self._from_integers.add(node.output[0])
        for node in reversed(network.nodes):
            if node.op_type in INTEGER_OPERATORS and self._becomes_integers(node):
                self._to_integers.add(node.output[0])

    def of(self, node: NodeProto) -> str:
        """`int8`, `fp16`, `fp32`, or the type of the integers or booleans that a node computes with."""
        name = node.output[0]
        if node.op_type in INTEGER_PRODUCTS or (name in self._from_integers and name in self._to_integers):
            return "int8"
        type_name = self._network.value((self._network.variables(node) or node.output)[0]).type
        return FLOAT_NAMES.get(type_name, type_name)

    def of_layer(self, layer: Layer) -> str:
        """The precision of the first node; of input and decoding, that of most of the arithmetic."""
        if layer.part in (INPUT, DECODE):
            precisions = Counter(self.of(node) for node in layer.nodes if node.op_type not in MOVES)
            for precision, _ in precisions.most_common():
                if precision in FLOAT_NAMES.values():
                    return precision
        return self.of(layer.nodes[0])

    def is_float(self, node: NodeProto) -> bool:
        """Whether a node computes in float: in an INT8 network, it fell back."""
        return node.op_type not in MOVES and self.of(node) in FLOAT_NAMES.values()

    def _comes_from_integers(self, node: NodeProto) -> bool:
        network = self._network
        for name in network.variables(node):
            maker = network.makers.get(name)
            is_integer = maker and (maker.op_type == DEQUANTIZE or maker.output[0] in self._from_integers)
            if network.value(name).type != "int64" and not is_integer:
                return False
        if node.op_type not in PRODUCTS or not network.is_constant(node.input[1]):
            return True
        return network.value(network.weight(node)).type in ("int8", "uint8")

    def _becomes_integers(self, node: NodeProto) -> bool:
        takers = [taker for name in node.output for taker in self._network.takers.get(name, ())]
        takers = [taker for taker in takers if taker.op_type != "Shape"]
        return bool(takers) and all(
            taker.op_type == QUANTIZE or taker.output[0] in self._to_integers for taker in takers
        )
