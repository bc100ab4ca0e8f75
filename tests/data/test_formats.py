"""YOLO's labels, Pascal VOC in plain folders, joined data sets, and where the classes come from."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from helpers.small_config import write_config
from PIL import Image, ImageOps
from ppdet.core.workspace import global_config
from ppdet.data.source.coco import COCODataSet

from ppfcos.config import load_config
from ppfcos.data import shapes
from ppfcos.data.classes import check_same_classes, set_num_classes
from ppfcos.data.datasets import build_dataset, dataset_of_images
from ppfcos.data.formats import yolo as yolo_format
from ppfcos.data.images import ImageUnreadable, image_size, list_images, read_image
from ppfcos.data.loader import TrainLoader
from ppfcos.data.records import EpochSampling, clip_boxes, image_ids
from ppfcos.data.rng import global_generators
from ppfcos.engine.model import build_model
from ppfcos.errors import ConfigError, DataError
from ppfcos.export.trained_model import model_categories
from ppfcos.metrics.coco import evaluate_detections

NAMES = ["cat", "dog"]


def picture(path: Path, size=(60, 80)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((*size, 3), np.uint8))
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def yolo(folder: Path, **more) -> dict:
    return {"name": "PPFCOSYOLODataSet", "dataset_dir": str(folder), **more}


def build(section: dict, name: str = "TrainDataset", **cfg):
    return build_dataset({name: section, **cfg}, name)


def boxes_by_name(data) -> dict[str, list]:
    return {Path(record["im_file"]).name: record["gt_bbox"].tolist() for record in data.records}


def one_line(error) -> str:
    [line] = str(error.value).splitlines()
    return line


# COCO ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"allow_empty": True},
        {"allow_empty": True, "empty_ratio": 0.05},
        {"load_crowd": True},
        {"sample_num": 5},
    ],
    ids=str,
)
def test_records_are_those_of_paddledetection(tinycoco, options):
    section = {
        "dataset_dir": str(tinycoco),
        "image_dir": "images/train2017",
        "anno_path": "annotations/instances_train2017.json",
        **options,
    }
    theirs = COCODataSet(**section, data_fields=["image", "gt_bbox", "gt_class", "is_crowd"])
    with global_generators(0):
        theirs.parse_dataset()
    ours = build({"name": "COCODataSet", **section}).records
    assert len(ours) == len(theirs.roidbs) > 0
    for record, expected in zip(ours, theirs.roidbs):
        for key in ("im_file", "im_id", "h", "w", "gt_class", "is_crowd"):
            np.testing.assert_array_equal(record[key], expected[key])
        boxes = clip_boxes(expected["gt_bbox"], expected["h"], expected["w"])[0]
        np.testing.assert_array_equal(record["gt_bbox"], boxes)


# YOLO ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked(tinycoco, tmp_path_factory) -> Path:
    """tinycoco as coco2017labels.zip unpacks, with what macOS and YOLO's tools leave behind."""
    folder = tmp_path_factory.mktemp("unpacked") / "coco"
    for split in ("train2017", "val2017"):
        (folder / "labels" / split).mkdir(parents=True)
        shutil.copytree(tinycoco / "images" / split, folder / "images" / split)
        content = json.loads((tinycoco / f"annotations/instances_{split}.json").read_text())
        labels = {category["id"]: label for label, category in enumerate(content["categories"])}
        rows = {image["id"]: [] for image in content["images"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        for note in content["annotations"]:
            if not note["iscrowd"]:
                (x, y, w, h), (width, height) = note["bbox"], sizes[note["image_id"]]
                centre = f"{(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f}"
                row = f"{labels[note['category_id']]} {centre} {w / width:.6f} {h / height:.6f}\n"
                rows[note["image_id"]].append(row)
        for image in content["images"]:
            if rows[image["id"]]:
                text(folder / f"labels/{split}/{image['id']:012}.txt", "".join(rows[image["id"]]))
        names = [f"./images/{split}/{image['file_name']}" for image in content["images"]]
        text(folder / f"{split}.txt", "\n".join(names) + "\n")
        (folder / f"labels/{split}.cache").write_bytes(b"\x93NUMPY")
        (folder / f"images/{split}/._junk.jpg").write_bytes(b"\0")
        picture(folder / f"images/{split}/__MACOSX/junk.jpg")
    return folder


@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize("key", ["anno_path", "image_dir", "image_set"])
def test_the_layout_of_coco2017labels(tinycoco, unpacked, split, key, tmp_path):
    content = json.loads((tinycoco / f"annotations/instances_{split}.json").read_text())
    names = [category["name"] for category in content["categories"]]
    where = {"anno_path": f"{split}.txt", "image_dir": f"images/{split}", "image_set": split[:-4]}[key]
    described = {"path": "/elsewhere", "train": "train2017.txt", "val": "val2017.txt", "nc": 80}
    described["names"] = dict(enumerate(names))
    (unpacked / "coco.yaml").write_text(yaml.safe_dump(described))
    data = build(yolo(unpacked, **{key: where}, allow_empty=True), num_classes=80)
    assert data.class_names == names
    ids = [image["id"] for image in content["images"]]
    assert sorted(int(record["im_id"][0]) for record in data.records) == sorted(ids)
    labels = {category["id"]: label for label, category in enumerate(content["categories"])}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for record in data.records:
        notes = [
            note
            for note in content["annotations"]
            if note["image_id"] == record["im_id"][0] and not note["iscrowd"]
        ]
        boxes = np.array([note["bbox"] for note in notes]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(record["gt_bbox"], boxes, atol=2e-3)
        assert record["gt_class"].ravel().tolist() == [labels[note["category_id"]] for note in notes]
        assert (record["h"], record["w"]) == sizes[int(record["im_id"][0])]
        assert record["gt_bbox"].dtype == np.float32 and record["gt_class"].dtype == np.int32


def test_images_without_a_label_file_have_no_objects(tmp_path):
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "images/b.png")
    text(tmp_path / "labels/a.txt", "\n1 0.5 0.5 0.25 0.5\n  \n")
    text(tmp_path / "classes.txt", "cat\ndog\n")
    section = yolo(tmp_path, image_dir="images")
    assert boxes_by_name(build(section)) == {"a.png": [[30, 15, 50, 45]]}
    assert boxes_by_name(build({**section, "allow_empty": True})) == {
        "a.png": [[30, 15, 50, 45]],
        "b.png": [],
    }
    assert len(build(section, "EvalDataset")) == 2
    (tmp_path / "labels/a.txt").unlink()
    with pytest.raises(DataError, match=r"none of 2 images has a label file.*labels/a\.txt.*label_dir"):
        build({**section, "allow_empty": True})


@pytest.mark.parametrize(
    ("row", "boxes"),
    [
        ("1 0.5 0.5 0.25 0.5", [[30, 15, 50, 45]]),
        ("1.0 0.5 0.5 0.25 0.5", [[30, 15, 50, 45]]),
        ("0 0.1 0.2 0.4 0.2 0.3 0.9", [[8, 12, 32, 54]]),
        ("0 0.25 0.1 0.75 0.1 0.75 0.6 0.25 0.6", [[20, 6, 60, 36]]),
        ("0 0.1 0.5 0.25 0.5", [[0, 15, 18, 45]]),
        ("0 1.00001 0.5 0.5 0.5", [[60, 15, 80, 45]]),
        ("\ufeff0 0.5 0.5 0.25 0.5", [[30, 15, 50, 45]]),
    ],
)
def test_rows_that_can_be_read(tmp_path, row, boxes):
    picture(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text(row, encoding="utf-8")
    data = build(yolo(tmp_path, image_dir="images", class_names=NAMES, allow_empty=True))
    np.testing.assert_allclose(
        np.reshape(data.records[0]["gt_bbox"], (-1, 4)), np.reshape(boxes, (-1, 4)), atol=1e-3
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("2 0.5 0.5 0.1 0.1", "the class is 2, but there are 2 classes, counted from 0"),
        ("-1 0.5 0.5 0.1 0.1", "the class is -1"),
        ("0.5 0.5 0.5 0.1 0.1", "the class is 0.5"),
        ("nan 0.5 0.5 0.1 0.1", "the class is nan"),
        ("cat 0.5 0.5 0.1 0.1", "'cat'"),
        ("0 0.5 0.5 0.1", "4 columns"),
        ("0 0.5 0.5 0.1 0.1 0.99", "6 columns"),
        ("0 nan 0.5 0.1 0.1", "nan is not a fraction"),
        ("0 inf 0.5 0.1 0.1", "inf is not a fraction"),
        ("0 40 30 20 20", "40 is not a fraction"),
        ("0 0.5 0.5 -0.2 0.1", "-0.2 is not a fraction"),
        ("0 0.1 0.2 0.4 0.2 0.3 30", "30 is not a fraction"),
    ],
)
def test_rows_that_cannot_be_right(tmp_path, row, words):
    picture(tmp_path / "images/a.png")
    text(tmp_path / "labels/a.txt", f"0 0.5 0.5 0.1 0.1\n{row}\n")
    with pytest.raises(DataError) as error:
        build(yolo(tmp_path, image_dir="images", class_names=NAMES))
    assert words in one_line(error) and "labels/a.txt, line 2" in one_line(error)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"data.yaml": "names: [cat, dog]"}, NAMES),
        ({"data.yaml": "names: {0: cat, 1: dog}\nnc: 2"}, NAMES),
        ({"data.yaml": "names:\n- cat\n- 7\n"}, ["cat", "7"]),
        ({"other.yml": "names: [cat, dog]", "settings.yaml": "lr: 1", "classes.txt": "cat\ndog\n"}, NAMES),
        ({"obj.names": "cat\n\ndog\n"}, NAMES),
        ({"labels/classes.txt": "\ufeffcat\ndog"}, NAMES),
    ],
)
def test_where_the_class_names_are(tmp_path, files, names):
    picture(tmp_path / "images/a.png")
    text(tmp_path / "labels/a.txt", "1 0.5 0.5 0.1 0.1")
    for name, content in files.items():
        text(tmp_path / name, content)
    data = build(yolo(tmp_path, image_dir="images"))
    assert data.class_names == names
    assert data.categories == [{"id": label + 1, "name": name} for label, name in enumerate(names)]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "does not say what its classes are called"),
        ({"data.yaml": "names: [cat, dog]\nnc: 3"}, "has 2 names, but nc is 3"),
        ({"data.yaml": "names: {1: cat, 2: dog}"}, "numbered from 0 to 1"),
        ({"data.yaml": "names: [cat, cat]"}, "twice: cat"),
        ({"data.yaml": "names: []"}, "names no classes"),
        ({"data.yaml": "names: [cat"}, "cannot be read as YAML"),
        ({"data.yaml": "names: [cat, dog]\nkpt_shape: [17, 3]"}, "keypoints"),
        ({"data.yaml": "names: [cat, dog]", "classes.txt": "dog\ncat"}, "name other classes"),
        ({"data.yaml": "names: [cat, dog]\ncategory_ids: [1]"}, "category_ids"),
    ],
)
def test_class_names_that_cannot_be_right(tmp_path, files, words):
    picture(tmp_path / "images/a.png")
    text(tmp_path / "labels/a.txt", "1 0.5 0.5 0.1 0.1")
    for name, content in files.items():
        text(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        build(yolo(tmp_path, image_dir="images"))
    assert words in one_line(error) and str(tmp_path) in one_line(error)


def test_lists_with_all_kinds_of_paths(tmp_path, caplog):
    for name in "abcde":
        picture(tmp_path / f"set/images/{name}.png")
        text(tmp_path / f"set/labels/{name}.txt", "0 0.5 0.5 0.5 0.5")
    lines = [
        "./../images/a.png",  # from the list's folder
        "images/b.png",  # from the data set's
        str(tmp_path / "set/images/c.png"),
        "/somewhere/else/images/d.png",
        "images/b.png",
        "",
        "images/gone.png",
    ]
    text(tmp_path / "set/lists/train.txt", "\n".join(lines))
    data = build(yolo(tmp_path / "set", anno_path="lists/train.txt", class_names=NAMES))
    assert list(boxes_by_name(data)) == ["a.png", "b.png", "c.png", "d.png"]
    assert "left out 1 image that is missing (first in images/gone.png)" in caplog.text
    text(tmp_path / "set/lists/train.txt", "images/gone.png\n")
    with pytest.raises(DataError, match=r"none of them is there: the first would be .*images/gone\.png"):
        build(yolo(tmp_path / "set", anno_path="lists/train.txt", class_names=NAMES))


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/x/images/train/a.jpg", "/x/labels/train/a.txt"),
        ("/x/train/images/a.b.jpg", "/x/train/labels/a.b.txt"),
        ("/images/x/images/a.jpg", "/images/x/labels/a.txt"),
        ("/x/photos/a.jpg", "/x/photos/a.txt"),
        ("images/a.jpg", "labels/a.txt"),
        ("a.jpg", "a.txt"),
        ("/x/myimages/a.jpg", "/x/myimages/a.txt"),
    ],
)
def test_where_labels_are_looked_for(image, label):
    assert yolo_format.label_path(image) == label


