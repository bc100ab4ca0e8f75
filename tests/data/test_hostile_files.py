"""Annotation files, lists and caches that are too large, of another kind, or were tampered with."""

from __future__ import annotations

import io
import json
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ppfcos.data.annotation_cache import AnnotationCache
from ppfcos.data.classes import read_names
from ppfcos.data.formats import voc, yolo
from ppfcos.data.formats.coco import load_json
from ppfcos.data.formats.layouts import detect_format
from ppfcos.data.records import DetectionData
from ppfcos.data.statistics import LoadStatistics
from ppfcos.engine.evaluator import read_detections
from ppfcos.errors import ConfigError, DataError

DEEP = b"[" * 200_000
GIGABYTES = 5 << 30


def sparse(path: Path, size: int = GIGABYTES) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
    return path


READERS = {
    "annotations.json": load_json,
    "bbox.json": lambda path: read_detections(path.parent),
    "a.xml": voc.read_xml,
    "a.txt": lambda path: yolo.read_rows(path, 3),
    "train.txt": lambda path: yolo.read_list(path, path.parent),
    "list.txt": voc.image_names,
    "classes.txt": read_names,
    "data.yaml": yolo.read_description,
}


@pytest.mark.parametrize("name", READERS)
def test_five_gigabytes_are_refused_by_their_size(name, tmp_path):
    path = sparse(tmp_path / name)
    tracemalloc.start()
    with pytest.raises(DataError) as raised:
        READERS[name](path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_the_limit_of_json_can_be_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('{"images": []}')
    monkeypatch.setenv("PPFCOS_MAX_JSON_BYTES", "5")
    with pytest.raises(DataError, match="PPFCOS_MAX_JSON_BYTES"):
        load_json(path)
    monkeypatch.setenv("PPFCOS_MAX_JSON_BYTES", "much")
    with pytest.raises(ConfigError):
        load_json(path)


def test_the_first_line_of_a_folder_s_text_files_is_not_read_whole(tmp_path):
    sparse(tmp_path / "big.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError):
        detect_format(tmp_path)
    from ppfcos.data.formats.layouts import is_image_list

    assert not is_image_list(tmp_path / "big.txt") and not is_image_list(tmp_path / "pipe.txt")


NO_DETECTIONS = [
    DEEP, b'{"a":' * 100_000, b'[{"image_id": ' + b"9" * 5000, b"\xff\xfe[\x00]\x00", b"\x00" * 10, b"",
    b"[1]",    b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3], "score": 1}]',
    b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, NaN], "score": 1}]',
    b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": Infinity}]',
    b'[{"image_id": [], "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]',
    b'[{"image_id": 1e400, "category_id": 1, "bbox": "abcd", "score": 1}]',
    b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": ' + b"9" * 400 + b"}]",
]  # fmt: skip


@pytest.mark.parametrize("content", NO_DETECTIONS, ids=range(len(NO_DETECTIONS)))
def test_results_that_are_none(content, tmp_path):
    (tmp_path / "bbox.json").write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_detections(tmp_path)
    assert "bbox.json" in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize("content", NO_DETECTIONS[:6], ids=range(6))
def test_annotations_that_are_none(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError) as raised:
        load_json(tmp_path / "a.json")
    assert "a.json" in str(raised.value) and "\n" not in str(raised.value)


def test_a_byte_order_mark_and_equal_keys_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"images": 1, "images": 2}')
    assert load_json(tmp_path / "a.json") == {"images": 2}


class Cached:
    """A cache of one image with a box."""

    def __init__(self, folder: Path):
        (folder / "images").mkdir(parents=True)
        (folder / "a.json").write_text("{}")
        self.cache = AnnotationCache(folder / "cache", folder / "a.json", folder / "images", {})
        self.path = self.cache.path
        self.read = 0

    def open(self) -> tuple:
        records, categories, tally = self.cache.open_or_make(self._make)
        [record] = records
        assert record["im_file"] == "images/x.jpg" and record["gt_bbox"].tolist() == [[1, 2, 3, 4]]
        assert record["gt_class"].tolist() == [[1]]
        return categories, tally.changes()

    def _make(self) -> DetectionData:
        self.read += 1
        box = {"gt_bbox": np.array([[1, 2, 3, 4]], np.float32), "gt_class": np.array([[1]], np.int32)}
        marks = {key: np.zeros((1, 1), np.int32) for key in ("is_crowd", "difficult")}
        record = {"im_file": "images/x.jpg", "im_id": np.array([5]), "h": 10, "w": 20, **box, **marks}
        categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
        return DetectionData("TrainDataset", "a.json", [record], categories, tally=LoadStatistics())


