"""Post-training quantization: the integers, the parity of the boxes, and the search for sensitive layers."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.small_network import CHANNELS, DISTANCE_SCALE, images, weights, write_end_to_end, write_heads
from onnx import numpy_helper

from ppfcos.errors import BundleError, ConfigError, DataError, PPFCOSError
from ppfcos.export.ptq import QuantizationSettings, evenly_chosen, quantize

NO_SEARCH = QuantizationSettings(disagreement=1.0)
QDQ = ("QuantizeLinear", "DequantizeLinear")


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def makers_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def run(model: onnx.ModelProto | Path, batch: dict, *more: str, plain: bool = False) -> dict[str, np.ndarray]:
    """A network's outputs and the values named in `more`; `plain` keeps ONNX Runtime from fusing anything."""
    model = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
    for name in more:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]
    wanted = {each.name for each in session.get_inputs()}
    return dict(zip(names, session.run(names, {name: batch[name] for name in wanted})))


def folded(constants: dict[str, np.ndarray]) -> np.ndarray:
    """The first convolution's weights with the folded batch norm."""
    factor = constants["gamma"] / np.sqrt(constants["variance"] + 1e-5)
    return constants["w_first"] * factor.reshape(-1, 1, 1, 1)


def test_weights_have_one_scale_per_channel(tmp_path):
    quantize(write_heads(tmp_path / "float.onnx"), tmp_path / "int8.onnx", images(), NO_SEARCH)
    model = onnx.load(tmp_path / "int8.onnx")
    constants, makers = constants_of(model), makers_of(model)
    expected = {**weights(), "w_first": folded(weights())}
    seen = 0
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        values, scale, zero_point = (constants[name] for name in makers[node.input[1]].input)
        name = next(key for key, value in expected.items() if same_layer(value, values, scale))
        naive = [max(abs(float(each)) for each in channel.ravel()) / 127 for channel in expected[name]]
        np.testing.assert_allclose(scale, naive, rtol=1e-5)
        assert values.dtype == np.int8 and not zero_point.any()
        np.testing.assert_array_equal(values, np.round(expected[name] / scale.reshape(-1, 1, 1, 1)))
        seen += 1
    assert seen == 10
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def same_layer(weight: np.ndarray, integers: np.ndarray, scale: np.ndarray) -> bool:
    if weight.shape != integers.shape:
        return False
    return bool(np.abs(weight - integers * scale.reshape(-1, 1, 1, 1)).max() < 0.02 * np.abs(weight).max())


def test_minmax_covers_all_batches(tmp_path):
    batches = images()
    batches[1]["image"][0, 0, 3, 3] = 300
    quantize(write_heads(tmp_path / "float.onnx"), tmp_path / "int8.onnx", iter(batches), NO_SEARCH)
    assert image_scale(tmp_path / "int8.onnx") == pytest.approx(300 / 255, rel=1e-6)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_other_methods_exclude_outliers(tmp_path, method, capfd):
    batches = images()
    batches[1]["image"][0, 0, 3, 3] = 3000
    settings = QuantizationSettings(method=method, percentile=99.9, disagreement=1.0)
    quantize(write_heads(tmp_path / "float.onnx"), tmp_path / "int8.onnx", batches, settings)
    assert 200 / 255 < image_scale(tmp_path / "int8.onnx") < 2900 / 255
    assert capfd.readouterr() == ("", "")


def image_scale(path: Path) -> float:
    model = onnx.load(path)
    node = next(node for node in model.graph.node if list(node.input[:1]) == ["image"])
    assert node.op_type == "QuantizeLinear"
    return float(constants_of(model)[node.input[1]])


def test_outputs_are_close_to_float(tmp_path):
    source = write_heads(tmp_path / "float.onnx")
    report = quantize(source, tmp_path / "int8.onnx", images(), NO_SEARCH)
    fresh = images(1, seed=9)[0]
    expected, found = run(source, fresh), run(tmp_path / "int8.onnx", fresh)
    for name, value in expected.items():
        noise = np.mean((found[name] - value) ** 2)
        assert 10 * np.log10(np.mean(value**2) / noise) > 25, name  # decibels
    assert report.before == report.after > 0 and report.batches == 3
    assert not report.float_layers and report.table() == ""
    assert report.bytes == (tmp_path / "int8.onnx").stat().st_size


