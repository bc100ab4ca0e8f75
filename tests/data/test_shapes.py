"""The drawn data set: its boxes against the pixels, and equal bytes for equal arguments."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from scipy import ndimage

from ppfcos.data import shapes
from ppfcos.data.rng import generator
from ppfcos.errors import OutputError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "set"
    assert shapes.generate(folder, train=60, val=4, size=128, seed=3)
    return folder


def open_coco(folder: Path, split: str = "train") -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / f"annotations/instances_{split}2017.json"))


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("number", range(20))
def test_box_is_tight_around_what_pillow_draws_of_the_outline(number):
    side, scale = 96, 16
    shape = shapes._random_shape(side, generator(5, number))
    canvas = Image.new("L", (side * scale, side * scale))
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in shape.outline * scale], fill=255)
    rows, columns = np.nonzero(np.asarray(canvas))
    truth = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / scale
    np.testing.assert_allclose(shape.box, truth, atol=1.5 / scale)

    covered = shape.coverage(side)
    np.testing.assert_allclose(covered.sum(), len(rows) / scale**2, rtol=0.1)
    rows, columns = np.nonzero(covered > 0)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    outside = (np.array(shape.box) - found) * [1, 1, -1, -1]  # pixels that the box lies within the coverage
    assert (outside >= -0.3).all() and (outside < 1.3).all()


def test_box_is_where_the_picture_shows_the_shape(drawn):
    """Of pictures with one shape: the patch coloured like the middle of the box fills it."""
    coco, differences = open_coco(drawn), []
    for image in coco.loadImgs(coco.getImgIds()):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        if len(annotations) != 1:
            continue
        x, y, w, h = annotations[0]["bbox"]
        picture = cv2.medianBlur(cv2.imread(str(drawn / "train2017" / image["file_name"])), 3).astype(float)
        column, row = int(x + w / 2), int(y + h / 2)
        alike = np.linalg.norm(picture - picture[row, column], axis=2) < 40
        patches = ndimage.label(alike)[0]
        rows, columns = np.nonzero(patches == patches[row, column])
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        differences.append(np.abs(found - [x, y, x + w, y + h]).max())
    assert len(differences) >= 5
    assert np.median(differences) < 2 and np.mean(np.array(differences) < 3) >= 0.8


def test_is_coco(drawn):
    coco = open_coco(drawn)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(shapes.CLASS_NAMES)
    assert len(coco.getImgIds()) == 60 and len(coco.getImgIds()) == len(os.listdir(drawn / "train2017"))
    for image in coco.loadImgs(coco.getImgIds()):
        picture = cv2.imread(str(drawn / "train2017" / image["file_name"]))
        assert picture.shape == (image["height"], image["width"], 3) == (128, 128, 3)
    boxes = np.array([annotation["bbox"] for annotation in coco.loadAnns(coco.getAnnIds())])
    areas = np.array([annotation["area"] for annotation in coco.loadAnns(coco.getAnnIds())])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 128).all()
    assert (areas > 0.15 * boxes[:, 2] * boxes[:, 3]).all() and (areas <= boxes[:, 2] * boxes[:, 3]).all()
    with_shapes = {annotation["image_id"] for annotation in coco.loadAnns(coco.getAnnIds())}
    assert 0 < len(with_shapes) < 60, "some pictures have no shapes"
    assert boxes[:, 2:].max() > 4 * boxes[:, 2:].max(axis=1).min(), "more than two octaves of sizes"


def test_most_of_every_shape_is_visible():
    for number in range(30):
        for shape, visible in shapes.draw_image(96, generator(1, number))[1]:
            assert visible >= 0.6 * shape.coverage(96).sum() - 0.1


def test_same_seed_same_bytes(drawn, tmp_path):
    shapes.generate(tmp_path / "again", train=60, val=4, size=128, seed=3)
    assert content_of(tmp_path / "again") == content_of(drawn)
    shapes.generate(tmp_path / "fewer", train=2, val=1, size=128, seed=3)
    first = "train2017/shapes_000001.jpg"
    assert (tmp_path / "fewer" / first).read_bytes() == (drawn / first).read_bytes()
    shapes.generate(tmp_path / "other", train=2, val=1, size=128, seed=4)
    assert (tmp_path / "other" / first).read_bytes() != (drawn / first).read_bytes()


def test_a_complete_set_stays(tmp_path):
    assert shapes.generate(tmp_path, train=2, val=1, size=64)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not shapes.generate(tmp_path, train=2, val=1, size=64)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_incomplete_set_or_one_of_other_arguments_is_replaced(tmp_path):
    shapes.generate(tmp_path, train=3, val=1, size=64)
    whole = content_of(tmp_path)
    (tmp_path / "train2017/shapes_000002.jpg").unlink()
    assert shapes.generate(tmp_path, train=3, val=1, size=64)
    assert content_of(tmp_path) == whole
    (tmp_path / "annotations/instances_val2017.json").unlink()  # as after a run that was killed
    assert shapes.generate(tmp_path, train=3, val=1, size=64)
    assert content_of(tmp_path) == whole
    assert shapes.generate(tmp_path, train=2, val=1, size=64)
    assert sorted(os.listdir(tmp_path / "train2017")) == ["shapes_000001.jpg", "shapes_000002.jpg"]
    assert sorted(os.listdir(tmp_path)) == ["annotations", "train2017", "val2017"]


@pytest.mark.parametrize("name", ["train2017/holiday.jpg", "annotations/instances_val2017.json"])
def test_other_files_are_not_touched(tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(json.dumps({"images": []}))
    with pytest.raises(OutputError, match="other images"):
        shapes.generate(tmp_path, train=2, val=1, size=64)
    assert list(content_of(tmp_path)) == [name]


def test_invalid_arguments(tmp_path):
    with pytest.raises(OutputError):
        shapes.generate(tmp_path / "x", train=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        shapes.generate(tmp_path / "file", train=1, val=1, size=64)


def test_command(root, tmp_path):
    command = [
        sys.executable,
        str(root / "dataset/shapes/generate_shapes.py"),
        "--output",
        str(tmp_path / "set"),
    ]
    command += ["--train", "2", "--val", "1", "--size", "64"]
    for words in ("drawn into", "already in"):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0 and words in ended.stdout and not ended.stderr
    ended = subprocess.run([*command, "--size", "3"], capture_output=True, text=True, timeout=120)
    assert (
        ended.returncode == 2 and ended.stderr.startswith("error: ") and len(ended.stderr.splitlines()) == 1
    )
