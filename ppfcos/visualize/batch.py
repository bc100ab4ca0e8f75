"""A picture of a batch as the network gets it: its images, their padding, boxes and positive locations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ppfcos.boxes import box_areas
from ppfcos.visualize.drawing import FONT, Style, class_color, draw_box, draw_label, style_for

NO_LEVEL = -1

SHEET_WIDTH = 2000  # pixels, about; what a screen shows and a viewer need not shrink much
LARGEST_CELL = 900
GAP = 12
PAPER, INK = (255, 255, 255), (40, 40, 40)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
HATCH = ((88, 66, 54), (140, 112, 96))  # two shades of slate, to be told from the grey of augmentation
HATCH_WIDTH = 8
CROWD = (200, 200, 200)
TEXT_SCALE, LINE_HEIGHT = 0.55, 26


class BatchImage(NamedTuple):
    """One image of a batch.

    Attributes:
        pixels: [H, W, 3] uint8, blue first, as large as the batch.
        size: height and width of the image without its padding.
        title: a line about it.
        boxes: [M, 4] x0, y0, x1, y1 in pixels.
        names: M names of their classes.
        box_levels: [M] number of the level that answers most for a box; NO_LEVEL where none does.
        locations: [N, 2] x, y of the positive locations, in pixels.
        location_levels: [N] number of the level of each.
        crowds: [K, 4] x0, y0, x1, y1 of the boxes around crowds, in which nothing is background.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    title: str
    boxes: np.ndarray
    names: Sequence[str]
    box_levels: np.ndarray
    locations: np.ndarray
    location_levels: np.ndarray
    crowds: np.ndarray = np.zeros((0, 4), np.float32)


class Level(NamedTuple):
    """A level of the feature pyramid: its stride, and the ends of its size range, in pixels."""

    stride: int
    lower: float
    upper: float

    @property
    def name(self) -> str:
        """P3 for stride 8, as everyone calls it."""
        return f"P{round(math.log2(self.stride))}"

    @property
    def reach(self) -> str:
        """The size range in words."""
        last = math.isinf(self.upper)
        return f"over {self.lower:g} px" if last else f"{self.lower:g} to {self.upper:g} px"


def draw_batch(images: Sequence[BatchImage], levels: Sequence[Level]) -> np.ndarray:
    """Draw a batch on one sheet, with a legend.

    Args:
        images: B, all of one size in pixels.
        levels: L.

    Returns:
        [height, width, 3] uint8, blue first.
    """
    height, width = images[0].pixels.shape[:2]
    columns = min(len(images), max(1, round(math.sqrt(len(images) * 1.5 * height / width))))
    columns = math.ceil(len(images) / math.ceil(len(images) / columns))  # no column that is empty
    cell_width = min(LARGEST_CELL, (SHEET_WIDTH - GAP) // columns - GAP)
    cells = [_draw_image(image, levels, cell_width / width) for image in images]
    empty = np.full_like(cells[0], PAPER[0])
    cells += [empty] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)]
    legend = _draw_legend(images, levels, rows[0].shape[1])
    sheet = np.concatenate([legend, *rows])
    return cv2.copyMakeBorder(sheet, GAP, 0, GAP, 0, cv2.BORDER_CONSTANT, value=PAPER)


def _draw_image(image: BatchImage, levels: Sequence[Level], scale: float) -> np.ndarray:
    """One image with what belongs to it, its title above, and a gap at the right and below."""
    height, width = (round(side * scale) for side in image.pixels.shape[:2])
    # shrunk without moiré, or enlarged so that the pixels that the network sees can be told apart
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    canvas, hatch = cv2.resize(image.pixels, (width, height), interpolation=kind), _hatch(height, width)
    bottom, right = (round(side * scale) for side in image.size)
    canvas[bottom:], canvas[:, right:] = hatch[bottom:], hatch[:, right:]
    style = style_for(height, width)
    for box in image.crowds * scale:
        _draw_crowd(canvas, box, style)
    for box, level in zip(image.boxes * scale, image.box_levels):
        draw_box(canvas, box, BLACK, style._replace(line=style.line + 2))
        draw_box(canvas, box, _level_colour(level), style)
    _draw_names(canvas, image, scale)
    for point, level in zip(image.locations * scale, image.location_levels):
        _draw_dot(canvas, point, _level_colour(level), levels[level].stride * scale)
    canvas = cv2.copyMakeBorder(canvas, LINE_HEIGHT, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=PAPER)
    _write(canvas, image.title, 0, canvas.shape[1] - GAP)
    return canvas


