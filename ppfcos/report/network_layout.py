"""Where each layer of a network is drawn.

Layers go into panels: a stage of the backbone (all that has one stride), the neck, a level of the head. In a
panel a layer stands below those that it takes something from; the neck and what decodes have a column for
every stride. Panels of the backbone fill columns from the top, all others rows from the left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 178, 36  # of a layer
GAP_X, GAP_Y = 18, 14  # between layers
PADDING, HEADER, MARGIN = 12, 26, 26  # of a panel; the margin is at the left, for lines that pass by layers
PANEL_GAP = 18
ROOM = 1900  # in which rows of panels must fit
INPUT, BACKBONE, NECK, HEAD, DECODE, NETWORK = PARTS = (
    *("input", "backbone", "neck", "head", "decode"),
    "network",
)
SECTIONS = ((INPUT, BACKBONE, NETWORK), (NECK,), (HEAD,), (DECODE,))  # below one another
IN_ONE_PANEL = (INPUT, NECK, DECODE)  # whatever the stride
COLUMN_A_STRIDE = (NECK, DECODE)


@dataclass
class Panel:
    """Layers with a frame around them.

    Attributes:
        title: above them.
        layers: their numbers.
        cells: row and column of each layer, by its number.
        x: of the left edge.
        y: of the upper edge.
    """

    title: str
    layers: list[int]
    cells: dict[int, tuple[int, int]] = field(default_factory=dict)
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        """With its frame."""
        columns = 1 + max(column for _, column in self.cells.values())
        return MARGIN + columns * (WIDTH + GAP_X) - GAP_X + PADDING

    @property
    def height(self) -> float:
        """With its frame."""
        rows = 1 + max(row for row, _ in self.cells.values())
        return HEADER + rows * (HEIGHT + GAP_Y) - GAP_Y + PADDING

    def corner(self, layer: int) -> tuple[float, float]:
        """x and y of a layer's upper left corner."""
        row, column = self.cells[layer]
        return self.x + MARGIN + column * (WIDTH + GAP_X), self.y + HEADER + row * (HEIGHT + GAP_Y)


@dataclass(frozen=True)
class Layout:
    """A whole drawing.

    Attributes:
        panels: all of them, placed.
        width: of the drawing.
        height: of the drawing.
    """

    panels: list[Panel]
    width: float
    height: float


def layout_of(layers: Sequence[Mapping[str, Any]]) -> Layout:
    """Place all layers.

    Args:
        layers: each with its `part`, its `stride`, and in `sources` the numbers of layers before it.

    Returns:
        The layout.
    """
    panels = _panels(layers)
    top = float(PANEL_GAP)
    for parts in SECTIONS:
        section = [panel for (part, _), panel in panels.items() if part in parts]
        if section:
            place = _in_columns if BACKBONE in parts else _in_rows
            top = place(section, top) + PANEL_GAP
    placed = list(panels.values())
    return Layout(placed, max(panel.x + panel.width for panel in placed) + PANEL_GAP, top)


def _panels(layers: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int | None], Panel]:
    panels: dict[tuple[str, int | None], Panel] = {}
    for number, layer in enumerate(layers):
        stride = None if layer["part"] in IN_ONE_PANEL else layer["stride"]
        title = layer["part"] + (f", stride {stride}" if stride else "")
        panels.setdefault((layer["part"], stride), Panel(title, [])).layers.append(number)
    order = sorted(panels, key=lambda key: (PARTS.index(key[0]), key[1] or 0))
    for key in order:
        panels[key].cells = _cells(panels[key].layers, layers, key[0] in COLUMN_A_STRIDE)
    return {key: panels[key] for key in order}


def _cells(
    numbers: Sequence[int], layers: Sequence[Mapping[str, Any]], column_a_stride: bool
) -> dict[int, tuple[int, int]]:
    """Row and column of the layers of a panel."""
    earliest = _rows(numbers, layers)
    rows = earliest if column_a_stride else _lowered(earliest, layers)
    strides = sorted({layers[number]["stride"] for number in numbers if layers[number]["stride"]})
    cells: dict[int, tuple[int, int]] = {}
    taken: set[tuple[int, int]] = set()
    alone = [] if column_a_stride else _alone(numbers, layers)
    # Of layers in a row, the one at the end of the longest path goes first: it stays below that path.
    linked = sorted(set(numbers) - set(alone), key=lambda each: (rows[each], -earliest[each], each))
    for number in linked:
        stride = layers[number]["stride"]
        before = [cells[source][1] for source in layers[number]["sources"] if source in cells]
        column = strides.index(stride) if column_a_stride and stride else min(before, default=0)
        while (rows[number], column) in taken:
            column += 1
        cells[number] = rows[number], column
        taken.add(cells[number])
    # The others fill columns at the right, no longer than those that are there.
    height = 1 + max((row for row, _ in taken), default=0)
    first = 1 + max((column for _, column in taken), default=-1)
    return cells | {number: (i % height, first + i // height) for i, number in enumerate(alone)}


def _alone(numbers: Sequence[int], layers: Sequence[Mapping[str, Any]]) -> list[int]:
    """The layers that neither take from another one of the panel nor give to one."""
    inside = set(numbers)
    sources = {number: inside.intersection(layers[number]["sources"]) for number in numbers}
    giving = set().union(*sources.values())
    return [number for number in numbers if not sources[number] and number not in giving]


def _rows(numbers: Sequence[int], layers: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """The row right below all layers of the panel that a layer takes something from."""
    rows: dict[int, int] = {}
    for number in numbers:
        inside = [rows[source] for source in layers[number]["sources"] if source in rows]
        rows[number] = 1 + max(inside, default=-1)
    return rows


def _lowered(rows: Mapping[int, int], layers: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """The same, with layers that take nothing from the panel right above the first that takes from them."""
    takers: dict[int, list[int]] = {}
    for number in rows:
        for source in layers[number]["sources"]:
            takers.setdefault(source, []).append(rows[number])
    return {
        number: min(takers[number]) - 1 if row == 0 and number in takers and min(takers[number]) else row
        for number, row in rows.items()
    }


def _in_columns(panels: Iterable[Panel], top: float) -> float:
    """One below the other, in as many columns as keep the section as low as its tallest panel."""
    panels = list(panels)
    tallest = max(panel.height for panel in panels)
    x = float(PANEL_GAP)
    y, widest = top, 0.0
    for panel in panels:
        if y > top and y + panel.height > top + tallest:
            x, y, widest = x + widest + PANEL_GAP, top, 0.0
        panel.x, panel.y = x, y
        y, widest = y + panel.height + PANEL_GAP, max(widest, panel.width)
    return max(panel.y + panel.height for panel in panels)


def _in_rows(panels: Iterable[Panel], top: float) -> float:
    """Side by side, in as many rows as keep the section within the room."""
    x, y, tallest = float(PANEL_GAP), top, 0.0
    for panel in panels:
        if x > PANEL_GAP and x + panel.width > ROOM:
            x, y, tallest = float(PANEL_GAP), y + tallest + PANEL_GAP, 0.0
        panel.x, panel.y = x, y
        x, tallest = x + panel.width + PANEL_GAP, max(tallest, panel.height)
    return y + tallest
