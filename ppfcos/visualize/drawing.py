"""Draws boxes and labels on images with numpy and OpenCV, and texts beyond ASCII with Pillow."""

from __future__ import annotations

import colorsys
import functools
import importlib.util
import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from ppfcos.console import printable
from ppfcos.errors import OutputError
from ppfcos.fileio import replacing

logger = logging.getLogger(__name__)

FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_HEIGHT = 30  # pixels of a line of FONT at scale 1
JPEG_QUALITY = 95
RIM = (32, 32, 32)  # around the lines of boxes, so that they are visible on any image
GOLDEN_RATIO = 0.618033988749895
GROUND_TRUTH_COLOR, TRUTH_EDGE = (255, 255, 255), (0, 0, 0)  # no class has these colors


class Drawable(Protocol):
    """What `draw_detections` draws, such as `ppfcos.deploy.Detections`."""

    boxes: np.ndarray  # [N, 4] x0, y0, x1, y1
    scores: np.ndarray  # [N]
    labels: np.ndarray  # [N]
    class_names: tuple


class Style(NamedTuple):
    """Line width, font and margin in pixels for one image size."""

    line: int
    font_scale: float
    font_line: int
    margin: int


def style_for(height: int, width: int) -> Style:
    """Select a style that is readable on a small image and on a large one scaled to the screen."""
    size = (height * width) ** 0.5
    line = int(np.clip(round(size / 300), 1, 12))
    font_scale = float(np.clip(size / 1200, 0.35, 3.5))
    return Style(line, font_scale, max(1, round(font_scale * 1.6)), max(2, round(font_scale * 5)))


def class_color(label: int) -> tuple[int, int, int]:
    """The BGR color of a class, fixed and far from those of neighboring labels.

    Hues advance by the golden ratio, which spreads any number of them, in three alternating shades.
    """
    hue = (0.33 + label * GOLDEN_RATIO) % 1.0
    saturation, value = ((0.85, 0.95), (0.95, 0.70), (0.50, 1.00))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw_detections(image_bgr: np.ndarray, detections: Drawable, threshold: float = 0.5) -> np.ndarray:
    """Draw detections with class and score on a copy of an image, [H, W, 3] uint8; the best come on top.

    Boxes are in pixels of the image; those with a score below the threshold are left out.
    """
    canvas = np.array(image_bgr, order="C")
    style = style_for(*canvas.shape[:2])
    chosen = [i for i in np.argsort(detections.scores, kind="stable") if detections.scores[i] >= threshold]
    for i in chosen:
        draw_box(canvas, detections.boxes[i], RIM, style._replace(line=style.line + 2))
        draw_box(canvas, detections.boxes[i], class_color(int(detections.labels[i])), style)
    for i in chosen:  # after all boxes, so that no line crosses a text
        label = int(detections.labels[i])
        text = f"{printable_name(label, detections.class_names)} {detections.scores[i]:.2f}"
        draw_label(canvas, detections.boxes[i], text, class_color(label), style)
    return canvas


