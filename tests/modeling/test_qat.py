"""Quantization-aware training (QAT): fake quantization, ranges, and the exported INT8 network."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import paddle
import pytest
import yaml
from conftest import needs_export, skip_without_export
from helpers.small_detector import draw_image, spread_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper
from onnxruntime.quantization.quant_utils import compute_scale_zp
from paddle import nn

from ppfcos.cli.eval import main as evaluate
from ppfcos.cli.export_model import main as export
from ppfcos.config import load_config
from ppfcos.data.shapes import generate
from ppfcos.deploy import Predictor
from ppfcos.engine.ema import build_ema, ema_weights
from ppfcos.engine.model import build_model
from ppfcos.engine.progress import Progress
from ppfcos.engine.trainer import Trainer
from ppfcos.engine.weights import read_weights
from ppfcos.errors import BundleError, ConfigError
from ppfcos.export.bundle import ExportOptions, export_bundle
from ppfcos.export.onnx_export import heads_model
from ppfcos.export.parity import Tolerance, compare
from ppfcos.export.program import HeadsSpec, network_input
from ppfcos.export.qat_export import TrainedRanges, write_trained_int8
from ppfcos.export.trained_model import CheckpointRuntime, trained_model
from ppfcos.modeling.backbones import efficientnet
from ppfcos.modeling.backbones.efficientnet import Stage
from ppfcos.modeling.qat import (
    ActivationRanges,
    QuantizedConv2D,
    clipped_copy,
    fake_quantize_activations,
    fake_quantize_weights,
    float_copy,
    prepare_qat,
)

SIDE = 64
# Stages of a small EfficientNet; one block is residual.
FEW = (
    Stage(1, 3, 2, 1, 8),
    Stage(1, 3, 2, 2, 16),
    Stage(2, 3, 2, 2, 24),
    Stage(1, 3, 2, 2, 24),
)
FEW_ENDS = {2: 8, 3: 16, 4: 32}
TINY = """
_BASE_:
- {root}/configs/runtime.yml
- {root}/configs/_base_/fcos_efficientnet_bifpn.yml
- {root}/configs/_base_/optimizer_1x.yml
- {root}/configs/_base_/fcos_reader.yml
num_classes: 3
device: cpu
epoch: 2
worker_num: 0
lr_batch_size: null
log_iter: 1
pretrain_weights: null
save_dir: {output}
PPFCOSBiFPN: {{out_channels: 16, num_layers: 1, extra_levels: 1}}
PPFCOSTargets: {{size_ranges: [16, 32, 64]}}
PPFCOSHead: {{num_convs: 1}}
LearningRate:
  base_lr: 0.002
  schedulers:
  - !CosineDecay
    max_epochs: 20
  - !LinearWarmup
    start_factor: 0.1
    steps: 2
TrainDataset:
  name: COCODataSet
  dataset_dir: {data}
  image_dir: train2017
  anno_path: annotations/instances_train2017.json
EvalDataset:
  name: COCODataSet
  dataset_dir: {data}
  image_dir: val2017
  anno_path: annotations/instances_val2017.json
TestDataset:
  name: ImageFolder
  class_names: [circle, rectangle, triangle]
TrainReader:
  total_batch_size: 4
  sample_transforms: &transforms
  - Decode: {{}}
  - Resize: {{target_size: [64, 64], keep_ratio: true, interp: 1}}
  - Permute: {{}}
EvalReader:
  batch_size: 2
  sample_transforms: *transforms
TestReader:
  sample_transforms: *transforms
