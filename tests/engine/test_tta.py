"""Multi-scale and flip testing: its merging equals a plain loop, and one plain pass changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import paddle
import pytest
from conftest import needs_export
from helpers import reference, small_detector
from helpers.small_config import write_config
from hypothesis import given, settings
from hypothesis import strategies as st
from ppdet.core.workspace import create

from ppfcos.cli import eval as eval_command
from ppfcos.cli import export_model, infer
from ppfcos.config import load_config
from ppfcos.data.shapes import generate
from ppfcos.engine.tta import TTAModel, tta_config, tta_model, vote_boxes
from ppfcos.errors import ConfigError
from ppfcos.modeling.fcos import PPFCOS
from ppfcos.modeling.postprocess import Candidates, PPFCOSDecode

STRIDE = 32
PLAIN = {"stride": STRIDE, "interp": 1, "flip": False, "merge": "nms", "vote_iou": 0.66, "size_ranges": None}


class Scripted(paddle.nn.Layer):
    """Returns scripted candidates in each pass, and records its inputs."""

    def __init__(self, passes: list, num_classes: int, **decode):
        super().__init__()
        self.decode = PPFCOSDecode(**decode)
        self.head = paddle.nn.Layer()
        self.head.num_classes = num_classes
        self.passes = list(passes)
        self.seen: list = []

    def candidates(self, batch: dict) -> tuple:
        self.seen.append({name: tensor.numpy() for name, tensor in batch.items()})
        return Candidates(*(paddle.to_tensor(part[None]) for part in self.passes.pop(0)))


def random_candidates(rng, count: int, width: int, height: int, classes: int) -> Candidates:
    centres = rng.uniform(0, 1, (count, 2)) * [width, height]
    half = rng.uniform(2, 40, (count, 2))
    boxes = np.concatenate([centres - half, centres + half], 1).clip(0, [width, height, width, height])
    boxes = boxes.astype("float32")
    return Candidates(
        boxes,
        boxes,
        rng.uniform(0, 1, count).astype("float32"),
        rng.integers(0, classes, count).astype("int64"),
    )


def batch_of(image: np.ndarray) -> dict:
    """An image [H, W, 3] as the readers give it, with padding that is to be ignored."""
    height, width = image.shape[:2]
    padded = np.full((1, 3, height + 5, width + 9), 77, np.uint8)
    padded[0, :, :height, :width] = image.transpose(2, 0, 1)
    return {
        "image": paddle.to_tensor(padded),
        "im_shape": paddle.to_tensor([[height, width]], "float32"),
        "scale_factor": paddle.ones([1, 2]),
    }


def naive_merge(passes, mirrored, scales, ranges, width, *, threshold, nms_iou, keep, vote_iou):
    """(label, score, x0, y0, x1, y1), best first: one box after the other, in double precision."""
    everything = []
    for found, flipped, scale, (low, high) in zip(passes, mirrored, scales, ranges):
        for box, _, score, label in zip(*found):
            x0, y0, x1, y1 = (float(side) for side in box)
            if flipped:
                x0, x1 = width - x1, width - x0
            if score > threshold and low < scale * ((x1 - x0) * (y1 - y0)) ** 0.5 < high:
                everything.append((int(label), float(score), x0, y0, x1, y1))
    everything.sort(key=lambda box: -box[1])
    kept = []
    for box in everything:
        if all(box[0] != k[0] or reference.box_iou(box[2:], k[2:]) <= nms_iou for k in kept):
            kept.append(box)
    kept = kept[:keep]
    if vote_iou is None:
        return kept
    result = []
    for box in kept:
        near = [o for o in everything if o[0] == box[0] and reference.box_iou(o[2:], box[2:]) >= vote_iou]
        total = sum(other[1] for other in near)
        mean = (sum(other[1] * other[i] for other in near) / total for i in range(2, 6))
        result.append((*box[:2], *mean))
    return result


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    classes=st.integers(1, 3),
    flip=st.booleans(),
    merge=st.sampled_from(["nms", "vote"]),
    vote_iou=st.sampled_from([0.5, 0.7]),
    ranged=st.booleans(),
    nms_iou=st.sampled_from([0.4, 0.6]),
    keep=st.sampled_from([3, 100]),
)
def test_merging_equals_a_plain_loop(seed, classes, flip, merge, vote_iou, ranged, nms_iou, keep):
    rng = np.random.default_rng(seed)
    width, height = 120, 90
    sizes, ranges = [[90, 400], [180, 400]], [[20, 1000], [0, 70]]
    count = 2 * (1 + flip)
    passes = [random_candidates(rng, 40, width, height, classes) for _ in range(count)]
    model = Scripted(passes, classes, score_threshold=0.2, nms_threshold=nms_iou, keep_top_k=keep)
    options = {**PLAIN, "flip": flip, "merge": merge, "vote_iou": vote_iou}
    options["size_ranges"] = ranges if ranged else None
    augmented = TTAModel(model, target_size=sizes, **options)
    answer = augmented(batch_of(np.zeros((height, width, 3), np.uint8)))
    found = answer["bbox"].numpy()
    found = found[np.argsort(-found[:, 1], kind="stable")]
    each = 1 + flip
    expected = naive_merge(
        passes,
        [False, True] * 2 if flip else [False] * 2,
        [1.0] * each + [2.0] * each,
        [ranges[i // each] if ranged else (0, 1e9) for i in range(count)],
        width,
        threshold=0.2,
        nms_iou=nms_iou,
        keep=keep,
        vote_iou=vote_iou if merge == "vote" else None,
    )
    assert augmented.passes == count == len(model.seen)
    assert answer["bbox_num"].numpy().tolist() == [len(expected)] == [len(found)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_every_pass_sees_the_whole_image_and_no_padding():
    image = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    no_boxes = np.zeros((0, 4), "float32")
    nothing = Candidates(no_boxes, no_boxes, np.zeros(0, "float32"), np.zeros(0, "int64"))
    model = Scripted([nothing] * 4, 3)
    augmented = TTAModel(model, target_size=[[60, 400], [120, 160]], **{**PLAIN, "flip": True})
    answer = augmented(batch_of(image))
    assert answer["bbox"].shape == [0, 6] and answer["bbox_num"].tolist() == [0]
    for shown, (height, width, factor) in zip(model.seen[::2], [(60, 100, 1.0), (96, 160, 1.6)]):
        resized = cv2.resize(image, None, fx=factor, fy=factor)
        assert shown["image"].shape[2] % STRIDE == shown["image"].shape[3] % STRIDE == 0
        np.testing.assert_array_equal(shown["image"][0, :, :height, :width], resized.transpose(2, 0, 1))
        assert (shown["image"][0, :, height:] == 0).all() and (shown["image"][0, :, :, width:] == 0).all()
        np.testing.assert_allclose(shown["im_shape"], [[height, width]])
        np.testing.assert_allclose(shown["scale_factor"], [[factor, factor]])
    for plain, mirrored in zip(model.seen[::2], model.seen[1::2]):
        width = int(plain["im_shape"][0, 1])
        seen = mirrored["image"][..., :width]
        np.testing.assert_array_equal(seen, plain["image"][..., :width][..., ::-1])


def test_votes_are_weighted_by_score():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 10], [50, 50, 60, 60]], "float32")
    candidates = Candidates(
        boxes, boxes + 1, np.array([0.9, 0.6, 0.3, 0.5], "float32"), np.array([1, 1, 2, 1])
    )
    # The third is of another class, the fourth elsewhere; and what is shown has the votes.
    expected = [[1, 1, 11, (0.9 * 11 + 0.6 * 10) / 1.5], [51, 51, 61, 61]]
    np.testing.assert_allclose(vote_boxes(candidates, np.array([0, 3]), 0.6), expected, rtol=1e-6)
    np.testing.assert_array_equal(vote_boxes(candidates, np.array([0, 3]), 0.95), boxes[[0, 3]] + 1)
    # What the image's edge has left nothing of has no vote.
    candidates.output_boxes[1] = -1
    np.testing.assert_array_equal(vote_boxes(candidates, np.array([0, 3]), 0.6), boxes[[0, 3]] + 1)


# With a real network


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The small detector's configuration, model and weights file."""
    folder = tmp_path_factory.mktemp("detector")
    _, model = small_detector.small_model(folder)
    weights = folder / "weights.pdparams"
    paddle.save(model.state_dict(), str(weights))
    return folder / "small.yml", model, weights