def test_label_dir_and_the_splits_of_a_description(tmp_path):
    """Folders by split first, as some tools export, with paths that start one folder too high."""
    for split in ("train", "valid"):
        picture(tmp_path / split / "images/a.png")
        text(tmp_path / split / "labels/a.txt", "0 0.5 0.5 0.5 0.5")
    text(tmp_path / "data.yaml", "names: [cat, dog]\ntrain: ../train/images\nval: [../valid/images]\n")
    for split, folder in (("train", "train"), ("val", "valid")):
        [record] = build(yolo(tmp_path, image_set=split)).records
        assert record["im_file"] == str(tmp_path / folder / "images/a.png")
    text(tmp_path / "marks/a.txt", "1 0.5 0.5 0.5 0.5")
    [record] = build(yolo(tmp_path, image_dir="train/images", label_dir="marks")).records
    assert record["gt_class"].tolist() == [[1]]
    for more in ({}, {"image_dir": "train/images", "image_set": "train"}, {"image_set": "test"}):
        with pytest.raises(DataError, match="image_set"):
            build(yolo(tmp_path, **more))


def test_pictures_that_cannot_be_read_are_counted(tmp_path, caplog):
    for name in "abc":
        picture(tmp_path / f"images/{name}.png")
        text(tmp_path / f"labels/{name}.txt", "0 0.5 0.5 0.5 0.5")
    text(tmp_path / "images/b.png", "no picture")
    data = build(yolo(tmp_path, image_dir="images", class_names=NAMES))
    assert list(boxes_by_name(data)) == ["a.png", "c.png"]
    assert "left out 1 image that cannot be read (first in" in caplog.text and "b.png" in caplog.text


