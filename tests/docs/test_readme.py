"""README.md, its Chinese twin and docs/: links lead somewhere, files are there, commands can be typed."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import pages
from paddle.distributed.launch.context import args_envs

from ppfcos.cli.main import COMMANDS, parser_of
from ppfcos.config import load_config
from ppfcos.data.issues import ISSUE_TYPES
from ppfcos.data.datasets import build_dataset

TWINS = ("README.md", "README_cn.md")
PAGES = (*TWINS, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
WRITTEN_BY_THE_READER = ("configs/mine.yml", "weights/mmdet.yml", "CONFIG")
BENCHMARKS = sorted(
    path.name for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)
WORD_OF = {f"tools/{command.module}.py": word for word, command in COMMANDS.items()}
# Where each program that a page names is run for what it does. Benchmarks that take minutes are only started.
RUN_BY = {
    "train": "test_own_data.py",
    "eval": "test_own_data.py",
    "infer": "test_own_data.py",
    "export": "test_own_data.py",
    "check-data": "test_own_data.py",
    "show-batch": "test_own_data.py",
    "model-info": "test_model_info.py",
    "convert-weights": "test_convert_weights.py",
    "convert-data": "test_convert_data.py",
    "environment": "test_main.py",
    "completion": "test_main.py",
    "benchmark": "test_benchmark.py",
    "tools/run_paddledetection_infer.py": "test_paddledetection.py",
    "-m ppfcos.config.reference": "test_config_reference.py",
    "dataset/bccd/download_bccd.py": "test_download.py",
    "dataset/coco/download_coco.py": "test_download.py",
    "dataset/shapes/generate_shapes.py": "test_shapes.py",
    "make": "test_makefile.py",
    "visualdl": "test_writer.py",
}


@functools.cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def readme() -> str:
    return text_of("README.md")


def all_commands() -> list[pages.Command]:
    return [command for page in PAGES for command in pages.commands(page, text_of(page))]


def program_of(command: pages.Command) -> str | None:
    """A word of `ppfcos`, or the path of a script, or another program; None for the bare name of one."""
    first, *rest = pages.without_launcher(command.words)[1]
    if first == "python" and rest[:2] == ["-m", "ppfcos"]:
        first, *rest = "ppfcos", *rest[2:]
    if first != "python":
        return rest[0] if first == "ppfcos" and rest else first
    if rest[:1] == ["-m"]:
        return " ".join(rest[:2])
    return WORD_OF.get(rest[0], rest[0]) if rest else None


def arguments_of(command: pages.Command) -> list[str]:
    words = pages.without_launcher(command.words)[1]
    return words[3:] if words[1] == "-m" else words[2:]


def test_the_five_lines_for_own_data(readme, root, tinycoco, tmp_path):
    (yaml_text,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert len(yaml_text.strip().splitlines()) == 5
    config = tmp_path / "mine.yml"
    config.write_text(yaml_text.replace("_BASE_: ", f"_BASE_: {root}/configs/"))
    own = {"num_classes": 80}
    for section, split in (("TrainDataset", "train2017"), ("EvalDataset", "val2017")):
        own[f"{section}.dataset_dir"] = tinycoco
        own[f"{section}.image_dir"] = f"images/{split}"
        own[f"{section}.anno_path"] = f"annotations/instances_{split}.json"
    cfg = load_config(config, [f"{key}={value}" for key, value in own.items()])
    assert len(build_dataset(cfg, "TrainDataset").records) == 32
    assert len(build_dataset(cfg, "EvalDataset").records) == 6


def test_both_readmes_say_the_same():
    english, chinese = (text_of(page) for page in TWINS)
    assert pages.fenced(chinese) == pages.fenced(english)
    assert pages.indented(chinese) == pages.indented(english)
    assert Counter(pages.spans(chinese)) == Counter(pages.spans(english))
    assert pages.table_numbers(chinese) == pages.table_numbers(english)
    other = {"README.md": "README_cn.md", "README_cn.md": "README.md"}
    led = [other.get(link, link) for link in pages.links(chinese)]
    assert led == pages.links(english)
    levels = [re.findall(r"^(#+) ", re.sub(pages.FENCE, "", text), re.M) for text in (english, chinese)]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for link in pages.links(text_of(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (
            heading and heading not in pages.anchors(target.read_text(encoding="utf-8"))
        ):
            wrong.append(link)
    assert wrong == []


def test_every_page_is_reached_from_the_readme():
    reached, fresh = set(), {"README.md"}
    while fresh:
        page = fresh.pop()
        reached.add(page)
        local = [link.partition("#")[0] for link in pages.links(text_of(page)) if not link.startswith("http")]
        targets = {((ROOT / page).parent / link).resolve() for link in local if link.endswith(".md")}
        fresh |= {str(target.relative_to(ROOT)) for target in targets} - reached
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", PAGES)
def test_files_that_it_names_are_there(page):
    folders = "configs|tools|benchmarks|requirements|dataset|scripts|tests|ppfcos"
    here = rf"(?<![\w/])((?:{folders})/[\w/]+\.(?:yml|py|txt|sh))"
    of_others = r"^\|.* [0-9a-f]{40} \|$|^\| PaddleDetection \|.*"  # files of a commit of another project
    own = re.sub(of_others, "", text_of(page), flags=re.M)
    named = set(re.findall(here, own)) - set(WRITTEN_BY_THE_READER)
    named |= {name for command in pages.commands(page, text_of(page)) for name in requirements_of(command)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def requirements_of(command: pages.Command) -> list[str]:
    words = command.words
    return [word for flag, word in zip(words, words[1:]) if words[0] == "pip" and flag == "-r"]


@pytest.mark.parametrize("page", PAGES)
def test_what_its_python_imports_is_there(page):
    blocks = [code for language, code in pages.fenced(text_of(page)) if language == "python"]
    lines = [line for line in pages.indented(text_of(page)) if line.startswith("from ")]
    for node in ast.walk(ast.parse("\n".join([*blocks, *lines]))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize(
    "command", [each for each in all_commands() if program_of(each) in COMMANDS], ids=str
)
def test_commands_of_the_program_are_understood(command):
    parser = parser_of(program_of(command))
    arguments = arguments_of(command)
    if command.whole:
        options = understood(parser, arguments)
        if getattr(options, "config", None) not in (None, *WRITTEN_BY_THE_READER):
            load_config(ROOT / options.config, options.opt or [])
    else:
        assert typed_options(arguments) <= set(parser._option_string_actions)


def understood(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    try:
        return parser.parse_args(arguments)
    except SystemExit as refused:
        pytest.fail(f"exit code {refused.code}")


def typed_options(arguments: list[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments if re.match(r"--?[a-z]", argument)}


SCRIPTS = [each for each in all_commands() if re.match(r"(benchmarks|dataset)/", program_of(each) or "")]


@pytest.mark.parametrize("command", SCRIPTS, ids=str)
def test_options_of_scripts_exist(command):
    arguments = arguments_of(command)
    assert typed_options(arguments) <= pages.declared_options(ROOT / program_of(command))
    for config in configs_of(command):
        load_config(ROOT / config, arguments[arguments.index("-o") + 1 :] if "-o" in arguments else [])


@pytest.mark.parametrize(
    "command", [each for each in all_commands() if list(each.words[:3]) == pages.LAUNCHER], ids=str
)
def test_the_launcher_understands_its_part(command, monkeypatch):
    told, started = pages.without_launcher(command.words)
    monkeypatch.setattr(sys, "argv", ["launch", *told, *started[1:]])
    known, unknown = args_envs.parse_args()
    assert unknown == [] and known.training_script == started[1]


def test_make_and_pip_find_what_they_are_told():
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.M))
    extras = set(re.findall(r'^        "(\w+)": ', text_of("setup.py"), re.M))
    for command in all_commands():
        if command.words[0] == "make":
            assert {word for word in command.words[1:] if "=" not in word} <= targets, command
        if command.words[0] == "pip":
            wanted = re.findall(r"^\.\[(\w+)\]$", "\n".join(command.words), re.M)
            assert set(wanted) <= extras, command


def test_every_program_is_run_by_a_test():
    named = {program_of(command) for command in all_commands()} - {None, "pip"}
    in_minutes = {f"benchmarks/{name}" for name in BENCHMARKS}
    assert named - in_minutes <= set(RUN_BY)
    for program, test in RUN_BY.items():
        name = re.split(r"[/ .]", program.removesuffix(".py"))[-1]
        assert re.search(
            name.replace("-", "[-_]"), next((ROOT / "tests").rglob(test)).read_text(encoding="utf-8")
        ), program


def configs_of(command: pages.Command) -> list[str]:
    """What stands behind -c, unless the reader has to write it."""
    words = command.words
    return [
        word for flag, word in zip(words, words[1:]) if flag == "-c" and word not in WRITTEN_BY_THE_READER
    ]


def test_what_needs_gpus_or_coco_says_so():
    """Whatever is neither can be typed on any machine that has a CPU, and stands in RUN_BY."""
    for command in all_commands():
        if "--gpus" in command.words:
            assert re.search(r"eight GPUs|八卡", text_of(command.page)), command
        for config in configs_of(command):
            reads_coco = load_config(ROOT / config)["TrainDataset"]["dataset_dir"] == "dataset/coco"
            assert reads_coco == Path(config).stem.removesuffix("_qat").endswith("_coco"), command


def test_the_demo_is_told_as_make_types_it():
    """docs/getting_started.md has every command of the demo, as `make` itself resolves them."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed, and these are tests of the Makefile")
    shown = subprocess.run(["make", "-nB", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = shown.stdout.replace("\\\n", " ").splitlines()
    typed = [line for line in lines if re.match(r"\.venv/bin/python (tools|dataset)/", line)]
    assert len(typed) == 4
    page = "docs/getting_started.md"
    told = [command.words for command in pages.commands(page, text_of(page)) if command.whole]
    for line in typed:
        ours = line.removeprefix(".venv/bin/").partition(" | ")[0]
        assert tuple(ours.split()) in told, ours


def test_the_kinds_of_faults_are_as_many_as_is_said():
    told = [text_of("README.md"), text_of("CHANGELOG.md")]
    assert [re.findall(r"(\d+) kinds of faults", text) for text in told] == [[str(len(ISSUE_TYPES))]] * 2


def test_every_benchmark_is_on_the_page():
    page = text_of("docs/benchmarks.md")
    assert [name for name in BENCHMARKS if f"`{name}`" not in page] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"stock.py"}))
def test_benchmarks_start(name):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
