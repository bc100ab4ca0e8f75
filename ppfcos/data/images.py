"""Reading one picture from disk, in the frame that its annotation speaks of."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL import ImageFile as PillowFile

from ppfcos import fileio
from ppfcos.data.statistics import LoadEvent
from ppfcos.fileio import require_regular
from ppfcos.image_files import (
    PILLOW_FORMATS,
    ImageFile,
    ImageFileError,
    TooLargeImageError,
    TruncatedImageError,
    read_file,
)

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
    "image-grey": LoadEvent.GRAYSCALE,
    "image-palette": LoadEvent.PALETTE,
    "image-cmyk": LoadEvent.CMYK,
    "image-16-bit": LoadEvent.SIXTEEN_BIT,
    "image-alpha": LoadEvent.ALPHA,
    "image-turned": LoadEvent.ROTATED,
    "image-turn-unclear": LoadEvent.ROTATED,
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
    before = Image.MAX_IMAGE_PIXELS, PillowFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, PillowFile.LOAD_TRUNCATED_IMAGES = None, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, PillowFile.LOAD_TRUNCATED_IMAGES = before


def _is_deep(picture: Image.Image, path: str) -> bool:
    """Whether a channel has more than 8 bits; Pillow's mode does not tell for colours."""
    if picture.mode.startswith(("I", "F")):
        return True
    if picture.format == "PNG":
        with open(path, "rb") as stream:
            return stream.read(_PNG_DEPTH_AT + 1)[_PNG_DEPTH_AT] > 8
    bits = getattr(picture, "tag_v2", {}).get(_TIFF_BITS, (8,))
    return max(bits if isinstance(bits, tuple) else (bits,)) > 8


def color_issues(header: Header) -> Iterator[tuple[str, str]]:
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


