"""An ONNX model in 16 bits, as far as that does no harm.

ONNX Runtime's own converter rounds to 16 bits between any two operations that it is told to leave in 32, and
boxes would move by half a pixel.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

CONVOLUTION = "Conv"
# Not the sums over a whole feature map that norms take: they leave float16's range.
OPERATIONS = {
    *(
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "Conv",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "MaxPool",
        "Mul",
    ),
    *("Relu", "Reshape", "Resize", "Sigmoid", "Tanh", "Transpose"),
}
FIRST_INPUT_ONLY = {"Reshape", "Resize"}  # the others are sizes


def convert_to_fp16(model: ModelProto) -> ModelProto:
    """The same network in float16 between its first convolutions and its last.

    What is done to pixels stays in float32, and so does everything from the convolutions on that make logits
    and distances: float16 tells positions beyond 1024 apart by whole pixels only.

    Args:
        model: in float32; it stays as it is.

    Returns:
        A model with the same inputs and outputs.
    """
    model = shape_inference.infer_shapes(model)
    rewriting = _Rewriting(model.graph)
    for node, is_half in zip(list(model.graph.node), _between_convolutions(model.graph)):
        rewriting.add(node, is_half and node.op_type in OPERATIONS)
    rewriting.finish()
    return model


class _Rewriting:
    """The nodes of a graph one after the other, with casts wherever the precision changes.

    Args:
        graph: it is changed by `finish`.
    """

    def __init__(self, graph: GraphProto):
        self.graph = graph
        self.weights = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT}
        typed = (*graph.value_info, *graph.input, *graph.output)
        self.floats = {each.name for each in typed if each.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.nodes: list[NodeProto] = []
        self.halves: set[str] = set()  # values in float16
        self.made: dict[tuple[str, int], str] = {}  # what stands for a value in the other precision

    def add(self, node: NodeProto, is_half: bool) -> None:
        """The next node, to be run in float16 or as it is."""
        count = 1 if is_half and node.op_type in FIRST_INPUT_ONLY else len(node.input)
        for position, name in enumerate(node.input[:count]):
            node.input[position] = self._as_half(name) if is_half else self._as_float(name)
        self.nodes.append(node)
        if is_half:
            self.halves.update(node.output)

    def finish(self) -> None:
        """Put the nodes into the graph, and drop what is not used any more."""
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
            return self._cast(name, TensorProto.FLOAT16)
        key = name, TensorProto.FLOAT16
        if key not in self.made:
            self.made[key] = f"{name}.half"
            values = numpy_helper.to_array(self.weights[name]).astype(np.float16)
            self.graph.initializer.append(numpy_helper.from_array(values, self.made[key]))
        return self.made[key]

    def _as_float(self, name: str) -> str:
        return self._cast(name, TensorProto.FLOAT) if name in self.halves else name

    def _cast(self, name: str, kind: int) -> str:
        key = name, kind
        if key not in self.made:
            self.made[key] = f"{name}.{'half' if kind == TensorProto.FLOAT16 else 'float'}"
            made = helper.make_node("Cast", [name], [self.made[key]], name=f"cast.{self.made[key]}", to=kind)
            self.nodes.append(made)
        return self.made[key]


def _between_convolutions(graph: GraphProto) -> list[bool]:
    """Whether each node is behind a convolution, or is one, and another one is behind it."""
    behind: set[str] = set()  # values that a convolution had a part in
    for node in graph.node:
        if node.op_type == CONVOLUTION or behind.intersection(node.input):
            behind.update(node.output)
    before: set[str] = set()  # values that a convolution will be made of
    for node in reversed(graph.node):
        if node.op_type == CONVOLUTION or before.intersection(node.output):
            before.update(node.input)
    return [
        bool(behind.intersection(node.output) and before.intersection(node.output)) for node in graph.node
    ]