def test_sensitive_layer_stays_in_float(tmp_path):
    constants = weights()
    # One input channel of the third layer is almost zero, and its weights are so large that all others are
    # rounded to zero.
    constants["w_second"][0], constants["b_second"][0] = 0, 0
    constants["gamma"][0], constants["beta"][0] = 1e-6, 1e-6
    constants["w_third"][:, 0] = 200
    source = write_heads(tmp_path / "float.onnx", constants)
    settings = QuantizationSettings(disagreement=0.1)
    report = quantize(source, tmp_path / "int8.onnx", images(), settings)
    assert [layer.name for layer in report.float_layers] == ["w_third"]
    assert report.effects[0].layer.name == "w_third"
    assert report.effects[0].disagreement > 2 * report.effects[1].disagreement
    assert report.after <= 0.1 < report.before
    table = report.table().splitlines()
    assert "w_third" in table[2] and f"Conv {CHANNELS}→{CHANNELS} 3×3" in table[2] and "float" in table[2]
    assert "| tower.2 | Conv" in report.table(names={"w_third": "tower.2"})
    written = onnx.load(tmp_path / "int8.onnx")
    np.testing.assert_array_equal(constants_of(written)["w_third"], constants["w_third"])


def test_most_float_limits_layers_in_float(tmp_path, caplog):
    source = write_heads(tmp_path / "float.onnx")
    settings = QuantizationSettings(disagreement=0.0, most_float=0.3)
    report = quantize(source, tmp_path / "int8.onnx", images(), settings)
    assert len(report.layers) == 8 and len(report.float_layers) <= 2
    assert 0 < report.after <= report.before
    assert "more than the requested 0.000" in caplog.text


