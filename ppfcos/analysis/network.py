"""An ONNX network at one input size: its nodes, constants, and the shape and type of every value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ppfcos.deploy.onnx_files import OnnxFile
from ppfcos.environment import MissingLibraryError
from ppfcos.errors import BundleError, one_line

try:
    import onnx
    from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference
    from onnx.reference import ReferenceEvaluator
except ImportError as error:
    raise MissingLibraryError(f"inspecting a network needs onnx ({error}): `pip install onnx`") from error

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
CONVOLUTIONS = ("Conv", "ConvInteger", "DeformConv")
MATRIX_PRODUCTS = ("Gemm", "MatMul", "MatMulInteger")
PRODUCTS = CONVOLUTIONS + MATRIX_PRODUCTS
INTEGER_PRODUCTS = ("ConvInteger", "MatMulInteger")  # their third and fourth input are zero points
UNCOUNTED_PRODUCTS = ("Attention", "ConvTranspose", "Einsum", "LSTM", "GRU", "QLinearConv", "QLinearMatMul")
WITHOUT_WEIGHTS = ("Clip", "Pad", "Resize", QUANTIZE, DEQUANTIZE)  # their constants are no weights

MAX_SIZE_ELEMENTS = 64  # constants with more elements are weights, not sizes
SIZE_OPERATORS = {
    *("Add", "Cast", "Concat", "Div", "Equal", "Floor", "Gather", "Max", "Min", "Mod", "Mul", "Reshape"),
    *("Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
}


class Value(NamedTuple):
    """Type of a value, such as float32 (empty if unknown), and its shape, in which None is unknown."""

    type: str = ""
    shape: tuple[int | None, ...] | None = None

    @property
    def elements(self) -> int | None:
        """Number of elements; None if unknown."""
        return None if self.shape is None or None in self.shape else math.prod(self.shape)

    @property
    def bytes(self) -> int | None:
        """Size in memory; None if unknown."""
        if self.elements is None or not self.type:
            return None
        return self.elements * np.dtype(self.type).itemsize


class Network:
    """An ONNX network with fixed input shapes.

    Nodes whose inputs are all constants, such as dequantized weights, count as constants.

    Attributes:
        nodes: the other nodes, in topological order.
        operators: type of every node of the file except Constant.
        makers: the node that computes a value.
        takers: the nodes that take a value.

    Raises:
        BundleError: the file is not a valid ONNX network, or does not take inputs of these shapes.
    """

    def __init__(self, file: OnnxFile, input_shapes: Mapping[str, Sequence[int]]):
        try:
            model = onnx.load_from_string(file.content)
            for value in model.graph.input:
                _fix_shape(value, input_shapes.get(value.name, ()), file)
            self._values = infer_values(model)
        except BundleError:
            raise
        except Exception as error:  # protobuf and shape inference raise errors of many types
            raise BundleError(
                f"{file.path}: this is not a valid ONNX network ({one_line(error)}); export the bundle again"
            ) from error
        graph = model.graph
        self.opset = max(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
        self.inputs = [each.name for each in graph.input]
        self.outputs = [each.name for each in graph.output]
        self.operators = [node.op_type for node in graph.node if node.op_type != "Constant"]
        self._tensors = {each.name: each for each in graph.initializer}
        # The file's tensors from which each constant is computed, the most important first.
        self._constants: dict[str, tuple[str, ...]] = {name: (name,) for name in self._tensors}
        self.nodes: list[NodeProto] = []
        for node in graph.node:
            self._add(node)
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.takers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)

    def _add(self, node: NodeProto) -> None:
        name = node.output[0]
        if node.op_type == "Constant":
            array = helper.get_attribute_value(node.attribute[0])
            is_tensor = isinstance(array, onnx.TensorProto)
            self._tensors[name] = array if is_tensor else numpy_helper.from_array(np.array(array))
            self._constants[name] = (name,)
        elif node.input and all(each in self._constants for each in node.input if each):
            sources = tuple(source for each in node.input if each for source in self._constants[each])
            self._constants.update(dict.fromkeys(node.output, sources))
        else:
            self.nodes.append(node)

    def value(self, name: str) -> Value:
        """Type and shape of a value."""
        tensor = self._tensors.get(name)
        if tensor is not None:
            return Value(_type_name(tensor.data_type), tuple(tensor.dims))
        return self._values.get(name, Value())

    def is_constant(self, name: str) -> bool:
        """Whether a value does not depend on the inputs."""
        return name in self._constants

    def variables(self, node: NodeProto) -> list[str]:
        """The inputs of a node that are not constants."""
        return [name for name in node.input if name and name not in self._constants]

    def maps(self, node: NodeProto) -> list[str]:
        """The variable inputs of a node that are feature maps: neither sizes and indices nor masks."""
        return [name for name in self.variables(node) if self.value(name).type not in ("int64", "bool")]

    def array(self, name: str) -> np.ndarray:
        """The content of a tensor of the file."""
        return numpy_helper.to_array(self._tensors[name])

    def tensors(self, node: NodeProto) -> list[str]:
        """The file's tensors from which the constants of a node are computed."""
        return [source for name in node.input for source in self._constants.get(name, ())]

    def parameters(self, node: NodeProto) -> dict[str, int]:
        """Number of learned parameters of a node, by tensor; scales of quantization and sizes are none."""
        if node.op_type in WITHOUT_WEIGHTS:
            return {}
        return {
            self._constants[name][0]: self.value(name).elements or 0
            for name in node.input[: 2 if node.op_type in INTEGER_PRODUCTS else None]
            if self.is_constant(name) and self.value(name).type not in ("int64", "bool")
        }

    def weight(self, node: NodeProto) -> str | None:
        """The tensor that holds the weight of a product; None if it is computed from the inputs."""
        position = 0 if node.op_type in MATRIX_PRODUCTS and self.is_constant(node.input[0]) else 1
        return self._constants.get(node.input[position], (None,))[0]

    def weight_scales(self, node: NodeProto) -> np.ndarray | None:
        """The scales of the quantized weight of a product, per channel; None for a float weight."""
        if node.op_type not in PRODUCTS or not self.is_constant(node.input[1]):
            return None
        _, *others = self._constants[node.input[1]]
        return self.array(others[0]).reshape(-1) if others else None

    def multiply_adds(self, node: NodeProto) -> int | None:
        """Multiply-adds of convolutions and matrix products, as `ppfcos.engine.model` counts them.

        Other nodes have none; None where the shapes are unknown or the operator is not supported.
        """
        if node.op_type in UNCOUNTED_PRODUCTS:
            return None
        if node.op_type not in PRODUCTS:
            return 0
        outputs, weight = self.value(node.output[0]).elements, self.value(node.input[1]).shape
        if outputs is None or weight is None or None in weight:
            return None
        if node.op_type in CONVOLUTIONS:  # [out, in of a group, height, width]
            return outputs * math.prod(weight[1:])
        is_transposed = any(each.name == "transB" and each.i for each in node.attribute)
        return outputs * weight[-1 if is_transposed or len(weight) == 1 else -2]


