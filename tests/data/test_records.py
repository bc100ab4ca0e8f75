"""Records in arrays, against the dicts that they were made of; and their cache on disk, against the files."""

from __future__ import annotations

import json
import logging
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfcos.data.datasets import build_dataset
from ppfcos.data.records import DetectionData, EpochSampling, RecordStore


def a_record(draw, number):
    count = draw(st.integers(0, 3))
    random = np.random.RandomState(draw(st.integers(0, 1000)))
    record = {
        "im_file": draw(st.sampled_from(["/a/b/é 1.jpg", "/a/b/2.jpg", "/a/c.png", "x"])),
        "im_id": np.array([number * 10**10], dtype=np.int64),
    }
    most = draw(st.sampled_from([2, 300, 70000]))
    values = {
        "h": draw(st.sampled_from([0, 480, 1000000])),
        "w": draw(st.sampled_from([0, 640, 3])),
        "gt_bbox": random.uniform(0, 500, [count, 4]).astype(np.float32),
        "gt_class": random.randint(0, most, [count, 1]).astype(np.int32),
        "is_crowd": random.randint(0, 2, [count, 1]).astype(np.int32),
        "difficult": random.randint(0, 2, [count, 1]).astype(np.int32),
    }
    if draw(st.booleans()):  # pictures to be looked at only have none of it
        record.update(
            {key: value for key, value in values.items() if key != "difficult" or draw(st.booleans())}
        )
    return record


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert type(one[key]) is type(other[key]), key
        np.testing.assert_array_equal(one[key], other[key])
        if isinstance(one[key], np.ndarray):
            assert one[key].dtype == other[key].dtype and one[key].shape == other[key].shape


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 6))
def test_records_come_out_as_they_went_in(data, count):
    records = [data.draw(st.composite(lambda draw, n=n: a_record(draw, n))()) for n in range(count)]
    store = RecordStore.from_records(records)
    assert len(store) == count
    for one, other in zip(store, records):
        assert_equal(one, other)
    for one, other in zip(store[::-1], records[::-1]):
        assert_equal(one, other)
    if records:
        assert_equal(store[-1], records[-1])
    with pytest.raises(IndexError):
        store[count]
    assert store.number_of_boxes() == sum(len(record.get("gt_bbox", ())) for record in records)


def test_to_change_a_record_changes_nothing_else():
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    store = RecordStore.from_records([{"im_file": "a", "im_id": np.array([1]), "gt_bbox": boxes}])
    store[0]["gt_bbox"][:] = 0
    store[0]["im_id"][:] = 0
    assert store[0]["gt_bbox"].tolist() == [[1, 2, 3, 4]] and store[0]["im_id"].tolist() == [1]


def test_a_million_images_with_seven_boxes_take_250_mb_at_most():
    count = 2000
    record = {
        "h": 480.0, "w": 640.0,
        "gt_bbox": np.ones([7, 4], np.float32), "gt_class": np.full([7, 1], 79, np.int32),
        "is_crowd": np.zeros([7, 1], np.int32),
    }  # fmt: skip
    store = RecordStore.from_records(
        {"im_file": f"/data/coco/train2017/{n:012d}.jpg", "im_id": np.array([n]), **record}
        for n in range(count)
    )
    size = sum(column.nbytes for column in store.columns.values())
    assert size / count * 1_000_000 <= 250e6


