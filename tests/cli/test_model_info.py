"""ppfcos model-info, compared with runs of the network and Paddle's counts; its drawing and page."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import paddle
import pytest
import yaml
from helpers.macs import count_macs
from helpers.small_bundles import (
    FIXED_SIZE,
    STEPS,
    end_to_end_bundle,
    file_entry,
    heads_bundle,
    integer_heads_bundle,
    nv12_bundle,
    uint8_bundle,
)
from helpers.small_detector import small_model
from helpers.small_network import CHANNELS, CLASSES, HEIGHT, WIDTH, images, write_heads
from onnx import numpy_helper
from onnx.parser import parse_model
from selenium.webdriver.common.by import By

from ppfcos.analysis.info import NetworkInfo
from ppfcos.analysis.layers import Layers
from ppfcos.analysis.network import Network
from ppfcos.analysis.timing import NodeTime, layer_times, time_onnx_runtime
from ppfcos.cli import main as program
from ppfcos.cli.model_info import main
from ppfcos.deploy.bundle import read_bundle
from ppfcos.deploy.onnx_files import read_onnx
from ppfcos.engine.model import count_weights
from ppfcos.export.quantizer import FloatNetwork
from ppfcos.modeling.fuse import fuse_batch_norms
from ppfcos.visualize import network_drawing
from ppfcos.visualize.network_drawing import place_layers

SIZE = (64, 96)  # of images, for networks without a fixed size


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The folder of the bundles that all tests share."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def heads(base) -> Path:
    return heads_bundle(base / "heads")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> paddle.nn.Layer:
    """The detector of all bundles."""
    return small_model(tmp_path_factory.mktemp("model"))[1]


@pytest.fixture(scope="module")
def trained_work(model) -> int:
    """Multiply-adds of the detector, counted in its Paddle program."""
    return count_macs(model, *FIXED_SIZE)


@pytest.fixture(scope="module")
def tiny(heads, tmp_path_factory) -> Path:
    """A bundle of a tiny network in fp32 and INT8; its third convolution is not quantized."""
    folder = tmp_path_factory.mktemp("tiny")
    network = FloatNetwork(write_heads(folder / "model.onnx"))
    ranges = network.calibrate(images(), "minmax", 99.9)
    onnx.save(network.quantized(ranges, ["w_third"]), folder / "model_int8.onnx")
    manifest = yaml.safe_load((heads / "bundle.yml").read_text())
    manifest["input"] |= {"batch": 1, "height": HEIGHT, "width": WIDTH}
    manifest["heads"]["levels"] = manifest["heads"]["levels"][:2]
    files = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
    manifest["networks"] = {"onnx": {precision: {"file": name} for precision, name in files.items()}}
    manifest["files"] = {name: file_entry(folder / name) for name in files.values()}
    (folder / "bundle.yml").write_text(yaml.safe_dump(manifest))
    return folder


def describe(bundle: Path, precision: str | None = None, size: tuple | None = None) -> dict:
    return NetworkInfo(read_bundle(bundle), precision, size).describe()


def find_layer(info: dict, name: str) -> dict:
    return next(layer for layer in info["layers"] if layer["name"] == name)


@pytest.mark.parametrize("kind", ["heads", "end to end", "uint8", "nv12", "integer heads"])
def test_multiply_adds_equal_those_of_the_model(kind, base, heads, trained_work, tmp_path):
    makers = {
        "heads": lambda: heads,
        "end to end": lambda: end_to_end_bundle(base / "end_to_end"),
        "uint8": lambda: uint8_bundle(base / "uint8"),
        "nv12": lambda: nv12_bundle(base / "nv12"),
        "integer heads": lambda: integer_heads_bundle(tmp_path / "integer", heads),
    }
    info = describe(makers[kind]())
    assert (info["height"], info["width"]) == FIXED_SIZE  # TestReader's size
    assert info["batch"] == (2 if kind == "uint8" else 1)
    assert info["multiply_adds"] == info["batch"] * trained_work
    assert info["uncounted_layers"] == 0
    parts = Counter(layer["part"] for layer in info["layers"])
    assert set(parts) - {"decode"} == {"input", "backbone", "neck", "head"} and parts["input"] == 1
    assert parts["head"] == 5 * 5  # five levels of two tower and three output convolutions
    assert parts["decode"] == (kind == "end to end")


def test_layer_names_equal_those_of_the_model(heads, model):
    convolutions = {
        name
        for name, layer in model.named_sublayers()
        if isinstance(layer, paddle.nn.Conv2D) and name.split(".")[0] in ("backbone", "neck", "head")
    }
    info = describe(heads, size=SIZE)
    named = {layer["name"] for layer in info["layers"] if layer["kind"].startswith("Conv")}
    assert named == convolutions


def test_parameters_are_those_of_the_folded_model(heads, model):
    """All but the scales of levels, which are 1 here, and biases of 0: the export drops them."""
    folded = fuse_batch_norms(model)
    expected = count_weights(folded).total
    gone = sum(
        int(value.size)
        for name, value in folded.named_parameters()
        if not np.any(value.numpy()) or "scales" in name
    )
    found = describe(heads, size=SIZE)["parameters"]
    assert expected - gone <= found <= expected


def test_a_tiny_network(tiny):
    info = describe(tiny, "fp32")
    fine, coarse = (HEIGHT // 2, WIDTH // 2), (HEIGHT // 4, WIDTH // 4)
    convolutions = {  # input and output channels, size of the output, whether there is a bias
        "w_first": [(3, CHANNELS, fine, 0)],
        "w_second": [(CHANNELS, CHANNELS, fine, 1)],
        "w_third": [(CHANNELS, CHANNELS, fine, 1)],
        "w_down": [(CHANNELS, CHANNELS, coarse, 1)],
        "w_classes": [(CHANNELS, CLASSES, fine, 1), (CHANNELS, CLASSES, coarse, 1)],
        "w_box": [(CHANNELS, 4, fine, 1), (CHANNELS, 4, coarse, 1)],
        "w_quality": [(CHANNELS, 1, fine, 0), (CHANNELS, 1, coarse, 0)],
    }
    for name, runs in convolutions.items():
        layers = [layer for layer in info["layers"] if layer["name"] == name]
        assert len(layers) == len(runs)
        for layer, (taken, given, (height, width), bias) in zip(layers, runs):
            assert layer["multiply_adds"] == height * width * given * taken * 9
            assert layer["outputs"][0]["shape"] == [1, given, height, width]
            assert layer["activation_bytes"] == 4 * given * height * width
            weights = given * taken * 9 + given * bias
            norms = {"w_first": 4 * CHANNELS, "w_third": 2 * CHANNELS}.get(name, 0)
            scales = 2 if name == "w_box" else 0  # of the level and of its stride
            assert layer["parameters"] == weights + norms + scales
            assert layer["weight_bytes"] == 4 * layer["parameters"]
    assert find_layer(info, "w_first")["fused"] == ["norm", "ReLU"]
    assert [layer["kind"] for layer in info["layers"]].count("Add") == 1


@pytest.mark.parametrize("kind", ["heads", "end to end", "int8"])
def test_shapes_and_bytes_equal_those_of_a_run(kind, base, heads, tiny):
    bundle, precision = {
        "heads": (heads, "fp32"),
        "end to end": (end_to_end_bundle(base / "end_to_end"), "fp32"),
        "int8": (tiny, "int8"),
    }[kind]
    network = NetworkInfo(read_bundle(bundle), precision, None if kind == "int8" else SIZE)
    info = network.describe()
    values = run_with_all_values(network.file.path, network.inputs)
    seen = 0
    for layer in info["layers"]:
        for output in layer["outputs"]:
            array = values[output["name"]]
            assert len(output["shape"]) == array.ndim
            assert all(a in (None, b) for a, b in zip(output["shape"], array.shape)), output["name"]
            seen += None not in output["shape"]
        if kind == "heads":
            assert layer["activation_bytes"] == sum(values[each["name"]].nbytes for each in layer["outputs"])
    assert seen >= len(info["layers"]) - 1  # the number of boxes is unknown


def run_with_all_values(file: Path, inputs: dict) -> dict:
    """Every value of a network, as ONNX Runtime computes it."""
    graph_model = onnx.load(file)
    there = {each.name for each in graph_model.graph.output}
    for node in graph_model.graph.node:
        graph_model.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in node.output if name not in there
        )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        graph_model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]
    taken = {each.name: inputs[each.name] for each in session.get_inputs()}
    return dict(zip(names, session.run(names, taken)))


PYRAMID = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[1, 3, h, w] image) => (float[n, c, y, x] answer) {
    coarse = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (image)
    finer = Resize <mode = "nearest"> (coarse, , factors)
    size = Shape (image)
    most = Slice (size, two, four)
    cut = Slice (finer, starts, most, axes)
    joined = Add (cut, image)
    answer = Conv (joined, kernel)
}
"""


