"""What reading does to pictures that are not plain ones in colour, as Pillow wrote them, and its log line."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image

from ppfcos.data.datasets import build_dataset
from ppfcos.data.images import image_size, load_events, read_image
from ppfcos.data.loader import TrainLoader
from ppfcos.data.statistics import LoadEvent
from ppfcos.engine.prefetcher import Prefetcher

WIDTH, HEIGHT = 80, 60
ORIENTATION = 0x0112
PICTURES = {  # name: Pillow's mode, EXIF orientation, what is done to it
    "plain.jpg": ("RGB", 1, []),
    "plain.png": ("RGB", 1, []),
    "grey.jpg": ("L", 1, [LoadEvent.GRAYSCALE]),
    "grey.png": ("L", 1, [LoadEvent.GRAYSCALE]),
    "ink.jpg": ("CMYK", 1, [LoadEvent.CMYK]),
    "palette.png": ("P", 1, [LoadEvent.PALETTE]),
    "deep.png": ("I;16", 1, [LoadEvent.GRAYSCALE, LoadEvent.SIXTEEN_BIT]),
    "glass.png": ("RGBA", 1, [LoadEvent.ALPHA]),
    "turned.jpg": ("RGB", 6, [LoadEvent.ROTATED]),
}


@pytest.fixture
def pictures(tmp_path):
    """A data set in COCO's format; every picture is 80 wide and 60 high as it is seen."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for number, (name, (mode, orientation, _)) in enumerate(PICTURES.items(), start=1):
        stored = (HEIGHT, WIDTH) if orientation == 6 else (WIDTH, HEIGHT)
        noise = np.random.default_rng(number).integers(0, 255, (*stored[::-1], 3), np.uint8)
        if mode == "I;16":
            picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 256)
        else:
            picture = Image.fromarray(noise).convert(mode)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        picture.save(tmp_path / name, **({"exif": exif} if orientation != 1 else {}))
        content["images"].append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        box = {"bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0}
        content["annotations"].append({"id": number, "image_id": number, "category_id": 1, **box})
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("name", PICTURES)
def test_events_of_an_image(pictures, name):
    assert load_events(str(pictures / name), (HEIGHT, WIDTH)) == PICTURES[name][2]


def test_no_rotation_if_the_boxes_are_on_the_stored_pixels(pictures):
    assert load_events(str(pictures / "turned.jpg"), (WIDTH, HEIGHT)) == []


def test_files_without_an_image(pictures):
    (pictures / "text.jpg").write_text("no picture")
    for name in ("text.jpg", "missing.jpg", "."):
        assert load_events(str(pictures / name), (HEIGHT, WIDTH)) == []


@pytest.mark.parametrize("worker_num", [0, 2])
def test_the_log_counts_them_once(pictures, worker_num, caplog):
    section = {
        "name": "COCODataSet",
        "dataset_dir": str(pictures),
        "image_dir": "",
        "anno_path": "annotations.json",
    }
    operators = [{"Decode": {}}, {"Resize": {"target_size": [64, 96], "keep_ratio": True}}, {"Permute": {}}]
    reader = {
        "sample_transforms": operators,
        "batch_transforms": [{"PadBatch": {"pad_to_stride": 32}}],
        "total_batch_size": 3,
    }
    cfg = {"num_classes": 1, "worker_num": worker_num, "seed": 0, "epoch": 2, "TrainDataset": section}
    feed = Prefetcher(TrainLoader({**cfg, "TrainReader": reader}, build_dataset(cfg, "TrainDataset")), 0)
    caplog.set_level(logging.INFO, "ppfcos.engine.prefetcher")
    for epoch in range(2):
        feed.start_epoch(epoch)
        while feed.current:
            feed.advance(values=feed.current[0]["scale_factor"][0])
        feed.report_changes()
    [line] = [record.getMessage() for record in caplog.records if record.name == "ppfcos.engine.prefetcher"]
    assert line == (
        "TrainDataset: rotated 1 image with an EXIF orientation; converted 3 grayscale images, "
        "1 palette image, 1 CMYK image, 1 16-bit image, 1 image with alpha"
    )


@pytest.mark.parametrize("position", ["before", "after"])
def test_image_size_of_a_png_with_exif_on_either_side_of_its_pixels(tmp_path, position):
    path = tmp_path / "x.png"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(path, exif=exif)
    content = path.read_bytes()
    if position == "after":
        start = content.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        chunk, rest = content[start:end], content[:start] + content[end:]
        content = rest[:-12] + chunk + rest[-12:]  # before IEND
        path.write_bytes(content)
    assert image_size(path) == read_image(path).shape[:2]
