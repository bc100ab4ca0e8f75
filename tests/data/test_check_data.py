"""What the data checker finds, and that training and evaluation do with it what the report says.

Bad files are made here with Pillow and OpenCV, checked, and then given to the real readers.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
from helpers import reference
from helpers.html_tags import Tags
from helpers.small_config import write_config
from PIL import Image

from ppfcos.cli import check_data as cli
from ppfcos.config import load_config
from ppfcos.data.check.check import check_data
from ppfcos.data.check.fix import clean
from ppfcos.data.check.images import ImageTask, check_image, check_images
from ppfcos.data.check.levels import COVERED, NO_LOCATION, Resize, assign_levels, input_geometry
from ppfcos.data.datasets import build_dataset
from ppfcos.data.formats.layouts import find_sections
from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.data.issues import ISSUE_TYPES, RARE, Outcome
from ppfcos.data.loader import EvalLoader, TrainLoader
from ppfcos.data.shapes import generate
from ppfcos.engine.model import build_model
from ppfcos.errors import DataError
from ppfcos.metrics.coco import evaluate_detections

HEIGHT, WIDTH = 60, 80
TRANSFORMS = [
    {"Decode": {}},
    {"Resize": {"target_size": [96, 128], "keep_ratio": True, "interp": 1}},
    {"Permute": {}},
]
READERS = {
    "TrainReader": {"sample_transforms": TRANSFORMS, "total_batch_size": 1, "shuffle": False},
    "EvalReader": {"sample_transforms": TRANSFORMS, "batch_size": 1},
    "worker_num": 0,
}
GEOMETRY = cli.default_geometry()._replace(resizes=(Resize((96, 128), True),))


class Made:
    """A small good data set in COCO's format, to be spoilt: four pictures with two boxes each."""

    def __init__(self, folder: Path, first_seed: int = 0):
        self.folder, self.pictures = folder, folder / "pictures"
        self.pictures.mkdir(parents=True)
        self.categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
        self.images, self.annotations = [], []
        for number in range(1, 5):
            cv2.imwrite(str(self.pictures / f"{number}.png"), noise(first_seed + number))
            self.images.append({"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
            self.add(number, 7, [5, 6, 30, 35])
            self.add(number, 3, [30, 10, 40, 45])

    def add(self, image, category, box, **more):
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                **more,
            }
        )

    @property
    def first(self) -> Path:
        return self.pictures / "1.png"

    def section(self, **more):
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        (self.folder / "annotations.json").write_text(json.dumps(content))
        return {
            "name": "COCODataSet",
            "dataset_dir": str(self.folder),
            "image_dir": "pictures",
            "anno_path": "annotations.json",
            **more,
        }

    def config(self, **more):
        return {**READERS, "TrainDataset": self.section(**more)}


def noise(seed: int, size=(HEIGHT, WIDTH)) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 255, (*size, 3), np.uint8)


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "set")


def issue_counts(report, section="TrainDataset") -> dict[str, int]:
    return {kind: len(found) for kind, where, found in report.by_type() if where.dataset.section == section}


def check(cfg, geometry=GEOMETRY):
    return check_data(cfg, geometry, workers=0)


ALWAYS = {"category-rare"}  # of eight boxes there are never enough