def test_sizes_computed_from_other_maps(tmp_path):
    """A map is cropped to the size of another, where ONNX's inference stops."""
    network = parse_model(PYRAMID)
    constants = {
        "factors": np.array([1, 1, 2, 2], np.float32),
        "two": np.array([2]),
        "four": np.array([4]),
        "starts": np.array([0, 0]),
        "axes": np.array([2, 3]),
        "kernel": np.ones((5, 3, 1, 1), np.float32),
    }
    for name, value in constants.items():
        network.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.save(network, tmp_path / "pyramid.onnx")
    image = np.random.default_rng(0).random((1, 3, 5, 7), np.float32)
    graph = Network(read_onnx(tmp_path / "pyramid.onnx"), {"image": image.shape})
    values = run_with_all_values(tmp_path / "pyramid.onnx", {"image": image})
    assert {name: graph.value(name).shape for name in values} == {
        name: array.shape for name, array in values.items()
    }
    assert values["finer"].shape == (1, 3, 6, 8) and values["cut"].shape == (1, 3, 5, 7)
    assert graph.multiply_adds(graph.makers["answer"]) == 5 * 3 * 5 * 7


def test_float_fallback(tiny, tmp_path):
    """Compared with the operators that ONNX Runtime selects."""
    info = describe(tiny, "int8")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "rewritten.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tiny / "model_int8.onnx"), options, providers=["CPUExecutionProvider"])
    rewritten = Counter(node.op_type for node in onnx.load(tmp_path / "rewritten.onnx").graph.node)
    convolutions = [layer for layer in info["layers"] if layer["kind"].startswith("Conv")]
    eight = [layer for layer in convolutions if layer["precision"] == "int8"]
    assert len(eight) == rewritten["QLinearConv"] == 9
    assert [layer["name"] for layer in convolutions if layer not in eight] == ["w_third"]
    assert find_layer(info, "w_third")["in_float"]["Conv"] == 1
    assert info["in_float"]["Conv"] == rewritten["Conv"] + rewritten["FusedConv"] == 1
    assert info["in_float"]["InstanceNormalization"] == rewritten["InstanceNormalization"] == 1
    assert describe(tiny, "fp32")["in_float"] is None
    assert info["multiply_adds"] == describe(tiny, "fp32")["multiply_adds"]


