"""Drawing of boxes, labels and colors, and the image files."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from ppfcos.deploy import Detections
from ppfcos.errors import OutputError
from ppfcos.visualize import drawing
from ppfcos.visualize.drawing import (
    GROUND_TRUTH_COLOR,
    class_color,
    draw_detections,
    draw_ground_truth,
    save_image,
    shrink,
    style_for,
)

NAMES = ("cat", "traffic light", "a class whose name is rather long", "Füchse", "")


def make_detections(*rows) -> Detections:
    """Detections from rows (label, score, x0, y0, x1, y1)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, 2:], table[:, 1], table[:, 0].astype(np.int64), NAMES)


def gray(height: int = 240, width: int = 320) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def has_color(picture: np.ndarray, label: int) -> np.ndarray:
    return (picture == np.array(class_color(label))).all(axis=2)


def test_a_box_is_drawn_in_its_color_at_its_place():
    picture = draw_detections(gray(), make_detections((0, 0.9, 100, 80, 200, 180)))
    assert all(has_color(picture, 0)[y, x] for x, y in ((100, 130), (200, 130), (150, 180), (150, 80)))
    assert (picture[90:170, 110:190] == 128).all()
    assert (picture[190:] == 128).all() and (picture[:, 210:] == 128).all()


def test_the_input_image_stays_unchanged():
    image = gray()
    draw_detections(image, make_detections((0, 0.9, 10, 80, 200, 180)))
    assert (image == 128).all()
    assert (draw_detections(image[:, ::-1], make_detections((0, 0.9, 10, 80, 200, 180))) != 128).any()


def test_boxes_below_the_threshold_are_left_out():
    assert (draw_detections(gray(), make_detections((0, 0.49, 10, 80, 200, 180)), 0.5) == 128).all()
    assert (draw_detections(gray(), make_detections((0, 0.5, 10, 80, 200, 180)), 0.5) != 128).any()
    assert (draw_detections(gray(), make_detections()) == 128).all()


@pytest.mark.parametrize("brightness", [0, 128, 255])
def test_ground_truth_is_visible_on_any_image_and_unlike_any_class(brightness):
    image = np.full((240, 320, 3), brightness, np.uint8)
    picture = draw_ground_truth(image, np.array([[100, 80, 200, 180]], np.float32))
    assert (image == brightness).all()
    for x, y in ((100, 130), (200, 130), (150, 180), (150, 80)):
        assert (picture[y, x] == GROUND_TRUTH_COLOR).all()
        around = picture[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3)
        assert np.ptp(around.astype(int), axis=0).min() > 200, "white beside black"
    assert (picture[90:170, 110:190] == brightness).all()
    assert all(class_color(label) != GROUND_TRUTH_COLOR for label in range(1000))
    assert (draw_ground_truth(image, np.zeros((0, 4))) == brightness).all()


@pytest.mark.parametrize(
    ("shape", "expected", "factor"),
    [
        ((480, 640), (480, 640), 1),
        ((30, 20), (30, 20), 1),
        ((960, 1280), (480, 640), 0.5),
        ((3200, 10), (640, 2), 0.2),
        ((1, 6400), (1, 640), 0.1),
    ],
)
def test_shrink(shape, expected, factor):
    picture, found_factor = shrink(gray(*shape), 640)
    assert picture.shape == (*expected, 3)
    assert found_factor == pytest.approx(factor)
    assert (picture == 128).all()


def test_the_highest_score_is_on_top():
    for scores, top in (((0.9, 0.6), 0), ((0.6, 0.9), 1)):
        rows = [(label, score, 100, 80, 200, 180) for label, score in enumerate(scores)]
        assert has_color(draw_detections(gray(), make_detections(*rows)), top)[180, 100:200].all()


def label_columns(box: tuple, label: int = 1, height: int = 240, width: int = 320) -> tuple:
    """The first and last column of a label."""
    picture = draw_detections(gray(height, width), make_detections((label, 0.87, *box)))
    rows = np.flatnonzero((picture != 128).any(axis=2).sum(axis=1) > 20)
    changed = (picture[rows[0] : rows[0] + 8] != 128).any(axis=(0, 2))
    columns = np.flatnonzero(changed)
    return columns[0], columns[-1]


@pytest.mark.parametrize("corner", [(0, 0), (300, 0), (0, 220), (300, 220)])
def test_a_label_stays_inside_the_image(corner):
    """A label at a corner of the image is as wide as one in its center."""
    left, right = label_columns((150, 120, 160, 130))
    x, y = corner
    corner_left, corner_right = label_columns((x, y, x + 10, y + 10))
    assert corner_right - corner_left >= right - left
    assert corner_left >= 0 and corner_right < 320


def test_the_text_contrasts_with_its_label():
    for label in range(80):
        blue, green, red = class_color(label)
        picture = draw_detections(gray(), make_detections((label, 0.9, 20, 120, 220, 200)))
        plate = picture[105:119, 22:60].astype(int)
        contrast = np.abs(plate - np.array([blue, green, red])).sum(axis=2).max()
        assert contrast > 250


