"""ONNX exports of every kind, input, size and precision, in ONNX Runtime and OpenVINO."""

from __future__ import annotations

import collections
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import onnxruntime
import openvino
import paddle
import pytest
from conftest import needs_export, skip_without_export
from helpers.small_detector import CATEGORY_IDS, CLASS_NAMES, pictures, small_model
from paddle.static import InputSpec
from ppdet.core.workspace import create

from ppfcos.deploy import Predictor
from ppfcos.deploy.bundle import read_bundle
from ppfcos.deploy.detections import split_batch
from ppfcos.deploy.images import NV12Image
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.errors import BundleError, ConfigError
from ppfcos.export.bundle import ExportOptions, export_bundle
from ppfcos.export.fp16 import convert_to_fp16
from ppfcos.export.onnx_export import OPSETS, end_to_end_model, model_with_nms
from ppfcos.export.onnx_nms import nms_graph
from ppfcos.export.parity import TOLERANCES, ExportedInputRuntime, compare, noise_batches
from ppfcos.export.program import CandidatesNetwork, HeadsSpec, Nv12ToRGB, network_input
from ppfcos.export.trained_model import CheckpointRuntime
from ppfcos.modeling.fcos import center_grid
from ppfcos.modeling.fuse import fuse_batch_norms
from ppfcos.modeling.head import HeadOutputs
from ppfcos.modeling.postprocess import Candidates, PPFCOSDecode

BOTH = ("paddle", "onnx")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    cfg, model = small_model(folder)
    return cfg, model, folder


@pytest.fixture(scope="module")
def end_to_end(detector):
    """A bundle with end-to-end networks in all formats and float precisions."""
    skip_without_export()
    cfg, model, folder = detector
    wanted = ExportOptions(formats=BOTH, precisions=("fp32", "fp16"))
    return export_bundle(model, cfg, CLASS_NAMES, folder / "end_to_end", CATEGORY_IDS, wanted)


def batches_of(bundle, count: int) -> list:
    description = read_bundle(bundle)
    images = pictures()
    preprocess = Preprocess(description.preprocess, description.input)
    return [preprocess(images[start : start + count]) for start in range(0, len(images) - count + 1, count)]


def assert_agrees(bundle, model, runtime: str, count: int, precision: str = "fp32") -> None:
    reference = ExportedInputRuntime(read_bundle(bundle).input, CheckpointRuntime(model))
    candidate = Predictor(bundle, runtime, precision, threads=2).runtime
    check = compare(reference, candidate, batches_of(bundle, count), TOLERANCES[precision])
    assert check.boxes > 100 and check.holds, check
    assert precision != "fp32" or check.unmatched <= 2, check


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("count", [1, 4])
def test_boxes_match_checkpoint(end_to_end, detector, runtime, count):
    assert_agrees(end_to_end, detector[1], runtime, count)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_fp16_moves_boxes_less_than_half_a_pixel(end_to_end, detector, runtime):
    assert_agrees(end_to_end, detector[1], runtime, 1, "fp16")


