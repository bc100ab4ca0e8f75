"""Draws a training batch as the network gets it: images, padding, boxes and positive points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ppfcos.boxes import box_areas
from ppfcos.visualize.drawing import FONT, Style, class_color, draw_box, draw_label, style_for

NO_LEVEL = -1

GRID_WIDTH = 2000  # pixels, approximately
LARGEST_CELL = 900
GAP = 12
BACKGROUND, TEXT_COLOR = (255, 255, 255), (40, 40, 40)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
HATCH = ((88, 66, 54), (140, 112, 96))  # slate, unlike the gray fill of augmentation
HATCH_WIDTH = 8
CROWD = (200, 200, 200)
TEXT_SCALE, LINE_HEIGHT = 0.55, 26


class BatchImage(NamedTuple):
    """An image of a batch.

    Attributes:
        pixels: [H, W, 3] uint8 BGR, with padding.
        size: height and width without padding.
        title: a line of text.
        boxes: [M, 4] x0, y0, x1, y1 in pixels.
        names: M class names.
        box_levels: [M] index of the level with most positive points of a box, or NO_LEVEL.
        points: [N, 2] x, y of the positive points in pixels.
        point_levels: [N] index of the level.
        crowds: [K, 4] x0, y0, x1, y1 of crowds, in which nothing is background.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    title: str
    boxes: np.ndarray
    names: Sequence[str]
    box_levels: np.ndarray
    points: np.ndarray
    point_levels: np.ndarray
    crowds: np.ndarray = np.zeros((0, 4), np.float32)


class Level(NamedTuple):
    """A level of the feature pyramid: its stride and size range in pixels."""

    stride: int
    lower: float
    upper: float

    @property
    def name(self) -> str:
        """Such as P3 for stride 8."""
        return f"P{round(math.log2(self.stride))}"

    @property
    def size_range(self) -> str:
        """The size range as text."""
        last = math.isinf(self.upper)
        return f"over {self.lower:g} px" if last else f"{self.lower:g} to {self.upper:g} px"


def draw_batch(images: Sequence[BatchImage], levels: Sequence[Level]) -> np.ndarray:
    """Draw a grid of the images of a batch, all of one size, with a legend; [height, width, 3] uint8 BGR."""
    height, width = images[0].pixels.shape[:2]
    columns = min(len(images), max(1, round(math.sqrt(len(images) * 1.5 * height / width))))
    columns = math.ceil(len(images) / math.ceil(len(images) / columns))  # no empty column
    cell_width = min(LARGEST_CELL, (GRID_WIDTH - GAP) // columns - GAP)
    cells = [_draw_image(image, levels, cell_width / width) for image in images]
    empty = np.full_like(cells[0], BACKGROUND[0])
    cells += [empty] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)]
    legend = _draw_legend(images, levels, rows[0].shape[1])
    grid = np.concatenate([legend, *rows])
    return cv2.copyMakeBorder(grid, GAP, 0, GAP, 0, cv2.BORDER_CONSTANT, value=BACKGROUND)


def _draw_image(image: BatchImage, levels: Sequence[Level], scale: float) -> np.ndarray:
    """Draw an image with boxes and points, its title above, and a gap at the right and below."""
    height, width = (round(side * scale) for side in image.pixels.shape[:2])
    # without moiré if smaller; with the network's pixels visible if larger
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    canvas, hatch = cv2.resize(image.pixels, (width, height), interpolation=kind), _hatch(height, width)
    bottom, right = (round(side * scale) for side in image.size)
    canvas[bottom:], canvas[:, right:] = hatch[bottom:], hatch[:, right:]
    style = style_for(height, width)
    for box in image.crowds * scale:
        _draw_crowd(canvas, box, style)
    for box, level in zip(image.boxes * scale, image.box_levels):
        draw_box(canvas, box, _level_color(level), style)
    _draw_names(canvas, image, scale)
    for point, level in zip(image.points * scale, image.point_levels):
        _draw_dot(canvas, point, _level_color(level), levels[level].stride * scale)
    canvas = cv2.copyMakeBorder(canvas, LINE_HEIGHT, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=BACKGROUND)
    _write(canvas, image.title, 0, canvas.shape[1] - GAP)
    return canvas


