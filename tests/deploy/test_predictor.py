"""Deployment: bundles, images, preprocessing, predictor, runtimes."""

from __future__ import annotations

import contextlib
import copy
import http.server
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import yaml
from helpers.small_bundles import (
    FIXED_SIZE,
    end_to_end_bundle,
    file_entry,
    heads_bundle,
    integer_heads_bundle,
    nv12_bundle,
    uint8_bundle,
)
from helpers.small_detector import CATEGORY_IDS, CLASS_NAMES, PROGRAM, draw_image, pictures, small_model
from onnx.parser import parse_model
from PIL import Image
from ppdet.data.transform.batch_operators import PadBatch
from ppdet.data.transform.operators import Decode, Permute, Resize

from ppfcos.data.images import read_image as read_for_training
from ppfcos.data.transforms.pipeline import SampleTransforms
from ppfcos.deploy import Detections, Detector, NV12Image, Predictor
from ppfcos.deploy.bundle import CONFIG_FILE, MANIFEST_FILE, NetworkInput, onnx_file, read_bundle
from ppfcos.deploy.detections import split_batch
from ppfcos.deploy.images import read_image
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.deploy.runtimes.choice import LIBRARIES
from ppfcos.deploy.runtimes.onnx_runtime import providers_for
from ppfcos.environment import MissingLibraryError, available_cores
from ppfcos.errors import BundleError, ConfigError, DataError, DeviceError
from ppfcos.export.parity import noise_batches
from ppfcos.export.trained_model import CheckpointRuntime
from ppfcos.paddle_versions import HAS_NEW_IR

