"""The confusion matrix as a picture, and the classes that are most confused."""

from __future__ import annotations

from collections.abc import Sequence

from ppfcos.report.page import escaped, short

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