def _draw_crowd(canvas: np.ndarray, box: np.ndarray, style: Style) -> None:
    """A crowd's box, veiled with stripes: what is in it counts neither as an object nor as background."""
    x0, y0, x1, y1 = np.maximum(0, np.rint(box)).astype(int)
    inside = canvas[y0:y1, x0:x1]
    stripes = _stripes(*inside.shape[:2]) == 0
    inside[stripes] = (inside[stripes] // 2 + np.array(CROWD) // 2).astype(np.uint8)
    draw_box(canvas, box, CROWD, style)
    draw_label(canvas, box, "crowd", CROWD, style._replace(font_scale=max(0.35, 0.8 * style.font_scale)))


def _draw_names(canvas: np.ndarray, image: BatchImage, scale: float) -> None:
    """The class of each box, unless its plate would cover a larger box's; those without a location always."""
    style = style_for(*canvas.shape[:2])
    style = style._replace(font_scale=max(0.35, 0.8 * style.font_scale))
    lost = image.box_levels == NO_LEVEL
    taken = np.zeros(canvas.shape[:2], dtype=bool)
    for i in np.lexsort((-box_areas(image.boxes), ~lost)):
        box, text = image.boxes[i] * scale, f"{image.names[i]}: no location" if lost[i] else image.names[i]
        x, y = np.maximum(0, box[:2]).astype(int)
        plate = np.s_[max(0, y - LINE_HEIGHT // 2) : y + 1, x : x + _text_width(text, style.font_scale)]
        if lost[i] or not taken[plate].any():
            taken[plate] = True
            draw_label(canvas, box, text, _level_colour(image.box_levels[i]), style)


def _draw_dot(canvas: np.ndarray, point: np.ndarray, colour: tuple, spacing: float) -> None:
    """A location, small enough that its neighbours of the same level can be told from it."""
    radius = float(np.clip(spacing / 5, 1.5, 5))
    x, y = (round(float(value) * 16) for value in point - 0.5)  # sixteenths, from the middle of a pixel
    for extra, each in ((1.2, BLACK), (0, colour)):
        cv2.circle(canvas, (x, y), round((radius + extra) * 16), each, cv2.FILLED, cv2.LINE_AA, shift=4)


def _draw_legend(images: Sequence[BatchImage], levels: Sequence[Level], width: int) -> np.ndarray:
    """What the colours mean, and how many boxes and locations the whole batch has of each."""
    box_levels = np.concatenate([image.box_levels for image in images])
    location_levels = np.concatenate([image.location_levels for image in images])
    entries = []
    for number, level in enumerate(levels):
        boxes, locations = (box_levels == number).sum(), (location_levels == number).sum()
        text = f"{level.name}, stride {level.stride}, {level.reach}: {locations} locations, {boxes} boxes"
        entries.append((_level_colour(number), text))
    entries.append((_level_colour(NO_LEVEL), f"no location: {(box_levels == NO_LEVEL).sum()} boxes"))
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
    legend = np.full(((line + 1) * LINE_HEIGHT + GAP, width, 3), PAPER, dtype=np.uint8)
    for (colour, text), (x, y) in zip(entries, places):
        plate = legend[y + 4 : y + 4 + swatch, x : x + swatch]
        plate[:] = _hatch(*plate.shape[:2]) if colour is None else colour
        cv2.rectangle(legend, (x, y + 4), (x + swatch - 1, y + 3 + swatch), INK, 1)
        _write(legend[y : y + LINE_HEIGHT], text, x + swatch + 8, width - x - swatch - 8)
    return legend


def _level_colour(level: int) -> tuple[int, int, int]:
    return WHITE if level == NO_LEVEL else class_color(int(level))


def _hatch(height: int, width: int) -> np.ndarray:
    """[height, width, 3] of slanting stripes, which no photograph has and no network gets."""
    return np.array(HATCH, dtype=np.uint8)[_stripes(height, width)]


def _stripes(height: int, width: int) -> np.ndarray:
    """[height, width] of 0 and 1."""
    return (np.arange(height)[:, None] + np.arange(width)) // HATCH_WIDTH % 2


def _write(canvas: np.ndarray, text: str, x: int, room: int) -> None:
    """A line at the top of a canvas, as small as it must be to fit into the room."""
    text = text.encode("ascii", "replace").decode()  # OpenCV's fonts have no other letters
    scale = TEXT_SCALE * min(1, room / max(1, _text_width(text, TEXT_SCALE)))
    cv2.putText(canvas, text, (x, LINE_HEIGHT - 8), FONT, scale, INK, 1, cv2.LINE_AA)


def _text_width(text: str, scale: float) -> int:
    return cv2.getTextSize(text, FONT, scale, 1)[0][0]
