"""Reading untrusted ONNX files.

An ONNX tensor may be stored in another file, and the runtimes follow absolute paths, `..` and links, or read
a memory address. An exported file contains all its tensors, so every such reference is refused, and the
runtimes load the checked bytes. Deployment does not need the onnx package, so the few relevant fields are
read from protobuf's wire format.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ppfcos.errors import BundleError
from ppfcos.fileio import read_bytes

MAX_FIELDS = 500_000  # half a second; an exported network has 10,000
MAX_DEPTH = 100  # of protobuf's own readers

# The fields of onnx.proto that lead to a tensor: field number and message, by message.
MODEL, TRAINING, FUNCTION, GRAPH, NODE, ATTRIBUTE, SPARSE_TENSOR, TENSOR = range(8)
FIELDS = {
    MODEL: {7: GRAPH, 20: TRAINING, 25: FUNCTION},
    TRAINING: {1: GRAPH, 2: GRAPH},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE_TENSOR},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE_TENSOR, 23: SPARSE_TENSOR},
    SPARSE_TENSOR: {1: TENSOR, 2: TENSOR},
    TENSOR: {},
}
OP_TYPE = 4  # of NODE
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of TENSOR
COMPILED_ELSEWHERE = b"EPContext"  # a node of ONNX Runtime that names a file of a provider

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; groups, 3 and 4, are in no ONNX file
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}


class OnnxFile(NamedTuple):
    """The content of a checked ONNX file, and its path for messages."""

    path: Path
    content: bytes


class _InvalidError(Exception):
    """The content is not in protobuf's wire format, or exceeds a limit."""


def read_onnx(path: Path) -> OnnxFile:
    """Read and check an ONNX file; a `BundleError` if it cannot be read or `checked_onnx` refuses it."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); export it again") from error
    return checked_onnx(path, content)


def checked_onnx(path: Path, content: bytes) -> OnnxFile:
    """Check the content of an ONNX file; a `BundleError` if it is not ONNX or refers to other files."""
    try:
        has_references = _has_references(content)
    except _InvalidError as error:
        raise BundleError(f"{path}: not a valid ONNX network ({error}); export it again") from error
    if has_references:
        raise BundleError(
            f"{path}: the network refers to data outside the file, which is refused; "
            "export it again into one file"
        )
    return OnnxFile(path, content)


def _has_references(content: bytes) -> bool:
    pending = [(MODEL, 0, len(content), 0)]
    budget = [MAX_FIELDS]
    graphs = 0
    while pending:
        message, start, end, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise _InvalidError(f"nested deeper than {MAX_DEPTH} messages")
        graphs += message == GRAPH
        inner = FIELDS[message]
        for number, wire_type, first, last in _fields(content, start, end, budget):
            if message == TENSOR and (number == EXTERNAL_DATA or (number == DATA_LOCATION and first)):
                return True
            if wire_type != BYTES:
                continue
            if number in inner:
                pending.append((inner[number], first, last, depth + 1))
            elif message == NODE and number == OP_TYPE and content[first:last] == COMPILED_ELSEWHERE:
                return True
    if not graphs:
        raise _InvalidError("no graph")
    return False


def _fields(content: bytes, start: int, end: int, budget: list[int]) -> Iterator[tuple[int, int, int, int]]:
    """Field number, wire type, and the value of a varint or the start and end of bytes."""
    position = start
    while position < end:
        budget[0] -= 1
        if budget[0] < 0:
            raise _InvalidError(f"more than {MAX_FIELDS} fields")
        tag, position = _varint(content, position, end)
        number, wire_type = tag >> 3, tag & 7
        if not number or tag >> 32:
            raise _InvalidError(f"invalid field at byte {position}")
        first = last = 0
        if wire_type == VARINT:
            first, position = _varint(content, position, end)
        elif wire_type == BYTES:
            length, first = _varint(content, position, end)
            last = position = first + length
        elif wire_type in FIXED_SIZES:
            position += FIXED_SIZES[wire_type]
        else:
            raise _InvalidError(f"invalid field at byte {position}")
        if position > end:
            raise _InvalidError(f"truncated at byte {position}")
        yield number, wire_type, first, last


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _InvalidError(f"invalid number at byte {position}")
