"""Imports run as docs/architecture.md says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def allowed(root) -> dict[str, set[str]]:
    """What each room may import, by the page's table."""
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", text, flags=re.MULTILINE)
    return {room: set(re.findall(r"\w+", others)) for room, others in rows}


def imports(file: Path) -> set[str]:
    """The names below ppfcos that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ppfcos":
            deeper = node.module.split(".")[1:]
            found |= {deeper[0]} if deeper else {each.name for each in node.names}
        elif isinstance(node, ast.Import):
            names = [each.name.split(".") for each in node.names]
            found |= {name[1] for name in names if name[0] == "ppfcos" and len(name) > 1}
    return found


def test_every_room_is_on_the_page(root, allowed):
    assert set(allowed) == {path.parent.name for path in (root / "ppfcos").glob("*/__init__.py")}


def test_rooms_import_what_the_page_allows(root, allowed):
    wrong = []
    for room, others in allowed.items():
        for file in (root / "ppfcos" / room).rglob("*.py"):
            strangers = imports(file) & set(allowed) - others - {room}
            wrong += [f"{file.relative_to(root)} imports {name}" for name in sorted(strangers)]
    assert wrong == []


def test_arrows_have_no_circle(allowed):
    """Rooms can be taken away one by one, each knowing none of those that are left."""
    left = dict(allowed)
    while left:
        free = [room for room, others in left.items() if not others & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


def test_single_files_know_no_room(root, allowed):
    shared = [path for path in (root / "ppfcos").glob("*.py") if path.stem != "__main__"]
    assert len(shared) >= 8
    assert {path.name: imports(path) & set(allowed) for path in shared if imports(path) & set(allowed)} == {}


@pytest.mark.parametrize(
    ("imported", "strangers"),
    [
        ("ppfcos.deploy", ("paddle", "ppdet", "ppfcos.engine", "ppfcos.modeling", "ppfcos.data")),
        ("ppfcos.modeling", ("ppfcos.engine", "ppfcos.data", "ppfcos.config")),
    ],
)
def test_what_an_import_brings_with_it(root, imported, strangers):
    """In fact, not only by what the files say."""
    script = f"import {imported}, sys; print([name for name in {strangers!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
