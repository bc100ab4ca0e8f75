"""Draws boxes and labels on images: ASCII texts with OpenCV, others with Pillow and a font of the machine."""

from __future__ import annotations

import colorsys
import functools
import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from ppfcos.console import printable
from ppfcos.errors import OutputError
from ppfcos.fileio import replacing

logger = logging.getLogger(__name__)

FONT = cv2.FONT_HERSHEY_SIMPLEX
JPEG_QUALITY = 95
GOLDEN_RATIO = 0.618033988749895
GROUND_TRUTH_COLOR, RIM_COLOR = (255, 255, 255), (0, 0, 0)  # no class has these colors
FONT_FOLDERS = (
    *("~/.local/share/fonts", "~/.fonts", "/usr/share/fonts", "/usr/local/share/fonts"),
    *("~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts"),
)
FONT_SUFFIXES = (".ttf", ".ttc", ".otf")
PILLOW_SIZE = 28  # pixels of a Pillow font that is as large as OpenCV's at a scale of 1


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
        draw_box(canvas, detections.boxes[i], class_color(int(detections.labels[i])), style)
    for i in chosen:  # after all boxes, so that no line crosses a text
        label = int(detections.labels[i])
        text = f"{printable_name(label, detections.class_names)} {detections.scores[i]:.2f}"
        draw_label(canvas, detections.boxes[i], text, class_color(label), style)
    return canvas


def draw_ground_truth(image_bgr: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Draw ground-truth boxes, [M, 4] x0, y0, x1, y1, in white on a copy of an image."""
    canvas = np.array(image_bgr, order="C")
    style = style_for(*canvas.shape[:2])
    for box in boxes:
        draw_box(canvas, box, GROUND_TRUTH_COLOR, style)
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
    """Draw a box, [4] x0, y0, x1, y1, with a dark rim on the canvas in place."""
    x0, y0, x1, y1 = _inside(box, canvas)
    rim = style.line + (2 if style.line > 1 else 1)  # OpenCV draws 3 pixels for 2, and 5 for 3 and 4
    for each, line in ((RIM_COLOR, rim), (color, style.line)):
        cv2.rectangle(canvas, (x0, y0), (x1, y1), each, line, cv2.LINE_8)


def draw_label(
    canvas: np.ndarray, box: np.ndarray, text: str, color: tuple[int, int, int], style: Style
) -> None:
    """Draw a text above a box, or below its upper edge where it would leave the image."""
    height, width = canvas.shape[:2]
    mask = _text_mask(text, style.font_scale, style.font_line)
    max_width = max(1, width - 2 * style.margin)
    if mask.shape[1] > max_width:
        mask = _text_mask(text, style.font_scale * max_width / mask.shape[1], style.font_line)
    above = style.margin // 2 + 1
    mask = np.pad(mask, ((above, style.margin - above), (style.margin, style.margin)))
    label_height, label_width = mask.shape
    x0, y0, _, _ = _inside(box, canvas)
    left = max(0, min(x0 - style.line // 2, width - label_width))
    top = y0 - label_height if y0 >= label_height else y0
    top = max(0, min(top, height - label_height))
    plate = canvas[top : top + label_height, left : left + label_width]
    opacity = mask[: plate.shape[0], : plate.shape[1], None] / 255
    plate[:] = np.rint((1 - opacity) * color + opacity * _text_color(color))


def _text_mask(text: str, scale: float, line: int) -> np.ndarray:
    """The opacity of a text in a tight frame, [H, W] uint8."""
    if text.isascii():
        (width, height), baseline = cv2.getTextSize(text, FONT, scale, line)
        mask = np.zeros((height + baseline, width), np.uint8)
        cv2.putText(mask, text, (0, height), FONT, scale, 255, line, cv2.LINE_AA)
        return mask
    from PIL import Image, ImageDraw

    font = _font_of(text).font_variant(size=max(6, round(PILLOW_SIZE * scale)))
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), text, 255, font)
    return np.asarray(image)


def _inside(box: np.ndarray, canvas: np.ndarray) -> tuple[int, int, int, int]:
    height, width = canvas.shape[:2]
    limits = (width - 1, height - 1, width - 1, height - 1)
    return tuple(int(np.clip(round(float(side)), 0, limit)) for side, limit in zip(box, limits))


def _text_color(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black on light labels and white on dark ones (ITU-R BT.601 luma)."""
    blue, green, red = color
    return (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 130 else (255, 255, 255)


def printable_name(label: int, class_names: Sequence[str]) -> str:
    """The name of a class, or `class N` if it has none or this machine has no font with its letters."""
    return _printable_name(label, str(class_names[label]) if 0 <= label < len(class_names) else "")


@functools.cache
def _printable_name(label: int, name: str) -> str:
    if name and name.isprintable() and (name.isascii() or _font_of(name)):
        return name
    if name:
        logger.warning(
            "drawn images say 'class %d' for %s: no font on this machine has its letters; install one, such "
            "as fonts-noto-cjk, or copy one into ~/.local/share/fonts",
            label,
            printable(name),
        )
    return f"class {label}"


def _font_of(text: str) -> Any:
    """The first font that has all letters of a text, as Pillow's FreeTypeFont; None without one."""
    return _font_with(frozenset(letter for letter in text if not letter.isascii()))


@functools.cache
def _font_with(letters: frozenset) -> Any:
    try:
        from PIL import ImageFont
    except ImportError:
        return None
    for path in _font_files():
        try:
            font = ImageFont.truetype(path, PILLOW_SIZE)
            missing = bytes(font.getmask("\U0010ffff"))  # a code point that no font has
            if all(bytes(font.getmask(letter)) != missing for letter in {"0", "a", *letters}):
                return font
        except (OSError, ValueError):  # no font, or a bitmap font
            continue
    return None


@functools.cache
def _font_files() -> list[str]:
    """The fonts of this machine and of matplotlib; regular sans serif fonts come first."""
    folders = [Path(os.path.expanduser(folder)) for folder in FONT_FOLDERS]
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib and matplotlib.origin:
        folders.append(Path(matplotlib.origin).parent / "mpl-data" / "fonts")
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in FONT_SUFFIXES]
    files = [path for path in files if not path.stem.startswith("LastResort")]  # draws frames for all letters
    unlike = ("bold", "oblique", "italic", "serif", "mono")

    def rank(path: Path) -> tuple:
        name = path.stem.lower()
        return sum(word in name for word in unlike), "sans" not in name, name

    return [str(path) for path in sorted(files, key=rank)]