def test_numbers_of_images():
    assert image_ids(["x/000000000139.jpg", "y/7.png"]) == [139, 7]
    assert image_ids(["x/7.jpg", "y/007.png"]) == [1, 2], "two would be one"
    assert image_ids(["7.jpg", "b.png"]) == [1, 2]
    assert image_ids([]) == []


# The size of a picture, from its first bytes --------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_size_is_that_of_the_decoded_picture(tmp_path, suffix, orientation):
    made = Image.fromarray(np.zeros((48, 72, 3), np.uint8))
    exif = made.getexif()
    exif[0x0112] = orientation
    made.save(tmp_path / f"x.{suffix}", exif=exif)
    assert image_size(tmp_path / f"x.{suffix}") == read_image(tmp_path / f"x.{suffix}").shape[:2]
    if suffix in ("jpg", "png"):
        turned = ImageOps.exif_transpose(Image.open(tmp_path / f"x.{suffix}"))
        assert image_size(tmp_path / f"x.{suffix}") == turned.size[::-1]


def test_boxes_of_a_turned_picture(tmp_path):
    made = Image.fromarray(np.zeros((40, 100, 3), np.uint8))
    exif = made.getexif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    made.save(tmp_path / "images/x.jpg", exif=exif)
    text(tmp_path / "labels/x.txt", "0 0.5 0.5 0.5 0.5")
    [record] = build(yolo(tmp_path, image_dir="images", class_names=NAMES)).records
    assert record["gt_bbox"].tolist() == [[10, 25, 30, 75]]
    assert read_image(record["im_file"], (record["h"], record["w"])).shape == (100, 40, 3)