"""
TINY_QAT = """
_BASE_: [tiny.yml]
quantization_aware_training: {range_momentum: 0.5, freeze_ranges_after: 6}
use_ema: true
ema_decay: 0.5
"""


def write_configs(folder: Path, root: Path, patch: pytest.MonkeyPatch) -> Path:
    """Write tiny.yml, tiny_qat.yml, which adds quantization-aware training, and generated images."""
    patch.setattr(efficientnet, "STAGES", FEW)
    patch.setattr(efficientnet, "ENDS", FEW_ENDS)
    generate(folder / "shapes", train=8, val=4, size=SIDE, seed=3)
    text = TINY.format(root=root, data=folder / "shapes", output=folder / "output")
    (folder / "tiny.yml").write_text(text)
    (folder / "tiny_qat.yml").write_text(TINY_QAT)
    return folder


@pytest.fixture
def folder(tmp_path, root, monkeypatch):
    return write_configs(tmp_path, root, monkeypatch)


def random_images(count: int, seed: int) -> paddle.Tensor:
    drawn = [draw_image(SIDE, SIDE, seed + i)[:, :, ::-1].transpose(2, 0, 1) for i in range(count)]
    return paddle.to_tensor(np.stack(drawn).astype(np.float32))


def sizes(count: int) -> paddle.Tensor:
    return paddle.full([count, 2], float(SIDE))


def with_ranges(model: nn.Layer) -> nn.Layer:
    """Spread the scores, update the norms on some images, then prepare QAT with the ranges of others."""
    spread_scores(model)
    model.train()
    with paddle.no_grad():
        for step in range(8):
            model.network(random_images(2, 10 * step), sizes(2))
        prepare_qat(model, 0.5, 100)
        for step in range(3):
            model.network(random_images(2, 100 + 10 * step), sizes(2))
    # All ranges differ, so that a test can identify them.
    factors = 1 + 1e-4 * np.arange(len(model.quantization.limits), dtype=np.float32)
    model.quantization.limits.set_value(model.quantization.limits.numpy() * factors[:, None])
    model.eval()
    return model


def tiny_model(folder: Path, *overrides: str) -> nn.Layer:
    paddle.seed(5)
    return build_model(load_config(folder / "tiny.yml", overrides))


# Fake quantization

VALUES = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.floats(-50, 50, width=32)
)


@settings(deadline=None)
@given(VALUES, st.floats(-20, 0, width=32), st.floats(0, 20, width=32))
def test_activations_equal_the_formula(values, smallest, largest):
    """Scale and zero point are ONNX Runtime's; clipped values have no gradient."""
    limits = np.array([smallest, largest], np.float32)
    # In float64, because older versions of ONNX Runtime subtract in the type of the limits.
    zero_point, scale = compute_scale_zp(*limits.astype(np.float64), np.uint8(0), np.uint8(255))
    if scale < np.finfo(np.float32).tiny:  # which it looks at in the type of the limits, too
        zero_point, scale = np.uint8(0), np.ones(())
    scale = scale.astype(np.float32)
    integers = np.rint(values / scale) + np.float32(zero_point)
    x = paddle.to_tensor(values, stop_gradient=False)
    found = fake_quantize_activations(x, paddle.to_tensor(limits))
    expected = (np.clip(integers, 0, 255) - np.float32(zero_point)) * scale
    np.testing.assert_array_equal(found.numpy(), expected)
    found.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), (integers >= 0) & (integers <= 255))


@settings(deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.just(2), st.just(2)),
        elements=st.floats(-5, 5, width=32),
    )
)
def test_weights_equal_the_formula(values):
    x = paddle.to_tensor(values, stop_gradient=False)
    found = fake_quantize_weights(x)
    for channel, quantized in zip(values, found.numpy()):
        largest = np.abs(channel).max()
        _, scale = compute_scale_zp(-largest, largest, np.int8(-127), np.int8(127), symmetric=True)
        np.testing.assert_array_equal(quantized, np.rint(channel / scale) * scale)
    found.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.ones_like(values))


# Ranges


def test_ranges_are_a_moving_average_of_the_extremes_until_they_are_frozen():
    ranges = ActivationRanges(2, momentum=0.75, freeze_after=3)
    random = np.random.default_rng(0)
    expected = np.zeros([2, 2])
    for step in range(5):
        batch = random.normal(step, 2, [2, 100]).astype(np.float32)
        extremes = np.stack([np.minimum(batch.min(axis=1), 0), np.maximum(batch.max(axis=1), 0)], axis=1)
        for row in range(2):
            ranges.quantize(row, paddle.to_tensor(batch[row]))
        if step < 3:
            expected = extremes if step == 0 else 0.75 * expected + 0.25 * extremes
        np.testing.assert_allclose(ranges.limits.numpy(), expected, rtol=1e-6)
    assert ranges.observed.item() == 5


