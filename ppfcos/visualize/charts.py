"""The confusion matrix as a picture, and the classes that are most confused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ppfcos.visualize.page import escaped, short

# Of a chart of two quantities from 0 to 1, in its own units. A page's script draws in the same ones.
LEFT, TOP, WIDTH, HEIGHT = 42, 10, 368, 250
_LOW_HEIGHT = 64  # of a chart of columns
_FULL_WIDTH, _FULL_HEIGHT = LEFT + WIDTH + 10, TOP + HEIGHT + 40


class Line(NamedTuple):
    """A line of a chart: its name, its points from 0 to 1, and the CSS class that gives its colour."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str


class Bar(NamedTuple):
    """A row of a bar chart.

    Attributes:
        name: of the row.
        value: that decides the bar's length.
        shown: how the value is written.
        style: CSS class that gives the bar's colour.
        about: a sentence on it, or nothing.
    """

    name: str
    value: float
    shown: str
    style: str
    about: str = ""


class Stack(NamedTuple):
    """A row of a chart of bars that are put together of parts.

    Attributes:
        name: of the row.
        parts: the length of each, the CSS class of its colour, and what is shown when it is pointed at.
        shown: how the whole is written.
        about: a sentence on it, or nothing.
    """

    name: str
    parts: Sequence[tuple[float, str, str]]
    shown: str
    about: str = ""


def line_chart(lines: Sequence[Line], x_name: str, y_name: str, behind: str = "") -> str:
    """A chart of two quantities from 0 to 1, with a legend.

    Args:
        lines: in the order in which they are drawn.
        x_name: below the horizontal axis.
        y_name: beside the vertical axis.
        behind: SVG that is drawn between the grid and the lines.

    Returns:
        HTML.
    """
    shapes = [_grid(x_name, y_name), behind]
    for line in lines:
        hint = f"<title>{escaped(line.name)}</title>"
        points = polyline(line.xs, line.ys)
        shapes.append(f"<polyline class='line {line.style}' points='{points}'>{hint}</polyline>")
    legend = "".join(f"<span class='{line.style}'>{escaped(line.name)}</span>" for line in lines)
    return (
        f"<div class='legend'>{legend}</div>"
        f"<svg class='chart' viewBox='0 0 {_FULL_WIDTH} {_FULL_HEIGHT}' role='img' "
        f"aria-label='{escaped(y_name)} over {escaped(x_name)}'>{''.join(shapes)}</svg>"
    )


