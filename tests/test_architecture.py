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
    """What each package may import, by the page's table."""
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", text, flags=re.MULTILINE)
    return {package: set(re.findall(r"\w+", others)) for package, others in rows}


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


def test_every_package_is_on_the_page(root, allowed):
    assert set(allowed) == {path.parent.name for path in (root / "ppfcos").glob("*/__init__.py")}


def test_packages_import_what_the_page_allows(root, allowed):
    wrong = []
    for package, others in allowed.items():
        for file in (root / "ppfcos" / package).rglob("*.py"):
            forbidden = imports(file) & set(allowed) - others - {package}
            wrong += [f"{file.relative_to(root)} imports {name}" for name in sorted(forbidden)]
    assert wrong == []


def test_imports_have_no_cycle(allowed):
    """Packages can be removed one by one, each importing none of those that are left."""
    left = dict(allowed)
    while left:
        free = [package for package, others in left.items() if not others & set(left)]
        assert free, f"a cycle among {sorted(left)}"
        for package in free:
            del left[package]


def test_top_level_files_import_no_package(root, allowed):
    shared = [path for path in (root / "ppfcos").glob("*.py") if path.stem != "__main__"]
    assert len(shared) >= 8
    assert {path.name: imports(path) & set(allowed) for path in shared if imports(path) & set(allowed)} == {}


@pytest.mark.parametrize(
    ("imported", "forbidden"),
    [
        ("ppfcos.deploy", ("paddle", "ppdet", "ppfcos.engine", "ppfcos.modeling", "ppfcos.data")),
        ("ppfcos.modeling", ("ppfcos.engine", "ppfcos.data", "ppfcos.config")),
    ],
)
def test_what_an_import_brings_with_it(root, imported, forbidden):
    """At run time, not only in the source."""
    script = f"import {imported}, sys; print([name for name in {forbidden!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