def orientation_issues(header: Header, stated: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
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


def load_events(path: str, stated: tuple[int, int] | None) -> list[Change]:
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
    kinds = [kind for kind, _ in (*color_issues(header), *orientation_issues(header, stated))]
    return [_CHANGE_OF_KIND[kind] for kind in kinds if kind in _CHANGE_OF_KIND]


try:
    import simplejpeg
except ImportError:  # there is not a wheel for every machine
    simplejpeg = None

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

_ORIENTATION = 0x0112  # EXIF's tag
_TURNED_BY_A_QUARTER = (5, 6, 7, 8)
_EXIF = b"Exif\0\0"


class ImageUnreadable(Exception):
    """A picture that cannot be used; `reason` says why, without the path."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class ImageTruncated(ImageUnreadable):
    """A picture whose file ends before its pixels do."""


class ImageTooLarge(ImageUnreadable):
    """A picture of more pixels or scans than are decoded."""


class ImageSizeMismatch(ImageUnreadable):
    """A picture that is not of the stated size, turned or not."""


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes a picture to 8-bit RGB, whatever its own colours and depth are.

    OpenCV turns a picture as its EXIF orientation says. Annotations were mostly made on the turned picture,
    but some tools wrote them on the pixels as they are stored: `size` tells which. A picture that has neither
    size is refused, because nobody knows where its boxes are.

    Args:
        path: The picture's file.
        size: (height, width) that the annotation states; None where nothing is stated.

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        ImageUnreadable: The file is missing, empty, cut short, too large, no picture, or not of the stated
            size.
    """
    with _reasons_named(path):
        file = ImageFile(read_file(path))
        image = _decode_plain_jpeg(file, None if size is None else tuple(size))
        if image is not None:
            return image
        image = file.decode()
        stored = image
        if size is not None and image.shape[:2] != tuple(size):
            stored = file.decode(apply_orientation=False)
    if stored is not image:
        if stored.shape[:2] != tuple(size):
            height, width = image.shape[:2]
            raise ImageSizeMismatch(
                path, f"is {width}x{height} pixels, but its annotation says {size[1]}x{size[0]}"
            )
        image = stored
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_reduced_image(path: str | Path, size: tuple[int, int], least: tuple[int, int]) -> np.ndarray:
    """As `read_image`, but at most an eighth and at least a half smaller, where a JPEG can be decoded so.

    Args:
        path: The picture's file.
        size: (height, width) that the annotation states.
        least: (height, width) that the result must not fall short of.

    Returns:
        [H, W, 3] uint8, RGB, of the whole picture: of `size`, or of half of it or less.

    Raises:
        ImageUnreadable: As `read_image`.
    """
    with _reasons_named(path):
        image = _decode_plain_jpeg(ImageFile(read_file(path)), size, least)
    return read_image(path, size) if image is None else image


def image_size(path: str | Path) -> tuple[int, int]:
    """The height and width that `read_image` gives, mostly from the file's first bytes alone.

    Args:
        path: The picture's file.

    Returns:
        (height, width) in pixels, of the picture turned as its EXIF orientation says.

    Raises:
        ImageUnreadable: The file is missing, empty or no picture.
    """
    try:
        fileio.require_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its many pixels, which stay where they are, and its EXIF
            with Image.open(path, formats=PILLOW_FORMATS) as picture:
                (width, height), kind = picture.size, picture.format
                can_be_turned = kind in ("JPEG", "MPO")
                turned = can_be_turned and picture.getexif().get(_ORIENTATION) in _TURNED_BY_A_QUARTER
    except OSError as error:
        if error.strerror:
            raise ImageUnreadable(path, error.strerror) from None
        return read_image(path).shape[:2]  # nothing that Pillow knows; OpenCV may
    except Exception:  # damaged EXIF makes Pillow raise anything
        return read_image(path).shape[:2]
    if kind not in ("JPEG", "MPO", "BMP") and _may_be_turned(path, kind):
        return read_image(path).shape[:2]  # which formats it turns depends on OpenCV's version
    return (width, height) if turned else (height, width)


def _may_be_turned(path: str | Path, kind: str | None) -> bool:
    """Whether there may be an EXIF orientation somewhere in a PNG, WebP or TIFF."""
    if kind == "TIFF":
        return True
    data = Path(path).read_bytes()
    return b"eXIf" in data or b"EXIF" in data


def list_images(folder: Path) -> list[str]:
    """All pictures in a folder and the folders below it, sorted by path; hidden ones are left out."""
    found = []
    for directory, inner, names in os.walk(folder, followlinks=False):
        inner[:] = [name for name in inner if not is_clutter(name)]
        found += [
            os.path.join(directory, name)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not is_clutter(name)
        ]
    return sorted(found)


def is_clutter(name: str) -> bool:
    """Whether a file or folder is one that systems leave behind: hidden, or macOS's in a ZIP."""
    return name.startswith(".") or name == "__MACOSX"


@contextlib.contextmanager
def _reasons_named(path: str | Path) -> Iterator[None]:
    """Raises ImageUnreadable, which names the file, where it cannot be read or decoded."""
    try:
        yield
    except OSError as error:
        raise ImageUnreadable(path, error.strerror or "cannot be read") from None
    except ValueError as error:  # a zero in the name
        raise ImageUnreadable(path, str(error)) from None
    except TruncatedImageError as error:
        raise ImageTruncated(path, str(error)) from None
    except TooLargeImageError as error:
        raise ImageTooLarge(path, str(error)) from None
    except ImageFileError as error:
        raise ImageUnreadable(path, str(error)) from None


def _decode_plain_jpeg(
    file: ImageFile, size: tuple[int, int] | None = None, least: tuple[int, int] | None = None
) -> np.ndarray | None:
    """The pixels [H, W, 3] RGB of a JPEG, in less than half of OpenCV's time and equal to OpenCV's.

    Args:
        file: The file.
        size: (height, width) that it must have.
        least: (height, width) down to which it may be decoded, at half the scale or less.

    Returns:
        None where OpenCV is to be asked: it is no JPEG of grey or ordinary colours, it has another size,
        there may be an orientation in it, something in it is damaged, or the decoder is not installed.
    """
    if simplejpeg is None or file.format != "JPEG" or _EXIF in file.data:
        return None
    with contextlib.suppress(ValueError, MemoryError):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(file.data)
        if colours not in ("YCbCr", "Gray") or size not in (None, (height, width)):
            return None
        if least is None:
            return simplejpeg.decode_jpeg(file.data, "RGB")
        return simplejpeg.decode_jpeg(file.data, "RGB", min_height=least[0], min_width=least[1], min_factor=2)
    return None
