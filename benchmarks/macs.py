"""Counts the multiply-accumulate operations (MACs) of a network; FLOPs are twice as many."""

from __future__ import annotations

import math
from typing import Any

import paddle
from paddle import nn
from paddle.static import InputSpec

from ppfcos.paddle_versions import convolution_shapes, operator_name

# Index of the kernel among the inputs of each operator.
KERNELS = {
    "conv2d": 1,
    "depthwise_conv2d": 1,
    "deformable_conv": 2,
    "deformable_conv_v1": 2,  # without a mask, before 3.0
}
NOT_COUNTED = ("conv", "matmul", "attention")  # parts of names of operators that would be missed


def count_macs(model: nn.Layer, height: int, width: int) -> int:
    """Count the MACs of the convolutions for one image [1, 3, height, width].

    Shared towers count once for each level. Norms, activations, additions and resizing (about 1% together)
    and post-processing do not count, as in torchvision's figures. The traced operators are inspected, not
    run.

    Raises:
        ValueError: the network has an operator whose MACs are unknown.
    """
    inputs = [InputSpec([1, 3, height, width], "float32"), InputSpec([1, 2], "float32")]
    network = paddle.jit.to_static(model.network, input_spec=inputs, full_graph=True)
    operators = network.concrete_program.main_program.global_block().ops
    return sum(_macs(operator) for operator in operators)


def _macs(operator: Any) -> int:
    name = operator_name(operator)
    if name not in KERNELS:
        if any(part in name for part in NOT_COUNTED):
            raise ValueError(f"the MACs of {name} are unknown")
        return 0
    # [out, in / groups, height, width] and [1, out, H, W]
    kernel, outputs = convolution_shapes(operator, KERNELS[name])
    if min(outputs) < 0:
        raise ValueError(f"{name}: its output size is unknown before it runs")
    return math.prod(outputs) * math.prod(kernel[1:])