RESIZES = [
    {"target_size": [320, 480], "keep_ratio": True, "interp": 1},
    {"target_size": [480, 320], "keep_ratio": True, "interp": 2},
    {"target_size": 256, "keep_ratio": True, "interp": 1},
    {"target_size": [192, 288], "keep_ratio": False, "interp": 1},
]
FIT = {"target_size": [224, 320], "keep_ratio": True, "interp": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return heads_bundle(tmp_path_factory.getbasetemp() / "heads")


@pytest.fixture(scope="module")
def predictor(bundle) -> Predictor:
    return Predictor(bundle, "onnxruntime", threads=2)


@pytest.fixture
def copied(bundle, tmp_path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


def steps_for(resize: dict) -> list:
    return [{"type": "Resize", **resize}, {"type": "Permute"}, {"type": "PadStride", "stride": 32}]


def change_manifest(folder: Path, **changes) -> None:
    manifest = yaml.safe_load((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(yaml.safe_dump({**manifest, **changes}))


def assert_same(ones: Detections, others: Detections, pixels: float, scores: float) -> None:
    """Every box of either has a match in the other."""
    assert len(ones) == len(others)
    if len(ones):
        near = np.abs(ones.boxes[:, None] - others.boxes[None]).max(axis=2) <= pixels
        near &= np.abs(ones.scores[:, None] - others.scores[None]) <= scores
        near &= ones.labels[:, None] == others.labels[None]
        assert near.any(axis=0).all() and near.any(axis=1).all()


def matched_fraction(ones: Detections, others: Detections, pixels: float) -> float:
    """The fraction of the boxes with a match among the others."""
    away = np.abs(ones.boxes[:, None] - others.boxes[None]).max(axis=2)
    away[ones.labels[:, None] != others.labels[None]] = np.inf
    return float((away.min(axis=1) < pixels).mean())


# Preprocessing ---------------------------------------------------------------------------------------------


def paddledetections_batch(files: list, resize: dict) -> list:
    """The batch of PaddleDetection's own operators."""
    samples = []
    for file in files:
        sample = {"im_file": str(file)}
        for operator in (Decode(), Resize(**resize), Permute()):
            sample = operator(sample)
        samples.append(sample)
    return PadBatch(pad_to_stride=32)(samples)


@pytest.mark.parametrize("resize", RESIZES)
def test_preprocessing_matches_paddledetection(tmp_path, resize):
    random = np.random.default_rng(3)
    sizes = [tuple(random.integers(20, 700, 2)) for _ in range(12)] + [(320, 480), (1, 1), (333, 500)]
    files = []
    for i, (height, width) in enumerate(sizes):
        files.append(tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}")
        cv2.imwrite(str(files[-1]), draw_image(height, width, i))
    ours = Preprocess(steps_for(resize))([read_image(file) for file in files])
    theirs = paddledetections_batch(files, resize)
    np.testing.assert_array_equal(ours["image"], np.stack([sample["image"] for sample in theirs]))
    np.testing.assert_array_equal(ours["scale_factor"], np.stack([s["scale_factor"] for s in theirs]))
    np.testing.assert_array_equal(ours["im_shape"], np.stack([s["im_shape"] for s in theirs]))
    assert {array.dtype for array in ours.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(3, 2000), (5000, 3), (1, 1), (1, 9000)])
def test_thin_image_is_equal_in_training_and_deployment(tmp_path, resize, size):
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), draw_image(*size, 1))
    boxes = np.array([[0, 0, size[1], size[0]], [size[1] / 4, 0, size[1] / 2, size[0]]], np.float32)
    transforms = [{"Decode": {}}, {"Resize": resize}, {"Permute": {}}]
    record = {"im_file": str(path), "im_id": np.array([1]), "h": float(size[0]), "w": float(size[1])}
    sample = SampleTransforms({"sample_transforms": transforms}, "TrainReader")(
        {
            **record, "image": read_for_training(path), "gt_bbox": boxes.copy(),
            "im_shape": np.array(size, np.float32), "scale_factor": np.ones(2, np.float32),
            "gt_class": np.zeros((2, 1), np.int32), "is_crowd": np.zeros((2, 1), np.int32),
        }
    )  # fmt: skip
    deployed = Preprocess([{"type": "Resize", **resize}])([read_image(path)])
    assert min(sample["image"].shape) >= 1
    np.testing.assert_array_equal(sample["image"], deployed["image"][0])
    np.testing.assert_array_equal(sample["scale_factor"], deployed["scale_factor"][0])
    np.testing.assert_array_equal(sample["im_shape"], deployed["im_shape"][0])
    np.testing.assert_allclose(sample["gt_bbox"] / np.tile(sample["scale_factor"][::-1], 2), boxes, rtol=1e-5)


def test_thin_image_keeps_one_pixel():
    batch = Preprocess(steps_for(RESIZES[0]))([np.full((1, 2000, 3), 9, np.uint8)])
    assert batch["image"].shape == (1, 3, 32, 480)
    assert (batch["image"][0, :, 0] == 9).all() and not batch["image"][0, :, 1:].any()


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize(("kind", "layout"), [("float32", "nchw"), ("uint8", "nhwc"), ("uint8", "nchw")])
def test_every_input_type_has_the_same_pixels(kind, layout, channels):
    picture = draw_image(97, 203, 1)
    usual = Preprocess(steps_for(FIT))([picture])
    other = Preprocess(steps_for(FIT), NetworkInput(kind, channels, layout))([picture])
    image = other["image"] if layout == "nchw" else other["image"].transpose(0, 3, 1, 2)
    assert image.dtype == kind
    np.testing.assert_array_equal(image if channels == "rgb" else image[:, ::-1], usual["image"])
    np.testing.assert_array_equal(other["im_shape"], usual["im_shape"])


def test_fixed_input_is_padded_and_not_exceeded():
    form = NetworkInput("uint8", "bgr", "nhwc", batch=4, height=224, width=320)
    batch = Preprocess(steps_for(FIT), form)([draw_image(320, 224, 0), draw_image(100, 300, 1)])
    assert batch["image"].shape == (4, 224, 320, 3) and not batch["image"][2:].any()
    # portrait: the height of the input; landscape: its width
    np.testing.assert_allclose(batch["im_shape"][:2], [[224, 156.8], [106.6667, 320]], rtol=1e-5)
    np.testing.assert_allclose(batch["scale_factor"][:2, 0], [0.7, 320 / 300], rtol=1e-6)
    assert batch["image"][0, 223, :157].any() and not batch["image"][0, :, 157:].any()
    with pytest.raises(DataError, match=r"320x224 is larger than the network's input, 224x320"):
        Preprocess([{"type": "Permute"}], form)([draw_image(320, 224, 0)])


def test_nv12_matches_opencv():
    smooth = cv2.GaussianBlur(draw_image(96, 128, 2), (0, 0), 5)
    there_and_back = NV12Image.of(smooth).pixels()
    error = np.abs(there_and_back.astype(int) - smooth)  # one color for four pixels, limited range
    assert error.mean() < 1 and error.max() <= 16
    luma = NV12Image.of(np.full((2, 2, 3), 255, np.uint8)).data
    assert luma.tolist() == [[235, 235], [235, 235], [128, 128]]
    batch = Preprocess(steps_for(FIT), NetworkInput("nv12", height=224, width=320))([smooth])
    assert batch["image"].shape == (1, 336, 320) and batch["image"].dtype == np.uint8
    decoded = cv2.cvtColor(batch["image"][0], cv2.COLOR_YUV2RGB_NV12)
    usual = Preprocess(steps_for(FIT))([smooth])["image"][0].transpose(1, 2, 0)
    assert np.abs(decoded[:, :290].astype(float) - usual[:, :290]).mean() < 2


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ([{"type": "NormalizeImage", "mean": [0, 0, 0]}, {"type": "Permute"}], "NormalizeImage"),
        ([{"type": "Resize", "size": 3}, {"type": "Permute"}], "size"),
        ([{"type": "Resize", "target_size": [3]}, {"type": "Permute"}], "target_size"),
        (["Permute"], "Permute"),
    ],
)
def test_invalid_steps_are_named(steps, named):
    with pytest.raises(BundleError, match=named):
        Preprocess(steps)


# Images ----------------------------------------------------------------------------------------------------


def test_exif_orientation_is_applied(tmp_path):
    upright = draw_image(40, 60, 0)
    picture = Image.fromarray(upright[:, :, ::-1].copy()).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to see it upright
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    assert read_image(tmp_path / "turned.jpg").shape == (40, 60, 3)
    np.testing.assert_allclose(read_image(tmp_path / "turned.jpg"), upright, atol=12)


