"""The layers of an exported network: what a reader counts as one, where the file has ten nodes.

A convolution with its bias, its norm and its activation is a layer; so is a sum, a pooling, a change of size.
What makes pixels of the image is one, and what makes boxes of a level's answers is one more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from onnx import NodeProto, helper

from ppfcos.analysis.network import (
    CONVOLUTIONS,
    DEQUANTIZE,
    INTEGER_PRODUCTS,
    MATRIX_PRODUCTS,
    QUANTIZE,
    Network,
    Value,
)

INT8 = "int8"
# Those for which ONNX Runtime and OpenVINO have integer kernels, or that pass integers on.
INTEGER_KINDS = {
    *("Add", "AveragePool", "Clip", "Concat", "Conv", "Gemm", "GlobalAveragePool", "LeakyRelu", "MatMul"),
    *("MaxPool", "Mul", "Pad", "Relu", "Resize", "Sigmoid", "Split"),
}
# They compute nothing, so that they cannot fall back either.
MOVES = {
    *("Cast", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
    *("Identity", "Pad", "Range", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose"),
    *("Unsqueeze", "ScatterND", QUANTIZE, DEQUANTIZE),
}
HALF = "float16"
NAMES = {"float32": "fp32", HALF: "fp16"}


class Precisions:
    """In what the nodes of a network are computed.

    Args:
        graph: the network.
    """

    def __init__(self, graph: Network):
        self._graph = graph
        self._behind: set[str] = set()  # first outputs of nodes whose inputs come from integers
        self._ahead: set[str] = set()  # of nodes whose outputs become integers
        for node in graph.nodes:
            if node.op_type in INTEGER_KINDS and self._comes_from_integers(node):
                self._behind.add(node.output[0])
        for node in reversed(graph.nodes):
            if node.op_type in INTEGER_KINDS and self._becomes_integers(node):
                self._ahead.add(node.output[0])

    def of(self, node: NodeProto) -> str:
        """`int8`, `fp16`, `fp32`, or the type of a node that computes with whole numbers, such as int64."""
        if node.op_type in INTEGER_PRODUCTS:
            return INT8
        if node.output[0] in self._behind and node.output[0] in self._ahead:
            return INT8
        # What a node takes says it: a Cast to float16 is not itself in float16, nor is a comparison a bool.
        type_name = self._graph.value((self._graph.variables(node) or node.output)[0]).type
        return NAMES.get(type_name, type_name)

    def fell_back(self, node: NodeProto) -> bool:
        """Whether a node computes in floats, which means something in an INT8 file."""
        return node.op_type not in MOVES and self.of(node) in NAMES.values()

    def _comes_from_integers(self, node: NodeProto) -> bool:
        return all(
            self._maker_kind(name) == DEQUANTIZE or self._maker_output(name) in self._behind
            for name in self._graph.variables(node)
            if self._graph.value(name).type != "int64"  # a size
        ) and self._weights_are_integers(node)

    def _weights_are_integers(self, node: NodeProto) -> bool:
        """A convolution's weights are dequantised too; other kinds may have any constants."""
        if node.op_type not in ("Conv", "Gemm", "MatMul") or not self._graph.is_constant(node.input[1]):
            return True
        kernel = self._graph.kernel(node)
        return kernel is not None and self._graph.value(kernel).type in ("int8", "uint8")

    def _becomes_integers(self, node: NodeProto) -> bool:
        takers = [taker for name in node.output for taker in self._graph.takers.get(name, ())]
        arithmetic = [taker for taker in takers if taker.op_type != "Shape"]
        return bool(arithmetic) and all(
            taker.op_type == QUANTIZE or taker.output[0] in self._ahead for taker in arithmetic
        )

    def _maker_kind(self, name: str) -> str:
        maker = self._graph.makers.get(name)
        return "" if maker is None else maker.op_type

    def _maker_output(self, name: str) -> str:
        maker = self._graph.makers.get(name)
        return "" if maker is None else maker.output[0]


INPUT, BACKBONE, NECK, HEAD, DECODE = PARTS = ("input", "backbone", "neck", "head", "decode")
NETWORK = "network"  # the part of a file whose weights have no names of this project's
PRODUCTS = CONVOLUTIONS + MATRIX_PRODUCTS
POOLINGS = ("AveragePool", "GlobalAveragePool", "MaxPool")
# What a runtime does along with the convolution before it, so that it has no time of its own.
FOLLOWING = ("Add", "BatchNormalization", "Clip", "Div", "Mul", "Relu", QUANTIZE, DEQUANTIZE)
SUPPRESSION = "NonMaxSuppression"
FUSED_NAMES = {
    "BatchNormalization": "norm", "Clip": "clip", "Exp": "exp", "GroupNormalization": "norm",
    "HardSigmoid": "hard sigmoid", "HardSwish": "hard swish", "InstanceNormalization": "norm",
    "LeakyRelu": "leaky ReLU", "Relu": "ReLU", "Sigmoid": "sigmoid", "Tanh": "tanh",
}  # fmt: skip
ENDINGS = ("_quantized_unsigned", "_quantized", ".half", ".weight")  # that exports give the name of a weight


