"""From files to batches, against PaddleDetection's operators, Pillow, pycocotools and drawn boxes."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from ppdet.data import transform as ppdet_transform
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ppfcos.data import workers
from ppfcos.data.datasets import build_dataset, dataset_of_images
from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.data.loader import EvalLoader, TrainLoader
from ppfcos.data.records import clip_boxes
from ppfcos.data.sampler import GlobalBatchSampler, micro_batch_size
from ppfcos.data.samples import TrainingSamples, pad_images, pad_rows
from ppfcos.data.transforms.pipeline import SampleTransforms, pad_stride
from ppfcos.errors import ConfigError, DataError

RESIZE = {"Resize": {"target_size": [96, 160], "keep_ratio": True, "interp": 1}}
EVENT_KEYS = ("bad_images", "changes")  # lists in a batch beside its arrays
TRAIN_TRANSFORMS = [{"Decode": {}}, {"RandomFlip": {}}, RESIZE, {"Permute": {}}]
EVAL_TRANSFORMS = [{"Decode": {}}, RESIZE, {"Permute": {}}]


def config(num_classes=2, worker_num=0, seed=0, total_batch_size=4, batch_size=2, transforms=None, **more):
    return {
        "num_classes": num_classes,
        "worker_num": worker_num,
        "seed": seed,
        "TrainReader": {
            "sample_transforms": transforms or TRAIN_TRANSFORMS,
            "batch_transforms": [{"PadBatch": {"pad_to_stride": 32}}, {"PadGT": {}}],
            "total_batch_size": total_batch_size,
        },
        "EvalReader": {"sample_transforms": EVAL_TRANSFORMS, "batch_size": batch_size},
        **more,
    }


class CocoFolder:
    """A data set in COCO's format that a test fills: pictures with filled boxes, one colour a class."""

    colours = ((0, 0, 255), (255, 0, 0))  # BGR of the classes 0 and 1

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "pictures").mkdir(parents=True)
        self.content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        }

    def add(self, *boxes, size=(60, 80), suffix=".png"):
        """Adds a picture of this (height, width) with boxes (label, x0, y0, x1, y1); returns its path."""
        number = len(self.content["images"]) + 1
        picture = np.full((*size, 3), 40, np.uint8)
        for label, x0, y0, x1, y1 in boxes:
            picture[y0:y1, x0:x1] = self.colours[label]
            self.content["annotations"].append(
                {
                    "id": len(self.content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": (7, 3)[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
        path = self.folder / "pictures" / f"{number}{suffix}"
        cv2.imwrite(str(path), picture)
        image = {"id": number, "file_name": path.name, "height": size[0], "width": size[1]}
        self.content["images"].append(image)
        return path

    def section(self, **more):
        (self.folder / "annotations.json").write_text(json.dumps(self.content))
        return {
            "name": "COCODataSet",
            "dataset_dir": str(self.folder),
            "image_dir": "pictures",
            "anno_path": "annotations.json",
            **more,
        }

    def build(self, section="TrainDataset", **more):
        return build_dataset({"num_classes": 2, section: self.section(**more)}, section)


@pytest.fixture
def coco(tmp_path):
    return CocoFolder(tmp_path / "set")


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """Ten pictures of different sizes with 0 to 3 boxes each."""
    made = CocoFolder(tmp_path_factory.mktemp("ten") / "set")
    boxes = [(0, 5, 6, 30, 40), (1, 35, 10, 50, 45), (0, 10, 42, 60, 55)]
    for number in range(10):
        made.add(*boxes[: number % 4], size=(60 + 8 * (number % 3), 70 + 6 * (number % 4)))
    return made


def write_exif(path: Path, orientation: int, image: np.ndarray) -> None:
    picture = Image.fromarray(image)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)


def one_line(error) -> str:
    [line] = str(error.value).splitlines()
    return line


# Pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    picture = np.random.RandomState(1).randint(0, 255, (48, 72, 3), np.uint8)
    write_exif(tmp_path / "x.png", orientation, picture)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "x.png")))
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), turned)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", turned.shape[:2]), turned)
    if orientation > 4:  # the annotation speaks of the pixels as they are stored
        np.testing.assert_array_equal(read_image(tmp_path / "x.png", picture.shape[:2]), picture)
    with pytest.raises(ImageUnreadable, match="its annotation says 72x49"):
        read_image(tmp_path / "x.png", (49, 72))


# Records: COCO ------------------------------------------------------------------------------------


def tinycoco_section(tinycoco, split, **more):
    return {
        "name": "COCODataSet",
        "dataset_dir": str(tinycoco),
        "image_dir": f"images/{split}2017",
        "anno_path": f"annotations/instances_{split}2017.json",
        **more,
    }


def test_images_without_objects(tinycoco):
    section = tinycoco_section(tinycoco, "train")
    content = json.loads((tinycoco / section["anno_path"]).read_text())
    with_objects = {a["image_id"] for a in content["annotations"] if not a["iscrowd"]}
    assert len(with_objects) < len(content["images"])
    cfg = {"num_classes": 80, "TrainDataset": section, "EvalDataset": section}
    trained = build_dataset(cfg, "TrainDataset")
    assert {int(record["im_id"][0]) for record in trained.records} == with_objects
    evaluated = build_dataset(cfg, "EvalDataset")
    assert len(evaluated) == len(content["images"]), "every image counts, whatever allow_empty says"


def test_ground_truth_equals_the_file(tinycoco):
    section = tinycoco_section(tinycoco, "val")
    data = build_dataset({"EvalDataset": section}, "EvalDataset")
    truth, content = data.coco_ground_truth(), json.loads((tinycoco / section["anno_path"]).read_text())
    assert any(a["iscrowd"] for a in content["annotations"])
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    assert truth["annotations"] == [{key: a[key] for key in keys} for a in content["annotations"]]
    assert [i["id"] for i in truth["images"]] == [i["id"] for i in content["images"]]
    assert data.coco_ground_truth() is truth


CROWD_READERS = [
    [RESIZE],
    [{"RandomFlip": {"prob": 1.0}}, {"PPFCOSRandomVerticalFlip": {"prob": 1}}, RESIZE],
    [{"PPFCOSScaleJitterCrop": {"size": [64, 64], "scale": [1.2, 1.5]}}],
    [{"PPFCOSMosaic": {"size": [128, 160], "min_visible": 0.1}}],
    [{"RandomCrop": {}}, {"RandomExpand": {"ratio": 2}}],
]