@pytest.mark.parametrize("content", [None, b"", b"no picture at all", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_image_is_named(tmp_path, content):
    path = tmp_path / "holiday.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"holiday\.jpg"):
        read_image(path)


def test_truncated_image_is_named(tmp_path):
    """OpenCV would fill the rest with gray."""
    content = cv2.imencode(".jpg", draw_image(224, 320, 1))[1].tobytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"half\.jpg: the image is cut short"):
        read_image(tmp_path / "half.jpg")
    (tmp_path / "more.jpg").write_bytes(content + b"what some cameras add")
    assert read_image(tmp_path / "more.jpg").shape == (224, 320, 3)


def test_too_large_image_is_named(tmp_path):
    """A PNG of 40 kB with 17,000×17,000 pixels."""
    Image.new("1", (17_000, 17_000)).save(tmp_path / "poster.png")
    with pytest.raises(DataError, match=r"poster\.png: has 17000x17000 pixels, more than .*OPENCV_IO_MAX"):
        read_image(tmp_path / "poster.png")


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(DataError, match=f"{path}.*a pipe or a device"):
            read_image(path)


def test_arrays_of_all_layouts_are_equal(predictor):
    picture = draw_image(120, 160, 5)
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    with_alpha = np.dstack([picture, np.full((120, 160), 7, np.uint8)])
    turned = np.ascontiguousarray(picture[::-1, ::-1])[::-1, ::-1]
    expected = predictor.predict([picture])[0]
    assert len(expected) > 0
    for other in (with_alpha, np.asfortranarray(picture), turned):
        np.testing.assert_array_equal(predictor.predict([other])[0].boxes, expected.boxes)
    expected = predictor.predict([cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)])[0]
    for other in (grey, grey[:, :, None]):
        np.testing.assert_array_equal(predictor.predict([other])[0].boxes, expected.boxes)