@dataclass
class Layer:
    """Some nodes that are drawn and counted as one.

    Attributes:
        name: of its weights, as the model calls them, or of its first node.
        kind: such as `Conv 3×3 256→256`; `256→256 in 32` has 32 groups.
        part: one of PARTS, or NETWORK.
        nodes: in their order; the first one gives it its kind.
        sources: numbers of the layers that it takes something from.
        stride: of what it gives, in pixels of the picture; None where that is no map.
    """

    name: str
    kind: str
    part: str
    nodes: list[NodeProto]
    sources: list[int] = field(default_factory=list)
    stride: int | None = None


class Layers:
    """All layers of a network.

    Args:
        graph: the network.
        height: of the picture, in pixels.

    Attributes:
        all: the layers, each behind those that it takes something from.
        of_value: the number of the layer that makes a value.
    """

    def __init__(self, graph: Network, height: int):
        self._graph = graph
        self._height = height
        self._behind, self._ahead = _around_products(graph)
        self.all: list[Layer] = []
        self.of_value: dict[str, int] = {}
        self._special: dict[tuple[str, int | None], int] = {}
        last = self._decoding() if any(node.op_type == SUPPRESSION for node in graph.nodes) else {}
        for node in graph.nodes:
            self._place(node, last)
        self._connect()

    def outputs(self, number: int) -> list[str]:
        """The values that leave a layer, as other layers or the caller get them; sizes left out."""
        layer, graph = self.all[number], self._graph
        found = [
            name
            for node in layer.nodes
            for name in node.output
            if name in graph.outputs
            or any(self.of_value[taker.output[0]] != number for taker in graph.takers.get(name, ()))
        ]
        maps = [name for name in found if graph.value(name).type != "int64"]
        return maps or found

    def stored_outputs(self, number: int) -> list[Value]:
        """What a layer hands on, in the form in which it lies in memory: in an INT8 file the integers."""
        names = []
        for name in self.outputs(number):
            maker = self._graph.makers[name]
            names.append(maker.input[0] if maker.op_type == DEQUANTIZE else name)
        return [self._graph.value(name) for name in dict.fromkeys(names)]

    def _place(self, node: NodeProto, decoding: dict[str, int | None]) -> None:
        """Put a node into a layer: one of those that are there, or its own."""
        key = node.output[0]
        if key in decoding:
            number = self._special_layer(DECODE, decoding[key], node)
        elif node.op_type in PRODUCTS:
            number = self._open(node, self._weight_name(node))
        elif key not in self._behind:
            number = self._special_layer(INPUT, None, node)
        else:
            number = self._join_or_open(node)
        self.of_value.update(dict.fromkeys(node.output, number))

    def _join_or_open(self, node: NodeProto) -> int:
        """A node goes to the layer that it takes its maps from; of several layers it makes a new one."""
        makers = self._makers(node)
        if node.op_type in (*POOLINGS, "Resize") or len(makers) > 1:
            return self._open(node, node.name or node.output[0])
        self.all[makers[0]].nodes.append(node)
        return makers[0]

    def _makers(self, node: NodeProto) -> list[int]:
        """The layers that a node takes its maps from; of a node that takes sizes only, the first of those."""
        names = [name for name in self._graph.variables(node) if name in self.of_value]
        maps = [name for name in names if self._graph.value(name).type not in ("int64", "bool")]
        return list(dict.fromkeys(self.of_value[name] for name in maps or names[:1]))

    def _open(self, node: NodeProto, name: str) -> int:
        part = name.split(".")[0]
        if part not in PARTS:
            before = {self.all[number].part for number in self._makers(node)} - {INPUT}
            part = max(before, key=(*PARTS, NETWORK).index, default=NETWORK)
        self.all.append(Layer(name, self._kind(node), part, [node]))
        return len(self.all) - 1

    def _special_layer(self, part: str, stride: int | None, node: NodeProto) -> int:
        """A layer of many nodes, of which there is one for each part and stride."""
        if (part, stride) not in self._special:
            kind = {INPUT: "Pixels", DECODE: f"Candidates /{stride}" if stride else "Suppression"}[part]
            self.all.append(Layer(kind.lower(), kind, part, [], stride=stride))
            self._special[part, stride] = len(self.all) - 1
        number = self._special[part, stride]
        self.all[number].nodes.append(node)
        return number

    def _decoding(self) -> dict[str, int | None]:
        """The nodes behind the last products, by their first output: the level that they are of, or None."""
        strides: dict[str, set[int]] = {}
        answers: set[str] = set()  # of the last products, and what they become at once
        for node in self._graph.nodes:
            taken = self._graph.variables(node)
            if node.op_type in PRODUCTS and node.output[0] not in self._ahead:
                strides[node.output[0]] = {self._stride(node.output[0]) or 0}
                answers.add(node.output[0])
            elif node.op_type in FOLLOWING and len(taken) == 1 and taken[0] in answers:
                strides[node.output[0]] = strides[taken[0]]
                answers.add(node.output[0])
            else:
                found = [strides.get(name, set()) for name in node.input]
                strides.update(dict.fromkeys(node.output, set().union(*found)))
        places: dict[str, int | None] = {}
        for node in reversed(self._graph.nodes):
            key = node.output[0]
            if key in answers or key in self._ahead or node.op_type in PRODUCTS:
                continue
            levels = strides[key]
            if levels:
                places[key] = next(iter(levels)) if len(levels) == 1 else None
                continue
            # Made of the picture's size alone: it goes to the layer that takes it, if there is but one.
            takers = {taker.output[0] for name in node.output for taker in self._graph.takers.get(name, ())}
            if takers and takers <= set(places) and len({places[taker] for taker in takers}) == 1:
                places[key] = places[next(iter(takers))]
        return places

    def _connect(self) -> None:
        for number, layer in enumerate(self.all):
            taken = [
                self.of_value[name]
                for node in layer.nodes
                for name in self._graph.variables(node)
                if name in self.of_value
                and (layer.part == DECODE or self._graph.value(name).type not in ("int64", "bool"))
            ]
            layer.sources = [source for source in dict.fromkeys(taken) if source != number]
            if layer.part not in (INPUT, DECODE):
                layer.stride = self._stride(layer.nodes[0].output[0])
        self._in_order()

    def _in_order(self) -> None:
        """Layers of many nodes were opened by their first, before others that they take something from."""
        order: list[int] = []
        waiting = list(range(len(self.all)))
        while waiting:
            ready = [i for i in waiting if set(self.all[i].sources) <= set(order)]
            order += ready[:1]
            waiting.remove(ready[0])
        places = {old: new for new, old in enumerate(order)}
        self.all = [self.all[old] for old in order]
        for layer in self.all:
            layer.sources = sorted(places[source] for source in layer.sources)
        self.of_value = {name: places[old] for name, old in self.of_value.items()}

    def _stride(self, name: str) -> int | None:
        """By how much a map, channels first, is smaller than the picture: a power of two, for sides round."""
        shape = self._graph.value(name).shape
        if shape is None or len(shape) != 4 or not shape[2] or shape[2] > self._height:
            return None
        return 2 ** round(math.log2(self._height / shape[2]))

    def _weight_name(self, node: NodeProto) -> str:
        name = self._graph.kernel(node) or node.name or node.output[0]
        for ending in ENDINGS:
            name = name.removesuffix(ending)
        return name

    def _kind(self, node: NodeProto) -> str:
        if node.op_type not in PRODUCTS:
            return node.op_type
        kernel = self._graph.value(node.input[1]).shape
        if not kernel or None in kernel:
            return node.op_type
        if node.op_type in MATRIX_PRODUCTS:
            return f"{node.op_type} {'×'.join(map(str, kernel))}"
        settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        groups, step = settings.get("group", 1), max(settings.get("strides", [1]))
        kind = f"{node.op_type} {kernel[2]}×{kernel[3]}"
        if groups == kernel[0] > 1:
            kind += f" depthwise {groups}"
        else:
            kind += f" {kernel[1] * groups}→{kernel[0]}" + (f" in {groups}" if groups > 1 else "")
        return kind + (f" /{step}" if step > 1 else "")