@pytest.mark.parametrize("values_of_step", [["nan", "inf"], ["1", "inf"], ["-inf", "1"]])
def test_values_that_are_not_finite_change_no_range(values_of_step):
    ranges = ActivationRanges(2, momentum=0.5, freeze_after=9)
    for values in ([1.0, 2.0], list(map(float, values_of_step))):
        ranges.quantize(0, paddle.to_tensor([-1.0, 3.0]))
        ranges.quantize(1, paddle.to_tensor(values))
    expected = [0, 1.5] if values_of_step == ["-inf", "1"] else [0, 2]
    np.testing.assert_array_equal(ranges.limits.numpy(), [[-1, 3], expected])


def test_evaluation_changes_no_range(folder):
    model = with_ranges(tiny_model(folder))
    before = model.quantization.limits.numpy()
    model.network(10 * random_images(1, 7), sizes(1))
    np.testing.assert_array_equal(model.quantization.limits.numpy(), before)


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_pass_after_an_interrupted_one_is_undisturbed(folder, training):
    model, inputs = with_ranges(tiny_model(folder)), (random_images(2, 500), sizes(2))
    model.train() if training else model.eval()
    undisturbed = copy.deepcopy(model)

    def interrupt(*_):
        raise KeyboardInterrupt

    layers = [layer for layer in model.sublayers() if isinstance(layer, QuantizedConv2D)]
    with paddle.no_grad():
        for layer in (layers[3], layers[-1]):
            hook = layer.register_forward_post_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                model.network(*inputs)
            hook.remove()
        found, expected = (paddle.utils.flatten(each.network(*inputs)) for each in (model, undisturbed))
    assert len(found) == len(expected) > 3
    for got, wanted in zip(found, expected):
        np.testing.assert_array_equal(got.numpy(), wanted.numpy())


@pytest.mark.parametrize("accumulated", [1, 2])
def test_ranges_freeze_after_steps_whatever_is_accumulated(folder, accumulated):
    cfg = load_config(folder / "tiny_qat.yml", [f"TrainReader.accumulate_steps={accumulated}"])
    assert build_model(cfg).quantization.freeze_after == 6 * accumulated


def test_ema_weights_have_the_current_ranges(folder):
    model = with_ranges(tiny_model(folder))
    average = build_ema({"use_ema": True}, model)
    average.update()
    model.train()
    with paddle.no_grad():
        model.network(3 * random_images(1, 7), sizes(1))
    average.update()
    now = model.quantization.limits.numpy()
    with ema_weights(model, average):
        np.testing.assert_array_equal(model.quantization.limits.numpy(), now)
    np.testing.assert_array_equal(model.quantization.limits.numpy(), now)


# Networks


def test_weights_keep_their_names_and_the_float_copy_its_outputs(folder):
    plain, aware = tiny_model(folder), tiny_model(folder)
    spread_scores(plain)
    prepare_qat(aware, 0.5, 10)
    new = set(aware.state_dict()) - set(plain.state_dict())
    assert new == {"quantization.limits", "quantization.observed"}
    assert set(plain.state_dict()) < set(aware.state_dict())
    aware.set_state_dict(plain.state_dict())
    plain.eval()
    outputs = plain.network(random_images(2, 0), sizes(2))
    for one, other in zip(outputs, float_copy(aware).network(random_images(2, 0), sizes(2))):
        for a, b in zip(one, other):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("PPFCOSEfficientNet.activation=swish", r"_ef\S* cannot be quantized.*activation: relu"),
        (
            "PPFCOSEfficientNet.squeeze_excitation=true",
            r"_ef\S* cannot be quantized.*squeeze_excitation: false",
        ),
        ("PPFCOSBiFPN.fusion=fast", r"neck\S* cannot be quantized.*fusion: sum"),
        ("PPFCOSHead.norm_per_level=true", r"head\S* cannot be quantized.*norm_per_level: false"),
        ("amp=true", "set amp: false"),
        ("to_static=true", "set to_static: false"),
    ],
)
def test_unsupported_layers_are_config_errors(folder, override, message):
    cfg = load_config(folder / "tiny_qat.yml", [override])
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