def test_the_size_of_what_is_no_picture(tmp_path):
    for path in (text(tmp_path / "x.jpg", "no"), text(tmp_path / "y.jpg", ""), tmp_path / "z.jpg", tmp_path):
        with pytest.raises(ImageUnreadable):
            image_size(path)


def test_hidden_pictures_are_not_listed(tmp_path):
    for name in ("b.png", "deep/a.JPG", ".c.png", ".deep/d.png", "__MACOSX/e.png", "notes.txt"):
        text(tmp_path / name, "")
    assert list_images(tmp_path) == [str(tmp_path / name) for name in ("b.png", "deep/a.JPG")]


# Pascal VOC in plain folders ------------------------------------------------------------------------


def xml(*objects, more="") -> str:
    body = "".join(
        f"<object><name>{kind}</name>{more}<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for kind, x0, y0, x1, y1 in objects
    )
    return f"<annotation><size><width>80</width><height>60</height></size>{body}</annotation>"


def voc(folder: Path, **more) -> dict:
    return {"name": "PPFCOSVOCDataSet", "dataset_dir": str(folder), **more}


@pytest.mark.parametrize(("image_dir", "anno_dir"), [("pictures", "marks"), (".", ".")])
def test_voc_without_lists(tmp_path, image_dir, anno_dir):
    for name, kind in (("b", "dog"), ("a", "cat"), ("c", "cat")):
        picture(tmp_path / image_dir / f"{name}.png")
        text(tmp_path / anno_dir / f"{name}.xml", xml((kind, 1, 2, 30, 40)))
    text(tmp_path / anno_dir / "._a.xml", "\0")
    section = voc(tmp_path, image_set=None, image_dir=image_dir, anno_dir=anno_dir)
    data = build(section)
    assert list(boxes_by_name(data)) == ["a.png", "b.png", "c.png"]
    assert data.class_names == ["cat", "dog"]
    assert [record["gt_class"].tolist() for record in data.records] == [[[0]], [[1]], [[0]]]
    text(tmp_path / "label_list.txt", "dog\ncow\ncat\n")
    assert build(section).class_names == ["dog", "cow", "cat"]
    assert build({**section, "class_names": ["dog", "cat"]}).class_names == ["dog", "cat"]
    with pytest.raises(DataError, match=r"ImageSets.*null"):
        build({**section, "image_set": "train"})


