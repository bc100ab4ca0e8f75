"""Whether the file of a JPEG has all of its pixels, which the decoders do not say."""

from __future__ import annotations

JPEG_START, _END = b"\xff\xd8", b"\xff\xd9"
# what may follow 0xff within the pixels (0: the pixels have this value; restarts), and the start itself
_MARKERS_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}


def is_cut_short(data: bytes) -> bool:
    """Whether a file is a JPEG without its end; OpenCV fills what is missing with grey and tells nobody.

    Behind the end there may be more (from some cameras), and within there may be a preview with its own end.

    Args:
        data: the content of a picture's file, of whatever kind.
    """
    if not data.startswith(JPEG_START) or data.endswith(_END):
        return False
    position = len(JPEG_START)
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            return True
        marker = data[position + 1]
        if marker == _END[1]:
            return False
        if marker == 0xFF:  # padding
            position += 1
        elif marker in _MARKERS_WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
