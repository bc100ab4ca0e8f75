"""Parse README and docs: links, headings, code and commands."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:\A|(?<=\n\n))((?: {4}.*\n?|\n(?= {4}))+)")
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
TYPED = re.compile(r"(?:python|ppfcos|make|pip|visualdl) ")
LAUNCHER = ["python", "-m", "paddle.distributed.launch"]


class Command(NamedTuple):
    """A command on a page.

    Attributes:
        page: Path of the page.
        whole: The command has its own line; otherwise it is in a sentence and may lack arguments.
        words: As a shell splits them, without comments.
    """

    page: str
    whole: bool
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def fenced(text: str) -> list[tuple[str, str]]:
    """Language and content of fenced blocks."""
    return FENCE.findall(text)


def indented(text: str) -> list[str]:
    """The lines of blocks indented by four spaces, without comments; continuation lines are joined."""
    blocks = [re.sub(r"\s*\\\n\s*", " ", block) for block in INDENTED.findall(FENCE.sub("", text))]
    return [
        re.sub(r"\s{2,}#.*|\s+# .*", "", line[4:]) for block in blocks for line in block.splitlines() if line
    ]


def spans(text: str) -> list[str]:
    """Inline code."""
    lines = [line for line in FENCE.sub("", text).splitlines() if not line.startswith("    ")]
    return [" ".join(span.split()) for span in SPAN.findall("\n".join(lines))]


def links(text: str) -> list[str]:
    """The targets of links and images, in order."""
    return LINK.findall(FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """GitHub's anchors of headings: lower case, hyphens for spaces, repeats numbered."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        repeats = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", each) is not None for each in found)
        found.append(f"{name}-{repeats}" if repeats else name)
    return set(found)


def table_numbers(text: str) -> list[list[str]]:
    """The numbers in each table row."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", row) for row in rows]


def commands(page: str, text: str) -> list[Command]:
    """All commands of a page; in a sentence, `tools/x.py …` is short for `python tools/x.py …`."""
    found = [Command(page, True, _words(line)) for line in indented(text) if TYPED.match(line)]
    for span in spans(text):
        line = f"python {span}" if re.match(r"tools/\w+\.py ", span) else span
        if TYPED.match(line) and "…" not in line:
            found.append(Command(page, False, _words(line)))
    return list(dict.fromkeys(found))


def _words(line: str) -> tuple[str, ...]:
    return tuple(shlex.split(line.partition(" && ")[0]))


def without_launcher(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The arguments of paddle.distributed.launch, and the command that it starts."""
    if list(words[:3]) != LAUNCHER:
        return [], list(words)
    script = next((at for at, word in enumerate(words) if word.endswith(".py")), len(words))
    return list(words[3:script]), ["python", *words[script:]]


def declared_options(script: Path) -> set[str]:
    """The options that a script passes to `add_argument`, read from its source."""
    calls = [
        node for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    added = [call for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    names = {argument.value for call in added for argument in call.args if isinstance(argument, ast.Constant)}
    return {name for name in names if name.startswith("-")} | {"--help"}
