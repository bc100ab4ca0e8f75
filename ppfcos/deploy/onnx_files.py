"""Reading untrusted ONNX files.

An ONNX tensor may be stored in another file, and the runtimes follow absolute paths, `..` and links, or read
a memory address. An exported file contains all its tensors, so every such reference is refused, and the
runtimes load the checked bytes. Deployment does not need the onnx package, so the few relevant fields are
read from protobuf's wire format.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ppfcos.deploy.protobuf import BYTES, MAX_DEPTH, MAX_FIELDS, InvalidMessageError, read_fields
from ppfcos.errors import BundleError
from ppfcos.fileio import read_bytes

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


class OnnxFile(NamedTuple):
    """The content of a checked ONNX file, and its path for messages."""

    path: Path
    content: bytes


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
    except InvalidMessageError as error:
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
            raise InvalidMessageError(f"nested deeper than {MAX_DEPTH} messages")
        graphs += message == GRAPH
        inner = FIELDS[message]
        for number, wire_type, first, last in read_fields(content, start, end, budget):
            if message == TENSOR and (number == EXTERNAL_DATA or (number == DATA_LOCATION and first)):
                return True
            if wire_type != BYTES:
                continue
            if number in inner:
                pending.append((inner[number], first, last, depth + 1))
            elif message == NODE and number == OP_TYPE and content[first:last] == COMPILED_ELSEWHERE:
                return True
    if not graphs:
        raise InvalidMessageError("no graph")
    return False
