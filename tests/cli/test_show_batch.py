"""tools/show_batch.py draws the batch, its boxes and the points of the model's assigner."""

from __future__ import annotations

import json
import os
import re
from collections import Counter

import cv2
import numpy as np
import paddle
import pytest
from helpers import reference
from helpers.small_config import write_config

from ppfcos.cli import show_batch
from ppfcos.config import load_config
from ppfcos.data import shapes
from ppfcos.data.datasets import build_dataset
from ppfcos.data.loader import TrainLoader
from ppfcos.engine.model import build_model
from ppfcos.engine.prefetcher import Prefetcher
from ppfcos.modeling.assigner import Targets
from ppfcos.visualize.batch import GAP, NO_LEVEL, BatchImage, Level, draw_batch
from ppfcos.visualize.drawing import class_color

SIDE = 900  # at this width a picture is drawn as large as it is
LEVELS = [Level(8, 0, 64), Level(16, 64, 128), Level(32, 128, float("inf"))]


@pytest.fixture(scope="module")
def small(tmp_path_factory, root):
    """A configuration for drawn shapes, four of 128 pixels a step."""
    folder = tmp_path_factory.mktemp("show")
    shapes.generate(folder / "shapes", train=12, val=1, size=128)
    return write_config(folder / "small.yml", root, folder / "shapes", folder / "output")


MIXED = (
    "TrainReader.sample_transforms=[{Decode: {}}, {PPFCOSMosaic: {size: [96, 150]}}, "
    "{PPFCOSScaleJitterCrop: {size: [150, 180]}}, {Permute: {}}]"
)


def test_the_image_is_written_to_the_run_folder(small, capsys):
    assert show_batch.main(["-c", str(small), "-o", "TrainReader.total_batch_size=4"]) == 0
    path = small.parent / "output" / "small" / "batch.png"
    assert cv2.imread(str(path)).shape[1] > 900
    printed = capsys.readouterr()
    assert printed.err == ""
    [line] = [line for line in printed.out.splitlines() if "batch.png" in line]
    assert f"{path}: 4 images of 96x96 pixels" in line