def test_fp16_excludes_last_convolutions_and_outputs(end_to_end):
    model = onnx.load(end_to_end / "model_fp16.onnx")
    types = {each.name: each.data_type for each in model.graph.initializer}
    kernels = [types[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
    # three last convolutions on each of five levels
    assert kernels.count(onnx.TensorProto.FLOAT) == 15
    assert kernels.count(onnx.TensorProto.FLOAT16) == len(kernels) - 15
    whole = onnx.load(end_to_end / "model.onnx")
    for one, other in zip(
        (*whole.graph.input, *whole.graph.output), (*model.graph.input, *model.graph.output)
    ):
        assert one.type.tensor_type.elem_type == other.type.tensor_type.elem_type
    assert (end_to_end / "model_fp16.onnx").stat().st_size < 0.6 * (end_to_end / "model.onnx").stat().st_size


def test_fp16_excludes_sums_of_normalization():
    """The sums of squares of features in the hundreds exceed 65504."""
    image = onnx.parser.parse_graph(
        "g (float[1, 4, 64, 64] x) => (float[1, 4, 64, 64] y) { a = Conv (x, w)  s = Constant "
        "<value_floats = [1.0, 1.0, 1.0, 1.0]> ()  z = Constant <value_floats = [0.0, 0.0, 0.0, 0.0]> ()"
        " n = InstanceNormalization (a, s, z)  y = Conv (n, w) }"
    )
    for node in image.node:
        node.name = node.output[0]
    kernel = np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)
    image.initializer.append(onnx.numpy_helper.from_array(kernel, "w"))
    model = onnx.helper.make_model(image, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    x = np.random.default_rng(0).normal(400, 300, (1, 4, 64, 64)).astype(np.float32)
    whole, half = (
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )[0]
        for each in (model, convert_to_fp16(model))
    )
    np.testing.assert_allclose(half, whole, atol=0.01)


SPECS = {
    "bytes": (None, network_input("uint8", "bgr", batch=2, size=(224, 320))),
    "nv12": (None, network_input("nv12")),
    "heads": (HeadsSpec("nhwc", "strides"), network_input("float32", "bgr")),
    "board": (HeadsSpec("nchw", "pixels", image_only=True), network_input("nv12", batch=1, size=(320, 320))),
}


SLOW_SPECS = [pytest.param(name, marks=pytest.mark.slow) for name in ("bytes", "board")]


@needs_export
@pytest.mark.parametrize("name", ["nv12", "heads", *SLOW_SPECS])
def test_every_input_and_output_matches_in_every_runtime(detector, name):
    cfg, model, folder = detector
    heads, form = SPECS[name]
    bundle = export_bundle(model, cfg, CLASS_NAMES, folder / name, None, ExportOptions(heads, form, BOTH))
    assert not (bundle / "infer_cfg.yml").exists()  # PaddleDetection's script could not run it
    graph = onnx.load(bundle / "model.onnx").graph
    sizes = {each.name: [side.dim_value for side in each.type.tensor_type.shape.dim] for each in graph.input}
    expected = {
        "bytes": {"image": [2, 224, 320, 3], "im_shape": [2, 2], "scale_factor": [2, 2]},
        "nv12": {"image": [0, 0, 0], "im_shape": [0, 2], "scale_factor": [0, 2]},
        "heads": {"image": [0, 3, 0, 0], "im_shape": [0, 2]},
        "board": {"image": [1, 480, 320]},
    }
    assert sizes == expected[name]
    whole = heads is not None and heads.image_only
    reference = ExportedInputRuntime(form, CheckpointRuntime(model))
    for runtime in ("onnxruntime", "openvino", "paddle"):
        candidate = Predictor(bundle, runtime, threads=2).runtime
        batches = list(noise_batches(form, seed=3))[:2]
        for batch in batches:
            batch["im_shape"] = np.full_like(batch["im_shape"], 320) if whole else batch["im_shape"]
        check = compare(reference, candidate, batches)
        assert check.boxes > 20 and check.unmatched <= 1, (runtime, check)


def test_nv12_conversion_matches_opencv():
    """For every Y with many U and V."""
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (96, 128), np.uint8)
    data[:16, :16] = np.arange(256).reshape(16, 16)
    expected = NV12Image(data, 64, 128).pixels()[:, :, ::-1]
    found = Nv12ToRGB()(paddle.to_tensor(data[None])).numpy()[0].transpose(1, 2, 0)
    assert np.abs(found - expected.astype(np.float32)).max() <= 1
    np.testing.assert_array_equal(expected, cv2.cvtColor(data, cv2.COLOR_YUV2RGB_NV12))