def polyline(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Points from 0 to 1 in a line chart's units.

    Args:
        xs: [N].
        ys: [N].

    Returns:
        What a polyline's `points` takes.
    """
    return " ".join(f"{LEFT + WIDTH * x:.1f},{TOP + HEIGHT * (1 - y):.1f}" for x, y in zip(xs, ys))


def rectangle(x0: float, x1: float, height: float, style: str, hint: str) -> str:
    """A bar of a line chart, from its lower edge up.

    Args:
        x0: left edge, from 0 to 1.
        x1: right edge.
        height: from 0 to 1.
        style: CSS class.
        hint: shown when pointed at.

    Returns:
        SVG.
    """
    return (
        f"<rect class='{style}' x='{LEFT + WIDTH * x0 + 1:.1f}' y='{TOP + HEIGHT * (1 - height):.1f}' "
        f"width='{WIDTH * (x1 - x0) - 2:.1f}' height='{HEIGHT * height:.1f}'>"
        f"<title>{escaped(hint)}</title></rect>"
    )


def column_chart(columns: Sequence[tuple[float, float, int, str]], y_name: str) -> str:
    """Numbers over a quantity from 0 to 1, as wide as a line chart.

    Args:
        columns: where each begins and ends, its number, and what is shown when pointed at.
        y_name: beside them.

    Returns:
        SVG.
    """
    most = max((number for _, _, number, _ in columns), default=0) or 1
    floor = TOP + _LOW_HEIGHT
    shapes = [f"<line class='grid' x1='{LEFT}' x2='{LEFT + WIDTH}' y1='{floor}' y2='{floor}'/>"]
    for start, end, number, hint in columns:
        height, x = _LOW_HEIGHT * number / most, LEFT + WIDTH * start
        shapes.append(
            f"<rect class='column third' x='{x + 1:.1f}' y='{floor - height:.1f}' height='{height:.1f}' "
            f"width='{WIDTH * (end - start) - 2:.1f}'><title>{escaped(hint)}</title></rect>"
            f"<text class='small' x='{x + WIDTH * (end - start) / 2:.1f}' y='{floor + 14}' "
            f"text-anchor='middle'>{number}</text>"
        )
    turned = f"transform='translate(11 {TOP + _LOW_HEIGHT / 2}) rotate(-90)'"
    shapes.append(f"<text {turned} text-anchor='middle'>{escaped(y_name)}</text>")
    return (
        f"<svg class='chart' viewBox='0 0 {_FULL_WIDTH} {floor + 20}' role='img' "
        f"aria-label='{escaped(y_name)}'>{''.join(shapes)}</svg>"
    )


def bar_rows(bars: Sequence[Bar], longest: float | None = None) -> str:
    """A bar chart, one bar a row, its name at the left and its value at the right.

    Args:
        bars: with values from 0.
        longest: value of a bar over the full width; the largest one where None.

    Returns:
        HTML.
    """
    full = longest or max((bar.value for bar in bars), default=0) or 1
    rows = []
    for bar in bars:
        share = 100 * min(max(bar.value / full, 0), 1)
        span = f"<span class='bar {bar.style}' style='width:{share:.1f}%'></span>"
        rows.append(_bar_row(bar.name, bar.about, f"<div class='bar-room'>{span}</div>", bar.shown))
    return f"<div class='bars'>{''.join(rows)}</div>"


def stacked_rows(stacks: Sequence[Stack]) -> str:
    """The same of bars whose parts follow one another; the longest has the full width.

    Args:
        stacks: with lengths from 0.

    Returns:
        HTML.
    """
    full = max((sum(length for length, _, _ in stack.parts) for stack in stacks), default=0) or 1
    rows = []
    for stack in stacks:
        spans = "".join(
            f"<span class='bar {style}' style='width:{100 * length / full:.2f}%' "
            f"title='{escaped(hint)}'></span>"
            for length, style, hint in stack.parts
        )
        room = f"<div class='bar-room parts'>{spans}</div>"
        rows.append(_bar_row(stack.name, stack.about, room, stack.shown))
    return f"<div class='bars'>{''.join(rows)}</div>"


def _bar_row(name: str, about: str, room: str, shown: str) -> str:
    below = f"<small>{escaped(about)}</small>" if about else ""
    return (
        f"<div class='bar-name' title='{escaped(name)}'>{escaped(short(name))}{below}</div>{room}"
        f"<div class='bar-value'>{escaped(shown)}</div>"
    )


def _grid(x_name: str, y_name: str) -> str:
    parts = []
    for step in range(6):
        share = step / 5
        x, y = LEFT + WIDTH * share, TOP + HEIGHT * (1 - share)
        parts.append(f"<line class='grid' x1='{LEFT}' x2='{LEFT + WIDTH}' y1='{y:.0f}' y2='{y:.0f}'/>")
        parts.append(f"<line class='grid' y1='{TOP}' y2='{TOP + HEIGHT}' x1='{x:.0f}' x2='{x:.0f}'/>")
        parts.append(f"<text x='{LEFT - 6}' y='{y + 4:.0f}' text-anchor='end'>{share:.1f}</text>")
        parts.append(f"<text x='{x:.0f}' y='{TOP + HEIGHT + 16}' text-anchor='middle'>{share:.1f}</text>")
    middle_x, middle_y = LEFT + WIDTH / 2, TOP + HEIGHT / 2
    parts.append(f"<text x='{middle_x}' y='{_FULL_HEIGHT - 6}' text-anchor='middle'>{escaped(x_name)}</text>")
    turned = f"transform='translate(11 {middle_y}) rotate(-90)'"
    parts.append(f"<text {turned} text-anchor='middle'>{escaped(y_name)}</text>")
    return "".join(parts)


NOTHING = "nothing"  # the name of the row and column for what is no object, or not found
_LARGEST_CELL, _SMALLEST_CELL, _WIDTH = 64, 9, 640  # pixels
_NAME_ROOM, _LETTERS = 104, 15
_NUMBERS_FROM = 26  # pixels of a cell in which a number can be read
_MOST_PAIRS = 12


def matrix_chart(cells: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """Draw the matrix: rows are true classes, columns detected ones; the last of each is nothing.

    Args:
        cells: true class, detected class and number of each cell that is not empty.
        class_names: C names by label.

    Returns:
        SVG. A cell is as strong as its share of the row, in the last row of the column.
    """
    names = [*class_names, NOTHING]
    side = max(_SMALLEST_CELL, min(_LARGEST_CELL, _WIDTH // len(names)))
    room = len(names) * side
    rows, columns = _totals(cells, len(names))
    shapes = [f"<rect class='frame' x='{_NAME_ROOM}' y='{_NAME_ROOM}' width='{room}' height='{room}'/>"]
    for i, name in enumerate(names):
        middle = _NAME_ROOM + (i + 0.5) * side
        label = escaped(short(name, _LETTERS))
        shapes.append(f"<text x='{_NAME_ROOM - 6}' y='{middle + 3.5:.1f}' text-anchor='end'>{label}</text>")
        shapes.append(
            f"<text transform='translate({middle + 3.5:.1f} {_NAME_ROOM - 6}) rotate(-90)'>{label}</text>"
        )
    for true, detected, number in cells:
        in_row = true < len(class_names)
        share = number / (rows[true] if in_row else columns[detected])
        x, y = _NAME_ROOM + detected * side, _NAME_ROOM + true * side
        kind = "right" if true == detected else "wrong"
        hint = f"<title>{escaped(_said(names, true, detected, number, share))}</title>"
        shapes.append(
            f"<rect class='{kind}' x='{x}' y='{y}' width='{side - 1}' height='{side - 1}' "
            f"opacity='{0.12 + 0.88 * share:.2f}'>{hint}</rect>"
        )
        if side >= _NUMBERS_FROM:
            shapes.append(
                f"<text class='number' x='{x + side / 2}' y='{y + side / 2 + 3.5}' "
                f"text-anchor='middle' pointer-events='none'>{number}</text>"
            )
    size = _NAME_ROOM + room + 2
    style = "matrix roomy" if side >= _NUMBERS_FROM else "matrix"
    return (
        f"<svg class='{style}' viewBox='0 0 {size} {size}' style='--size:{size}px' role='img' "
        f"aria-label='confusion matrix'>{''.join(shapes)}</svg>"
    )


def confused_pairs(cells: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """The classes most often taken for others.

    Args:
        cells: as of `matrix_chart`.
        class_names: likewise.

    Returns:
        HTML: a list, the most frequent first.
    """
    rows, _ = _totals(cells, len(class_names) + 1)
    pairs = [cell for cell in cells if cell[0] != cell[1] and max(cell[:2]) < len(class_names)]
    if not pairs:
        return "<p>No object was taken for one of another class.</p>"
    pairs.sort(key=lambda cell: -cell[2])
    items = "".join(
        f"<tr><td>{escaped(short(class_names[true]))}</td><td>{escaped(short(class_names[detected]))}</td>"
        f"<td class='number'>{number}</td><td class='number'>{100 * number / rows[true]:.1f} %</td></tr>"
        for true, detected, number in pairs[:_MOST_PAIRS]
    )
    head = (
        "<tr><th>true</th><th>taken for</th><th class='number'>number</th><th class='number'>share</th></tr>"
    )
    return f"<table>{head}{items}</table>"


def _totals(cells: Sequence[Sequence[int]], size: int) -> tuple[list[int], list[int]]:
    rows, columns = [0] * size, [0] * size
    for true, detected, number in cells:
        rows[true] += number
        columns[detected] += number
    return rows, columns


def _said(names: Sequence[str], true: int, detected: int, number: int, share: float) -> str:
    last = len(names) - 1
    percent = f"{100 * share:.1f} %"
    if true == last:
        return (
            f"{number} detections of {names[detected]} where there is nothing ({percent} of these detections)"
        )
    if detected == last:
        return f"{number} of {names[true]} not found ({percent})"
    verb = "found" if true == detected else f"taken for {names[detected]}"
    return f"{number} of {names[true]} {verb} ({percent})"
