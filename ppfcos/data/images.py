"""Reads images from disk for training: pixels, sizes, and what is converted on the way.

Which files are decoded, and how, is decided in `ppfcos.image_files`, for training and deployment alike.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import (
    BmpImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ppfcos.data.statistics import LoadEvent
from ppfcos.fileio import require_regular
from ppfcos.image_files import (
    ImageFile,
    ImageFileError,
    TooLargeImageError,
    TruncatedImageError,
    image_format,
    read_file,
)

try:
    import simplejpeg
except ImportError:  # there is not a wheel for every machine
    simplejpeg = None

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# Image.open checks a limit of pixels that is a setting of the process; these do not.
_PILLOW_READERS = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "PNM": PpmImagePlugin.PpmImageFile,
}
_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
_ROTATED_BY_OPENCV = ("JPEG", "MPO", "PNG", "TIFF")
_PNG_DEPTH_OFFSET, _TIFF_BITS = 24, 258
_MAX_PNG_CHUNKS = 100_000
_ISSUE_OF_MODE = {
    **dict.fromkeys(("1", "L", "LA", "I;16", "I;16B"), "image-grey"),
    **dict.fromkeys(("P", "PA"), "image-palette"),
    "CMYK": "image-cmyk",
}
_EVENT_OF_ISSUE = {
    "image-grey": LoadEvent.GRAYSCALE,
    "image-palette": LoadEvent.PALETTE,
    "image-cmyk": LoadEvent.CMYK,
    "image-16-bit": LoadEvent.SIXTEEN_BIT,
    "image-alpha": LoadEvent.ALPHA,
    "image-turned": LoadEvent.ROTATED,
    "image-turn-unclear": LoadEvent.ROTATED,
}


class ImageUnreadable(Exception):
    """An image that cannot be used; `reason` says why, without the path."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class ImageTruncated(ImageUnreadable):
    """The file ends before its pixels do."""


class ImageTooLarge(ImageUnreadable):
    """The image has more pixels or scans than are decoded."""


class ImageSizeMismatch(ImageUnreadable):
    """The image does not have the size that its annotation states, rotated or not."""


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image of any colors and depth to 8-bit RGB.

    OpenCV rotates an image by its EXIF orientation. Most annotations are made on the rotated image, but some
    tools write them for the pixels as they are stored: `size` decides. An image that has neither size is
    refused, because the frame of its boxes is unknown.

    Args:
        path: The image file.
        size: (height, width) that the annotation states; None if it states none.

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        ImageUnreadable: The file is missing, empty, truncated, too large, no image, or of another size.
    """
    with _named_errors(path):
        file = ImageFile(read_file(path))
        if size is not None and tuple(size) not in ((file.height, file.width), (file.width, file.height)):
            raise _another_size(path, file.height, file.width, size)
        image = _decode_plain_jpeg(file, None if size is None else tuple(size))
        if image is not None:
            return image
        image = file.decode()
        if size is not None and image.shape[:2] != tuple(size):
            height, width = image.shape[:2]
            image = file.decode(apply_orientation=False)
            if image.shape[:2] != tuple(size):
                raise _another_size(path, height, width, size)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_plain_jpeg(file: ImageFile, size: tuple[int, int] | None) -> np.ndarray | None:
    """Decode a JPEG to OpenCV's pixels in less than half of OpenCV's time.

    None where OpenCV is needed: another format or size, colors other than gray and YCbCr, EXIF, damage, or
    no simplejpeg.
    """
    if simplejpeg is None or file.format != "JPEG" or b"Exif\0\0" in file.data:
        return None
    with contextlib.suppress(ValueError, MemoryError):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(file.data)
        if colors in ("YCbCr", "Gray") and size in (None, (height, width)):
            return simplejpeg.decode_jpeg(file.data, "RGB")
    return None


@contextlib.contextmanager
def _named_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of reading and decoding into ImageUnreadable."""
    try:
        yield
    except OSError as error:
        raise ImageUnreadable(path, error.strerror or "cannot be read") from None
    except ValueError as error:  # a NUL in the name
        raise ImageUnreadable(path, str(error)) from None
    except TruncatedImageError as error:
        raise ImageTruncated(path, str(error)) from None
    except TooLargeImageError as error:
        raise ImageTooLarge(path, str(error)) from None
    except ImageFileError as error:
        raise ImageUnreadable(path, str(error)) from None


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
        format: Pillow's name of the format.
        width: In pixels, as stored.
        height: In pixels, as stored.
        mode: Pillow's name of the color mode.
        orientation: EXIF orientation, 1 (not rotated) to 8.
        deep: Whether a channel has more than 8 bits.
        transparent: Whether there is an alpha channel or a transparent color.
    """

    format: str
    width: int
    height: int
    mode: str
    orientation: int
    deep: bool
    transparent: bool


def read_header(path: str | Path) -> Header | None:
    """Read the header of an image file with Pillow; None for an unknown format or a damaged header."""
    try:
        require_regular(path)
        with open(path, "rb") as stream:
            reader = _PILLOW_READERS[image_format(stream.read(32))]
            stream.seek(_PNG_DEPTH_OFFSET)
            png_depth = stream.read(1)[0]
            stream.seek(0)
            image = reader(stream, str(path))
            tags = getattr(image, "tag_v2", {})  # of a TIFF
            # getexif() would decode all of a PNG, and use XMP, which OpenCV ignores
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            bits = tags.get(_TIFF_BITS, (8,))
            bits = (png_depth,) if image.format == "PNG" else bits if isinstance(bits, tuple) else (bits,)
            return Header(
                str(image.format),
                image.width,
                image.height,
                image.mode,
                int(tags.get(_EXIF_ORIENTATION) or exif.get(_EXIF_ORIENTATION) or 1),
                image.mode.startswith(("I", "F")) or max(bits) > 8,
                "A" in image.getbands() or "transparency" in image.info,
            )
    except Exception:  # a damaged header makes Pillow raise any error
        return None


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels of what `read_image` returns, from the header where that decides it.

    Raises:
        ImageUnreadable: The file is missing, empty or no image.
    """
    header = read_header(path)
    if header is None:
        return read_image(path).shape[:2]
    size = (header.height, header.width)
    if header.format in ("JPEG", "MPO"):
        return size[::-1] if header.orientation in _QUARTER_TURNS else size
    # Whether OpenCV rotates the other formats depends on its version.
    if header.orientation != 1 or (header.format == "PNG" and _has_exif_chunk(path)):
        return read_image(path).shape[:2]
    return size