@pytest.mark.parametrize(
    ("array", "cure"),
    [
        (np.zeros((8, 8, 3), np.float32), r"\* 255"),
        (np.zeros((8, 8, 3), np.uint16), ">> 8"),
        (np.zeros((8, 8, 3), bool), "uint8"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (np.zeros((3, 8, 8), np.uint8), r"\[height, width, 3 or"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"\[height, width, 3 or"),
    ],
)
def test_invalid_array_is_named(predictor, array, cure):
    with pytest.raises(DataError, match=f"image 1 of the list.*{cure}"):
        predictor.predict([np.zeros((8, 8, 3), np.uint8), array])


@pytest.mark.parametrize("one", [np.zeros((8, 8, 3), np.uint8), b"\xff\xd8 a JPEG", None])
def test_single_image_instead_of_list_is_refused(predictor, one):
    for ask in (predictor.predict, predictor.stream):
        with pytest.raises(DataError, match="list"):
            ask(one)


@pytest.mark.parametrize("thing", [None, 3, b"\xff\xd8 a JPEG", [[0, 0, 0]], Image.new("RGB", (8, 8))])
def test_other_objects_are_named(predictor, thing):
    with pytest.raises(DataError, match=rf"image 0 of the list is of type {type(thing).__name__}.*array"):
        predictor.predict([thing])


def test_impossible_path_is_named(predictor):
    with pytest.raises(DataError, match=r"holi.*day"):
        predictor.predict(["holi\0day.jpg"])


def test_invalid_nv12_buffers_are_refused():
    with pytest.raises(DataError, match="has 96 bytes, not 95"):
        NV12Image(bytes(95), 8, 8)
    with pytest.raises(DataError, match="even"):
        NV12Image(bytes(96), 7, 8)
    with pytest.raises(DataError, match=r"even height and width, not 8\.0x8"):
        NV12Image(bytes(96), 8.0, 8)
    for buffer in (None, [0] * 96, memoryview(bytes(192))[::2]):
        with pytest.raises(DataError, match=f"not {type(buffer).__name__}"):
            NV12Image(buffer, 8, 8)


# The predictor ---------------------------------------------------------------------------------------------


def test_split_batch_sorts_by_score():
    bbox = np.array([[1, 0.2, 0, 1, 2, 3], [0, 0.9, 4, 5, 6, 7], [2, 0.5, 1, 1, 2, 2]], np.float32)
    first, empty, last = split_batch(bbox, np.array([2, 0, 1], np.int32), ("a", "b", "c"))
    assert first.labels.tolist() == [0, 1] and first.boxes[0].tolist() == [4, 5, 6, 7]
    assert len(empty) == 0 and empty.boxes.shape == (0, 4)
    assert last.scores.tolist() == [0.5] and last.above(0.6).labels.tolist() == []


def test_boxes_are_inside_the_images(predictor):
    found = predictor.predict(pictures())
    assert [type(each) for each in found] == [Detections] * 10
    assert sum(map(len, found)) > 100
    for picture, each in zip(pictures(), found):
        height, width = picture.shape[:2]
        assert each.class_names == tuple(CLASS_NAMES)
        assert each.boxes.dtype == each.scores.dtype == np.float32 and each.labels.dtype == np.int64
        assert (each.boxes >= 0).all() and (each.boxes <= [width + 1e-3, height + 1e-3] * 2).all()
        assert (np.diff(each.scores) <= 0).all() and set(each.labels) <= {0, 1, 2}
    assert predictor.category_ids == tuple(CATEGORY_IDS)
    assert predictor.predict([]) == []


@pytest.mark.parametrize("runtime", LIBRARIES)
def test_detections_do_not_depend_on_the_batch(bundle, runtime):
    images = pictures()
    images = images[:6] + images[:3] + images[4:7]  # most sizes twice, some once
    predictor = Predictor(bundle, runtime, threads=2)
    alone = [predictor.predict([image])[0] for image in images]
    for batch in (2, 5):
        together = Predictor(bundle, runtime, threads=2, batch=batch).predict(iter(images))
        for one, other in zip(alone, together):
            assert_same(one, other, pixels=1e-3, scores=1e-5)


def test_waiting_images_are_bounded(bundle):
    predictor = Predictor(bundle, "onnxruntime", threads=2, batch=2)
    given = []

    def rare_ones_first():
        for number, shape in enumerate([(64, 320), *[(32, 320)] * 20]):
            given.append(number)
            yield draw_image(*shape, number)

    stream = predictor.stream(rare_ones_first())
    first = next(stream)
    assert first.name == 0 and first.image.shape == (64, 320, 3) and len(given) < 12
    assert [found.name for found in stream] == list(range(1, 21))


def test_extreme_sizes(predictor):
    tiny, huge = np.full((1, 1, 3), 200, np.uint8), np.zeros((10_000, 10_000, 3), np.uint8)
    cv2.circle(huge, (5000, 5000), 2000, (255, 90, 30), cv2.FILLED)
    for picture, found in zip((tiny, huge), predictor.predict([tiny, huge])):
        assert (found.boxes >= 0).all() and (found.boxes <= len(picture) * (1 + 1e-5)).all()


def test_folder_is_streamed_without_unreadable_files(predictor, tmp_path, caplog):
    for name, picture in zip(("b.png", "a.bmp"), pictures()):
        cv2.imwrite(str(tmp_path / name), picture)
    (tmp_path / "aa.jpg").write_bytes(b"no picture")
    found = list(predictor.stream(tmp_path))
    assert [each.name.name for each in found] == ["a.bmp", "b.png"]
    assert "aa.jpg" in caplog.text
    for each in found:
        alone = predictor.predict([str(each.name)])[0]
        np.testing.assert_array_equal(each.detections.boxes, alone.boxes)
    assert [each.name for each in predictor.stream(tmp_path / "b.png")] == [tmp_path / "b.png"]


def write_video(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (160, 96))
    for i in range(5):
        writer.write(draw_image(96, 160, i))
    writer.release()


def test_video_is_streamed(predictor, tmp_path):
    write_video(tmp_path / "a.avi")
    found = list(predictor.stream(str(tmp_path / "a.avi")))
    assert [each.name for each in found] == [0, 1, 2, 3, 4]
    assert found[3].image.shape == (96, 160, 3)
    np.testing.assert_array_equal(found[3].detections.boxes, predictor.predict([found[3].image])[0].boxes)


def test_network_camera_is_streamed_if_allowed(predictor):
    requests = []

    class Camera(http.server.BaseHTTPRequestHandler):
        """Serves a stream of JPEGs."""

        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            for i in range(4):
                content = cv2.imencode(".jpg", draw_image(96, 160, i))[1].tobytes()
                head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                self.wfile.write(head.encode() + content + b"\r\n")

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/video.mjpg"
        with pytest.raises(DataError, match=r"http://127.*allow_network=True"):
            predictor.stream(address)
        assert requests == []
        found = list(predictor.stream(address, allow_network=True))
        server.shutdown()
        thread.join()
    assert requests
    assert [each.name for each in found][:3] == [0, 1, 2]
    for i, each in enumerate(found):
        assert np.abs(each.image.astype(int) - draw_image(96, 160, i)).mean() < 10
    with pytest.raises(DataError, match=r"http://127.*cannot be opened"):
        predictor.stream(address, allow_network=True)
    with pytest.raises(DataError, match=r"gopher://.*rtsp"):
        predictor.stream("gopher://127.0.0.1/a.mp4", allow_network=True)


PLAYLISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile '{address}'\n",
}


@pytest.mark.parametrize("playlist", PLAYLISTS.values(), ids=PLAYLISTS)
def test_video_file_that_names_an_address_connects_to_nothing(predictor, tmp_path, playlist):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        (tmp_path / "a.mp4").write_text(playlist.format(address=address))
        with pytest.raises(DataError, match=r"a\.mp4"):
            list(predictor.stream(tmp_path / "a.mp4"))
        with pytest.raises(socket.timeout):  # in Python 3.9 no TimeoutError
            server.accept()


def test_name_of_a_file_is_not_a_protocol(predictor, tmp_path, monkeypatch):
    """To FFmpeg, this name means two videos one after the other."""
    monkeypatch.chdir(tmp_path)
    write_video(Path("v.avi"))
    Path("concat:v.avi|v.avi").write_bytes(b"no video")
    with pytest.raises(DataError, match="cannot be opened"):
        list(predictor.stream("concat:v.avi|v.avi"))


