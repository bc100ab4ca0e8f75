"""Decoding and a Resize right behind it in one step, for two ways to have them for less."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from ppfcos.data.image_cache import ImageCache
from ppfcos.data.images import read_image, read_reduced_image
from ppfcos.data.pixel_operators import PixelResize

Record = dict[str, Any]


class FirstResize:
    """Images as Resize leaves them.

    Args:
        resize: What is done to each image right after decoding.
        cache: Where the results are kept, if anywhere.
        reduced: Whether a JPEG more than twice as large as it is wanted may be decoded at a reduced scale.
            Its pixels are then other ones, by a few levels.
    """

    def __init__(self, resize: PixelResize, cache: ImageCache | None = None, reduced: bool = False):
        self._resize = resize
        self._cache = cache
        self._reduced = reduced

    def image(self, position: int, record: Record) -> tuple[np.ndarray, int, int]:
        """The resized image of a record.

        Args:
            position: Where the record stands in its data set.
            record: The record.

        Returns:
            [H, W, 3] uint8 RGB, and the height and width that it had in its file.

        Raises:
            ImageUnreadable: It cannot be read.
        """
        path, stated = record["im_file"], (int(record.get("h", 0)), int(record.get("w", 0)))
        image = self._cache.find(position, path) if self._cache is not None else None
        if image is not None:
            return image, *stated  # right, or it would not have been kept
        image, height, width = self._read(path, stated)
        if self._cache is not None:
            self._cache.keep(position, path, image)
        return image, height, width

    def scale_annotation(self, sample: dict[str, Any]) -> dict[str, Any]:
        """What Resize does to a sample besides its pixels. Its `h` and `w` are those of the file."""
        return self._resize.scale_annotation(sample, int(sample["h"]), int(sample["w"]))

    def _read(self, path: str, stated: tuple[int, int]) -> tuple[np.ndarray, int, int]:
        if self._reduced and min(stated) > 0:
            (height, width), wanted = stated, self._resize.size_of(*stated)
            image = read_reduced_image(path, stated, wanted)
        else:
            image = read_image(path, stated if min(stated) > 0 else None)
            height, width = image.shape[:2]
        if image.shape[:2] == (height, width):
            return self._resize.resized(image), height, width
        return cv2.resize(image, wanted[::-1], interpolation=self._resize.interp), height, width