def _draw_crowd(canvas: np.ndarray, box: np.ndarray, style: Style) -> None:
    """Draw a crowd with stripes: it is neither object nor background."""
    x0, y0, x1, y1 = np.maximum(0, np.rint(box)).astype(int)
    inside = canvas[y0:y1, x0:x1]
    stripes = _stripes(*inside.shape[:2]) == 0
    inside[stripes] = (inside[stripes] // 2 + np.array(CROWD) // 2).astype(np.uint8)
    draw_box(canvas, box, CROWD, style)
    draw_label(canvas, box, "crowd", CROWD, style._replace(font_scale=max(0.35, 0.8 * style.font_scale)))


def _draw_names(canvas: np.ndarray, image: BatchImage, scale: float) -> None:
    """Label boxes unless the label would cover that of a larger box; boxes without a point always."""
    style = style_for(*canvas.shape[:2])
    style = style._replace(font_scale=max(0.35, 0.8 * style.font_scale))
    lost = image.box_levels == NO_LEVEL
    taken = np.zeros(canvas.shape[:2], dtype=bool)
    for i in np.lexsort((-box_areas(image.boxes), ~lost)):
        box, text = image.boxes[i] * scale, f"{image.names[i]}: no point" if lost[i] else image.names[i]
        x, y = np.maximum(0, box[:2]).astype(int)
        area = np.s_[max(0, y - LINE_HEIGHT // 2) : y + 1, x : x + _text_width(text, style.font_scale)]
        if lost[i] or not taken[area].any():
            taken[area] = True
            draw_label(canvas, box, text, _level_color(image.box_levels[i]), style)


def _draw_dot(canvas: np.ndarray, point: np.ndarray, color: tuple, spacing: float) -> None:
    """Draw a point, smaller than the distance to its neighbors."""
    radius = float(np.clip(spacing / 5, 1.5, 5))
    x, y = (round(float(value) * 16) for value in point - 0.5)  # in 1/16 pixels from the center of a pixel
    for extra, each in ((1.2, BLACK), (0, color)):
        cv2.circle(canvas, (x, y), round((radius + extra) * 16), each, cv2.FILLED, cv2.LINE_AA, shift=4)


def _draw_legend(images: Sequence[BatchImage], levels: Sequence[Level], width: int) -> np.ndarray:
    """Draw the colors with the number of boxes and points of each in the batch."""
    box_levels = np.concatenate([image.box_levels for image in images])
    point_levels = np.concatenate([image.point_levels for image in images])
    entries = []
    for number, level in enumerate(levels):
        boxes, points = (box_levels == number).sum(), (point_levels == number).sum()
        text = f"{level.name}, stride {level.stride}, {level.size_range}: {points} points, {boxes} boxes"
        entries.append((_level_color(number), text))
    entries.append((_level_color(NO_LEVEL), f"no point: {(box_levels == NO_LEVEL).sum()} boxes"))
    crowds = sum(len(image.crowds) for image in images)
    if crowds:
        entries.append((CROWD, f"crowd, nothing in it is background: {crowds} boxes"))
    entries.append((None, "padding"))
    swatch, gap = LINE_HEIGHT - 10, 24
    places, x, line = [], 0, 0
    for _, text in entries:
        entry_width = swatch + 8 + _text_width(text, TEXT_SCALE) + gap
        if x and x + entry_width > width:
            x, line = 0, line + 1
        places.append((x, line * LINE_HEIGHT))
        x += entry_width
    legend = np.full(((line + 1) * LINE_HEIGHT + GAP, width, 3), BACKGROUND, dtype=np.uint8)
    for (color, text), (x, y) in zip(entries, places):
        area = legend[y + 4 : y + 4 + swatch, x : x + swatch]
        area[:] = _hatch(*area.shape[:2]) if color is None else color
        cv2.rectangle(legend, (x, y + 4), (x + swatch - 1, y + 3 + swatch), TEXT_COLOR, 1)
        _write(legend[y : y + LINE_HEIGHT], text, x + swatch + 8, width - x - swatch - 8)
    return legend


def _level_color(level: int) -> tuple[int, int, int]:
    return WHITE if level == NO_LEVEL else class_color(int(level))


def _hatch(height: int, width: int) -> np.ndarray:
    """[height, width, 3] diagonal stripes that stand for padding."""
    return np.array(HATCH, dtype=np.uint8)[_stripes(height, width)]


def _stripes(height: int, width: int) -> np.ndarray:
    """[height, width] diagonal stripes of 0 and 1."""
    return (np.arange(height)[:, None] + np.arange(width)) // HATCH_WIDTH % 2


def _write(canvas: np.ndarray, text: str, x: int, max_width: int) -> None:
    """Write a line at the top of a canvas, scaled down to fit into a width."""
    text = text.encode("ascii", "replace").decode()  # the letters of OpenCV's fonts
    scale = TEXT_SCALE * min(1, max_width / max(1, _text_width(text, TEXT_SCALE)))
    cv2.putText(canvas, text, (x, LINE_HEIGHT - 8), FONT, scale, TEXT_COLOR, 1, cv2.LINE_AA)


def _text_width(text: str, scale: float) -> int:
    return cv2.getTextSize(text, FONT, scale, 1)[0][0]