# Export


class Converted(NamedTuple):
    """A QAT model, and its network in ONNX with the ranges."""

    model: nn.Layer
    network: onnx.ModelProto

    def write(self, path: Path, limits: Sequence[tuple[float, float]] | None = None) -> Path:
        """Write the INT8 file with the model's ranges or others."""
        limits = map(tuple, self.model.quantization.limits.tolist()) if limits is None else limits
        write_trained_int8(self.network, limits, path, TrainedRanges())
        return path


def converted(model: nn.Layer) -> Converted:
    return Converted(model, heads_model(clipped_copy(model), network_input(), HeadsSpec(), 17))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, root):
    """A small model with ReLU6; two ranges are 0 to 6."""
    skip_without_export()
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        write_configs(folder, root, patch)
        model = with_ranges(tiny_model(folder, "PPFCOSEfficientNet.activation=relu6"))
    limits = model.quantization.limits.numpy()
    limits[1:3] = [0, 6]
    model.quantization.limits.set_value(limits)
    return converted(model)


def activations(path: Path, image: np.ndarray) -> dict[tuple, list[np.ndarray]]:
    """Return the dequantized uint8 activations of the file by scale and zero point.

    Without optimizations, ONNX Runtime computes in float: the integer instructions of the CPU do not matter.
    """
    model = onnx.load(path)
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] not in constants
    ]
    del model.graph.output[:]
    for node in nodes:
        value = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
        model.graph.output.append(value)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = {"image": image, "im_shape": np.full([len(image), 2], SIDE, np.float32)}
    found: dict[tuple, list[np.ndarray]] = {}
    for node, value in zip(nodes, session.run(None, inputs)):
        key = float(constants[node.input[1]]), int(constants[node.input[2]])
        found.setdefault(key, []).append(value)
    return found


def check_every_activation(exported: Converted, path: Path) -> None:
    """Compare each activation, computed from the file's values of the activations before it.

    The biases of the file are integers, in steps of the product of two scales, so a value near the middle of
    two steps may be rounded to the other one.
    """
    image = random_images(2, 50)
    theirs, model = activations(exported.write(path), image.numpy()), exported.model
    ranges, differing, sizes_of = model.quantization, [], []
    quantize = ranges.quantize

    def compared(row: int, x: paddle.Tensor) -> paddle.Tensor:
        own = quantize(row, x).numpy()
        zero_point, scale = compute_scale_zp(*ranges.limits[row].numpy(), np.uint8(0), np.uint8(255))
        same = [each for each in theirs[float(scale), int(zero_point)] if each.shape == own.shape]
        steps = np.abs(np.rint((same[0] - own) / scale))
        assert steps.max() <= 1, row
        differing.append(steps.sum())
        sizes_of.append(steps.size)
        return paddle.to_tensor(same[0])

    with pytest.MonkeyPatch.context() as patch, paddle.no_grad():
        patch.setattr(ranges, "quantize", compared)
        model.network(image, sizes(2))
    assert len(differing) == len(ranges.limits)
    assert sum(differing) < 0.001 * sum(sizes_of)


def test_the_int8_file_has_all_activations_with_their_ranges(tiny, tmp_path):
    check_every_activation(tiny, tmp_path / "int8.onnx")


def test_integer_outputs_round_to_the_uint8_outputs(tiny, tmp_path):
    limits = [tuple(each) for each in tiny.model.quantization.limits.tolist()]
    whole = write_trained_int8(tiny.network, limits, tmp_path / "integers.onnx", TrainedRanges(True))
    inputs = {"image": random_images(2, 50).numpy(), "im_shape": sizes(2).numpy()}
    output = "class_logits_8"
    rounded, integers = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run([output], inputs)[0]
        for path in (tiny.write(tmp_path / "int8.onnx"), tmp_path / "integers.onnx")
    )
    assert integers.dtype == np.int32
    values = integers * np.array(whole.scales[output]).reshape([1, -1, 1, 1])
    step = np.diff(np.unique(rounded)).min()
    inside = (rounded > rounded.min()) & (rounded < rounded.max())  # the extreme values are clipped
    assert inside.sum() > 100
    assert np.abs(values - rounded)[inside].max() < 0.51 * step