def _has_exif_chunk(path: str | Path) -> bool:
    """Whether a PNG has an eXIf chunk anywhere; Pillow's header ends at the pixels."""
    with open(path, "rb") as stream:
        stream.seek(8)
        for _ in range(_MAX_PNG_CHUNKS):
            head = stream.read(8)
            if len(head) < 8 or head[4:] == b"IEND":
                break
            if head[4:] == b"eXIf":
                return True
            stream.seek(struct.unpack(">I", head[:4])[0] + 4, os.SEEK_CUR)
    return False


def color_issues(header: Header) -> Iterator[tuple[str, str]]:
    """Why `read_image` converts the pixels: (issue type, detail) each."""
    detail = f"Pillow's mode {header.mode}"
    if header.mode in _ISSUE_OF_MODE:
        yield _ISSUE_OF_MODE[header.mode], detail
    if header.deep:
        yield "image-16-bit", detail
    if header.transparent:
        yield "image-alpha", detail


def orientation_issues(header: Header, stated: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
    """What `read_image` does about the EXIF orientation: at most one (issue type, detail).

    Args:
        header: Of an image that can be read.
        stated: (height, width) that the annotation states, or None.
    """
    if not 2 <= header.orientation <= 8:
        return
    detail = f"EXIF orientation {header.orientation}"
    swaps_sides = header.orientation in _QUARTER_TURNS and header.width != header.height
    if header.format not in _ROTATED_BY_OPENCV:
        yield "image-not-turned", f"{detail}, which OpenCV ignores in {header.format}"
    elif stated is None or not swaps_sides:
        yield "image-turn-unclear", detail
    # libtiff always rotates a TIFF
    elif header.format == "TIFF" or stated == (header.width, header.height):
        yield "image-turned", detail
    else:
        yield "image-not-turned", f"{detail}, but the stated size is that of the stored pixels"


def load_events(path: str, stated: tuple[int, int] | None) -> list[LoadEvent]:
    """What `read_image` changes in an image; empty for an 8-bit RGB image that is not rotated.

    Args:
        path: Of an image that can be read.
        stated: (height, width) that the annotation states, or None.
    """
    header = read_header(path)
    if header is None:
        return []
    issues = [issue for issue, _ in (*color_issues(header), *orientation_issues(header, stated))]
    return [_EVENT_OF_ISSUE[issue] for issue in issues if issue in _EVENT_OF_ISSUE]


def list_images(folder: Path) -> list[str]:
    """The images in a folder and its subfolders, linked ones too, sorted by path, without hidden ones."""
    return list_files(folder, IMAGE_SUFFIXES)


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The files with these suffixes in a folder and its subfolders, sorted by path, without hidden ones.

    A link to a folder is followed once, unless it leads to a folder that contains it.
    """
    found: list[str] = []
    followed = {os.path.realpath(folder)}

    def is_wanted(path: str) -> bool:
        if not os.path.islink(path):
            return True
        target = os.path.realpath(path)
        inside = os.path.join(os.path.realpath(os.path.dirname(path)), "").startswith(
            os.path.join(target, "")
        )
        if inside or target in followed:
            return False
        followed.add(target)
        return True

    for directory, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if not is_clutter(name) and is_wanted(os.path.join(directory, name))
        ]
        found += [
            os.path.join(directory, name)
            for name in names
            if name.lower().endswith(suffixes) and not is_clutter(name)
        ]
    return sorted(found)


def _another_size(path: str | Path, height: int, width: int, stated: tuple[int, int]) -> ImageSizeMismatch:
    return ImageSizeMismatch(
        path, f"is {width}x{height} pixels, but its annotation says {stated[1]}x{stated[0]}"
    )


def is_clutter(name: str) -> bool:
    """Whether the name is that of a hidden file or of macOS's folder in a ZIP file."""
    return name.startswith(".") or name == "__MACOSX"