def infer_rows(detector, folder, *overrides: str) -> list:
    """Detections of tools/infer.py in five images."""
    config, _, weights = detector
    pictures = folder / "pictures"
    if not pictures.exists():
        pictures.mkdir()
        for number, picture in enumerate(small_detector.pictures()[:5]):
            cv2.imwrite(str(pictures / f"{number}.png"), picture)
    output = folder / f"out{len(list(folder.iterdir()))}"
    arguments = ["-c", config, "--infer_dir", pictures, "--output_dir", output, "--save_results"]
    assert infer.main([*map(str, arguments), "-o", f"weights={weights}", *overrides]) == 0
    return json.loads((output / "bbox.json").read_text())


@pytest.mark.parametrize("decode", [[], ["PPFCOSDecode.clip=after"], ["PPFCOSDecode.inclusive=true"]])
def test_one_size_without_flip_is_plain_inference(detector, tmp_path, decode):
    plain = infer_rows(detector, tmp_path, *decode)
    once = infer_rows(detector, tmp_path, *decode, "tta={target_size: [[224, 320]], flip: false}")
    assert len(plain) > 50
    assert once == plain


def test_flipped_images_have_flipped_boxes(detector):
    """With flip, an image and its mirror image have the same passes."""
    _, model, _ = detector
    augmented = TTAModel(model, target_size=[[96, 128]], **{**PLAIN, "flip": True, "merge": "vote"})
    augmented.eval()
    picture = small_detector.draw_image(96, 128, seed=3)
    found, mirrored = (
        augmented(batch_of(each))["bbox"].numpy()
        for each in (picture, np.ascontiguousarray(picture[:, ::-1]))
    )
    mirrored[:, [2, 4]] = 128 - mirrored[:, [4, 2]]
    assert len(found) == len(mirrored) > 20
    order = [np.lexsort(np.round(rows[:, ::-1].T, 2)) for rows in (found, mirrored)]
    np.testing.assert_allclose(found[order[0]], mirrored[order[1]], rtol=1e-3, atol=0.02)


