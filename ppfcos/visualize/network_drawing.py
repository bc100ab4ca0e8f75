"""Draws the layers of an exported network as a graph, in SVG without external references.

The layers of a part and stride share a panel; in a panel a layer is below all layers whose outputs it takes.
This layout follows the parts of a detector, and needs neither graphviz nor a browser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ppfcos.visualize.network_report import (
    CPU_DEVICES,
    counts_text,
    gmacs_text,
    output_text,
    part_text,
    precision_text,
    scale_text,
    size_text,
    time_text,
    title_text,
)
from ppfcos.visualize.page import render, short

WIDTH, HEIGHT = 178, 36  # of a layer
GAP_X, GAP_Y = 18, 14  # between layers
PADDING, HEADER, MARGIN = 12, 26, 26  # of a panel; the left margin is for edges that pass layers
PANEL_GAP = 18
MAX_WIDTH = 2200  # of a row of panels
INPUT, BACKBONE, NECK, HEAD, DECODE, NETWORK = PARTS = (
    *("input", "backbone", "neck", "head", "decode"),
    "network",
)
ROWS = ((INPUT, BACKBONE, NETWORK), (NECK,), (HEAD,), (DECODE,))
ONE_PANEL = (INPUT, NECK, DECODE)  # for all strides

COLORS = {  # meaning of the CSS classes of layers
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8",
    "int8-float": "int8, with norms or activations in float",
    "fallback": "float in an INT8 network",
    "integers": "integers",
}
LETTERS = 28  # that fit into the first line of a layer
_BEND = 22  # pixels between a layer and an edge that passes it
_REACH = 70  # pixels of an edge between panels before it turns


class Panel(NamedTuple):
    """A frame around the layers of a part."""

    title: str
    x: float
    y: float
    width: float
    height: float


class Layout(NamedTuple):
    """Panels, and the panel and upper left corner (x, y) of each layer, by index."""

    panels: list[Panel]
    panel_of: dict[int, int]
    corners: dict[int, tuple[float, float]]
    width: float
    height: float


def network_svg(info: Mapping[str, Any]) -> str:
    """Draw the layers of `ppfcos.analysis.info.NetworkInfo.describe`.

    A layer is a group with its index in `data-layer`; an edge has its layers in `data-from` and `data-to`.
    """
    layers, time = info["layers"], info["time"]
    layout = place_layers(layers)
    costs = [layer["milliseconds" if time else "multiply_adds"] or 0 for layer in layers]
    largest = max(costs) or 1
    boxes = []
    for index, (layer, cost) in enumerate(zip(layers, costs)):
        kind = short(layer["kind"], LETTERS)
        is_on_cpu = time and time["device"] not in CPU_DEVICES and set(layer["devices"]) & set(CPU_DEVICES)
        boxes.append(
            {
                "corner": layout.corners[index],
                "color": color_of(layer),
                "is_on_cpu": bool(is_on_cpu),
                "tooltip": list(tooltip_lines(layer)),
                "kind": kind,
                "fused": short(", ".join(layer["fused"]), max(1, LETTERS - len(kind))),
                "shape": short(_map_text(layer), 20),
                "cost": (time_text if time else gmacs_text)(cost) if cost else "",
                "fraction": cost / largest,
            }
        )
    edges = [
        {"source": source, "target": target, "path": _path(layout, source, target)}
        | {"is_far": layout.panel_of[source] != layout.panel_of[target]}
        for target, layer in enumerate(layers)
        for source in layer["sources"]
    ]
    size = {"WIDTH": WIDTH, "HEIGHT": HEIGHT}
    return render("network.svg", layout=layout, boxes=boxes, edges=edges, **size).strip() + "\n"


def color_of(layer: Mapping[str, Any]) -> str:
    """The key of COLORS for a layer."""
    precision = layer["precision"]
    if layer["in_float"] and precision in ("int8", "fp32", "fp16"):
        return "int8-float" if precision == "int8" else "fallback"
    return precision if precision in COLORS else "integers"


def tooltip_lines(layer: Mapping[str, Any]) -> Iterator[str]:
    """All that is known of a layer."""
    yield layer["name"]
    yield f"{title_text(layer)} ({part_text(layer)})"
    yield f"output {output_text(layer)}, {size_text(layer['activation_bytes'])}"
    yield f"{layer['parameters']:,} parameters, weights of {size_text(layer['weight_bytes'])}"
    yield f"{gmacs_text(layer['multiply_adds'])} GMACs in {precision_text(layer)}"
    if layer["in_float"]:
        yield f"in float: {counts_text(layer['in_float'])}"
    if layer["scales"]:
        yield f"scale {scale_text(layer)}"
    if layer["devices"]:
        yield f"{time_text(layer['milliseconds'])} ms on {', '.join(layer['devices'])}"
    yield f"operators: {counts_text(layer['operations'])}"


def _map_text(layer: Mapping[str, Any]) -> str:
    """The shape of the first output without the batch."""
    shape = layer["outputs"][0]["shape"] if layer["outputs"] else None
    if shape is None or len(shape) < 2:
        return output_text(layer)
    return "×".join("?" if side is None else str(side) for side in shape[1:])


def place_layers(layers: Sequence[Mapping[str, Any]]) -> Layout:
    """Place layers by their `part`, `stride` and `sources`."""
    groups: dict[tuple[str, int | None], list[int]] = {}
    for index, layer in enumerate(layers):
        stride = None if layer["part"] in ONE_PANEL else layer["stride"]
        groups.setdefault((layer["part"], stride), []).append(index)
    panels: list[Panel] = []
    panel_of: dict[int, int] = {}
    corners: dict[int, tuple[float, float]] = {}
    y = PANEL_GAP
    for parts in ROWS:
        x, bottom = PANEL_GAP, y - PANEL_GAP
        keys = [key for key in groups if key[0] in parts]
        for part, stride in sorted(keys, key=lambda key: (PARTS.index(key[0]), key[1] or 0)):
            cells = _cells(groups[part, stride], layers, columns_by_stride=part == NECK)
            rows, columns = (1 + max(values) for values in zip(*cells.values()))
            width = MARGIN + columns * (WIDTH + GAP_X) - GAP_X + PADDING
            height = HEADER + rows * (HEIGHT + GAP_Y) - GAP_Y + PADDING
            if x > PANEL_GAP and x + width > MAX_WIDTH:
                x, y = PANEL_GAP, bottom + PANEL_GAP
            for index, (row, column) in cells.items():
                panel_of[index] = len(panels)
                corners[index] = x + MARGIN + column * (WIDTH + GAP_X), y + HEADER + row * (HEIGHT + GAP_Y)
            panels.append(Panel(part + (f", stride {stride}" if stride else ""), x, y, width, height))
            x, bottom = x + width + PANEL_GAP, max(bottom, y + height)
        y = bottom + PANEL_GAP
    return Layout(panels, panel_of, corners, max(each.x + each.width for each in panels) + PANEL_GAP, y)


def _cells(
    indices: Sequence[int], layers: Sequence[Mapping[str, Any]], columns_by_stride: bool
) -> dict[int, tuple[int, int]]:
    """Row and column of the layers of a panel."""
    depth: dict[int, int] = {}  # length of the longest path within the panel
    for index in indices:
        depth[index] = 1 + max(
            (depth[each] for each in layers[index]["sources"] if each in depth), default=-1
        )
    rows = dict(depth)
    if (
        not columns_by_stride
    ):  # layers without a source in the panel: directly above the first that takes them
        for index in reversed(indices):
            takers = [depth[taker] for taker in indices if index in layers[taker]["sources"]]
            if depth[index] == 0 and takers:
                rows[index] = min(takers) - 1
    strides = sorted({layers[index]["stride"] for index in indices if layers[index]["stride"]})
    cells: dict[int, tuple[int, int]] = {}
    taken: set[tuple[int, int]] = set()
    for index in sorted(indices, key=lambda index: (rows[index], -depth[index], index)):
        stride = layers[index]["stride"]
        if columns_by_stride and stride:
            column = strides.index(stride)
        else:
            column = min((cells[each][1] for each in layers[index]["sources"] if each in cells), default=0)
        while (rows[index], column) in taken:
            column += 1
        cells[index] = rows[index], column
        taken.add(cells[index])
    return cells


def _path(layout: Layout, source: int, target: int) -> str:
    """The SVG path of an edge."""
    (left0, top0), (left1, y1) = layout.corners[source], layout.corners[target]
    x0, y0, x1 = left0 + WIDTH / 2, top0 + HEIGHT, left1 + WIDTH / 2
    if layout.panel_of[source] != layout.panel_of[target]:
        return f"M{x0:.1f},{y0:.1f} C{x0:.1f},{y0 + _REACH:.1f} {x1:.1f},{y1 - _REACH:.1f} {x1:.1f},{y1:.1f}"
    if x0 == x1 and y1 - y0 > GAP_Y:  # around the layers between them
        x, start, end = left0 - _BEND, y0 - HEIGHT / 2, y1 + HEIGHT / 2
        return (
            f"M{left0:.1f},{start:.1f} C{x:.1f},{start + 6:.1f} {x:.1f},{end - 6:.1f} {left0:.1f},{end:.1f}"
        )
    if x0 == x1:
        return f"M{x0:.1f},{y0:.1f} V{y1:.1f}"
    turn, side = y1 - GAP_Y / 2, 5 if x1 > x0 else -5
    return (
        f"M{x0:.1f},{y0:.1f} V{turn - 5:.1f} Q{x0:.1f},{turn:.1f} {x0 + side:.1f},{turn:.1f} "
        f"H{x1 - side:.1f} Q{x1:.1f},{turn:.1f} {x1:.1f},{y1:.1f}"
    )
