"""An exported network as a drawing: SVG that needs nothing outside itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppfcos.visualize.network_report import (
    CPU_DEVICES,
    bytes_text,
    counted,
    output_of,
    part_of,
    precision_of,
    scale_text,
    time_text,
    title_of,
    work_text,
)
from ppfcos.visualize.page import escaped, short

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


# By the CSS class: what the colour of a layer means.
COLOURS = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8",
    "int8-float": "int8, with norms or activations in float",
    "fallback": "float in an INT8 file",
    "whole": "whole numbers",
}
LETTERS = 28  # that fit into a layer's first line
_BEND = 22  # pixels that a line aims beside the layers that it passes
_REACH = 70  # pixels of a line between panels before it turns

STYLE = """
.network { --paper: #fff; --ink: #1d2433; --soft: #5a6577; --line: #cfd6e1; --card: #f5f7fa; --edge: #8a95a8;
  --heat: #d9480f; --fp32: #dbe8ff; --fp16: #d0f0ee; --int8: #d6f3dc; --fallback: #ffe3c2; --whole: #ececf1; }
@media (prefers-color-scheme: dark) { .network { --paper: #12161d; --ink: #e4e8ef; --soft: #9ba6b7;
  --line: #2d3543; --card: #1a202a; --edge: #6b7890; --heat: #ff8a4c; --fp32: #203457; --fp16: #17403f;
  --int8: #1d4428; --fallback: #5c3a12; --whole: #2f3440; } }
.network .paper { fill: var(--paper); }
.network text { font: 10px system-ui, sans-serif; fill: var(--soft); }
.network text.kind { font-weight: 600; fill: var(--ink); }
.network text.cost { fill: var(--ink); text-anchor: end; }
.network text.kind tspan { font-weight: 400; font-size: 9px; fill: var(--soft); }
.network text.title { font-size: 12px; font-weight: 600; fill: var(--ink); }
.network .panel { fill: var(--card); stroke: var(--line); }
.network .box { stroke: var(--edge); stroke-width: .8; }
.network .fp32 .box { fill: var(--fp32); } .network .fp16 .box { fill: var(--fp16); }
.network .int8 .box, .network .int8-float .box { fill: var(--int8); }
.network .fallback .box { fill: var(--fallback); } .network .whole .box { fill: var(--whole); }
.network .stripe { fill: var(--fallback); stroke: var(--edge); stroke-width: .8; }
.network .cpu .box { stroke-dasharray: 4 3; stroke-width: 1.6; }
.network .heat { fill: var(--heat); }
.network .edge { fill: none; stroke: var(--edge); stroke-width: 1.2; }
.network .edge.far { opacity: .38; }
"""


def network_svg(figures: Mapping[str, Any]) -> str:
    """Draw a network.

    Args:
        figures: of `ppfcos.analysis.info.NetworkInfo`.

    Returns:
        SVG. Each layer is a group with its number in `data-layer`, each line says in `data-from` and
        `data-to` what it joins.
    """
    layers = figures["layers"]
    layout = layout_of(layers)
    places = {number: panel for panel in layout.panels for number in panel.layers}
    costs = [_cost(layer, figures["time"] is not None) for layer in layers]
    wanted = figures["time"] and figures["time"]["device"]
    most = max(cost for cost, _ in costs) or 1
    shapes = [
        *(_frame(panel) for panel in layout.panels),
        *(_edge(source, number, places) for number in places for source in layers[number]["sources"]),
        *(
            _layer(number, layers[number], places[number], (cost / most, text), wanted)
            for number, (cost, text) in enumerate(costs)
        ),
    ]
    return _document(layout, shapes)


def colour_of(layer: Mapping[str, Any]) -> str:
    """The class of COLOURS that a layer has."""
    precision = layer["precision"]
    if layer["in_float"] and precision == "int8":
        return "int8-float"
    if layer["in_float"] and precision in ("fp32", "fp16"):
        return "fallback"
    return precision if precision in COLOURS else "whole"


def _cost(layer: Mapping[str, Any], is_timed: bool) -> tuple[float, str]:
    """What a layer costs, and how that is written: its time where that was measured, else its work."""
    if is_timed:
        return layer["milliseconds"] or 0.0, time_text(layer["milliseconds"])
    work = layer["multiply_adds"]
    return work or 0.0, "" if work == 0 else work_text(work)


def _document(layout: Layout, shapes: Sequence[str]) -> str:
    size = f"{layout.width:.0f} {layout.height:.0f}"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' class='network' viewBox='0 0 {size}' "
        f"width='{layout.width:.0f}' height='{layout.height:.0f}' role='img' aria-label='layers'>"
        f"<style>{STYLE}</style><rect class='paper' width='100%' height='100%'/>\n"
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def _frame(panel: Panel) -> str:
    return (
        f"<rect class='panel' x='{panel.x:.1f}' y='{panel.y:.1f}' width='{panel.width:.1f}' "
        f"height='{panel.height:.1f}' rx='8'/><text class='title' x='{panel.x + 12:.1f}' "
        f"y='{panel.y + 17:.1f}'>{escaped(panel.title)}</text>"
    )


def _layer(
    number: int, layer: Mapping[str, Any], panel: Panel, cost: tuple[float, str], wanted: str | None
) -> str:
    """A box; `cost` is a share of the dearest layer's, and how the cost is written."""
    x, y = panel.corner(number)
    share, cost_text = cost
    colour = colour_of(layer)
    is_on_cpu = wanted not in (None, *CPU_DEVICES) and set(layer["devices"]) & set(CPU_DEVICES)
    kind = short(layer["kind"], LETTERS)
    fused = short(", ".join(layer["fused"]), max(1, LETTERS - len(kind))) if layer["fused"] else ""
    stripe = f"<rect class='stripe' width='6' height='{HEIGHT}' rx='3'/>" if colour == "int8-float" else ""
    heat = (
        f"<rect class='heat' x='1' y='{HEIGHT - 3}' width='{(WIDTH - 2) * share:.1f}' height='2.5'/>"
        if share >= 0.005
        else ""
    )
    return (
        f"<g class='layer {colour}{' cpu' if is_on_cpu else ''}' data-layer='{number}' tabindex='0' "
        f"transform='translate({x:.1f} {y:.1f})'><title>{escaped_lines(tooltip(layer))}</title>"
        f"<rect class='box' width='{WIDTH}' height='{HEIGHT}' rx='4'/>{stripe}{heat}"
        f"<text class='kind' x='8' y='14'>{escaped(kind)} <tspan>{escaped(fused)}</tspan></text>"
        f"<text x='8' y='28'>{escaped(short(_map_text(layer), 20))}</text>"
        f"<text class='cost' x='{WIDTH - 7}' y='28'>{escaped(cost_text)}</text></g>"
    )


def tooltip(layer: Mapping[str, Any]) -> list[str]:
    """Lines that say everything of a layer."""
    lines = [
        layer["name"],
        f"{title_of(layer)} ({part_of(layer)})",
        f"gives {output_of(layer)}, {bytes_text(layer['activation_bytes'])}",
        f"{layer['parameters']:,} parameters, constants of {bytes_text(layer['weight_bytes'])}",
        f"{work_text(layer['multiply_adds'])} GFLOPs, in {precision_of(layer)}",
        f"in float: {counted(layer['in_float'])}" if layer["in_float"] else "",
        f"scale {scale_text(layer)}" if layer["scales"] else "",
        f"{time_text(layer['milliseconds'])} ms on {', '.join(layer['devices'])}" if layer["devices"] else "",
        f"operations: {counted(layer['operations'])}",
    ]
    return [line for line in lines if line]


def escaped_lines(lines: Sequence[str]) -> str:
    """Lines as HTML that keeps them apart."""
    return "&#10;".join(map(escaped, lines))


def _map_text(layer: Mapping[str, Any]) -> str:
    """The shape of what a layer gives, without the batch: the same everywhere, and there is little room."""
    shape = layer["outputs"][0]["shape"] if layer["outputs"] else None
    if shape is None or len(shape) < 2:
        return output_of(layer)
    return "×".join("?" if side is None else str(side) for side in shape[1:])


def _edge(source: int, target: int, places: Mapping[int, Panel]) -> str:
    x0, y0 = places[source].corner(source)
    x1, y1 = places[target].corner(target)
    is_far = places[source] is not places[target]
    if not is_far and x0 == x1 and y1 - y0 - HEIGHT > GAP_Y:
        path = _past(x0, y0 + HEIGHT / 2, y1 + HEIGHT / 2)
    else:
        draw = _far if is_far else _near
        path = draw(x0 + WIDTH / 2, y0 + HEIGHT, x1 + WIDTH / 2, y1)
    return (
        f"<path class='edge{' far' if is_far else ''}' data-from='{source}' data-to='{target}' d='{path}'/>"
    )


def _past(x: float, y0: float, y1: float) -> str:
    """At the left of the layers that stand between the two."""
    out = x - _BEND
    return f"M{x:.1f},{y0:.1f} C{out:.1f},{y0 + 6:.1f} {out:.1f},{y1 - 6:.1f} {x:.1f},{y1:.1f}"


def _far(x0: float, y0: float, x1: float, y1: float) -> str:
    """From a panel to another one."""
    return f"M{x0:.1f},{y0:.1f} C{x0:.1f},{y0 + _REACH:.1f} {x1:.1f},{y1 - _REACH:.1f} {x1:.1f},{y1:.1f}"


def _near(x0: float, y0: float, x1: float, y1: float) -> str:
    """Down in its own column, and over to the other one in the gap above the layer there."""
    if x0 == x1:
        return f"M{x0:.1f},{y0:.1f} V{y1:.1f}"
    turn, side = y1 - GAP_Y / 2, 5 if x1 > x0 else -5
    return (
        f"M{x0:.1f},{y0:.1f} V{turn - 5:.1f} Q{x0:.1f},{turn:.1f} {x0 + side:.1f},{turn:.1f} "
        f"H{x1 - side:.1f} Q{x1:.1f},{turn:.1f} {x1:.1f},{y1:.1f}"
    )
