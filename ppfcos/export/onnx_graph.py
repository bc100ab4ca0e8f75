"""Reachability in an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto

Predicate = Callable[["NodeProto"], bool]


def is_conv(node: NodeProto) -> bool:
    """Whether a node is a convolution."""
    return node.op_type == "Conv"


def values_after(nodes: Sequence[NodeProto], is_source: Predicate = is_conv) -> set[str]:
    """Values that depend on a node for which `is_source` holds, that node's own outputs included.

    `nodes` are in topological order, as ONNX demands.
    """
    return _reach(nodes, is_source, lambda node: (node.input, node.output))


def values_before(nodes: Sequence[NodeProto], is_target: Predicate = is_conv) -> set[str]:
    """Values that a node for which `is_target` holds depends on, that node's own inputs included."""
    return _reach(reversed(nodes), is_target, lambda node: (node.output, node.input))


def _reach(
    nodes: Iterable[NodeProto],
    is_start: Predicate,
    ends: Callable[[NodeProto], tuple[Iterable[str], Iterable[str]]],
) -> set[str]:
    reached: set[str] = set()
    for node in nodes:
        near, far = ends(node)
        if is_start(node) or reached.intersection(near):
            reached.update(far)
    return reached