def test_scales_equal_those_of_the_file(tiny):
    graph = onnx.load(tiny / "model_int8.onnx").graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    quantized = {
        node.input[0]: (float(constants[node.input[1]]), int(constants[node.input[2]]))
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }
    info = describe(tiny, "int8")
    found = {
        scale["name"]: (scale["scale"][0], scale["zero_point"])
        for layer in info["layers"]
        for scale in layer["scales"]
    }
    assert found == quantized and len(found) > 5
    second = next(node for node in graph.node if node.op_type == "Conv" and "second" in node.input[1])
    steps = constants[makers[second.input[1]].input[1]]
    spans = find_layer(info, "w_second")["weight_scales"]
    assert spans == {"smallest": float(steps.min()), "largest": float(steps.max())}


def test_scales_of_integer_heads(heads, tmp_path):
    info = describe(integer_heads_bundle(tmp_path / "integer", heads))
    assert len(info["outputs"]) == 15
    for output in info["outputs"]:
        assert output["type"] == "int16"
        assert output["scales"] == STEPS[output["name"].rpartition("_")[0]]
        assert output["shape"][3] == len(output["scales"])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_convolution_has_a_time(tiny, runtime, precision):
    network = NetworkInfo(read_bundle(tiny), precision)
    info = network.describe_with_times(runtime, threads=1)
    untimed = [
        layer["name"]
        for layer in info["layers"]
        if layer["kind"].startswith("Conv") and not layer["milliseconds"]
    ]
    assert untimed == []
    time = info["time"]
    parts = [layer["milliseconds"] or 0 for layer in info["layers"]]
    assert time["milliseconds"] == pytest.approx(sum(parts) + time["elsewhere"])
    assert time["elsewhere"] < 0.2 * time["milliseconds"]
    assert time["device"] == {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}[runtime]
    assert time["kinds_on_cpu"] == {}


