"""Pictures with boxes drawn on them, with numpy and OpenCV only."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from ppfcos.errors import OutputError
from ppfcos.fileio import replacing

FONT = cv2.FONT_HERSHEY_SIMPLEX
JPEG_QUALITY = 95
GOLDEN_RATIO = 0.618033988749895
GROUND_TRUTH_COLOR, TRUTH_EDGE = (255, 255, 255), (0, 0, 0)  # no class has either: class_color has hues only


class Drawable(Protocol):
    """What `draw_detections` needs: `ppfcos.deploy.Detections`, or anything with these."""

    boxes: np.ndarray  # [N, 4] x0, y0, x1, y1
    scores: np.ndarray  # [N]
    labels: np.ndarray  # [N]
    class_names: tuple


class Style(NamedTuple):
    """Line widths and letter sizes for one size of picture."""

    line: int
    font_scale: float
    font_line: int
    margin: int


def style_for(height: int, width: int) -> Style:
    """Lines and letters that can be read: on a small picture, and on a large one shrunk to a screen."""
    size = (height * width) ** 0.5
    line = int(np.clip(round(size / 300), 1, 12))
    font_scale = float(np.clip(size / 1200, 0.35, 3.5))
    return Style(line, font_scale, max(1, round(font_scale * 1.6)), max(2, round(font_scale * 5)))


def class_color(label: int) -> tuple[int, int, int]:
    """The colour of a class, blue first: the same in every picture, and far from its neighbours' colours.

    Hues advance by the golden ratio of the circle, which spreads any number of them; three shades in turn.
    """
    hue = (0.33 + label * GOLDEN_RATIO) % 1.0
    saturation, value = ((0.85, 0.95), (0.95, 0.70), (0.50, 1.00))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw_detections(image_bgr: np.ndarray, detections: Drawable, threshold: float = 0.5) -> np.ndarray:
    """Draw what was found.

    Args:
        image_bgr: [H, W, 3] uint8, blue first; it is not changed.
        detections: boxes in this image's pixels.
        threshold: boxes with a lower score are left out.

    Returns:
        A copy with the boxes on it, each with its class and score; the best are drawn last, on top.
    """
    canvas = np.array(image_bgr, order="C")
    style = style_for(*canvas.shape[:2])
    chosen = [i for i in np.argsort(detections.scores, kind="stable") if detections.scores[i] >= threshold]
    for i in chosen:
        draw_box(canvas, detections.boxes[i], class_color(int(detections.labels[i])), style)
    for i in chosen:  # after all boxes: no line crosses a text
        label = int(detections.labels[i])
        text = f"{printable_name(label, detections.class_names)} {detections.scores[i]:.2f}"
        draw_label(canvas, detections.boxes[i], text, class_color(label), style)
    return canvas


def draw_ground_truth(image_bgr: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Draw what was to be found, in white with a black edge; `draw_detections` then goes on top.

    Args:
        image_bgr: [H, W, 3] uint8, blue first; it is not changed.
        boxes: [M, 4] x0, y0, x1, y1 in this image's pixels.

    Returns:
        A copy with the boxes on it.
    """
    canvas = np.array(image_bgr, order="C")
    style = style_for(*canvas.shape[:2])
    for colour, line in ((TRUTH_EDGE, style.line + 2), (GROUND_TRUTH_COLOR, style.line)):
        for box in boxes:
            draw_box(canvas, box, colour, style._replace(line=line))
    return canvas


def shrink(image_bgr: np.ndarray, longest_side: int) -> tuple[np.ndarray, float]:
    """Make a large picture smaller; a small one stays as it is.

    Args:
        image_bgr: [H, W, 3] uint8.
        longest_side: that the result may have, in pixels.

    Returns:
        The picture, and the factor by which its boxes shrink.
    """
    height, width = image_bgr.shape[:2]
    factor = longest_side / max(height, width)
    if factor >= 1:
        return image_bgr, 1.0
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA), factor