def test_predictor_is_pickled_and_copied(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(bundle.parent)
    predictor = Predictor(bundle.name, "onnxruntime", threads=1, batch=2, device="cpu")
    expected = predictor.predict(pictures()[:2])
    content = pickle.dumps(predictor)
    monkeypatch.chdir(tmp_path)
    for same in (pickle.loads(content), copy.deepcopy(predictor)):
        assert (type(same.runtime.network), same.batch) == (type(predictor.runtime.network), 2)
        for one, other in zip(expected, same.predict(pictures()[:2])):
            np.testing.assert_array_equal(one.boxes, other.boxes)


def test_invalid_sources_are_named(predictor, tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"no video")
    for source, named in ((tmp_path / "no.mp4", "no.mp4"), (tmp_path / "x.mp4", "x.mp4"), (97, "camera 97")):
        with pytest.raises(DataError, match=named):
            predictor.stream(source)
    with pytest.raises(DataError, match="no images"):
        predictor.stream((tmp_path / "empty").mkdir() or tmp_path / "empty")


@pytest.mark.parametrize("runtime", LIBRARIES)
def test_predictor_is_thread_safe(bundle, runtime):
    shared = Predictor(bundle, runtime, threads=1)
    images = pictures()[2:6]
    alone = [shared.predict([image])[0] for image in images]
    start = threading.Barrier(4)

    def work(first: int) -> list:
        start.wait()
        return [shared.predict([images[(first + i) % 4]])[0] for i in range(4)]

    with ThreadPoolExecutor(4) as pool:
        for first, found in enumerate(pool.map(work, range(4))):
            for i, each in enumerate(found):
                assert_same(each, alone[(first + i) % 4], pixels=1e-3, scores=1e-5)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or available_cores() < 2, reason="needs Linux and two cores"
)
@pytest.mark.parametrize("runtime", LIBRARIES)
def test_runtimes_do_not_pin_threads(bundle, runtime):
    predictor = Predictor(bundle, runtime, threads=1)
    seen: list[set[int]] = []

    def work() -> None:
        for _ in range(8):
            predictor.predict(pictures()[2:4])

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            seen.append(os.sched_getaffinity(worker.native_id))
        time.sleep(0.001)
    assert len(seen) > 8 and all(cores == os.sched_getaffinity(0) for cores in seen)


# Runtimes and kinds of networks ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(bccd, tinycoco) -> list:
    found = sorted((bccd / "JPEGImages").glob("*.jpg"))[:6] + sorted(tinycoco.rglob("*.jpg"))[:24]
    assert len(found) == 30
    return found


@pytest.fixture(scope="module")
def checkpoint_detections(bundle, photos) -> list:
    """The detections of the model itself, with the weights of its file."""
    _, model = small_model(bundle.parent)
    model.set_state_dict(paddle.load(str(bundle.parent / "weights.pdparams")))
    preprocess = Preprocess(read_bundle(bundle).preprocess)
    return Detector(preprocess, CheckpointRuntime(model), CLASS_NAMES).predict(photos)


@pytest.mark.parametrize("runtime", LIBRARIES)
def test_runtimes_match_checkpoint_on_photos(bundle, photos, checkpoint_detections, runtime):
    found = Predictor(bundle, runtime, threads=2).predict(photos)
    assert sum(map(len, found)) > 300
    for one, other in zip(checkpoint_detections, found):
        assert_same(one, other, pixels=1e-2, scores=1e-4)


@pytest.mark.slow  # one more export, and each runtime once more
@pytest.mark.parametrize("runtime", LIBRARIES)
def test_end_to_end_networks_match_checkpoint_on_photos(
    photos, checkpoint_detections, tmp_path_factory, runtime
):
    folder = end_to_end_bundle(tmp_path_factory.getbasetemp() / "end_to_end")
    for batch in (1, 4):
        found = Predictor(folder, runtime, threads=2, batch=batch).predict(photos)
        for one, other in zip(checkpoint_detections, found):
            assert_same(one, other, pixels=1e-2, scores=1e-4)


def test_bfloat16_is_close(bundle, predictor):
    picture = pictures()[5]
    exact = predictor.predict([picture])[0].above(0.07)
    for runtime in ("openvino", "paddle"):
        try:
            rough = Predictor(bundle, runtime, "bf16", threads=2).predict([picture])[0]
        except DeviceError as error:
            assert "bf16" in str(error)
            continue
        assert matched_fraction(exact, rough, pixels=4) > 0.8 > matched_fraction(exact, rough, pixels=1e-4)


def test_integer_outputs_are_scaled_back(bundle, predictor, tmp_path):
    integers = integer_heads_bundle(tmp_path / "integers", bundle)
    for runtime in ("onnxruntime", "openvino"):
        found = Predictor(integers, runtime, threads=2).predict(pictures())
        for exact, rough in zip(predictor.predict(pictures()), found):
            assert len(exact) > 5 and matched_fraction(exact, rough, pixels=3) > 0.9


