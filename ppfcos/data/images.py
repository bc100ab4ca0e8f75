"""Reading one picture from disk, in the frame that its annotation speaks of."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ppfcos import regular_files
from ppfcos.image_files import (
    PILLOW_FORMATS,
    ImageFile,
    ImageFileError,
    TooLargeImageError,
    TruncatedImageError,
    read_file,
)

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


class ImageCutShort(ImageUnreadable):
    """A picture whose file ends before its pixels do."""


class ImageTooLarge(ImageUnreadable):
    """A picture of more pixels or scans than are decoded."""


class ImageOfAnotherSize(ImageUnreadable):
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
            raise ImageOfAnotherSize(
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
        regular_files.require_regular(path)
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
        raise ImageCutShort(path, str(error)) from None
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