def test_several_batches_of_another_epoch(small, tmp_path, capsys):
    output = tmp_path / "new" / "sheet.jpg"
    arguments = ["--batches", "99", "--epoch", "2", "--output", str(output), "-o", MIXED]
    arguments += ["TrainReader.total_batch_size=4"]
    assert show_batch.main(["-c", str(small), *arguments]) == 0
    assert sorted(os.listdir(tmp_path / "new")) == ["sheet_1.jpg", "sheet_2.jpg"], "all that there are"
    counts = [int(n) for n in re.findall(r"(\d+) positive points", capsys.readouterr().out)]
    assert len(counts) == 2 and min(counts) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "batch.xyz"], "batch.xyz: OpenCV cannot write this image format"),
        (["-o", "TrainDataset.dataset_dir=nowhere"], "nowhere is not there"),
        (["-o", "TrainReader.total_batch_size=13"], "13"),
    ],
)
def test_errors_are_one_line(small, capsys, arguments, words):
    assert show_batch.main(["-c", str(small), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("batches", ["0", "-1", "two"])
def test_invalid_numbers(small, capsys, batches):
    with pytest.raises(SystemExit, match="2"):
        show_batch.main(["-c", str(small), "--batches", batches])
    assert "is not a whole number from 1" in capsys.readouterr().err


def test_ignored_crowds_are_drawn(small):
    """The drawn shapes with the first of each picture's made a crowd's."""
    annotations = small.parent / "shapes" / "annotations"
    content = json.loads((annotations / "instances_train2017.json").read_text())
    first = {each["image_id"]: each for each in reversed(content["annotations"])}
    for each in first.values():
        each["iscrowd"] = 1
    (annotations / "crowds.json").write_text(json.dumps(content))
    overrides = ["TrainDataset.anno_path=annotations/crowds.json", "PPFCOSTargets.ignore_crowd=true"]
    plain = ["TrainReader.sample_transforms=[{Decode: {}}, {Permute: {}}]", "TrainReader.total_batch_size=4"]
    cfg = load_config(small, overrides + plain)
    data = build_dataset(cfg, "TrainDataset")
    feed = Prefetcher(TrainLoader(cfg, data), 0)
    feed.start_epoch(0)
    [batch] = feed.current
    images = show_batch.batch_images(build_model(cfg), batch, data)
    for i, image in enumerate(images):
        x, y, width, height = first[batch["im_id"][i].item()]["bbox"]
        np.testing.assert_allclose(image.crowds, [[x, y, x + width, y + height]], atol=1e-3)
        assert not (image.boxes == image.crowds).all(axis=1).any()


@pytest.mark.parametrize("radius", [1.5, 0])
def test_images_equal_the_batch(small, radius):
    """Against the batch itself, and a loop over all points and boxes."""
    overrides = [MIXED, "TrainReader.total_batch_size=4", f"PPFCOSTargets.center_sampling_radius={radius}"]
    cfg = load_config(small, overrides)
    model, data = build_model(cfg), build_dataset(cfg, "TrainDataset")
    feed = Prefetcher(TrainLoader(cfg, data), 0)
    feed.start_epoch(0)
    [batch] = feed.current
    images = show_batch.batch_images(model, batch, data)
    strides = model.head.strides
    assert [level.stride for level in show_batch.pyramid_levels(model)] == strides
    files = {int(record["im_id"][0]): os.path.basename(record["im_file"]) for record in data.records}
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image.pixels[..., ::-1].transpose(2, 0, 1), batch["image"][i].numpy())
        np.testing.assert_array_equal(image.size, batch["im_shape"][i].numpy())
        assert image.title.startswith(files[batch["im_id"][i].item()])
        boxes, labels = batch["gt_bbox"][i].numpy(), batch["gt_class"][i].numpy().ravel()
        count = int((boxes[:, 2] > 0).sum())
        np.testing.assert_array_equal(image.boxes, boxes[:count])
        assert list(image.names) == [shapes.CLASS_NAMES[label] for label in labels[:count]]
        expected, by_box = [], [Counter() for _ in range(count)]
        for level, x, y in reference.locations(*image.pixels.shape[:2], strides):
            hit = reference.target(level, x, y, image.boxes, strides, model.targets.size_ranges, radius)
            if hit:
                expected.append((level, x, y))
                by_box[hit[0]][level] += 1
        seen = [(int(level), *point) for level, point in zip(image.point_levels, image.points.tolist())]
        assert sorted(seen) == sorted(expected)
        for level, counter in zip(image.box_levels, by_box):
            assert counter[level] == max(counter.values()) if counter else level == NO_LEVEL


class OnePoint:
    """An assigner that has no size ranges: each box gets the first point inside it."""

    def __call__(self, points, strides, boxes, labels, classes, crowds=None):
        xy = np.concatenate([level.numpy() for level in points])
        pairs = []
        for image, rows in enumerate(boxes.numpy()):
            for x0, y0, x1, y1 in rows[rows.any(axis=1)]:
                inside = ((xy > (x0, y0)) & (xy < (x1, y1))).all(axis=1)
                x, y = xy[inside][0]
                pairs.append((image * len(xy) + inside.argmax(), (x - x0, y - y0, x1 - x, y1 - y)))
        positives = paddle.to_tensor([index for index, _ in pairs])
        distances = paddle.to_tensor(np.array([sides for _, sides in pairs], np.float32))
        return Targets(None, positives, distances, None, None)


@pytest.mark.parametrize(
    "overrides",
    [["PPFCOS.locations=anchors"], ["_BASE_", "fcos_hrnetv2p_w18.yml"], ["OnePoint"]],
    ids=["anchors", "hrnet", "assigner"],
)
def test_points_are_those_of_the_feature_maps(small, overrides):
    """At 160 pixels: HRNet's coarse levels are smaller than the stride says, anchors have another step."""
    path = small
    if overrides[0] == "_BASE_":
        path = small.with_name("hrnet.yml")
        text = small.read_text().replace("fcos_r50_fpn.yml", overrides[1])
        path.write_text(
            "\n".join(line for line in text.splitlines() if not line.startswith(("ResNet", "PPFCOSFPN")))
        )
    options = overrides if overrides[0].startswith("PPFCOS.") else []
    transforms = "[{Decode: {}}, {Resize: {target_size: 160, keep_ratio: true}}, {Permute: {}}]"
    cfg = load_config(path, [*options, f"TrainReader.sample_transforms={transforms}"])
    model, data = build_model(cfg), build_dataset(cfg, "TrainDataset")
    model.eval()
    if overrides == ["OnePoint"]:
        model.targets = OnePoint()
    prefetcher = Prefetcher(TrainLoader(cfg, data), 0)
    prefetcher.start_epoch(0)
    [batch] = prefetcher.current
    images = show_batch.batch_images(model, batch, data)
    with paddle.no_grad():
        logits, *_ = model.network(batch["image"], batch["im_shape"])
    strides = model.head.strides
    assert [level.stride for level in show_batch.pyramid_levels(model)] == strides
    points = []
    for level, (rows, columns) in enumerate(output.shape[2:] for output in logits):
        for row in range(rows):
            for column in range(columns):
                if model.locations == "anchors":
                    points.append((level, column * (160 // columns), row * (160 // rows)))
                else:
                    points.append((level, (column + 0.5) * strides[level], (row + 0.5) * strides[level]))
    for image in images:
        seen = [(int(level), *point) for level, point in zip(image.point_levels, image.points.tolist())]
        if overrides == ["OnePoint"]:
            assert len(seen) == len(image.boxes) and set(seen) <= set(points)
            continue
        radius = model.targets.center_sampling_radius
        ranges = model.targets.size_ranges
        hits = [p for p in points if reference.target(*p, image.boxes, strides, ranges, radius)]
        assert sorted(seen) == sorted(hits)


# The drawing --------------------------------------------------------------------------------------


def fed(boxes=(), box_levels=(), points=(), point_levels=(), size=(700, 800), shape=(720, SIDE)):
    pixels = np.full((*shape, 3), 150, np.uint8)
    return BatchImage(
        pixels, size, "a picture.jpg: 800x700", np.array(boxes, np.float32).reshape(-1, 4),
        [f"class {i}" for i in range(len(boxes))], np.array(box_levels, int),
        np.array(points, np.float32).reshape(-1, 2), np.array(point_levels, int),
    )  # fmt: skip


def picture_of(image: BatchImage) -> np.ndarray:
    """The part of the sheet that shows an image drawn as large as it is."""
    height, width = image.pixels.shape[:2]
    sheet = draw_batch([image], LEVELS)
    return sheet[-GAP - height : -GAP, GAP : GAP + width]


def test_boxes_have_the_color_of_their_level():
    boxes = [(100, 100, 300, 250), (400, 300, 600, 500), (100, 500, 200, 600)]
    picture = picture_of(fed(boxes, [0, 2, NO_LEVEL]))
    for (x0, y0, x1, y1), colour in zip(boxes, [class_color(0), class_color(2), (255, 255, 255)]):
        for y, x in ((y1, (x0 + x1) // 2), ((y0 + y1) // 2, x0), ((y0 + y1) // 2, x1)):
            assert tuple(picture[y, x]) == colour
    assert (picture[120:240, 120:280] == 150).all(), "the inside of a box is the picture's own"


def test_a_box_without_a_point_is_labelled():
    """Its plate is longer than the others', and stays where another's would have been left out."""
    boxes = [(100, 100, 700, 600), (104, 103, 330, 400)]
    with_point, without = picture_of(fed(boxes, [0, 1])), picture_of(fed(boxes, [0, NO_LEVEL]))
    plate = (with_point[80:103, 100:400] != without[80:103, 100:400]).any(axis=(0, 2))
    assert plate.sum() > 100


def test_points_are_dots():
    points = [(20.0, 20.0), (200.0, 104.0), (336.0, 208.0)]
    picture = picture_of(fed(points=points, point_levels=[0, 1, 2]))
    dots = (picture[:700, :800] != 150).any(axis=2)
    count, _, _, centres = cv2.connectedComponentsWithStats(dots.astype(np.uint8))
    assert count == 1 + len(points)
    assert np.abs(centres[1:] + 0.5 - points).max() < 0.5  # a pixel's middle is half a pixel from its edge
    for level, (x, y) in enumerate(points):
        assert tuple(picture[int(y), int(x)]) == class_color(level)


def test_crowds_are_striped():
    image = fed([(100, 100, 200, 200)], [0])._replace(crowds=np.array([(300, 300, 500, 400)], np.float32))
    picture = picture_of(image)
    veiled = (picture[310:390, 310:490] != 150).any(axis=2)
    assert 0.3 < veiled.mean() < 0.7, "every other stripe"
    assert (picture[110:190, 110:190] == 150).all()


def test_padding_is_hatched():
    picture = picture_of(fed())
    assert (picture[:700, :800] == 150).all()
    for padding in (picture[700:], picture[:, 800:]):
        assert (padding != 150).any(axis=2).all() and len(np.unique(padding.reshape(-1, 3), axis=0)) == 2


def test_the_legend_has_the_colors_of_the_levels():
    sheet = draw_batch([fed()], LEVELS)
    legend = sheet[: len(sheet) - 720 - GAP]
    for level in range(len(LEVELS)):
        assert (legend == np.array(class_color(level))).all(axis=2).sum() > 100


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16, 33])
@pytest.mark.parametrize("shape", [(32, 32), (800, 1344), (1344, 800), (64, 2048)])
def test_batches_of_any_size(count, shape):
    image = fed([(1, 1, 9, 9), (-5, -5, 4000, 4000)], [0, NO_LEVEL], [(4, 4)], [0], shape, shape)
    sheet = draw_batch([image] * count, LEVELS)
    assert 300 <= sheet.shape[1] <= 2000 + GAP and sheet.dtype == np.uint8
