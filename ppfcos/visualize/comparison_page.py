"""Two evaluations side by side, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppfcos.metrics.error_types import KINDS
from ppfcos.visualize.charts import Bar, Line, bar_rows, line_chart
from ppfcos.visualize.evaluation_page import STYLE, TABLE_SCRIPT, calibration_chart, percent, sortable_table
from ppfcos.visualize.page import escaped, page

_SAME = 0.0005  # a difference that is written as 0.0 or 0.1 and is neither good nor bad
_OF_THE_DATA = ("images", "objects", "crowds")


def comparison_page(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        first: figures of `evaluation_figures`.
        second: the same of another run. Classes go together by their names.

    Returns:
        HTML. Only sorting and searching need its script.
    """
    body = [
        "<header><h1>Two evaluations</h1><div class='legend'>"
        f"<span class='first'>A: {escaped(first['title'])}</span>"
        f"<span class='second'>B: {escaped(second['title'])}</span></div>"
        f"<p class='soft'>AP and AR in percent; differences are B − A.</p>{_warning(first, second)}</header>",
        f"<section><div class='columns'><div><h2>COCO's figures</h2>{_figures(first, second)}</div>"
        f"<div><h2>What errors cost</h2>{_errors(first, second)}</div></div></section>",
        f"<section><div class='columns'><div><h2>Precision and recall</h2>{_curves(first, second)}</div>"
        f"<div><h2>Calibration</h2>{_calibration(first, second)}</div></div></section>",
        _classes(first["classes"], second["classes"]),
    ]
    return page(f"{first['title']} and {second['title']}: evaluations", "\n".join(body), STYLE, TABLE_SCRIPT)


def _warning(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    differing = [
        f"{first[key]:,} and {second[key]:,} {key}" for key in _OF_THE_DATA if first[key] != second[key]
    ]
    names = [{entry["name"] for entry in run["classes"]} for run in (first, second)]
    if names[0] != names[1]:
        differing.append(f"{len(names[0] ^ names[1])} classes that only one of them has")
    if not differing:
        return ""
    return f"<p class='warning'>These are not of the same data: {escaped('; '.join(differing))}.</p>"


def _figures(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{name}</td><td class='number'>{percent(a)}</td><td class='number'>{percent(b)}</td>"
        f"{_difference(a, b)}</tr>"
        for name, a, b in ((name, a, second["figures"].get(name)) for name, a in first["figures"].items())
    )
    head = "".join(f"<th class='number'>{name}</th>" for name in ("A", "B", "B − A"))
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def _difference(first: float | None, second: float | None) -> str:
    if first is None or second is None:
        return "<td class='number' data-value=''>–</td>"
    change = second - first
    style = "" if abs(change) < _SAME else " better" if change > 0 else " worse"
    said = f"{100 * change:+.1f}".replace("-", "−")
    return f"<td class='number{style}' data-value='{change}'>{said}</td>"


def _errors(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    of_second = {entry["kind"]: entry for entry in second["errors"]["kinds"]}
    of_first = {entry["kind"]: entry for entry in first["errors"]["kinds"]}
    bars = []
    for kind in KINDS:
        for letter, entry, style in (("A", of_first[kind], "first"), ("B", of_second[kind], "second")):
            name = f"{kind}, A" if letter == "A" else letter
            bars.append(Bar(name, entry["cost"], f"{percent(entry['cost'])} ({entry['count']:,})", style))
    return (
        "<p class='soft'>By how much AP50 would rise if one kind of error alone were mended (TIDE), and how "
        f"many there are.</p>{bar_rows(bars)}"
    )


def _curves(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    charts = []
    for name in first["curves"].keys() & second["curves"].keys() & {"0.50", "0.50:0.95"}:
        lines = []
        for letter, run, style in (("A", first, "first"), ("B", second, "second")):
            values = run["curves"][name]
            steps = [i / (len(values) - 1) for i in range(len(values))]
            lines.append(Line(letter, steps, values, style))
        charts.append((name, f"<h3>IoU {name}</h3>{line_chart(lines, 'recall', 'precision')}"))
    return "".join(chart for _, chart in sorted(charts))


def _calibration(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    a, b = first["calibration"], second["calibration"]
    return (
        f"<p class='soft'>Expected calibration error: A {percent(a['error'])} %, "
        f"B {percent(b['error'])} %.</p>"
        f"{calibration_chart([('A', a), ('B', b)])}"
    )


def _classes(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> str:
    of_second = {entry["name"]: entry for entry in second}
    pairs = [(entry, of_second[entry["name"]]) for entry in first if entry["name"] in of_second]
    pairs.sort(key=lambda pair: _change(*pair))
    rows = "".join(_class_row(a, b) for a, b in pairs)
    heads = ("class", "objects", "AP A", "AP B", "B − A", "AP50 A", "AP50 B", "B − A")
    return (
        "<section id='classes'><h2>Classes</h2><p class='soft'>The greatest loss first; a click on a heading "
        f"sorts.</p>{sortable_table(heads, rows)}</section>"
    )


def _change(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    a, b = first["figures"]["AP"], second["figures"]["AP"]
    return float("inf") if a is None or b is None else b - a


def _class_row(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    name = escaped(first["name"])
    cells = [
        f"<td data-value='{name}'>{name}</td>",
        f"<td class='number' data-value='{first['objects']}'>{first['objects']:,}</td>",
    ]
    for figure in ("AP", "AP50"):
        a, b = first["figures"][figure], second["figures"][figure]
        cells += [
            f"<td class='number' data-value='{'' if value is None else value}'>{percent(value)}</td>"
            for value in (a, b)
        ]
        cells.append(_difference(a, b))
    return f"<tr>{''.join(cells)}</tr>"
