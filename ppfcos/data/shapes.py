"""A data set of drawn shapes in COCO's format: real detection, small enough for a CPU, and without a
download.

Every picture has a background of its own (a gradient, clouds, sometimes stripes, thin lines) and up to six
circles, rectangles and triangles in any colour, size and turn, some partly behind others. The annotated box
is the tight one around the whole outline, whether or not a part of it is covered.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ppfcos.data.rng import generator
from ppfcos.errors import OutputError

logger = logging.getLogger(__name__)

CLASS_NAMES = ("circle", "rectangle", "triangle")

# Raised whenever the same parameters would draw other pictures: a set of an older version is then drawn anew.
_VERSION = 1
_DESCRIPTION = "Drawn shapes, made by ppfcos"
_SPLITS = ("train", "val")

_SUPERSAMPLING = 4
_FRACTION_BITS = 4  # of the coordinates that cv2.fillPoly takes
_JPEG_QUALITY = 95
_MOST_SHAPES = 6
_WITHOUT_SHAPES = 0.05  # share of the pictures
_SMALLEST, _LARGEST = 0.1, 0.6  # of the picture's side: a shape's diameter
_MARGIN = 2  # pixels between an outline and the picture's edge
_LEAST_VISIBLE = 0.6  # of every shape's area
_LEAST_CONTRAST = 80  # distance in RGB between a shape and the mean of its surroundings
_ATTEMPTS = 20

_PICTURE_NAME = re.compile(r"shapes_\d{6}\.jpg")
_UNFINISHED = ".generating-"
_ABANDONED_AFTER = 3600  # seconds


@dataclass(frozen=True)
class Shape:
    """One shape.

    Attributes:
        label: Index into CLASS_NAMES.
        outline: [K, 2] its corners, x and y in pixels; the pixel in column i reaches from i to i + 1.
        colour: [3] from 0 to 255.
    """

    label: int
    outline: np.ndarray
    colour: np.ndarray

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The tight box around the outline, (x0, y0, x1, y1) in pixels."""
        (x0, y0), (x1, y1) = self.outline.min(axis=0), self.outline.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    def coverage(self, side: int) -> np.ndarray:
        """[side, side] float32: how much of each pixel lies inside the outline, from 0 to 1."""
        fine = np.zeros((side * _SUPERSAMPLING, side * _SUPERSAMPLING), dtype=np.uint8)
        # cv2 counts from the middle of the first pixel
        corners = (self.outline * _SUPERSAMPLING - 0.5) * (1 << _FRACTION_BITS)
        cv2.fillPoly(fine, [np.rint(corners).astype(np.int32)], 255, shift=_FRACTION_BITS)
        return cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def generate(directory: str | Path, train: int = 600, val: int = 120, size: int = 192, seed: int = 0) -> bool:
    """Draws a training and a validation set, unless the folder already holds just these.

    Writes train2017/, val2017/ and annotations/instances_{train,val}2017.json. The same arguments give the
    same bytes. A set with other parameters that was made here before is replaced; anything else is left
    alone.

    Args:
        directory: Where to.
        train: The number of training pictures.
        val: The number of validation pictures.
        size: The side of a picture in pixels.
        seed: Of everything.

    Returns:
        Whether anything was drawn.

    Raises:
        OutputError: A number is impossible, the folder cannot be written, or it holds someone else's
            pictures.
    """
    if train < 1 or val < 1 or size < 32:
        raise OutputError(
            f"1 training and 1 validation picture of 32 pixels are the least, not {train}, {val} of {size}"
        )
    directory = Path(directory)
    counts = {"train": train, "val": val}
    if all(_is_complete(directory, split, _info(split, counts[split], size, seed)) for split in _SPLITS):
        return False
    _refuse_foreign_pictures(directory)
    try:
        with _unfinished_folder(directory) as unfinished:
            for split in _SPLITS:
                _draw_split(unfinished, split, counts[split], size, seed)
            _replace(directory, unfinished)
    except OSError as error:
        raise OutputError(f"{directory} cannot be written: {error.strerror or error}") from error
    return True


def draw_image(size: int, random: np.random.RandomState) -> tuple[np.ndarray, list[tuple[Shape, float]]]:
    """Draws one picture.

    Args:
        size: Its side in pixels.
        random: Decides everything.

    Returns:
        [size, size, 3] uint8, and every shape with its visible area in pixels.
    """
    picture = _background(size, random)
    wanted = 0 if random.uniform() < _WITHOUT_SHAPES else random.randint(1, _MOST_SHAPES + 1)
    placed: list[tuple[Shape, float]] = []  # with the area of the whole shape
    visible: list[np.ndarray] = []  # its coverage, less what lies on top of it
    for _ in range(wanted):
        for _ in range(_ATTEMPTS):
            shape = _random_shape(size, random)
            cover = shape.coverage(size)
            around = picture[cv2.dilate(cover, np.ones((7, 7))) > 0].mean(axis=0)
            behind = [below * (1 - cover) for below in visible]
            hidden = any(left.sum() < _LEAST_VISIBLE * area for left, (_, area) in zip(behind, placed))
            if not hidden and np.linalg.norm(shape.colour - around) >= _LEAST_CONTRAST:
                picture += cover[..., None] * (_shaded(shape.colour, size, random) - picture)
                placed.append((shape, float(cover.sum())))
                visible = [*behind, cover]
                break
    picture += random.normal(0, random.uniform(1, 8), picture.shape)
    areas = [float(cover.sum()) for cover in visible]
    pixels = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return pixels, [(shape, area) for (shape, _), area in zip(placed, areas)]


