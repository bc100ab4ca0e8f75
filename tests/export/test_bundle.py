"""Export of bundles, and their parity with the checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import numpy as np
import paddle
import pytest
import yaml
from conftest import needs_export
from helpers.small_detector import CATEGORY_IDS, CLASS_NAMES, PROGRAM, exported, pictures, small_model

from ppfcos.cli.export_model import main
from ppfcos.config import load_config
from ppfcos.deploy import Detections, Detector, Predictor
from ppfcos.deploy.bundle import read_bundle
from ppfcos.errors import BundleError, ConfigError, DataError, OutputError
from ppfcos.export.bundle import export_bundle
from ppfcos.export.bundle_files import infer_config, preprocess_steps, source
from ppfcos.export.parity import compare, noise_batches
from ppfcos.export.program import network_input
from ppfcos.export.trained_model import (
    CheckpointRuntime,
    checkpoint_detector,
    model_categories,
    trained_model,
)

NOISE = list(noise_batches(network_input()))
BOX_TOLERANCE = 1e-3  # pixels
SCORE_TOLERANCE = 1e-5

RESIZE = {"Resize": {"target_size": [224, 320], "keep_ratio": True}}
READER = {
    "sample_transforms": [{"Decode": {}}, RESIZE, {"Permute": {}}],
    "batch_transforms": [{"PadBatch": {"pad_to_stride": 32}}],
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return exported(tmp_path_factory.getbasetemp() / "small")


def assert_same(expected: Detections, found: Detections, lowest_score: float = 0.0, full: int = 100) -> int:
    """Match the boxes one to one and return the number of pairs.

    A box with the threshold as its score, or the last one of a full list, may be missing on either side.
    """
    if full in (len(expected), len(found)):
        lowest_score = max(lowest_score, expected.scores[-1], found.scores[-1])
    partners = []
    for ones, others in ((expected, found), (found, expected)):
        matches = [_partner(ones, i, others) for i in range(len(ones))]
        certain = ones.scores > lowest_score + SCORE_TOLERANCE
        assert all(match is not None for match, sure in zip(matches, certain) if sure)
        partners.append([match for match in matches if match is not None])
    assert all(len(set(each)) == len(each) for each in partners)
    return len(partners[0])


def _partner(ones: Detections, i: int, others: Detections) -> int | None:
    near = np.flatnonzero(
        (others.labels == ones.labels[i])
        & (np.abs(others.scores - ones.scores[i]) <= SCORE_TOLERANCE)
        & (np.abs(others.boxes - ones.boxes[i]).max(axis=1) <= BOX_TOLERANCE)
    )
    return int(near[0]) if len(near) else None


@pytest.mark.parametrize("batch_size", [1, 4])
def test_bundle_matches_checkpoint(small, batch_size):
    bundle = Predictor(small.bundle, threads=2, batch=batch_size)
    checkpoint = Detector(bundle.preprocess, CheckpointRuntime(small.model), CLASS_NAMES, batch=batch_size)
    images, pairs = pictures(), 0
    for start in range(0, len(images), batch_size):
        group = images[start : start + batch_size]
        for expected, found in zip(checkpoint.predict(group), bundle.predict(group)):
            assert len(expected) > 5
            pairs += assert_same(expected, found, lowest_score=0.05)
    assert pairs > 300


OTHER_HEADS = (
    "PPFCOSFPN.extra_source=c5",
    "PPFCOSHead.norm_type=bn",
    "PPFCOSHead.distance=exp",
    "PPFCOSHead.centerness_on=class",
    "PPFCOSDecode.sqrt_score=true",
    "PPFCOSDecode.keep_top_k=30",
    "PPFCOSDecode.pre_nms_top_k=200",
    "ResNet.freeze_norm=false",
    "ResNet.freeze_at=-1",
)


@needs_export
def test_bundle_of_other_head_matches_checkpoint(tmp_path):
    cfg, model = small_model(tmp_path, *OTHER_HEADS)
    bundle = Predictor(export_bundle(model, cfg, CLASS_NAMES, tmp_path / "bundle"), threads=2)
    checkpoint = Detector(bundle.preprocess, CheckpointRuntime(model), CLASS_NAMES)
    images = pictures()[:4]
    pairs = zip(checkpoint.predict(images), bundle.predict(images))
    assert sum(assert_same(*pair, lowest_score=0.05, full=30) for pair in pairs) > 40


@needs_export
@pytest.mark.parametrize(
    "conventions",
    [
        ("PPFCOS.locations=anchors", "PPFCOSDecode.sqrt_score=true"),
        ("PPFCOSDecode.clip=after", "PPFCOSDecode.rank_by=class", "PPFCOSDecode.class_threshold=0.05"),
        ("PPFCOSDecode.inclusive=true", "PPFCOSDecode.class_top_k=50"),
    ],
)
def test_decode_options_of_other_projects_are_exported(tmp_path, conventions):
    cfg, model = small_model(tmp_path, *conventions)
    bundle = export_bundle(model, cfg, CLASS_NAMES, tmp_path / "bundle", CATEGORY_IDS)
    check = compare(CheckpointRuntime(model), Predictor(bundle, device="cpu").runtime, NOISE)
    assert check.holds and check.boxes > 20


def test_bundle_has_paddledetection_config(small):
    assert sorted(os.listdir(small.bundle)) == sorted(
        ["bundle.yml", "infer_cfg.yml", PROGRAM, "model.pdiparams"]
    )
    assert yaml.safe_load((small.bundle / "infer_cfg.yml").read_text()) == {
        "mode": "paddle",
        "draw_threshold": 0.5,
        "metric": "COCO",
        "use_dynamic_shape": True,
        "arch": "FCOS",
        "min_subgraph_size": 16,
        "Preprocess": [
            {"type": "Resize", "target_size": [224, 320], "keep_ratio": True, "interp": 1},
            {"type": "Permute"},
            {"type": "PadStride", "stride": 32},
        ],
        "label_list": CLASS_NAMES,
        "category_ids": CATEGORY_IDS,
    }


def test_manifest_describes_bundle(small):
    bundle = read_bundle(small.bundle)
    bundle.verify()
    assert sorted(bundle.files) == sorted(["infer_cfg.yml", PROGRAM, "model.pdiparams"])
    assert bundle.kind == "end_to_end" and bundle.heads is None
    assert (bundle.input.type, bundle.input.channels, bundle.input.layout) == ("float32", "rgb", "nchw")
    assert (bundle.input.batch, bundle.input.size) == (None, None)
    assert bundle.class_names == tuple(CLASS_NAMES) and bundle.category_ids == tuple(CATEGORY_IDS)
    assert bundle.preprocess == yaml.safe_load((small.bundle / "infer_cfg.yml").read_text())["Preprocess"]
    assert {name: getattr(small.model.decode, name) for name in vars(bundle.postprocess)} == vars(
        bundle.postprocess
    )
    assert bundle.networks == {"paddle": {"fp32": {"program": PROGRAM, "weights": "model.pdiparams"}}}


def test_source_comes_from_checkpoint(tmp_path):
    weights = tmp_path / "best_model.pdparams"
    weights.write_bytes(b"weights")
    known = {
        "config": "mine.yml",
        "weights": "best_model.pdparams",
        "weights_sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    assert source({"filename": "mine", "weights": str(weights)}) == known
    told = {"format": 1, "written": 0, "epochs": 7, "step": 0, "ap": 0.5, "run": None, "plan": None}
    (tmp_path / "best_model.json").write_text(json.dumps({**told, "class_names": None, "files": {}}))
    assert source({"filename": "mine", "weights": str(weights)}) == {**known, "epoch": 7, "ap": 0.5}
    address = {"filename": "mine", "weights": "https://host.example/a.pdparams"}
    assert source(address) == {"config": "mine.yml", "weights": "a.pdparams"}
    assert source({"filename": "mine"}) == {"config": "mine.yml"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"size": (800, 1333)}, "--fixed_size 800,1333.*800,1344"),
        ({"batch": 0}, "--batch 0"),
        ({"kind": "nv12", "channels": "bgr"}, "--channels bgr"),
    ],
)
def test_invalid_input_is_named(arguments, named):
    with pytest.raises(ConfigError, match=named):
        network_input(**arguments)


def test_no_temporary_files_are_left(small):
    assert not [name for name in os.listdir(small.bundle.parent) if name.startswith(".")]


@needs_export
def test_export_does_not_change_model(tmp_path):
    cfg, model = small_model(tmp_path)
    before = [output.numpy() for output in model(_as_tensors(NOISE[0])).values()]
    model.train()
    export_bundle(model, cfg, CLASS_NAMES, tmp_path / "bundle")
    assert model.training and all(layer.training for layer in model.head.sublayers())
    model.eval()
    after = [output.numpy() for output in model(_as_tensors(NOISE[0])).values()]
    for old, new in zip(before, after):
        np.testing.assert_allclose(old, new, rtol=1e-4)


def _as_tensors(batch: dict) -> dict:
    return {name: paddle.to_tensor(value) for name, value in batch.items()}


def test_existing_bundle_is_replaced(small, tmp_path):
    shutil.copytree(small.bundle, tmp_path / "bundle")
    cfg, model = small_model(tmp_path)
    export_bundle(model, cfg, ["x", "y", "z"], tmp_path / "bundle")
    assert Predictor(tmp_path / "bundle", "paddle").class_names == ("x", "y", "z")
    assert sorted(os.listdir(tmp_path)) == ["bundle", "small.yml"]


class ExportsOtherBoxes(paddle.nn.Layer):
    """A model whose exported program shifts its boxes by two pixels."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.decode = model.decode

    def forward(self, batch):
        outputs = self.model(batch)
        if not paddle.in_dynamic_mode():
            shift = paddle.to_tensor([0.0, 0.0, 2.0, 0.0, 0.0, 0.0])
            outputs = {"bbox": outputs["bbox"] + shift, "bbox_num": outputs["bbox_num"]}
        return outputs