def encode_image(image_bgr: np.ndarray, suffix: str) -> bytes | None:
    """A picture in the format that a file name's ending says.

    Args:
        image_bgr: [H, W, 3] uint8, blue first.
        suffix: such as `.jpg` or `.png`.

    Returns:
        What would be in the file; None where OpenCV knows no such format.
    """
    try:
        done, data = cv2.imencode(suffix, image_bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    except cv2.error:
        return None
    return data.tobytes() if done else None


def save_image(path: str | os.PathLike, image_bgr: np.ndarray) -> None:
    """Write a picture in the format that its name's ending says, beside its name first, then renamed.

    Args:
        path: where; the folder is made if it is missing.
        image_bgr: [H, W, 3] uint8, blue first.

    Raises:
        OutputError: OpenCV cannot write this format, or the folder cannot be written.
    """
    path = Path(path)
    data = encode_image(image_bgr, path.suffix)
    if data is None:
        raise OutputError(f"{path}: OpenCV cannot write a picture of this kind; name it .jpg or .png")
    with replacing(path) as unfinished:
        unfinished.write_bytes(data)


def draw_box(canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], style: Style) -> None:
    """Draw the lines of a box.

    Args:
        canvas: [H, W, 3] uint8; changed.
        box: [4] x0, y0, x1, y1 in its pixels.
        colour: blue first.
        style: of the picture.
    """
    x0, y0, x1, y1 = _inside(box, canvas)
    cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, style.line, cv2.LINE_8)


def draw_label(
    canvas: np.ndarray, box: np.ndarray, text: str, colour: tuple[int, int, int], style: Style
) -> None:
    """Draw a plate above the box's upper edge; below it, or moved sideways, where it would leave the picture.

    Args:
        canvas: [H, W, 3] uint8; changed.
        box: [4] x0, y0, x1, y1 in its pixels.
        text: in the letters that OpenCV's fonts have, see `printable_name`.
        colour: of the plate, blue first.
        style: of the picture.
    """
    height, width = canvas.shape[:2]
    font_scale = style.font_scale
    (text_width, text_height), baseline = cv2.getTextSize(text, FONT, font_scale, style.font_line)
    room = max(1, width - 2 * style.margin)
    if text_width > room:  # a long name on a narrow picture
        font_scale *= room / text_width
        (text_width, text_height), baseline = cv2.getTextSize(text, FONT, font_scale, style.font_line)
    plate_width, plate_height = text_width + 2 * style.margin, text_height + baseline + style.margin
    x0, y0, _, _ = _inside(box, canvas)
    left = max(0, min(x0 - style.line // 2, width - plate_width))
    top = y0 - plate_height if y0 >= plate_height else y0
    top = max(0, min(top, height - plate_height))
    corner = (left + plate_width - 1, top + plate_height - 1)
    cv2.rectangle(canvas, (left, top), corner, colour, cv2.FILLED)
    origin = (left + style.margin, top + text_height + style.margin // 2 + 1)
    cv2.putText(canvas, text, origin, FONT, font_scale, _text_colour(colour), style.font_line, cv2.LINE_AA)


def _inside(box: np.ndarray, canvas: np.ndarray) -> tuple[int, int, int, int]:
    height, width = canvas.shape[:2]
    limits = (width - 1, height - 1, width - 1, height - 1)
    return tuple(int(np.clip(round(float(side)), 0, limit)) for side, limit in zip(box, limits))


def _text_colour(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black on light plates and white on dark ones (ITU-R BT.601 luma)."""
    blue, green, red = colour
    return (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 130 else (255, 255, 255)


def printable_name(label: int, class_names: Sequence[str]) -> str:
    """A class's name in the letters that OpenCV's fonts have, which are ASCII's.

    Args:
        label: of the class.
        class_names: by label.

    Returns:
        The name, or `class N` where there is none or it has other letters.
    """
    name = str(class_names[label]) if 0 <= label < len(class_names) else ""
    return name if name and name.isascii() and name.isprintable() else f"class {label}"
