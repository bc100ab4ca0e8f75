"""INT8 bundles, also with integer outputs: exported by the command, run by the predictor."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import yaml
from helpers.small_detector import exported, pictures

from ppfcos.cli.export_model import main
from ppfcos.deploy import Predictor
from ppfcos.deploy.bundle import read_bundle
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.errors import BundleError, ConfigError
from ppfcos.export.bundle import ExportOptions
from ppfcos.export.parity import TOLERANCES, compare
from ppfcos.export.program import HeadsSpec, network_input
from ppfcos.export.ptq import Calibration, calibration_batches

NO_SEARCH = ("--disagreement", "1")  # without the search for sensitive layers, which takes its time


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return exported(tmp_path_factory.getbasetemp() / "small")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of calibration images."""
    folder = tmp_path_factory.mktemp("photos")
    for number, picture in enumerate(pictures(seed=5)[:6]):
        assert cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


def export(small, folder: Path, *options: str) -> int:
    words = ["-c", str(small.config), "-o", f"weights={small.weights}", "--output_dir", str(folder)]
    return main([*words, *options])


@pytest.fixture(scope="module")
def end_to_end(small, photos, tmp_path_factory) -> Path:
    """A bundle in fp32 and INT8, of a fixed size and any batch size."""
    folder = tmp_path_factory.mktemp("int8")
    options = ("--formats", "onnx", "--precision", "fp32,int8", "--calibration_images", str(photos))
    assert (
        export(small, folder, *options, "--calibration_count", "3", "--fixed_size", "224,320", *NO_SEARCH)
        == 0
    )
    return folder / "small"


def test_manifest_describes_calibration(end_to_end):
    network = yaml.safe_load((end_to_end / "bundle.yml").read_text())["networks"]["onnx"]["int8"]
    kinds = [node.op_type for node in onnx.load(end_to_end / "model_int8.onnx").graph.node]
    assert kinds.count("QuantizeLinear") > 20
    assert 0 < network.pop("disagreement") < 0.6
    # The convolutions of ResNet-18 (20, 3 of them shortcuts), the FPN (8) and the head (2 in towers, 3
    # outputs), 8 additions of blocks and 2 of the FPN, and that of the padding.
    assert network.pop("layers") > 40
    assert network == {
        "file": "model_int8.onnx",
        "opset": 17,
        "method": "minmax",
        "images": 3,
        "layers_in_float": [],
    }
    assert (end_to_end / "model_int8.onnx").stat().st_size < 0.3 * (end_to_end / "model.onnx").stat().st_size


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_predictor_runs_int8(end_to_end, runtime):
    networks = [Predictor(end_to_end, runtime, precision, 2, device="cpu") for precision in ("fp32", "int8")]
    whole, eight = (each.runtime for each in networks)
    batches = [networks[0].preprocess([picture]) for picture in pictures(seed=5)[:4]]
    check = compare(whole, eight, batches, TOLERANCES["int8"])
    assert check.boxes > 100 and check.holds, check
    assert not compare(whole, eight, batches, TOLERANCES["fp32"]).holds


def test_runtimes_agree_on_int8(end_to_end):
    """Except for rounding to the next of 255 values."""
    one, other = (
        Predictor(end_to_end, name, "int8", 2, device="cpu") for name in ("onnxruntime", "openvino")
    )
    batches = [one.preprocess([picture]) for picture in pictures(seed=5)[:4]]
    check = compare(one.runtime, other.runtime, batches, TOLERANCES["int8"])
    assert check.boxes > 100 and check.unmatched < 0.15 * check.boxes, check


