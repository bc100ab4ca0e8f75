"""README.md, README_cn.md and docs/: links, named files, Python imports, and commands that parse."""

from __future__ import annotations

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
from ppfcos.data.datasets import build_dataset
from ppfcos.data.issues import ISSUE_TYPES

TWINS = ("README.md", "README_cn.md")
PAGES = (*TWINS, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
WRITTEN_BY_THE_READER = ("configs/mine.yml", "weights/mmdet.yml", "CONFIG")
BENCHMARKS = sorted(
    path.name for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)
COMMAND_OF = {f"tools/{command.module}.py": name for name, command in COMMANDS.items()}
# The test that runs each program named on a page. Benchmarks that take minutes are only started.
RUN_BY = {
    **dict.fromkeys(("train", "eval", "infer", "export", "check-data", "show-batch"), "test_own_data.py"),
    "model-info": "test_model_info.py",
    "convert-weights": "test_convert_weights.py",
    "convert-data": "test_convert_data.py",
    "convert-config": "test_convert_config.py",
    "environment": "test_main.py",
    "completion": "test_main.py",
    "configs": "test_package.py",
    "benchmark": "test_benchmark.py",
    "tools/run_paddledetection_infer.py": "test_paddledetection.py",
    "scripts/config_reference.py": "test_config_reference.py",
    "dataset/bccd/download_bccd.py": "test_download.py",
    "dataset/coco/download_coco.py": "test_download.py",
    "dataset/shapes/generate_shapes.py": "test_shapes.py",
    "make": "test_makefile.py",
    "visualdl": "test_loggers.py",
}


@functools.cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def all_commands() -> list[pages.Command]:
    return [command for page in PAGES for command in pages.commands(page, text_of(page))]


def program_of(command: pages.Command) -> str | None:
    """A subcommand of `ppfcos`, the path of a script, or another program; None for the bare name of one."""
    first, *rest = pages.without_launcher(command.words)[1]
    if first == "python" and rest[:2] == ["-m", "ppfcos"]:
        first, *rest = "ppfcos", *rest[2:]
    if first != "python":
        return rest[0] if first == "ppfcos" and rest else first
    if rest[:1] == ["-m"]:
        return " ".join(rest[:2])
    return COMMAND_OF.get(rest[0], rest[0]) if rest else None


def arguments_of(command: pages.Command) -> list[str]:
    words = pages.without_launcher(command.words)[1]
    return words[3:] if words[1] == "-m" else words[2:]


def values_after(command: pages.Command, flag: str) -> list[str]:
    return [word for before, word in zip(command.words, command.words[1:]) if before == flag]


def configs_of(command: pages.Command) -> list[str]:
    return [name for name in values_after(command, "-c") if name not in WRITTEN_BY_THE_READER]


def options_of(arguments: list[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments if re.match(r"--?[a-z]", argument)}


def test_readme_has_at_most_130_lines():
    assert len(text_of("README.md").splitlines()) <= 130


def test_config_of_the_readme_loads(root, tinycoco, tmp_path):
    (yaml_text,) = re.findall(r"```yaml\n(.*?)```", text_of("README.md"), re.DOTALL)
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


def test_both_readmes_have_the_same_content():
    english, chinese = (text_of(page) for page in TWINS)
    assert pages.fenced(chinese) == pages.fenced(english)
    assert pages.indented(chinese) == pages.indented(english)
    assert Counter(pages.spans(chinese)) == Counter(pages.spans(english))
    assert [sorted(row) for row in pages.table_numbers(chinese)] == [
        sorted(row) for row in pages.table_numbers(english)
    ]
    assert Counter(pages.links(chinese)) - Counter(TWINS) == Counter(pages.links(english)) - Counter(TWINS)
    levels = [re.findall(r"^(#+) ", re.sub(pages.FENCE, "", text), re.M) for text in (english, chinese)]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_files_exist(page):
    for link in pages.links(text_of(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not heading or heading in pages.anchors(target.read_text(encoding="utf-8")), link
    folders = "configs|tools|benchmarks|requirements|dataset|scripts|tests|ppfcos"
    of_other_projects = (
        r"^\|.* [0-9a-f]{40} \|$|^\| PaddleDetection \|.*|^\| `?tools/\S+ CONFIG 8.*|^\| `tools/analysis.*"
    )
    own = re.sub(of_other_projects, "", text_of(page), flags=re.M)
    named = set(re.findall(rf"(?<![\w/])((?:{folders})/[\w/]+\.(?:yml|py|txt|sh))", own))
    for command in pages.commands(page, text_of(page)):
        named |= set(values_after(command, "-r")) if command.words[0] == "pip" else set()
    assert [name for name in sorted(named - set(WRITTEN_BY_THE_READER)) if not (ROOT / name).exists()] == []


def test_every_page_is_linked_from_the_readme():
    reached, queue = set(), {"README.md"}
    while queue:
        page = queue.pop()
        reached.add(page)
        local = [link.partition("#")[0] for link in pages.links(text_of(page)) if not link.startswith("http")]
        targets = {((ROOT / page).parent / link).resolve() for link in local if link.endswith(".md")}
        queue |= {str(target.relative_to(ROOT)) for target in targets} - reached
    assert set(PAGES) <= reached


def test_every_page_is_in_the_navigation_of_the_site():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r": (\w+\.md)$", text[text.index("\nnav:") :], re.M)
    assert sorted(f"docs/{name}" for name in named) == sorted(set(PAGES) - set(TWINS))


@pytest.mark.parametrize("page", PAGES)
def test_python_imports_exist(page):
    blocks = [code for language, code in pages.fenced(text_of(page)) if language == "python"]
    lines = [line for line in pages.indented(text_of(page)) if line.startswith("from ")]
    for node in ast.walk(ast.parse("\n".join([*blocks, *lines]))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_members_of_the_api_page_exist():
    text = text_of("docs/api.md")
    for module, members in re.findall(r"^::: (\S+)\n    options:\n      members: \[(.*)\]$", text, re.M):
        loaded = importlib.import_module(module)
        assert [name for name in members.split(", ") if not hasattr(loaded, name)] == [], module


@pytest.mark.parametrize(
    "command", [each for each in all_commands() if program_of(each) in COMMANDS], ids=str
)
def test_commands_parse(command):
    parser, arguments = parser_of(program_of(command)), arguments_of(command)
    if not command.whole:
        assert options_of(arguments) <= set(parser._option_string_actions)
        return
    try:
        options = parser.parse_args(arguments)
    except SystemExit as refused:
        pytest.fail(f"exit code {refused.code}")
    if getattr(options, "config", None) not in (None, *WRITTEN_BY_THE_READER):
        load_config(ROOT / options.config, options.opt or [])


SCRIPTS = [each for each in all_commands() if re.match(r"(benchmarks|dataset)/", program_of(each) or "")]


@pytest.mark.parametrize("command", SCRIPTS, ids=str)
def test_options_of_scripts_exist(command):
    arguments = arguments_of(command)
    assert options_of(arguments) <= pages.declared_options(ROOT / program_of(command))
    for config in configs_of(command):
        load_config(ROOT / config, arguments[arguments.index("-o") + 1 :] if "-o" in arguments else [])


@pytest.mark.parametrize(
    "command", [each for each in all_commands() if list(each.words[:3]) == pages.LAUNCHER], ids=str
)
def test_options_of_the_launcher_exist(command, monkeypatch):
    launcher, started = pages.without_launcher(command.words)
    monkeypatch.setattr(sys, "argv", ["launch", *launcher, *started[1:]])
    known, unknown = args_envs.parse_args()
    assert unknown == [] and known.training_script == started[1]


def test_make_targets_and_extras_exist():
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.M))
    extras = set(re.findall(r'^        "(\w+)": ', text_of("setup.py"), re.M))
    for command in all_commands():
        if command.words[0] == "make":
            assert {word for word in command.words[1:] if "=" not in word} <= targets, command
        if command.words[0] == "pip":
            assert set(re.findall(r"^\.\[(\w+)\]$", "\n".join(command.words), re.M)) <= extras, command


def test_every_program_is_run_by_a_test():
    named = {program_of(command) for command in all_commands()} - {None, "pip"}
    assert named - {f"benchmarks/{name}" for name in BENCHMARKS} <= set(RUN_BY)
    for program, test in RUN_BY.items():
        name = re.split(r"[/ .]", program.removesuffix(".py"))[-1].replace("-", "[-_]")
        assert re.search(name, next((ROOT / "tests").rglob(test)).read_text(encoding="utf-8")), program


def test_commands_for_gpus_and_coco_are_marked():
    for command in all_commands():
        if "--gpus" in command.words:
            assert re.search(r"eight GPUs|八卡", text_of(command.page)), command
        for config in configs_of(command):
            reads_coco = load_config(ROOT / config)["TrainDataset"]["dataset_dir"] == "dataset/coco"
            assert reads_coco == Path(config).stem.removesuffix("_qat").endswith("_coco"), command


def test_quick_start_has_the_commands_of_make_demo():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shown = subprocess.run(["make", "-nB", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = shown.stdout.replace("\\\n", " ").splitlines()
    typed = [line for line in lines if re.match(r"\.venv/bin/python (tools|dataset)/", line)]
    assert len(typed) == 4
    page = "docs/quick_start.md"
    told = [command.words for command in pages.commands(page, text_of(page)) if command.whole]
    for line in typed:
        ours = line.removeprefix(".venv/bin/").partition(" | ")[0]
        assert tuple(ours.split()) in told, ours


def test_number_of_issue_types():
    told = [text_of("docs/coming_from.md"), text_of("CHANGELOG.md")]
    assert [re.findall(r"(\d+) types of issues", text) for text in told] == [[str(len(ISSUE_TYPES))]] * 2


def test_every_benchmark_is_on_the_page():
    page = text_of("docs/benchmarks.md")
    assert [name for name in BENCHMARKS if f"`{name}`" not in page] == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").iterdir()), ids=lambda path: path.name)
def test_images_are_small_and_used(path):
    assert path.stat().st_size < 200_000
    assert any(path.name in text_of(page) for page in PAGES)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"stock.py"}))
def test_benchmarks_start(name):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