@pytest.mark.parametrize("operators", CROWD_READERS, ids=lambda value: "+".join(next(iter(x)) for x in value))
def test_boxes_of_crowds_follow_the_image(coco, operators):
    """A crowd is drawn in red, objects in blue: the boxes must be where the colours are."""
    for number in range(4):
        coco.add((0, 10, 8, 40, 30), (1, 45, 25 + number, 75, 55))
        coco.content["annotations"][2 * number]["iscrowd"] = 1
    transforms = [{"Decode": {}}, *operators, {"Permute": {}}]
    cfg = config(transforms=transforms, total_batch_size=2, PPFCOSTargets={"ignore_crowd": True})
    cfg["TrainDataset"] = coco.section()
    data = build_dataset(cfg, "TrainDataset")
    assert [len(record["gt_bbox"]) for record in data.records] == [1] * 4
    seen = 0
    for [batch] in TrainLoader(cfg, data):
        for image, crowds, objects in zip(*(batch[key].numpy() for key in ("image", "gt_crowd", "gt_bbox"))):
            for boxes, channel in ((crowds, 0), (objects, 2)):
                boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
                mask = (image[channel] > 150) & (image[2 - channel] < 90)
                expected = np.zeros(mask.shape, bool)
                for x0, y0, x1, y1 in np.rint(boxes).astype(int):
                    expected[y0:y1, x0:x1] = True
                seen += len(boxes)
                different = (mask != expected).sum()  # all around its edge, and slivers that were dropped
                assert different <= 60 + 0.25 * expected.sum()
    assert seen >= 6


def test_crowds_are_in_batches_only_if_ignored(coco):
    coco.add((0, 10, 8, 40, 30), (1, 45, 25, 75, 55))
    coco.add((0, 10, 8, 40, 30))
    coco.add((1, 10, 8, 40, 30))
    coco.content["annotations"][0]["iscrowd"] = coco.content["annotations"][2]["iscrowd"] = 1
    batches = {}
    for ignored in (False, True):
        cfg = config(total_batch_size=2, PPFCOSTargets={"ignore_crowd": ignored}, TrainDataset=coco.section())
        [[batches[ignored]]] = TrainLoader(cfg, build_dataset(cfg, "TrainDataset"))
    plain, crowds = batches[False], batches[True].pop("gt_crowd").numpy()
    assert plain.keys() == batches[True].keys(), "an image of crowds alone is one without objects"
    for key in ("image", "gt_bbox", "gt_class", "im_id"):
        np.testing.assert_array_equal(plain[key].numpy(), batches[True][key].numpy())
    assert crowds.shape == (2, 1, 4) and (crowds != 0).any(axis=(1, 2)).sum() == 1
    with pytest.raises(ConfigError, match="set only one of them"):
        build_dataset({**cfg, "TrainDataset": coco.section(load_crowd=True)}, "TrainDataset")


def test_ignored_crowds_of_voc_are_counted(tmp_path, caplog):
    write_voc(tmp_path, "one", ("cat", 1, 2, 30, 40), ("dog", 50.5, 10, 70, 50))
    xml_file = tmp_path / "Annotations/one.xml"
    xml_file.write_text(xml_file.read_text().replace("<name>cat", "<iscrowd>1</iscrowd><name>cat"))
    caplog.set_level(logging.INFO)
    cfg = {"num_classes": 2, "TrainDataset": voc_section(tmp_path), "PPFCOSTargets": {"ignore_crowd": True}}
    [record] = build_dataset(cfg, "TrainDataset").records
    assert record["gt_crowd"].tolist() == [[1, 2, 30, 40]] and len(record["gt_bbox"]) == 1
    assert "ignores points inside 1 crowd box" in caplog.text
    caplog.clear()
    [record] = build_dataset({**cfg, "PPFCOSTargets": None}, "TrainDataset").records
    assert "gt_crowd" not in record and "left out 1 crowd box" in caplog.text


def test_crowds_are_loaded_on_request(coco):
    coco.add((0, 5, 5, 20, 20), (1, 30, 5, 60, 40))
    coco.content["annotations"][1]["iscrowd"] = 1
    assert coco.build().records[0]["is_crowd"].tolist() == [[0]]
    assert coco.build(load_crowd=True).records[0]["is_crowd"].tolist() == [[0], [1]]
    assert [a["iscrowd"] for a in coco.build("EvalDataset").coco_ground_truth()["annotations"]] == [0, 1]


def test_missing_keys_are_filled_in(coco):
    """No area, no iscrowd, ids from 0: the perfect detections still reach an AP of 1."""
    for _ in range(3):
        coco.add((0, 5, 5, 20, 20), (1, 30, 5, 60, 40))
    for number, annotation in enumerate(coco.content["annotations"]):
        del annotation["area"], annotation["iscrowd"]
        annotation["id"] = number
    data = coco.build("EvalDataset")
    assert [len(record["gt_bbox"]) for record in data.records] == [2, 2, 2]
    truth = data.coco_ground_truth()
    assert truth["annotations"][0]["area"] == 15 * 15 and truth["annotations"][0]["id"] == 1
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = truth
        index.createIndex()
        found = [{**a, "score": 0.9} for a in truth["annotations"]]
        evaluation = COCOeval(index, index.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == 1.0


def test_boxes_without_area_are_dropped_and_counted(coco, caplog):
    coco.add((0, 5, 5, 20, 20))
    coco.add((0, 10, 10, 10, 30), (1, 5, 5, 25, 25))
    coco.add((1, 8, 8, 30, 8))
    coco.add((1, 8, 8, 30, 20))
    coco.content["annotations"][-1]["bbox"] = [90, 5, 20, 20]  # outside
    coco.content["annotations"][0]["bbox"] = [-5, -4, 25, 24]  # partly
    data = coco.build()
    assert [len(record["gt_bbox"]) for record in data.records] == [1, 1]
    assert data.records[0]["gt_bbox"].tolist() == [[0, 0, 20, 20]]
    [message] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "2 images without objects" in message and "3 boxes without area" in message
    assert "clipped 1 box" in message
    caplog.clear()
    assert [len(record["gt_bbox"]) for record in coco.build(allow_empty=True).records] == [1, 1, 0, 0]


def test_missing_files_are_counted_in_one_line(coco, caplog):
    paths = [coco.add((0, 5, 5, 20, 20)) for _ in range(4)]
    paths[1].unlink()
    paths[2].unlink()
    data = coco.build("EvalDataset")
    assert [int(record["im_id"][0]) for record in data.records] == [1, 4]
    [message] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "left out 2 images that are missing (first in" in message and "2.png" in message
    assert [image["id"] for image in data.coco_ground_truth()["images"]] == [1, 4]
    for path in paths:
        path.unlink(missing_ok=True)
    with pytest.raises(DataError, match="none of the 4 images") as error:
        coco.build()
    assert str(coco.folder / "pictures") in one_line(error)


def test_annotations_without_image_or_box_are_left_out(coco, caplog):
    coco.add((0, 5, 5, 20, 20), (0, 5, 5, 20, 20))
    coco.content["annotations"][0]["image_id"] = 99
    del coco.content["annotations"][1]["bbox"]
    coco.add((1, 5, 5, 20, 20))
    assert [int(record["im_id"][0]) for record in coco.build().records] == [2]
    messages = [record.message for record in caplog.records]
    assert any("1 annotation of an unlisted image (first in annotations[0])" in line for line in messages)
    assert any("1 annotation without a box" in message for message in messages)


def test_the_image_size_may_be_missing(coco):
    coco.add((0, 5, 5, 20, 20))
    del coco.content["images"][0]["width"]
    [sample] = EvalLoader(config(), coco.build(), "EvalReader")
    assert sample["im_shape"].numpy().tolist() == [[96, 128]]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: c.pop("images"), "no list `images`"),
        (lambda c: c.update(images=[]), "no images"),
        (lambda c: c.update(categories=[]), "no categories"),
        (lambda c: c.update(categories={"cat": 1}), "no list `categories`"),
        (lambda c: c["categories"][1].update(id=7), "7 is there twice"),
        (lambda c: c["images"].append(dict(c["images"][0])), "1 is there twice"),
        (lambda c: c["images"][0].update(id="1"), "images[0]: `id` must be a whole number"),
        (lambda c: c["images"][0].pop("file_name"), "images[0]: `file_name`"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotations[0]: `bbox`"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, "3", 4]), "annotations[0]: `bbox`"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "annotations[0]: `bbox`"),
        (lambda c: c["annotations"][0].update(category_id=99), "category 99"),
        (lambda c: c["annotations"].append("x"), "annotations[1]"),
        (lambda c: c.update(annotations=7), "no list `annotations`"),
        (lambda c: c.pop("annotations"), "has no annotations"),
        (lambda c: c["annotations"].clear(), "no objects"),
    ],
)
def test_invalid_annotations(coco, spoil, words):
    coco.add((0, 5, 5, 20, 20))
    spoil(coco.content)
    with pytest.raises(DataError) as error:
        coco.build()
    assert words in one_line(error) and "annotations.json" in one_line(error)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"<xml/>", b"[" * 100_000])