def test_openvino_computes_convolutions_in_int8_and_the_rest_in_float32(end_to_end):
    """By default it would compute in bfloat16 if the CPU supports it."""
    compiled = Predictor(end_to_end, "openvino", "int8", 2, device="cpu").runtime.network._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    infos = [each.get_rt_info() for each in compiled.get_runtime_model().get_ops()]
    layers = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos]
    convolutions = [precision for kind, precision in layers if kind == "Convolution"]
    assert len(convolutions) > 40 and set(convolutions) <= {"u8", "i8"}


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "distances"), [("nhwc", "strides"), ("nchw", "pixels")])
def test_integer_outputs_match_float_heads(small, photos, tmp_path, layout, distances):
    options = ["--kind", "heads", "--layout", layout, "--distances", distances, "--precision", "int8"]
    options += ["--formats", "onnx", "--calibration_images", str(photos), *NO_SEARCH]
    assert export(small, tmp_path / "float", *options) == 0
    assert export(small, tmp_path / "integers", *options, "--integer_outputs") == 0
    floats, integers = (tmp_path / name / "small" for name in ("float", "integers"))
    kinds = {each.type.tensor_type.elem_type for each in onnx.load(integers / "model_int8.onnx").graph.output}
    assert kinds == {onnx.TensorProto.INT32}
    assert all(level.scales for level in read_bundle(integers).heads.levels)
    assert not any(level.scales for level in read_bundle(floats).heads.levels)
    # Floats come in eight bits, 255 steps over the range of all channels, and integers in 32.
    runtimes = [Predictor(each, "onnxruntime", "int8", 2, device="cpu") for each in (floats, integers)]
    batches = [runtimes[0].preprocess([picture]) for picture in pictures(seed=5)[:4]]
    check = compare(*(each.runtime for each in runtimes), batches, TOLERANCES["int8"])
    assert check.boxes > 100 and check.unmatched < 0.2 * check.boxes, check
    with pytest.raises(BundleError, match=r"OpenVINO gives wrong scores.*--fixed_size"):
        Predictor(floats, "openvino", "int8")


def test_calibration_batches_have_the_input_form(photos):
    """Batches are full, and preprocessed as in deployment."""
    files = sorted(str(path) for path in photos.iterdir())[:5]
    preprocess = Preprocess(
        [{"type": "Resize", "target_size": [64, 96]}], network_input("nv12", "rgb", 2, (64, 96))
    )
    batches = list(calibration_batches(preprocess, files))
    assert [batch["image"].shape for batch in batches] == [(2, 96, 96)] * 3
    expected = preprocess(
        [cv2.imread(files[4]), cv2.imread(files[0])]
    )  # padding with black images would change the ranges
    np.testing.assert_array_equal(batches[2]["image"], expected["image"])


def test_list_of_images_is_relative_to_its_folder(small, photos, tmp_path, capsys):
    """A missing image is reported before the export starts."""
    (photos / "list.txt").write_text("0.png\n\nabsent.png\n")
    options = ["--formats", "onnx", "--precision", "int8", "--calibration_images", str(photos / "list.txt")]
    assert export(small, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(photos / "absent.png") in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--calibration_count", "8"], "--calibration_count is for --precision int8"),
        (["--integer_outputs"], "--integer_outputs is for --precision int8"),
        (["--precision", "int8"], "--calibration_images"),
        (["--precision", "int8", "--calibration_images", "nowhere"], "nowhere: cannot be read"),
        (["--precision", "int8", "--calibration_images", "{empty}"], "contains no images"),
        (["--precision", "int8", "--calibration_images", "{photos}", "--calibration", "minimax"], "'minmax'"),
        (["--precision", "int8", "--calibration_images", "{photos}", "--most_float", "3"], "most_float"),
        (["--precision", "int8", "--calibration_images", "{photos}", "--integer_outputs"], "--kind heads"),
    ],
)
def test_invalid_options_are_named_in_one_line(small, photos, tmp_path, capsys, options, named):
    (tmp_path / "empty").mkdir()
    words = [word.format(empty=tmp_path / "empty", photos=photos) for word in options]
    assert export(small, tmp_path / "out", *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and named in line
    assert not (tmp_path / "out").exists()


def test_contradictory_options_are_refused():
    calibration = Calibration(["a.png"])
    with pytest.raises(ConfigError, match="go together"):
        ExportOptions(formats=("onnx",), precisions=("int8",))
    with pytest.raises(ConfigError, match="go together"):
        ExportOptions(formats=("onnx",), calibration=calibration)
    integers = Calibration(["a.png"], integer_outputs=True)
    with pytest.raises(ConfigError, match="since the scales are the bundle's"):
        ExportOptions(HeadsSpec(), formats=("onnx",), precisions=("fp32", "int8"), calibration=integers)
    with pytest.raises(ConfigError, match="needs images"):
        Calibration([])