def fused_names(layer: Layer) -> list[str]:
    """What a layer does besides its first node: `norm`, `ReLU` and so on, each once."""
    if layer.part in (INPUT, DECODE):
        return []
    names = (FUSED_NAMES[node.op_type] for node in layer.nodes[1:] if node.op_type in FUSED_NAMES)
    return list(dict.fromkeys(names))


def layer_precision(layer: Layer, precisions: Precisions) -> str:
    """In what a layer is computed: its first node where it has a kind, else most of its arithmetic.

    Args:
        layer: one.
        precisions: of its nodes.

    Returns:
        As `Precisions.of` has it.
    """
    if layer.part not in (INPUT, DECODE):
        return precisions.of(layer.nodes[0])
    found = [precisions.of(node) for node in layer.nodes if node.op_type not in MOVES]
    floats = Counter(each for each in found if each in NAMES.values())
    return floats.most_common(1)[0][0] if floats else precisions.of(layer.nodes[0])


def _around_products(graph: Network) -> tuple[set[str], set[str]]:
    """First outputs of the nodes behind a convolution, and of those that a convolution is behind."""
    return (
        _reached(graph.nodes, lambda node: (node.input, node.output)),
        _reached(reversed(graph.nodes), lambda node: (node.output, node.input)),
    )


def _reached(
    nodes: Iterable[NodeProto], ends: Callable[[NodeProto], tuple[Iterable[str], Iterable[str]]]
) -> set[str]:
    values: set[str] = set()
    found: set[str] = set()
    for node in nodes:
        sources, targets = ends(node)
        if values.intersection(sources):
            found.add(node.output[0])
            values.update(targets)
        elif node.op_type in PRODUCTS:
            values.update(targets)
    return found