def test_nv12_buffers_and_images(predictor, tmp_path_factory):
    nv12 = Predictor(nv12_bundle(tmp_path_factory.getbasetemp() / "nv12"), "onnxruntime", threads=2)
    picture = cv2.GaussianBlur(pictures()[0], (0, 0), 2)
    assert picture.shape[:2] == FIXED_SIZE
    buffer = NV12Image.of(picture)
    expected = predictor.predict([buffer.pixels()])[0]
    assert len(expected) > 5
    images = [buffer, NV12Image(buffer.data.tobytes(), 224, 320), picture]
    as_buffer, as_bytes, as_picture = nv12.predict(images)
    np.testing.assert_array_equal(as_buffer.boxes, as_bytes.boxes)
    np.testing.assert_array_equal(as_buffer.boxes, as_picture.boxes)
    assert matched_fraction(expected, as_buffer, pixels=0.5) > 0.9
    assert_same(predictor.predict([buffer])[0], expected, pixels=0, scores=0)
    larger = NV12Image.of(cv2.resize(picture, (640, 448)))
    one, other = nv12.predict([larger, larger.pixels()])
    np.testing.assert_array_equal(one.boxes, other.boxes)


@pytest.mark.slow  # one more export
def test_fixed_batch_of_uint8(predictor, tmp_path_factory):
    folder = uint8_bundle(tmp_path_factory.getbasetemp() / "uint8")
    fixed = Predictor(folder, "onnxruntime", threads=2)
    assert fixed.batch == 2
    images = [pictures()[0], draw_image(200, 320, 3), pictures()[0]]
    for image, found in zip(images, fixed.predict(images)):
        assert_same(found, predictor.predict([image])[0], 1e-2, 1e-4)  # 200 pixels are padded to 224, too
    with pytest.raises(BundleError, match="takes 2 images at once, not 3"):
        Predictor(folder, batch=3)


def test_runtime_runs_batches(predictor):
    """As in the parity check of the export."""
    for batch in noise_batches(predictor.bundle.input):
        bbox, bbox_num = predictor.runtime.run(batch)
        assert bbox.shape == (bbox_num.sum(), 6) and len(bbox_num) == len(batch["image"])


@pytest.mark.parametrize(
    ("device", "names"),
    [
        ("auto", ["CUDA", "CPU"]),
        ("gpu", ["CUDA", "CPU"]),
        ("TensorrtExecutionProvider", ["Tensorrt", "CUDA", "CPU"]),
        ("CUDAExecutionProvider", ["CUDA", "CPU"]),
        ("DmlExecutionProvider", ["Dml", "CUDA", "CPU"]),
        ("cpu", ["CPU"]),
    ],
)
def test_each_launched_process_has_its_own_gpu(monkeypatch, device, names):
    monkeypatch.setenv("FLAGS_selected_gpus", "3")
    available = [f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "Dml", "CPU")]
    chosen = [each if isinstance(each, tuple) else (each, {}) for each in providers_for(device, available)]
    assert [name for name, _ in chosen] == [f"{name}ExecutionProvider" for name in names]
    for name, options in chosen:
        nvidias = name.startswith(("Tensorrt", "CUDA"))
        assert options.get("device_id") == ("3" if nvidias else None)


@pytest.mark.parametrize(("one_size", "search"), [(False, "DEFAULT"), (True, "EXHAUSTIVE")])
def test_cuda_provider_options(one_size, search):
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    (name, options), _ = providers_for("gpu", available, one_size)
    assert name == "CUDAExecutionProvider"
    assert (options["use_tf32"], options["cudnn_conv_algo_search"]) == ("0", search)


def test_auto_takes_the_first_installed_runtime(bundle, monkeypatch):
    def installed(*names):
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, package=None: name if name in names else None
        )

    loaded = {}
    for libraries in (("openvino", "onnxruntime"), ("openvino",), ("paddle",)):
        installed(*libraries)
        loaded[libraries] = type(Predictor(bundle, threads=1).runtime.network).__name__
    assert list(loaded.values()) == ["OnnxRuntime", "OpenVinoRuntime", "PaddleInferenceRuntime"]
    installed()
    with pytest.raises(MissingLibraryError, match="pip install onnxruntime"):
        Predictor(bundle)


@pytest.mark.parametrize("name", LIBRARIES)
def test_missing_runtime_is_named(bundle, monkeypatch, name):
    for module in [each for each in sys.modules if each.split(".")[0] == name]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibraryError, match="pip install"):
        Predictor(bundle, name)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"runtime": "tensorflow"}, ConfigError, "tensorflow.*onnxruntime"),
        ({"precision": "fp8"}, ConfigError, "fp8.*int8"),
        ({"precision": "int8"}, BundleError, "no network in int8; it has paddle fp32, onnx fp32"),
        ({"runtime": "paddle", "precision": "fp16"}, BundleError, "no network for paddle in fp16"),
        ({"batch": 0}, ConfigError, "batch 0"),
        ({"batch": 2.5}, ConfigError, r"batch 2\.5"),
        ({"threads": 0}, ConfigError, "threads 0"),
        ({"threads": -1, "runtime": "openvino"}, ConfigError, "threads -1"),
        ({"threads": "2"}, ConfigError, "threads '2'"),
        ({"runtime": "paddle", "device": "tpu"}, DeviceError, "tpu"),
        ({"device": "TensorrtExecutionProvider"}, DeviceError, "no TensorrtExecutionProvider.*CPU"),
        ({"runtime": "onnxruntime", "device": "gpu"}, DeviceError, "CUDAExecutionProvider"),
        ({"runtime": "openvino", "device": "npu"}, DeviceError, "npu.*CPU"),
    ],
)
def test_invalid_arguments_are_named(bundle, arguments, error, named):
    with pytest.raises(error, match=named) as raised:
        Predictor(bundle, **arguments)
    assert "\n" not in str(raised.value)


