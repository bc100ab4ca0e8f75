"""Checks the headers of image files and decodes them, for training, the data-set checker and deployment.

Sizes are checked before a decoder sees the file, because a few hundred bytes can claim billions of pixels.
Nothing here imports Paddle, or Pillow unless OpenCV's WebP decoder is unsafe.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ppfcos.errors import one_line
from ppfcos.fileio import read_bytes, require_regular

# Of one image. 2**28 pixels are enough for phone photographs of 200 megapixels, and take 0.8 GB. For decoders
# that hold several copies of the image, the limit is divided by their number.
MAX_PIXELS = 2**28
_COPIES_OF_SCANS, _COPIES_OF_WEBP = 2, 4
MAX_PIXELS_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
MAX_FILE_BYTES = 2**30
# Each scan of a progressive JPEG takes 0.5 ms a megapixel, even if it has no data. Encoders write about 10
# scans, at most 100; 100 scans are accepted up to 43 megapixels.
MAX_SCANS = 100
MAX_SCAN_PIXELS = 16 * MAX_PIXELS

# Other formats that OpenCV or Pillow know (JPEG 2000, EPS, ...) are never passed to a decoder.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WebP", "PNM")

# The first OpenCV whose wheels hold a libwebp without CVE-2023-4863 (opencv-python 4.8.1.78), and Pillow's.
SAFE_OPENCV, SAFE_PILLOW = (4, 8, 1), (10, 0, 1)
_WEBP_HINT = "pip install 'opencv-python>=4.8.1.78' or 'Pillow>=10.0.1'"

_RAW_VP8 = b"\x9d\x01\x2a"  # libwebp decodes a frame without its RIFF container, too
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # neither a stuffed zero nor a restart marker
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_ARITHMETIC_FRAMES = frozenset(range(0xC9, 0xD0))
_MAX_SEGMENTS = 100_000  # of a JPEG or a PNG; an ICC profile takes up to 255
_DEFLATE_RATIO = 1032  # the most bytes that one byte of deflated data can become
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Those that decide the pixels. The others can expand to 8 MB each, and libpng keeps 1000 of them.
_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"))
_PNM_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,10})")


_TRUNCATED = "the image is cut short"


class ImageFileError(Exception):
    """An image file that is not decoded; the message is one line without the file's name."""


class TruncatedImageError(ImageFileError):
    """The file ends before its pixels do."""


class TooLargeImageError(ImageFileError):
    """The image has more pixels or scans, or the file more bytes, than are decoded."""


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: (4, 8, 1) of 4.8.1-dev."""
    return tuple(int(number) for number in re.match(r"\d+(?:\.\d+)*|", text).group().split(".") if number)


def max_pixels() -> int:
    """The largest number of pixels that is decoded: MAX_PIXELS, or the environment's MAX_PIXELS_VARIABLE."""
    found = re.fullmatch(r"([0-9]{1,19})(kb|mb)?", os.environ.get(MAX_PIXELS_VARIABLE, ""), re.IGNORECASE)
    if found is None:
        return MAX_PIXELS
    return int(found[1]) * {"": 1, "kb": 2**10, "mb": 2**20}[(found[2] or "").lower()]


def read_file(path: str | os.PathLike) -> bytes:
    """The content of an image file.

    Raises:
        OSError: It cannot be read, or is no regular file.
        TooLargeImageError: It has more than MAX_FILE_BYTES.
    """
    require_regular(path)
    size = os.stat(path).st_size
    if size > MAX_FILE_BYTES:
        raise TooLargeImageError(f"the file has {size} bytes, more than {MAX_FILE_BYTES}")
    return read_bytes(Path(path))