class FailsToExport(paddle.nn.Layer):
    """A model with an operator that cannot be exported."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        if not paddle.in_dynamic_mode():
            raise NotImplementedError("this operator")
        return self.model(batch)


@needs_export
@pytest.mark.parametrize(
    ("broken", "message"), [(ExportsOtherBoxes, "disagrees"), (FailsToExport, "could not export")]
)
def test_failed_export_keeps_old_bundle(tmp_path, broken, message):
    cfg, model = small_model(tmp_path)
    old = tmp_path / "bundle"
    old.mkdir()
    (old / "model.json").write_text("old")
    with pytest.raises(BundleError, match=message):
        export_bundle(broken(model), cfg, CLASS_NAMES, old)
    assert (old / "model.json").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["bundle", "small.yml"]


def test_parity_check_counts_differences(small):
    class Shifted(CheckpointRuntime):
        def run(self, inputs):
            bbox, bbox_num = super().run(inputs)
            bbox[:, 2] += np.where(np.arange(len(bbox)) < self.changed, 0.5, 0)
            return bbox, bbox_num

    for changed, holds in ((0, True), (1, True), (1000, False)):
        Shifted.changed = changed
        check = compare(CheckpointRuntime(small.model), Shifted(small.model), NOISE)
        assert check.holds == holds and check.boxes > 40
        assert (check.unmatched > 0) == (changed > 0)


def test_folder_with_other_files_is_not_replaced(small, tmp_path):
    cfg = {"TestReader": READER}
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        export_bundle(small.model, cfg, CLASS_NAMES, tmp_path / "bundle")
    with pytest.raises(OutputError, match="in the way"):
        export_bundle(small.model, cfg, CLASS_NAMES, tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        export_bundle(small.model, cfg, CLASS_NAMES, tmp_path / "file" / "bundle")


def test_reader_becomes_preprocess_steps():
    reader = {
        **READER,
        "sample_transforms": [{"Decode": None}, {"Resize": {"target_size": 64}}, {"Permute": None}],
    }
    assert preprocess_steps(reader) == [
        {"type": "Resize", "target_size": [64, 64], "keep_ratio": True, "interp": 1},
        {"type": "Permute"},
        {"type": "PadStride", "stride": 32},
    ]
    assert infer_config({"TestReader": reader}, ["a", "b"])["category_ids"] == [0, 1]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"sample_transforms": [{"Decode": {}}, RESIZE]}, "Permute"),
        ({"sample_transforms": [{"RandomFlip": {}}, {"Permute": {}}]}, "RandomFlip"),
        ({"sample_transforms": [{"Resize": {"target_size": [1, 2, 3]}}, {"Permute": {}}]}, "target_size"),
        ({"batch_transforms": []}, "pad_to_stride"),
        ({"batch_transforms": [{"PadBatch": {"pad_to_stride": 20}}]}, "pad_to_stride"),
    ],
)
def test_unsupported_reader_is_named(changed, named):
    with pytest.raises(ConfigError, match=f"TestReader.*{named}"):
        preprocess_steps({**READER, **changed})


def test_checkpoint_detector_matches_model(small):
    cfg = load_config(small.config, [f"weights={small.weights}"])
    detector = checkpoint_detector(cfg)
    expected = Detector(detector.preprocess, CheckpointRuntime(small.model), CLASS_NAMES).predict(
        pictures()[:2]
    )
    for one, other in zip(expected, detector.predict(pictures()[:2])):
        np.testing.assert_array_equal(one.boxes, other.boxes)
    assert detector.class_names == tuple(CLASS_NAMES) and detector.category_ids == (1, 2, 3)


def test_missing_weights_key_is_named(small):
    with pytest.raises(ConfigError, match="weights="):
        trained_model(load_config(small.config))


def test_class_names_come_from_first_source(root, small, tinycoco, caplog):
    stock = root / "configs" / "fcos_r50_fpn_1x_coco.yml"
    here = ["TestDataset.dataset_dir=nowhere", f"EvalDataset.dataset_dir={tinycoco}"]
    annotated = model_categories(load_config(stock, here))
    absent = [f"{section}.dataset_dir=nowhere" for section in ("TrainDataset", "EvalDataset", "TestDataset")]
    built_in = model_categories(load_config(stock, absent))
    assert annotated == built_in
    assert (built_in[0], built_in[79]) == ({"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"})
    assert caplog.text == ""
    made_up = model_categories(load_config(stock, [*absent, "num_classes=2"]))
    assert [each["name"] for each in made_up] == ["class 0", "class 1"]
    [record] = caplog.records  # only one message
    assert "classes are numbered" in record.message and "set TestDataset.class_names" in record.message
    with pytest.raises(DataError, match="num_classes"):
        model_categories(load_config(small.config, ["num_classes=4"]))


@needs_export
def test_network_without_detections(tmp_path, caplog):
    """As at the start of training, all scores are below the threshold."""
    cfg, model = small_model(tmp_path, class_bias=(-12.0, -12.0, -12.0))
    bundle = export_bundle(model, cfg, CLASS_NAMES, tmp_path / "bundle")
    assert "finds nothing in the test images" in caplog.text
    assert "checked with noise" in caplog.text and "--check_images" in caplog.text
    bbox, bbox_num = Predictor(bundle).runtime.run(NOISE[1])
    assert bbox.shape == (0, 6) and bbox_num.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--layout", "nhwc"], "--kind heads"),
        (["--fixed_size", "100,200"], "128,224"),
        (["--formats", "paddle", "--precision", "fp32,fp16"], "add onnx to --formats"),
        (["--check_images", "nowhere"], "nowhere"),
    ],
)
def test_invalid_options_are_named_in_one_line(small, tmp_path, capsys, options, named):
    arguments = ["-c", str(small.config), "-o", f"weights={small.weights}", "--output_dir", str(tmp_path)]
    assert main([*arguments, *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and named in line
    assert list(tmp_path.iterdir()) == []