@pytest.mark.parametrize(
    ("layout", "distance_scale"), [("nchw", DISTANCE_SCALE), ("nhwc", DISTANCE_SCALE), ("nchw", 1.0)]
)
def test_integers_times_scales_are_the_outputs(tmp_path, layout, distance_scale):
    constants = {**weights(), "distance_scale": np.array([distance_scale], np.float32)}
    source = write_heads(tmp_path / "float.onnx", constants, layout=layout)
    scales = quantize(source, tmp_path / "integers.onnx", images(), NO_SEARCH, True).scales
    quantize(source, tmp_path / "qdq.onnx", images(), NO_SEARCH)
    qdq, batch = onnx.load(tmp_path / "qdq.onnx"), images(1, seed=5)[0]
    makers = makers_of(qdq)
    sums = {name: conv_before(makers, name).output[0] for name in scales}
    # What the convolutions of the QDQ model give before that is cut to eight bits.
    values = run(qdq, batch, *sums.values(), plain=True)
    found = run(tmp_path / "integers.onnx", batch)
    assert {len(scale) for scale in scales.values()} == {2, 4, 1}
    for name, scale in scales.items():
        expected = values[sums[name]]
        if name.startswith("distances"):
            expected = np.maximum(expected * distance_scale, 0) * int(name.split("_")[1])
        if layout == "nhwc":
            expected = expected.transpose(0, 2, 3, 1)
        assert found[name].dtype == np.int32
        shape = [1, -1, 1, 1] if layout == "nchw" else [-1]
        dequantized = found[name] * np.reshape(scale, shape)
        np.testing.assert_allclose(dequantized, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def conv_before(makers: dict[str, onnx.NodeProto], name: str) -> onnx.NodeProto:
    node = makers[name]
    while node.op_type != "Conv":
        node = makers[node.input[0]]
    return node


def test_layers_with_integer_outputs_are_always_quantized(tmp_path):
    settings = QuantizationSettings(disagreement=0.0, most_float=1.0)
    source = write_heads(tmp_path / "float.onnx")
    report = quantize(source, tmp_path / "integers.onnx", images(), settings, integer_outputs=True)
    assert len(report.float_layers) == len(report.layers) - 3 == 5
    assert not {"w_classes", "w_box", "w_quality"} & {layer.name for layer in report.float_layers}
    assert len(report.scales) == 6


def test_exponential_distances_cannot_be_integers(tmp_path):
    source = write_heads(tmp_path / "float.onnx", distance="Exp")
    with pytest.raises(BundleError, match=r"^distances_8: cannot be an integer output.*Exp"):
        quantize(source, tmp_path / "integers.onnx", images(), NO_SEARCH, integer_outputs=True)
    assert not (tmp_path / "integers.onnx").exists()


def test_decoding_and_nms_stay_in_float(tmp_path):
    source = write_end_to_end(tmp_path / "float.onnx")
    report = quantize(source, tmp_path / "int8.onnx", images(), NO_SEARCH)
    models = [onnx.load(path) for path in (source, tmp_path / "int8.onnx")]
    kinds = [Counter(node.op_type for node in model.graph.node) for model in models]
    changed = {"Conv", "BatchNormalization", "Relu", "Add", *QDQ}
    for kind in (kinds[0].keys() | kinds[1].keys()) - changed:
        assert kinds[0][kind] == kinds[1][kind], kind
    assert kinds[1]["NonMaxSuppression"] == kinds[1]["InstanceNormalization"] == 1
    assert kinds[1]["QuantizeLinear"] > 5 and not quantized_after_head(models[1])
    boxes = run(source, images()[0])["bbox"]
    assert len(boxes) > 10
    assert 0 < report.after < 0.3


def quantized_after_head(model: onnx.ModelProto) -> list[str]:
    """Names of the QDQ nodes after a sigmoid or after distances in pixels."""
    reached: set[str] = set()
    found = []
    for node in model.graph.node:
        if node.op_type == "Sigmoid" or "pixels_8" in node.output or reached.intersection(node.input):
            reached.update(node.output)
            found += [node.name] if node.op_type in QDQ else []
    return found


def test_user_errors_are_named_in_one_line(tmp_path):
    source, target = write_heads(tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    text = tmp_path / "text.onnx"
    text.write_text("not a network")
    old = write_heads(tmp_path / "old.onnx", opset=12)
    wrong = [
        (DataError, "no images to calibrate with", lambda: quantize(source, target, [])),
        (BundleError, "text.onnx: not a valid ONNX", lambda: quantize(text, target, images())),
        (
            BundleError,
            "absent.onnx: there is no such",
            lambda: quantize(tmp_path / "absent.onnx", target, []),
        ),
        (BundleError, "opset 12 has no", lambda: quantize(old, target, images())),
        (BundleError, "takes image, which", lambda: quantize(source, target, [{"picture": np.zeros(1)}])),
        (BundleError, "calibration batch 0", lambda: quantize(source, target, [{"image": np.zeros(1)}])),
        (ConfigError, "did you mean 'minmax'", lambda: QuantizationSettings(method="minimax")),
        (ConfigError, "percentile must", lambda: QuantizationSettings(percentile=5)),
        (ConfigError, "compared must", lambda: QuantizationSettings(compared=0)),
        (ConfigError, "most_float must", lambda: QuantizationSettings(most_float=2)),
        (ConfigError, "disagreement must", lambda: QuantizationSettings(disagreement=-0.1)),
        (ConfigError, "disagreement must", lambda: QuantizationSettings(disagreement=float("nan"))),
        (ConfigError, "0 images are too few", lambda: evenly_chosen([1, 2], 0)),
    ]
    for kind, message, act in wrong:
        with pytest.raises(kind, match=message) as caught:
            act()
        assert isinstance(caught.value, PPFCOSError) and "\n" not in str(caught.value)
    assert not target.exists()


def test_missing_onnxruntime_is_named():
    program = "import sys; sys.modules['onnxruntime'] = None; import ppfcos.export.ptq"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingLibraryError: quantization needs ONNX Runtime" in last
    assert "pip install -r requirements/onnx.txt" in last


def test_calibration_images_are_evenly_spaced():
    assert evenly_chosen(range(10), 4) == [0, 2, 5, 7]
    assert evenly_chosen([3, 1], 4) == [3, 1]
