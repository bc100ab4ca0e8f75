"""Write the page docs/configs.md: every key of a configuration, from the code that reads it.

python scripts/config_reference.py
"""

# ruff: noqa: E402
from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docstring_parser import DocstringStyle, parse

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ppfcos.config.arguments import ARGUMENTS, DATASET_ARGUMENTS
from ppfcos.config.files import Section, read_file
from ppfcos.config.keys import (
    DATASET_SECTIONS,
    NESTED_KEYS,
    PLAIN_KEYS_BY_TOPIC,
    READER_KEYS,
    SCHEDULES,
    Key,
)
from ppfcos.config.workspace import registered_modules
from ppfcos.fileio import replacing

PAGE = ROOT / "docs" / "configs.md"
OPENING = """# Configuration reference

<!-- `python scripts/config_reference.py` writes this page from the code's docstrings and tables. -->

A configuration is a YAML file. `_BASE_` lists the files that it inherits from. `-o` on the command line
overrides keys; dots separate sections and keys, and numbers index lists:
`-o epoch=24 LearningRate.base_lr=0.02 TrainReader.sample_transforms.1.RandomFlip.prob=0`. An unknown key is
an error that names a similar valid key. `--show-config` prints the whole configuration with the file and
line of each value.

There are plain keys, readers, and sections. A section is named after a class, and its keys are the arguments
of the class. Where text is expected, a number, `yes` or `no` is read as text: `image_dir: 2024`.
"""
OF_PADDLEDETECTION = """These classes are PaddleDetection 2.6.0's; the comments in configs/_base_ explain the
arguments that matter here. Other backbones, data sets and transforms of PaddleDetection can be named too.
Refused are those that would run code or shell commands, download, or write files.
"""


def main() -> None:
    """Write the page."""
    with replacing(PAGE) as unfinished:
        unfinished.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the text of the page."""
    modules, datasets = registered_modules()
    ours = sorted(name for name in modules if _class_of(name).__module__.startswith("ppfcos."))
    parts = [name for name in ours if name not in datasets]
    lines = [OPENING]
    for topic, keys in PLAIN_KEYS_BY_TOPIC.items():
        lines += [f"## {topic}\n", *_table_of_keys(keys)]
    for key, inner in NESTED_KEYS.items():
        lines += [f"## Keys of {key}\n", *_table_of_keys(inner)]
    lines += ["## Readers\n", "How images become batches; see [loading.md](loading.md).\n"]
    for reader, keys in READER_KEYS.items():
        lines += [f"### {reader}\n", *_table_of_keys(keys)]
    lines.append("## Parts of the model\n")
    for name in parts:
        lines += _section(name, _class_of(name))
    lines.append("## Data sets\n")
    lines.append("Under `TrainDataset`, `EvalDataset` and `TestDataset`, with `name`.\n")
    for name in sorted(set(datasets) & set(ours)):
        lines += _section(name, _class_of(name))
    lines.append("## Transforms of PPFCOS\n")
    for name, operator in _operators():
        lines += _section(name, operator)
    lines += [
        "## Classes of PaddleDetection\n",
        OF_PADDLEDETECTION,
        *_of_paddledetection(modules, datasets, ours),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _class_of(name: str) -> Any:
    from ppdet.core.workspace import global_config

    return getattr(global_config[name].pymodule, name)


def _operators() -> Iterator[tuple[str, Any]]:
    """Yield the names and classes of our transforms."""
    from ppdet.data.transform.operators import registered_ops

    import ppfcos.data.transforms as augment

    modules = [each for name, each in sys.modules.items() if name.startswith(augment.__name__)]
    for name in sorted(registered_ops):
        operator = next((getattr(module, name) for module in modules if hasattr(module, name)), None)
        if operator is not None and operator.__module__.startswith("ppfcos."):
            yield name, operator


def _table_of_keys(keys: dict[str, Key]) -> Iterator[str]:
    yield "| key | meaning | value | default |\n| --- | --- | --- | --- |"
    for key, plain in keys.items():
        default = "" if plain.default is None else f"`{_yaml(plain.default)}`"
        yield f"| `{key}` | {_cell(plain.meaning)} | {_cell(plain.kind.description)} | {default} |"
    yield ""


def _section(name: str, described: Any) -> Iterator[str]:
    """Describe a class, its file and its arguments."""
    text = parse(inspect.getdoc(described) or "", DocstringStyle.GOOGLE)
    file = Path(inspect.getsourcefile(described)).relative_to(ROOT)
    yield f"### {name}\n"
    yield f"{' '.join((text.short_description or '').split())} ([{file}](../{file}))\n"
    meanings = {each.arg_name: " ".join((each.description or "").split()) for each in text.params}
    arguments = list(_arguments(described))
    if not arguments:
        return
    kinds = DATASET_ARGUMENTS if name.endswith("DataSet") else ARGUMENTS.get(name, {})
    yield "| key | meaning | value | default |\n| --- | --- | --- | --- |"
    for argument, default in arguments:
        value = kinds[argument].description if argument in kinds else ""
        yield f"| `{argument}` | {_cell(meanings.get(argument, ''))} | {_cell(value)} | {default} |"
    yield ""


def _arguments(described: Any) -> Iterator[tuple[str, str]]:
    """Yield names and defaults of the arguments that a configuration can set."""
    made_of_others = (
        ("self", "input_shape", "in_channels", "strides") if hasattr(described, "from_config") else ("self",)
    )
    for name, each in inspect.signature(described.__init__).parameters.items():
        if name not in made_of_others and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
            yield name, "needed" if each.default is each.empty else f"`{_yaml(each.default)}`"


def _of_paddledetection(modules: dict, datasets: list[str], ours: list[str]) -> Iterator[str]:
    """List the classes of PaddleDetection that configs/ use, with their arguments."""
    yield "| section | keys and their defaults |\n| --- | --- |"
    for name in sorted(
        _used_sections(datasets) & set(modules) - set(ours) - set(DATASET_SECTIONS) - set(READER_KEYS)
    ):
        arguments = ", ".join(
            f"`{key}`" if default == "needed" else f"`{key}: {default[1:-1]}`"
            for key, default in _arguments(_class_of(name))
        )
        yield f"| `{name}` | {arguments} |"
    yield ""


def _used_sections(datasets: list[str]) -> set[str]:
    found: set[str] = set()
    for path in sorted((ROOT / "configs").glob("*.yml")):
        found |= _names(read_file(str(path), (*datasets, *SCHEDULES)))
    return found


def _names(value: Any) -> set[str]:
    """Return all possible class names: keys, and the values of `name`."""
    if isinstance(value, Section):
        named = {value["name"]} if isinstance(value.get("name"), str) else set()
        return set(value) | named | {name for inner in value.values() for name in _names(inner)}
    if isinstance(value, list):
        return {name for inner in value for name in _names(inner)}
    return set()


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)) and any(type(item).__module__.startswith("ppdet") for item in value):
        return f"[{', '.join(type(item).__name__ for item in value)}]"
    return str(list(value) if isinstance(value, tuple) else value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