def draw_ground_truth(image_bgr: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Draw ground-truth boxes, [M, 4] x0, y0, x1, y1, in white with a black edge on a copy of an image."""
    canvas = np.array(image_bgr, order="C")
    style = style_for(*canvas.shape[:2])
    for color, line in ((TRUTH_EDGE, style.line + 2), (GROUND_TRUTH_COLOR, style.line)):
        for box in boxes:
            draw_box(canvas, box, color, style._replace(line=line))
    return canvas


def shrink(image_bgr: np.ndarray, longest_side: int) -> tuple[np.ndarray, float]:
    """Scale an image down so that its longer side is at most `longest_side` pixels.

    Returns:
        The image, and the scale factor, at most 1.
    """
    height, width = image_bgr.shape[:2]
    factor = longest_side / max(height, width)
    if factor >= 1:
        return image_bgr, 1.0
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA), factor


def encode_image(image_bgr: np.ndarray, suffix: str) -> bytes | None:
    """Encode a BGR image in the format of a suffix such as `.jpg`; None if OpenCV does not support it."""
    try:
        done, data = cv2.imencode(suffix, image_bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    except cv2.error:
        return None
    return data.tobytes() if done else None


def save_image(path: str | os.PathLike, image_bgr: np.ndarray) -> None:
    """Write a BGR image atomically in the format of the path's suffix; missing folders are created.

    Raises:
        OutputError: OpenCV does not support the format, or the file cannot be written.
    """
    path = Path(path)
    data = encode_image(image_bgr, path.suffix)
    if data is None:
        raise OutputError(f"{path}: OpenCV cannot write this image format; use .jpg or .png")
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def draw_box(canvas: np.ndarray, box: np.ndarray, color: tuple[int, int, int], style: Style) -> None:
    """Draw a box, [4] x0, y0, x1, y1, on the canvas in place."""
    x0, y0, x1, y1 = _inside(box, canvas)
    cv2.rectangle(canvas, (x0, y0), (x1, y1), color, style.line, cv2.LINE_8)


def draw_label(
    canvas: np.ndarray, box: np.ndarray, text: str, color: tuple[int, int, int], style: Style
) -> None:
    """Draw a text above a box, or below its upper edge where it would leave the image."""
    height, width = canvas.shape[:2]
    scale = style.font_scale
    max_width = max(1, width - 2 * style.margin)
    text_width = _text_size(text, scale, style)[0]
    if text_width > max_width:
        scale *= max_width / text_width
    text_width, ascent, descent = _text_size(text, scale, style)
    label_width, label_height = text_width + 2 * style.margin, ascent + descent + style.margin
    x0, y0, _, _ = _inside(box, canvas)
    left = max(0, min(x0 - style.line // 2, width - label_width))
    top = y0 - label_height if y0 >= label_height else y0
    top = max(0, min(top, height - label_height))
    corner = (left + label_width - 1, top + label_height - 1)
    cv2.rectangle(canvas, (left, top), corner, color, cv2.FILLED)
    baseline = (left + style.margin, top + ascent + style.margin // 2 + 1)
    if text.isascii():
        cv2.putText(canvas, text, baseline, FONT, scale, _text_color(color), style.font_line, cv2.LINE_AA)
    else:
        _put_text_by_pillow(canvas, text, baseline, scale, _text_color(color))


def _text_size(text: str, scale: float, style: Style) -> tuple[int, int, int]:
    """Width of a text, and its height above and below the baseline, in pixels."""
    if text.isascii():
        (width, height), below = cv2.getTextSize(text, FONT, scale, style.font_line)
        return width, height, below
    font = _pillow_font(text, scale)
    return (max(1, round(font.getlength(text))), *font.getmetrics())


def _put_text_by_pillow(
    canvas: np.ndarray, text: str, baseline: tuple[int, int], scale: float, color: tuple[int, int, int]
) -> None:
    from PIL import Image, ImageDraw

    image = Image.fromarray(canvas)  # BGR; text color and canvas have the same order
    ImageDraw.Draw(image).text(baseline, text, color, _pillow_font(text, scale), anchor="ls")
    canvas[:] = np.asarray(image)


def _pillow_font(text: str, scale: float):
    from PIL import ImageFont

    return ImageFont.truetype(find_font(text), max(1, round(FONT_HEIGHT * scale)))


@functools.cache
def find_font(text: str) -> str | None:
    """Return the path of an installed font that has all characters of a text.

    None if there is no such font, no fontconfig or no Pillow.
    """
    if importlib.util.find_spec("PIL") is None:
        return None
    pattern = ":charset=" + " ".join(f"{ord(character):x}" for character in sorted(set(text)))
    try:
        output = subprocess.check_output(["fc-list", pattern, "file"], stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    paths = [line.rstrip(": ") for line in os.fsdecode(output).splitlines()]
    fonts = [path for path in paths if path.lower().endswith((".ttf", ".otf", ".ttc", ".otc"))]
    styles = ("Bold", "Italic", "Oblique")
    return min(fonts, key=lambda path: ("Sans" not in path, any(s in path for s in styles)), default=None)


def _inside(box: np.ndarray, canvas: np.ndarray) -> tuple[int, int, int, int]:
    height, width = canvas.shape[:2]
    limits = (width - 1, height - 1, width - 1, height - 1)
    return tuple(int(np.clip(round(float(side)), 0, limit)) for side, limit in zip(box, limits))


def _text_color(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black on light labels and white on dark ones (ITU-R BT.601 luma)."""
    blue, green, red = color
    return (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 130 else (255, 255, 255)


@functools.cache
def _drawable_name(label: int, name: str) -> str:
    if name and name.isprintable() and (name.isascii() or find_font(name) is not None):
        return name
    if name:
        logger.warning("no font has the letters of %s: it is drawn as 'class %d'", printable(name), label)
    return f"class {label}"


def printable_name(label: int, class_names: Sequence[str]) -> str:
    """The name of a class if a font has its letters, else `class N`."""
    return _drawable_name(label, str(class_names[label]) if 0 <= label < len(class_names) else "")