class ImageFile:
    """An image file whose header has been checked.

    Args:
        data: The content of the file.

    Attributes:
        data: The content of the file.
        format: One of FORMATS.
        width: In pixels, before an EXIF orientation is applied.
        height: The same.

    Raises:
        TruncatedImageError: The file is too short for its pixels.
        TooLargeImageError: It has more than `max_pixels()` pixels (half of that for a JPEG of several scans,
            a quarter for a WebP), or too many scans.
        ImageFileError: Its format is unknown, or its header is damaged.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.format = image_format(data)
        try:
            self.width, self.height = _SIZES[self.format](data)
        except (struct.error, IndexError, OverflowError):
            raise TruncatedImageError(_TRUNCATED) from None

    def decode(self, apply_orientation: bool = True) -> np.ndarray:
        """Decode to [H, W, 3] uint8, BGR.

        Args:
            apply_orientation: Whether to apply an EXIF orientation, in the formats in which OpenCV does.

        Raises:
            ImageFileError: The decoder fails.
        """
        if self.format == "WebP" and _version(cv2.__version__) < SAFE_OPENCV:
            return _decode_webp(self.data)
        data = b"".join(_png_chunks(self.data)) if self.format == "PNG" else self.data
        flags = cv2.IMREAD_COLOR
        if self.format == "WebP" or not apply_orientation:  # only OpenCV 5 applies that of a WebP
            flags |= cv2.IMREAD_IGNORE_ORIENTATION
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except (cv2.error, MemoryError) as error:
            raise ImageFileError(f"cannot be decoded ({one_line(error)})") from None
        if image is None:
            raise ImageFileError(f"is damaged: OpenCV cannot decode this {self.format} image")
        return image


def image_format(data: bytes) -> str:
    """The format, one of FORMATS, by the first bytes of a file; raises ImageFileError for any other."""
    if not data:
        raise ImageFileError("the file is empty")
    if data[3:6] != _RAW_VP8:
        if data.startswith(b"\xff\xd8"):
            return "JPEG"
        if data.startswith(_PNG_START):
            return "PNG"
        if data.startswith(b"BM"):
            return "BMP"
        if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            return "TIFF"
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return "WebP"
        if re.match(rb"P[1-6]\s", data):
            return "PNM"
    raise ImageFileError(f"is not an image of a known format ({', '.join(FORMATS)})")


def _check_size(width: int, height: int, copies: int = 1) -> tuple[int, int]:
    if width < 1 or height < 1:
        raise ImageFileError(f"is damaged: its header says {width}x{height} pixels")
    limit = max_pixels() // copies
    if width * height > limit:
        raise TooLargeImageError(
            f"has {width}x{height} pixels, more than {limit}: {MAX_PIXELS_VARIABLE} raises that limit"
        )
    return width, height


def _require_bytes(data: bytes, needed: float) -> None:
    if len(data) < needed:
        raise TruncatedImageError(_TRUNCATED)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers after the first with the data of their segments, as libjpeg finds them.

    Raises:
        ImageFileError: There are too many.
        TruncatedImageError: The file has no end marker.
    """
    position = 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None:
            # OpenCV silently fills what is missing with gray
            if not data.endswith(bytes((0xFF, _EOI))):
                raise TruncatedImageError(_TRUNCATED)
            return
        marker, position = found[1][0], found.end()
        if marker == _EOI:
            return
        if marker in (_TEM, _SOI):
            continue
        end = position + max(2, int.from_bytes(data[position : position + 2], "big"))
        yield marker, data[position + 2 : end] if marker in _FRAMES else b""
        position = end
    raise ImageFileError("is damaged: this JPEG has too many segments")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    size, scans = None, 0
    for marker, segment in _jpeg_segments(data):
        if marker in _FRAMES and size is None:
            _, height, width, components = struct.unpack_from(">BHHB", segment)
            size = _check_size(width, height)
            if marker not in _ARITHMETIC_FRAMES:  # each block of 8x8 pixels takes one bit or more
                factors = [divmod(segment[7 + 3 * i], 16) for i in range(components)] or [(1, 1)]
                finest = max(across * down for across, down in factors)
                full = max(across for across, _ in factors) * max(down for _, down in factors)
                _require_bytes(data, width * height / 64 / 8 * finest / max(full, 1))
        elif marker == _SOS:
            if size is None:
                break
            scans += 1
            if scans > MAX_SCANS or scans * size[0] * size[1] > MAX_SCAN_PIXELS:
                raise TooLargeImageError(
                    f"has {scans} or more scans over {size[0]}x{size[1]} pixels; save it again as a JPEG "
                    "that is not progressive"
                )
    if size is None or scans == 0:
        raise ImageFileError("is damaged: this JPEG has no image")
    return size if scans == 1 else _check_size(*size, _COPIES_OF_SCANS)