# The bundle ------------------------------------------------------------------------------------------------


def test_incomplete_bundle_is_named(copied, tmp_path):
    with pytest.raises(BundleError, match=r"nowhere.*export_model"):
        Predictor(tmp_path / "nowhere")
    for name in (PROGRAM, "model.pdiparams", onnx_file("fp32")):
        shutil.move(copied / name, tmp_path / "aside")
        with pytest.raises(BundleError, match=f"{name} is missing"):
            Predictor(copied)
        shutil.move(tmp_path / "aside", copied / name)
    (copied / MANIFEST_FILE).unlink()
    with pytest.raises(BundleError, match=r"lacks bundle\.yml"):
        read_bundle(copied)
    (copied / CONFIG_FILE).write_text("mode: paddle\n")
    with pytest.raises(BundleError, match=r"too old, it has no bundle\.yml; export it again"):
        read_bundle(copied)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format_version": 2}, "format_version 2 is newer"),
        ({"kind": "tails"}, "`kind` is 'tails'"),
        ({"classes": []}, "`classes`"),
        ({"input": {"type": "float64"}}, "`type` is 'float64'"),
        ({"input": {"type": "uint8", "height": 3}}, "both"),
        ({"input": {"type": "nv12", "height": 33, "width": 32}}, "even"),
        ({"postprocess": {"keep_top_k": "many"}}, "`keep_top_k` is 'many'"),
        ({"heads": {"layout": "nchw", "distances": "pixels", "levels": [{"stride": 8}]}}, "class_logits"),
        ({"networks": {}}, "names no network"),
        ({"networks": {"onnx": {"fp32": {"file": "other.onnx"}}}}, "other.onnx"),
        ({"files": {"../../x": {"sha256": "a", "bytes": 1}}}, r"'\.\./\.\./x' is not a file name"),
        ({"preprocess": None}, "`preprocess` is missing"),
    ],
)
def test_wrong_key_is_named(copied, changes, named):
    change_manifest(copied, **changes)
    with pytest.raises(BundleError, match=rf"bundle\.yml.*{named}") as raised:
        read_bundle(copied)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["- 1", "kind: [", "!!python/object/apply:os.system [echo]", ""])
def test_invalid_manifest_is_named(copied, content):
    (copied / MANIFEST_FILE).write_text(content)
    with pytest.raises(BundleError, match=r"bundle\.yml") as raised:
        read_bundle(copied)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("runtime", "name"), [("paddle", "model.pdiparams"), ("onnxruntime", "model.onnx")])
def test_damaged_files_are_not_loaded(copied, runtime, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    description = read_bundle(copied)  # the size is right
    for load in (description.verify, lambda: Predictor(copied, runtime)):
        with pytest.raises(BundleError, match=f"{name}: the file is damaged"):
            load()
    (copied / name).write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{name}: the file is damaged"):
        read_bundle(copied)


def test_invalid_onnx_file_is_named(copied):
    manifest = yaml.safe_load((copied / MANIFEST_FILE).read_text())
    unknown = parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1] image) => (float[1] y) { y = Unknown(image) }'
    )
    for content in (b"no network", b"", unknown.SerializeToString()):
        (copied / "model.onnx").write_bytes(content)
        change_manifest(copied, files={**manifest["files"], "model.onnx": file_entry(copied / "model.onnx")})
        for runtime in ("onnxruntime", "openvino"):
            with pytest.raises(BundleError, match=r"model\.onnx") as raised:
                Predictor(copied, runtime)
            assert "\n" not in str(raised.value)


READ_FILE = {
    "#": "1.read_file",
    "A": [
        {"AT": {"#": "0.a_str", "D": "/etc/passwd"}, "N": "filename"},
        {"AT": {"#": "1.a_dtype", "D": "uint8"}, "N": "dtype"},
        {"AT": {"#": "1.a_place", "D": [1, 0, ""]}, "N": "place"},
    ],
    "I": [],
    "O": [{"%": 99999, "TT": {"#": "0.t_dtensor", "D": [{"#": "0.t_ui8"}, [-1], "NCHW", [], 0]}}],
    "OA": [{"AT": {"#": "0.a_array", "D": [{"#": "0.a_bool", "D": True}]}, "N": "stop_gradient"}],
}