@needs_export
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcos_efficientnet_b0_512_coco", "fcos_mobilenetv2_c128_fpn_1x_coco"])
def test_the_int8_file_of_a_published_network_has_all_activations(root, tmp_path, name):
    paddle.seed(5)
    model = build_model(load_config(root / "configs" / f"{name}.yml", ["device=cpu", "num_classes=3"]))
    check_every_activation(converted(with_ranges(model)), tmp_path / "int8.onnx")


def test_missing_and_superfluous_ranges_are_errors(tiny, tmp_path):
    limits = [tuple(each) for each in tiny.model.quantization.limits.tolist()]
    with pytest.raises(BundleError, match=r"^1 of \d+ trained ranges are not in the ONNX network"):
        tiny.write(tmp_path / "int8.onnx", [*limits, (-1.0, 77.0)])
    with pytest.raises(BundleError, match="no trained range"):
        tiny.write(tmp_path / "int8.onnx", limits[:-1])
    assert not (tmp_path / "int8.onnx").exists()


# Commands


def trained(folder: Path, name: str, *overrides: str, resume: Path | None = None) -> Path:
    """Train, and return the path of the last checkpoint."""
    trainer = Trainer(load_config(folder / f"{name}.yml", overrides), "cpu", resume=resume and str(resume))
    trainer.train()
    return trainer.folder / "model_final.pdparams"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, root):
    """A folder with a network that was trained in float, then with QAT, and the losses of QAT."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        write_configs(folder, root, patch)
        start = trained(folder, "tiny", "epoch=12")
        (folder / "tiny_qat.yml").write_text(f"{TINY_QAT}pretrain_weights: {start}\n")
        losses: list[float] = []
        patch.setattr(Progress, "add", noting_losses(losses))
        trained(folder, "tiny_qat", "epoch=8")
        yield folder, losses


def noting_losses(losses: list[float]):
    """Return a `Progress.add` that also records the loss of each step."""
    add = Progress.add

    def noting(self, values, seconds_waited):
        losses.append(values["loss"])
        add(self, values, seconds_waited)

    return noting


def test_the_loss_decreases_and_the_checkpoint_contains_the_ranges(whole):
    folder, losses = whole
    assert len(losses) == 16 and np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])
    weights = read_weights(folder / "output" / "tiny_qat" / "model_final.pdparams")
    assert weights["quantization.observed"] == 16
    limits = weights["quantization.limits"]
    assert (limits[:, 0] <= 0).all() and (limits[:, 1] > limits[:, 0]).all()
    # The statistics are those of the training in float.
    start = read_weights(folder / "output" / "tiny" / "model_final.pdparams")
    for name, value in start.items():
        frozen = name.endswith(("._mean", "._variance"))
        assert np.array_equal(weights[name], value) == frozen, name


def test_a_resumed_training_gives_the_same_weights(whole):
    folder, _ = whole
    first = read_weights(folder / "output" / "tiny_qat" / "model_final.pdparams")
    middle = folder / "output" / "tiny_qat" / "4"
    second = read_weights(
        trained(folder, "tiny_qat", "epoch=8", f"save_dir={folder / 'resumed'}", resume=middle)
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_evaluation_in_uint8_and_in_float(whole, capsys):
    folder, _ = whole
    weights = folder / "output" / "tiny_qat" / "model_final.pdparams"
    values = {}
    for name in ("tiny", "tiny_qat"):
        assert evaluate(["-c", str(folder / f"{name}.yml"), "-o", f"weights={weights}"]) == 0
        model = trained_model(load_config(folder / f"{name}.yml", [f"weights={weights}"]))
        model.eval()
        with paddle.no_grad():
            values[name] = model.network(random_images(8, 70), sizes(8)).class_logits[0].numpy()
    assert len(np.unique(values["tiny_qat"])) <= 256 < len(np.unique(values["tiny"]))
    assert np.corrcoef(values["tiny"].ravel(), values["tiny_qat"].ravel())[0, 1] > 0.9


@needs_export
@pytest.mark.slow
def test_the_bundle_gives_the_boxes_of_the_checkpoint(whole):
    """The fp32 file gives the boxes of the float copy, the INT8 file those of the QAT model."""
    folder, _ = whole
    config = folder / "tiny_qat.yml"
    weights = folder / "output" / "tiny_qat" / "model_final.pdparams"
    overrides = [f"weights={weights}", "PPFCOSDecode.score_threshold=0.01"]
    assert export(["-c", str(config), "--output_dir", str(folder), "-o", *overrides]) == 0
    bundle = folder / "tiny_qat"
    says = yaml.safe_load((bundle / "bundle.yml").read_text())["networks"]
    assert set(says["onnx"]) == {"fp32", "int8"} and set(says["paddle"]) == {"fp32"}
    assert says["onnx"]["int8"]["ranges"] == "trained" and says["onnx"]["int8"]["layers_in_float"] == []
    model = trained_model(load_config(config, overrides))
    checkpoint, plain = CheckpointRuntime(model), CheckpointRuntime(float_copy(model))
    for precision, runtime in (("fp32", "paddle"), ("fp32", "onnxruntime"), ("int8", "onnxruntime")):
        predictor = Predictor(bundle, runtime, precision, 2, device="cpu")
        batches = [predictor.preprocess([draw_image(SIDE, SIDE, seed)]) for seed in range(200, 206)]
        for reference, same in ((plain, precision == "fp32"), (checkpoint, precision == "int8")):
            # INT8 rounds values near the middle of two steps differently from Paddle's floats.
            agreement = compare(reference, predictor.runtime, batches, Tolerance(2, 0.02))
            assert agreement.boxes > 100 and agreement.holds == same, (precision, runtime, agreement)


@pytest.mark.parametrize("option", ["--calibration_images=random_images", "--calibration=minmax"])
def test_calibration_options_are_refused(folder, capsys, option):
    options = ["-c", str(folder / "tiny_qat.yml"), "--precision", "int8", option]
    assert export(options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "quantization_aware_training=null" in line


@needs_export
def test_a_network_without_qat_steps_has_no_ranges_to_export(folder, tmp_path):
    cfg = load_config(folder / "tiny_qat.yml", [])
    wanted = ExportOptions(formats=("onnx",), precisions=("int8",), calibration=TrainedRanges())
    classes = ["circle", "rectangle", "triangle"]
    with pytest.raises(BundleError, match="no trained ranges for INT8"):
        export_bundle(build_model(cfg), cfg, classes, tmp_path / "bundle", options=wanted)


# Several processes

TWO_RANKS = """
import sys
sys.path.insert(0, sys.argv[1])
from ppfcos import environment
environment.configure_process()
with environment.quiet_imports():
    import paddle
    from ppfcos.engine import distributed
    from ppfcos.engine.device import select_device
    from ppfcos.modeling.qat import ActivationRanges

select_device({"device": "cpu"})
distributed.start()
rank = distributed.rank()
ranges = ActivationRanges(2, momentum=0.5, freeze_after=9)
for step in range(2):
    for row in range(2):
        ranges.quantize(row, paddle.to_tensor([-1.0 - row - 3 * rank, 2.0 + step - rank]))
paddle.save({"limits": ranges.limits}, f"{sys.argv[2]}/{rank}.pdparams")
"""


@pytest.mark.slow
def test_two_ranks_have_the_extremes_of_both(root, tmp_path):
    (tmp_path / "two_ranks.py").write_text(TWO_RANKS)
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path / "log")]
    command = [sys.executable, *launch, str(tmp_path / "two_ranks.py"), str(root), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=tmp_path)
    for rank in range(2):
        limits = read_weights(tmp_path / f"{rank}.pdparams")["limits"]
        np.testing.assert_allclose(limits, [[-4, 2.5], [-5, 2.5]])