def test_bccd_names_its_classes(bccd):
    sections = {
        name: voc(bccd, image_set=split)
        for name, split in (("TrainDataset", "train"), ("EvalDataset", "val"))
    }
    names = [build_dataset(sections, name).class_names for name in sections]
    assert names == [["Platelets", "RBC", "WBC"]] * 2


def test_crowds_in_voc(tmp_path):
    """As in COCO: no object to learn, but a box that an evaluation forgives."""
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    text(tmp_path / "a.xml", xml(("cat", 1, 2, 30, 40), more="<iscrowd>1</iscrowd>"))
    text(tmp_path / "b.xml", xml(("cat", 1, 2, 30, 40), ("dog", 1, 2, 9, 9)))
    section = voc(tmp_path, image_set=None, image_dir=".", anno_dir=".")
    assert {name: len(boxes) for name, boxes in boxes_by_name(build(section)).items()} == {"b.png": 2}
    truth = build(section, "EvalDataset").coco_ground_truth()
    assert [note["iscrowd"] for note in truth["annotations"]] == [1, 0, 0]


# Joined data sets -----------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path) -> list[dict]:
    """Sections of three data sets in three formats, whose image numbers and classes overlap."""
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 80, "height": 60} for n in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 5, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 3, "bbox": [0, 0, 70, 50], "area": 9, "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    text(tmp_path / "coco/all.json", json.dumps(content))
    for n in (1, 2):
        picture(tmp_path / f"coco/{n}.png")
        picture(tmp_path / f"yolo/images/{n}.png")
        text(tmp_path / f"yolo/labels/{n}.txt", f"{n - 1} 0.5 0.5 0.5 0.5")
    text(tmp_path / "yolo/classes.txt", "bird\ncat")
    picture(tmp_path / "voc/x.png")
    text(tmp_path / "voc/x.xml", xml(("dog", 10, 10, 30, 30), ("ant", 40, 10, 60, 30)))
    return [
        {
            "name": "COCODataSet",
            "dataset_dir": str(tmp_path / "coco"),
            "image_dir": ".",
            "anno_path": "all.json",
        },
        yolo(tmp_path / "yolo", image_dir="images"),
        voc(tmp_path / "voc", image_set=None, image_dir=".", anno_dir="."),
    ]


