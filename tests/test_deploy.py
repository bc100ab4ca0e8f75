"""From images to boxes without the training code: preprocessing, bundles, the predictor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from ppdet.data.transform.batch_operators import PadBatch
from ppdet.data.transform.operators import Decode, Permute, Resize
from small_detector import CATEGORY_IDS, CLASS_NAMES, draw_picture, exported, pictures

from ppfcos.deploy import Detections, Predictor
from ppfcos.deploy.bundle import read_bundle
from ppfcos.deploy.detections import split_batch
from ppfcos.deploy.preprocess import Preprocess, read_image
from ppfcos.errors import BundleError, DataError, DeviceError

RESIZES = [
    {"target_size": [320, 480], "keep_ratio": True, "interp": 1},
    {"target_size": [480, 320], "keep_ratio": True, "interp": 2},
    {"target_size": 256, "keep_ratio": True, "interp": 1},
    {"target_size": [192, 288], "keep_ratio": False, "interp": 1},
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.getbasetemp() / "small").bundle


@pytest.fixture(scope="module")
def predictor(bundle) -> Predictor:
    return Predictor(bundle, threads=2)


def steps_for(resize: dict) -> list:
    return [{"type": "Resize", **resize}, {"type": "Permute"}, {"type": "PadStride", "stride": 32}]


def paddledetections_batch(files: list, resize: dict) -> list:
    """What PaddleDetection's own operators make of the files."""
    samples = []
    for file in files:
        sample = {"im_file": str(file)}
        for operator in (Decode(), Resize(**resize), Permute()):
            sample = operator(sample)
        samples.append(sample)
    return PadBatch(pad_to_stride=32)(samples)


@pytest.mark.parametrize("resize", RESIZES)
def test_preprocessing_is_paddledetections(tmp_path, resize):
    random = np.random.default_rng(3)
    sizes = [tuple(random.integers(20, 700, 2)) for _ in range(12)] + [(320, 480), (1, 1), (333, 500)]
    files = []
    for i, (height, width) in enumerate(sizes):
        files.append(tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}")
        cv2.imwrite(str(files[-1]), draw_picture(height, width, i))
    ours = Preprocess(steps_for(resize))([read_image(file) for file in files])
    theirs = paddledetections_batch(files, resize)
    np.testing.assert_array_equal(ours["image"], np.stack([sample["image"] for sample in theirs]))
    np.testing.assert_array_equal(ours["scale_factor"], np.stack([s["scale_factor"] for s in theirs]))
    np.testing.assert_array_equal(ours["im_shape"], np.stack([s["im_shape"] for s in theirs]))
    assert {array.dtype for array in ours.values()} == {np.dtype(np.float32)}


def test_a_needle_keeps_one_pixel():
    batch = Preprocess(steps_for(RESIZES[0]))([np.full((1, 2000, 3), 9, np.uint8)])
    assert batch["image"].shape == (1, 3, 32, 480)
    assert (batch["image"][0, :, 0] == 9).all() and not batch["image"][0, :, 1:].any()


def test_orientation_in_exif_is_obeyed(tmp_path):
    upright = draw_picture(40, 60, 0)
    picture = Image.fromarray(upright[:, :, ::-1].copy()).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to see it upright
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    assert read_image(tmp_path / "turned.jpg").shape == (40, 60, 3)
    np.testing.assert_allclose(read_image(tmp_path / "turned.jpg"), upright, atol=12)


@pytest.mark.parametrize("content", [None, b"", b"no picture at all", b"\x89PNG\r\n\x1a\n"])
def test_an_unreadable_image_is_named(tmp_path, content):
    path = tmp_path / "holiday.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"holiday\.jpg"):
        read_image(path)


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ([{"type": "NormalizeImage", "mean": [0, 0, 0]}, {"type": "Permute"}], "NormalizeImage"),
        ([{"type": "Resize", "size": 3}, {"type": "Permute"}], "size"),
        ([{"type": "Resize", "target_size": [3]}, {"type": "Permute"}], "target_size"),
        ([{"type": "Resize", "target_size": 64}], "Permute"),
        (["Permute"], "Permute"),
    ],
)
def test_steps_that_cannot_be_are_named(steps, named):
    with pytest.raises(BundleError, match=named):
        Preprocess(steps)