@pytest.fixture
def section(tmp_path, tinycoco):
    """A copy of tiny COCO's annotations beside its images, and a cache for it."""
    (tmp_path / "images").symlink_to(tinycoco / "images")
    content = json.loads((tinycoco / "annotations" / "instances_train2017.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(content))
    keys = {
        "name": "COCODataSet", "dataset_dir": str(tmp_path), "anno_path": "train.json",
        "image_dir": "images/train2017", "allow_empty": True,
    }  # fmt: skip
    return {"TrainDataset": keys, "annotation_cache": str(tmp_path / "cache")}


def the_file(section):
    [name] = os.listdir(section["annotation_cache"])
    return os.path.join(section["annotation_cache"], name)


def assert_as_without_a_cache(section):
    wanted = build_dataset({**section, "annotation_cache": None}, "TrainDataset")
    found = build_dataset(section, "TrainDataset")
    assert found.categories == wanted.categories and len(found) == len(wanted)
    for one, other in zip(found.records, wanted.records):
        assert_equal(one, other)
    assert found.coco_ground_truth() == wanted.coco_ground_truth()


def test_annotations_from_the_cache_are_the_file(section, monkeypatch):
    assert_as_without_a_cache(section)
    assert_as_without_a_cache(section)
    with monkeypatch.context() as patch:
        patch.setattr("ppfcos.data.formats.coco.read_coco", None)  # not called where the cache serves
        build_dataset(section, "TrainDataset")


def test_a_stale_cache_is_made_anew(section, tmp_path):
    images = len(build_dataset(section, "TrainDataset"))
    content = json.loads((tmp_path / "train.json").read_text())
    content["images"] = content["images"][1:]
    time.sleep(0.01)
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert len(build_dataset(section, "TrainDataset")) == images - 1
    assert_as_without_a_cache(section)
    section["TrainDataset"]["allow_empty"] = False
    assert_as_without_a_cache(section)


@pytest.mark.parametrize("kept", [0, 100, 0.5, -1])
def test_a_broken_cache_is_made_anew(section, kept, caplog):
    build_dataset(section, "TrainDataset")
    path = the_file(section)
    with open(path, "rb") as stream:
        whole = stream.read()
    with open(path, "wb") as stream:
        if kept == -1:  # flip a bit of the boxes, whose array follows its name and a header
            place = whole.index(b"gt_bbox.npy") + 170
            stream.write(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        else:
            stream.write(whole[: int(kept * len(whole)) if kept < 1 else kept])
    assert_as_without_a_cache(section)
    assert "is broken and is made anew" in caplog.text
    caplog.clear()
    assert_as_without_a_cache(section)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_cache_may_change_while_it_is_used(section):
    build_dataset(section, "TrainDataset")
    data = build_dataset(section, "TrainDataset")
    os.truncate(the_file(section), 0)
    wanted = build_dataset({**section, "annotation_cache": None}, "TrainDataset")
    for one, other in zip(data.records, wanted.records):
        assert_equal(one, other)


def test_one_process_of_a_machine_writes_the_cache(section, monkeypatch):
    monkeypatch.setenv("PADDLE_LOCAL_RANK", "1")
    assert_as_without_a_cache(section)
    assert not os.path.exists(section["annotation_cache"])
    monkeypatch.setenv("PADDLE_LOCAL_RANK", "0")
    assert_as_without_a_cache(section)
    assert os.path.isfile(the_file(section))


def test_a_cache_that_cannot_be_written_is_said(section, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    section["annotation_cache"] = str(tmp_path / "file" / "cache")
    assert_as_without_a_cache(section)
    assert "annotations are not cached" in caplog.text


def test_shapes_of_an_epoch_are_those_of_its_records():
    records = [
        {"im_file": f"{n}.jpg", "im_id": np.array([n]), **({"h": h, "w": w} if h else {})}
        for n, (h, w) in enumerate([(10, 20), (20, 10), (0, 0), (15, 15), (30, 10)])
    ]
    draw = EpochSampling([2, 3], [2, 0.5], 0)
    for kept in (records, RecordStore.from_records(records)):
        assert DetectionData("", "", kept, []).is_portrait().tolist() == [False, True, False, False, True]
        drawn = DetectionData("", "", kept, [], draw=draw)
        for epoch in range(3):
            wanted = [drawn.record(position, epoch)["im_id"][0] in (1, 4) for position in range(len(drawn))]
            assert drawn.is_portrait(epoch).tolist() == wanted
