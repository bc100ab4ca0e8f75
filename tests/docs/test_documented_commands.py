"""Run the commands of README and docs/ one after another, with small networks and data."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import needs_export
from helpers import pages
from test_own_data import SMALL

from ppfcos.cli.eval import BELOW
from ppfcos.data import shapes

STANDARD = "fcos_r50_fpn_1x_coco"
WEIGHTS = f"output/{STANDARD}/best_model.pdparams"
# In this order each page finds what it needs: deploy.md ends with a bundle of another kind.
PAGES = (
    "docs/training.md",
    "README.md",
    *(f"docs/{name}.md" for name in ("evaluation_report", "model_zoo", "quantization")),
    *(f"docs/{name}.md" for name in ("benchmark_command", "predictor", "deploy")),
)
# Commands that need more than this machine, or that another test runs.
ELSEWHERE = {
    r"^(make|pip) ": "they make the environment of the tests",
    r"--gpus": "they need GPUs",
    r"^ppfcos environment$": "test_main.py",
    r"/download_": "test_download.py",
    r"^visualdl ": "test_loggers.py",
    r"run_paddledetection_infer": "test_paddledetection.py",
    r"convert_weights\.py|weights/mmdet\.yml": "test_convert_weights.py",
    r"configs/mine\.yml|dataset/mine": "test_own_data.py",
    r"fcos_efficientnet_": "test_qat.py",
}
STANDS_FOR = {"CONFIG": f"configs/{STANDARD}.yml", "BUNDLE": f"output_inference/{STANDARD}", "FILE": WEIGHTS}
SHORTER = {"benchmark": ["--rounds", "1", "--threads", "1", "--streams", "1", "--batch", "1"]}
CODES = {"--require-ap": (0, BELOW)}  # the network has hardly been trained
QUICK = "epoch: 1\nLearningRate:\n  schedulers: [!CosineDecay {max_epochs: 1}, !LinearWarmup {steps: 2}]\n"


@pytest.fixture
def folder(root, tmp_path) -> Path:
    """A checkout with data as on the pages, and small base configurations."""
    for name in ("tools", "ppfcos"):
        (tmp_path / name).symlink_to(root / name)
    shutil.copytree(root / "configs", tmp_path / "configs")
    small = {**SMALL, "datasets/coco_detection.yml": "num_classes: 3\n", "fcos_demo_shapes.yml": QUICK}
    for name, lines in small.items():
        path = tmp_path / "configs" / name
        path.rename(path.with_suffix(".real.yml"))
        path.write_text(f"_BASE_: {path.with_suffix('.real.yml').name}\n{lines}")
    for name in ("coco", "shapes"):
        shapes.generate(tmp_path / "dataset" / name, train=32, val=8, size=96)
    for name in ("photos", "pictures"):
        shutil.copytree(tmp_path / "dataset/coco/val2017", tmp_path / name)
    video = cv2.VideoWriter(str(tmp_path / "street.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (96, 64))
    for shade in (0, 100, 200):
        video.write(np.full([64, 96, 3], shade, np.uint8))
    video.release()
    return tmp_path


def typed(command: pages.Command) -> list[str]:
    """The command with values for placeholders, for this Python."""
    words = list(command.words)
    for name, value in STANDS_FOR.items():
        words = [re.sub(rf"(^|=){name}$", rf"\g<1>{value}", word) for word in words]
    for name, more in SHORTER.items():
        if any(re.search(rf"\b{name}(\.py)?$", word) for word in words[:2]):
            words += more
    return [sys.executable, *(words[1:] if words[0] == "python" else ["-m", *words])]


def prepare(folder: Path, page: str) -> None:
    """Make what a page assumes to exist."""
    if page == "docs/evaluation_report.md":
        for name in ("before", "after"):
            shutil.copytree(folder / "reports/first", folder / "reports" / name)
        words = ["tools/eval.py", "-c", STANDS_FOR["CONFIG"], "-o", f"weights={WEIGHTS}"]
        subprocess.run([sys.executable, *words, "--output_eval", "results"], cwd=folder, check=True)
    if page == "docs/benchmark_command.md":
        for name in ("small", "large", "fcos_demo_shapes"):
            shutil.copytree(folder / STANDS_FOR["BUNDLE"], folder / "output_inference" / name)


def failure(command: pages.Command, folder: Path) -> str:
    """Run a command; return its output if it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        typed(command), cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    print(f"{time.perf_counter() - start:6.1f} s  {command}", flush=True)
    expected = next((codes for option, codes in CODES.items() if option in command.words), (0,))
    if done.returncode in expected:
        return ""
    return f"{command}\nexit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def is_elsewhere(command: pages.Command) -> bool:
    return any(re.search(pattern, " ".join(command.words)) for pattern in ELSEWHERE)


@pytest.mark.slow
@needs_export
def test_commands_of_the_pages_run(root, folder):
    failures = []
    for page in PAGES:
        prepare(folder, page)
        for command in pages.commands(page, (root / page).read_text(encoding="utf-8")):
            if command.whole and not is_elsewhere(command):
                failures.append(failure(command, folder))
    assert len(failures) >= 25
    assert not any(failures), "\n\n".join(filter(None, failures))


def test_every_page_with_commands_is_run(root):
    """`make demo` runs quick_start.md, test_own_data.py runs own_data.md; benchmarks take minutes."""
    names = ("benchmarks", "index", "install", "own_data", "quick_start")
    others = {f"docs/{name}.md" for name in names}
    paths = ["README.md", *(f"docs/{path.name}" for path in (root / "docs").glob("*.md"))]
    texts = {page: (root / page).read_text(encoding="utf-8") for page in paths}
    commands = [each for page, text in texts.items() for each in pages.commands(page, text) if each.whole]
    assert {each.page for each in commands} == {*PAGES, *others}
    lines = [" ".join(each.words) for each in commands]
    assert [pattern for pattern in ELSEWHERE if not any(re.search(pattern, line) for line in lines)] == []