def test_good_data_is_clean(made):
    assert set(issue_counts(check(made.config()))) == ALWAYS
    made.annotations.clear()
    for number in range(2 * RARE):
        column, row = divmod(number // 4, 3)
        made.add(1 + number % 4, (7, 3)[number % 2], [2 + 18 * column, 2 + 18 * row, 14, 14])
    assert not check(made.config()).issues


# Annotations: what is found, and what training does ------------------------------------------------


def change(**keys):
    return lambda made: made.annotations[0].update(keys)


def change_image(**keys):
    return lambda made: made.images[0].update(keys)


def rotated(orientation):
    def spoil(made):
        picture = Image.fromarray(noise(1)[..., ::-1])
        exif = picture.getexif()
        exif[0x0112] = orientation
        picture.save(made.first, exif=exif)

    return spoil


def turned(made):
    rotated(6)(made)
    made.images[0].update(height=WIDTH, width=HEIGHT)


def saved_as(mode):
    return lambda made: Image.fromarray(noise(1)).convert(mode).save(made.first)


def cmyk(made):
    made.images[0]["file_name"] = "1.jpg"
    Image.fromarray(noise(1)).convert("CMYK").save(made.pictures / "1.jpg")


def sixteen_bits(made):
    cv2.imwrite(str(made.first), noise(1).astype(np.uint16) * 257)


def cut(made):
    made.first.write_bytes(made.first.read_bytes()[:-2000])


def cut_jpeg(made):
    made.images[0]["file_name"] = "1.jpg"
    data = cv2.imencode(".jpg", noise(1))[1].tobytes()
    (made.pictures / "1.jpg").write_bytes(data[: len(data) // 2])


def list_twice(made):
    made.images.append({**made.images[0], "id": 99})
    made.annotations[1]["image_id"] = 99


def copy_of_first(made):
    shutil.copy(made.first, made.pictures / "copy.png")
    made.images.append({**made.images[0], "id": 99, "file_name": "copy.png"})
    made.add(99, 7, [5, 6, 30, 35])


def without_objects(made):
    made.annotations = [note for note in made.annotations if note["image_id"] != 1]


def crowded(made):
    for number in range(101):
        made.add(1, 7, [number / 4, 5, 30, 30])


# (kind of finding, what spoils the good data); every one has a single finding of the kind
SPOILT = [
    ("image-missing", lambda made: made.first.unlink()),
    ("image-unreadable", lambda made: made.first.write_bytes(b"no picture")),
    ("image-unreadable", lambda made: made.first.write_bytes(b"")),
    ("image-truncated", cut),
    ("image-truncated", cut_jpeg),
    ("image-size-differs", lambda made: cv2.imwrite(str(made.first), noise(1, (60, 81)))),
    ("image-size-unstated", change_image(width=0)),
    ("image-size-unstated", change_image(height="60")),
    ("image-turned", turned),
    ("image-not-turned", rotated(6)),
    ("image-turn-unclear", rotated(3)),
    ("image-grey", saved_as("L")),
    ("image-palette", saved_as("P")),
    ("image-alpha", saved_as("RGBA")),
    ("image-cmyk", cmyk),
    ("image-16-bit", sixteen_bits),
    ("image-duplicate", copy_of_first),
    ("image-listed-twice", list_twice),
    ("image-without-objects", without_objects),
    ("too-many-boxes", crowded),
    ("image-id-twice", lambda made: made.images.append(dict(made.images[0]))),
    ("image-id-twice", change_image(id=2)),
    ("image-malformed", change_image(file_name=None)),
    ("category-id-twice", lambda made: made.categories.append({"id": 7, "name": "cow"})),
    ("category-malformed", lambda made: made.categories[1].pop("name")),
    ("category-id-zero", lambda made: (made.categories[0].update(id=0), made.annotations.clear(),
                                       *[made.add(n, 0, [5, 5, 30, 30]) for n in (1, 2, 3, 4)])),
    ("id-missing", lambda made: made.annotations[0].pop("image_id")),
    ("id-missing", change(category_id=1.5)),
    ("id-as-text", change(image_id="1")),
    ("id-as-text", change(category_id="7")),
    ("id-as-text", change_image(id="1")),
    ("annotation-malformed", lambda made: made.annotations.append("x")),
    ("box-as-text", change(bbox=["5", "6.5", "30", "35"])),
    ("box-malformed", change(bbox=[1, 2, 3])),
    ("box-malformed", change(bbox=[1, 2, float("nan"), 4])),
    ("annotation-of-unknown-category", change(category_id=99)),
    ("annotation-of-unknown-image", change(image_id=99)),
    ("box-missing", change(bbox=None)),
    ("box-from-polygon", change(bbox=None, segmentation=[[5, 6, 35, 6, 35, 41, 5, 41]])),
    ("area-missing", lambda made: made.annotations[0].pop("area")),
    ("area-missing", change(area="1050.0")),
    ("area-missing", change(area=0)),
    ("crowd-unclear", change(iscrowd="1")),
    ("annotation-id-missing", change(id="1")),
    ("annotation-id-zero", change(id=0)),
    ("annotation-id-twice", change(id=2)),
    ("category-background", lambda made: made.categories.insert(0, {"id": 0, "name": "background"})),
    ("category-names-alike", lambda made: (made.categories.append({"id": 9, "name": "Cat "}),
                                           change(category_id=9)(made))),
    ("category-never-seen", lambda made: made.categories.append({"id": 9, "name": "cow"})),
    ("box-without-area", change(bbox=[5, 6, 0, 20], area=0)),
    ("box-without-area", change(bbox=[0, 0, 0, 0], area=0)),
    ("box-upside-down", change(bbox=[35, 41, -30, -35])),
    ("box-outside", change(bbox=[90, 5, 20, 20])),
    ("box-partly-outside", change(bbox=[-5, -4, 25, 24])),
    ("box-twice", lambda made: made.add(1, 7, [5, 6, 30, 35])),
    ("box-tiny", change(bbox=[5, 6, 2, 30])),
    ("box-no-location", change(bbox=[30.4, 30.4, 2, 2])),
    ("box-crowd", change(iscrowd=1)),
    ("box-ignored", change(ignore=1)),
]  # fmt: skip


class Training:
    """What a real training gets from a configuration's data: one epoch of single images."""

    def __init__(self, cfg):
        self.refused, self.images, self.boxes, self.replaced = "", [], 0, []
        try:
            data = build_dataset(cfg, "TrainDataset")
        except DataError as error:
            self.refused = str(error)
            return
        files = {int(record["im_id"][0]): record["im_file"] for record in data.records}
        for [batch] in TrainLoader(cfg, data):
            self.replaced += [line.split(": ")[0] for line in batch["bad_images"]]
            self.images.append(files[int(batch["im_id"][0, 0])])
            boxes = batch["gt_bbox"].numpy()[0]
            self.boxes += int((boxes[:, 2:] > boxes[:, :2]).all(axis=1).sum())


# What the log says of what the report calls so.
LOGGED = {
    "image-missing": "left out 1 image that is missing",
    "image-without-objects": "left out 1 image without objects",
    "annotation-of-unknown-image": "left out 1 annotation of an unlisted image",
    "box-missing": "left out 1 annotation without a box",
    "box-without-area": "left out 1 box without area",
    "box-upside-down": "left out 1 box without area",
    "box-outside": "left out 1 box without area",
    "box-crowd": "left out 1 crowd box",
    "box-ignored": "left out 1 box marked with ignore",
    "box-partly-outside": "clipped 1 box",
    "box-from-polygon": "computed 1 box of a polygon",
    "area-missing": "filled in 1 area",
    "annotation-id-missing": "renumbered 8 annotations",
    "annotation-id-zero": "renumbered 8 annotations",
    "annotation-id-twice": "renumbered 8 annotations",
}


def test_all_that_the_report_says_of_the_log_is_compared():
    told = {
        kind
        for kind, entry in ISSUE_TYPES.items()
        if "in the log" in entry.training and entry.outcome is not Outcome.IMAGE_REPLACED
    }
    assert told == {*LOGGED, "annotation-file-missing", "annotations-lost", "label-file-without-image"}


@pytest.mark.parametrize(("kind", "spoil"), SPOILT, ids=lambda value: value if isinstance(value, str) else "")
def test_training_does_what_the_report_says(made, kind, spoil, caplog):
    caplog.set_level(logging.INFO)
    spoil(made)
    cfg = made.config()
    report = check(cfg)
    [finding] = [finding for finding in report.issues if finding.kind == kind]
    training = Training(cfg)
    outcome = ISSUE_TYPES[kind].outcome
    assert LOGGED.get(kind, "TrainDataset") in caplog.text or training.refused
    refusals = [finding.detail for finding in report.issues if finding.kind == "refused"]
    assert bool(training.refused) == bool(refusals) == (outcome is Outcome.REFUSED)
    if outcome is Outcome.REFUSED:
        assert refusals == [training.refused]
        return
    left_out = [f for f in report.issues if ISSUE_TYPES[f.kind].outcome is Outcome.IMAGE_LEFT_OUT]
    boxes_left_out = [f for f in report.issues if ISSUE_TYPES[f.kind].outcome is Outcome.BOX_LEFT_OUT]
    listed = [image for image in made.images if image["file_name"] not in [f.where for f in left_out]]
    assert len(training.images) == len(listed), "a replaced image is still one in the epoch"
    if outcome is Outcome.IMAGE_REPLACED:
        assert training.replaced == [finding.image] and finding.image not in training.images
        return
    assert not training.replaced
    ids = {image["id"] for image in listed} if outcome is Outcome.IMAGE_LEFT_OUT else None
    notes = [note for note in made.annotations if ids is None or note["image_id"] in ids]
    assert training.boxes == len(notes) - len(boxes_left_out)
    if outcome in (Outcome.KEPT, Outcome.REPAIRED) and finding.image:
        assert finding.image in training.images


def test_every_kind_has_a_case():
    cases = {kind for kind, _ in SPOILT}
    elsewhere = {
        "refused", "reader-warning", "categories-differ", "annotation-file-missing", "image-huge",
        "image-leak", "annotation-file-unreadable", "category-rare", "category-only-in-validation",
        "box-covered", "annotations-lost", "label-file-without-image", "boxes-normalized",
        "boxes-in-another-form",
    }  # fmt: skip
    assert cases | elsewhere == set(ISSUE_TYPES) and not cases & elsewhere


def test_images_without_objects_are_no_finding_where_they_are_wanted(made):
    without_objects(made)
    report = check(made.config(allow_empty=True))
    assert "image-without-objects" not in issue_counts(report)
    assert len(Training(made.config(allow_empty=True)).images) == 4


def test_crowds_are_objects_where_they_are_wanted(made):
    change(iscrowd=1)(made)
    assert Training(made.config(load_crowd=True)).boxes == 8
    report = check(made.config(load_crowd=True))
    assert report.sections[0].counts.objects == 8
    assert "(with load_crowd: true they are objects like any other)" in ISSUE_TYPES["box-crowd"].training


def test_more_bad_images_than_allowed_are_named(made):
    cut(made)
    report = check({**made.config(), "max_bad_images": 3})
    [(_, section, _)] = [group for group in report.by_type() if group[0] == "image-truncated"]
    assert "it stops after max_bad_images (3) of them" in report.consequence("image-truncated", section)


def test_too_few_images_for_a_batch(made):
    cfg = made.config()
    cfg["TrainReader"] = {**cfg["TrainReader"], "total_batch_size": 16}
    [finding] = [finding for finding in check(cfg).issues if finding.kind == "refused"]
    assert "too few for one batch" in finding.detail
    with pytest.raises(DataError, match="too few for one batch"):
        TrainLoader(cfg, build_dataset(cfg, "TrainDataset"))


def test_a_wrong_number_of_classes_is_refused(made):
    [finding] = [f for f in check({**made.config(), "num_classes": 5}).issues if f.kind == "refused"]
    assert "num_classes is 5" in finding.detail


# Pictures -----------------------------------------------------------------------------------------


def test_colours_are_converted_as_the_report_says(made):
    grey, hidden = noise(3)[..., 0], noise(4)
    cv2.imwrite(str(made.first), grey)
    np.testing.assert_array_equal(read_image(made.first), np.repeat(grey[..., None], 3, 2))
    transparent = np.dstack([hidden, np.zeros_like(grey)])
    Image.fromarray(transparent, "RGBA").save(made.first)
    np.testing.assert_array_equal(read_image(made.first), hidden)  # the colour that alpha hides
    deep = noise(5).astype(np.uint16) * 256 + 77
    cv2.imwrite(str(made.first), deep[..., ::-1])
    np.testing.assert_array_equal(read_image(made.first), noise(5))  # the upper 8 bits
    palette = Image.fromarray(noise(6)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(made.first)
    np.testing.assert_array_equal(read_image(made.first), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_what_is_said_of_a_turn_is_what_was_done(tmp_path, suffix, orientation):
    """Against Pillow: the picture is turned, or it is not, as the kind of finding says."""
    smooth = cv2.resize(noise(1, (3, 4)), (80, 60), interpolation=cv2.INTER_CUBIC)
    path = tmp_path / f"x{suffix}"
    picture = Image.fromarray(smooth)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif, quality=95) if suffix != ".tif" else picture.save(path, exif=exif)
    followed = cv2.rotate(smooth, cv2.ROTATE_180 if orientation == 3 else cv2.ROTATE_90_CLOCKWISE)
    seen = {}
    for size in (followed.shape[:2], smooth.shape[:2]):
        [(kind, _)] = check_image(ImageTask(str(path), size)).issues
        try:
            image = read_image(path, size)
        except ImageUnreadable:
            assert kind == "image-size-differs"
            continue
        wanted = smooth if kind == "image-not-turned" else followed
        assert image.shape == wanted.shape and np.abs(image.astype(int) - wanted).mean() < 4
        seen[kind] = True
    assert seen


def test_a_picture_too_large_is_not_decoded(made):
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (30000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    made.first.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    start = time.perf_counter()
    report = check(made.config())
    assert issue_counts(report)["image-huge"] == 1 and time.perf_counter() - start < 5
    assert "30000x30000" in next(f.detail for f in report.issues if f.kind == "image-huge")
    training = Training(made.config())
    assert training.replaced == [str(made.first)], "training takes another image, as the report says"
    with pytest.raises(ImageUnreadable, match="30000x30000 pixels, more than 268435456: OPENCV_IO_MAX"):
        read_image(made.first)


def test_equal_pixels_in_another_format_are_a_duplicate(made):
    picture = cv2.imread(str(made.first))
    cv2.imwrite(str(made.pictures / "other.bmp"), picture)
    made.images.append({**made.images[0], "id": 50, "file_name": "other.bmp"})
    [finding] = [f for f in check(made.config()).issues if f.kind == "image-duplicate"]
    assert finding.where == "other.bmp" and "1.png" in finding.detail


def test_workers_give_the_same_results(made):
    cut(made)
    tasks = [ImageTask(str(path), (HEIGHT, WIDTH)) for path in sorted(made.pictures.iterdir())] * 5
    assert list(check_images(tasks, 0, "")) == list(check_images(tasks, 2, ""))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a file that can be waited for")
def test_a_dead_worker_is_an_error_that_names_the_image(made):
    os.mkfifo(made.pictures / "waits.png")
    before = set(multiprocessing.active_children())

    def kill_the_worker():
        deadline = time.time() + 20
        while not (children := set(multiprocessing.active_children()) - before) and time.time() < deadline:
            time.sleep(0.05)
        os.kill(children.pop().pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_the_worker)
    thread.start()
    with pytest.raises(DataError, match=r"waits\.png.*--workers"):
        list(check_images([ImageTask(str(made.pictures / "waits.png"), None)], 1, ""))
    thread.join(20)


# Levels -------------------------------------------------------------------------------------------


def random_boxes(random, count, height, width):
    corners = random.uniform(0, [width, height], (count, 2))
    far = corners + np.exp(random.uniform(0.5, 6, (count, 2)))
    boxes = np.hstack([corners, np.minimum(far, [width, height])])
    return (np.round(boxes * 4) / 4).astype(np.float32)  # quarters: borders and equal areas are met


def test_points_of_a_box_are_those_of_the_naive_loop():
    random = np.random.RandomState(5)
    count, strides = cli.default_geometry().count_points, [8, 16, 32, 64, 128]
    points = reference.locations(96, 128, strides)
    for box in random_boxes(random, 40, 96, 128):
        matched = [
            level
            for level, x, y in points
            if reference.target(level, x, y, [tuple(box)], strides, [64, 128, 256, 512], 1.5)
        ]
        assert count(box[None, None], 96, 128)[0, 0].tolist() == np.bincount(matched, minlength=5).tolist()


@pytest.mark.parametrize(
    "overrides",
    [
        ("PPFCOSTargets.center_sampling_radius=0.75",),
        ("PPFCOS.locations=anchors",),
        ("PPFCOSTargets.size_ranges=[32,64,128,256]",),
    ],
    ids=lambda value: value[0],
)
def test_points_of_a_configuration_are_those_of_its_training(root, drawn, tmp_path, overrides):
    config = write_config(tmp_path / "small.yml", root, drawn, tmp_path / "run")
    cfg = load_config(config, list(overrides))
    model, geometry = build_model(cfg), cli.configured_geometry(cfg)
    boxes = random_boxes(np.random.RandomState(0), 25, 190, 250)
    batch = {
        "image": paddle.zeros([1, 3, 192, 256]),
        "gt_bbox": paddle.to_tensor(boxes[None]),
        "gt_class": paddle.zeros([1, 25], dtype="int64"),
    }
    targets = model.assign(batch)
    counts = geometry.count_points(boxes[None], 192, 256)[0]
    strides, numbers = np.unique(targets.strides.numpy(), return_counts=True)
    expected = dict(zip(strides.tolist(), numbers.tolist()))
    assert counts.sum(axis=0).tolist() == [expected.get(stride, 0) for stride in geometry.strides]


def test_sizes_after_resizing_are_the_loaders(made):
    made.images[0].update(height=45, width=100)
    cv2.imwrite(str(made.first), noise(1, (45, 100)))
    for keep_ratio in (True, False):
        resize = {"Resize": {"target_size": [96, 128], "keep_ratio": keep_ratio, "interp": 1}}
        cfg = made.config()
        cfg["TrainReader"] = {
            **cfg["TrainReader"],
            "sample_transforms": [{"Decode": {}}, resize, {"Permute": {}}],
        }
        data = build_dataset(cfg, "TrainDataset")
        geometry = input_geometry(cfg, GEOMETRY.count_points, GEOMETRY.strides, None)
        for [batch], record in zip(TrainLoader(cfg, data), data.records):
            boxes = batch["gt_bbox"].numpy()[0]
            seen = assign_levels(record["gt_bbox"], int(record["h"]), int(record["w"]), geometry)
            np.testing.assert_allclose(seen.sides, boxes[:, 2:] - boxes[:, :2], rtol=1e-6)


def test_covered_and_lost_boxes():
    boxes = np.array([[20, 20, 40, 40], [22, 22, 38, 38], [50.4, 50.4, 51.5, 51.5]], np.float32)
    geometry = cli.default_geometry(radius=0.6)._replace(resizes=())
    assert assign_levels(boxes, 96, 128, geometry).levels.tolist() == [COVERED, 0, NO_LOCATION]


def test_a_box_is_lost_only_if_it_is_lost_at_every_size():
    box = np.array([[50.4, 50.4, 51.5, 51.5]], np.float32)
    small, large = Resize((96, 128), True), Resize((960, 1280), True)
    levels = [
        assign_levels(box, 96, 128, GEOMETRY._replace(resizes=sizes)).levels[0]
        for sizes in ((small,), (small, large))
    ]
    assert levels == [NO_LOCATION, 0]


def test_geometry_of_a_configuration():
    reader = {
        "sample_transforms": [
            {"Decode": {}},
            {"RandomExpand": {}},
            {"RandomResize": {"target_size": [[640, 1333], [800, 1333]], "keep_ratio": True}},
            {"Permute": {}},
        ],
        "batch_transforms": [{"PadBatch": {"pad_to_stride": 64}}],
    }
    geometry = input_geometry({"TrainReader": reader}, GEOMETRY.count_points, [8, 16, 32], None)
    assert geometry.resizes == (Resize((640, 1333), True), Resize((800, 1333), True))
    assert (geometry.strides, geometry.pad, geometry.left_out) == ((8, 16, 32), 64, ("RandomExpand",))


# Training against validation, and what an evaluation does ------------------------------------------


def perfect(truth, **more):
    """The true boxes as detections."""
    return [{**note, "score": 0.9, **more} for note in truth["annotations"]]


def test_other_lists_of_classes_give_an_ap_of_nothing(made, tmp_path):
    other = Made(tmp_path / "other", first_seed=50)
    other.categories.reverse()
    cfg = {**made.config(), "EvalDataset": other.section()}
    [finding] = [f for f in check(cfg).issues if f.kind == "categories-differ"]
    assert "number 0 is 'cat' in training and 'dog' in validation" in finding.detail
    trained, tested = build_dataset(cfg, "TrainDataset"), build_dataset(cfg, "EvalDataset")
    label_of = {category["name"]: label for label, category in enumerate(trained.categories)}
    name_of = {category["id"]: category["name"] for category in tested.categories}
    truth = tested.coco_ground_truth()
    # a perfect model: the right label of its training, which the evaluation looks up in its own list
    found = [
        {**note, "category_id": tested.categories[label_of[name_of[note["category_id"]]]]["id"]}
        for note in perfect(truth)
    ]
    assert evaluate_detections(truth, perfect(truth)).ap == 1.0
    assert evaluate_detections(truth, found).ap == 0.0


def test_leaks_and_classes_of_validation_only(made, tmp_path):
    other = Made(tmp_path / "other", first_seed=50)
    shutil.copy(made.first, other.pictures / "2.png")
    made.annotations = [note for note in made.annotations if note["category_id"] == 7]
    report = check({**made.config(), "EvalDataset": other.section()})
    [leak] = [f for f in report.issues if f.kind == "image-leak"]
    assert leak.where == "1.png" and str(other.pictures / "2.png") in leak.detail
    [missing] = [f for f in report.issues if f.kind == "category-only-in-validation"]
    assert "'dog'" in missing.where and "4 objects" in missing.detail
    assert "category-never-seen" not in issue_counts(report)


@pytest.mark.parametrize("box", [[5, 6, 0, 20], [35, 41, -30, -35], [90, 5, 20, 20], [-20, -20, 50, 55]])
def test_an_evaluation_misses_boxes_that_it_takes_as_written(made, box):
    """COCO's file as it stands: the boxes that a model can give lie in the picture and have an area."""
    change(bbox=box)(made)
    cfg = {**READERS, "EvalDataset": made.section()}
    data = build_dataset(cfg, "EvalDataset")
    truth = data.coco_ground_truth()
    found = [note for note in perfect(truth) if note["bbox"] != box]
    if box[0] < 0:
        found.append({**truth["annotations"][0], "bbox": [0, 0, 30, 35], "score": 0.9})
    figures = evaluate_detections(truth, found).named()
    assert figures["AR100"] < 1
    [kind] = set(issue_counts(check(cfg), "EvalDataset")) & {
        "box-without-area", "box-upside-down", "box-outside", "box-partly-outside",
    }  # fmt: skip
    assert re.search("recall is lower|overlap is less", ISSUE_TYPES[kind].evaluation)


def test_an_evaluation_takes_no_notice_of_what_is_in_a_crowd(made):
    change(iscrowd=1, bbox=[5, 6, 70, 50])(made)
    truth = build_dataset({"EvalDataset": made.section()}, "EvalDataset").coco_ground_truth()
    found = [*perfect(truth), {"image_id": 1, "category_id": 7, "bbox": [8, 8, 60, 40], "score": 0.95}]
    assert evaluate_detections(truth, found).ap == 1.0
    truth["annotations"][0]["iscrowd"] = 0
    assert evaluate_detections(truth, found).ap < 1.0


def test_an_evaluation_of_unreadable_images(made):
    cut(made)
    data = build_dataset({"EvalDataset": made.section()}, "EvalDataset")
    loader = EvalLoader(READERS, data, "EvalReader")
    assert len(list(loader)) == 3 and [line.split(": ")[0] for line in loader.bad_images] == [str(made.first)]
    assert len(data.coco_ground_truth()["images"]) == 4, "its objects count as missed"


def test_classes_without_objects_stay_out_of_the_mean(made):
    made.categories.append({"id": 9, "name": "cow"})
    truth = build_dataset({"EvalDataset": made.section()}, "EvalDataset").coco_ground_truth()
    figures = evaluate_detections(truth, perfect(truth))
    assert figures.per_class["cow"] == -1 and figures.ap == 1.0


# Pascal VOC ---------------------------------------------------------------------------------------


def write_voc(folder, name, *objects, size=(HEIGHT, WIDTH), seed=0):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "JPEGImages" / f"{name}.png"), noise(seed))
    body = "".join(
        f"<object><name>{kind}</name><bndbox>"
        + "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
        + "</bndbox></object>"
        for kind, *box in objects
    )
    stated = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{stated}{body}</annotation>")
    with open(folder / "ImageSets/Main/trainval.txt", "a") as stream:
        stream.write(f"{name}\n")


@pytest.fixture
def voc(tmp_path):
    folder = tmp_path / "voc"
    for number in range(3):
        write_voc(folder, f"p{number}", ("cat", 5, 6, 35, 41), ("dog", 30, 10, 70, 55), seed=number)
    return folder


def voc_config(folder):
    section = {"name": "PPFCOSVOCDataSet", "dataset_dir": str(folder), "class_names": ["cat", "dog"]}
    return {**READERS, "TrainDataset": section}


@pytest.mark.parametrize(
    ("kind", "objects", "boxes"),
    [
        ("box-without-area", [("cat", 5, 6, 5, 41)], 0),
        ("box-upside-down", [("cat", 35, 6, 5, 41)], 0),
        ("box-outside", [("cat", 90, 6, 99, 41)], 0),
        ("box-partly-outside", [("cat", 60, 6, 99, 41)], 1),
        ("image-without-objects", [], 0),
        ("annotation-of-unknown-category", [("cow", 5, 6, 35, 41)], None),
        ("box-malformed", [("cat", 5, 6, "?", 41)], None),
    ],
)
def test_voc_does_what_the_report_says(voc, kind, objects, boxes):
    write_voc(voc, "bad", *objects, seed=9)
    report, training = check(voc_config(voc)), Training(voc_config(voc))
    assert issue_counts(report)[kind] == 1
    assert bool(training.refused) == (boxes is None) == ("refused" in issue_counts(report))
    if boxes is not None:
        assert training.boxes == 6 + boxes and len(training.images) == 3 + boxes


def test_voc_files_that_are_missing_or_broken(voc):
    write_voc(voc, "no_picture", ("cat", 5, 6, 35, 41))
    (voc / "JPEGImages/no_picture.png").unlink()
    write_voc(voc, "no_xml", ("cat", 5, 6, 35, 41))
    (voc / "Annotations/no_xml.xml").unlink()
    kinds = issue_counts(check(voc_config(voc)))
    assert kinds["image-missing"] == 1 and kinds["annotation-file-missing"] == 1
    assert len(Training(voc_config(voc)).images) == 3
    (voc / "Annotations/p0.xml").write_text("<annotation>")
    kinds = issue_counts(check(voc_config(voc)))
    assert kinds["annotation-file-unreadable"] == 1 and kinds["refused"] == 1
    assert "p0.xml" in Training(voc_config(voc)).refused


def test_an_evaluation_of_voc_drops_what_training_drops(voc):
    write_voc(voc, "bad", ("cat", 5, 6, 5, 41), ("dog", 60, 6, 99, 41), seed=9)
    cfg = {"EvalDataset": voc_config(voc)["TrainDataset"]}
    truth = build_dataset(cfg, "EvalDataset").coco_ground_truth()
    assert len(truth["annotations"]) == 7 and truth["annotations"][-1]["bbox"] == [60, 6, 20, 35]
    report = check(cfg)
    [section] = report.sections
    assert report.consequence("box-without-area", section).startswith("the evaluation drops")
    assert report.consequence("box-partly-outside", section).startswith("the evaluation clips")


def test_any_other_data_set_is_checked_by_its_records(voc, tmp_path):
    (voc / "label_list.txt").write_text("cat\ndog\n")
    (voc / "list.txt").write_text("".join(f"JPEGImages/p{i}.png Annotations/p{i}.xml\n" for i in range(3)))
    (voc / "JPEGImages/p1.png").write_bytes(b"no picture")
    section = {
        "name": "VOCDataSet",  # PaddleDetection's own
        "dataset_dir": str(voc),
        "anno_path": "list.txt",
        "label_list": "label_list.txt",
    }
    report = check({**READERS, "TrainDataset": section})
    assert report.sections[0].counts.objects == 6
    assert issue_counts(report)["image-unreadable"] == 1
    (voc / "label_list.txt").write_text("cat\n")  # the reader meets a dog, and gives up
    report = check({**READERS, "TrainDataset": section})
    assert set(issue_counts(report)) == {"refused"} and "'dog'" in report.issues[0].detail


def test_voc_without_lists_and_with_crowds(voc):
    shutil.rmtree(voc / "ImageSets")
    xml_file = voc / "Annotations/p0.xml"
    xml_file.write_text(
        xml_file.read_text().replace("<name>cat</name>", "<name>cat</name><iscrowd>1</iscrowd>")
    )
    cfg = voc_config(voc)
    cfg["TrainDataset"].update(image_set=None, class_names=None)
    report, training = check(cfg), Training(cfg)
    assert issue_counts(report)["box-crowd"] == 1
    assert training.boxes == report.sections[0].counts.objects == 5
    assert set(find_sections(voc)) == {"TrainDataset"}
    assert find_sections(voc)["TrainDataset"]["class_names"] == ["cat", "dog"]


def write_yolo(folder):
    (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: images/train\nval: images/val\n")
    for number, split in enumerate(("train", "val", "train", "val")):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / split / f"{number}.png"), noise(number // 2))
        (folder / "labels" / split / f"{number}.txt").write_text("0 0.25 0.4 0.3 0.5\n1 0.7 0.5 0.4 0.6\n")


def test_all_issues_of_yolo_labels_are_found(tmp_path):
    write_yolo(tmp_path)
    rows = ["0 0.25 0.4 0 0.5", "1 0.7 0.5 0.4 0.6"]
    (tmp_path / "labels/train/0.txt").write_text("\n".join(rows))
    report = check({**READERS, **find_sections(tmp_path)})
    counts = issue_counts(report)
    assert counts["box-without-area"] == 1 and counts["image-leak"] == 2 and "refused" not in counts
    rows += ["7 0.25 0.4 0.3 0.5", "0 0.25 0.4", "0 25 40 30 50"]
    (tmp_path / "labels/train/0.txt").write_text("\n".join(rows))
    report = check({**READERS, **find_sections(tmp_path)})
    counts = issue_counts(report)
    for kind in ("annotation-of-unknown-category", "annotation-malformed", "box-malformed", "refused"):
        assert counts[kind] == 1
    [refused] = [issue.detail for issue in report.issues if issue.kind == "refused"]
    assert "0.txt, line 3" in refused
    assert report.sections[0].counts.objects == 3


def test_joined_data_sets_are_checked_by_their_records(made, voc):
    parts = [made.section(), voc_config(voc)["TrainDataset"]]
    cut(made)
    report = check({**READERS, "TrainDataset": {"name": "PPFCOSJoinedDataSet", "datasets": parts}})
    assert report.sections[0].counts.images == 7 and issue_counts(report)["image-truncated"] == 1


# Cleaned files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [(kind, spoil) for kind, spoil in SPOILT if ISSUE_TYPES[kind].fix],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fixed_file_lacks_the_issues_that_can_be_fixed(made, kind, spoil):
    spoil(made)
    report = check(made.config())
    assert kind in issue_counts(report)
    content = clean(report)
    again = check(fixed_config(made, content))
    promised = {kind for kind in issue_counts(again) if ISSUE_TYPES[kind].fix}
    assert not promised and "refused" not in issue_counts(again)
    assert not Training(fixed_config(made, content)).refused


def fixed_config(made, content):
    (made.folder / "fixed.json").write_text(json.dumps(content))
    return {**READERS, "TrainDataset": {**made.section(), "anno_path": "fixed.json"}}


def test_a_fix_keeps_the_meaning(made):
    change(bbox=["35", "41", "-30", "-35"], iscrowd="1", area="?", score=5)(made)
    made.images[1]["id"], made.annotations[2]["image_id"] = "two", "two"
    made.annotations[3]["image_id"] = "two"
    made.categories.append({"id": 11, "name": "DOG"})
    made.annotations[5]["category_id"] = 11
    made.images[2]["license"] = 4
    del made.images[3]["height"]
    content = clean(check(made.config()))
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4]
    assert [image["file_name"] for image in content["images"]] == [f"{n}.png" for n in (1, 2, 3, 4)]
    assert content["images"][2]["license"] == 4 and content["images"][3]["height"] == HEIGHT
    first = content["annotations"][0]
    assert first["bbox"] == [5, 6, 30, 35] and first["area"] == 1050 and first["iscrowd"] == 1
    assert first["score"] == 5 and len(content["annotations"]) == 8
    assert [note["image_id"] for note in content["annotations"]] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert content["categories"] == [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    assert content["annotations"][5]["category_id"] == 3


def test_entries_of_one_file_are_joined_and_the_fuller_copy_stays(made):
    list_twice(made)
    shutil.copy(made.first, made.pictures / "copy.png")
    made.images.append({**made.images[0], "id": 100, "file_name": "copy.png"})
    made.add(100, 7, [5, 6, 30, 35])
    content = clean(check(made.config()))
    assert [image["file_name"] for image in content["images"]].count("1.png") == 1
    assert "copy.png" not in [image["file_name"] for image in content["images"]]
    assert sum(note["image_id"] == 1 for note in content["annotations"]) == 2


def test_leaks_are_taken_out_of_the_training_set(made, tmp_path):
    other = Made(tmp_path / "other", first_seed=50)
    shutil.copy(made.first, other.pictures / "2.png")
    content = clean(check({**made.config(), "EvalDataset": other.section()}))
    assert [image["file_name"] for image in content["images"]] == ["2.png", "3.png", "4.png"]


def test_voc_becomes_a_coco_file(voc):
    write_voc(voc, "bad", ("cat", 35, 6, 5, 41), ("dog", 5, 5, 5, 9), seed=9)
    (voc / "fixed.json").write_text(json.dumps(clean(check(voc_config(voc)))))
    section = {
        "name": "COCODataSet",
        "dataset_dir": str(voc),
        "image_dir": "JPEGImages",
        "anno_path": "fixed.json",
    }
    training = Training({**READERS, "TrainDataset": section})
    assert training.boxes == 7 and len(training.images) == 4


# The command --------------------------------------------------------------------------------------


def run(*arguments) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([*map(str, arguments), "--workers", "0"])
    return code, out.getvalue(), err.getvalue()


def test_exit_codes(made, tmp_path):
    output = ("--output_dir", tmp_path / "out")
    made.section()
    code, text, _ = run(made.folder / "annotations.json", *output)
    assert code == 0 and "category-rare" in text, "a note"
    assert run(made.folder / "annotations.json", *output, "--fail-on", "note")[0] == 1
    code, text, _ = run(
        made.folder / "annotations.json", *output, "--fail-on", "note", "--accept", "category-rare"
    )
    assert code == 0 and "no issues except accepted ones" in text
    change(bbox=[5, 6, 0, 20])(made)
    made.section()
    assert run(made.folder / "annotations.json", *output)[0] == 1, "a warning"
    assert run(made.folder / "annotations.json", *output, "--fail-on", "error")[0] == 0
    for bad in (
        (tmp_path / "nowhere.json",),
        (tmp_path,),
        (),
        (made.folder, "-c", "x.yml"),
        ("-c", tmp_path / "x.yml"),
        (made.folder, "--accept", "nonsense"),
        (made.folder, "-o", "epoch=1"),
        (made.folder, "--fix", made.folder / "annotations.json"),
    ):
        code, _, errors = run(*bad, *output)
        assert code == 2 and len(errors.splitlines()) == 1 and errors.startswith("error: "), bad


def test_an_unforeseen_failure_does_not_look_like_findings(made, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_select_data", lambda options: 1 / 0)
    code, _, errors = run(made.folder, "--output_dir", tmp_path)
    assert code == 2 and "ZeroDivisionError" in errors


def test_reports_and_the_cleaned_file(made, tmp_path):
    change(bbox=[5, 6, 0, 20])(made)
    made.section()
    fixed = tmp_path / "new" / "fixed.json"
    code, text, _ = run(made.folder, "--output_dir", tmp_path / "out", "--fix", fixed)
    assert code == 1 and "warning: box-without-area: 1 × box without area" in text
    assert "the training drops boxes without area" in text and "7 of 8 boxes" in text
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    [finding] = [each for each in content["findings"] if each["kind"] == "box-without-area"]
    assert finding["image"] == str(made.first) and finding["box"] == [5, 6, 5, 26]
    [kind] = [each for each in content["kinds"] if each["kind"] == "box-without-area"]
    assert kind["number"] == 1 and kind["outcome"] == Outcome.BOX_LEFT_OUT.value
    boxes = np.array(content["sections"][0]["box_sizes"]["boxes"])
    assert boxes.sum() == content["sections"][0]["objects"] == 7
    assert "0 boxes have no location on any level; 0 more lose all of theirs" in text
    assert [part.name for part in (tmp_path / "out").iterdir() if part.name.startswith(".")] == []
    code, text, _ = run(fixed, "--image_dir", made.pictures, "--output_dir", tmp_path / "out2")
    assert code == 0 and "box-without-area" not in text


def test_nothing_in_the_data_becomes_part_of_the_page(made, tmp_path):
    name = "<img src=x onerror='alert(1)'>&\"\x1b[31m.png"
    cv2.imwrite(str(made.pictures / "x.png"), noise(9))
    try:
        (made.pictures / "x.png").rename(made.pictures / name)
    except OSError:
        pytest.skip("the file system takes no such names")
    made.images[0]["file_name"] = name
    made.categories[0]["name"] = "</svg><script>alert(2)</script>"
    change(bbox=[5, 6, 0, 20])(made)
    made.section()
    _, text, _ = run(made.folder, "--output_dir", tmp_path / "out")
    assert "\x1b" not in text and "\\x1b[31m" in text
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    tags = Tags(page)
    assert "\x1b" not in page and "onerror='alert(1)'" in tags.text and "<script>alert(2)" in tags.text
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in tags.tags)
    pictures = [attributes["src"] for tag, attributes in tags.tags if tag == "img"]
    assert pictures and all(source.startswith("data:image/jpeg;base64,") for source in pictures)


def test_the_page_is_bounded(made, tmp_path):
    for number in range(400):
        made.add(1 + number % 4, 7, [number % 50, 5, 0, 9])
    made.section()
    run(made.folder, "--output_dir", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") <= 24 and "and 300 more" in page and len(page) < 1_000_000
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["findings"]) >= 400


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    generate(folder, train=12, val=6, size=96)
    return folder


def test_a_configuration_is_checked_at_its_own_sizes(drawn, root, tmp_path):
    config = write_config(tmp_path / "small.yml", root, drawn, tmp_path / "run")
    shutil.copy(next((drawn / "train2017").iterdir()), tmp_path / "leak.png")
    out = ("--output_dir", tmp_path / "out")
    code, text, _ = run("-c", config, "-o", "TrainDataset.allow_empty=true", "num_classes=null", *out)
    assert code in (0, 1) and "resized to 96/96" in text and "EvalDataset" in text
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["input"]["strides"] == [8, 16, 32, 64, 128]
    assert [section["images"] for section in content["sections"]] == [12, 6]
    leaking = "EvalDataset.image_dir=train2017", "EvalDataset.anno_path=annotations/instances_train2017.json"
    code, text, _ = run("-c", config, "-o", *leaking, *out)
    assert code == 1 and "12 × image of the training set with the pixels of a validation image" in text


# Real data ----------------------------------------------------------------------------------------


def test_bccd_has_two_boxes_without_area(bccd, tmp_path):
    """A part of it, with the two images that are known to be bad."""
    for part in ("Annotations", "JPEGImages"):
        (tmp_path / "voc").mkdir(exist_ok=True)
        (tmp_path / "voc" / part).symlink_to(bccd / part)
    names = (bccd / "ImageSets/Main/trainval.txt").read_text().split()
    chosen = [name for name in names if "BloodImage_0033" in name or "BloodImage_0034" in name]
    (tmp_path / "voc/ImageSets/Main").mkdir(parents=True)
    (tmp_path / "voc/ImageSets/Main/trainval.txt").write_text("\n".join(chosen))
    code, _, _ = run(tmp_path / "voc", "--output_dir", tmp_path / "out")
    findings = json.loads((tmp_path / "out/report.json").read_text())["findings"]
    bad = [finding["where"] for finding in findings if finding["kind"] == "box-without-area"]
    assert code == 1 and len(bad) == 2 and "00338" in bad[0] and "00343" in bad[1]


def test_tinycoco_has_crowds_and_images_without_objects(tinycoco, tmp_path):
    code, text, _ = run(tinycoco, "--output_dir", tmp_path / "out")
    assert code == 1
    assert "note: image-without-objects: 2 × image without objects, in TrainDataset" in text
    assert "note: box-crowd: 4 × box around a crowd (iscrowd), in TrainDataset" in text
    assert "note: box-crowd: 1 × box around a crowd (iscrowd), in EvalDataset" in text
