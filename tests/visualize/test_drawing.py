"""What is drawn: boxes, names, colours, and the files they end in."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from ppfcos.deploy import Detections
from ppfcos.errors import OutputError
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


def found(*rows) -> Detections:
    """Detections of rows (label, score, x0, y0, x1, y1)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, 2:], table[:, 1], table[:, 0].astype(np.int64), NAMES)


def grey(height: int = 240, width: int = 320) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def has_colour(picture: np.ndarray, label: int) -> np.ndarray:
    return (picture == np.array(class_color(label))).all(axis=2)


def test_a_box_is_drawn_in_its_colour_where_it_is():
    picture = draw_detections(grey(), found((0, 0.9, 100, 80, 200, 180)))
    assert all(has_colour(picture, 0)[y, x] for x, y in ((100, 130), (200, 130), (150, 180), (150, 80)))
    assert (picture[90:170, 110:190] == 128).all()
    assert (picture[190:] == 128).all() and (picture[:, 210:] == 128).all()


def test_the_given_image_is_not_changed():
    image = grey()
    draw_detections(image, found((0, 0.9, 10, 80, 200, 180)))
    assert (image == 128).all()
    assert (draw_detections(image[:, ::-1], found((0, 0.9, 10, 80, 200, 180))) != 128).any()


def test_boxes_below_the_threshold_are_left_out():
    assert (draw_detections(grey(), found((0, 0.49, 10, 80, 200, 180)), 0.5) == 128).all()
    assert (draw_detections(grey(), found((0, 0.5, 10, 80, 200, 180)), 0.5) != 128).any()
    assert (draw_detections(grey(), found()) == 128).all()


@pytest.mark.parametrize("brightness", [0, 128, 255])
def test_truth_can_be_seen_on_any_picture_and_taken_for_no_class(brightness):
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
def test_only_large_pictures_shrink(shape, expected, factor):
    picture, found_factor = shrink(grey(*shape), 640)
    assert picture.shape == (*expected, 3)
    assert found_factor == pytest.approx(factor)
    assert (picture == 128).all()


def test_the_best_is_on_top():
    for scores, top in (((0.9, 0.6), 0), ((0.6, 0.9), 1)):
        rows = [(label, score, 100, 80, 200, 180) for label, score in enumerate(scores)]
        assert has_colour(draw_detections(grey(), found(*rows)), top)[180, 100:200].all()


def plate_of(box: tuple, label: int = 1, height: int = 240, width: int = 320) -> tuple:
    """The rows and columns from which a label's plate reaches to which, the box's lines left out."""
    picture = draw_detections(grey(height, width), found((label, 0.87, *box)))
    rows = np.flatnonzero((picture != 128).any(axis=2).sum(axis=1) > 20)
    changed = (picture[rows[0] : rows[0] + 8] != 128).any(axis=(0, 2))
    columns = np.flatnonzero(changed)
    return columns[0], columns[-1]


@pytest.mark.parametrize("corner", [(0, 0), (300, 0), (0, 220), (300, 220)])
def test_a_label_stays_inside_the_picture(corner):
    """The plate is as wide at every corner of the picture as in its middle: nothing of it is cut off."""
    left, right = plate_of((150, 120, 160, 130))
    x, y = corner
    corner_left, corner_right = plate_of((x, y, x + 10, y + 10))
    assert corner_right - corner_left >= right - left
    assert corner_left >= 0 and corner_right < 320


def test_the_text_can_be_told_from_its_plate():
    for label in range(80):
        blue, green, red = class_color(label)
        picture = draw_detections(grey(), found((label, 0.9, 20, 120, 220, 200)))
        plate = picture[105:119, 22:60].astype(int)
        contrast = np.abs(plate - np.array([blue, green, red])).sum(axis=2).max()
        assert contrast > 250


def test_names_without_ascii_letters_get_their_number():
    for label, name in ((3, "class 3"), (4, "class 4"), (9, "class 9")):
        picture = draw_detections(grey(), found((label, 0.9, 20, 120, 220, 200)))
        written = draw_detections(grey(), Detections(*_one(label), (name,) * 10))
        np.testing.assert_array_equal(picture, written)


def _one(label: int) -> tuple:
    single = found((label, 0.9, 20, 120, 220, 200))
    return single.boxes, single.scores, single.labels


def test_colours_are_fixed_and_far_apart():
    colours = np.array([class_color(label) for label in range(80)], int)
    np.testing.assert_array_equal(colours, [class_color(label) for label in range(80)])
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 1000 * np.eye(80, dtype=int)
    assert distances.min() >= 15
    assert distances[:20, :20].min() >= 80
    assert colours.min() >= 0 and colours.max() <= 255


def test_lines_and_letters_grow_with_the_picture():
    small, middle, large = style_for(120, 160), style_for(480, 640), style_for(2000, 3000)
    assert small.line <= middle.line < large.line
    assert small.font_scale < middle.font_scale < large.font_scale


@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (2, 500), (500, 2), (30, 40)])
def test_pictures_of_any_size(shape):
    everywhere = found((2, 0.9, -50, -50, 9999, 9999), (0, 0.8, 3, 3, 1, 1), (1, 0.7, 0, 0, 0, 0))
    assert draw_detections(grey(*shape), everywhere).shape == (*shape, 3)


@pytest.mark.parametrize(
    ("name", "starts_with"),
    [("a.jpg", b"\xff\xd8"), ("a.JPEG", b"\xff\xd8"), ("a.png", b"\x89PNG"), ("a.bmp", b"BM")],
)
def test_a_picture_keeps_its_format(tmp_path, name, starts_with):
    picture = draw_detections(grey(), found((0, 0.9, 10, 80, 200, 180)))
    save_image(tmp_path / "new" / name, picture)
    assert (tmp_path / "new" / name).read_bytes().startswith(starts_with)
    atol = 0 if name.endswith(("png", "bmp")) else 90
    np.testing.assert_allclose(cv2.imread(str(tmp_path / "new" / name)), picture, atol=atol)
    assert os.listdir(tmp_path / "new") == [name]


def test_what_cannot_be_written_is_named(tmp_path):
    for name in ("a.unknown", "a"):
        with pytest.raises(OutputError, match=name):
            save_image(tmp_path / name, grey())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"file/a\.png"):
        save_image(tmp_path / "file" / "a.png", grey())
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OutputError, match=r"taken\.png"):
        save_image(tmp_path / "taken.png", grey())
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.png"]
