"""An exported ONNX network at one size of picture: its nodes, and the shape and type of every value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx import shape_inference as onnx_inference
from onnx.reference import ReferenceEvaluator

from ppfcos.deploy.onnx_files import OnnxFile
from ppfcos.environment import MissingLibraryError
from ppfcos.errors import BundleError, one_line

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


try:
    import onnx
    from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

    pass
except ImportError as error:
    raise MissingLibraryError(
        f"reading a network needs the package onnx ({error}): `pip install onnx`"
    ) from error

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
CONVOLUTIONS = ("Conv", "ConvInteger", "DeformConv")
MATRIX_PRODUCTS = ("Gemm", "MatMul", "MatMulInteger")
WITH_SETTINGS = ("Clip", "Pad", "Resize", QUANTIZE, DEQUANTIZE)  # constants of theirs are none of the weights
INTEGER_PRODUCTS = ("ConvInteger", "MatMulInteger")  # zero points follow their two operands
# Their multiply-adds are not known here; nothing that is exported has them.
OTHER_PRODUCTS = ("Attention", "ConvTranspose", "Einsum", "LSTM", "GRU", "QLinearConv", "QLinearMatMul")


class Network:
    """A network, and what is known of its values at one size of picture.

    Nodes that have constants only for inputs, such as those that dequantise weights, count as constants too.

    Args:
        file: the ONNX file.
        inputs: shape of each input, by name.

    Attributes:
        nodes: all others, each behind those that it takes something from.
        opset: version of ONNX's operators.
        inputs: names of the inputs.
        outputs: names of the outputs.

    Raises:
        BundleError: the file is not an ONNX network, or does not take such inputs.
    """

    def __init__(self, file: OnnxFile, inputs: Mapping[str, Sequence[int]]):
        self._model = _at_size(file, inputs)
        graph = self._model.graph
        self.opset = max(each.version for each in self._model.opset_import if each.domain in ("", "ai.onnx"))
        self.inputs = [each.name for each in graph.input]
        self.outputs = [each.name for each in graph.output]
        self._values = _values_of(self._model, file.path)
        self._tensors = {each.name: each for each in graph.initializer}
        self._made_of: dict[str, tuple[str, ...]] = {name: (name,) for name in self._tensors}
        self.nodes: list[NodeProto] = []
        for node in graph.node:
            self._add(node)
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.takers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)

    def _add(self, node: NodeProto) -> None:
        if node.op_type == "Constant":
            self._tensors[node.output[0]] = _constant(node)
            self._made_of[node.output[0]] = (node.output[0],)
        elif node.input and all(name in self._made_of for name in node.input if name):
            sources = tuple(source for name in node.input if name for source in self._made_of[name])
            self._made_of.update(dict.fromkeys(node.output, sources))
        else:
            self.nodes.append(node)

    def all_operations(self) -> list[str]:
        """The kind of every node of the file, those that make constants left out with `Constant` alone."""
        return [node.op_type for node in self._model.graph.node if node.op_type != "Constant"]

    def value(self, name: str) -> Value:
        """What is known of a value."""
        tensor = self._tensors.get(name)
        if tensor is not None:
            return Value(type_name(tensor.data_type), tuple(tensor.dims))
        return self._values.get(name, Value("", None))

    def is_constant(self, name: str) -> bool:
        """Whether a value is the same for all pictures."""
        return name in self._made_of

    def variables(self, node: NodeProto) -> list[str]:
        """The inputs of a node that are not constants."""
        return [name for name in node.input if name and name not in self._made_of]

    def stored(self, node: NodeProto) -> Iterator[str]:
        """Names of the file's tensors that a node's constants are made of."""
        for name in node.input:
            yield from self._made_of.get(name, ())

    def parameters(self, node: NodeProto) -> dict[str, int]:
        """How many numbers that were learnt a node takes, by the name under which the file has them.

        Those that say how others are quantised, and places and sizes, are none.
        """
        if node.op_type in WITH_SETTINGS:
            return {}
        taken = node.input[: 2 if node.op_type in INTEGER_PRODUCTS else None]
        return {
            self._made_of[name][0]: self.value(name).elements or 0
            for name in taken
            if self.is_constant(name) and self.value(name).type not in ("int64", "bool")
        }

    def kernel(self, node: NodeProto) -> str | None:
        """The name under which the file has the weights of a convolution or a product of matrices."""
        position = 0 if node.op_type in MATRIX_PRODUCTS and self.is_constant(node.input[0]) else 1
        return self._made_of[node.input[position]][0] if self.is_constant(node.input[position]) else None

    def kernel_scales(self, node: NodeProto) -> np.ndarray | None:
        """What a step of the quantised weights of a convolution is worth, channel by channel; else None."""
        if node.op_type not in CONVOLUTIONS + MATRIX_PRODUCTS or not self.is_constant(node.input[1]):
            return None
        _, *others = self._made_of[node.input[1]]
        return self.array(others[0]).reshape(-1) if others else None

    def array(self, name: str) -> np.ndarray:
        """The content of one of the file's tensors."""
        return numpy_helper.to_array(self._tensors[name])

    def multiply_adds(self, node: NodeProto) -> int | None:
        """The multiply-adds of a node, which the literature calls its FLOPs.

        Convolutions and products of matrices have them; all else counts as nothing, as in
        `ppfcos.engine.model`.

        Returns:
            None where the sizes are not known before the network runs, or how to count.
        """
        if node.op_type in OTHER_PRODUCTS:
            return None
        if node.op_type not in CONVOLUTIONS + MATRIX_PRODUCTS:
            return 0
        outputs = self.value(node.output[0]).elements
        kernel = self.value(node.input[1]).shape
        if outputs is None or kernel is None or None in kernel:
            return None
        if node.op_type in CONVOLUTIONS:  # [out, in of a group, height, width]
            return outputs * math.prod(kernel[1:])
        is_turned = any(each.name == "transB" and each.i for each in node.attribute)
        return outputs * kernel[-1 if is_turned or len(kernel) == 1 else -2]


def _at_size(file: OnnxFile, inputs: Mapping[str, Sequence[int]]) -> ModelProto:
    """The network with the sizes of its inputs fixed."""
    try:
        model = onnx.load_from_string(file.content)
        for value in model.graph.input:
            _fix(value, inputs.get(value.name, ()), file.path)
        return model
    except BundleError:
        raise
    except Exception as error:  # of protobuf, without a type in common
        raise _invalid(file.path, error) from error


def _values_of(model: ModelProto, file: Path) -> dict[str, Value]:
    try:
        return inferred_values(model)
    except Exception as error:  # of the inference and of the arithmetic, without a type in common
        raise _invalid(file, error) from error


def _invalid(file: Path, error: Exception) -> BundleError:
    return BundleError(
        f"{file}: this is not a valid ONNX network ({one_line(error)}); export the bundle again"
    )


def _constant(node: NodeProto) -> TensorProto:
    [content] = node.attribute
    if content.type == onnx.AttributeProto.TENSOR:
        return content.t
    return numpy_helper.from_array(np.array(helper.get_attribute_value(content)))


def _fix(value: onnx.ValueInfoProto, shape: Sequence[int], file: Path) -> None:
    sides = value.type.tensor_type.shape.dim
    given = [side.dim_value if side.HasField("dim_value") else None for side in sides]
    if len(given) != len(shape) or any(old not in (None, new) for old, new in zip(given, shape)):
        raise BundleError(
            f"{file}: its input {value.name} is {given}, and not {list(shape)} as bundle.yml says; "
            "export the bundle again"
        )
    for side, length in zip(sides, shape):
        side.dim_value = length
