"""Write tests/fixtures: a few BCCD photographs in Pascal VOC layout, and the same photographs in COCO layout.

The tests use them where PPFCOS_TEST_DATA has no larger data sets.

    python scripts/make_test_fixtures.py BCCD

BCCD is a folder with Annotations, ImageSets, JPEGImages and LICENSE (github.com/Shenggan/BCCD_Dataset,
MIT licence). The COCO part has COCO's 80 categories, crowd boxes and images without objects. Cells are
labelled with three of these categories: the part tests file formats, not accuracy.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path
from xml.etree import ElementTree

import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
WITHOUT_AREA = ("BloodImage_00338", "BloodImage_00343")  # the two photographs with a box of no area
PHOTOGRAPHS_PER_SPLIT = 6
# Images, crowd boxes and first annotation id.
COCO_SPLITS = {"train2017": (32, 4, 1), "val2017": (6, 1, 1001)}
CATEGORY_IDS = {"RBC": 1, "WBC": 37, "Platelets": 90}
UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
SUPERCATEGORIES = {  # with their largest category id
    "person": 1, "vehicle": 9, "outdoor": 15, "animal": 25, "accessory": 33, "sports": 43, "kitchen": 51,
    "food": 61, "furniture": 70, "electronic": 77, "appliance": 82, "indoor": 90,
}  # fmt: skip
SIZES = [(480, 360), (360, 480), (500, 375), (427, 320), (320, 320)]


def read_objects(path: Path) -> list[tuple[str, list[float]]]:
    """Name and x0, y0, x1, y1 of each object with an area."""
    objects = []
    for node in ElementTree.parse(path).iter("object"):
        box = [float(node.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        if box[0] < box[2] and box[1] < box[3]:
            objects.append((node.findtext("name"), box))
    return objects


def write_voc(source: Path, target: Path) -> list[str]:
    """Copy a part of BCCD and return the names of its photographs."""
    lists = target / "ImageSets" / "Main"
    for folder in (target / "Annotations", target / "JPEGImages", lists):
        folder.mkdir(parents=True)
    shutil.copy(source / "LICENSE", target)
    chosen: set[str] = set()
    for split in ("train", "val", "test", "trainval"):
        names = (source / "ImageSets" / "Main" / f"{split}.txt").read_text(encoding="utf-8").split()
        if split == "trainval":
            names = [name for name in names if name in chosen]
        else:
            names = [
                name for i, name in enumerate(names) if i < PHOTOGRAPHS_PER_SPLIT or name in WITHOUT_AREA
            ]
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        if split != "test":
            chosen |= set(names)
        for name in names:
            shutil.copyfile(source / "Annotations" / f"{name}.xml", target / "Annotations" / f"{name}.xml")
            shutil.copyfile(source / "JPEGImages" / f"{name}.jpg", target / "JPEGImages" / f"{name}.jpg")
    return sorted(path.stem for path in (target / "Annotations").iterdir())


def coco_categories() -> list[dict]:
    """COCO's 80 categories, with the names of configs/datasets/yolo.yml."""
    config = yaml.safe_load((ROOT / "configs" / "datasets" / "yolo.yml").read_text(encoding="utf-8"))
    names = config["TrainDataset"]["class_names"]
    ids = [number for number in range(1, 91) if number not in UNUSED_IDS]
    supercategory = {
        number: next(name for name, last in SUPERCATEGORIES.items() if number <= last) for number in ids
    }
    return [
        {"supercategory": supercategory[number], "id": number, "name": name}
        for number, name in zip(ids, names)
    ]


def annotation(number: int, image: dict, category: int, box: list[float], crowd: bool) -> dict:
    """One object in COCO's format; the segmentation is the box."""
    x0, y0, x1, y1 = (round(side, 2) for side in box)
    width, height = round(x1 - x0, 2), round(y1 - y0, 2)
    segmentation: object = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    if crowd:
        size = [image["height"], image["width"]]
        segmentation = {"counts": [0, size[0] * size[1]], "size": size}
    return {
        "id": number,
        "image_id": image["id"],
        "category_id": category,
        "bbox": [x0, y0, width, height],
        "area": round(width * height, 2),
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }


def write_coco(voc: Path, names: list[str], target: Path) -> None:
    """Write resized crops of the photographs with their annotations."""
    rng = random.Random(0)
    (target / "annotations").mkdir(parents=True)
    shutil.copy(voc / "LICENSE", target)
    for split, (num_images, num_crowds, first_id) in COCO_SPLITS.items():
        folder = target / "images" / split
        folder.mkdir(parents=True)
        images, annotations = [], []
        for index in range(num_images):
            name, (width, height) = names[rng.randrange(len(names))], rng.choice(SIZES)
            photograph = Image.open(voc / "JPEGImages" / f"{name}.jpg").convert("RGB")
            scale = max(width / photograph.width, height / photograph.height)
            left = rng.uniform(0, photograph.width - width / scale)
            top = rng.uniform(0, photograph.height - height / scale)
            crop = (left, top, left + width / scale, top + height / scale)
            number = rng.randrange(1000, 999999)
            image = {"id": number, "file_name": f"{number:012}.jpg", "width": width, "height": height}
            photograph.resize((width, height), Image.Resampling.BICUBIC, box=crop).save(
                folder / image["file_name"], quality=80
            )
            images.append(image)
            if split == "train2017" and index in (5, 20):
                continue  # an image without objects
            objects = []
            for label, (x0, y0, x1, y1) in read_objects(voc / "Annotations" / f"{name}.xml"):
                box = [(x0 - left) * scale, (y0 - top) * scale, (x1 - left) * scale, (y1 - top) * scale]
                box = [min(max(side, 0), limit) for side, limit in zip(box, (width, height) * 2)]
                if box[2] - box[0] > 4 and box[3] - box[1] > 4:
                    objects.append((label, box))
            for position, (label, box) in enumerate(objects):
                crowd = index < num_crowds and position == 0 and len(objects) > 1
                annotations.append(
                    annotation(first_id + len(annotations), image, CATEGORY_IDS[label], box, crowd)
                )
        content = {
            "info": {"description": "Photographs of BCCD (MIT licence) in COCO's format"},
            "licenses": [{"id": 1, "name": "MIT", "url": "https://github.com/Shenggan/BCCD_Dataset"}],
            "images": images,
            "annotations": annotations,
            "categories": coco_categories(),
        }
        path = target / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> None:
    """Write both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bccd", type=Path, help="folder of the whole BCCD data set")
    source = parser.parse_args().bccd
    for name in ("bccd", "tinycoco"):
        shutil.rmtree(FIXTURES / name, ignore_errors=True)
    names = write_voc(source, FIXTURES / "bccd")
    write_coco(FIXTURES / "bccd", names, FIXTURES / "tinycoco")


if __name__ == "__main__":
    main()