@pytest.fixture
def evaluation(tmp_path, root):
    """Arguments of tools/eval.py for four generated images and random weights, and a folder."""
    generate(tmp_path / "shapes", train=1, val=4, size=96, seed=3)
    path = write_config(tmp_path / "small.yml", root, tmp_path / "shapes", tmp_path / "output")
    load_config(path)
    paddle.seed(5)
    model = create("PPFCOS")
    rng = np.random.default_rng(5)
    for name in ("class_conv", "box_conv", "quality_conv"):
        weight = getattr(model.head, name).weight
        weight.set_value(rng.normal(0, 0.1, weight.shape).astype("float32"))
    model.head.class_conv.bias.set_value(np.full(3, -2.0, "float32"))
    paddle.save(model.state_dict(), str(tmp_path / "weights.pdparams"))
    return ["-c", str(path), "-o", f"weights={tmp_path / 'weights.pdparams'}"], tmp_path


def detections(folder) -> list:
    return json.loads((folder / "bbox.json").read_text())


def test_one_size_without_flip_is_plain_evaluation(evaluation):
    arguments, folder = evaluation
    assert eval_command.main([*arguments, "--output_eval", str(folder / "plain")]) == 0
    tta = "tta={target_size: [[96, 96]], flip: false}"
    assert eval_command.main([*arguments, tta, "--output_eval", str(folder / "once")]) == 0
    assert len(detections(folder / "plain")) > 100
    assert detections(folder / "once") == detections(folder / "plain")


@pytest.mark.slow
def test_two_processes_give_the_detections_of_one(evaluation, root):
    arguments, folder = evaluation
    # Batches of one: whichever images share a batch is then the same for both.
    arguments += ["EvalReader.batch_size=1", "tta={target_size: [[96, 96], [64, 96]], merge: vote}"]
    assert eval_command.main([*arguments, "--output_eval", str(folder / "one")]) == 0
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    command += ["--log_dir", str(folder / "log"), str(root / "tools" / "eval.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output_eval", str(folder / "two")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    key = lambda found: (found["image_id"], found["category_id"], -found["score"])  # noqa: E731
    one, two = (sorted(detections(folder / name), key=key) for name in ("one", "two"))
    assert len(one) == len(two) > 100
    for found, other in zip(one, two):
        assert key(found)[:2] == key(other)[:2]
        np.testing.assert_allclose(
            [found["score"], *found["bbox"]], [other["score"], *other["bbox"]], rtol=1e-4, atol=1e-2
        )


@needs_export
def test_tta_is_not_exported(detector, tmp_path, capsys):
    config, _, weights = detector
    arguments = ["-c", str(config), "-o", f"weights={weights}", "tta={}", "--output_dir", str(tmp_path)]
    assert export_model.main(arguments) == 2
    assert "tta: a bundle runs each image once" in capsys.readouterr().err


def test_unsupported_settings_are_one_line_errors(detector, tmp_path, capsys):
    config, _, weights = detector
    common = ["-c", str(config), "-o", f"weights={weights}"]
    for settings_, message in (
        ("tta={size_ranges: [[0, 10]]}", "tta.size_ranges has 1 ranges, and tta.target_size 9 sizes"),
        ("tta={target_siz: []}", "unknown key 'tta.target_siz'; did you mean 'target_size'?"),
        (
            "tta={target_size: [400]}",
            "tta.target_size should be a list of at most 100 [shorter side, longest side]",
        ),
        ("tta={merge: mean}", "tta.merge should be nms or vote"),
        ("tta=true", "tta should be a mapping or null"),
    ):
        arguments = [*common, settings_, "--infer_img", str(config), "--output_dir", str(tmp_path / "out")]
        assert infer.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error
    cfg = load_config(config, ["tta={}"])
    cfg["TestReader"]["sample_transforms"].insert(1, {"RandomFlip": {}})
    with pytest.raises(ConfigError, match="tta resizes the images itself: TestReader"):
        tta_config(cfg, "TestReader")


def test_without_tta_the_reader_and_the_model_are_unchanged(detector):
    config, model, _ = detector
    cfg = load_config(config)
    assert tta_config(cfg, "TestReader") is cfg
    assert tta_model(model, cfg, "TestReader") is model
    assert isinstance(tta_model(model, load_config(config, ["tta={}"]), "TestReader").model, PPFCOS)
