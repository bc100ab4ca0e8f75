"""INT8 in a bundle: written by the command, run by the predictor, as integers too."""

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
from ppfcos.export.program import network_input
from ppfcos.export.ptq import Calibration, calibration_batches
from ppfcos.export.parity import TOLERANCES, compare
from ppfcos.export.program import HeadsSpec

ANYTHING_GOES = ("--disagreement", "1")  # without the search for sensitive layers, which takes its time


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return exported(tmp_path_factory.getbasetemp() / "small")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of pictures to calibrate with."""
    folder = tmp_path_factory.mktemp("photos")
    for number, picture in enumerate(pictures(seed=5)[:6]):
        assert cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


def export(small, folder: Path, *options: str) -> int:
    words = ["-c", str(small.config), "-o", f"weights={small.weights}", "--output_dir", str(folder)]
    return main([*words, *options])


@pytest.fixture(scope="module")
def end_to_end(small, photos, tmp_path_factory) -> Path:
    """A bundle in fp32 and INT8, for any number of pictures of one size."""
    folder = tmp_path_factory.mktemp("int8")
    options = ("--formats", "onnx", "--precision", "fp32,int8", "--calibration_images", str(photos))
    assert (
        export(small, folder, *options, "--calibration_count", "3", "--fixed_size", "224,320", *ANYTHING_GOES)
        == 0
    )
    return folder / "small"


def test_the_bundle_says_how_it_was_calibrated(end_to_end):
    says = yaml.safe_load((end_to_end / "bundle.yml").read_text())["networks"]["onnx"]["int8"]
    kinds = [node.op_type for node in onnx.load(end_to_end / "model_int8.onnx").graph.node]
    assert kinds.count("QuantizeLinear") > 20
    assert 0 < says.pop("disagreement") < 0.6
    # A convolution each of ResNet-18 (20, 3 of them beside a stage), the pyramid (8) and the head (2 towers
    # and 3 answers), 8 sums of blocks and 2 of the pyramid, and the padding's.
    assert says.pop("layers") > 40
    assert says == {
        "file": "model_int8.onnx",
        "opset": 17,
        "method": "minmax",
        "images": 3,
        "layers_in_float": [],
    }
    assert (end_to_end / "model_int8.onnx").stat().st_size < 0.3 * (end_to_end / "model.onnx").stat().st_size


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_predictor_runs_it(end_to_end, runtime):
    networks = [Predictor(end_to_end, runtime, precision, 2, device="cpu") for precision in ("fp32", "int8")]
    whole, eight = (each.runtime for each in networks)
    batches = [networks[0].preprocess([picture]) for picture in pictures(seed=5)[:4]]
    agreement = compare(whole, eight, batches, TOLERANCES["int8"])
    assert agreement.boxes > 100 and agreement.holds, agreement
    assert not compare(whole, eight, batches, TOLERANCES["fp32"]).holds  # it is another network, indeed


def test_both_runtimes_find_the_same_boxes(end_to_end):
    """But for rounding, by which a value may become the next of 255."""
    one, other = (
        Predictor(end_to_end, name, "int8", 2, device="cpu") for name in ("onnxruntime", "openvino")
    )
    batches = [one.preprocess([picture]) for picture in pictures(seed=5)[:4]]
    agreement = compare(one.runtime, other.runtime, batches, TOLERANCES["int8"])
    assert agreement.boxes > 100 and agreement.unmatched < 0.15 * agreement.boxes, agreement


def test_openvino_computes_in_eight_bits_and_else_in_float32(end_to_end):
    """And not in bfloat16, which it takes by itself where the CPU has it."""
    compiled = Predictor(end_to_end, "openvino", "int8", 2, device="cpu").runtime.network._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    infos = [each.get_rt_info() for each in compiled.get_runtime_model().get_ops()]
    layers = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos]
    convolutions = [precision for kind, precision in layers if kind == "Convolution"]
    assert len(convolutions) > 40 and set(convolutions) <= {"u8", "i8"}


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "distances"), [("nhwc", "strides"), ("nchw", "pixels")])
def test_integers_and_their_scales_give_the_float_heads_boxes(small, photos, tmp_path, layout, distances):
    options = ["--kind", "heads", "--layout", layout, "--distances", distances, "--precision", "int8"]
    options += ["--formats", "onnx", "--calibration_images", str(photos), *ANYTHING_GOES]
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
    agreement = compare(*(each.runtime for each in runtimes), batches, TOLERANCES["int8"])
    assert agreement.boxes > 100 and agreement.unmatched < 0.2 * agreement.boxes, agreement
    with pytest.raises(BundleError, match=r"OpenVINO gives wrong scores.*--fixed_size"):
        Predictor(floats, "openvino", "int8")


def test_pictures_come_in_the_networks_form(photos):
    """In full batches, prepared by the deployment's own steps."""
    files = sorted(str(path) for path in photos.iterdir())[:5]
    preprocess = Preprocess(
        [{"type": "Resize", "target_size": [64, 96]}], network_input("nv12", "rgb", 2, (64, 96))
    )
    batches = list(calibration_batches(preprocess, files))
    assert [batch["image"].shape for batch in batches] == [(2, 96, 96)] * 3
    expected = preprocess([cv2.imread(files[4]), cv2.imread(files[0])])  # black would count as seen
    np.testing.assert_array_equal(batches[2]["image"], expected["image"])


def test_a_list_names_pictures_beside_it(small, photos, tmp_path, capsys):
    """And what is not there is said before anything is done."""
    (photos / "list.txt").write_text("0.png\n\nabsent.png\n")
    options = ["--formats", "onnx", "--precision", "int8", "--calibration_images", str(photos / "list.txt")]
    assert export(small, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{photos / 'absent.png'}, which is not there" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--calibration_count", "8"], "--calibration_count is for --precision int8"),
        (["--integer_outputs"], "--integer_outputs is for --precision int8"),
        (["--precision", "int8"], "name a folder or a list of some with --calibration_images"),
        (["--precision", "int8", "--calibration_images", "nowhere"], "nowhere: cannot be read"),
        (["--precision", "int8", "--calibration_images", "{empty}"], "holds no pictures"),
        (["--precision", "int8", "--calibration_images", "{photos}", "--calibration", "minimax"], "'minmax'"),
        (["--precision", "int8", "--calibration_images", "{photos}", "--most_float", "3"], "most_float"),
        (["--precision", "int8", "--calibration_images", "{photos}", "--integer_outputs"], "--kind heads"),
    ],
)
def test_options_that_cannot_be_are_named_in_one_line(small, photos, tmp_path, capsys, options, named):
    (tmp_path / "empty").mkdir()
    words = [word.format(empty=tmp_path / "empty", photos=photos) for word in options]
    assert export(small, tmp_path / "out", *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and named in line
    assert not (tmp_path / "out").exists()


def test_parts_that_contradict_one_another():
    calibration = Calibration(["a.png"])
    with pytest.raises(ConfigError, match="go together"):
        ExportOptions(formats=("onnx",), precisions=("int8",))
    with pytest.raises(ConfigError, match="go together"):
        ExportOptions(formats=("onnx",), calibration=calibration)
    integers = Calibration(["a.png"], integer_outputs=True)
    with pytest.raises(ConfigError, match="whose scales are the bundle's"):
        ExportOptions(HeadsSpec(), formats=("onnx",), precisions=("fp32", "int8"), calibration=integers)
    with pytest.raises(ConfigError, match="needs pictures"):
        Calibration([])
