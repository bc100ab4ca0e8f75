"""The cache of resized images, against the same batches without one; and pixels against the plain path."""

from __future__ import annotations

import contextlib
import os
import time

import cv2
import numpy as np
import pytest

from ppfcos.data.datasets import build_dataset
from ppfcos.data.images import read_image
from ppfcos.data.loader import TrainLoader
from ppfcos.data.transforms.uint8 import UInt8Resize
from ppfcos.errors import ConfigError

RESIZE = {"target_size": [96, 160], "keep_ratio": True, "interp": 1}
TRANSFORMS = [{"Decode": {}}, {"Resize": RESIZE}, {"RandomFlip": {}}, {"Permute": {}}]


@pytest.fixture
def section(tmp_path, tinycoco):
    """Tiny COCO with pictures of its own, which may be changed."""
    (tmp_path / "pictures").mkdir()
    for picture in sorted((tinycoco / "images" / "train2017").iterdir()):
        (tmp_path / "pictures" / picture.name).write_bytes(picture.read_bytes())
    (tmp_path / "train.json").write_bytes(
        (tinycoco / "annotations" / "instances_train2017.json").read_bytes()
    )
    return {
        "name": "COCODataSet", "dataset_dir": str(tmp_path), "anno_path": "train.json",
        "image_dir": "pictures", "allow_empty": True,
    }  # fmt: skip


def batches(section, epochs=(0, 1), workers=0, transforms=TRANSFORMS, **reader):
    reader = {"sample_transforms": transforms, "total_batch_size": 4, "drop_last": False, **reader}
    cfg = {"TrainReader": reader, "worker_num": workers, "seed": 3, "epoch": max(epochs) + 1}
    loader = TrainLoader(cfg, build_dataset({"TrainDataset": section}, "TrainDataset"))
    found = []
    for epoch in epochs:
        loader.set_position(epoch)
        found += [{key: np.array(value) for key, value in part.items()} for [part] in loader]
    return found


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def cached(place, tmp_path, **more):
    return {"image_cache": place, "image_cache_dir": str(tmp_path / "cache"), **more}


