"""An ONNX model in 16 bits, as far as that does no harm."""

from __future__ import annotations

import copy

from onnx import GraphProto, ModelProto
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

CONVOLUTION = "Conv"
# Sums over a whole feature map leave float16's range, and so do squares.
SUMMING = ["InstanceNormalization", "GroupNormalization", "ReduceMean", "ReduceSum", "Pow", "Sqrt", "Exp"]


def half_precision(model: ModelProto) -> ModelProto:
    """The same network in float16 between its first convolutions and its last.

    What is done to pixels stays in float32, and so does everything from the convolutions on that make logits
    and distances: float16 tells positions beyond 1024 apart by whole pixels only.

    Args:
        model: in float32; it stays as it is.

    Returns:
        A model with the same inputs and outputs.
    """
    return convert_float_to_float16(
        copy.deepcopy(model),
        keep_io_types=True,
        op_block_list=DEFAULT_OP_BLOCK_LIST + SUMMING,
        node_block_list=_outside_the_convolutions(model.graph),
    )


def _outside_the_convolutions(graph: GraphProto) -> list[str]:
    """Names of the nodes without a convolution before them, and of the last convolutions and all behind."""
    behind: set[str] = set()  # values that a convolution had a part in
    for node in graph.node:
        if node.op_type == CONVOLUTION or behind.intersection(node.input):
            behind.update(node.output)
    before: set[str] = set()  # values that a convolution will be made of
    for node in reversed(graph.node):
        if node.op_type == CONVOLUTION or before.intersection(node.output):
            before.update(node.input)
    return [
        node.name
        for node in graph.node
        if not (behind.intersection(node.output) and before.intersection(node.output))
    ]
