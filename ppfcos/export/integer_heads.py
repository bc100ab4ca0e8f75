"""Heads with integer outputs, as on edge accelerators: value = integer × scale of its channel.

The integers are the 32-bit sums of the last convolutions: exact for their INT8 weights and inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import onnx.utils
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ppfcos.errors import BundleError
from ppfcos.export.onnx_graph import is_conv

SKIPPED = ("QuantizeLinear", "DequantizeLinear")  # of the output itself, which becomes 32 bits wide
UINT8_ZERO_POINT = np.uint8(128)
UINT8_ZERO_POINT_NAME = "zero_of_unsigned_weights"
FACTORS = {"Mul": np.multiply, "Div": np.divide}


def with_integer_outputs(model: ModelProto) -> tuple[ModelProto, dict[str, list[float]]]:
    """Remove a QDQ network's float arithmetic after the sums of its last convolutions.

    Each output must be a quantized convolution followed by ReLU, positive constant factors and transposition.

    Returns:
        A model with int32 outputs of the same names, and the scales of each output's channels.

    Raises:
        BundleError: an output is computed in another way.
    """
    graph = _Graph(model)
    scales = {output.name: graph.replace(output.name) for output in model.graph.output}
    names = [[each.name for each in values] for values in (graph.model.graph.input, graph.model.graph.output)]
    cut = onnx.utils.Extractor(graph.model).extract_model(*names)  # drops unused nodes
    onnx.checker.check_model(cut)
    return cut, scales


class _Tail(NamedTuple):
    """The operations from a convolution to an output; `order` permutes the axes."""

    conv: NodeProto
    factor: float
    has_relu: bool
    order: list[int] | None


class _Operand(NamedTuple):
    """An integer tensor: names of its values and zero point, and its scale."""

    values: str
    zero_point: str
    scale: np.ndarray


class _Graph:
    """A copy of a QDQ model in which outputs are replaced."""

    def __init__(self, model: ModelProto):
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self._makers = {name: node for node in self.model.graph.node for name in node.output}
        self._constants = {each.name: each for each in self.model.graph.initializer}

    def replace(self, output: str) -> list[float]:
        """Make an output an integer one, and return the scales of its channels."""
        tail = self._tail(output)
        activations, weights = (self._operand(output, name) for name in tail.conv.input[:2])
        scales = activations.scale.astype(np.float64) * weights.scale.astype(np.float64)
        self._append_integers(output, tail, activations, weights)
        declared = next(each for each in self.model.graph.output if each.name == output)
        declared.type.tensor_type.elem_type = TensorProto.INT32
        return [float(scale) for scale in scales.reshape(-1) * tail.factor]

    def _tail(self, output: str) -> _Tail:
        """Follow an output back to its convolution."""
        factor, has_relu, order = 1.0, False, None
        node = self._makers[output]
        while not is_conv(node):
            source = node.input[0]
            if node.op_type in FACTORS:
                source, constant = self._factor(output, node)
                factor = float(FACTORS[node.op_type](factor, constant))
            elif node.op_type == "Relu":
                has_relu = True
            elif node.op_type == "Transpose" and order is None:
                order = list(node.attribute[0].ints)
            elif node.op_type not in SKIPPED:
                raise BundleError(
                    f"{output}: cannot be an integer output, its convolution is followed by {node.op_type}; "
                    "export float heads, or train with PPFCOSHead.distance: relu"
                )
            node = self._makers[source]
        return _Tail(node, factor, has_relu, order)

    def _factor(self, output: str, node: NodeProto) -> tuple[str, float]:
        """The variable and the constant operand of Mul or Div."""
        constants = [name for name in node.input if name in self._constants]
        if node.op_type == "Div":  # only the divisor can be part of the scale
            constants = [name for name in constants if name != node.input[0]]
        values = numpy_helper.to_array(self._constants[constants[0]]) if constants else np.zeros(0)
        if values.size != 1 or values.item() <= 0:  # ReLU and a negative factor do not commute
            raise BundleError(
                f"{output}: cannot be an integer output, it is not multiplied by one positive number; "
                "export float heads"
            )
        return next(name for name in node.input if name != constants[0]), values.item()

    def _operand(self, output: str, name: str) -> _Operand:
        """An input of a convolution before dequantization."""
        node = self._makers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            raise BundleError(f"{output}: cannot be an integer output, its convolution is not in INT8")
        values, scale, zero_point = node.input
        return _Operand(values, zero_point, numpy_helper.to_array(self._constants[scale]))

    def _append_integers(self, output: str, tail: _Tail, activations: _Operand, weights: _Operand) -> None:
        """Append the integer convolution and what follows it, under the output's name."""
        self._makers[output].output[0] = f"{output}_float"
        operands = [
            self._unsigned(weights),
            activations.zero_point,
            self._constant(UINT8_ZERO_POINT_NAME, UINT8_ZERO_POINT),
        ]
        steps = [("ConvInteger", operands, list(tail.conv.attribute))]
        if len(tail.conv.input) > 2:
            bias = self._operand(output, tail.conv.input[2]).values
            column = numpy_helper.to_array(self._constants[bias]).reshape(1, -1, 1, 1)
            steps.append(("Add", [self._constant(f"{output}_bias", column)], []))
        if tail.has_relu:
            steps.append(("Max", [self._constant(f"{output}_zero", np.zeros([], np.int32))], []))
        if tail.order is not None:
            steps.append(("Transpose", [], [helper.make_attribute("perm", tail.order)]))
        value = activations.values
        for number, (kind, others, attributes) in enumerate(steps, start=1):
            target = output if number == len(steps) else f"{output}_{kind}"
            node = helper.make_node(kind, [value, *others], [target], f"{output}_{kind}")
            node.attribute.extend(attributes)
            self.model.graph.node.append(node)
            value = target

    def _unsigned(self, weights: _Operand) -> str:
        """The weights as uint8, the only type that ONNX Runtime's ConvInteger takes."""
        signed = numpy_helper.to_array(self._constants[weights.values]).astype(np.int16)
        return self._constant(f"{weights.values}_unsigned", (signed + UINT8_ZERO_POINT).astype(np.uint8))

    def _constant(self, name: str, values: np.ndarray) -> str:
        """Add a constant unless it is there: levels share them."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(values), name)
            self.model.graph.initializer.append(self._constants[name])
        return name
