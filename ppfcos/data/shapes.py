"""Draws an object-detection data set of simple shapes in COCO's format, small enough for a CPU.

Every image has a background (a gradient, clouds, sometimes stripes and thin lines) and up to six circles,
rectangles and triangles of any color, size and rotation, some partly behind others. A box is tight around the
whole outline, whether or not a part of it is covered.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ppfcos.data.rng import generator
from ppfcos.errors import OutputError
from ppfcos.fileio import read_text, replace_folder, replacing

CLASS_NAMES = ("circle", "rectangle", "triangle")

# Raised whenever the same arguments draw other images: a set of an older version is then drawn again.
_VERSION = 1
_DESCRIPTION = "Drawn shapes, made by ppfcos"
_SPLITS = ("train", "val")

_SUPERSAMPLING = 4
_FRACTION_BITS = 4  # of the coordinates that cv2.fillPoly takes
_JPEG_QUALITY = 95
_MAX_SHAPES = 6
_WITHOUT_SHAPES = 0.05  # ratio of the images
_MIN_DIAMETER, _MAX_DIAMETER = 0.1, 0.6  # of the image's side: a shape's diameter
_MARGIN = 2  # pixels between an outline and the image's edge
_MIN_VISIBLE = 0.6  # of every shape's area
_MIN_CONTRAST = 80  # distance in RGB between a shape and the mean of its surroundings
_ATTEMPTS = 20

_IMAGE_NAME = re.compile(r"shapes_\d{6}\.jpg")


@dataclass(frozen=True)
class Shape:
    """One shape.

    Attributes:
        label: Index into CLASS_NAMES.
        outline: [K, 2] its corners, x and y in pixels; the pixel in column i reaches from i to i + 1.
        color: [3] from 0 to 255.
    """

    label: int
    outline: np.ndarray
    color: np.ndarray

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
    """Draw a training and a validation set, unless the folder already holds exactly these.

    Writes train2017/, val2017/ and annotations/instances_{train,val}2017.json. The same arguments give the
    same bytes. A set with other arguments that was drawn here before is replaced.

    Args:
        directory: The folder.
        train: Number of training images.
        val: Number of validation images.
        size: Side of an image in pixels.
        seed: Of all random numbers.

    Returns:
        Whether anything was drawn.

    Raises:
        OutputError: A number is too small, the folder cannot be written, or it holds other images.
    """
    if train < 1 or val < 1 or size < 32:
        raise OutputError(
            "at least 1 training image and 1 validation image of 32 pixels are needed, "
            f"not {train}, {val} and {size} pixels"
        )
    directory = Path(directory)
    infos = {"train": _info("train", train, size, seed), "val": _info("val", val, size, seed)}
    if all(_is_complete(directory, split, info) for split, info in infos.items()):
        return False
    _refuse_other_images(directory)
    contents = {}
    try:
        # annotations are removed first and written last: they mark a set as complete
        for split in _SPLITS:
            _annotation_file(directory, split).unlink(missing_ok=True)
        for split, info in infos.items():
            with replace_folder(directory / f"{split}2017") as folder:
                contents[split] = _draw_split(folder, split, info)
        for split, content in contents.items():
            with replacing(_annotation_file(directory, split)) as unfinished:
                unfinished.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{directory} cannot be written: {error.strerror or error}") from error
    return True


def draw_image(size: int, random: np.random.RandomState) -> tuple[np.ndarray, list[tuple[Shape, float]]]:
    """Draw one image.

    Args:
        size: Its side in pixels.
        random: Of all random numbers.

    Returns:
        [size, size, 3] uint8, and every shape with its visible area in pixels.
    """
    image = _background(size, random)
    wanted = 0 if random.uniform() < _WITHOUT_SHAPES else random.randint(1, _MAX_SHAPES + 1)
    placed: list[tuple[Shape, float]] = []  # with the area of the whole shape
    visible: list[np.ndarray] = []  # its coverage, less what lies on top of it
    for _ in range(wanted):
        for _ in range(_ATTEMPTS):
            shape = _random_shape(size, random)
            cover = shape.coverage(size)
            around = image[cv2.dilate(cover, np.ones((7, 7))) > 0].mean(axis=0)
            behind = [below * (1 - cover) for below in visible]
            hidden = any(left.sum() < _MIN_VISIBLE * area for left, (_, area) in zip(behind, placed))
            if not hidden and np.linalg.norm(shape.color - around) >= _MIN_CONTRAST:
                image += cover[..., None] * (_shaded(shape.color, size, random) - image)
                placed.append((shape, float(cover.sum())))
                visible = [*behind, cover]
                break
    image += random.normal(0, random.uniform(1, 8), image.shape)
    areas = [float(cover.sum()) for cover in visible]
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return pixels, [(shape, area) for (shape, _), area in zip(placed, areas)]


def _random_shape(size: int, random: np.random.RandomState) -> Shape:
    label = random.randint(len(CLASS_NAMES))
    # evenly distributed over octaves, so that every level of the pyramid gets shapes
    radius = size / 2 * np.exp(random.uniform(np.log(_MIN_DIAMETER), np.log(_MAX_DIAMETER)))
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
    """[size, size, 3] float32 from about 0 to 255: a gradient, clouds, and sometimes stripes and lines."""
    first, second = random.uniform(20, 235, (2, 3))
    image = (first + _ramp(size, random) * (second - first) * 0.6).astype(np.float32)
    cells = random.randint(3, 13)
    clouds = random.normal(0, random.uniform(0, 18), (cells, cells, 3)).astype(np.float32)
    image += cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)
    if random.uniform() < 0.3:
        waves = 2 * np.pi * random.uniform(3, 20)
        image += random.uniform(3, 12) * np.sin(waves * _ramp(size, random))
    for _ in range(random.randint(0, 5)):
        ends = random.randint(0, size, (2, 2)).tolist()
        color, thickness = random.uniform(0, 255, 3).tolist(), int(random.randint(1, 3))
        cv2.line(image, tuple(ends[0]), tuple(ends[1]), color, thickness, cv2.LINE_8)
    return image


def _shaded(color: np.ndarray, size: int, random: np.random.RandomState) -> np.ndarray:
    """[size, size, 3]: the color, a little lighter on one side than on the other."""
    return color + (_ramp(size, random) - 0.5) * random.uniform(0, 50)


def _info(split: str, count: int, size: int, seed: int) -> dict[str, Any]:
    """The `info` of the annotation file, by which a complete set is recognized."""
    return {
        "description": _DESCRIPTION, "version": _VERSION,
        "split": split, "pictures": count, "size": size, "seed": seed,
    }  # fmt: skip


def _draw_split(folder: Path, split: str, info: dict[str, Any]) -> dict[str, Any]:
    """Write the images of a split; returns the content of its annotation file."""
    images, annotations, size = [], [], info["size"]
    for number in range(1, info["pictures"] + 1):
        image, shapes = draw_image(size, generator(info["seed"], _SPLITS.index(split), number))
        name = f"shapes_{number:06d}.jpg"
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
        (folder / name).write_bytes(encoded.tobytes())
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for shape, area in shapes:
            x0, y0, x1, y1 = shape.box
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": shape.label + 1, "iscrowd": 0,
                "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)], "area": round(area, 2),
            })  # fmt: skip
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)]
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _annotation_file(directory: Path, split: str) -> Path:
    return directory / "annotations" / f"instances_{split}2017.json"


def _read_annotations(directory: Path, split: str) -> dict[str, Any]:
    try:
        content = json.loads(read_text(_annotation_file(directory, split)))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_complete(directory: Path, split: str, info: dict[str, Any]) -> bool:
    if _read_annotations(directory, split).get("info") != info:
        return False
    names = (f"shapes_{number:06d}.jpg" for number in range(1, info["pictures"] + 1))
    return all((directory / f"{split}2017" / name).is_file() for name in names)


def _refuse_other_images(directory: Path) -> None:
    """Raise OutputError if the folders hold anything that was not drawn here."""
    for split in _SPLITS:
        images, annotations = (
            directory / f"{split}2017",
            _annotation_file(directory, split),
        )
        names = os.listdir(images) if images.is_dir() else []
        info = _read_annotations(directory, split).get("info")
        is_ours = isinstance(info, dict) and info.get("description") == _DESCRIPTION
        if any(not _IMAGE_NAME.fullmatch(name) for name in names) or (annotations.exists() and not is_ours):
            raise OutputError(f"{directory} already holds other images or annotations: choose another folder")