def _png_chunks(data: bytes) -> Iterator[memoryview]:
    """The signature and the chunks of a PNG that decide its pixels.

    Raises:
        TruncatedImageError: A chunk or the end is missing.
        ImageFileError: There are too many chunks.
    """
    view, position = memoryview(data), len(_PNG_START)
    yield view[:position]
    for _ in range(_MAX_SEGMENTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        _require_bytes(data, end)
        if kind in _PNG_CHUNKS:
            yield view[position:end]
        if kind == b"IEND":
            return
        position = end
    raise ImageFileError("is damaged: this PNG has too many chunks")


def _png_size(data: bytes) -> tuple[int, int]:
    kind, width, height, depth, color = struct.unpack_from(">4sIIBB", data, 12)
    if kind != b"IHDR":
        raise ImageFileError("is damaged: this PNG has no header")
    size = _check_size(width, height)
    bits = depth * {2: 3, 4: 2, 6: 4}.get(color, 1)
    _require_bytes(data, width * height * bits / 8 / _DEFLATE_RATIO)
    for _ in _png_chunks(data):
        pass
    return size


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    size = _check_size(width, abs(height))
    if compression in (0, 3):  # neither run-length encoded nor another format within
        _require_bytes(data, size[0] * size[1] * bits / 8)
    return size


_TIFF_TYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
_WIDTH, _HEIGHT, _BITS, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 277, 322, 323
_PIECES = {273: 279, 324: 325}  # offsets and byte counts of strips and tiles


def _tiff_size(data: bytes) -> tuple[int, int]:
    order = "<" if data.startswith(b"II") else ">"
    if data[:4] in (b"II+\0", b"MM\0+"):  # BigTIFF
        (directory,), count, entry, inline = struct.unpack_from(order + "Q", data, 8), "Q", "HHQ", 8
    else:
        (directory,), count, entry, inline = struct.unpack_from(order + "I", data, 4), "H", "HHI", 4
    (entries,) = struct.unpack_from(order + count, data, directory)
    first, step = directory + struct.calcsize("=" + count), struct.calcsize("=" + entry) + inline
    _require_bytes(data, first + entries * step)
    if entries > 65535:
        raise ImageFileError("is damaged: this TIFF has too many tags")
    tags = {_SAMPLES: 1, _BITS: 1}
    pieces = {}
    for position in range(first, first + entries * step, step):
        tag, kind, number = struct.unpack_from(order + entry, data, position)
        if kind not in _TIFF_TYPES or number == 0:
            continue
        dtype, where = np.dtype(order + _TIFF_TYPES[kind]), position + step - inline
        if number * dtype.itemsize > inline:
            (where,) = struct.unpack_from(order + ("Q" if inline == 8 else "I"), data, where)
        if tag in (_WIDTH, _HEIGHT, _BITS, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT):
            _require_bytes(data, where + dtype.itemsize)
            tags[tag] = max(tags.get(tag, 0), int(np.frombuffer(data, dtype, 1, where)[0]))
        elif tag in _PIECES or tag in _PIECES.values():
            _require_bytes(data, where + number * dtype.itemsize)
            pieces[tag] = np.frombuffer(data, dtype, number, where).astype(np.float64)
    size = _check_size(tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0))
    # libtiff allocates the bytes of a strip before it reads them
    for starts, lengths in _PIECES.items():
        if lengths in pieces:
            same = len(pieces.get(starts, ())) == len(pieces[lengths])
            _require_bytes(data, (pieces[lengths] + (pieces[starts] if same else 0)).max())
    # libtiff decodes whole tiles, with all of their samples
    across, down = max(size[0], tags.get(_TILE_WIDTH, 1)), max(size[1], tags.get(_TILE_HEIGHT, 1))
    _check_size(across, down)
    if across * down * tags[_SAMPLES] * tags[_BITS] > 64 * max_pixels():
        raise TooLargeImageError(f"has {tags[_SAMPLES]} samples of {tags[_BITS]} bits in {size[0]}x{size[1]}")
    return size


