"""docs/deploy.ipynb is a valid notebook without outputs, runs, and prints the predictor's boxes."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from helpers import pages
from helpers.small_bundles import end_to_end_bundle, nv12_bundle

from ppfcos.cli.main import parser_of
from ppfcos.data.shapes import generate
from ppfcos.deploy import Detections, NV12Image, Predictor
from ppfcos.deploy.images import read_image
from ppfcos.deploy.sources import list_pictures

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: requirements/dev.txt has it")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: requirements/dev.txt has it")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: requirements/dev.txt has it")

NOTEBOOK = ROOT / "docs" / "deploy.ipynb"
SHOWN, PICTURES_DRAWN = 4, 5
THRESHOLD = 0.1  # the small detector is untrained
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|mnt|var|Users)/|\b[A-Z]:\\\\")


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Values of the environment variables that the first cell reads."""
    base, data = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("shapes")
    generate(data, train=1, val=8)
    return {
        "PPFCOS_BUNDLE": end_to_end_bundle(base / "end_to_end"),
        "PPFCOS_NV12_BUNDLE": nv12_bundle(base / "nv12"),
        "PPFCOS_PICTURES": data / "val2017",
    }


@pytest.fixture(scope="module")
def printed(notebook, folders) -> list[str]:
    """The output of each code cell, and the number of images shown."""
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in folders.items():
            patch.setenv(name, str(folder))
        patch.setenv("PPFCOS_THRESHOLD", str(THRESHOLD))
        done = nbclient.execute(notebook.copy(), cwd=NOTEBOOK.parent, timeout=120, kernel_name="python3")
    cells = [cell.outputs for cell in done.cells if cell.cell_type == "code"]
    drawn = sum("image/png" in output.get("data", {}) for outputs in cells for output in outputs)
    return ["".join(output.get("text", "") for output in outputs) for outputs in cells] + [str(drawn)]


def lines_of(detections: Detections) -> list[str]:
    """The lines that the notebook prints for the boxes of an image."""
    found = detections.above(THRESHOLD)
    names = [found.class_names[label] for label in found.labels]
    return [
        f"  {name} {score:.3f} {box.round(1)}" for name, score, box in zip(names, found.scores, found.boxes)
    ]


def camera(picture: Path, height: int, width: int) -> NV12Image:
    return NV12Image.of(cv2.resize(read_image(picture), (width, height)))


def test_is_a_valid_notebook_without_outputs_or_machine_paths(notebook):
    nbformat.validate(notebook)
    assert [cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.outputs] == []
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert MACHINE_PATH.findall(text) == []
    assert MACHINE_PATH.search('"/home/me/bundle"') and MACHINE_PATH.search(r"C:\\\\bundle")


def test_its_commands_and_links_are_right(notebook):
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert [link for link in pages.links(text) if not (NOTEBOOK.parent / link).is_file()] == []
    [export] = [each for each in pages.commands("docs/deploy.ipynb", text) if each.words[0] == "python"]
    assert export.words[1] == "tools/export_model.py"
    options = parser_of("export").parse_args(export.words[2:])
    assert Path(options.output_dir, Path(options.config).stem).as_posix() in notebook.cells[1].source


def test_prints_the_boxes_of_the_predictor(printed, folders):
    paths = list_pictures(folders["PPFCOS_PICTURES"])[:SHOWN]
    wanted = []
    for path, detections in zip(paths, Predictor(folders["PPFCOS_BUNDLE"]).predict(paths)):
        wanted += [path.name, *lines_of(detections)]
    assert len(wanted) > 2 * SHOWN
    assert "\n".join(wanted) + "\n" in printed


def test_prints_the_boxes_of_nv12_frames(printed, folders):
    [first, *_] = list_pictures(folders["PPFCOS_PICTURES"])
    [found] = Predictor(folders["PPFCOS_BUNDLE"]).predict([camera(first, 240, 320)])
    assert len(found) > 0 and "\n".join(lines_of(found)) + "\n" in printed
    board = Predictor(folders["PPFCOS_NV12_BUNDLE"])
    [found] = board.predict([camera(first, *board.bundle.input.size)])
    assert "\n".join(["heads, nv12 224x320", *lines_of(found)]) + "\n" in printed


def test_decodes_heads_as_the_predictor_does(printed, folders):
    [first, *_] = list_pictures(folders["PPFCOS_PICTURES"])
    board = Predictor(folders["PPFCOS_NV12_BUNDLE"])
    [found] = board.predict([camera(first, *board.bundle.input.size)])
    rows = np.column_stack([found.labels, found.scores, found.boxes]).astype(np.float32)
    text = printed[-2]
    assert f"{len(found)} boxes; " in text and text.endswith(f"{rows[:3].round(3)}\n")


def test_every_runtime_that_is_installed_and_every_picture_is_shown(printed):
    [runtimes] = [text for text in printed if text.startswith("onnxruntime:")]
    assert re.findall(r"^(\w+): \d+ boxes", runtimes, re.M) == ["onnxruntime", "openvino", "paddle"]
    assert int(printed[-1]) == PICTURES_DRAWN