@needs_export
def test_batch_norms_are_folded(tmp_path):
    _, model = small_model(
        tmp_path, "PPFCOSHead.norm_type=bn", "ResNet.freeze_norm=false", "ResNet.freeze_at=-1"
    )
    random = np.random.default_rng(0)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            for tensor, low, high in (
                (layer._mean, -0.5, 0.5),
                (layer._variance, 0.5, 2),
                (layer.weight, 0.5, 2),
            ):
                tensor.set_value(random.uniform(low, high, tensor.shape).astype(np.float32))
    folded = fuse_batch_norms(model)
    assert not [layer for layer in folded.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    assert [layer for layer in model.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    image = paddle.to_tensor(random.uniform(0, 255, (1, 3, 64, 96)).astype(np.float32))
    size = paddle.to_tensor([[64.0, 96.0]])
    for one, other in zip(model.network(image, size), folded.network(image, size)):
        for level, same in zip(one, other):
            scale = np.abs(level.numpy()).max()
            np.testing.assert_allclose(level.numpy(), same.numpy(), rtol=0, atol=1e-4 * scale)
    kinds = collections.Counter(
        node.op_type for node in end_to_end_model(folded, network_input(), 17).graph.node
    )
    assert kinds["BatchNormalization"] == 0 and kinds["Conv"] > 50


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip": "after", "inclusive": True},
        {"class_top_k": 7, "sqrt_score": True},
        {"keep_top_k": -1, "clip": "never"},
        {"keep_top_k": 5},
    ],
)
def test_nms_matches_paddle(options):
    """The ONNX graph in two runtimes and Paddle's operator, on batches of 1, 4 and without candidates."""
    decode = PPFCOSDecode(**{"score_threshold": 0.1, "nms_threshold": 0.5, **options})
    count, classes = 60, 3
    model = nms_graph(decode, count, classes, ir_version=8, opset=17)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(openvino.Core().read_model(content), "CPU")
    random = np.random.default_rng(1)
    for batch, highest in ((1, 1.0), (4, 1.0), (4, 0.2), (2, 0.0)):
        corners = random.uniform(0, 40, (batch, count, 2)).astype(np.float32)
        boxes = np.concatenate(
            [corners, corners + random.uniform(5, 40, corners.shape)], axis=2, dtype=np.float32
        )
        shown = np.where(boxes[..., :1] < 5, np.float32(-1), boxes) if decode.clip == "after" else boxes
        inputs = {
            "boxes": boxes,
            "shown": shown,
            "scores": random.uniform(0, highest, (batch, count)).astype(np.float32),
            "classes": random.integers(0, classes, (batch, count)),
        }
        expected = nms_of_paddle(decode, inputs, classes)
        outputs = compiled(inputs)
        for rows, counts in (session.run(None, inputs), (outputs["bbox"], outputs["bbox_num"])):
            assert counts.tolist() == [len(image) for image in expected]
            for image, wanted in zip(split_batch(rows, counts, ()), expected):
                np.testing.assert_allclose(image.scores, wanted[:, 1], rtol=1e-6)
                np.testing.assert_allclose(image.boxes, wanted[:, 2:], rtol=1e-6)


def nms_of_paddle(decode: PPFCOSDecode, inputs: dict, classes: int) -> list:
    """The rows of each image from `PPFCOSDecode`, best first."""

    class GivenCandidates(PPFCOSDecode):
        def candidates(self, outputs, *others):
            return Candidates(
                *(paddle.to_tensor(inputs[name]) for name in ("boxes", "shown", "scores", "classes"))
            )

    given = GivenCandidates(**vars(decode))
    outputs = type("Outputs", (), {"class_logits": [paddle.zeros([1, classes, 1, 1])]})
    rows, counts = given(outputs, None, None, None)
    images = np.split(rows.numpy(), np.cumsum(counts.numpy()))[:-1]
    return [image[np.argsort(-image[:, 1], kind="stable")] for image in images]


