"""Shape and type of every value of an ONNX network, without running it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx import shape_inference as onnx_inference
from onnx.reference import ReferenceEvaluator

SMALL = 64  # elements; sizes and places have fewer, weights have more
# What sizes are computed with.
ARITHMETIC = {
    *("Add", "Cast", "Concat", "Div", "Equal", "Floor", "Gather", "Max", "Min", "Mod", "Mul", "Reshape"),
    *("Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
}


class Value(NamedTuple):
    """What is known of a value.

    Attributes:
        type: such as float32, as numpy calls it; empty where it is not known.
        shape: None for a side that is not known before the network runs; None where even their number is not.
    """

    type: str
    shape: tuple[int | None, ...] | None

    @property
    def elements(self) -> int | None:
        """How many; None where that is not known."""
        return None if self.shape is None or None in self.shape else math.prod(self.shape)

    @property
    def bytes(self) -> int | None:
        """That it takes; None where that is not known."""
        if self.elements is None or not self.type:
            return None
        return self.elements * np.dtype(self.type).itemsize


def inferred_values(model: ModelProto) -> dict[str, Value]:
    """Infer what a network's inputs say of all that follows.

    ONNX's inference does not compute sizes that a network takes from other maps, as a pyramid does that cuts
    one map to the size of another. Where it stops, these are computed and it goes on.

    Args:
        model: with inputs of known sizes.

    Returns:
        By the name of the value.
    """
    sketch = _without_weights(model)
    sizes = {
        each.name: numpy_helper.to_array(each)
        for each in model.graph.initializer
        if math.prod(each.dims) <= SMALL
    }
    while True:
        inferred = onnx_inference.infer_shapes(sketch, data_prop=True).graph
        values = {
            each.name: _value(each) for each in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        if not _fold(sketch.graph, values, sizes):
            known = {name: Value(array.dtype.name, array.shape) for name, array in sizes.items()}
            return {**values, **known}


def type_name(number: int) -> str:
    """ONNX's number of a type as numpy calls it; empty where there is none."""
    return "" if number == TensorProto.UNDEFINED else helper.tensor_dtype_to_np_dtype(number).name


def _without_weights(model: ModelProto) -> ModelProto:
    """A copy in which large constants are inputs: of them the inference wants the shapes alone."""
    sketch = ModelProto()
    sketch.ir_version = model.ir_version
    sketch.opset_import.extend(model.opset_import)
    graph = sketch.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for output in model.graph.output:
        graph.output.append(ValueInfoProto(name=output.name))
        graph.output[-1].type.tensor_type.elem_type = output.type.tensor_type.elem_type
    for each in model.graph.initializer:
        if math.prod(each.dims) <= SMALL:
            graph.initializer.append(each)
        else:
            graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    return sketch


def _fold(graph: GraphProto, values: dict[str, Value], sizes: dict[str, np.ndarray]) -> bool:
    """Put constants in the place of nodes that compute sizes; whether there were any."""
    left = []
    for node in graph.node:
        found = _computed(node, values, sizes)
        if found is None:
            left.append(node)
            continue
        sizes[node.output[0]] = found
        graph.initializer.append(numpy_helper.from_array(found, node.output[0]))
    folded = len(left) < len(graph.node)
    del graph.node[:]
    graph.node.extend(left)
    return folded


def _computed(node: NodeProto, values: dict[str, Value], sizes: dict[str, np.ndarray]) -> np.ndarray | None:
    """What a node gives, if it is small and known already."""
    if node.op_type == "Shape":
        value = values.get(node.input[0], Value("", None))
        if value.elements is None:
            return None
        settings = {each.name: each.i for each in node.attribute}
        return np.array(value.shape, np.int64)[settings.get("start", 0) : settings.get("end")]
    taken = [name for name in node.input if name]
    if node.op_type not in ARITHMETIC or not all(name in sizes for name in taken):
        return None
    found = np.asarray(ReferenceEvaluator(node).run(None, {name: sizes[name] for name in taken})[0])
    return found if found.size <= SMALL else None


def _value(info: ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return Value(type_name(tensor.elem_type), None)
    sides = (side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim)
    return Value(type_name(tensor.elem_type), tuple(sides))