def joined(sections, **more) -> dict:
    return {"name": "PPFCOSJoinedDataSet", "datasets": sections, **more}


def named_boxes(data) -> list[tuple]:
    return [
        (Path(record["im_file"]).parent.name, data.class_names[label], *map(float, box))
        for record in data.records
        for label, box in zip(record["gt_class"].ravel(), record["gt_bbox"])
    ]


def test_classes_are_joined_by_name(three):
    data = build(joined(three), num_classes=4)
    assert data.class_names == ["cat", "dog", "bird", "ant"]
    assert data.categories[:2] == [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    assert len({category["id"] for category in data.categories}) == 4
    ids = [int(record["im_id"][0]) for record in data.records]
    assert ids[:2] == [1, 2] and len(set(ids)) == 5
    assert named_boxes(data) == [
        ("coco", "cat", 1, 2, 4, 6),
        ("coco", "dog", 5, 6, 12, 14),
        ("images", "bird", 20, 15, 60, 45),
        ("images", "cat", 20, 15, 60, 45),
        ("voc", "dog", 10, 10, 30, 30),
        ("voc", "ant", 40, 10, 60, 30),
    ]


def test_the_order_of_joined_classes(three):
    order = ["ant", "bird", "dog", "cat", "cow"]
    data = build(joined(three, class_names=order))
    assert data.class_names == order
    assert named_boxes(data) == named_boxes(build(joined(three)))
    with pytest.raises(DataError, match=r"class 'ant', which is not in TrainDataset\.class_names"):
        build(joined(three, class_names=order[1:]))


def test_the_truth_of_joined_data_sets(three):
    data = build(joined(three), "EvalDataset")
    truth = data.coco_ground_truth()
    ids = {int(record["im_id"][0]): record for record in data.records}
    assert [image["id"] for image in truth["images"]] == list(ids)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    assert [names[note["category_id"]] for note in truth["annotations"]] == [
        "cat", "dog", "dog", "bird", "cat", "dog", "ant",
    ]  # fmt: skip
    assert [note["area"] for note in truth["annotations"][:3]] == [5, 56, 9], "the file's own"
    assert [note["iscrowd"] for note in truth["annotations"]] == [0, 0, 1, 0, 0, 0, 0]
    found = [
        {
            "image_id": number,
            "category_id": data.categories[label]["id"],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": 0.9,
        }
        for number, record in ids.items()
        for label, (x0, y0, x1, y1) in zip(record["gt_class"].ravel(), record["gt_bbox"].tolist())
    ]
    assert evaluate_detections(truth, found).ap == 1.0


def test_weights(three):
    for section, weight in zip(three, (1, 0.5, 3)):
        section["weight"] = weight
    data = build(joined(three))
    assert len(data) == 2 + 1 + 3 and len(data.records) == 5
    epochs = [
        Counter(
            Path(data.record(position, epoch)["im_file"]).parent.name
            + Path(data.record(position, epoch)["im_file"]).name
            for position in range(len(data))
        )
        for epoch in range(4)
    ]
    for counted in epochs:
        assert counted["coco1.png"] == counted["coco2.png"] == 1 and counted["vocx.png"] == 3
        assert counted["images1.png"] + counted["images2.png"] == 1
    for first, second in zip(epochs, epochs[1:]):
        assert first["images1.png"] != second["images1.png"], "the halves take turns"
    assert len(build(joined(three), "EvalDataset")) == 5, "each image once"


def test_training_reads_what_the_weights_say(three):
    for section, weight in zip(three, (1, 0.5, 3)):
        section["weight"] = weight
    data = build(joined(three))
    files = {int(record["im_id"][0]): record["im_file"] for record in data.records}
    transforms = [{"Decode": {}}, {"Resize": {"target_size": [32, 32], "keep_ratio": True}}, {"Permute": {}}]
    reader = {"sample_transforms": transforms, "total_batch_size": 2}
    for workers in (0, 1):
        loader = TrainLoader({"TrainReader": reader, "worker_num": workers}, data)
        for epoch in range(3):
            loader.set_position(epoch)
            read = [files[int(number)] for [batch] in loader for number in batch["im_id"].numpy().ravel()]
            drawn = [data.record(position, epoch)["im_file"] for position in range(len(data))]
            assert sorted(read) == sorted(drawn)


def test_a_fraction_goes_through_all_images():
    draw = EpochSampling([10, 100], [1, 0.25], seed=3)
    assert len(draw) == 35
    epochs = [draw.positions(epoch) for epoch in range(4)]
    for positions in epochs:
        assert sorted(positions[:10]) == list(range(10))
    assert sorted(np.concatenate([positions[10:] for positions in epochs])) == list(range(10, 110))
    np.testing.assert_array_equal(draw.positions(2), EpochSampling([10, 100], [1, 0.25], seed=3).positions(2))
    assert (draw.positions(0) != EpochSampling([10, 100], [1, 0.25], seed=4).positions(0)).any()


def test_joined_for_paddledetections_reader(three):
    three[0]["weight"] = 2
    module = global_config["PPFCOSJoinedDataSet"].pymodule
    dataset = module.PPFCOSJoinedDataSet(datasets=three)
    dataset.parse_dataset()
    assert len(dataset.roidbs) == 4 + 2 + 1 and dataset.cname2cid == {"cat": 0, "dog": 1, "bird": 2, "ant": 3}


@pytest.mark.parametrize(
    ("sections", "error", "words"),
    [
        ([], ConfigError, "TrainDataset.datasets is empty"),
        ([{"name": "ImageFolder"}], ConfigError, "TrainDataset.datasets.0 is an ImageFolder"),
        ([{"name": "Nonsense"}], ConfigError, "TrainDataset.datasets.0.name: Nonsense is not a data set"),
        ([{"name": "PPFCOSVOCDataSet", "weight": 0}], ConfigError, "TrainDataset.datasets.0.weight is 0"),
        ([{"name": "PPFCOSVOCDataSet", "dataset_dir": "nowhere"}], DataError, "TrainDataset.datasets.0"),
    ],
)
def test_joined_sections_that_cannot_be_right(sections, error, words):
    with pytest.raises(error) as raised:
        build(joined(sections))
    assert words in one_line(raised)


# In a configuration -----------------------------------------------------------------------------------


JOINED = """
architecture: PPFCOS
TrainDataset:
  name: PPFCOSJoinedDataSet
  datasets:
  - {{name: COCODataSet, dataset_dir: x, weight: 0.5}}
  - {{name: PPFCOSYOLODataSet, {keys}}}
"""


def test_the_checker_knows_data_sets_in_data_sets(tmp_path):
    cfg = load_config(text(tmp_path / "run.yml", JOINED.format(keys="image_set: train")))
    assert cfg["TrainDataset"]["datasets"][1] == {"name": "PPFCOSYOLODataSet", "image_set": "train"}
    override = ["TrainDataset.datasets.0.weight=2"]
    assert load_config(tmp_path / "run.yml", override)["TrainDataset"]["datasets"][0]["weight"] == 2
    for keys, words in (
        (
            "ann_path: x",
            "run.yml:7: unknown key 'TrainDataset.datasets.1.ann_path'; did you mean 'anno_path'?",
        ),
        ("weights: 2", "run.yml:7: unknown key 'TrainDataset.datasets.1.weights'; did you mean 'weight'?"),
        ("weight: 0", "run.yml:7: TrainDataset.datasets.1.weight should be a number above 0"),
        ("class_names: {a: 1}", "TrainDataset.datasets.1.class_names should be a list of texts"),
    ):
        with pytest.raises(ConfigError) as error:
            load_config(text(tmp_path / "run.yml", JOINED.format(keys=keys)))
        assert words in one_line(error)
    with pytest.raises(ConfigError, match=r"unknown key 'TrainDataset\.weight'"):
        load_config(
            text(tmp_path / "run.yml", "architecture: PPFCOS\nTrainDataset: {name: COCODataSet, weight: 2}")
        )


@pytest.mark.parametrize("name", ["yolo", "joined"])
def test_the_example_configurations(root, name):
    cfg = load_config(root / f"configs/datasets/{name}.yml", ["architecture=PPFCOS"])
    assert cfg["num_classes"] is None
    names = (cfg["TrainDataset"].get("class_names"), cfg["EvalDataset"].get("class_names"))
    assert names == ((None, None) if name == "joined" else (names[0], names[0]))
    if name == "yolo":
        from ppdet.data.source.category import get_categories

        assert names[0] == list(get_categories("COCO", None)[1].values())


# The number of classes, and their names ---------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    shapes.generate(folder, train=2, val=2, size=64)
    return folder


def test_the_model_has_as_many_classes_as_the_data(drawn, root, tmp_path):
    config = write_config(tmp_path / "small.yml", root, drawn, tmp_path / "output")
    cfg = load_config(
        config,
        [
            "num_classes=null",
            "ResNet.num_stages=2",
            "ResNet.return_idx=[0,1]",
            "PPFCOSTargets.size_ranges=[32,64,128]",
        ],
    )
    data = build_dataset(cfg, "TrainDataset")
    with pytest.raises(ConfigError, match="num_classes is not set"):
        build_model(cfg)
    set_num_classes(cfg, data.class_names, data.source)
    assert cfg["num_classes"] == 3
    assert build_model(cfg).head.num_classes == 3


def test_num_classes_is_settled_or_contradicted(caplog):
    caplog.set_level("INFO")
    cfg = {}
    set_num_classes(cfg, ["a", "b"], "here")
    assert cfg == {"num_classes": 2} and "num_classes: 2 (a, b), from here" in caplog.text
    set_num_classes(cfg, ["a", "b"], "here")
    with pytest.raises(DataError, match="there has 3 classes, but num_classes is 2"):
        set_num_classes(cfg, ["a", "b", "c"], "there")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (["cat", "cow"], "lacks dog and adds cow"),
        (["cat"], "lacks dog;"),
        (["cat", "dog", "cow"], "it adds cow;"),
        (["dog", "cat"], "another order: class 0 is dog, not cat"),
        (["cat", "dog", "dog"], "has 3 instead of 2, for it names one twice"),
    ],
)
def test_two_lists_of_classes_that_differ(found, words):
    check_same_classes(NAMES, "train.json", NAMES, "val.json")
    with pytest.raises(DataError) as error:
        check_same_classes(NAMES, "train.json", found, "val.json")
    assert words in one_line(error) and "val.json are not those of train.json" in one_line(error)


