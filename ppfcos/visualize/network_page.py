"""An exported network as one HTML file: its figures, the drawing of its layers, and a table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppfcos.visualize.evaluation_page import STYLE, TABLE_SCRIPT, sortable_table
from ppfcos.visualize.network_drawing import COLOURS, colour_of
from ppfcos.visualize.network_report import (
    bytes_text,
    output_of,
    part_of,
    precision_of,
    summary_rows,
    time_text,
    title_of,
    work_text,
)
from ppfcos.visualize.page import escaped, page

_HEADS = ("layer", "parameters", "constants", "writes", "GFLOPs", "ms")
_PLAIN = ("part", "what", "gives", "in")
_ZOOMS = {"fit": "fit the window", "60%": "60 %", "80%": "80 %", "100%": "100 %", "140%": "140 %"}

_READING = (
    "A layer shows its kind and what is done along with it; below, what it gives, without the batch, and "
    "what it costs: milliseconds where they were measured, else GFLOPs. The bar is that as a share of the "
    "dearest layer's. Choose one, here or in the table, to see all of it."
)

_STYLE = """
.tiles { grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); }
.facts td:first-child { color: var(--soft); white-space: nowrap; } .facts td { overflow-wrap: anywhere; }
.broad { width: calc(100vw - 3rem); margin-left: calc(50% - 50vw + 1.5rem); }
.sheet { overflow: auto; max-height: 82vh; border: 1px solid var(--line); border-radius: .5rem; }
.sheet svg { display: block; height: auto; }
.key { display: inline-block; width: 1.1rem; height: .8rem; border: 1px solid var(--soft);
  border-radius: .2rem; vertical-align: middle; margin-right: .3rem; }
.keys span { margin-right: 1rem; white-space: nowrap; font-size: .85rem; }
.network .layer { cursor: pointer; } .network .layer.dim { opacity: .18; }
.network .layer.chosen .box { stroke: var(--heat); stroke-width: 2.4; }
.network .edge.lit { stroke: var(--heat); stroke-width: 2.2; opacity: 1; }
#details { white-space: pre-line; min-height: 9.5rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; padding: .5rem .8rem; font-size: .85rem; overflow-wrap: anywhere; }
#details:empty::before { content: 'No layer is chosen.'; color: var(--soft); }
.classes tr.chosen { background: var(--tint); } .classes tbody tr { cursor: pointer; }
"""

# Runs behind TABLE_SCRIPT, which hides the rows that are not looked for.
_SCRIPT = """
const sheet = one('.sheet'), drawing = one('svg.network', sheet);
const shapes = Object.fromEntries(all('.layer', drawing).map((shape) => [shape.dataset.layer, shape]));
const rows = all('.classes tbody tr');
let chosen = null;

function light(number) {
  all('.edge', drawing).forEach((edge) => edge.classList.toggle('lit',
    number !== null && (edge.dataset.from === number || edge.dataset.to === number)));
}

function choose(number) {
  chosen = number === chosen ? null : number;
  Object.entries(shapes).forEach(([each, shape]) => shape.classList.toggle('chosen', each === chosen));
  rows.forEach((row) => row.classList.toggle('chosen', row.dataset.layer === chosen));
  light(chosen);
  one('#details').textContent = chosen === null ? '' : one('title', shapes[chosen]).textContent;
}

Object.entries(shapes).forEach(([number, shape]) => {
  shape.addEventListener('click', () => choose(number));
  shape.addEventListener('keydown', (event) => { if (event.key === 'Enter') choose(number); });
  shape.addEventListener('mouseenter', () => light(number));
  shape.addEventListener('mouseleave', () => light(chosen));
});
rows.forEach((row) => row.addEventListener('click', () => {
  if (row.dataset.layer !== chosen) choose(row.dataset.layer);
  shapes[row.dataset.layer].scrollIntoView({block: 'center', inline: 'center'});
}));
all('input.search').forEach((search) => search.addEventListener('input', () =>
  rows.forEach((row) => shapes[row.dataset.layer].classList.toggle('dim', row.hidden))));
