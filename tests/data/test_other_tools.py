"""Data sets as other tools write them, and data sets with nothing to learn from."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppfcos.cli import check_data as check_cli
from ppfcos.cli.convert_data import main as convert_cli
from ppfcos.data.classes import checked_names
from ppfcos.data.datasets import build_dataset, categories_of
from ppfcos.data.formats.concat import merge_categories
from ppfcos.data.formats.layouts import find_sections
from ppfcos.data.formats.yolo import find_categories
from ppfcos.data.images import list_images
from ppfcos.data.records import DetectionData, numbered
from ppfcos.errors import ConfigError, DataError

WIDTH, HEIGHT = 80, 60
BOX = [8, 6, 40, 30]  # x, y, width, height
ROW = "0 0.35 0.35 0.5 0.5\n"  # the same box in YOLO's form
XML = (
    "<annotation><size><width>80</width><height>60</height></size><object><name>cat</name>"
    "<bndbox><xmin>8</xmin><ymin>6</ymin><xmax>48</xmax><ymax>36</ymax></bndbox></object></annotation>"
)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = abs(hash(str(path))) % 1000
    cv2.imwrite(str(path), np.random.RandomState(seed).randint(0, 255, (HEIGHT, WIDTH, 3), np.uint8))


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def coco(folder: Path, annotations=None, names=("1.png", "2.png"), written=None, path="a.json", **section):
    """A COCO data set of two images in `images`, and the section that reads it."""
    for name in names:
        picture(folder / "images" / name)
    images = [
        {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for number, name in enumerate(written or names, start=1)
    ]
    if annotations is None:
        annotations = [{"bbox": BOX}, {"bbox": BOX, "image_id": 2}]
    notes = [
        {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 1200, **note}
        for number, note in enumerate(annotations, start=1)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    text(folder / path, json.dumps({"images": images, "annotations": notes, "categories": categories}))
    keys = {"dataset_dir": str(folder), "image_dir": "images", "anno_path": path}
    return {"name": "COCODataSet", **keys, "allow_empty": True, **section}


def build(keys: dict, section: str = "TrainDataset"):
    return build_dataset({section: keys}, section)


def check(path, tmp_path, *options) -> tuple[int, set]:
    """Exit code of the data check, and the kinds of issues that are errors."""
    code = check_cli.main([str(path), "--workers", "0", "--output_dir", str(tmp_path / "report"), *options])
    report = json.loads((tmp_path / "report/report.json").read_text()) if code < 2 else {"kinds": []}
    return code, {each["kind"] for each in report["kinds"] if each["severity"] == "error"}


# Nothing to learn from ------------------------------------------------------------------------------------

POLYGON = [[8, 6, 48, 6, 48, 36, 8, 36]]
NOTHING = {
    "crowds": ([{"bbox": BOX, "iscrowd": 1}] * 3, r"3 annotations are marked iscrowd.*load_crowd: true"),
    "no boxes": ([{"segmentation": {"counts": [1], "size": [1, 1]}}], "1 annotation without a box"),
    "none": ([], ""),
    "ignored": ([{"bbox": BOX, "ignore": 1}], "1 box marked with ignore"),
    "other images": ([{"bbox": BOX, "image_id": 99}], "1 annotation of an unlisted image"),
    "without area": ([{"bbox": [5, 5, 0, 0]}], "1 box without area"),
}


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("allow_empty", [True, False])
def test_a_data_set_without_objects_is_refused(tmp_path, case, allow_empty):
    annotations, reason = NOTHING[case]
    section = coco(tmp_path / "set", annotations, allow_empty=allow_empty)
    with pytest.raises(DataError, match=f"no objects to learn from.*{reason}"):
        build(section)
    with (
        pytest.raises(DataError, match="no objects to evaluate with")
        if case
        not in (
            "ignored",
            "without area",
        )
        else pytest.raises(DataError)
    ):
        build({**section}, "EvalDataset") if case != "ignored" else build(section)
    assert check(tmp_path / "set/a.json", tmp_path)[1] >= {"refused"}


def test_the_cure_for_a_data_set_of_crowds_works(tmp_path):
    section = coco(tmp_path, [{"bbox": BOX, "iscrowd": 1}] * 2)
    with pytest.raises(DataError) as error:
        build(section)
    key, value = re.search(r"set TrainDataset\.(\w+): (\w+)", str(error.value)).groups()
    assert build({**section, key: value == "true"}).number_of_boxes == 2


def test_a_large_part_left_out_is_a_warning(tmp_path, caplog):
    section = coco(tmp_path / "set", [{"bbox": BOX}, {"bbox": BOX, "iscrowd": 1}])
    assert build(section).number_of_boxes == 1
    [record] = [record for record in caplog.records if record.name == "ppfcos.data.datasets"]
    assert record.levelname == "WARNING" and "1 of 2 annotations are left out" in record.getMessage()
    assert "annotations-lost" in check(tmp_path / "set/a.json", tmp_path)[1]


def test_a_polygon_gives_its_box(tmp_path):
    section = coco(tmp_path / "set", [{"segmentation": POLYGON}, {"bbox": [], "segmentation": POLYGON}])
    for name in ("TrainDataset", "EvalDataset"):
        data = build(section, name)
        assert data.records[0]["gt_bbox"].tolist() == [[8, 6, 48, 36]] * 2
        assert [note["bbox"] for note in data.coco_ground_truth()["annotations"]] == [BOX] * 2


SIZES = [(4, 4), (44, 4), (30, 20), (50, 32), (6, 40)]  # top left corners of boxes of 24x18 pixels
FORMS = {
    "fractions": [[x / WIDTH, y / HEIGHT, 24 / WIDTH, 18 / HEIGHT] for x, y in SIZES],
    "corners": [[x, y, x + 24, y + 18] for x, y in SIZES],
    "centers": [[x + 12, y + 9, 30, 22] for x, y in ((4, 4), (48, 36), (48, 35), (48, 33), (49, 36))],
}


@pytest.mark.parametrize("form", FORMS)
def test_boxes_in_another_form_are_refused(tmp_path, form):
    section = coco(tmp_path / "set", [{"bbox": box} for box in FORMS[form]])
    with pytest.raises(DataError, match=r"fractions|corner|\[x0, y0, x1, y1\]|center"):
        build(section)
    code, errors = check(tmp_path / "set/a.json", tmp_path)
    assert code == 1 and errors & {"boxes-normalized", "boxes-in-another-form"}
    coco(tmp_path / "set", [{"bbox": [x, y, 24, 18]} for x, y in SIZES])
    assert build(section).number_of_boxes == 5


@pytest.mark.parametrize("box", [(0.1, 0.1, 0.6, 0.6), (0.5, 0.4, 0.9, 0.95)])
def test_boxes_of_xml_and_labels_in_another_form(tmp_path, box):
    picture(tmp_path / "v/a.png")
    sides = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    text(tmp_path / "v/a.xml", re.sub("<bndbox>.*</bndbox>", f"<bndbox>{sides}</bndbox>", XML))
    with pytest.raises(DataError, match="fractions of the image"):
        build(find_sections(tmp_path / "v")["TrainDataset"])
    picture(tmp_path / "y/images/a.png")
    corners = [(0.6, 0.6, 0.9, 0.95), (0.5, 0.7, 0.99, 0.9), (0.7, 0.5, 0.8, 0.99)]
    text(tmp_path / "y/labels/a.txt", "".join(f"0 {' '.join(map(str, row))}\n" for row in corners))
    text(tmp_path / "y/classes.txt", "cat\n")
    with pytest.raises(DataError, match=r"\[x0, y0, x1, y1\]"):
        build(find_sections(tmp_path / "y")["TrainDataset"])


@pytest.fixture
def labels(tmp_path) -> Path:
    for name in ("1", "2"):
        picture(tmp_path / f"set/images/{name}.png")
        text(tmp_path / f"set/labels/{name}.txt", ROW)
    text(tmp_path / "set/data.yaml", "names: [cat]\ntrain: images\n")
    return tmp_path / "set"


def test_label_files_of_no_image(labels, tmp_path, caplog, capsys):
    (labels / "labels/2.txt").rename(labels / "labels/0a1b-2.txt")
    text(labels / "labels/classes.txt", "cat\n")
    section = {"name": "PPFCOSYOLODataSet", "dataset_dir": str(labels), "image_set": "train"}
    data = build({**section, "allow_empty": True})
    assert data.number_of_boxes == 1 and len(data) == 2
    assert "ignored 1 label file without an image (first in" in caplog.text
    assert any(record.levelname == "WARNING" for record in caplog.records)
    assert check(labels, tmp_path) == (1, {"label-file-without-image"})
    assert convert_cli([str(labels), "--to", "coco", "-o", str(tmp_path / "coco")]) == 0
    printed = capsys.readouterr().out
    assert "lost: 1 label files belong to no image" in printed and "nothing is lost" not in printed


def test_labels_of_another_split_are_not_without_an_image(labels, tmp_path):
    text(labels / "train.txt", "images/1.png\n")
    text(labels / "data.yaml", "names: [cat]\ntrain: train.txt\n")
    assert check(labels, tmp_path)[1] == set()


def test_label_and_xml_files_with_suffixes_in_capitals(labels, tmp_path):
    for name in ("1", "2"):
        (labels / f"labels/{name}.txt").rename(labels / f"labels/{name}.TXT")
    assert build(find_sections(labels)["TrainDataset"]).number_of_boxes == 2
    picture(tmp_path / "voc/a.png")
    text(tmp_path / "voc/a.XML", XML)
    assert build(find_sections(tmp_path / "voc")["TrainDataset"]).number_of_boxes == 1


# Paths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written", ["images\\{}", "D:\\data\\set\\images\\{}", "/data/upload/3/{}", "..\\images\\{}", "./{}"]
)
@pytest.mark.parametrize("image_dir", ["images", "."])
def test_image_paths_of_another_machine(tmp_path, written, image_dir):
    names = ("1.png", "2.png")
    if image_dir == "." and "images" not in written:
        pytest.skip("nothing says that the images are in `images`")
    section = coco(tmp_path / "set", names=names, written=[written.format(name) for name in names])
    data = build({**section, "image_dir": image_dir})
    assert [Path(record["im_file"]).name for record in data.records] == list(names)
    assert convert_cli([str(tmp_path / "set/a.json"), "--to", "voc", "-o", str(tmp_path / "voc")]) == 0
    assert len(os.listdir(tmp_path / "voc/JPEGImages")) == 2


def test_a_missing_image_is_not_replaced_by_one_of_the_same_name(tmp_path):
    section = coco(tmp_path, names=("1.png", "2.png"), written=("other/1.png", "2.png"))
    assert len(build(section)) == 1


def test_the_cure_for_a_wrong_image_dir_works(tmp_path):
    section = coco(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as error:
        build({**section, "image_dir": "empty"})
    assert str(tmp_path / "empty/1.png") in str(error.value)
    key, value = re.search(r"set TrainDataset\.(\w+) to (\S+)", str(error.value)).groups()
    assert len(build({**section, key: value})) == 2


@pytest.mark.parametrize(
    "line", ["D:\\mine\\images\\1.png", "images\\1.png", "data/images/1.png", "../set/images/1.png"]
)
def test_lists_of_another_machine(labels, line):
    text(labels / "train.txt", f"{line}\n")
    section = {"name": "PPFCOSYOLODataSet", "dataset_dir": str(labels), "anno_path": "train.txt"}
    assert [record["im_file"] for record in build(section).records] == [str(labels / "images/1.png")]


@pytest.mark.parametrize(
    "entry", ["images\\", ".\\images", "D:\\mine\\set\\images", "/content/set/images", "../images"]
)
def test_descriptions_of_another_machine(labels, entry):
    text(labels / "data.yaml", f"names: [cat]\npath: 'C:\\mine'\ntrain: '{entry}'\n")
    assert len(build(find_sections(labels)["TrainDataset"])) == 2


def test_a_tilde_is_the_home(labels, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    section = {"name": "PPFCOSYOLODataSet", "dataset_dir": "~/set", "image_set": "train"}
    assert len(build(section)) == 2
    assert [each["name"] for each in categories_of({"TrainDataset": section}, "TrainDataset")] == ["cat"]
    assert check("~/set", tmp_path)[0] == 0


def test_a_linked_folder_is_read_once(labels, tmp_path):
    picture(tmp_path / "elsewhere/3.png")
    (labels / "images/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(labels / "images")
    (labels / "images/self").symlink_to(labels / "images")
    names = [os.path.relpath(path, labels / "images") for path in list_images(labels / "images")]
    assert names == ["1.png", "2.png", "more/3.png"]


# Layouts --------------------------------------------------------------------------------------------------


def layouts() -> dict[str, tuple[dict[str, str], int]]:
    """{tool and format: (its files by path; "" for an image, images in all splits)}."""
    sub = XML.replace("cat", "dog")
    notes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 1200, "iscrowd": 0}]

    def content(name):
        images = [{"id": 1, "file_name": name, "width": WIDTH, "height": HEIGHT}]
        return json.dumps({"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cat"}]})

    return {
        "CVAT COCO": (
            {"annotations/instances_default.json": content("sub/1.png"), "images/default/sub/1.png": ""}, 1,
        ),
        "CVAT VOC": (
            {
                "Annotations/sub/1.xml": XML, "JPEGImages/sub/1.png": "", "Annotations/2.xml": sub,
                "JPEGImages/2.png": "", "ImageSets/Main/default.txt": "sub/1\n2\n", "labelmap.txt": "# a:b\n",
            },
            2,
        ),
        "CVAT YOLO 1.1": (
            {
                "obj.names": "cat\n", "obj.data": "classes = 1\n", "train.txt": "data/obj_train_data/1.png\n",
                "obj_train_data/1.png": "", "obj_train_data/1.txt": ROW,
            },
            1,
        ),
        "CVAT Ultralytics": (
            {
                "data.yaml": "path: ./\ntrain: train.txt\nnames: {0: cat}\n",
                "train.txt": "data/images/train/1.png\n",
                "images/train/1.png": "", "labels/train/1.txt": ROW,
            },
            1,
        ),
        "Label Studio COCO": ({"result.json": content("images\\1.png"), "images/1.png": ""}, 1),
        "Label Studio YOLO": (
            {"classes.txt": "cat\n", "notes.json": '{"categories": [{"id": 0, "name": "cat"}], "info": {}}',
             "images/1.png": "", "labels/1.txt": ROW},
            1,
        ),
        "Label Studio VOC": ({"Annotations/1.xml": XML, "images/1.png": ""}, 1),
        "Roboflow COCO": (
            {"train/_annotations.coco.json": content("1.png"), "train/1.png": "",
             "valid/_annotations.coco.json": content("2.png"), "valid/2.png": ""},
            2,
        ),
        "Roboflow VOC": ({"train/1.xml": XML, "train/1.png": "", "valid/2.xml": XML, "valid/2.png": ""}, 2),
        "Roboflow YOLO": (
            {"data.yaml": "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']\n",
             "train/images/1.png": "", "train/labels/1.txt": ROW, "valid/images/2.png": "",
             "valid/labels/2.txt": ROW},
            2,
        ),
        "LabelImg VOC": ({"1.xml": XML, "1.png": ""}, 1),
        "LabelImg YOLO": ({"1.txt": ROW, "1.png": "", "classes.txt": "cat\n"}, 1),
        "Kaggle VOC": ({"annotations/1.xml": XML, "images/1.png": ""}, 1),
        "YOLO with subfolders": (
            {"images/a/b/1.png": "", "labels/a/b/1.txt": ROW, "images/a/c/1.png": "", "labels/a/c/1.txt": ROW,
             "classes.txt": "cat\n"},
            2,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("tool", layouts())
def test_exports_of_annotation_tools(tmp_path, tool):
    """Found alike by the checker, training and the converter."""
    files, number = layouts()[tool]
    for name, content in files.items():
        text(tmp_path / "set" / name, content) if content else picture(tmp_path / "set" / name)
    sections = find_sections(tmp_path / "set")
    data = [build_dataset(sections, section) for section in sections]
    assert sum(len(each) for each in data) == sum(each.number_of_boxes for each in data) == number
    assert all(each.records[0]["gt_bbox"].tolist() == [[8, 6, 48, 36]] for each in data)
    code, errors = check(tmp_path / "set", tmp_path)
    assert code < 2 and not errors
    assert convert_cli([str(tmp_path / "set"), "--to", "coco", "-o", str(tmp_path / "coco")]) == 0
    written = [json.loads(path.read_text()) for path in (tmp_path / "coco/annotations").iterdir()]
    assert [note["bbox"] for each in written for note in each["annotations"]] == [BOX] * number


LABELME = {
    "shapes": [
        {"label": "cat", "points": [[48, 36], [8, 6]], "shape_type": "rectangle"},
        {"label": "cat", "points": [[8, 6], [48, 6], [20, 36]], "shape_type": "polygon"},
        {"label": "dog", "points": [[1, 1]], "shape_type": "point"},
    ],
    "imagePath": "..\\images\\1.png",
    "imageWidth": WIDTH,
    "imageHeight": HEIGHT,
}
CREATEML = [
    {
        "image": "1.png",
        "annotations": [{"label": "cat", "coordinates": {"x": 28, "y": 21, "width": 40, "height": 30}}],
    }
]


@pytest.mark.parametrize(("content", "boxes"), [(LABELME, 2), (CREATEML, 1)])
def test_the_cure_for_labelme_works(tmp_path, content, boxes, capsys):
    picture(tmp_path / "set/1.png")
    text(tmp_path / "set/1.json", json.dumps(content))
    assert check(tmp_path / "set", tmp_path)[0] == 2
    command = re.search(r"`python tools/convert_data\.py (.*)`", capsys.readouterr().err).group(1)
    assert convert_cli(command.split()) == 0
    printed = capsys.readouterr().out
    assert ("1 shapes without an area" in printed) == (content is LABELME)
    data = build_dataset(find_sections(Path(command.split()[-1])), "TrainDataset")
    assert data.records[0]["gt_bbox"].tolist() == [[8, 6, 48, 36]] * boxes


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", '[{"data": {"image": "x"}, "annotations": []}]', "Label Studio's own JSON"),
        ("annotations.xml", "<annotations><image/></annotations>", "CVAT's own XML"),
        ("a.txt", "hello", "looks like none of"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, name, content, words, capsys):
    text(tmp_path / "set" / name, content)
    target = tmp_path / "set" / name if name.endswith("json") else tmp_path / "set"
    assert check(target, tmp_path)[0] == 2 and words in capsys.readouterr().err
    assert convert_cli([str(target), "--to", "coco", "-o", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


# XML and labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "encoding"), [("gb2312", "gb2312"), ("GBK", "gbk"), ("big5", "big5"), ("Shift_JIS", "cp932")]
)
def test_xml_in_another_encoding(tmp_path, declared, encoding):
    picture(tmp_path / "a.png")
    content = f'<?xml version="1.0" encoding="{declared}"?>' + XML.replace("cat", "中文")
    (tmp_path / "a.xml").write_bytes(content.encode(encoding))
    assert build(find_sections(tmp_path)["TrainDataset"]).class_names == ["中文"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<name>cat</name>", "<name/>", "has no name: name or remove it"),
        ("<name>cat</name>", "", "has no name"),
        ("bndbox>", "robndbox>", "rotated box (robndbox)"),
        ("<xmin>8</xmin>", "", "four numbers"),
        (r"<bndbox>.*</bndbox>", "", "no bndbox"),
    ],
)
def test_objects_of_xml_that_cannot_be_read(tmp_path, old, new, words):
    picture(tmp_path / "a.png")
    text(tmp_path / "a.xml", re.sub(old, new, XML))
    section = {"name": "PPFCOSVOCDataSet", "dataset_dir": str(tmp_path), "image_dir": ".", "anno_dir": "."}
    with pytest.raises(DataError) as error:
        build({**section, "image_set": None, "class_names": ["cat"]})
    assert words in str(error.value) and "a.xml, object 1" in str(error.value)


def test_a_polygon_in_xml_gives_its_box(tmp_path):
    picture(tmp_path / "a.png")
    points = "".join(
        f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(((8, 6), (48, 6), (9, 36)), 1)
    )
    text(tmp_path / "a.xml", re.sub("<bndbox>.*</bndbox>", f"<polygon>{points}</polygon>", XML))
    assert build(find_sections(tmp_path)["TrainDataset"]).records[0]["gt_bbox"].tolist() == [[8, 6, 48, 36]]


KEYPOINTS = " ".join(f"{0.3 + 0.01 * n} {0.3 + 0.02 * n} {n % 3}" for n in range(4))
POINTS = " ".join(f"{0.3 + 0.01 * n} {0.3 + 0.02 * n}" for n in range(5))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("0.9 1", "track"),
        ("0.9 17", "track"),
        (KEYPOINTS, "keypoints"),
        (POINTS, "keypoints"),
        ("3", "track"),
    ],
)
def test_columns_after_a_box_are_no_polygon(labels, extra, words):
    text(labels / "labels/1.txt", f"{ROW.strip()} {extra}\n" * 2)
    with pytest.raises(DataError, match=rf"1\.txt, line 1: .*{words}"):
        build(find_sections(labels)["TrainDataset"])


@pytest.mark.parametrize("points", [4, 5, 8, 12])
def test_polygons_are_polygons(labels, points):
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    ring = np.stack([0.5 + 0.3 * np.cos(angles), 0.5 + 0.2 * np.sin(angles)], axis=1)
    row = " ".join(f"{value:.6f}" for value in ring.ravel())
    text(labels / "labels/1.txt", f"0 {row}\n0 {row}\n")
    [record, _] = build(find_sections(labels)["TrainDataset"]).records
    np.testing.assert_allclose(record["gt_bbox"][0, 2], 64, atol=1e-3)


# Text stays text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (
            "names: [yes, no, on, off, 007, 1e3, null, 2024-01-01, 1_000]",
            "yes no on off 007 1e3 null 2024-01-01 1_000",
        ),
        ("names: {'0': a, '1': b}", "a b"),
        ("names: {1: b, 0: a}\nnc: '2'", "a b"),
        ("names: [a]\nnc: null", "a"),
    ],
)
def test_names_in_a_description_are_text(tmp_path, content, names):
    text(tmp_path / "data.yaml", content)
    assert [each["name"] for each in find_categories(tmp_path)[0]] == names.split()


@pytest.mark.parametrize("folder", ["2024", "007", "1e3", "null"])
def test_folders_called_like_numbers(labels, folder):
    (labels / "images").rename(labels / folder)
    for name in ("1", "2"):
        (labels / f"labels/{name}.txt").rename(labels / folder / f"{name}.txt")
    text(
        labels / "data.yaml",
        f"names: [cat]\npath: .\ntrain: ./{folder}\nval: {folder}\n".replace("val: null\n", ""),
    )
    assert len(build(find_sections(labels)["TrainDataset"])) == 2


def test_paths_in_a_configuration_that_are_no_text(labels):
    (labels / "images").rename(labels / "2024")
    (labels / "labels/1.txt").rename(labels / "2024/1.txt")
    section = {"name": "PPFCOSYOLODataSet", "dataset_dir": str(labels), "image_dir": 2024}
    assert len(build(section)) == 1
    for value in (True, 20.5, ["a"]):
        with pytest.raises(ConfigError, match=r"TrainDataset\.image_dir is .*quotes"):
            build({**section, "image_dir": value})


@pytest.mark.parametrize("name", ["a\ud800", "a\0b", "", "  "])
def test_names_that_cannot_be_written_are_refused(name, tmp_path):
    with pytest.raises(DataError, match="name of class 1"):
        checked_names(["cat", name], "x.yml")


# Classes --------------------------------------------------------------------------------------------------


def test_a_part_of_the_classes_is_matched_by_name(tmp_path):
    section = coco(tmp_path, [{"bbox": BOX, "category_id": 2}, {"bbox": BOX, "image_id": 2}])
    path = tmp_path / "a.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "categories": content["categories"][::-1]}))
    names = ["bird", "cat", "dog"]
    data = build_dataset({"EvalDataset": section, "num_classes": 3}, "EvalDataset", names)
    assert data.class_names == names
    assert [record["gt_class"].tolist() for record in data.records] == [[[2]], [[1]]]
    ids = {each["name"]: each["id"] for each in data.coco_ground_truth()["categories"]}
    assert [note["category_id"] for note in data.coco_ground_truth()["annotations"]] == [
        ids["dog"],
        ids["cat"],
    ]
    cfg = {"EvalDataset": section, "num_classes": 3}
    assert [each["name"] for each in categories_of(cfg, "EvalDataset", names)] == names


def test_merging_many_classes_takes_linear_time():
    """20,000 of them get new ids: in quadratic time that takes minutes."""
    parts = [
        DetectionData(
            "TrainDataset", f"p{part}", [], numbered(f"{part} {number}" for number in range(20_000))
        )
        for part in range(2)
    ]
    merged = merge_categories(parts, [each["name"] for part in parts for each in part.categories])
    assert len({each["id"] for each in merged}) == 40_000


def test_the_classes_of_paddledetections_voc_data_set(tmp_path):
    text(tmp_path / "valid.txt", "".join(f"JPEGImages/{n}.jpg Annotations/{n}.xml\n" for n in range(40)))
    text(tmp_path / "label_list.txt", "cat\ndog\n")
    section = {"name": "VOCDataSet", "dataset_dir": str(tmp_path), "anno_path": "valid.txt"}
    cfg = {"EvalDataset": {**section, "label_list": "label_list.txt"}}
    assert [each["name"] for each in categories_of(cfg, "EvalDataset")] == ["cat", "dog"]
    assert len(categories_of({"EvalDataset": section}, "EvalDataset")) == 20, "VOC's own"


# The converter --------------------------------------------------------------------------------------------


def test_several_splits_for_training_stay(tmp_path):
    import yaml

    for split in ("train1", "train2", "val", "trainval"):
        names = {"trainval": ("v.png", "train1.png")}.get(
            split, (f"{split[:1] if split == 'val' else split}.png",)
        )
        for name in names:
            picture(tmp_path / f"set/JPEGImages/{name}")
            text(tmp_path / f"set/Annotations/{Path(name).stem}.xml", XML)
        text(tmp_path / f"set/ImageSets/Main/{split}.txt", "".join(f"{Path(name).stem}\n" for name in names))
    assert convert_cli([str(tmp_path / "set"), "--to", "yolo", "-o", str(tmp_path / "yolo")]) == 0
    description = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert description["train"] == ["train1.txt", "train2.txt"] and description["val"] == "val.txt"
    sections = find_sections(tmp_path / "yolo")
    assert len(build_dataset(sections, "TrainDataset")) == 2
    assert convert_cli([str(tmp_path / "yolo"), "--to", "coco", "-o", str(tmp_path / "coco")]) == 0