def test_class_names_for_pictures_alone(three, tmp_path):
    """A list of pictures (anno_path) is not taken for a list of class names."""
    text(tmp_path / "yolo/train.txt", "images/1.png\n")
    section = yolo(tmp_path / "yolo", anno_path="train.txt")
    assert dataset_of_images({"EvalDataset": section}, ["x.jpg"]).class_names == ["bird", "cat"]
    assert dataset_of_images({"EvalDataset": three[2]}, ["x.jpg"]).class_names == ["ant", "dog"]
    data = dataset_of_images({"EvalDataset": joined(three)}, ["x.jpg"])
    assert data.categories == build(joined(three)).categories
    with pytest.raises(ConfigError, match="nothing says what the classes are"):
        dataset_of_images({}, ["x.jpg"])


def test_the_exporter_settles_and_compares(three, caplog):
    cfg = {"EvalDataset": three[1], "num_classes": None}
    assert [category["name"] for category in model_categories(cfg)] == ["bird", "cat"]
    assert cfg["num_classes"] == 2
    assert model_categories(cfg, ["bird", "cat"]) == model_categories(cfg)
    with pytest.raises(
        DataError, match="EvalDataset are not those of the checkpoint: it has them in another"
    ):
        model_categories(cfg, ["cat", "bird"])
    cfg = {}
    assert model_categories(cfg, ["b", "a"]) == [{"id": 1, "name": "b"}, {"id": 2, "name": "a"}]
    assert cfg == {"num_classes": 2}
    with pytest.raises(DataError, match="the checkpoint has 2 classes, but num_classes is 3"):
        model_categories({"num_classes": 3}, ["b", "a"])
