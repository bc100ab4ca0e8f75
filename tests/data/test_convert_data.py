"""Data sets from format to format, against the original files as json and ElementTree read them."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from ppfcos.cli.convert_data import main
from ppfcos.data.convert.convert import convert, detect_format
from ppfcos.data.datasets import build_dataset
from ppfcos.errors import DataError

SPLITS = ("train2017", "val2017")
SIDES = ("xmin", "ymin", "xmax", "ymax")
DETECTION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def annotations_of(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def boxes_by_file(content: dict, crowds: bool = True) -> dict[str, list]:
    """{file name: [(class name, x, y, width, height), ...]} of an annotation file."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    found = {file_name: [] for file_name in files.values()}
    for note in content["annotations"]:
        if crowds or not note["iscrowd"]:
            found[files[note["image_id"]]].append((names[note["category_id"]], *note["bbox"]))
    return found


def objects_of(xml_file: Path) -> list[tuple]:
    root = ElementTree.parse(xml_file).getroot()
    return [
        (
            node.findtext("name"),
            *(float(node.findtext(f"bndbox/{side}")) for side in SIDES),
            node.findtext("difficult"),
            node.findtext("truncated"),
        )
        for node in root.iter("object")
    ]


def write_coco(folder: Path, split: str = "train", **image) -> dict:
    """One picture of 80x60 with one box, and its annotation file."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    cv2.imwrite(str(folder / split / "1.png"), np.zeros((60, 80, 3), np.uint8))
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 80, "height": 60, **image}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 6, 40, 30], "area": 1200}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return content


@pytest.fixture(scope="module")
def chains(tinycoco, tmp_path_factory) -> Path:
    """tinycoco as VOC and as YOLO, and both of them as COCO again."""
    folder = tmp_path_factory.mktemp("chains")
    assert run(tinycoco, "--to", "voc", "-o", folder / "voc") == 0
    assert run(folder / "voc", "--to", "coco", "-o", folder / "voc_coco") == 0
    assert run(tinycoco, "--to", "yolo", "-o", folder / "yolo") == 0
    assert run(folder / "yolo", "--to", "coco", "-o", folder / "yolo_coco") == 0
    return folder


# COCO there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_coco_to_voc_to_coco(tinycoco, chains, split):
    original, back = annotations_of(tinycoco, split), annotations_of(chains / "voc_coco", split)
    assert boxes_by_file(back) == boxes_by_file(original)
    assert [c["name"] for c in back["categories"]] == [c["name"] for c in original["categories"]]
    keys = ("id", "file_name", "width", "height")
    assert [[i[k] for k in keys] for i in back["images"]] == [
        [i[k] for k in keys] for i in original["images"]
    ]
    for content in (original, back):
        content["annotations"].sort(key=lambda note: (note["image_id"], note["bbox"], note["area"]))
    kept = ("image_id", "area", "iscrowd")
    assert [[note[key] for key in kept] for note in back["annotations"]] == [
        [note[key] for key in kept] for note in original["annotations"]
    ]
    assert not any("difficult" in note for note in back["annotations"]), "it is set for crowds only"


@pytest.mark.parametrize("split", SPLITS)
def test_coco_to_yolo_to_coco(tinycoco, chains, split):
    original, back = annotations_of(tinycoco, split), annotations_of(chains / "yolo_coco", split)
    assert boxes_by_file(back) == boxes_by_file(original, crowds=False)
    ids = [{"id": c["id"], "name": c["name"]} for c in original["categories"]]
    assert back["categories"] == ids, "numbers with gaps, which YOLO has no place for but data.yaml has"
    assert {i["id"]: (i["width"], i["height"]) for i in back["images"]} == {
        i["id"]: (i["width"], i["height"]) for i in original["images"]
    }


def test_coco_to_coco_keeps_everything(tinycoco, tmp_path):
    assert (
        run(tinycoco, "--to", "coco", "-o", tmp_path / "out", "--split", "val2017", "--images", "copy") == 0
    )
    assert annotations_of(tmp_path / "out", "val2017") == annotations_of(tinycoco, "val2017")
    assert [path.name for path in (tmp_path / "out/annotations").iterdir()] == ["instances_val2017.json"]
    copied = sorted((tmp_path / "out/val2017").iterdir())
    assert len(copied) == 6 and not any(path.is_symlink() for path in copied)
    source = tinycoco / "images/val2017"
    assert all(path.read_bytes() == (source / path.name).read_bytes() for path in copied)


@pytest.mark.parametrize("split", SPLITS)
def test_the_xml_says_what_coco_said(tinycoco, chains, split):
    wanted, original = boxes_by_file(annotations_of(tinycoco, split)), annotations_of(tinycoco, split)
    names = (chains / f"voc/ImageSets/Main/{split}.txt").read_text().split()
    assert [f"{name}.jpg" for name in names] == [image["file_name"] for image in original["images"]]
    for file_name, boxes in wanted.items():
        found = objects_of(chains / "voc/Annotations" / f"{Path(file_name).stem}.xml")
        assert [row[0] for row in found] == [box[0] for box in boxes]
        corners = [(x, y, x + width, y + height) for _, x, y, width, height in boxes]
        np.testing.assert_allclose(
            np.reshape([row[1:5] for row in found], (-1, 4)), np.reshape(corners, (-1, 4)), rtol=0, atol=1e-6
        )
    crowds = sum(note["iscrowd"] for note in original["annotations"])
    marked = [
        node.findtext("difficult")
        for name in names
        for node in ElementTree.parse(chains / f"voc/Annotations/{name}.xml").iter("object")
        if node.findtext("iscrowd") == "1"
    ]
    assert marked == ["1"] * crowds


@pytest.mark.parametrize("split", SPLITS)
def test_the_labels_say_what_coco_said(tinycoco, chains, split):
    """In the layout of coco2017labels.zip; read as the format is defined."""
    original = annotations_of(tinycoco, split)
    description = yaml.safe_load((chains / "yolo/data.yaml").read_text())
    assert description[split[:-4]] == f"{split}.txt" and "path" not in description
    listed = (chains / "yolo" / f"{split}.txt").read_text().split()
    assert listed == [f"./images/{split}/{image['file_name']}" for image in original["images"]]
    wanted = boxes_by_file(original, crowds=False)
    for image in original["images"]:
        picture = chains / "yolo/images" / split / image["file_name"]
        assert picture.resolve() == (tinycoco / "images" / split / image["file_name"]).resolve()
        label_file = chains / "yolo/labels" / split / f"{picture.stem}.txt"
        assert label_file.exists() == bool(wanted[image["file_name"]])
        rows = [line.split() for line in label_file.read_text().splitlines()] if label_file.exists() else []
        assert [description["names"][int(row[0])] for row in rows] == [
            b[0] for b in wanted[image["file_name"]]
        ]
        for (_, *numbers), (_, x, y, width, height) in zip(rows, wanted[image["file_name"]]):
            centre = ((x + width / 2) / image["width"], (y + height / 2) / image["height"])
            sides = (width / image["width"], height / image["height"])
            np.testing.assert_allclose([float(number) for number in numbers], [*centre, *sides], atol=1e-11)


def test_what_is_lost_is_said(tinycoco, tmp_path, capsys):
    notes = [note for split in SPLITS for note in annotations_of(tinycoco, split)["annotations"]]
    crowds = sum(note["iscrowd"] for note in notes)
    assert run(tinycoco, "--to", "yolo", "-o", tmp_path / "yolo", "--images", "none") == 0
    said = capsys.readouterr().out
    assert f"lost: {crowds} crowd boxes are left out" in said
    assert f"lost: {len(notes)} annotations lose their segmentation" in said
    assert "lost: 80 categories lose their supercategory" in said
    assert not list((tmp_path / "yolo").rglob("*.jpg"))
    assert run(tinycoco, "--to", "voc", "-o", tmp_path / "voc", "--images", "none") == 0
    said = capsys.readouterr().out
    assert f"note: {crowds} crowd boxes are marked <iscrowd>" in said
    assert run(tinycoco, "--to", "coco", "-o", tmp_path / "coco", "--images", "none") == 0
    assert "nothing is lost" in capsys.readouterr().out


# Pascal VOC there and back ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells(bccd, tmp_path_factory) -> Path:
    """BCCD as COCO and as YOLO, and both of them as VOC again."""
    folder = tmp_path_factory.mktemp("cells")
    for wanted in ("coco", "yolo"):
        assert run(bccd, "--to", wanted, "-o", folder / wanted) == 0
        assert run(folder / wanted, "--to", "voc", "-o", folder / f"{wanted}_voc") == 0
    return folder


def test_bccd_as_coco(bccd, cells):
    for split in ("train", "val", "test", "trainval"):
        content = annotations_of(cells / "coco", split)
        names = (bccd / f"ImageSets/Main/{split}.txt").read_text().split()
        found = boxes_by_file(content)
        assert list(found) == [f"{name}.jpg" for name in names]
        for name in names:
            wanted = [
                (kind, x0, y0, x1 - x0, y1 - y0)
                for kind, x0, y0, x1, y1, *_ in objects_of(bccd / "Annotations" / f"{name}.xml")
            ]
            assert found[f"{name}.jpg"] == wanted, "boxes without area, too"
        index = COCO(cells / "coco/annotations" / f"instances_{split}.json")
        assert len(index.getAnnIds()) == len(content["annotations"])
    assert len(list((cells / "coco/images").iterdir())) == len(list((bccd / "JPEGImages").iterdir()))


def test_bccd_through_coco_is_the_same(bccd, cells):
    assert sorted(os.listdir(cells / "coco_voc/Annotations")) == sorted(os.listdir(bccd / "Annotations"))
    for path in (bccd / "Annotations").iterdir():
        assert objects_of(cells / "coco_voc/Annotations" / path.name) == objects_of(path)
    for path in (bccd / "ImageSets/Main").iterdir():
        assert (cells / "coco_voc/ImageSets/Main" / path.name).read_text().split() == path.read_text().split()


def test_bccd_through_yolo_has_the_same_boxes(bccd, cells):
    for path in (bccd / "Annotations").iterdir():
        found = objects_of(cells / "yolo_voc/Annotations" / path.name)
        assert [row[:5] for row in found] == [row[:5] for row in objects_of(path)]
    assert sorted(os.listdir(cells / "yolo_voc/ImageSets/Main")) == [
        "test.txt",
        "train.txt",
        "trainval.txt",
        "val.txt",
    ]


def test_the_sections_that_it_names_can_be_read(bccd, tmp_path):
    counts = {}
    for wanted in ("coco", "voc", "yolo"):
        done = convert(bccd, wanted, tmp_path / wanted)
        assert done.source_format == "voc" and done.images == len(list((bccd / "JPEGImages").iterdir()))
        section = {**done.sections["val"], "allow_empty": True}
        data = build_dataset({"TrainDataset": section}, "TrainDataset")
        assert sorted(data.class_names) == ["Platelets", "RBC", "WBC"]
        counts[wanted] = [
            (Path(r["im_file"]).name, len(r["gt_bbox"]), r["gt_bbox"].sum().round(1)) for r in data.records
        ]
    assert counts["coco"] == counts["voc"] == counts["yolo"]


# The edges of the formats -------------------------------------------------------------------------


def test_boxes_over_the_edge_in_yolo(tmp_path, capsys):
    """A number outside of 0 to 1 makes YOLO's tools throw the picture away."""
    content = write_coco(tmp_path / "coco")
    over, far_over, outside = [-4, 10, 40, 20], [-60, 10, 90, 20], [100, 10, 20, 20]
    content["annotations"] = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": box}
        for number, box in enumerate((over, far_over, outside), start=1)
    ]
    (tmp_path / "coco/annotations/instances_train.json").write_text(json.dumps(content))
    assert run(tmp_path / "coco", "--to", "yolo", "-o", tmp_path / "yolo") == 0
    rows = [line.split()[1:] for line in (tmp_path / "yolo/labels/train/1.txt").read_text().splitlines()]
    kept, clipped = ([float(number) for number in row] for row in rows)
    np.testing.assert_allclose(kept, [16 / 80, 20 / 60, 40 / 80, 20 / 60], atol=1e-11)
    np.testing.assert_allclose(clipped, [15 / 80, 20 / 60, 30 / 80, 20 / 60], atol=1e-11)
    said = capsys.readouterr().out
    assert "1 boxes are clipped" in said and "1 boxes outside their image" in said


