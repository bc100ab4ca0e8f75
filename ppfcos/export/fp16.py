"""Conversion of an ONNX model to float16 where this is harmless.

ONNX Runtime's own converter rounds to 16 bits between any two operations that it keeps in float32, and boxes
would move by half a pixel.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from ppfcos.export.onnx_graph import values_after, values_before

# Without the sums over whole feature maps in normalization layers, which overflow float16.
FP16_OPERATORS = {
    *("Add", "AveragePool", "Clip", "Concat", "Conv", "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool"),
    *("Mul", "Relu", "Reshape", "Resize", "Sigmoid", "Tanh", "Transpose"),
}
ONE_TENSOR_OPERATORS = ("Reshape", "Resize")  # the inputs after the first are shapes


def convert_to_fp16(model: ModelProto) -> ModelProto:
    """A copy of a float32 model that computes in float16 from its first to its last convolutions.

    Pixel arithmetic stays in float32, and so does everything after the convolutions that output logits and
    distances: above 1024, float16 resolves whole pixels only. Inputs and outputs stay as they are.
    """
    model = shape_inference.infer_shapes(model)
    graph = model.graph
    after, before = values_after(graph.node), values_before(graph.node)
    converter = _Converter(graph)
    for node in list(graph.node):
        is_between = after.intersection(node.output) and before.intersection(node.output)
        converter.add(node, bool(is_between) and node.op_type in FP16_OPERATORS)
    converter.finish()
    return model


class _Converter:
    """Rebuilds a graph node by node, with casts where the precision changes."""

    def __init__(self, graph: GraphProto):
        self.graph = graph
        self.weights = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT}
        typed = (*graph.value_info, *graph.input, *graph.output)
        self.floats = {each.name for each in typed if each.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.nodes: list[NodeProto] = []
        self.halves: set[str] = set()  # values in float16
        self.converted: set[str] = set()  # names of casts and of weights in float16

    def add(self, node: NodeProto, is_half: bool) -> None:
        """Append the next node, in float16 or unchanged."""
        count = 1 if is_half and node.op_type in ONE_TENSOR_OPERATORS else len(node.input)
        for i, name in enumerate(node.input[:count]):
            node.input[i] = self._as_half(name) if is_half else self._as_float(name)
        self.nodes.append(node)
        if is_half:
            self.halves.update(node.output)

    def finish(self) -> None:
        """Replace the nodes of the graph, and drop unused weights."""
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        del self.graph.value_info[:]
        used = {name for node in self.nodes for name in node.input}
        kept = [each for each in self.graph.initializer if each.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _as_half(self, name: str) -> str:
        if name in self.halves or (name not in self.floats and name not in self.weights):
            return name
        if name not in self.weights:
            return self._cast(name, f"{name}.half", TensorProto.FLOAT16)
        half = f"{name}.half"
        if half not in self.converted:
            self.converted.add(half)
            values = numpy_helper.to_array(self.weights[name]).astype(np.float16)
            self.graph.initializer.append(numpy_helper.from_array(values, half))
        return half

    def _as_float(self, name: str) -> str:
        return self._cast(name, f"{name}.float", TensorProto.FLOAT) if name in self.halves else name

    def _cast(self, name: str, result: str, data_type: int) -> str:
        if result not in self.converted:
            self.converted.add(result)
            self.nodes.append(helper.make_node("Cast", [name], [result], name=f"cast.{result}", to=data_type))
        return result