@pytest.mark.skipif(not HAS_NEW_IR, reason="for programs of Paddle 2.6 tests/deploy/test_hostile_bundles.py")
def test_program_that_reads_a_file_is_refused(copied):
    """Paddle 3.2.2 runs this one, and outputs the file's bytes as the quality of the last level."""
    program = json.loads((copied / "model.json").read_text())
    operators = program["program"]["regions"][0]["blocks"][0]["ops"]
    operators.insert(-15, READ_FILE)
    operators[-1]["I"][0]["%"] = 99999
    (copied / "model.json").write_text(json.dumps(program))
    manifest = yaml.safe_load((copied / MANIFEST_FILE).read_text())
    change_manifest(copied, files={**manifest["files"], "model.json": file_entry(copied / "model.json")})
    with pytest.raises(BundleError, match=r"model\.json.*read_file") as raised:
        Predictor(copied, "paddle")
    assert "\n" not in str(raised.value)


# A machine that only runs a model ---------------------------------------------------------------------------

ONLY_RUNS = """
import importlib.abc, json, sys
import numpy as np

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[3].split(","):
            raise ImportError(f"{name} is not for a machine that only runs a model")

sys.meta_path.insert(0, Blocked())
from ppfcos.deploy import Predictor
found = Predictor(sys.argv[1], threads=1).predict([np.zeros((64, 96, 3), np.uint8)])
from ppfcos.cli import inference as drawing, infer
json.dump(sorted(sys.modules), open(sys.argv[2], "w"))
"""
TRAINING = "paddle,ppdet,torch,pycocotools,faster_coco_eval,visualdl,scipy,sklearn,PIL,tqdm,simplejpeg"


PAGES = """
import resource, sys
import numpy as np
from ppfcos.deploy import Predictor
predictor = Predictor(sys.argv[1], "paddle", threads=1, device="cpu")
image = np.zeros((480, 640, 3), np.uint8)
for count in (7, 3):  # at first the heap grows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    predictor.predict([image] * count)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_paddle_reuses_freed_memory(bundle, root):
    """Otherwise the kernel clears pages for every convolution; the MALLOC variables take precedence."""

    def pages_cleared(**variables: str) -> int:
        program = [sys.executable, "-c", PAGES, str(bundle)]
        environment = {**os.environ, **variables}
        done = subprocess.run(program, cwd=root, env=environment, check=True, capture_output=True, text=True)
        return int(done.stdout.split()[-1])

    assert pages_cleared() < pages_cleared(MALLOC_MMAP_THRESHOLD_="131072") / 10


def test_deployment_imports_no_training_code(bundle, root, tmp_path):
    command = [sys.executable, "-c", ONLY_RUNS, str(bundle), str(tmp_path / "modules.json"), TRAINING]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = json.loads((tmp_path / "modules.json").read_text())
    packages = {"modeling", "data", "engine", "export", "config", "convert"}
    assert not {name for name in loaded if name.startswith("ppfcos.") and name.split(".")[1] in packages}
    assert not {name.split(".")[0] for name in loaded} & set(TRAINING.split(","))


def fresh_environment(folder: Path, *packages: str) -> str:
    """The interpreter of one that has these packages."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


@pytest.mark.slow  # installs from the package index
def test_bundle_runs_without_paddle(bundle, root, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(root / "ppfcos", source / "ppfcos")
    shutil.copytree(root / "requirements", source / "requirements")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    python = fresh_environment(tmp_path / "env", f"{source}[deploy]")
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True)
    packages = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert {"ppfcos", "numpy", "opencv-python", "pyyaml", "onnxruntime"} <= packages
    assert not packages & {"paddlepaddle", "paddledet", "pycocotools", "visualdl", "torch"}
    cv2.imwrite(str(tmp_path / "a.png"), pictures()[0])
    tool = "import sys; from ppfcos.cli.infer import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["--bundle", str(bundle), "--infer_img", "a.png", "--output_dir", "out", "--save_results"]
    subprocess.run([python, "-c", tool, *arguments], check=True, cwd=tmp_path)
    rows = json.loads((tmp_path / "out" / "bbox.json").read_text())
    here = Predictor(bundle, "onnxruntime").predict([pictures()[0]])[0]
    assert len(rows) == len(here) > 0
    np.testing.assert_allclose(sorted(row["score"] for row in rows), sorted(here.scores), atol=1e-4)


@pytest.mark.slow  # 250 MB come from the package registry
def test_fallback_from_gpu_to_cpu_is_reported(bundle, root, tmp_path):
    """onnxruntime-gpu without CUDA's libraries silently runs on the CPU."""
    python = fresh_environment(tmp_path, "onnxruntime-gpu", "numpy", "opencv-python-headless", "pyyaml")
    cv2.imwrite(str(tmp_path / "a.png"), pictures()[0])
    program = [python, root / "tools" / "infer.py", "--bundle", bundle, "--infer_img", tmp_path / "a.png"]
    program += ["--output_dir", tmp_path / "out", "--device"]
    done = subprocess.run([*program, "gpu"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: device gpu: ONNX .* cannot load the libraries of CUDA.*\n", done.stderr)
    done = subprocess.run([*program, "auto"], capture_output=True, text=True, check=True)
    assert "warning: ONNX Runtime" in done.stdout and "runs on the CPU; install" in done.stdout
    assert (tmp_path / "out" / "a.png").is_file()
