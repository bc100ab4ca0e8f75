"""What README.md shows: the five lines for one's own data, the files it names, the options it types."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from ppfcos.config import load_config
from ppfcos.data.datasets import build_dataset


@pytest.fixture(scope="module")
def readme(root) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


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


PAGES = ("README.md", "docs/training.md")
WRITTEN_BY_THE_READER = ("configs/mine.yml",)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_it_names_are_there(page, root):
    text = (root / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    folders = "configs|tools|benchmarks|requirements|dataset|tests"
    named = set(re.findall(rf"\b((?:{folders})/[\w/]+\.(?:yml|py|txt))", text)) - set(WRITTEN_BY_THE_READER)
    assert named
    missing = [path for path in links if not (root / page).parent.joinpath(path).exists()]
    assert missing + [path for path in named if not (root / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_options_that_exist(page, root):
    text = (root / page).read_text(encoding="utf-8")
    typed = r"(?:^ {4}|`)python (?:-m paddle\.distributed\.launch [^`\n]*?)?(tools/(?!run_)\w+\.py [^`\n#]*)"
    commands = {" ".join(command.split()) for command in re.findall(typed, text, re.M)}
    assert len(commands) >= 5
    help_of: dict[str, str] = {}
    for command in commands:
        tool, *arguments = shlex.split(command)
        if tool not in help_of:
            shown = subprocess.run(
                [sys.executable, root / tool, "--help"], capture_output=True, text=True, check=True
            )
            help_of[tool] = shown.stdout
        for option in (argument for argument in arguments if argument.startswith("-")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_of[tool]), f"{tool} {option}"
        if "-c" in arguments and "mine.yml" not in command and "CONFIG" not in arguments:
            config = arguments[arguments.index("-c") + 1]
            end = arguments.index("-o") + 1 if "-o" in arguments else len(arguments)
            overrides = [argument for argument in arguments[end:] if "=" in argument]
            load_config(root / config, overrides)