class OneLevel(CandidatesNetwork):
    """The candidates of one level of 512×512, with the class logits as input."""

    SIDE, STRIDE = 512, 8

    def specs(self) -> list:
        shape = [1, self.model.head.num_classes, self.SIDE, self.SIDE]
        return [InputSpec(shape, "float32", "logits"), InputSpec([1, 2], "float32", "im_shape")]

    def forward(self, logits, im_shape):
        distances = 0.0 * logits[:, :4] + self.STRIDE
        outputs = HeadOutputs([logits], [distances], [])
        grids = [center_grid(self.SIDE, self.SIDE, self.STRIDE)]
        scale = im_shape / im_shape
        return tuple(self.model.decode.candidates(outputs, grids, im_shape, scale))


@needs_export
def test_indices_above_float32_precision():
    """21 million pairs of class and point; ONNX divides in float32 where Paddle divides integers."""
    model = paddle.nn.Layer()
    model.head = SimpleNamespace(strides=[OneLevel.STRIDE], num_classes=80)
    model.decode = PPFCOSDecode()
    content = model_with_nms(OneLevel(model, network_input()), OPSETS[-1]).SerializeToString()
    last, pixels = OneLevel.SIDE - 1, OneLevel.SIDE * OneLevel.STRIDE
    expected = {(78, last, last), (79, 0, 0), (79, last, last - 5), (63, last, 0)}
    logits = np.full((1, 80, OneLevel.SIDE, OneLevel.SIDE), -9, np.float32)
    for place in expected:
        logits[(0, *place)] = 2
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    rows, _ = session.run(None, {"logits": logits, "im_shape": np.float32([[pixels, pixels]])})
    # A box extends from the center of its cell by a stride to the left and up, or to the border.
    cells = (rows[:, [3, 2]] + OneLevel.STRIDE / 2) // OneLevel.STRIDE
    assert {(int(row[0]), int(y), int(x)) for row, (y, x) in zip(rows, cells)} == expected
    assert len(rows) == len(expected)


def test_unsupported_opset_is_named_with_the_range(detector):
    with pytest.raises(ConfigError, match=rf"12.*{OPSETS[0]} to {OPSETS[-1]}"):
        end_to_end_model(detector[1], network_input(), opset=12)


def test_precisions_need_onnx():
    with pytest.raises(ConfigError, match="--formats"):
        ExportOptions(formats=("paddle",), precisions=("fp32", "fp16"))
    assert ExportOptions(formats=["paddle"], precisions=["fp32"]).precisions == ["fp32"]


@needs_export
def test_wrong_onnx_model_is_not_written(detector, tmp_path, monkeypatch):
    """An NMS graph that keeps fewer boxes than the model."""
    cfg, model, _ = detector

    def stricter(decode, *sizes):
        return nms_graph(PPFCOSDecode(score_threshold=0.05, keep_top_k=3), *sizes)

    monkeypatch.setattr("ppfcos.export.onnx_export.nms_graph", stricter)
    with pytest.raises(BundleError, match=r"onnx network in fp32.*disagrees"):
        export_bundle(model, cfg, CLASS_NAMES, tmp_path / "bundle", None, ExportOptions(formats=("onnx",)))
    assert list(tmp_path.iterdir()) == []


@needs_export
@pytest.mark.slow
@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_full_network_in_oldest_and_newest_opset(root, tmp_path, opset):
    from ppfcos.config import load_config

    cfg = load_config(root / "configs" / "fcos_r50_fpn_1x_coco.yml")
    paddle.seed(0)
    model = create("PPFCOS")
    model.head.class_conv.bias.set_value(np.full(80, -3.0, np.float32))
    bundle = export_bundle(
        model,
        cfg,
        [f"class {i}" for i in range(80)],
        tmp_path / "bundle",
        None,
        ExportOptions(formats=("onnx",), opset=opset),
    )
    assert onnx.load(bundle / "model.onnx").opset_import[0].version == opset