def test_operators_that_a_device_does_not_support(tiny):
    """Times of the CPU, as if a GPU had been selected and had run the first node only."""
    network = NetworkInfo(read_bundle(tiny), "fp32")
    nodes, _ = time_onnx_runtime(network.file, network.inputs, 1, "cpu")
    graph = Network(network.file, {"image": (1, 3, HEIGHT, WIDTH)})
    first, *others = nodes
    on_device = NodeTime(
        first.operator, first.names, first.outputs, first.milliseconds, "CUDAExecutionProvider"
    )
    times = layer_times([on_device, *others], graph, Layers(graph, HEIGHT), "CUDAExecutionProvider")
    assert times.kinds_on_cpu == dict(Counter(node.operator for node in others))


def run(*words: object) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def test_table_json_and_drawing(heads, tmp_path, capsys):
    words = ["--size", "64,96", "--json", tmp_path / "net.json", "--output", tmp_path / "drawn"]
    assert program.main(["model-info", str(heads), *map(str, words)]) == 0
    printed = capsys.readouterr().out
    info = json.loads((tmp_path / "net.json").read_text(encoding="utf-8"))
    assert info == describe(heads, size=SIZE)
    for layer in info["layers"]:
        assert any(
            line.startswith(f"{layer['name']} ") and layer["kind"] in line for line in printed.splitlines()
        )
    assert f"{info['parameters']:,}" in printed and "GMACs (multiply-adds)" in printed
    page = (tmp_path / "drawn" / "network.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    drawing = ElementTree.parse(tmp_path / "drawn" / "network.svg").getroot()
    drawn = [each for each in drawing.iter() if each.get("data-layer") is not None]
    assert [int(each.get("data-layer")) for each in drawn] == list(range(len(info["layers"])))
    lines = {
        (int(each.get("data-from")), int(each.get("data-to"))) for each in drawing.iter() if each.get("d")
    }
    assert lines == {
        (source, number) for number, layer in enumerate(info["layers"]) for source in layer["sources"]
    }


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nowhere"], "no such bundle"),
        (["{heads}", "--precision", "int8"], "no ONNX network in int8; it has fp32"),
        (["{heads}", "--size", "100,96"], "height and width must be multiples of 32, such as 128"),
        (["{heads}", "--size", "100"], "'100' is not HEIGHT,WIDTH"),
        (["{tiny}", "--size", "64,96"], "takes only images of 48,64"),
        (["{heads}", "--device", "gpu"], "--device requires --time: add --time or omit --device"),
        (["{heads}", "--time", "--device", "gpu", "--size", "64,64"], "has no CUDAExecutionProvider"),
        (["{heads}", "--json", "{tmp}"], "name a file"),
        (["{paddle}"], "has no ONNX network, only Paddle's program; export the model again"),
        (["{broken}"], "model.onnx: not a valid ONNX network"),
    ],
)  # fmt: skip
def test_errors_are_one_line(words, named, heads, tiny, tmp_path, capsys):
    places = {
        "heads": heads,
        "tiny": tiny,
        "tmp": tmp_path,
        "paddle": tmp_path / "p",
        "broken": tmp_path / "b",
    }
    copy_without_onnx(heads, places["paddle"])
    copy_with_file(heads, places["broken"], b"\x08\x07not a network")
    assert run(*(word.format(**places) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error


def copy_without_onnx(bundle: Path, target: Path) -> None:
    """The bundle with Paddle's program only."""
    target.mkdir()
    manifest = yaml.safe_load((bundle / "bundle.yml").read_text())
    del manifest["networks"]["onnx"], manifest["files"]["model.onnx"]
    for name in manifest["files"]:
        (target / name).symlink_to(bundle / name)
    (target / "bundle.yml").write_text(yaml.safe_dump(manifest))


def copy_with_file(bundle: Path, target: Path, content: bytes) -> None:
    """The bundle with an ONNX file of this content only."""
    target.mkdir()
    manifest = yaml.safe_load((bundle / "bundle.yml").read_text())
    (target / "model.onnx").write_bytes(content)
    manifest["networks"] = {"onnx": {"fp32": {"file": "model.onnx"}}}
    manifest["files"] = {"model.onnx": file_entry(target / "model.onnx")}
    (target / "bundle.yml").write_text(yaml.safe_dump(manifest))


def test_a_missing_onnx_package_is_named(tiny, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("ppfcos.analysis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run(tiny) == 2
    assert "`pip install onnx`" in capsys.readouterr().err


def test_a_closed_pipe_causes_no_traceback(tiny, root):
    """As with `| head`."""
    command = [sys.executable, "tools/model_info.py", str(tiny)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.wait(60) == 128 + signal.SIGPIPE
        assert running.stderr.read() == b""


def test_it_needs_no_paddle(tiny, root):
    script = (
        "import sys; from ppfcos.cli.model_info import main;"
        "code = main([sys.argv[1]]) if sys.argv[1] != '--help' else None;"
        "print(sorted({'paddle', 'ppdet'} & set(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, str(tiny)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_imports_no_large_packages(root):
    script = (
        "import sys; from ppfcos.cli.model_info import build_parser; build_parser().format_help();"
        "print(sorted({'paddle', 'ppdet', 'numpy', 'cv2', 'onnx', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("seed", range(3))
def test_four_hundred_layers_do_not_overlap(seed):
    layers = random_layers(400, random.Random(seed))
    layout = place_layers(layers)
    boxes = [(*corner, number) for number, corner in layout.corners.items()]
    assert sorted(number for *_, number in boxes) == list(range(400))
    taken = np.zeros((int(layout.height) + 1, int(layout.width) + 1), np.uint8)
    for x, y, _ in boxes:
        area = taken[int(y) : int(y) + network_drawing.HEIGHT, int(x) : int(x) + network_drawing.WIDTH]
        assert area.size == network_drawing.HEIGHT * network_drawing.WIDTH and not area.any()
        area[:] = 1
    for number, layer in enumerate(layers):
        for source in layer["sources"]:
            if layout.panel_of[source] == layout.panel_of[number]:
                assert layout.corners[source][1] < layout.corners[number][1]


def random_layers(count: int, chance: random.Random) -> list:
    """Layers of random parts, strides and sources."""
    return [
        {
            "part": chance.choice(network_drawing.PARTS),
            "stride": chance.choice([None, 8, 16, 32]),
            "sources": sorted(chance.sample(range(number), min(number, chance.randint(0, 3)))),
        }
        for number in range(count)
    ]


def test_the_page_in_a_browser(tiny, tmp_path, browser, capsys):
    assert run(tiny, "--precision", "int8", "--time", "--output", tmp_path) == 0
    info = describe(tiny, "int8")
    browser.get((tmp_path / "network.html").as_uri())
    shapes = browser.find_elements(By.CSS_SELECTOR, "svg.network .layer")
    rows = browser.find_elements(By.CSS_SELECTOR, ".sortable tbody tr")
    assert len(shapes) == len(rows) == len(info["layers"])
    assert all(shape.is_displayed() for shape in shapes)
    colours = Counter(shape.get_attribute("class").split()[1] for shape in shapes)
    # In float: pixels, the third convolution, and the distances after both box convolutions.
    assert colours == {"int8": 8, "int8-float": 2, "fallback": 1, "fp32": 1}

    for width in (400, 1280):  # no number overflows its tile
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        over = "return [...document.querySelectorAll('.tile')].some((e) => e.scrollWidth > e.clientWidth)"
        assert not browser.execute_script(over)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    number = next(i for i, layer in enumerate(info["layers"]) if layer["name"] == "w_third")
    shapes[number].click()
    details = browser.find_element(By.ID, "details").text
    assert details.startswith("w_third") and "in float" in details and "ms on" in details
    lit = browser.find_elements(By.CSS_SELECTOR, ".edge.lit")
    joined = sum(number in layer["sources"] for layer in info["layers"])
    assert len(lit) >= joined + len(info["layers"][number]["sources"]) > 1

    browser.find_element(By.CSS_SELECTOR, "input.search").send_keys("w_box")
    bright = [i for i, shape in enumerate(shapes) if "dim" not in shape.get_attribute("class")]
    assert [info["layers"][i]["name"] for i in bright] == ["w_box", "w_box"]
    before = browser.find_element(By.CSS_SELECTOR, "svg.network").size["width"]
    browser.find_element(By.CSS_SELECTOR, "#zoom option[value='140%']").click()
    full = browser.execute_script("return document.querySelector('svg.network').viewBox.baseVal.width")
    after = browser.find_element(By.CSS_SELECTOR, "svg.network").size["width"]
    assert after == pytest.approx(1.4 * full, abs=1) and after != before
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