def test_annotations_that_are_not_json(coco, content):
    coco.add((0, 5, 5, 20, 20))
    section = coco.section()
    (coco.folder / "annotations.json").write_bytes(content)
    with pytest.raises(DataError) as error:
        build_dataset({"TrainDataset": section}, "TrainDataset")
    assert "annotations.json" in one_line(error) and "JSON" in one_line(error)


def test_another_number_of_classes_is_refused(coco):
    coco.add((0, 5, 5, 20, 20))
    with pytest.raises(DataError) as error:
        build_dataset({"num_classes": 80, "TrainDataset": coco.section()}, "TrainDataset")
    line = one_line(error)
    assert "has 2 classes" in line and "num_classes is 80" in line and "set num_classes: 2" in line


@pytest.mark.parametrize("section", ["TrainDataset", "EvalDataset"])
@pytest.mark.parametrize("there", [False, True])
def test_missing_coco_names_the_download(tmp_path, section, there):
    folder = tmp_path / "dataset" / "coco"
    if there:
        folder.mkdir(parents=True)  # as in a clone, where it holds the download's script
    dataset = {
        "name": "COCODataSet",
        "dataset_dir": str(folder),
        "image_dir": "train2017",
        "anno_path": "a/b.json",
    }
    with pytest.raises(DataError) as error:
        build_dataset({section: dataset}, section)
    assert "python dataset/coco/download_coco.py" in one_line(error) and section in one_line(error)
    with pytest.raises(DataError, match=r"generate_shapes\.py"):
        build_dataset({section: {**dataset, "dataset_dir": str(tmp_path / "dataset" / "shapes")}}, section)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (None, "TrainDataset is missing"),
        ({"name": "Nonsense"}, "Nonsense is not a data set"),
        ({"name": "PPFCOSHead"}, "PPFCOSHead is not a data set"),
        ({"name": "COCODataSet", "dataset_dir": "."}, "anno_path"),
        ({"name": "COCODataSet", "folder": "."}, "folder"),
    ],
)
def test_invalid_sections(section, words):
    with pytest.raises(ConfigError, match=words) as error:
        build_dataset({"TrainDataset": section}, "TrainDataset")
    one_line(error)


def test_pycocotools_is_unchanged(coco):
    coco.add((0, 5, 5, 20, 20))
    coco.build()
    import pycocotools.coco

    assert pycocotools.coco.COCO is COCO


def test_sampling_of_empty_images_depends_on_the_seed_alone(coco):
    coco.add((0, 5, 5, 20, 20))
    for _ in range(20):
        coco.add()
    section = coco.section(allow_empty=True, empty_ratio=0.8)

    def sampled(seed):
        random.random()
        data = build_dataset({"seed": seed, "TrainDataset": section}, "TrainDataset")
        return [int(record["im_id"][0]) for record in data.records]

    assert len(sampled(1)) == 5 and sampled(1) == sampled(1) != sampled(2)


# Records: Pascal VOC ------------------------------------------------------------------------------

BCCD_CLASSES = ["RBC", "WBC", "Platelets"]


def voc_section(folder, **more):
    return {"name": "PPFCOSVOCDataSet", "dataset_dir": str(folder), "class_names": ["cat", "dog"], **more}


