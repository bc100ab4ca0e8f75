"""Which nodes of a network are computed in eight bits.

In a QDQ file the arithmetic itself is written in floats, and what lies between DequantizeLinear and
QuantizeLinear is what a runtime may do in integers instead. Everything else has fallen back to float.
"""

from __future__ import annotations

from onnx import NodeProto

from ppfcos.export.network_graph import DEQUANTIZE, INTEGER_PRODUCTS, QUANTIZE, NetworkGraph

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

    def __init__(self, graph: NetworkGraph):
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
