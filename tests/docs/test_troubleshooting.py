"""docs/troubleshooting.md quotes messages that the code prints."""

from __future__ import annotations

import ast
import re

import pytest

ELLIPSIS = "…"
# Messages of other programs.
FOREIGN = ("libGL.so.1", "No module named", "Out of memory error on GPU")


def messages(node: ast.AST) -> str | None:
    """A string of the code, with … for its variable parts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(messages(part) if isinstance(part, ast.Constant) else ELLIPSIS for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = messages(node.left), messages(node.right)
        return None if None in sides else "".join(sides)
    return None


@pytest.fixture(scope="module")
def printed(root) -> str:
    """All strings of the code, one per line, and the Makefile."""
    found = []
    for file in (root / "ppfcos").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            text = messages(node)
            if text:
                found.append(" ".join(text.split()))
    makefile = re.sub(r"\$\(\w+\)", ELLIPSIS, (root / "Makefile").read_text(encoding="utf-8"))
    return "\n".join(found) + "\n" + makefile


def quoted(root) -> list[str]:
    text = (root / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^### `(.+)`$", text, flags=re.MULTILINE)


def pattern(text: str) -> str:
    """A regular expression for a string with … in it."""
    return ".*".join(re.escape(part.strip()) for part in text.split(ELLIPSIS))


def prints(printed: str, quote: str) -> bool:
    """Whether a string of the code matches a quote, with … as a wildcard in both."""
    if re.search(pattern(quote), printed):
        return True
    least = 0.6 * len(quote.replace(ELLIPSIS, ""))  # otherwise any word would match
    lines = (line for line in printed.splitlines() if len(line.replace(ELLIPSIS, "").strip()) >= least)
    return any(re.search(pattern(line), quote) for line in lines)


def test_every_quoted_message_is_printed_somewhere(root, printed):
    quotes = [quote for quote in quoted(root) if not quote.startswith(FOREIGN)]
    assert len(quotes) >= 30
    assert [quote for quote in quotes if not prints(printed, quote)] == []
    assert not prints(printed, "…: the flux capacitor is empty: …")