def write_voc(folder, name, *objects, size=(60, 80)):
    """objects: (class, x0, y0, x1, y1) or with a sixth element, difficult."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "JPEGImages" / f"{name}.jpg"), np.zeros((*size, 3), np.uint8))
    body = "".join(
        f"<object><name>{kind}</name>{'<difficult>1</difficult>' if more else ''}<bndbox>"
        f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for kind, x0, y0, x1, y1, *more in objects
    )
    stated = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{stated}{body}</annotation>")
    with open(folder / "ImageSets/Main/trainval.txt", "a") as stream:
        stream.write(f"{name}\n")


def test_bccd_records_equal_the_files(bccd, caplog):
    section = voc_section(bccd, image_set="trainval", class_names=BCCD_CLASSES)
    data = build_dataset({"num_classes": 3, "TrainDataset": section}, "TrainDataset")
    names = (bccd / "ImageSets/Main/trainval.txt").read_text().split()
    assert [Path(record["im_file"]).stem for record in data.records] == names
    dropped = 0
    for record in data.records:
        root = ElementTree.parse(bccd / "Annotations" / f"{Path(record['im_file']).stem}.xml").getroot()
        wanted = []
        for node in root.iter("object"):
            x0, y0, x1, y1 = (
                float(node.find(f"bndbox/{key}").text) for key in ("xmin", "ymin", "xmax", "ymax")
            )
            x0, x1 = (min(max(x, 0), record["w"]) for x in (x0, x1))
            y0, y1 = (min(max(y, 0), record["h"]) for y in (y0, y1))
            if x1 > x0 and y1 > y0:
                wanted.append([BCCD_CLASSES.index(node.find("name").text), x0, y0, x1, y1])
            else:
                dropped += 1
        np.testing.assert_array_equal(np.hstack([record["gt_class"], record["gt_bbox"]]), wanted)
    assert dropped == 2
    [message] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "left out 2 boxes without area" in message and "BloodImage_00338" in message

    truth = data.coco_ground_truth()
    assert len(truth["annotations"]) == sum(len(record["gt_bbox"]) for record in data.records)
    assert [category["name"] for category in truth["categories"]] == BCCD_CLASSES
    x, y, w, h = truth["annotations"][0]["bbox"]
    np.testing.assert_array_equal([x, y, x + w, y + h], data.records[0]["gt_bbox"][0])
    assert truth["annotations"][0]["id"] == 1


def test_voc_details(tmp_path, caplog):
    write_voc(tmp_path, "one", ("cat", 1, 2, 30, 40), ("dog", 50.5, 10, 100, 70, "difficult"))
    write_voc(tmp_path, "none")
    write_voc(tmp_path, "two words", ("dog", 5, 5, 9, 9))
    with open(tmp_path / "ImageSets/Main/trainval.txt", "a") as stream:
        stream.write("one  1\n\nabsent\n")
    data = build_dataset({"num_classes": 2, "TrainDataset": voc_section(tmp_path)}, "TrainDataset")
    first, second = data.records
    assert first["gt_bbox"].tolist() == [[1, 2, 30, 40], [50.5, 10, 80, 60]], "as written, clipped to 80x60"
    assert first["difficult"].tolist() == [[0], [1]] and first["is_crowd"].tolist() == [[0], [0]]
    assert Path(second["im_file"]).name == "two words.jpg"
    [message] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "left out 1 image that is missing (first in" in message and "absent" in message
    assert message.endswith("1 image without objects; clipped 1 box")
    for section, more in (("TrainDataset", {"allow_empty": True}), ("EvalDataset", {})):
        assert len(build_dataset({section: voc_section(tmp_path, **more)}, section)) == 3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d, s: shutil.rmtree(d), "dataset_dir"),
        (lambda d, s: shutil.rmtree(d / "JPEGImages"), "JPEGImages"),
        (lambda d, s: shutil.rmtree(d / "Annotations"), "Annotations"),
        (lambda d, s: s.update(image_set="nonsense"), "nonsense.txt"),
        (lambda d, s: s.update(class_names=[]), "trainval.txt has 1 class, but num_classes is 2"),
        (lambda d, s: s.update(class_names=["cat", "cat"]), "twice"),
        (lambda d, s: s.update(class_names=["dog", "cow"]), "'cat' is not in class_names"),
        (lambda d, s: (d / "Annotations/one.xml").write_text("<annotation>"), "one.xml"),
        (lambda d, s: (d / "Annotations/one.xml").write_bytes(b"\xff\xfe\0"), "one.xml"),
        (
            lambda d, s: (d / "Annotations/one.xml").write_text("<a><object><name>cat</name></object></a>"),
            "bndbox",
        ),
        (lambda d, s: (d / "JPEGImages/one.jpg").unlink(), "no objects"),
        (lambda d, s: s.update(class_names=["cat", "dog", "cow"]), "3 classes, but num_classes is 2"),
    ],
)
def test_invalid_voc_data(tmp_path, spoil, words):
    folder = tmp_path / "voc"
    write_voc(folder, "one", ("cat", 1, 2, 30, 40))
    section = voc_section(folder)
    spoil(folder, section)
    with pytest.raises(DataError) as error:
        build_dataset({"num_classes": 2, "TrainDataset": section}, "TrainDataset")
    assert words in one_line(error)


# Pictures without annotations ---------------------------------------------------------------------


def test_image_folder(tmp_path, coco):
    for name in ("b.png", "a.JPG", "deep/c.webp", "notes.txt"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"")
    section = {
        "name": "ImageFolder",
        "dataset_dir": str(tmp_path),
        "image_dir": "photos",
        "class_names": ["x", "y"],
    }
    data = build_dataset({"num_classes": 2, "TestDataset": section}, "TestDataset")
    assert [Path(record["im_file"]).name for record in data.records] == ["a.JPG", "b.png", "c.webp"]
    assert data.class_names == ["x", "y"]
    with pytest.raises(DataError, match="no images"):
        build_dataset({"TestDataset": {**section, "image_dir": "set/pictures"}}, "TestDataset")
    with pytest.raises(DataError, match="has 2 classes"):
        build_dataset({"num_classes": 3, "TestDataset": section}, "TestDataset")


def test_class_names_of_given_images(coco, tmp_path):
    coco.add((0, 5, 5, 20, 20))
    folder = {"name": "ImageFolder", "dataset_dir": str(coco.folder), "anno_path": "annotations.json"}
    cfg = {"num_classes": 2, "EvalDataset": coco.section(), "TestDataset": folder}
    assert dataset_of_images(cfg, ["x.jpg"]).categories == [
        {"id": 7, "name": "cat"},
        {"id": 3, "name": "dog"},
    ]
    del folder["anno_path"]
    assert dataset_of_images(cfg, ["x.jpg"]).class_names == ["cat", "dog"], "EvalDataset's"
    cfg["EvalDataset"] = voc_section(tmp_path)
    assert dataset_of_images(cfg, ["x.jpg"]).class_names == ["cat", "dog"]
    (coco.folder / "labels.txt").write_text("one\ntwo\n")
    cfg["TestDataset"] = {**folder, "anno_path": "labels.txt"}
    assert dataset_of_images(cfg, ["x.jpg"]).class_names == ["one", "two"]
    assert dataset_of_images({"num_classes": 2}, ["x.jpg"]).class_names == ["class 0", "class 1"]
    assert [int(record["im_id"][0]) for record in dataset_of_images(cfg, ["x.jpg", "y.jpg"]).records] == [
        0,
        1,
    ]


# Transforms ---------------------------------------------------------------------------------------


def test_samples_equal_paddledetections(tinycoco):
    section = tinycoco_section(tinycoco, "train", allow_empty=True)
    cfg = config(80, TrainDataset=section, transforms=EVAL_TRANSFORMS, total_batch_size=1)
    cfg["TrainReader"]["shuffle"] = False
    data = build_dataset(cfg, "TrainDataset")
    operators = [
        ppdet_transform.Decode(), ppdet_transform.Resize(**RESIZE["Resize"]), ppdet_transform.Permute(),
    ]  # fmt: skip
    for record, [batch] in zip(data.records, TrainLoader(cfg, data)):
        sample = {**record, "gt_bbox": record["gt_bbox"].copy()}
        for operator in operators:
            sample = operator(sample)
        _, height, width = sample["image"].shape
        image = batch["image"].numpy()[0]
        np.testing.assert_array_equal(image[:, :height, :width], sample["image"])
        assert not image[:, height:].any() and not image[:, :, width:].any()
        np.testing.assert_array_equal(batch["im_shape"].numpy()[0], sample["im_shape"])
        np.testing.assert_array_equal(batch["scale_factor"].numpy()[0], sample["scale_factor"])
        rows = max(1, len(sample["gt_bbox"]))
        assert batch["gt_bbox"].shape == [1, rows, 4] and batch["gt_class"].shape == [1, rows, 1]
        if len(sample["gt_bbox"]):
            # With NumPy 2 PaddleDetection's products are rounded to float32 twice.
            np.testing.assert_array_max_ulp(batch["gt_bbox"].numpy()[0], sample["gt_bbox"], maxulp=1)
            np.testing.assert_array_equal(batch["gt_class"].numpy()[0], sample["gt_class"])
        assert batch["im_id"].numpy().tolist() == [[record["im_id"][0]]]


def boxes_in_picture(image: np.ndarray) -> dict[int, np.ndarray]:
    """Where the picture [3, H, W] is red (class 0) or blue (class 1): {label: tight box}."""
    found = {}
    for label, channel in ((0, 0), (1, 2)):
        rows, columns = np.nonzero(image[channel].astype(int) - image[1] > 110)
        if len(rows):
            found[label] = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return found


def assert_boxes_are_where_they_are_drawn(loader):
    seen = 0
    for [batch] in loader:
        assert not batch["bad_images"]
        for image, boxes, labels in zip(*(batch[key].numpy() for key in ("image", "gt_bbox", "gt_class"))):
            found = boxes_in_picture(image)
            annotated = {int(label): box for box, [label] in zip(boxes, labels) if box.any()}
            assert found.keys() == annotated.keys()
            for label, box in annotated.items():
                np.testing.assert_allclose(found[label], box, atol=1.0)
                seen += 1
    return seen


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(30, 120), st.integers(30, 120)),
    target=st.tuples(st.integers(48, 128), st.integers(128, 200)),
    seed=st.integers(0, 1000),
    keep_ratio=st.booleans(),
)
def test_boxes_follow_the_pixels(tmp_path_factory, size, target, seed, keep_ratio):
    made = CocoFolder(tmp_path_factory.mktemp("pixels") / "set")
    (height, width), half = size, size[1] // 2
    made.add((0, 2, 3, half - 3, height - 5), (1, half + 2, height // 3, width - 1, height), size=size)
    resize = {"Resize": {"target_size": list(target), "keep_ratio": keep_ratio, "interp": 1}}
    transforms = [{"Decode": {}}, {"RandomFlip": {}}, resize, {"Permute": {}}]
    cfg = config(total_batch_size=1, seed=seed, transforms=transforms)
    assert assert_boxes_are_where_they_are_drawn(TrainLoader(cfg, made.build())) == 2


# Nothing tells stored pixels from turned ones of the same size; labelling tools show the turned ones.
@pytest.mark.parametrize(
    ("annotated", "orientation"),
    [*(("turned", number) for number in range(1, 9)), *(("stored", number) for number in (1, 5, 6, 7, 8))],
)
def test_boxes_are_right_in_images_rotated_by_exif(coco, orientation, annotated):
    path = coco.add((0, 2, 3, 30, 50), (1, 40, 10, 70, 58), size=(60, 80))
    pixels = np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
    if annotated == "turned":  # the pixels that come out as `pixels` once they are turned
        inverse = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
        write_exif(path, inverse, pixels)
        pixels = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    write_exif(path, orientation, pixels)
    loader = TrainLoader(config(total_batch_size=1), coco.build())
    assert assert_boxes_are_where_they_are_drawn(loader) == 2


def test_an_image_of_another_size_is_unreadable(coco):
    coco.add((0, 2, 3, 30, 50))
    coco.add((0, 2, 3, 30, 50))
    coco.content["images"][1].update(height=120, width=160)
    [[batch]] = TrainLoader(config(total_batch_size=2), coco.build())
    [line] = batch["bad_images"]
    assert "2.png: is 80x60 pixels, but its annotation says 160x120" in line
    assert batch["im_id"].numpy().tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("transforms", "words"),
    [
        ([], "begin with Decode"),
        ([RESIZE, {"Permute": {}}], "begin with Decode"),
        ([{"Decode": {}}, RESIZE], "end with Permute"),
        ([{"Decode": {}}, {"NormalizeImage": {}}, {"Permute": {}}], "the model normalizes"),
        ([{"Decode": {}}, {"Resise": {}}, {"Permute": {}}], "no transform Resise"),
        ([{"Decode": {}}, {"Resize": {"size": 3}}, {"Permute": {}}], "Resize does not take"),
        ([{"Decode": {}}, {"RandomFlip": {"prob": "often"}}, {"Permute": {}}], "RandomFlip does not take"),
        ([{"Decode": {}}, "Permute"], "not 'Permute'"),
    ],
)
def test_invalid_transforms(transforms, words):
    with pytest.raises(ConfigError, match=words) as error:
        SampleTransforms({"sample_transforms": transforms}, "TrainReader")
    assert "TrainReader" in one_line(error)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.uint8])
def test_pixels_are_rounded_and_clipped(kind):
    values = np.random.RandomState(0).uniform(-40, 300, (3, 37, 53)).astype(kind)
    values[0, 0, :7] = [0.5, 1.5, 254.5, 255.5, 255, 0, 127.5]
    reader = {"sample_transforms": [{"Decode": {}}, {"Permute": {}}]}
    sample = SampleTransforms(reader, "TrainReader")({"image": values.transpose(1, 2, 0)})
    assert sample["image"].dtype == np.uint8
    np.testing.assert_array_equal(sample["image"], np.clip(np.rint(values), 0, 255))


@pytest.mark.parametrize("stride", [0, 16, 33, "32", 32.0])
def test_invalid_strides(stride):
    with pytest.raises(ConfigError, match="multiple of 32"):
        pad_stride({"batch_transforms": [{"PadBatch": {"pad_to_stride": stride}}]}, "TrainReader")
    with pytest.raises(ConfigError, match="Gt2FCOSTarget"):
        pad_stride({"batch_transforms": [{"Gt2FCOSTarget": {}}]}, "TrainReader")
    assert pad_stride({}, "TrainReader") == 32
    assert pad_stride({"batch_transforms": [{"PadBatch": {"pad_to_stride": 64}}]}, "TrainReader") == 64


# Batches ------------------------------------------------------------------------------------------


def test_padding():
    images = [np.full((3, 40, 70), 9, np.uint8), np.full((3, 33, 31), 5, np.uint8)]
    padded = pad_images(images, 32)
    assert padded.shape == (2, 3, 64, 96) and padded.dtype == np.uint8
    assert padded.sum() == 3 * (9 * 40 * 70 + 5 * 33 * 31)
    assert pad_images([images[0][:, :32, :64]], 32).shape == (1, 3, 32, 64)
    rows = pad_rows([np.ones((2, 4)), np.ones((0, 4)), np.ones((3, 4))], np.float32)
    assert rows.shape == (3, 3, 4) and rows.sum(axis=(1, 2)).tolist() == [8, 0, 12]
    assert pad_rows([np.ones((0, 1))], np.int32).tolist() == [[[0]]]


@pytest.mark.parametrize(
    ("box", "clipped", "kept"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], True),
        ([-5, -5, 200, 200], [0, 0, 80, 60], True),
        ([90, 5, 120, 9], [80, 5, 80, 9], False),
        ([5, 5, 5, 9], [5, 5, 5, 9], False),
        ([9, 5, 5, 9], [9, 5, 5, 9], False),
    ],
)
def test_clipping(box, clipped, kept):
    boxes, keep = clip_boxes(np.array([box]), 60, 80)
    assert boxes.tolist() == [clipped] and keep.tolist() == [kept]
    boxes, keep = clip_boxes(np.array([[-5, -5, 200, 200]]), 0, 0)
    assert boxes.tolist() == [[-5, -5, 200, 200]] and keep.all()


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 60),
    part=st.integers(1, 3),
    accumulate_steps=st.integers(1, 3),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    drop_last=st.booleans(),
    portrait=st.one_of(st.none(), st.integers(0, 60)),
)
def test_global_batches(images, part, accumulate_steps, world_size, seed, epoch, drop_last, portrait):
    total = part * accumulate_steps * world_size
    shapes = None if portrait is None else lambda _: [int(index < portrait) for index in range(images)]
    if drop_last and images < total:
        with pytest.raises(DataError, match=f"{images} images"):
            GlobalBatchSampler(images, total)
        return

    def steps(world_size, rank, accumulate_steps, epoch=epoch):
        made = GlobalBatchSampler(
            images, total, world_size, rank, seed, True, drop_last, accumulate_steps, shapes
        )
        made.epoch = epoch
        assert len(made) == len(list(made))
        return list(made)

    whole = [batch for (batch,) in steps(1, 0, 1)]
    shared = [steps(world_size, rank, accumulate_steps) for rank in range(world_size)]
    for batch, shares in zip(whole, zip(*shared)):
        assert [len(share) for share in shares] == [accumulate_steps] * world_size
        assert {len(piece) for share in shares for piece in share} == {part}
        assert list(chain(*chain(*shares))) == batch
    assert all(len(batch) == total for batch in whole)
    used = list(chain(*whole))
    if drop_last:
        assert len(set(used)) == len(used) == images // total * total
    else:
        assert set(used) == set(range(images))
        assert len(whole) == -(-images // total)
    if images > 20:
        assert steps(1, 0, 1, epoch + 1) != steps(1, 0, 1)


def test_batches_hold_one_shape_group_where_possible():
    portrait = np.random.default_rng(0).random(103) < 0.3
    batches = GlobalBatchSampler(103, 4, drop_last=False, shapes=lambda _: portrait.astype(int))
    kinds = [[bool(portrait[index]) for index in batch] for (batch,) in batches]
    mixed = [number for number, batch in enumerate(kinds) if len(set(batch)) > 1]
    # Of each kind three or fewer are left, and the first ones fill the last batch: at the end of the epoch.
    assert len(kinds) == 26 and all(number >= 24 for number in mixed)
    firsts = [batch[0] for batch in kinds[:24]]
    assert sum(firsts) == pytest.approx(24 * portrait.mean(), abs=2)
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)


def test_batches_in_order():
    assert list(GlobalBatchSampler(5, 2, shuffle=False, drop_last=False)) == [[[0, 1]], [[2, 3]], [[4, 0]]]
    assert list(GlobalBatchSampler(2, 5, shuffle=False, drop_last=False)) == [[[0, 1, 0, 1, 0]]]
    in_parts = GlobalBatchSampler(8, 8, world_size=2, rank=1, shuffle=False, accumulate_steps=2)
    assert list(in_parts) == [[[4, 5], [6, 7]]]


def test_a_batch_that_cannot_be_divided():
    assert micro_batch_size(16, 8) == 2
    assert micro_batch_size(16, 2, 4) == 2
    with pytest.raises(ConfigError) as error:
        micro_batch_size(16, 3)
    assert "15 or 18" in one_line(error) and "1, 2, 4, 8, 16 processes" in one_line(error)
    with pytest.raises(ConfigError, match="set it to 3, or start one of 1, 2 processes"):
        micro_batch_size(2, 3)
    with pytest.raises(ConfigError) as error:
        micro_batch_size(16, 2, 3)
    assert "set it to 12 or 18, or set TrainReader.accumulate_steps to one of 1, 2, 4, 8" in one_line(error)
    with pytest.raises(ConfigError, match=r"set it to 12 or 24$"):
        micro_batch_size(16, 6, 2)


# Loaders ------------------------------------------------------------------------------------------


def batches_of(ten, epoch=0, world_size=1, rank=0, **more):
    cfg = config(**more)
    loader = TrainLoader(cfg, ten.build(allow_empty=True), world_size, rank)
    loader.set_position(epoch)
    batches = [
        {key: value if isinstance(value, list) else value.numpy() for key, value in batch.items()}
        for [batch] in loader
    ]
    assert len(batches) == len(loader)
    return batches


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_shapes_and_dtypes_of_a_batch(ten):
    batches = batches_of(ten)
    assert len(batches) == 2
    kinds = {
        "image": np.uint8, "im_shape": np.float32, "scale_factor": np.float32, "im_id": np.int64,
        "gt_bbox": np.float32, "gt_class": np.int32,
    }  # fmt: skip
    for batch in batches:
        assert {key: value.dtype for key, value in batch.items() if key not in EVENT_KEYS} == kinds
        assert batch["bad_images"] == batch["changes"] == []
        count, channels, height, width = batch["image"].shape
        assert (count, channels, height % 32, width % 32) == (4, 3, 0, 0)
        rows = batch["gt_bbox"].shape[1]
        assert batch["gt_bbox"].shape == (4, rows, 4) and batch["gt_class"].shape == (4, rows, 1)
        assert batch["im_shape"].shape == batch["scale_factor"].shape == (4, 2) and batch["im_id"].shape == (
            4,
            1,
        )


def test_batches_do_not_depend_on_the_workers(ten):
    for epoch in (0, 1):
        here = batches_of(ten, epoch)
        assert_same(here, batches_of(ten, epoch, worker_num=2))
        assert_same(here, batches_of(ten, epoch))
    assert not np.array_equal(here[0]["im_id"], batches_of(ten, 0)[0]["im_id"])
    assert not np.array_equal(here[0]["im_id"], batches_of(ten, 1, seed=1)[0]["im_id"])


def test_batches_larger_than_the_shared_buffers(ten, monkeypatch):
    monkeypatch.setattr(workers, "_BOX_BYTES", 1000)
    monkeypatch.setattr(SampleTransforms, "max_image_bytes", lambda _self: 0)
    assert_same(batches_of(ten), batches_of(ten, worker_num=2))


def test_batches_do_not_depend_on_the_number_of_processes(ten):
    whole, parts = batches_of(ten), [batches_of(ten, world_size=2, rank=rank) for rank in range(2)]
    for step, batch in enumerate(whole):
        pieces = [part[step] for part in parts]
        for key in ("im_id", "im_shape", "scale_factor"):
            np.testing.assert_array_equal(batch[key], np.concatenate([piece[key] for piece in pieces]))
        for row in range(4):
            piece = {key: value[row % 2] for key, value in pieces[row // 2].items() if key not in EVENT_KEYS}
            _, height, width = piece["image"].shape
            np.testing.assert_array_equal(batch["image"][row][:, :height, :width], piece["image"])
            assert not batch["image"][row][:, height:].any() and not batch["image"][row][..., width:].any()
            rows = len(piece["gt_bbox"])
            np.testing.assert_array_equal(batch["gt_bbox"][row][:rows], piece["gt_bbox"])
            np.testing.assert_array_equal(batch["gt_class"][row][:rows], piece["gt_class"])
            assert not batch["gt_bbox"][row][rows:].any()


def test_augmentation_changes_with_the_epoch(ten):
    flipped = []
    for epoch in range(8):
        for batch in batches_of(ten, epoch, total_batch_size=10):
            first = batch["im_id"].ravel().tolist().index(2)  # the first picture with a box
            flipped.append(batch["gt_bbox"][first, 0, 0] > 20)
    assert 0 < sum(flipped) < 8


def test_global_generators_are_restored(ten):
    random.seed(5)
    np.random.seed(5)
    wanted = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    batches_of(ten)
    assert (random.random(), np.random.rand()) == wanted


def test_images_without_objects_in_a_batch(coco):
    coco.add((1, 5, 5, 20, 20))
    coco.add()
    [[batch]] = TrainLoader(config(total_batch_size=2), coco.build(allow_empty=True))
    empty = batch["im_id"].numpy().ravel().tolist().index(2)
    assert batch["gt_bbox"].numpy()[empty].tolist() == [[0] * 4]
    assert batch["gt_bbox"].numpy()[1 - empty].any()


def spoil(made: CocoFolder, *numbers: int) -> list[str]:
    paths = [made.folder / "pictures" / f"{number}.png" for number in numbers]
    broken = [b"", b"text", cv2.imencode(".jpg", np.zeros((60, 80, 3), np.uint8))[1].tobytes()[:-40]]
    for path, content in zip(paths, broken):
        path.write_bytes(content)
    return [str(path) for path in paths]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_replaces_unreadable_images(coco, workers):
    for _ in range(6):
        coco.add((0, 5, 5, 20, 20))
    broken = spoil(coco, 2, 3, 6)
    cfg = config(worker_num=workers, total_batch_size=3)
    cfg["TrainReader"]["shuffle"] = False
    batches = list(chain(*TrainLoader(cfg, coco.build())))
    assert [batch["im_id"].numpy().ravel().tolist() for batch in batches] == [[1, 4, 4], [4, 5, 1]]
    named = [[line.split(": ")[0] for line in batch["bad_images"]] for batch in batches]
    assert named == [[broken[0], broken[1], broken[1]], [broken[2]]]


@pytest.mark.parametrize("workers", [0, 2])
def test_no_readable_image(coco, workers):
    for _ in range(3):
        coco.add((0, 5, 5, 20, 20))
    spoil(coco, 1, 2, 3)
    data = coco.build()
    with pytest.raises(DataError, match="3 images in a row"):
        list(TrainLoader(config(worker_num=workers, total_batch_size=3), data))
    loader = EvalLoader(config(worker_num=workers), data, "EvalReader")
    assert list(loader) == [] and len(loader.bad_images) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_leaves_out_unreadable_images(coco, workers, world_size):
    for number in range(7):
        coco.add((0, 5, 5, 20, 20), size=(60 + number, 80))
    broken = spoil(coco, 2, 5)
    data = coco.build("EvalDataset")
    seen, bad = [], []
    for rank in range(world_size):
        loader = EvalLoader(config(worker_num=workers), data, "EvalReader", world_size, rank)
        for _ in range(2):  # bad_images are those of one iteration
            batches = list(loader)
        for batch in batches:
            assert sorted(batch) == ["im_id", "im_shape", "image", "scale_factor"]
            assert str(batch["image"].dtype) == "paddle.uint8" and len(batch["image"]) <= 2
            seen += batch["im_id"].numpy().ravel().tolist()
        bad += loader.bad_images
    assert sorted(seen) == [1, 3, 4, 6, 7]
    assert sorted(line.split(": ")[0] for line in bad) == sorted(broken)


def test_fewer_images_than_processes(coco):
    coco.add((0, 5, 5, 20, 20))
    loader = EvalLoader(config(worker_num=2), coco.build(), "EvalReader", 2, 1)
    assert len(loader) == 0 and list(loader) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_that_fails_is_named(ten, workers):
    transforms = [{"Decode": {}}, {"Permute": {}}, {"RandomFlip": {"prob": 2.0}}, {"Permute": {}}]
    cfg = config(worker_num=workers, transforms=transforms)
    with pytest.raises(DataError) as error:
        list(TrainLoader(cfg, ten.build(allow_empty=True)))
    assert ".png: " in one_line(error) and "shape" in one_line(error)


def in_worker(monkeypatch, action) -> None:
    """Has every worker call this instead of loading a sample."""
    main, load = os.getpid(), TrainingSamples.__getitem__

    def load_or_act(self, item):
        return load(self, item) if os.getpid() == main else action()

    monkeypatch.setattr(TrainingSamples, "__getitem__", load_or_act)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by signal 9"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "killed by signal 11"),
        (lambda: sys.exit(7), "exited with code 7"),
        (lambda: os._exit(0), "exited with code 0"),
        (lambda: bytearray(1 << 62), "ran out of memory"),
    ],
)
def test_a_worker_that_dies(ten, monkeypatch, action, words):
    in_worker(monkeypatch, action)
    data = ten.build(allow_empty=True)
    for _ in range(3):
        with pytest.raises(DataError, match="lower worker_num") as error:
            list(TrainLoader(config(worker_num=2), data))
        assert words in one_line(error)


def test_an_exception_in_a_worker_shows_its_traceback(ten, monkeypatch):
    in_worker(monkeypatch, lambda: [][5])
    with pytest.raises(RuntimeError, match=r"(?s)worker 0.*in in_worker|<lambda>.*IndexError"):
        list(TrainLoader(config(worker_num=1), ten.build(allow_empty=True)))


def test_a_stopped_worker(ten, monkeypatch):
    before = worker_pids()
    loader = TrainLoader(config(worker_num=1), ten.build(allow_empty=True))
    batches = iter(loader)
    next(batches)
    [pid] = worker_pids() - before
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(0.5, os.kill, [pid, signal.SIGCONT])
    timer.start()
    assert len(list(batches)) == 1
    for epoch in (1, 2):
        loader.set_position(epoch)
        assert len(list(loader)) == 2, "it was resumed in time"
    timer.join()
    monkeypatch.setattr(workers, "_STOPPED_SECONDS", 1)
    monkeypatch.setattr(workers, "_SHUTDOWN_SECONDS", 0.2)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DataError, match="stopped") as error:
        for epoch in range(3, 6):  # what it loaded before is used
            loader.set_position(epoch)
            list(loader)
    assert str(pid) in one_line(error)
    assert worker_pids() <= before


def test_workers_that_cannot_be_started(ten):
    data = ten.build(allow_empty=True)

    def train(answers):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8,) * 2)
        try:
            list(TrainLoader(config(worker_num=30), data))
        except DataError as error:
            answers.send(str(error))

    answer = answer_of_a_process(train)
    assert "lower worker_num" in answer and "\n" not in answer


def answer_of_a_process(target):
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=target, args=(sending,))
    process.start()
    sending.close()
    assert receiving.poll(30)
    answer = receiving.recv()
    process.join(30)
    assert process.exitcode == 0
    return answer


def test_the_processes_and_handlers_of_a_host_program_are_left_alone(ten):
    data = ten.build(allow_empty=True)

    def host(answers):
        def on_child(*_):
            answers.send("own handler")

        signal.signal(signal.SIGCHLD, on_child)
        multiprocessing.Process(target=lambda: (time.sleep(2), answers.send("own child"))).start()
        loader = TrainLoader(config(worker_num=2), data)
        next(iter(loader))
        finalizers = len(multiprocessing.util._finalizer_registry)
        list(TrainLoader({**config(worker_num=2), "epoch": 1}, data))
        assert len(multiprocessing.util._finalizer_registry) == finalizers
        if os.fork() == 0:  # a copy of the loader goes, and its workers stay
            del loader
            os._exit(0)
        os.wait()
        assert signal.getsignal(signal.SIGCHLD) is on_child
        iterator = iter(loader)
        answers.send(len([next(iterator)]))
        answers.send("end")  # with an open loader

    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=host, args=(sending,))
    process.start()
    sending.close()
    said = []
    with contextlib.suppress(EOFError):
        while receiving.poll(30):
            said.append(receiving.recv())
    process.join(30)
    assert process.exitcode == 0
    assert "own handler" in said and 1 in said
    assert said.index("end") < said.index("own child")


def worker_pids() -> set[int]:
    return {process.pid for process in multiprocessing.active_children()}


def test_workers_live_through_all_epochs(ten):
    before = worker_pids()
    cfg = {**config(worker_num=2), "epoch": 3}
    loader = TrainLoader(cfg, ten.build(allow_empty=True))
    seen, alive = [], []
    for epoch in range(3):
        loader.set_position(epoch)
        seen.append([{key: np.asarray(value) for key, value in part.items()} for [part] in loader])
        alive.append(worker_pids() - before)
    assert len(alive[0]) == 2 and alive == [alive[0], alive[0], set()], "none behind the last epoch"
    for epoch in range(3):
        assert_same(seen[epoch], batches_of(ten, epoch))


def test_prefetched_batches_are_dropped_for_another_step(ten):
    before = worker_pids()
    loader = TrainLoader(config(worker_num=2, total_batch_size=2), ten.build(allow_empty=True))
    wanted = [batch["im_id"].tolist() for batch in batches_of(ten, 1, total_batch_size=2)]
    for first_step in (3, 0, 4):
        list(loader)  # of whatever epoch: the one behind it is being read
        loader.set_position(1, first_step)
        assert [part["im_id"].tolist() for [part] in loader] == wanted[first_step:]
        assert len(worker_pids() - before) == 2
    del loader
    assert worker_pids() <= before


def shared_memory_of(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if "/dev/shm" in line}


def test_workers_exit_after_a_killed_training(ten):
    mapped_before = shared_memory_of(os.getpid())
    receiving, sending = multiprocessing.Pipe(duplex=False)

    def train():
        loader = TrainLoader(config(worker_num=2), ten.build(allow_empty=True))
        list(loader)
        sending.send(sorted(worker_pids()))
        time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    assert receiving.poll(30)
    pids = receiving.recv()
    # A segment of shared memory would stay in /dev/shm. This process may have some of other tests.
    assert all(shared_memory_of(pid) <= mapped_before for pid in (process.pid, *pids))
    process.kill()
    process.join()
    until = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    alive = [pid for pid in pids if os.path.exists(f"/proc/{pid}") and state_of(pid) != "Z"]
    assert len(pids) == 2 and not alive


LOAD = """
import json, sys
from ppfcos.data.datasets import build_dataset
from ppfcos.data.loader import TrainLoader
cfg = json.loads(sys.argv[1])
loader = TrainLoader(cfg, build_dataset(cfg, "TrainDataset"))
print(sum(len(part["image"]) for [part] in loader))
"""
BAD_SHARED_MEMORY = {
    "read-only": "mount -t tmpfs -o ro tmpfs /dev/shm",
    "full": "mount -t tmpfs -o size=4k tmpfs /dev/shm; cat /dev/zero > /dev/shm/a 2> /dev/null || true",
    "missing": "mkdir -p {0}/dev; mount -t tmpfs tmpfs {0}/dev; "
    "cp -a /dev/null /dev/zero /dev/urandom {0}/dev; mount --move {0}/dev /dev; test ! -e /dev/shm",
}


@pytest.mark.parametrize("kind", BAD_SHARED_MEMORY)
def test_workers_do_not_need_dev_shm(ten, kind, tmp_path):
    cfg = config(worker_num=2, TrainDataset=ten.section(allow_empty=True))
    load = shlex.join([sys.executable, "-c", LOAD, json.dumps(cfg)])
    mount = BAD_SHARED_MEMORY[kind].format(shlex.quote(str(tmp_path)))
    namespace = ["unshare", *([] if os.getuid() == 0 else ["--map-root-user"]), "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "sh", "-ec", mount]).returncode:
        pytest.skip("this machine does not allow another /dev/shm")
    done = subprocess.run(
        [*namespace, "sh", "-ec", f"{mount}; exec {load}"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["8"]), done.stderr


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def test_an_abandoned_epoch(ten):
    loader = TrainLoader(config(worker_num=2, total_batch_size=1), ten.build(allow_empty=True))
    for epoch in range(2):
        loader.set_position(epoch)
        for _batch in loader:
            break
    assert len(list(loader)) == 10


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("TrainReader", "total_batch_size", None, "total_batch_size is missing"),
        ("TrainReader", "total_batch_size", 5, "cannot share 5"),
        ("EvalReader", "batch_size", 0, "batch_size must be"),
        ("EvalReader", None, None, "EvalReader is missing"),
    ],
)
def test_invalid_readers(ten, section, key, value, words):
    cfg = config()
    if key:
        cfg[section] = {**cfg[section], key: value}
    else:
        del cfg[section]
    with pytest.raises(ConfigError, match=words):
        data = ten.build()
        TrainLoader(cfg, data, 2) if section == "TrainReader" else EvalLoader(cfg, data, section)


def test_removed_keys_are_accepted_with_a_notice(ten, caplog):
    cfg = config()
    expected = batches_of(ten)
    cfg["TrainReader"].update(
        image_cache="memory", image_cache_gb=8, image_cache_dir=None, reduced_decoding=False
    )
    loader = TrainLoader(cfg, ten.build(allow_empty=True))
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["TrainReader.image_cache is no longer used"]
    for [batch], wanted in zip(loader, expected):
        np.testing.assert_array_equal(batch["image"].numpy(), wanted["image"])
