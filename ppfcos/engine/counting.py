"""How large a model is: its weights, and the work that an image is."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import paddle
from paddle import nn
from paddle.static import InputSpec

from ppfcos.paddle_versions import convolution_shapes, operator_name

STATISTICS = ("_mean", "_variance")  # of batch norms: Paddle counts them among the parameters

# Where each operator has its kernel among its inputs.
KERNELS = {
    "conv2d": 1,
    "depthwise_conv2d": 1,
    "deformable_conv": 2,
    "deformable_conv_v1": 2,  # without a mask, before 3.0
}
UNCOUNTED = ("conv", "matmul", "attention")  # parts of names of operators whose work would be missed


class WeightCount(NamedTuple):
    """Numbers of weights; statistics are none.

    Attributes:
        total: all of them.
        trained: those that learn.
    """

    total: int
    trained: int


def count_weights(model: nn.Layer) -> WeightCount:
    """Count a model's weights.

    Args:
        model: any.

    Returns:
        The numbers.
    """
    sizes = [
        (int(parameter.size), parameter.trainable)
        for name, parameter in model.named_parameters()
        if not name.endswith(STATISTICS)
    ]
    return WeightCount(sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable))


def count_multiply_adds(model: nn.Layer, height: int, width: int) -> int:
    """Count the multiply-adds of one image's way through the network, which the literature calls its FLOPs.

    Those of convolutions count, deformable ones among them, as often as they run: a tower that five levels
    share, five times. Norms, activations, sums and resizing (together about a hundredth) do not, as in
    torchvision's figures, nor does what happens to the head's answers. Nothing is computed: the operators of
    the traced network are looked at.

    Args:
        model: a PPFCOS, in evaluation mode.
        height: of the network's input.
        width: likewise.

    Returns:
        The number.

    Raises:
        ValueError: the network has an operator that this does not know how to count.
    """
    inputs = [InputSpec([1, 3, height, width], "float32"), InputSpec([1, 2], "float32")]
    network = paddle.jit.to_static(model.network, input_spec=inputs, full_graph=True)
    operators = network.concrete_program.main_program.global_block().ops
    return sum(_multiply_adds(operator) for operator in operators)


def _multiply_adds(operator: Any) -> int:
    name = operator_name(operator)
    if name not in KERNELS:
        if any(part in name for part in UNCOUNTED):
            raise ValueError(f"the multiply-adds of {name} are not known here")
        return 0
    # [out, in of a group, height, width] and [1, out, H, W]
    kernel, outputs = convolution_shapes(operator, KERNELS[name])
    if min(outputs) < 0:
        raise ValueError(f"{name}: the size of its output is not known before it runs")
    return math.prod(outputs) * math.prod(kernel[1:])
