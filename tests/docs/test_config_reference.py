"""docs/configs.md is up to date and has every configuration key."""

from __future__ import annotations

import re
import sys

import pytest
from conftest import ROOT

pytest.importorskip("docstring_parser", reason="writes the page (requirements/dev.txt)")

from ppdet.core.workspace import global_config

from ppfcos.config.files import Section, read_file
from ppfcos.config.keys import DATASET_SECTIONS, PLAIN_KEYS, READER_KEYS, SCHEDULES
from ppfcos.config.workspace import registered_modules

sys.path.insert(0, str(ROOT / "scripts"))

import config_reference as reference


def sections(text: str) -> dict[str, str]:
    """The text below each heading."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def test_the_page_is_up_to_date():
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), (
        "run python -m ppfcos.config.reference"
    )


def test_every_key_of_every_configuration_is_on_the_page(root):
    page = reference.PAGE.read_text(encoding="utf-8")
    by_section = sections(page)
    modules, datasets = registered_modules()
    seen = 0
    for file in sorted((root / "configs").glob("*.yml")):
        for key, value in read_file(str(file), (*datasets, *SCHEDULES)).items():
            if key in PLAIN_KEYS:
                assert f"| `{key}` |" in page, key
            elif key in READER_KEYS or key.startswith("PPFCOS"):
                for inner in value:
                    assert f"| `{inner}` |" in by_section[key], f"{file.name}: {key}.{inner}"
                    seen += 1
            elif isinstance(value, Section) and key in modules and key not in DATASET_SECTIONS:
                [row] = re.findall(rf"^\| `{key}` \|.*$", page, flags=re.MULTILINE)
                for inner in value:
                    assert f"`{inner}" in row, f"{file.name}: {key}.{inner}"
                    seen += 1
    assert seen > 100


def test_every_argument_of_ours_is_explained():
    by_section = sections(reference.PAGE.read_text(encoding="utf-8"))
    registered_modules()
    names = [name for name in global_config if name.startswith("PPFCOS")]
    assert len(names) > 8
    for name in (*names, *PLAIN_KEYS):
        rows = re.findall(r"^\| `(\w+)` \| *(.*?) *\|", by_section.get(name, ""), flags=re.MULTILINE)
        assert [argument for argument, meaning in rows if len(meaning) < 2] == [], name