def first_picture(section):
    folder = os.path.join(section["dataset_dir"], "pictures")
    return os.path.join(folder, min(os.listdir(folder)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("limit", [8, 0.0005])  # GB: all of them; a few
def test_a_batch_is_the_same_with_and_without_a_cache(section, tmp_path, place, workers, limit):
    wanted = batches(section)
    keys = cached(place, tmp_path, image_cache_gb=limit)
    assert_same(batches(section, workers=workers, **keys), wanted)
    if place == "disk":
        [file] = os.listdir(tmp_path / "cache")
        assert os.path.getsize(tmp_path / "cache" / file) <= limit * 1e9
        assert_same(batches(section, **keys), wanted)


def test_images_come_from_the_cache(section, tmp_path, monkeypatch):
    keys = cached("disk", tmp_path)
    wanted = batches(section, **keys)
    monkeypatch.setattr("ppfcos.data.samples.read_image", None)
    assert_same(batches(section, **keys), wanted)


def test_mosaics_of_cached_images(section, tmp_path):
    mixed = [TRANSFORMS[0], TRANSFORMS[1], {"PPFCOSMosaic": {"size": [96, 160]}}, *TRANSFORMS[2:]]
    keys = cached("memory", tmp_path)
    assert_same(batches(section, transforms=mixed, **keys), batches(section, transforms=mixed))


def test_a_picture_that_changes_is_read_again(section, tmp_path):
    keys = cached("disk", tmp_path)
    batches(section, **keys)
    path = first_picture(section)
    time.sleep(0.01)
    cv2.imwrite(path, 255 - cv2.imread(path))
    assert_same(batches(section, **keys), batches(section))


@pytest.mark.parametrize("damage", ["header", "pixels", "short", "other resize", "other images"])
def test_a_stale_or_broken_cache_is_made_anew(section, tmp_path, damage):
    keys = cached("disk", tmp_path)
    transforms = TRANSFORMS
    batches(section, **keys)
    [name] = os.listdir(tmp_path / "cache")
    path = tmp_path / "cache" / name
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[30] ^= 1
    elif damage == "pixels":
        content[8192:] = bytes(byte ^ 1 for byte in content[8192:])
    elif damage == "short":
        content = content[: len(content) // 2]
    path.write_bytes(content)
    if damage == "other resize":
        transforms = [TRANSFORMS[0], {"Resize": {**RESIZE, "target_size": [64, 160]}}, *TRANSFORMS[2:]]
    elif damage == "other images":
        os.unlink(first_picture(section))
    wanted = batches(section, transforms=transforms)
    for _ in range(2):
        assert_same(batches(section, transforms=transforms, **keys), wanted)


@pytest.mark.parametrize("what", ["empty", "too long", "garbage", "link", "link to nothing", "rows"])
def test_a_cache_that_was_tampered_with_is_made_anew(section, tmp_path, what):
    keys, other = cached("disk", tmp_path), tmp_path / "other"
    wanted = batches(section, **keys)
    [path] = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    other.write_bytes(b"not ours")
    path.unlink()
    if what.startswith("link"):
        path.symlink_to(other if what == "link" else tmp_path / "nothing")
    else:
        noise = np.random.RandomState(0).bytes
        path.write_bytes({
            "empty": b"",
            "too long": content + bytes(1 << 20),
            "garbage": noise(len(content)),
            "rows": content[:4096] + noise(len(content) - 4096),
        }[what])  # fmt: skip
    for _ in range(2):
        assert_same(batches(section, **keys), wanted)
    assert path.stat().st_size == len(content) and other.read_bytes() == b"not ours"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("what", ["pipe", "folder", "link to a pipe"])
def test_what_is_no_file_is_not_replaced_by_a_cache(section, tmp_path, what):
    keys = cached("disk", tmp_path)
    path = tmp_path / "cache" / "train.images"
    path.parent.mkdir()
    if what == "folder":
        path.mkdir()
    else:
        os.mkfifo(path if what == "pipe" else tmp_path / "pipe")
        if what != "pipe":
            path.symlink_to(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"train\.images.*name another folder") as error:
        batches(section, **keys)
    assert "\n" not in str(error.value) and path.exists() and not path.is_file()


@pytest.mark.parametrize("what", ["pipe", "link"])
def test_what_lies_under_the_temporary_name_is_left_alone(section, tmp_path, what):
    keys, unfinished = cached("disk", tmp_path), tmp_path / "cache" / ".train.images.unfinished"
    (tmp_path / "other").write_bytes(b"not ours")
    unfinished.parent.mkdir()
    os.mkfifo(unfinished) if what == "pipe" else unfinished.symlink_to(tmp_path / "other")
    wanted = batches(section)
    with contextlib.suppress(ConfigError):
        assert_same(batches(section, **keys), wanted)
    assert (tmp_path / "other").read_bytes() == b"not ours"


@pytest.mark.parametrize(
    ("transforms", "keys", "words"),
    [
        (
            [TRANSFORMS[0], TRANSFORMS[2], TRANSFORMS[1], TRANSFORMS[3]],
            {},
            "needs Resize right behind Decode",
        ),
        (TRANSFORMS, {"image_cache_dir": None}, "image_cache_dir"),
        (TRANSFORMS, {"image_cache_dir": "/proc/nowhere"}, "name another folder"),
    ],
)
def test_caches_that_cannot_be(section, tmp_path, transforms, keys, words):
    with pytest.raises(ConfigError, match=words) as error:
        batches(section, transforms=transforms, **{**cached("disk", tmp_path), **keys})
    assert "\n" not in str(error.value)


def test_reduced_decoding(section, tmp_path):
    """Pixels a little beside those of the full scale, boxes and sizes the same; the cache knows of it."""
    sizes = [{"Resize": {**RESIZE, "target_size": target}} for target in ([96, 160], [400, 600])]
    for resize in sizes:
        transforms = [TRANSFORMS[0], resize, *TRANSFORMS[2:]]
        full = batches(section, transforms=transforms)
        reduced = batches(section, transforms=transforms, reduced_decoding=True)
        differences = []
        for one, other in zip(full, reduced):
            for key in one:
                if key != "image":
                    np.testing.assert_array_equal(one[key], other[key], err_msg=key)
            differences.append(np.abs(one["image"].astype(int) - other["image"]).mean())
        if resize is sizes[0]:
            assert 0 < np.mean(differences) < 8
            keys = cached("disk", tmp_path)
            assert_same(batches(section, transforms=transforms, **keys), full)
            assert_same(batches(section, transforms=transforms, reduced_decoding=True, **keys), reduced)
        else:
            assert max(differences) == 0, "more than half of the picture is wanted: nothing is reduced"


@pytest.mark.parametrize("keep_ratio", [True, False])
@pytest.mark.parametrize("target", [[96, 160], [800, 1333], [333, 333]])
def test_the_size_that_resize_will_make_is_known(keep_ratio, target):
    resize = UInt8Resize(target, keep_ratio)
    for height, width in [
        (480, 640),
        (640, 427),
        (375, 500),
        (101, 1000),
        (33, 32),
        (1, 7),
        (3, 5000),
        (9999, 1),
    ]:
        sample = resize({"image": np.zeros((height, width, 3), np.uint8)})
        assert sample["image"].shape[:2] == resize.size_of(height, width)


def test_pixels_are_those_of_the_plain_path(section):
    """Decoded, resized and padded with OpenCV alone, as 8-bit pixels."""
    plain = [TRANSFORMS[0], {"Resize": {**RESIZE, "target_size": [800, 1333]}}, TRANSFORMS[3]]
    data = build_dataset({"TrainDataset": section}, "TrainDataset")
    paths = {int(record["im_id"][0]): record["im_file"] for record in data.records}
    for batch in batches(section, epochs=(0,), transforms=plain):
        for number, image in zip(batch["im_id"].ravel(), batch["image"]):
            decoded = cv2.cvtColor(cv2.imread(paths[number]), cv2.COLOR_BGR2RGB)
            np.testing.assert_array_equal(read_image(paths[number]), decoded)
            scale = min(800 / min(decoded.shape[:2]), 1333 / max(decoded.shape[:2]))
            resized = cv2.resize(decoded, None, fx=scale, fy=scale)
            height, width = resized.shape[:2]
            np.testing.assert_array_equal(image[:, :height, :width], resized.transpose(2, 0, 1))
            assert not image[:, height:].any() and not image[:, :, width:].any()
