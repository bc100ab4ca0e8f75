"""ppfcos benchmark: the times of the stages, their order and summary, files, and errors."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import yaml
from helpers.small_bundles import FIXED_SIZE, end_to_end_bundle, file_entry, heads_bundle, uint8_bundle
from helpers.small_detector import draw_image
from helpers.terminal import frames, run_on_terminal

from ppfcos.cli import benchmark
from ppfcos.deploy import Predictor
from ppfcos.deploy.benchmark import ImageFile, compose_request, timed_request
from ppfcos.deploy.bundle import MANIFEST_FILE, NetworkInput
from ppfcos.deploy.images import decode_image
from ppfcos.deploy.preprocess import Preprocess

STREAMS, ROUNDS = (1, 2), 2


class Small(NamedTuple):
    """Bundles of the small detector."""

    heads: Path
    end_to_end: Path
    uint8: Path  # with a fixed batch of 2


class Run(NamedTuple):
    """The output of the command for both kinds of bundle."""

    content: dict[str, Any]
    printed: str
    page: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    folder = tmp_path_factory.getbasetemp()
    return Small(
        heads_bundle(folder / "heads"),
        end_to_end_bundle(folder / "end_to_end"),
        uint8_bundle(folder / "uint8"),
    )


@pytest.fixture(autouse=True)
def variables_as_before(monkeypatch):
    """The command sets OMP_NUM_THREADS; restore it."""
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))


def run(*words: object) -> int:
    return benchmark.main([str(word) for word in words])


@pytest.fixture(scope="module")
def both(small, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch, open(folder / "printed", "w+", encoding="utf-8") as printed:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(sys, "stdout", printed)
        setting = ["--threads", 1, "--streams", "1,2", "--batch", 1, "--rounds", ROUNDS]
        files = ["--output", folder / "results.json", "--chart", folder / "page.html"]
        assert run(small.heads, small.end_to_end, *setting, *files) == 0
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return Run(content, (folder / "printed").read_text(encoding="utf-8"), folder / "page.html")


# Times -----------------------------------------------------------------------------------------------------


def image_file(height: int, width: int, seed: int = 0) -> ImageFile:
    content = cv2.imencode(".jpg", draw_image(height, width, seed))[1].tobytes()
    return ImageFile(f"image {seed}", content, (height, width))


def least(run: Any) -> float:
    """The shortest of five runs in milliseconds."""
    spans = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        spans.append(1000 * (time.perf_counter() - start))
    return min(spans)


def test_each_stage_takes_the_time_of_its_operation(small):
    predictor = Predictor(small.heads, "onnxruntime", threads=1)
    files = [image_file(600, 800), image_file(600, 800, 1)]
    images = [decode_image(each.content, each.name) for each in files]
    inputs = predictor.preprocess(images)
    outputs = predictor.runtime.network.run({"image": inputs["image"], "im_shape": inputs["im_shape"]})
    shapes = inputs["image"].shape[2:], inputs["im_shape"], inputs["scale_factor"]
    apart = {
        "decoding": lambda: [cv2.imdecode(np.frombuffer(each.content, np.uint8), 1) for each in files],
        "preprocessing": lambda: predictor.preprocess(images),
        "network": lambda: predictor.runtime.network.run({k: inputs[k] for k in ("image", "im_shape")}),
        "postprocessing": lambda: predictor.runtime.decoder(outputs, *shapes),
    }
    timed = [timed_request(predictor, files) for _ in range(5)]
    for stage, run_alone in apart.items():
        alone, within = least(run_alone), min(getattr(request, stage) for request in timed)
        # Alone, the data are in the CPU's caches. The stages differ by much more than this factor.
        assert 0.2 < within / alone < 5, (stage, within, alone)


@pytest.mark.parametrize(("kind", "files"), [("heads", 3), ("end_to_end", 1), ("uint8", 2)])
def test_number_of_boxes_equals_that_of_the_predictor(small, tmp_path, kind, files):
    predictor = Predictor(getattr(small, kind), "onnxruntime", threads=1)
    taken = [image_file(200, 300, seed) for seed in range(files)]
    for number, each in enumerate(taken):
        (tmp_path / f"{number}.jpg").write_bytes(each.content)
    expected = predictor.predict(sorted(tmp_path.iterdir()))
    assert timed_request(predictor, taken).boxes == sum(map(len, expected)) > 10


def test_stages_and_requests_add_up(both):
    for turn in both.content["turns"]:
        for *stages, whole, _ in itertools.chain(*turn["streams"]):
            assert min(stages) > 0 and math.isclose(sum(stages), whole, abs_tol=1e-3)
        busy = [sum(request[4] for request in requests) / 1000 for requests in turn["streams"]]
        assert 0.5 * turn["seconds"] < max(busy) < turn["seconds"] + 1e-3


def test_images_of_a_request_have_one_size():
    sizes = [(10, 20), (30, 30), (10, 20), (10, 20), (30, 30)]
    taken = [ImageFile(str(number), b"", size) for number, size in enumerate(sizes)]
    for number, batch in itertools.product(range(12), (1, 2, 3, 5)):
        request = compose_request(taken, number, batch)
        first = taken[number % 5]
        behind = [taken[i % 5] for i in range(number, number + 50) if sizes[i % 5] == first.size]
        assert request == behind[:batch] and request[0] is first


@pytest.mark.parametrize(
    ("resize", "fixed"),
    [
        ({"target_size": [224, 320]}, None),
        ({"target_size": [320, 224]}, None),
        ({"target_size": 128}, None),
        ({"target_size": [96, 200], "keep_ratio": False}, None),
        ({"target_size": [800, 1333]}, (512, 896)),
        ({"target_size": [100, 100]}, (512, 896)),
    ],
)
def test_synthetic_images_are_not_resized(resize, fixed):
    form = NetworkInput(height=fixed and fixed[0], width=fixed and fixed[1])
    preprocess = Preprocess([{"type": "Resize", **resize}, {"type": "PadStride", "stride": 32}], form)
    height, width = preprocess.natural_size
    image = np.zeros((height, width, 3), np.uint8)
    assert preprocess.prepare(image).image is image
    larger = preprocess.prepare(np.zeros((height + 8, width + 8, 3), np.uint8))
    assert larger.scale_factor < (1, 1)


def test_natural_size_without_a_resize():
    assert Preprocess([{"type": "Permute"}]).natural_size is None
    fixed = Preprocess([{"type": "Permute"}], NetworkInput(height=64, width=96))
    assert fixed.natural_size == (64, 96)


# The results -----------------------------------------------------------------------------------------------


def test_every_round_runs_all_cases_in_order(both, small):
    rows = both.content["rows"]
    order = [(turn["round"], turn["row"]) for turn in both.content["turns"]]
    assert order == list(itertools.product(range(ROUNDS), range(len(rows))))
    bundles = [str(small.heads), str(small.end_to_end)]
    described = [(row["streams"], row["bundle"]) for row in rows]
    assert described == list(itertools.product(STREAMS, bundles))
    for turn in both.content["turns"]:
        assert len(turn["streams"]) == rows[turn["row"]]["streams"]


def test_both_models_run_the_same_requests(both):
    for first, second in zip(both.content["rows"][::2], both.content["rows"][1::2]):
        assert first["requests"] == second["requests"] > 0
        assert math.isclose(first["boxes_per_image"], second["boxes_per_image"], rel_tol=0.01)
    assert both.content["images"]["sizes"] == [list(FIXED_SIZE)] * 4  # what the configuration resizes to


def percentile(values: list[float], fraction: float) -> float:
    """Linear interpolation between the two nearest values."""
    place = fraction * (len(values) - 1)
    below, above = sorted(values)[math.floor(place)], sorted(values)[math.ceil(place)]
    return below + (place - math.floor(place)) * (above - below)


def test_rows_summarize_the_requests(both):
    rows, turns = both.content["rows"], both.content["turns"]
    for number, row in enumerate(rows):
        own = [turn for turn in turns if turn["row"] == number]
        requests = [request for turn in own for stream in turn["streams"] for request in stream]
        assert row["requests"] == row["images"] == len(requests)
        for place, name in enumerate(both.content["request"][:-1]):
            times = [request[place] for request in requests]
            figures = row["milliseconds"][name]
            assert math.isclose(figures["median"], percentile(times, 0.5))
            assert math.isclose(figures["p99"], percentile(times, 0.99))
        seconds = sum(turn["seconds"] for turn in own)
        assert math.isclose(row["images_per_second"], len(requests) / seconds)
        assert math.isclose(row["ratio"] * rows[0]["images_per_second"], row["images_per_second"])
        assert math.isclose(row["boxes_per_image"], sum(each[-1] for each in requests) / len(requests))


def test_the_printed_table_shows_the_rows(both, small):
    *written, first, second = both.printed.partition("\n\n")[0].splitlines()[:4]
    assert [line.split("written: ")[1] for line in written] == [
        str(both.page.with_name("results.json")),
        str(both.page),
    ]
    assert first.startswith(both.content["date"]) and both.content["machine"] in first
    assert f"onnxruntime {both.content['versions']['onnxruntime']}" in second
    lines = both.printed.splitlines()
    assert "4 synthetic images of 224x320" in both.printed
    names, rule, *cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")
    ]
    assert {len(row) for row in (names, rule, *cells)} == {len(names)}
    assert "bundle" in names and "runtime" not in names  # it is the same in all rows
    for row, shown in zip(both.content["rows"], (dict(zip(names, row)) for row in cells)):
        assert shown["bundle"] == row["bundle"]  # both folders have the same name
        assert math.isclose(float(shown["images/s"]), row["images_per_second"], rel_tol=0.01)
        median, p99 = map(float, shown["end to end"].split(" / "))
        assert math.isclose(median, row["milliseconds"]["end_to_end"]["median"], rel_tol=0.01)
        assert math.isclose(p99, row["milliseconds"]["end_to_end"]["p99"], rel_tol=0.01)
        in_network = shown["postprocessing"] == "in the network"
        assert in_network == (row["bundle"] == str(small.end_to_end))


def test_the_chart_is_to_scale_and_reaches_for_nothing(both, browser):
    text = both.page.read_text(encoding="utf-8")
    assert "http" not in text and "<link" not in text and "<img" not in text
    browser.get(both.page.as_uri())
    widths = browser.execute_script(
        "return [...document.querySelectorAll('section')].slice(0, 2).map((section) =>"
        " [...section.querySelectorAll('.bar-area')].map((area) =>"
        " [...area.children].map((bar) => bar.getBoundingClientRect().width)))"
    )
    rows = both.content["rows"]
    speeds = [row["images_per_second"] for row in rows]
    medians = [list(row["milliseconds"].values())[:-1] for row in rows]
    assert len(widths[0]) == len(widths[1]) == len(rows)
    for [width], speed in zip(widths[0], speeds):
        assert math.isclose(width / max(widths[0])[0], speed / max(speeds), rel_tol=0.01)
    pixels_a_millisecond = max(map(sum, widths[1])) / max(
        sum(stage["median"] for stage in row) for row in medians
    )
    for parts, row in zip(widths[1], medians):
        expected = [stage["median"] * pixels_a_millisecond for stage in row]
        np.testing.assert_allclose(parts, expected, atol=1)


def test_the_table_of_the_page_fits_a_laptop(both, browser):
    assert "<code>batch</code>" in both.page.read_text(encoding="utf-8")
    browser.set_window_size(1280, 900)
    browser.get(both.page.as_uri())
    widths = "const e = document.querySelector('.wide'); return [e.scrollWidth, e.clientWidth]"
    assert len(set(browser.execute_script(widths))) == 1


# Options ---------------------------------------------------------------------------------------------------


QUICK = ("--threads", 1, "--streams", 1, "--rounds", 1)


def read_results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_images_of_a_folder(small, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for number, size in enumerate(((97, 203), (200, 150), (97, 203))):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(image_file(*size, number).content)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    arguments = ["--images", tmp_path / "images", "--output", tmp_path / "results.json"]
    assert run(small.heads, *QUICK, "--batch", 2, *arguments) == 0
    printed = capsys.readouterr().out
    assert "broken.jpg" in printed and "3 images of" in printed
    content = read_results(tmp_path / "results.json")
    assert content["images"]["sizes"] == [[97, 203], [200, 150], [97, 203]]
    assert content["rows"][0]["images"] == 2 * content["rows"][0]["requests"]


def test_fixed_batch(small, tmp_path, capsys):
    threads = cv2.getNumThreads()
    assert run(small.uint8, *QUICK, "--output", tmp_path / "default.json") == 0
    assert [row["batch"] for row in read_results(tmp_path / "default.json")["rows"]] == [2]
    assert run(small.uint8, *QUICK, "--batch", "2,4", "--output", tmp_path / "some.json") == 0
    content = read_results(tmp_path / "some.json")
    assert [row["batch"] for row in content["rows"]] == [2]
    [line] = content["left_out"]
    assert line in capsys.readouterr().out and "other batches than 2" in line
    assert cv2.getNumThreads() == threads


@pytest.fixture
def with_int8(small, tmp_path) -> Path:
    """A bundle that calls a copy of its ONNX file INT8."""
    folder = Path(shutil.copytree(small.heads, tmp_path / "with_int8"))
    shutil.copy(folder / "model.onnx", folder / "model_int8.onnx")
    manifest = yaml.safe_load((folder / MANIFEST_FILE).read_text())
    manifest["networks"]["onnx"]["int8"] = {"file": "model_int8.onnx"}
    manifest["files"]["model_int8.onnx"] = file_entry(folder / "model_int8.onnx")
    (folder / MANIFEST_FILE).write_text(yaml.safe_dump(manifest))
    return folder


def test_unavailable_combinations_are_left_out_with_a_line(with_int8, tmp_path, capsys):
    wanted = ["--runtime", "paddle,onnxruntime", "--precision", "fp32,int8", "--batch", 1]
    assert run(with_int8, *QUICK, *wanted, "--output", tmp_path / "results.json") == 0
    content = read_results(tmp_path / "results.json")
    found = [(row["runtime"], row["precision"]) for row in content["rows"]]
    assert found == [("paddle", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")]
    [line] = content["left_out"]
    assert "no network for paddle in int8" in line and line in capsys.readouterr().out
    assert set(content["versions"]) >= {"paddle", "onnxruntime"}


def test_progress_without_importing_paddle(small, root, tmp_path):
    """On a terminal, with three rounds, the minimum, because the time is short."""
    code = (
        "import sys; from ppfcos.cli.benchmark import main; code = main(sys.argv[1:]);"
        "sys.exit(code or any(name in sys.modules for name in ('paddle', 'ppdet')))"
    )
    output = tmp_path / "results.json"
    words = [small.end_to_end, *QUICK[:4], "--batch", 1, "--seconds", 1, "--output", output]
    command = [sys.executable, "-c", code, *map(str, words)]
    code, sent = run_on_terminal(command, 200, PYTHONPATH=str(root))
    assert code == 0, sent
    assert read_results(output)["rounds"] == 3
    seen = ["\n".join(screen) for screen in frames(sent, 200)]
    for title in ("loading", "warming up", "measuring"):
        assert any(f"{title} " in screen and "%|" in screen for screen in seen)
    assert "%|" not in seen[-1] and "in the network" in seen[-1]


def test_help_imports_no_large_packages(root):
    code = (
        "import sys; from ppfcos.cli.benchmark import build_parser; build_parser().format_help();"
        "print(sorted({'paddle', 'onnxruntime', 'openvino', 'cv2', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Errors ----------------------------------------------------------------------------------------------------


WRONG = {
    "no such bundle": (["{images}/none"], "no such bundle folder"),
    "no bundle": (["{images}"], "this is not a bundle"),
    "second of two is no bundle": (["{heads}", "{images}"], "this is not a bundle"),
    "precision": (["{heads}", "--precision", "fp32,int8"], "no network in int8; it has"),
    "precision of a runtime": (["{heads}", "--runtime", "onnxruntime", "--precision", "fp16"], "onnxruntime"),
    "runtime of a bundle": (["{uint8}", "--runtime", "paddle,onnxruntime"], "no network for paddle"),
    "device": (["{heads}", "--runtime", "onnxruntime", "--device", "gpu"], "CUDAExecutionProvider"),
    "batch": (["{uint8}", "--batch", "1,4"], "takes 2 images at once and no other number; add 2"),
    "missing folder of images": (["{heads}", "--images", "{images}/none"], "--images"),
    "folder without images": (["{heads}", "--images", "{empty}"], "contains no images"),
    "unreadable images": (["{heads}", "--images", "{images}"], "none of its images can be read"),
    "a folder for a file": (["{heads}", "--output", "{images}"], "is a folder; name a file in it"),
    "a file for a folder": (["{heads}", "--chart", "{images}/a.jpg/x.html"], "--chart FILE"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_one_line(small, tmp_path, capsys, case):
    for name in ("images", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"no image")
    places = {**small._asdict(), "images": tmp_path / "images", "empty": tmp_path / "empty"}
    words, message = WRONG[case]
    assert run(*(word.format(**places) for word in words), "--threads", 1, "--streams", 1) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert os.listdir(tmp_path / "images") == ["a.jpg"]


def test_a_runtime_that_is_not_installed_is_one_line(small, capsys, monkeypatch):
    for module in [each for each in sys.modules if each.split(".")[0] == "openvino"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert run(small.heads, "--runtime", "onnxruntime,openvino", "--threads", 1, "--streams", 1) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "pip install openvino" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "BUNDLE"),
        (["x", "--runtime", "onnxruntme"], "did you mean 'onnxruntime'?"),
        (["x", "--precision", "fp32,fp8"], "'fp8' is not known"),
        (["x", "--threads", "1,0"], "'0' is not a whole number from 1"),
        (["x", "--streams", "two"], "'two' is not a whole number from 1"),
        (["x", "--batch", "1,,2"], "'' is not a whole number from 1"),
        (["x", "--rounds", "0"], "--rounds"),
    ],
)
def test_wrong_options(words, message, capsys):
    with pytest.raises(SystemExit) as raised:
        run(*words)
    error = capsys.readouterr().err
    assert raised.value.code == 2 and error.count("\n") == 1 and message in error
