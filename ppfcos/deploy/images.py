"""Images of a predictor: files, arrays, NV12 buffers."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Union

import cv2
import numpy as np

from ppfcos import image_files
from ppfcos.errors import DataError


@dataclass(frozen=True, eq=False)
class NV12Image:
    """An image in NV12, as cameras and video decoders output it (BT.601, limited range).

    Args:
        data: [height·3/2, width] uint8: the Y plane, then interleaved U and V; or a buffer of these bytes.
        height: in pixels, even.
        width: in pixels, even.

    Raises:
        DataError: the size is odd, or the buffer has another size.
    """

    data: np.ndarray
    height: int
    width: int

    def __post_init__(self) -> None:
        sides = (self.height, self.width)
        if not all(isinstance(side, (int, np.integer)) and side >= 2 and side % 2 == 0 for side in sides):
            raise DataError(f"an NV12 image has an even height and width, not {self.height}x{self.width}")
        data = self.data if isinstance(self.data, np.ndarray) else _bytes_of(self.data)
        needed = self.height * 3 // 2 * self.width
        if data.dtype != np.uint8 or data.size != needed:
            raise DataError(
                f"an NV12 image of {self.height}x{self.width} has {needed} bytes, "
                f"not {data.size} of {data.dtype}"
            )
        rows = np.ascontiguousarray(data).reshape(self.height * 3 // 2, self.width)
        object.__setattr__(self, "data", rows)

    @classmethod
    def of(cls, image: np.ndarray) -> NV12Image:
        """Convert an image [H, W, 3] BGR uint8 of even height and width."""
        height, width = image.shape[:2]
        planes = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420).reshape(-1)
        luma, quarter = height * width, height * width // 4
        data = np.empty(luma * 3 // 2, np.uint8)
        data[:luma] = planes[:luma]
        data[luma::2] = planes[luma : luma + quarter]
        data[luma + 1 :: 2] = planes[luma + quarter :]
        return cls(data, height, width)

    def pixels(self) -> np.ndarray:
        """The image as [H, W, 3] BGR uint8."""
        return cv2.cvtColor(self.data, cv2.COLOR_YUV2BGR_NV12)


def _bytes_of(buffer: object) -> np.ndarray:
    """[N] uint8, without a copy."""
    try:
        return np.frombuffer(buffer, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise DataError(
            f"the data of an NV12 image must be an array or a contiguous buffer, not {type(buffer).__name__} "
            f"({error})"
        ) from error


Image = Union[str, "os.PathLike[str]", np.ndarray, NV12Image]
Pixels = Union[np.ndarray, NV12Image]


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file as [H, W, 3] BGR uint8, in its EXIF orientation; a `DataError` if impossible."""
    return decode_image(read_file(path), path)


def read_file(path: str | os.PathLike) -> bytes:
    """Read the bytes of an image file; a `DataError` if impossible."""
    try:
        return image_files.read_file(path)
    except image_files.ImageFileError as error:
        raise DataError(f"{path}: {error}; make it smaller or leave it out") from error
    except ValueError as error:  # a null character in the name
        raise DataError(f"{path!r}: the image cannot be read ({error})") from error
    except OSError as error:
        reason = "it is a pipe or a device" if error.errno == errno.EINVAL else error.strerror
        raise DataError(f"{path}: the image cannot be read ({reason})") from error


def decode_image(content: bytes, name: str | os.PathLike) -> np.ndarray:
    """Decode the bytes of an image file, as `read_image` does.

    Raises:
        DataError: it is not an image, is truncated, or has too many pixels; `name` is for the message.
    """
    try:
        return image_files.ImageFile(content).decode()
    except image_files.TruncatedImageError as error:
        raise DataError(f"{name}: {error}; copy it again or leave it out") from error
    except image_files.ImageFileError as error:
        raise DataError(f"{name}: {error}; replace it or leave it out") from error


def load(image: Image, name: str) -> Pixels:
    """Load an image.

    Args:
        image: a path; uint8 [H, W, 3] BGR, [H, W, 4] BGRA (alpha is dropped), [H, W] or [H, W, 1] grayscale;
            or an NV12Image.
        name: name of the image, for messages.

    Returns:
        [H, W, 3] BGR uint8; or the NV12Image.

    Raises:
        DataError: it has another type.
    """
    if isinstance(image, NV12Image):
        return image
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"{name} is of type {type(image).__name__}: it must be a path, an array or an NV12Image; "
            "decode the bytes of a file with cv2.imdecode, and convert other images to arrays"
        )
    _check_array(image, name)
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2BGR)
    return image[:, :, :3]


def _check_array(image: np.ndarray, name: str) -> None:
    what = f"{name} is an array {list(image.shape)} of {image.dtype}"
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise DataError(f"{what}: it must be BGR, BGRA or grayscale: [height, width, 3 or 4 or 1]")
    if image.size == 0:
        raise DataError(f"{what}: it has no pixels; leave it out")
    if image.dtype == np.uint8:
        return
    cure = "convert it to uint8 from 0 to 255"
    if image.dtype == np.uint16:
        cure += ", such as with (image >> 8).astype(numpy.uint8)"
    elif np.issubdtype(image.dtype, np.floating):
        cure += (
            ": (image * 255).round().astype(numpy.uint8) if its range is 0 to 1, "
            "image.round().astype(numpy.uint8) if it is 0 to 255"
        )
    raise DataError(f"{what}: {cure}")