one('#zoom').addEventListener('change', (event) => {
  const share = event.target.value, full = drawing.viewBox.baseVal.width;
  drawing.style.width = share === 'fit' ? '100%' : full * parseFloat(share) / 100 + 'px';
});
drawing.style.width = '100%';
"""


def network_page(figures: Mapping[str, Any], drawing: str) -> str:
    """The whole page.

    Args:
        figures: of `ppfcos.analysis.info.NetworkInfo`.
        drawing: SVG of `ppfcos.visualize.network_drawing`.

    Returns:
        HTML. Without its script the drawing and the table are there, but neither sorted nor searched.
    """
    title = f"{figures['bundle']}: {figures['file']}"
    body = [
        f"<header><h1>{escaped(title)}</h1></header>",
        _tiles(figures),
        _facts(figures),
        f"<section class='broad'><h2>Layers</h2>{_tools(figures)}<div class='sheet'>{drawing}</div>"
        f"<p class='soft'>{_READING}</p><div id='details'></div></section>",
        f"<section class='broad'><h2>Table</h2>{_table(figures)}</section>",
    ]
    return page(title, "\n".join(body), STYLE + _STYLE, TABLE_SCRIPT + _SCRIPT)


def _tiles(figures: Mapping[str, Any]) -> str:
    time = figures["time"]
    tiles = {
        "GFLOPs": work_text(figures["multiply_adds"]),
        "parameters": f"{figures['parameters'] / 1e6:.2f} M",
        "file": bytes_text(figures["file_bytes"]),
        "written": bytes_text(figures["activation_bytes"]),
        "layers": str(len(figures["layers"])),
        "operations": str(sum(figures["operations"].values())),
        "time": f"{time['milliseconds']:.1f} ms" if time else "",
    }
    shown = "".join(
        f"<div class='tile'><small>{name}</small><b>{escaped(text)}</b></div>"
        for name, text in tiles.items()
        if text
    )
    return f"<div class='tiles'>{shown}</div>"


def _facts(figures: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escaped(name)}</td><td>{escaped(text)}</td></tr>"
        for name, text in summary_rows(figures)
        if text
    )
    return f"<table class='facts'>{rows}</table>"


def _tools(figures: Mapping[str, Any]) -> str:
    """What is above the drawing: a field to find layers, its size, and what its colours mean."""
    used = {colour_of(layer) for layer in figures["layers"]}
    keys = "".join(
        f"<span><i class='key' style='background: var(--{'int8' if name == 'int8-float' else name});"
        f"{' border-left: 5px solid var(--fallback)' if name == 'int8-float' else ''}'></i>{meaning}</span>"
        for name, meaning in COLOURS.items()
        if name in used
    )
    zooms = "".join(f"<option value='{value}'>{name}</option>" for value, name in _ZOOMS.items())
    return (
        "<div class='control'><label>find <input class='search' type='search' placeholder='head /8'></label>"
        f"<label>size <select id='zoom'>{zooms}</select></label></div>"
        f"<p class='keys network'>{keys}</p>"
    )


def _table(figures: Mapping[str, Any]) -> str:
    rows = "".join(_row(number, layer) for number, layer in enumerate(figures["layers"]))
    return sortable_table(_HEADS, rows, _PLAIN)


def _row(number: int, layer: Mapping[str, Any]) -> str:
    numbers = (
        (layer["parameters"], f"{layer['parameters']:,}"),
        (layer["weight_bytes"], bytes_text(layer["weight_bytes"])),
        (layer["activation_bytes"], bytes_text(layer["activation_bytes"])),
        (layer["multiply_adds"], work_text(layer["multiply_adds"])),
        (layer["milliseconds"], time_text(layer["milliseconds"])),
    )
    found_by = f"{layer['name']} {part_of(layer)} {title_of(layer)} {precision_of(layer)}"
    cells = [f"<td data-value='{escaped(found_by)}'>{escaped(layer['name'])}</td>"]
    cells += [
        f"<td class='number' data-value='{'' if value is None else value}'>{text}</td>"
        for value, text in numbers
    ]
    texts = (part_of(layer), title_of(layer), output_of(layer), precision_of(layer))
    cells += [f"<td>{escaped(text)}</td>" for text in texts]
    return f"<tr data-layer='{number}'>{''.join(cells)}</tr>"
