"""Load untrusted YAML within limits of size, depth and number of values."""

from __future__ import annotations

import functools
import re
from typing import Any

import yaml

MAX_BYTES = 4 << 20
MAX_NUMBER_LENGTH = 200  # characters; int() and the sexagesimal forms take quadratic time
MAX_INT_BITS = 64  # larger integers can share a hash, so that a dict of them takes quadratic time
SURROGATES_AND_NUL = re.compile("[\0\ud800-\udfff]")  # YAML can escape them; no file name may hold them

# What PyYAML raises for scalars such as `!!bool x`, `!!int ''`, `2001-99-99` and "\UFFFFFFFF".
BUILTIN_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


class YAMLLimitError(yaml.MarkedYAMLError):
    """A document is larger or deeper than allowed, or contains itself."""


def load_yaml(
    text: str | bytes,
    loader: type[yaml.SafeLoader] = yaml.SafeLoader,
    *,
    max_nodes: int = 100_000,
    max_depth: int = 50,
) -> Any:
    """Load a YAML document that can be walked and copied in bounded time.

    Args:
        text: at most `MAX_BYTES` bytes or characters.
        loader: a safe loader whose constructor takes only the text.
        max_nodes: of scalars, sequences and mappings; an alias counts as the nodes that it stands for.
        max_depth: of nested sequences and mappings, including those behind aliases.

    Raises:
        yaml.YAMLError: The text is not valid YAML, or a value is not valid for its tag.
        YAMLLimitError: The document exceeds a limit, a node contains itself, an integer needs more than 64
            bits, or text contains NUL or a lone surrogate.
    """
    if len(text) > MAX_BYTES:
        raise YAMLLimitError(problem=f"the document is larger than {MAX_BYTES >> 20} MiB")
    bounded = None
    try:
        bounded = _bounded(loader)(text)
        bounded.max_nodes, bounded.max_depth = max_nodes, max_depth
        return bounded.get_single_data()
    except BUILTIN_ERRORS as error:
        raise _marked(error, None if bounded is None else bounded.get_mark()) from error


def _marked(error: Exception, mark: yaml.Mark | None) -> yaml.YAMLError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error) or type(error).__name__
    return yaml.constructor.ConstructorError(problem=f"not a valid value ({reason})", problem_mark=mark)


@functools.lru_cache(maxsize=16)
def _bounded(loader: type[yaml.SafeLoader]) -> type[yaml.SafeLoader]:
    return type("BoundedLoader", (_Limits, loader), {})


class _Limits:
    """Mixin of a loader that counts nodes and checks scalars before values are constructed."""

    max_nodes = 0
    max_depth = 0

    def __init__(self, text: str | bytes):
        super().__init__(text)
        self._nodes = 0
        self._depth = 0  # of the node that is being composed
        self._height = 0  # levels below it that have been composed so far
        self._sizes: dict[int, tuple[int, int]] = {}  # nodes and levels of a complete node, by its id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        mark = event.start_mark
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise YAMLLimitError(problem=f"*{event.anchor} contains itself", problem_mark=mark)
            nodes, height = self._sizes[id(node)]
            self._count(nodes, height, mark)
            return node
        before, height_before = self._nodes, self._height
        self._count(1, 1, mark)
        self._depth += 1
        self._height = 0
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = (self._nodes - before, self._height + 1)
        self._height = max(height_before, self._height + 1)
        return node

    def _count(self, nodes: int, height: int, mark: yaml.Mark) -> None:
        self._nodes += nodes
        self._height = max(self._height, height)
        if self._nodes > self.max_nodes:
            raise YAMLLimitError(
                problem=f"more than {self.max_nodes} values, aliases counted in full",
                problem_mark=mark,
            )
        if self._depth + height > self.max_depth + 1:  # a scalar in the deepest sequence is one more
            raise YAMLLimitError(problem=f"nested deeper than {self.max_depth} levels", problem_mark=mark)

    def compose_scalar_node(self, anchor: str | None) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if SURROGATES_AND_NUL.search(node.value):
            raise YAMLLimitError(problem="text with NUL or a lone surrogate", problem_mark=node.start_mark)
        if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_NUMBER_LENGTH:
            raise YAMLLimitError(
                problem=f"a number of more than {MAX_NUMBER_LENGTH} characters", problem_mark=node.start_mark
            )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except BUILTIN_ERRORS as error:
            raise _marked(error, node.start_mark) from error
        if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise YAMLLimitError(
                problem=f"an integer of more than {MAX_INT_BITS} bits", problem_mark=node.start_mark
            )
        return value
