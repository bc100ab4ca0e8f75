"""A benchmark of exported models as one HTML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ppfcos.visualize.benchmark_report import (
    about,
    column_names,
    notes,
    row_name,
    short_number,
    table_rows,
    varying_names,
)
from ppfcos.visualize.charts import Bar, Stack, bar_rows, stacked_rows
from ppfcos.visualize.evaluation_page import STYLE
from ppfcos.visualize.page import escaped, page

_COLOURS = ("first", "second", "third", "fourth")  # of models, and of the stages but their sum
_STYLE = """
.bar.fourth, .legend .fourth::before { background: var(--good); }
.figures { width: 100%; font-size: .85rem; } .figures td, .figures th { padding: .25rem .4rem; }
.bar-room.parts { display: flex; } .parts .bar { border-radius: 0; min-width: 0; }
"""


def benchmark_page(content: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        content: what the command writes as JSON.

    Returns:
        HTML with everything in it.
    """
    lines = "<br>".join(map(escaped, about(content)))
    remarks = "".join(f"<li>{_marked(line)}</li>" for line in notes(content))
    body = [
        f"<header><h1>Exported models: time</h1><p class='soft'>{lines}</p></header>",
        f"<section><h2>Images a second</h2>{_speeds(content)}</section>",
        f"<section><h2>Where the time of a request goes</h2>{_stages(content)}</section>",
        f"<section><h2>All figures</h2>{_table(content)}<ul>{remarks}</ul></section>",
    ]
    return page("Benchmark of exported models", "\n".join(body), STYLE + _STYLE)


def _marked(line: str) -> str:
    """A line of the printed table, where backticks stand about the name of a column."""
    return re.sub(r"`(\w+)`", r"<code>\1</code>", escaped(line))


def _setting(row: Mapping[str, Any]) -> str:
    return f"{row['threads']} × {row['streams']}, batch {row['batch']}"


def _speeds(content: Mapping[str, Any]) -> str:
    models: dict[str, str] = {}
    bars = []
    for row in content["rows"]:
        name = row_name(content, row)
        style = models.setdefault(name, _COLOURS[len(models) % len(_COLOURS)])
        shown = f"{short_number(row['images_per_second'])} ({row['ratio']:.2f})"
        bars.append(Bar(_setting(row), row["images_per_second"], shown, style, name))
    return (
        "<p class='soft'>Threads × streams, pictures of a request; in brackets the ratio to the first row."
        f"</p>{bar_rows(bars)}"
    )


def _stages(content: Mapping[str, Any]) -> str:
    *names, whole = content["rows"][0]["milliseconds"]
    parts = dict(zip(names, _COLOURS))
    legend = "".join(f"<span class='{style}'>{name}</span>" for name, style in parts.items())
    stacks = []
    for row in content["rows"]:
        medians = {name: times["median"] for name, times in row["milliseconds"].items()}
        spans = [
            (medians[name], style, f"{name} {short_number(medians[name])} ms")
            for name, style in parts.items()
        ]
        times = row["milliseconds"][whole]
        shown = f"{short_number(times['median'])} / {short_number(times['p99'])} ms"
        stacks.append(Stack(_setting(row), spans, shown, row_name(content, row)))
    return (
        "<p class='soft'>Medians of the stages; at the right median and 99th percentile from end to end.</p>"
        f"<div class='legend'>{legend}</div>{stacked_rows(stacks)}"
    )


def _table(content: Mapping[str, Any]) -> str:
    words = len(varying_names(content))
    lines = []
    for kind, rows in (("th", [column_names(content)]), ("td", table_rows(content))):
        for row in rows:
            cells = [
                f"<{kind}{'' if place < words else ' class=number'}>{escaped(cell)}</{kind}>"
                for place, cell in enumerate(row)
            ]
            lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class='wide'><table class='figures'>{''.join(lines)}</table></div>"
