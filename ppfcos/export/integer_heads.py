"""Heads whose answers are integers, as boards give them: value = integer × scale of its channel.

The integers are the sums of the last convolutions, 32 bits wide: nothing is lost behind the eight bits of
their weights and inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ppfcos.errors import BundleError
from ppfcos.export.ptq import QuantizationReport, QuantizationSettings, quantized, report
from ppfcos.export.quantizer import CONVOLUTION, FloatNetwork
from ppfcos.fileio import replacing

PASSED = ("QuantizeLinear", "DequantizeLinear")  # of the answer itself: its integers are wider
ZERO_OF_UNSIGNED = np.uint8(128)
UNSIGNED_ZERO = "zero_of_unsigned_weights"
FACTORS = {"Mul": np.multiply, "Div": np.divide}


def quantize_heads(
    float_model: Path,
    target: Path,
    batches: Iterable[Mapping[str, np.ndarray]],
    settings: QuantizationSettings | None = None,
) -> tuple[QuantizationReport, dict[str, list[float]]]:
    """Write a network of heads in INT8, whose outputs are integers.

    Args:
        float_model: an ONNX file with heads (class_logits_8 and so on) as outputs.
        target: the file to write; its outputs are int32.
        batches: network inputs of the images to calibrate with.
        settings: None: the standard ones.

    Returns:
        What was done, and the scales of every output's channels.

    Raises:
        BundleError: the file is not a network that can be quantised, its answers are not linear in what a
            convolution gives, or a batch is not what it takes.
        DataError: there are no batches.
        OutputError: the target cannot be written.
    """
    network = FloatNetwork(float_model)
    predictors = network.predictors()
    others = [layer for layer in network.layers if layer not in predictors]
    choice, count = quantized(network, batches, settings or QuantizationSettings(), others)
    model, scales = with_integer_outputs(choice.model)
    with replacing(target) as unfinished:
        unfinished.write_bytes(model.SerializeToString())
    return report(network, choice, count, float_model, target), scales


def with_integer_outputs(model: ModelProto) -> tuple[ModelProto, dict[str, list[float]]]:
    """Cut a QDQ network's float arithmetic off behind the sums of its last convolutions.

    Args:
        model: whose outputs are made of a quantised convolution each, by ReLU, positive constant factors and
            transposition.

    Returns:
        A model with outputs of int32 under the same names, and the scales of every output's channels.

    Raises:
        BundleError: an output is made in another way.
    """
    graph = _Graph(model)
    scales = {output.name: graph.replace(output.name) for output in model.graph.output}
    names = [[each.name for each in values] for values in (graph.model.graph.input, graph.model.graph.output)]
    cut = onnx.utils.Extractor(graph.model).extract_model(*names)  # without what no output needs any more
    onnx.checker.check_model(cut)
    return cut, scales


@dataclass
class _Tail:
    """What lies between a convolution and an output.

    Attributes:
        convolution: the node.
        factor: product of the constants.
        relu: whether negative values become zero.
        order: of the axes, by a transposition; None: as they are.
    """

    convolution: NodeProto
    factor: float = 1.0
    relu: bool = False
    order: list[int] | None = None


@dataclass
class _Operand:
    """An integer tensor: names of its values and zero point, and its scale."""

    values: str
    zero_point: str
    scale: np.ndarray


class _Graph:
    """A copy of a model, in which outputs are replaced one after another.

    Args:
        model: a QDQ model; it stays as it is.
    """

    def __init__(self, model: ModelProto):
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self._makers = {name: node for node in self.model.graph.node for name in node.output}
        self._constants = {each.name: each for each in self.model.graph.initializer}

    def replace(self, output: str) -> list[float]:
        """Make integers of an output; the scales of its channels."""
        tail = self._tail(output)
        pixels, weights = (self._operand(output, name) for name in tail.convolution.input[:2])
        scales = pixels.scale.astype(np.float64) * weights.scale.astype(np.float64)
        self._append_integers(output, tail, pixels, weights)
        declared = next(each for each in self.model.graph.output if each.name == output)
        declared.type.tensor_type.elem_type = TensorProto.INT32
        return [float(scale) for scale in scales.reshape(-1) * tail.factor]

    def _tail(self, output: str) -> _Tail:
        """Walk from an output back to its convolution."""
        factor, relu, order = 1.0, False, None
        node = self._makers[output]
        while node.op_type != CONVOLUTION:
            ahead = node.input[0]
            if node.op_type in FACTORS:
                ahead, constant = self._factor(output, node)
                factor = float(FACTORS[node.op_type](factor, constant))
            elif node.op_type == "Relu":
                relu = True
            elif node.op_type == "Transpose" and order is None:
                order = list(node.attribute[0].ints)
            elif node.op_type not in PASSED:
                raise BundleError(
                    f"{output}: no integers can be given, for {node.op_type} is behind its convolution; "
                    "export float heads, or train with PPFCOSHead.distance: relu"
                )
            node = self._makers[ahead]
        return _Tail(node, factor, relu, order)

    def _factor(self, output: str, node: NodeProto) -> tuple[str, float]:
        """The input of a product that is no constant, and the constant."""
        constants = [name for name in node.input if name in self._constants]
        if node.op_type == "Div":  # only what divides can be a part of the scale
            constants = [name for name in constants if name != node.input[0]]
        values = numpy_helper.to_array(self._constants[constants[0]]) if constants else np.zeros(0)
        if values.size != 1 or values.item() <= 0:  # ReLU and a negative factor cannot change places
            raise BundleError(
                f"{output}: no integers can be given, for it is not multiplied by one positive number; "
                "export float heads"
            )
        return next(name for name in node.input if name != constants[0]), values.item()

    def _operand(self, output: str, name: str) -> _Operand:
        """What a convolution takes, without its dequantisation."""
        node = self._makers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            raise BundleError(f"{output}: its convolution is not in INT8, so that it has no integers to give")
        values, scale, zero_point = node.input
        return _Operand(values, zero_point, numpy_helper.to_array(self._constants[scale]))

    def _append_integers(self, output: str, tail: _Tail, pixels: _Operand, weights: _Operand) -> None:
        """The convolution of integers and what follows it, under the output's name."""
        self._makers[output].output[0] = f"{output}_float"
        operands = [
            self._unsigned(weights),
            pixels.zero_point,
            self._constant(UNSIGNED_ZERO, ZERO_OF_UNSIGNED),
        ]
        steps = [("ConvInteger", operands, list(tail.convolution.attribute))]
        if len(tail.convolution.input) > 2:
            bias = self._operand(output, tail.convolution.input[2]).values
            column = numpy_helper.to_array(self._constants[bias]).reshape(1, -1, 1, 1)
            steps.append(("Add", [self._constant(f"{output}_bias", column)], []))
        if tail.relu:
            steps.append(("Max", [self._constant(f"{output}_zero", np.zeros([], np.int32))], []))
        if tail.order is not None:
            steps.append(("Transpose", [], [helper.make_attribute("perm", tail.order)]))
        value = pixels.values
        for number, (kind, others, attributes) in enumerate(steps, start=1):
            target = output if number == len(steps) else f"{output}_{kind}"
            node = helper.make_node(kind, [value, *others], [target], f"{output}_{kind}")
            node.attribute.extend(attributes)
            self.model.graph.node.append(node)
            value = target

    def _unsigned(self, weights: _Operand) -> str:
        """The weights as uint8 around `ZERO_OF_UNSIGNED`: ONNX Runtime's ConvInteger takes no others."""
        signed = numpy_helper.to_array(self._constants[weights.values]).astype(np.int16)
        return self._constant(f"{weights.values}_unsigned", (signed + ZERO_OF_UNSIGNED).astype(np.uint8))

    def _constant(self, name: str, values: np.ndarray) -> str:
        """Add a constant, once: the levels share theirs."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(values), name)
            self.model.graph.initializer.append(self._constants[name])
        return name