def test_a_batch_is_cut_into_images_with_the_best_box_first():
    bbox = np.array([[1, 0.2, 0, 1, 2, 3], [0, 0.9, 4, 5, 6, 7], [2, 0.5, 1, 1, 2, 2]], np.float32)
    first, empty, last = split_batch(bbox, np.array([2, 0, 1], np.int32), ("a", "b", "c"))
    assert first.labels.tolist() == [0, 1] and first.boxes[0].tolist() == [4, 5, 6, 7]
    assert len(empty) == 0 and empty.boxes.shape == (0, 4)
    assert last.scores.tolist() == [0.5] and last.above(0.6).labels.tolist() == []


def test_the_predictor_finds_boxes_inside_the_pictures(predictor):
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


def test_a_path_is_read_as_its_array(predictor, tmp_path):
    picture = draw_picture(120, 160, 5)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    from_path, from_text, from_array, from_view = (
        predictor.predict([image])[0]
        for image in (tmp_path / "a.png", str(tmp_path / "a.png"), picture, np.asfortranarray(picture))
    )
    for other in (from_text, from_array, from_view):
        np.testing.assert_array_equal(from_path.boxes, other.boxes)
    assert len(from_path) > 0


def test_no_images_no_detections(predictor):
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_picture_is_named(predictor, array):
    with pytest.raises(DataError, match="image 1 of the list"):
        predictor.predict([np.zeros((8, 8, 3), np.uint8), array])


def test_one_image_that_is_no_list_is_refused(predictor):
    with pytest.raises(DataError, match="list"):
        predictor.predict(np.zeros((8, 8, 3), np.uint8))


def test_threads_may_share_a_predictor(predictor):
    images = pictures()[:4]
    alone = [predictor.predict([image])[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: predictor.predict([image])[0], images * 3))
    for i, each in enumerate(together):
        np.testing.assert_allclose(each.boxes, alone[i % 4].boxes, atol=1e-3)


def test_a_missing_or_incomplete_bundle_is_named(bundle, tmp_path):
    with pytest.raises(BundleError, match=r"nowhere.*export_model"):
        Predictor(tmp_path / "nowhere")
    for name in ("model.json", "model.pdiparams", "infer_cfg.yml"):
        folder = shutil.copytree(bundle, tmp_path / name.replace(".", "_"))
        (folder / name).unlink()
        with pytest.raises(BundleError, match=f"lacks {name}"):
            Predictor(folder)


@pytest.mark.parametrize(
    "content",
    [
        "label_list: [a]",
        "- 1",
        "Preprocess: [",
        "!!python/object/apply:os.system [echo]",
        "Preprocess: []\nlabel_list: [a]\ncategory_ids: [x]",
    ],
)
def test_a_wrong_description_is_named(bundle, tmp_path, content):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    (folder / "infer_cfg.yml").write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match=r"infer_cfg\.yml") as raised:
        read_bundle(folder)
    assert "\n" not in str(raised.value)


def test_a_description_without_category_ids_numbers_them(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    config = yaml.safe_load((folder / "infer_cfg.yml").read_text())
    del config["category_ids"]
    (folder / "infer_cfg.yml").write_text(yaml.safe_dump(config))
    assert read_bundle(folder).category_ids == (0, 1, 2)


@pytest.mark.parametrize(
    ("name", "kept"), [("model.pdiparams", 5000), ("model.json", 5000), ("model.json", 0)]
)
def test_damaged_files_are_a_bundle_error(bundle, tmp_path, name, kept):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    (folder / name).write_bytes((folder / name).read_bytes()[:kept])
    with pytest.raises(BundleError, match="damaged") as raised:
        Predictor(folder)
    assert "\n" not in str(raised.value)


def test_a_device_that_is_not_there_is_named(bundle):
    with pytest.raises(DeviceError, match="tpu"):
        Predictor(bundle, device="tpu")


FOREIGN = """
import json, sys
import numpy as np
import ppfcos.deploy
light = sorted(sys.modules)
ppfcos.deploy.Predictor(sys.argv[1], threads=1).predict([np.zeros((64, 96, 3), np.uint8)])
json.dump([light, sorted(sys.modules)], open(sys.argv[2], "w"))
"""


def test_deployment_needs_no_training_code(bundle, root, tmp_path):
    command = [sys.executable, "-c", FOREIGN, str(bundle), str(tmp_path / "modules.json")]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    light, loaded = json.loads((tmp_path / "modules.json").read_text())
    rooms = {"modeling", "data", "engine", "export", "config", "cli", "report", "convert"}
    assert not {name for name in loaded if name.startswith("ppfcos.") and name.split(".")[1] in rooms}
    assert not {name.split(".")[0] for name in loaded} & {"ppdet", "torch", "pycocotools"}
    assert "paddle" not in {name.split(".")[0] for name in light}
    assert "paddle" in loaded
