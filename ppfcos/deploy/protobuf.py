"""Fields of an untrusted protobuf file. Deployment does not need the packages of ONNX and protobuf."""

from __future__ import annotations

from collections.abc import Iterator

MAX_FIELDS = 500_000  # half a second; an exported network has 10,000
MAX_DEPTH = 100  # of protobuf's own readers

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; groups, 3 and 4, are in no network
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}


class InvalidMessageError(Exception):
    """The content is not in protobuf's wire format, or exceeds a limit."""


def read_fields(
    content: bytes, start: int, end: int, budget: list[int]
) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message in `content[start:end]`.

    Args:
        content: the file.
        start: of the message.
        end: of the message.
        budget: one number, how many fields may still be read; it is changed.

    Returns:
        Field number, wire type, and the value of a varint or the start and end of bytes.

    Raises:
        InvalidMessageError: the content is not in protobuf's wire format, or the budget is used up.
    """
    position = start
    while position < end:
        budget[0] -= 1
        if budget[0] < 0:
            raise InvalidMessageError(f"more than {MAX_FIELDS} fields")
        tag, position = _varint(content, position, end)
        number, wire_type = tag >> 3, tag & 7
        if not number or tag >> 32:
            raise InvalidMessageError(f"invalid field at byte {position}")
        first = last = 0
        if wire_type == VARINT:
            first, position = _varint(content, position, end)
        elif wire_type == BYTES:
            length, first = _varint(content, position, end)
            last = position = first + length
        elif wire_type in FIXED_SIZES:
            position += FIXED_SIZES[wire_type]
        else:
            raise InvalidMessageError(f"invalid field at byte {position}")
        if position > end:
            raise InvalidMessageError(f"truncated at byte {position}")
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
    raise InvalidMessageError(f"invalid number at byte {position}")
