"""The head of a picture's file: its colours and its orientation, and what reading makes of them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, ImageFile

from ppfcos.data.tally import Change
from ppfcos.image_files import PILLOW_FORMATS
from ppfcos.regular_files import require_regular

_EXIF_ORIENTATION = 0x0112
_TURNS_BY_A_QUARTER = (5, 6, 7, 8)
_TURNED_BY_OPENCV = ("JPEG", "MPO", "PNG", "TIFF")
_KIND_OF_MODE = {
    "1": "image-grey",
    "L": "image-grey",
    "LA": "image-grey",
    "I;16": "image-grey",
    "I;16B": "image-grey",
    "P": "image-palette",
    "PA": "image-palette",
    "CMYK": "image-cmyk",
}
_PNG_DEPTH_AT, _TIFF_BITS = 24, 258
_CHANGE_OF_KIND = {
    "image-grey": Change.GREY,
    "image-palette": Change.PALETTE,
    "image-cmyk": Change.CMYK,
    "image-16-bit": Change.DEEP,
    "image-alpha": Change.ALPHA,
    "image-turned": Change.TURNED,
    "image-turn-unclear": Change.TURNED,
}


class Header(NamedTuple):
    """What a file says of its picture before its pixels.

    Attributes:
        format: Pillow's name of it.
        width: In pixels, as they are stored.
        height: Likewise.
        mode: Pillow's name of the colours.
        orientation: EXIF's, from 1, the upright one, to 8.
        deep: Whether a channel has more than 8 bits.
        transparent: Whether there is an alpha channel or a transparent colour.
    """

    format: str
    width: int
    height: int
    mode: str
    orientation: int
    deep: bool
    transparent: bool


def read_header(path: str) -> Header | None:
    """What Pillow reads of a file's head.

    Args:
        path: The picture's file.

    Returns:
        None where Pillow knows no such format, or the head is damaged.
    """
    try:
        require_regular(path)
        with pillow_set_up(), Image.open(path, formats=PILLOW_FORMATS) as picture:
            return Header(
                str(picture.format),
                picture.width,
                picture.height,
                picture.mode,
                _orientation(picture),
                _is_deep(picture, path),
                "A" in picture.getbands() or "transparency" in picture.info,
            )
    except Exception:  # a broken head makes Pillow raise whatever it stumbles over
        return None


def _orientation(picture: Image.Image) -> int:
    """From 1, the upright one, to 8.

    Not by `getexif`, which decodes the whole of a PNG, and believes XMP where OpenCV does not.
    """
    exif = Image.Exif()
    exif.load(picture.info.get("exif", b""))
    tags = getattr(picture, "tag_v2", {})  # a TIFF's
    return int(tags.get(_EXIF_ORIENTATION) or exif.get(_EXIF_ORIENTATION) or 1)


@contextlib.contextmanager
def pillow_set_up() -> Iterator[None]:
    """Pillow opens a picture of any size, whose pixels nobody asks for, and does not pass over a missing end.

    Both are settings of the process, and PaddleDetection changes the second when it is imported.
    """
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _is_deep(picture: Image.Image, path: str) -> bool:
    """Whether a channel has more than 8 bits; Pillow's mode does not tell for colours."""
    if picture.mode.startswith(("I", "F")):
        return True
    if picture.format == "PNG":
        with open(path, "rb") as stream:
            return stream.read(_PNG_DEPTH_AT + 1)[_PNG_DEPTH_AT] > 8
    bits = getattr(picture, "tag_v2", {}).get(_TIFF_BITS, (8,))
    return max(bits if isinstance(bits, tuple) else (bits,)) > 8


def colour_kinds(header: Header) -> Iterator[tuple[str, str]]:
    """Why `read_image` converts the pixels to 8-bit RGB.

    Args:
        header: Of the picture.

    Yields:
        (kind of finding, detail).
    """
    detail = f"Pillow calls its mode {header.mode}"
    if header.mode in _KIND_OF_MODE:
        yield _KIND_OF_MODE[header.mode], detail
    if header.deep:
        yield "image-16-bit", detail
    if header.transparent:
        yield "image-alpha", detail


def turn_kinds(header: Header, stated: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
    """What `read_image` makes of the EXIF orientation of a picture that it can read.

    Args:
        header: Of the picture.
        stated: (height, width) that the annotation states, or None.

    Yields:
        (kind of finding, detail), at most one.
    """
    if not 2 <= header.orientation <= 8:
        return
    detail = f"EXIF orientation {header.orientation}"
    exchanges_sides = header.orientation in _TURNS_BY_A_QUARTER and header.width != header.height
    if header.format not in _TURNED_BY_OPENCV:
        yield "image-not-turned", f"{detail}, which OpenCV takes no notice of in {header.format}"
    elif stated is None or not exchanges_sides:
        yield "image-turn-unclear", detail
    # libtiff has turned a TIFF before anybody can ask for the stored pixels
    elif header.format == "TIFF" or stated == (header.width, header.height):
        yield "image-turned", detail
    else:
        yield "image-not-turned", f"{detail}, but the stated size is that of the stored pixels"


def changes_in_reading(path: str, stated: tuple[int, int] | None) -> list[Change]:
    """What `read_image` does to a picture that it can read, besides decoding it.

    Args:
        path: The picture's file.
        stated: (height, width) that the annotation states, or None.

    Returns:
        The changes; none of a plain picture in colour.
    """
    header = read_header(path)
    if header is None:
        return []
    kinds = [kind for kind, _ in (*colour_kinds(header), *turn_kinds(header, stated))]
    return [_CHANGE_OF_KIND[kind] for kind in kinds if kind in _CHANGE_OF_KIND]