def one_box(name: str, label: int = 3) -> np.ndarray:
    detections = make_detections((label, 0.9, 20, 120, 220, 200))
    names = ("",) * label + (name,)
    return draw_detections(gray(), Detections(detections.boxes, detections.scores, detections.labels, names))


@pytest.mark.parametrize("name", ["Größe", "Круг"])
def test_a_name_that_is_not_ascii_is_drawn_with_a_font(name, caplog, monkeypatch):
    """Compared with Pillow's own rendering in the font of matplotlib."""
    monkeypatch.setattr(drawing, "FONT_FOLDERS", ())
    clear_fonts()
    assert drawing.printable_name(1, ("", name)) == name
    canvas = np.zeros((200, 600, 3), np.uint8)
    drawing.draw_label(canvas, np.array([50, 150, 90, 190]), name, (0, 0, 0), drawing.Style(1, 2.0, 3, 10))
    drawn = crop_text(canvas[..., 0])
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    correlations = {}
    for text in (name, name[::-1], "class 1"):
        image = Image.new("L", (900, 200))
        ImageDraw.Draw(image).text((20, 20), text, 255, ImageFont.truetype(fonts / "DejaVuSans.ttf", 100))
        expected = cv2.resize(crop_text(np.asarray(image)), drawn.shape[::-1], interpolation=cv2.INTER_AREA)
        correlations[text] = np.corrcoef(drawn.ravel(), expected.ravel())[0, 1]
    assert correlations[name] > 0.9 and sorted(correlations.values())[1] < 0.6
    assert not caplog.records
    clear_fonts()


def crop_text(gray_image: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero((gray_image > 100).any(axis=axis)) for axis in (1, 0))
    return gray_image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def clear_fonts() -> None:
    for cached in (drawing._font_files, drawing._font_with, drawing._printable_name):
        cached.cache_clear()


def test_a_name_without_a_font_becomes_the_label_with_one_line_in_the_log(caplog, monkeypatch, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(drawing, "FONT_FOLDERS", (str(tmp_path),))
    clear_fonts()
    for _ in range(2):
        np.testing.assert_array_equal(one_box("圆形"), one_box("class 3"))
    [record] = caplog.records
    assert "class 3" in record.getMessage() and "圆形" in record.getMessage()
    np.testing.assert_array_equal(one_box(""), one_box("class 3"))
    np.testing.assert_array_equal(one_box("a\x1b[0m"), one_box("class 3"))
    clear_fonts()


@pytest.mark.parametrize("label", range(6))
def test_a_thin_box_is_visible_on_a_ground_of_its_color(label):
    image = np.empty((240, 320, 3), np.uint8)
    image[:] = class_color(label)
    picture = draw_detections(image, make_detections((label, 0.9, 100, 80, 200, 180)))
    differs = np.abs(picture.astype(int) - class_color(label)).sum(axis=2) > 150
    for x, y in ((100, 130), (200, 130), (150, 180)):
        assert differs[y - 3 : y + 4, x - 3 : x + 4].any()


def test_colors_are_fixed_and_distinct():
    colors = np.array([class_color(label) for label in range(80)], int)
    np.testing.assert_array_equal(colors, [class_color(label) for label in range(80)])
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 1000 * np.eye(80, dtype=int)
    assert distances.min() >= 15
    assert distances[:20, :20].min() >= 80
    assert colors.min() >= 0 and colors.max() <= 255


def test_lines_and_font_scale_with_the_image():
    small, middle, large = style_for(120, 160), style_for(480, 640), style_for(2000, 3000)
    assert small.line <= middle.line < large.line
    assert small.font_scale < middle.font_scale < large.font_scale


@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (2, 500), (500, 2), (30, 40)])
def test_images_of_any_size(shape):
    everywhere = make_detections((2, 0.9, -50, -50, 9999, 9999), (0, 0.8, 3, 3, 1, 1), (1, 0.7, 0, 0, 0, 0))
    assert draw_detections(gray(*shape), everywhere).shape == (*shape, 3)


@pytest.mark.parametrize(
    ("name", "starts_with"),
    [("a.jpg", b"\xff\xd8"), ("a.JPEG", b"\xff\xd8"), ("a.png", b"\x89PNG"), ("a.bmp", b"BM")],
)
def test_image_formats(tmp_path, name, starts_with):
    picture = draw_detections(gray(), make_detections((0, 0.9, 10, 80, 200, 180)))
    save_image(tmp_path / "new" / name, picture)
    assert (tmp_path / "new" / name).read_bytes().startswith(starts_with)
    atol = 0 if name.endswith(("png", "bmp")) else 90
    np.testing.assert_allclose(cv2.imread(str(tmp_path / "new" / name)), picture, atol=atol)
    assert os.listdir(tmp_path / "new") == [name]


def test_write_errors_name_the_file(tmp_path):
    for name in ("a.unknown", "a"):
        with pytest.raises(OutputError, match=name):
            save_image(tmp_path / name, gray())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"file/a\.png"):
        save_image(tmp_path / "file" / "a.png", gray())
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OutputError, match=r"taken\.png"):
        save_image(tmp_path / "taken.png", gray())
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.png"]