def _random_shape(size: int, random: np.random.RandomState) -> Shape:
    label = random.randint(len(CLASS_NAMES))
    # evenly distributed over octaves, so that every level of the pyramid gets its share
    radius = size / 2 * np.exp(random.uniform(np.log(_SMALLEST), np.log(_LARGEST)))
    outline = _OUTLINES[CLASS_NAMES[label]](random) * radius
    angle = random.uniform(0, 2 * np.pi)
    outline = outline @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    low, high = outline.min(axis=0), outline.max(axis=0)
    outline = outline + random.uniform(_MARGIN - low, size - _MARGIN - high)
    return Shape(label, outline, random.uniform(0, 255, 3))


def _circle(_random: np.random.RandomState) -> np.ndarray:
    angles = np.arange(64) * (2 * np.pi / 64)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rectangle(random: np.random.RandomState) -> np.ndarray:
    half = np.array([1.0, random.uniform(0.5, 1.0)])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    return corners / np.linalg.norm(half)


def _triangle(random: np.random.RandomState) -> np.ndarray:
    angles = np.array([0, 2, 4]) * (np.pi / 3) + random.uniform(-0.25, 0.25, 3)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


# Outlines of radius 1 around (0, 0).
_OUTLINES = {"circle": _circle, "rectangle": _rectangle, "triangle": _triangle}


def _ramp(size: int, random: np.random.RandomState) -> np.ndarray:
    """[size, size, 1] float32 from 0 to 1 in some direction."""
    angle = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    ramp = x * np.cos(angle) + y * np.sin(angle)
    return ((ramp - ramp.min()) / (ramp.max() - ramp.min()))[..., None]


def _background(size: int, random: np.random.RandomState) -> np.ndarray:
    """[size, size, 3] float32 from about 0 to 255: a gradient, clouds, and for some stripes and lines."""
    first, second = random.uniform(20, 235, (2, 3))
    picture = (first + _ramp(size, random) * (second - first) * 0.6).astype(np.float32)
    cells = random.randint(3, 13)
    clouds = random.normal(0, random.uniform(0, 18), (cells, cells, 3)).astype(np.float32)
    picture += cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)
    if random.uniform() < 0.3:
        waves = 2 * np.pi * random.uniform(3, 20)
        picture += random.uniform(3, 12) * np.sin(waves * _ramp(size, random))
    for _ in range(random.randint(0, 5)):
        ends = random.randint(0, size, (2, 2)).tolist()
        colour, thickness = random.uniform(0, 255, 3).tolist(), int(random.randint(1, 3))
        cv2.line(picture, tuple(ends[0]), tuple(ends[1]), colour, thickness, cv2.LINE_8)
    return picture


def _shaded(colour: np.ndarray, size: int, random: np.random.RandomState) -> np.ndarray:
    """[size, size, 3]: the colour, a little lighter on one side than on the other."""
    return colour + (_ramp(size, random) - 0.5) * random.uniform(0, 50)


def _info(split: str, count: int, size: int, seed: int) -> dict[str, Any]:
    """What the annotation file says of itself: by this a finished set is known again."""
    return {
        "description": _DESCRIPTION, "version": _VERSION,
        "split": split, "pictures": count, "size": size, "seed": seed,
    }  # fmt: skip


def _draw_split(folder: Path, split: str, count: int, size: int, seed: int) -> None:
    pictures = folder / f"{split}2017"
    pictures.mkdir()
    images, annotations = [], []
    for number in range(1, count + 1):
        picture, shapes = draw_image(size, generator(seed, _SPLITS.index(split), number))
        name = f"shapes_{number:06d}.jpg"
        encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
        (pictures / name).write_bytes(encoded.tobytes())
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for shape, area in shapes:
            x0, y0, x1, y1 = shape.box
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": shape.label + 1, "iscrowd": 0,
                "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)], "area": round(area, 2),
            })  # fmt: skip
    content = {
        "info": _info(split, count, size, seed),
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)],
    }
    path = _annotation_file(folder, split)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _annotation_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}2017.json"


def _read_annotations(folder: Path, split: str) -> dict[str, Any]:
    try:
        content = json.loads(_annotation_file(folder, split).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_complete(folder: Path, split: str, info: dict[str, Any]) -> bool:
    content = _read_annotations(folder, split)
    if content.get("info") != info:
        return False
    pictures = folder / f"{split}2017"
    return all((pictures / image["file_name"]).is_file() for image in content["images"])


def _refuse_foreign_pictures(folder: Path) -> None:
    """Only what was made here is replaced."""
    for split in _SPLITS:
        pictures, annotations = folder / f"{split}2017", _annotation_file(folder, split)
        names = os.listdir(pictures) if pictures.is_dir() else []
        info = _read_annotations(folder, split).get("info")
        ours = isinstance(info, dict) and info.get("description") == _DESCRIPTION
        if any(not _PICTURE_NAME.fullmatch(name) for name in names) or (annotations.exists() and not ours):
            raise OutputError(f"{folder} already holds other pictures or annotations: choose another folder")


@contextlib.contextmanager
def _unfinished_folder(directory: Path) -> Iterator[Path]:
    """A folder inside `directory` that is gone afterwards, and so are those that killed processes left."""
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(f"{_UNFINISHED}*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_AFTER:
            shutil.rmtree(left, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=directory))
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _replace(directory: Path, unfinished: Path) -> None:
    """Moves the new set in place of the old; annotations go first and come last, for they say that a set is
    whole."""
    old = unfinished / "old"
    old.mkdir()
    for name in ("annotations", "train2017", "val2017"):
        if (directory / name).exists():
            os.rename(directory / name, old / name)
    for name in ("train2017", "val2017", "annotations"):
        os.rename(unfinished / name, directory / name)