def _webp_size(data: bytes) -> tuple[int, int]:
    _require_bytes(data, 8 + int.from_bytes(data[4:8], "little"))
    chunk = data[12:16]
    if chunk == b"VP8X":
        (flags,) = struct.unpack_from("<B", data, 20)
        if flags & 2:
            raise ImageFileError("is an animation; save one of its images")
        sides = [1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)]
    elif chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        sides = [1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)]
    elif chunk == b"VP8 ":
        sides = [side & 0x3FFF for side in struct.unpack_from("<HH", data, 26)]
    else:
        raise ImageFileError("is damaged: this WebP has no image")
    return _check_size(*sides, _COPIES_OF_WEBP)


def _pnm_size(data: bytes) -> tuple[int, int]:
    position, numbers = 2, []
    bitmap, plain = data[1:2] in b"14", data[1:2] in b"123"
    for _ in range(2 if bitmap else 3):
        found = _PNM_NUMBER.match(data, position)
        if found is None:
            raise ImageFileError("is damaged: its PNM header is not readable")
        numbers.append(int(found[1]))
        position = found.end()
    size = _check_size(numbers[0], numbers[1])
    samples = size[0] * size[1] * (3 if data[1:2] in b"36" else 1)
    bits = 8 if plain else 1 if bitmap else 16 if numbers[2] > 255 else 8
    _require_bytes(data, position + samples * bits / 8)
    return size


_SIZES = {
    "JPEG": _jpeg_size,
    "PNG": _png_size,
    "BMP": _bmp_size,
    "TIFF": _tiff_size,
    "WebP": _webp_size,
    "PNM": _pnm_size,
}


def _decode_webp(data: bytes) -> np.ndarray:
    """Decode a WebP with Pillow, because this OpenCV has an unsafe libwebp."""
    if _safe_pillow() is None:
        raise ImageFileError(f"is a WebP image, which cannot be decoded safely: {_WEBP_HINT}")
    try:
        from PIL import WebPImagePlugin

        # Image.open has a limit of pixels that is a setting of the process
        with WebPImagePlugin.WebPImageFile(io.BytesIO(data)) as image:
            return cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)
    except Exception as error:  # Pillow raises anything on damaged files
        raise ImageFileError(f"is damaged: Pillow cannot decode this WebP ({one_line(error)})") from None


def webp_decoder() -> str:
    """The decoder of WebP on this machine, or why there is none and what to install."""
    if _version(cv2.__version__) >= SAFE_OPENCV:
        return f"OpenCV {cv2.__version__}"
    unsafe = f"OpenCV {cv2.__version__} has a libwebp with CVE-2023-4863"
    pillow = _safe_pillow()
    if pillow is not None:
        return f"Pillow {pillow}, because {unsafe}"
    return f"none, because {unsafe}: {_WEBP_HINT}"


def _safe_pillow() -> str | None:
    """The version of an installed Pillow whose libwebp is safe."""
    try:
        from PIL import __version__
    except ImportError:
        return None
    return __version__ if _version(__version__) >= SAFE_PILLOW else None