def test_marks_of_voc_in_coco(tmp_path):
    folder = tmp_path / "voc"
    for part in ("Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    cv2.imwrite(str(folder / "JPEGImages/a.png"), np.zeros((60, 80, 3), np.uint8))
    node = (
        "<object><name>cat</name><pose>Left</pose><truncated>1</truncated><difficult>1</difficult><bndbox>"
        "<xmin>1.5</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
    )
    (folder / "Annotations/a.xml").write_text(f"<annotation>{node}</annotation>")
    convert(folder, "coco", tmp_path / "coco")
    [note] = annotations_of(tmp_path / "coco", "all")["annotations"]
    assert note["bbox"] == [1.5, 2, 28.5, 38] and note["area"] == 28.5 * 38 and note["iscrowd"] == 0
    assert (note["difficult"], note["truncated"], note["pose"]) == (1, 1, "Left")
    [image] = annotations_of(tmp_path / "coco", "all")["images"]
    assert (image["width"], image["height"]) == (80, 60), "from the picture, for the XML does not say"
    convert(tmp_path / "coco", "voc", tmp_path / "back")
    root = ElementTree.parse(tmp_path / "back/Annotations/a.xml").getroot()
    values = [root.findtext(f"object/{tag}") for tag in ("pose", "truncated", "difficult", "bndbox/xmin")]
    assert values == ["Left", "1", "1", "1.5"]


def test_two_pictures_of_one_name(tmp_path, capsys):
    """Pascal VOC has one folder for all pictures."""
    for split in ("train", "val"):
        write_coco(tmp_path / "coco", split)
    assert run(tmp_path / "coco", "--to", "voc", "-o", tmp_path / "voc") == 0
    assert "note: 1 images are renamed" in capsys.readouterr().out
    for split, name in (("train", "1"), ("val", "val_1")):
        assert (tmp_path / f"voc/ImageSets/Main/{split}.txt").read_text() == f"{name}\n"
        assert (tmp_path / f"voc/JPEGImages/{name}.png").resolve() == tmp_path / "coco" / split / "1.png"


def test_a_file_name_does_not_lead_out_of_the_folder(tmp_path):
    write_coco(tmp_path / "coco", file_name="../train/../../coco/train/1.png")
    for wanted in ("coco", "voc", "yolo"):
        convert(tmp_path / "coco", wanted, tmp_path / "new" / wanted, place="copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "new"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["coco", "voc", "yolo"]


def test_splits_that_contradict_each_other(tmp_path):
    content = write_coco(tmp_path / "coco")
    content["annotations"][0]["bbox"] = [0, 0, 9, 9]
    (tmp_path / "coco/annotations/instances_other.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"1\.png has other annotations in train than"):
        convert(tmp_path / "coco", "voc", tmp_path / "voc", image_dir=tmp_path / "coco/train")
    assert not (tmp_path / "voc").exists()


def test_guessing_the_format(tinycoco, bccd, tmp_path):
    assert detect_format(tinycoco) == detect_format(tinycoco / "annotations/instances_val2017.json") == "coco"
    assert detect_format(bccd) == detect_format(bccd / "Annotations") == "voc"
    (tmp_path / "labels").mkdir()
    assert detect_format(tmp_path) == "yolo"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val2017.json").write_text("{}")
    with pytest.raises(DataError, match=r"looks like coco and yolo: .*--from"):
        detect_format(tmp_path)


# All or nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{out}/nowhere", "--to", "voc", "-o", "{out}/x"], "nowhere is not there"),
        (["{out}", "--to", "voc", "-o", "{out}/x"], "looks like none of coco, voc, yolo"),
        (["{coco}", "--to", "voc", "-o", "{full}"], "exists: choose another folder"),
        (["{coco}", "--to", "voc", "-o", "{full}/mine.txt"], "exists: choose another folder"),
        (["{coco}", "--to", "voc", "-o", "{coco}", "--overwrite"], "is or holds the data set"),
        (["{coco}", "--to", "voc", "-o", "{out}/file/x"], "cannot be written"),
        (["{coco}", "--to", "voc", "-o", "{out}/x", "--split", "test"], "no split 'test'; it has: train"),
        (["{coco}", "--to", "voc", "-o", "{out}/x", "--class_names", "{names}"], "--class_names"),
        (["{coco}", "--from", "voc", "--to", "yolo", "-o", "{out}/x"], "no XML"),
        (["{coco}", "--from", "yolo", "--to", "voc", "-o", "{out}/x"], "does not say what its classes"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path, capsys, arguments, said):
    write_coco(tmp_path / "coco")
    places = {"coco": tmp_path / "coco", "full": tmp_path / "full", "out": tmp_path / "out"}
    for name in ("full", "out"):
        places[name].mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "out/file").write_text("")
    (tmp_path / "names").write_text("cat\n")
    before = sorted(tmp_path.rglob("*"))
    assert run(*(text.format(names=tmp_path / "names", **places) for text in arguments)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_leaves_the_old_folder(tmp_path):
    """The size of a picture that is not there is missed only while the labels are being written."""
    write_coco(tmp_path / "coco", file_name="absent.png", width=0)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/old.txt").write_text("old")
    with pytest.raises(DataError, match=r"absent\.png"):
        convert(tmp_path / "coco", "yolo", tmp_path / "new", overwrite=True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["old.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "new"]


def test_overwriting_replaces_everything(tmp_path):
    write_coco(tmp_path / "coco")
    (tmp_path / "new").mkdir()
    convert(tmp_path / "coco", "voc", tmp_path / "new")
    convert(tmp_path / "coco", "yolo", tmp_path / "new", overwrite=True)
    assert detect_format(tmp_path / "new") == "yolo"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "new"]