@pytest.fixture
def cached(tmp_path) -> Cached:
    cached = Cached(tmp_path)
    cached.open()
    cached.open()
    assert cached.read == 1
    return cached


def columns_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return dict(stored)


def write(path: Path, columns: dict, save=np.savez) -> None:
    with open(path, "wb") as stream:
        save(stream, **columns)


def npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def put(path: Path, member: str, data: bytes) -> None:
    """Replace a member of the archive, with a right checksum."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, member: data}.items():
            archive.writestr(name, content)


def change(key: str, value: object):
    return lambda path: write(path, {**columns_of(path), key: np.asarray(value)})


def meta(path: Path, place: int, value: object) -> None:
    columns = columns_of(path)
    content = json.loads(columns["meta"].tobytes())
    content[place] = value
    write(path, {**columns, "meta": np.frombuffer(json.dumps(content).encode(), np.uint8)})


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def bomb(path: Path) -> None:
    write(path, {**columns_of(path), "gt_bbox": np.zeros((5_000_000, 4), np.float32)}, np.savez_compressed)


class Shell:
    def __reduce__(self):
        return os.system, ("touch ran",)


TAMPERED = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(5000)),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Shell())),
    "pickled column": lambda path: write(path, {**columns_of(path), "names": np.array([Shell()], object)}),
    "bomb": bomb,
    "sparse": sparse,
    "fifo": fifo,
    "link to a device": lambda path: link(path, "/dev/zero"),
    "link to itself": lambda path: link(path, path.name),
    "huge shape": lambda path: put(path, "gt_bbox.npy", npy("(1000000000000, 4)")),
    "negative shape": lambda path: put(path, "gt_bbox.npy", npy("(-1, 4)", bytes(32))),
    "deep header": lambda path: put(path, "gt_bbox.npy", npy("(" * 60_000)),
    "other version": lambda path: put(path, "gt_bbox.npy", b"\x93NUMPY\x02\x00" + b"\xff" * 100),
    "text column": change("names", "text"),
    "name before its beginning": change("name_ends", [-5]),
    "name behind its end": change("name_ends", [2**62]),
    "more boxes than there are": change("box_ends", [7]),
    "flat boxes": change("gt_bbox", np.zeros(1, np.float32)),
    "no number": change("gt_bbox", np.full((1, 4), np.nan, np.float32)),
    "unknown class": change("gt_class", np.array([2], np.uint8)),
    "class of floats": change("gt_class", np.array([0.5])),
    "NUL in a name": change("folder", np.zeros(12, np.uint8)),
    "another column": change("more", [1]),
    "categories": lambda path: meta(path, 1, [1]),
    "category without a name": lambda path: meta(path, 1, [{"id": 1}, {"id": 2, "name": "b"}]),
    "changes": lambda path: meta(path, 2, {"UNKNOWN": [1, ""]}),
    "deep meta": lambda path: put(path, "meta.npy", npy_of(np.frombuffer(DEEP, np.uint8))),
}


def npy_of(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("what", TAMPERED)
def test_a_cache_that_was_tampered_with_is_made_anew(cached, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TAMPERED[what](cached.path)
    tracemalloc.start()
    assert cached.open() == ([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert cached.read == 2 and peak < 20 << 20 and not Path("ran").exists()


def test_a_cache_that_is_a_link_does_not_overwrite_its_target(cached, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"not a cache")
    link(cached.path, str(other))
    cached.open()
    assert other.read_bytes() == b"not a cache" and not cached.path.is_symlink()


def test_every_flipped_bit_and_every_cut_is_seen_or_does_not_matter(cached):
    whole = cached.path.read_bytes()
    for place in range(0, len(whole), 97):
        cached.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        cached.open()
        cached.path.write_bytes(whole[:place])
        cached.open()


def test_a_folder_in_the_place_of_a_cache(cached, caplog):
    cached.path.unlink()
    cached.path.mkdir()
    cached.open()
    assert cached.read == 2