def infer_values(model: ModelProto) -> dict[str, Value]:
    """Infer type and shape of every value of a model with fixed input shapes.

    ONNX's inference stops at sizes that are computed from other maps, such as where a pyramid crops a map to
    the size of another. These are folded into constants, and the inference runs again until none is left.
    """
    sketch = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = sketch.graph
    graph.name = "shapes"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    sizes: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= MAX_SIZE_ELEMENTS:
            graph.initializer.append(tensor)
            sizes[tensor.name] = numpy_helper.to_array(tensor)
        else:  # the inference needs no weights
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    while True:
        inferred = shape_inference.infer_shapes(sketch, data_prop=True).graph
        infos = (*inferred.value_info, *inferred.input, *inferred.output)
        values = {info.name: _value(info) for info in infos}
        remaining = []
        for node in graph.node:
            folded = _fold(node, values, sizes)
            if folded is None:
                remaining.append(node)
            else:
                sizes[node.output[0]] = folded
                graph.initializer.append(numpy_helper.from_array(folded, node.output[0]))
        if len(remaining) == len(graph.node):
            return {**values, **{name: Value(size.dtype.name, size.shape) for name, size in sizes.items()}}
        del graph.node[:]
        graph.node.extend(remaining)


def _fold(node: NodeProto, values: dict[str, Value], sizes: dict[str, np.ndarray]) -> np.ndarray | None:
    """The output of a node that computes a size from known ones; else None."""
    if node.op_type == "Shape":
        value = values.get(node.input[0], Value())
        if value.elements is None:
            return None
        attributes = {each.name: each.i for each in node.attribute}
        return np.array(value.shape, np.int64)[attributes.get("start", 0) : attributes.get("end")]
    names = [name for name in node.input if name]
    if node.op_type not in SIZE_OPERATORS or not all(name in sizes for name in names):
        return None
    output = np.asarray(ReferenceEvaluator(node).run(None, {name: sizes[name] for name in names})[0])
    return output if output.size <= MAX_SIZE_ELEMENTS else None


def _value(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    dims = (dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return Value(_type_name(tensor.elem_type), tuple(dims) if tensor.HasField("shape") else None)


def _type_name(number: int) -> str:
    return helper.tensor_dtype_to_np_dtype(number).name if number != onnx.TensorProto.UNDEFINED else ""


def _fix_shape(value: onnx.ValueInfoProto, shape: Sequence[int], file: OnnxFile) -> None:
    dims = value.type.tensor_type.shape.dim
    declared = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    if len(declared) != len(shape) or any(old not in (None, new) for old, new in zip(declared, shape)):
        raise BundleError(
            f"{file.path}: its input {value.name} has shape {declared}, but bundle.yml says {list(shape)}; "
            "export the bundle again"
        )
    for dim, length in zip(dims, shape):
        dim.dim_value = length
