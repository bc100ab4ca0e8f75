"""The report of an evaluation as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ppfcos.metrics.error_types import KINDS
from ppfcos.visualize.charts import (
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Bar,
    Line,
    bar_rows,
    column_chart,
    confused_pairs,
    line_chart,
    matrix_chart,
    rectangle,
)
from ppfcos.visualize.gallery import MOST_OF_A_KIND, Drawing
from ppfcos.visualize.page import escaped, page, picture_address

STYLE = """
:root { --first: #2563eb; --second: #d97706; --third: #64748b; --good: #15803d; --bad: #c2410c;
  --tint: #dbe6fd; }
@media (prefers-color-scheme: dark) { :root { --first: #74a4ff; --second: #f5a742; --third: #93a1b5;
  --good: #4cc38a; --bad: #ff8a5c; --tint: #22355e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 1.2rem 4rem; max-width: 76rem; }
header { padding: 1.6rem 0 .6rem; } h1 { margin: 0 0 .3rem; font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { margin: 0 0 .3rem; font-size: 1.25rem; } h3 { margin: 1.4rem 0 .5rem; font-size: 1rem; }
p { margin: .2rem 0 .8rem; } .soft, small { color: var(--soft); } small { font-size: .8rem; }
nav { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line); }
nav { display: flex; gap: 1.1rem; overflow-x: auto; white-space: nowrap; padding: .6rem 0; }
nav a { text-decoration: none; } section { padding-top: 2rem; scroll-margin-top: 2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(4.9rem, 1fr)); gap: .5rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile b { white-space: nowrap; }
.tile.main { background: var(--accent); border-color: var(--accent); color: var(--paper); }
.tile.main small { color: inherit; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
pre, .wide { overflow-x: auto; } pre { font-size: .8rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.columns { gap: 1.6rem 2.5rem; } .columns > * { min-width: 0; }
.bars { display: grid; grid-template-columns: minmax(6.5rem, auto) 1fr auto; gap: .5rem .8rem; }
.bars { align-items: center; margin: .4rem 0 1rem; }
.bar-name small { display: block; max-width: 17rem; line-height: 1.25; }
.bar { display: block; height: .95rem; border-radius: .25rem; background: var(--first); min-width: 2px; }
.bar.second { background: var(--second); } .bar.third { background: var(--third); }
.bar-value { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.chart { width: 100%; max-width: 34rem; height: auto; display: block; } .grid { stroke: var(--line); }
.line { fill: none; stroke-width: 2.2; stroke: var(--first); stroke-linejoin: round; }
.line.second { stroke: var(--second); } .line.third { stroke: var(--third); }
.line.dashed { stroke: var(--soft); stroke-dasharray: 4 4; stroke-width: 1.3; }
.column { fill: var(--first); opacity: .3; } .column.third { fill: var(--third); opacity: .55; }
.chart text.small { font-size: 9px; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .82rem; margin: .3rem 0; }
.legend span::before { content: ''; display: inline-block; width: 1rem; height: .2rem; margin-right: .35rem;
  vertical-align: middle; background: var(--first); }
.legend .second::before { background: var(--second); } .legend .third::before { background: var(--third); }
.legend .dashed::before { background: none; height: 0; border-top: 2px dashed var(--soft); }
.classes { width: 100%; font-size: .88rem; } .classes th { white-space: nowrap; vertical-align: bottom; }
.classes td, .classes th { padding: .28rem .5rem; } .classes th button { all: unset; cursor: pointer; }
.classes th button:focus-visible { outline: 2px solid var(--accent); }
.classes th[aria-sort=ascending] button::after { content: ' ▲'; font-size: .7em; }
.classes th[aria-sort=descending] button::after { content: ' ▼'; font-size: .7em; }
.classes tbody tr:hover { background: var(--card); } .classes td:first-child { min-width: 6.5rem; }
.classes td:first-child, .classes th:first-child { position: sticky; left: 0; background: var(--paper); }
td.number, .classes td:last-child { white-space: nowrap; }
td.ap { background: linear-gradient(var(--tint), var(--tint)) no-repeat 0 / var(--share) 84%; }
td.ap { min-width: 6rem; }
.better { color: var(--good); } .worse { color: var(--bad); }
.matrix { display: block; width: 100%; max-width: var(--size); min-width: min(var(--size), 40rem); }
.matrix text { font-size: 10px; } .matrix.roomy text { font-size: 12.5px; }
.matrix .right { fill: var(--first); } .matrix .wrong { fill: var(--second); }
.matrix .frame { fill: none; stroke: var(--line); } .matrix .number { font-weight: 600; }
.beside { display: grid; grid-template-columns: minmax(0, 2.2fr) minmax(0, 1fr); gap: 1rem 2rem; }
.beside table { font-size: .88rem; } .beside td, .beside th { padding: .25rem .45rem; }
.beside td:not(.number) { overflow-wrap: anywhere; } .beside .number { white-space: nowrap; }
.control { display: none; } .live .control { display: flex; } .control label { white-space: nowrap; }
.control { flex-wrap: wrap; gap: .5rem 1.1rem; align-items: center; margin: .5rem 0 .8rem; font-size: .9rem; }
select, input[type=search] { font: inherit; color: inherit; background: var(--card); max-width: 14rem;
  border: 1px solid var(--line); border-radius: .4rem; padding: .2rem .4rem; }
input[type=range] { vertical-align: middle; width: 9rem; accent-color: var(--accent); }
.of-kind > summary { color: inherit; padding: .5rem 0; border-top: 1px solid var(--line); }
.of-kind > summary h3 { display: inline; margin: 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 15rem), 1fr)); }
.gallery { gap: .8rem; margin: .6rem 0 1.4rem; }
.case { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
.case svg { display: block; width: 100%; aspect-ratio: 4 / 3; background: #101418; cursor: zoom-in; }
.case.large { grid-column: 1 / -1; } .case.large svg { max-height: 80vh; cursor: zoom-out; }
.case figcaption { padding: .45rem .65rem .55rem; line-height: 1.4; } .case .where { color: var(--soft); }
.gone { aspect-ratio: 4 / 3; display: grid; place-items: center; color: var(--soft); }
.case rect { fill: none; vector-effect: non-scaling-stroke; stroke-width: 2.5px; }
.case rect.halo { stroke: #000; stroke-width: 5px; opacity: .55; }
.case rect.found { stroke: #ff8c2e; } .case rect.truth { stroke: #43e07d; }
.case rect.other { stroke-width: 1.3px; stroke-dasharray: 5 3; opacity: .85; }
b.found, b.truth { display: inline-block; } .case b { margin-right: .35rem; }
b.found::before, b.truth::before { content: ''; display: inline-block; width: .7rem; height: .7rem;
  border: 3px solid #ff8c2e; margin-right: .3rem; } b.truth::before { border-color: #43c06d; }
.hide-found rect.found, .hide-truth rect.truth, .hide-found rect.halo.of-found,
.hide-truth rect.halo.of-truth, [hidden] { display: none !important; }
@media (max-width: 46rem) { .beside { grid-template-columns: minmax(0, 1fr); } body { padding: 0 .9rem 3rem; }
  .bars { grid-template-columns: minmax(5.5rem, 8.5rem) 1fr auto; } .chart text { font-size: 13px; } }
@media print { nav, .control { display: none !important; } }
"""

# Controls that would do nothing without it are hidden until it runs.
TABLE_SCRIPT = """
'use strict';
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (selector, within = document) => within.querySelector(selector);
document.documentElement.classList.add('live');

function sortBy(header) {
  const table = header.closest('table'), column = header.cellIndex;
  const rises = header.getAttribute('aria-sort') === 'descending';
  const value = (row) => {
    const cell = row.cells[column].dataset.value;
    return column ? (cell === '' ? -Infinity : Number(cell)) : cell;
  };
  const compare = (a, b) => column ? value(a) - value(b) : value(b).localeCompare(value(a));
  const rows = [...table.tBodies[0].rows].sort((a, b) => rises ? compare(a, b) : compare(b, a));
  all('th', table).forEach((other) => other.removeAttribute('aria-sort'));
  header.setAttribute('aria-sort', rises ? 'ascending' : 'descending');
  table.tBodies[0].append(...rows);
}

all('.classes th button').forEach((button) =>
  button.addEventListener('click', () => sortBy(button.closest('th'))));
all('input.search').forEach((search) => search.addEventListener('input', () => {
  const wanted = search.value.toLowerCase();
  all('.classes tbody tr').forEach((row) => {
    row.hidden = !row.cells[0].dataset.value.toLowerCase().includes(wanted);
  });
}));
"""

# Runs behind TABLE_SCRIPT.
SCRIPT = """
const figures = JSON.parse(one('#figures').textContent);
const chosen = {label: '', score: 0};

function drawCurves() {
  const curves = chosen.label === '' ? figures.curves : figures.classes[chosen.label].curves;
  const {left, top, width, height} = figures.chart;
  all('#curves polyline.line').forEach((line, number) => {
    const values = Object.values(curves)[number] || [];
    line.setAttribute('points', values.map((precision, i) =>
      (left + width * i / (values.length - 1)).toFixed(1) + ',' +
      (top + height * (1 - precision)).toFixed(1)).join(' '));
  });
  one('#curves-of').textContent =
    chosen.label === '' ? 'mean over the classes' : figures.classes[chosen.label].name;
}

function isShown(figure) {
  const {classes, score} = figure.dataset;
  return (chosen.label === '' || classes.split(' ').includes(chosen.label))
    && (score === '' || Number(score) >= chosen.score);
}

function filterGalleries() {
  for (const group of all('.of-kind')) {
    const cases = all('.case', group);
    cases.forEach((figure) => { figure.hidden = !isShown(figure); });
    const shown = cases.filter((figure) => !figure.hidden).length;
    one('.count', group).textContent = shown === cases.length ? shown : `${shown} of ${cases.length}`;
  }
}

function chooseClass(label) {
  chosen.label = label;
  all('.pick-class').forEach((select) => { select.value = label; });
  drawCurves();
  filterGalleries();
}

all('.pick-class').forEach((select) => select.addEventListener('change', () => chooseClass(select.value)));
all('a[data-label]').forEach((link) => link.addEventListener('click', () => chooseClass(link.dataset.label)));
all('.case svg').forEach((picture) => picture.addEventListener('click', () =>
  picture.closest('.case').classList.toggle('large')));
one('#score').addEventListener('input', (event) => {
  chosen.score = Number(event.target.value);
  one('#score-value').textContent = chosen.score.toFixed(2);
  filterGalleries();
});
for (const sort of ['found', 'truth']) one(`#show-${sort}`).addEventListener('change', (event) =>
  one('#galleries').classList.toggle(`hide-${sort}`, !event.target.checked));
one('#confusion-score').addEventListener('change', (event) => all('.confusion').forEach((block) => {
  block.hidden = block.dataset.score !== event.target.value;
}));
filterGalleries();
"""


KIND_TEXTS = {
    "class": "at an object's place (IoU from 0.5), but of another class",
    "localisation": "of the right class, but off (IoU of 0.1 to 0.5)",
    "both": "off, and of another class than the object there",
    "duplicate": "of an object that a better detection has found",
    "background": "where there is no object (IoU up to 0.1)",
    "missed": "objects that no detection comes near",
}
_TILES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR10", "AR100")
_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
_LINE_STYLES = ("first", "second", "third")
_FIRST_SHOWN = 0.3  # score of the confusion matrix that is shown first


def evaluation_page(figures: Mapping[str, Any], drawings: Sequence[Drawing | None], table: str) -> str:
    """The whole page.

    Args:
        figures: of `evaluation_figures`, with `gallery`: entries of the worst cases.
        drawings: of these cases.
        table: COCO's twelve lines.

    Returns:
        HTML. Only filtering and sorting need its script.
    """
    names = [entry["name"] for entry in figures["classes"]]
    body = [
        _header(figures),
        _navigation(),
        _overview(figures, table),
        _errors_and_sizes(figures),
        _curves_and_calibration(figures, names),
        _class_section(figures["classes"]),
        _confusion(figures["confusion"], names),
        _galleries(figures["gallery"], drawings, names),
        _data_of_script(figures),
    ]
    return page(f"{figures['title']}: evaluation", "\n".join(body), STYLE, TABLE_SCRIPT + SCRIPT)


def percent(value: float | None) -> str:
    """A figure from 0 to 1 as papers write it.

    Args:
        value: None where there is no object.

    Returns:
        Such as 38.9, or a dash.
    """
    return "–" if value is None else f"{100 * value:.1f}"


def _header(figures: Mapping[str, Any]) -> str:
    crowds = f" and {figures['crowds']:,} crowds" if figures["crowds"] else ""
    return (
        f"<header><h1>{escaped(figures['title'])}</h1><p class='soft'>{figures['images']:,} images, "
        f"{figures['objects']:,} objects{crowds} of {len(figures['classes'])} classes, "
        f"{figures['detections']:,} detections. AP and AR in percent.</p></header>"
    )


def _navigation() -> str:
    places = {
        "overview": "Overview",
        "errors": "Errors",
        "curves": "Curves",
        "classes": "Classes",
        "confusion": "Confusion",
        "galleries": "Worst cases",
    }
    return "<nav>" + "".join(f"<a href='#{place}'>{name}</a>" for place, name in places.items()) + "</nav>"


def _overview(figures: Mapping[str, Any], table: str) -> str:
    tiles = "".join(
        f"<div class='tile{' main' if name == 'AP' else ''}'><small>{name}</small>"
        f"<b>{percent(figures['figures'][name])}</b></div>"
        for name in _TILES
    )
    lines = "\n".join(escaped(line) for line in table.splitlines())
    return (
        f"<section id='overview'><div class='tiles'>{tiles}</div>"
        f"<details><summary>COCO's table</summary><pre>{lines}</pre></details></section>"
    )


def _errors_and_sizes(figures: Mapping[str, Any]) -> str:
    errors = figures["errors"]
    kinds = [
        Bar(
            entry["kind"],
            entry["cost"],
            f"{percent(entry['cost'])} ({entry['count']:,})",
            "second",
            KIND_TEXTS[entry["kind"]],
        )
        for entry in errors["kinds"]
    ]
    return (
        "<section id='errors'><div class='columns'><div><h2>What errors cost</h2>"
        "<p class='soft'>By how much AP50 would rise if one kind of error alone were mended (TIDE), and how "
        f"many there are.</p>{bar_rows(kinds)}<p class='soft'>Without any wrong detection AP50 would rise by "
        f"{percent(errors['false_positives'])}, without any missed object by "
        f"{percent(errors['false_negatives'])}.</p></div>"
        f"<div><h2>Small and large objects</h2>{_sizes(figures['sizes'])}</div></div></section>"
    )


def _sizes(sizes: Sequence[Mapping[str, Any]]) -> str:
    parts = ["<p class='soft'>AP, and the share that is found at all (AR), by the size of the object.</p>"]
    bars = []
    for entry in sizes:
        reach = f"{entry['from']} to {entry['to']}" if entry["to"] else f"over {entry['from']}"
        about = f"{reach} px, {entry['objects']:,} objects"
        bars.append(Bar(f"{entry['name']}, AP", entry["AP"] or 0, percent(entry["AP"]), "first", about))
        bars.append(Bar(f"{entry['name']}, AR", entry["AR"] or 0, percent(entry["AR"]), "third"))
    return "".join([*parts, bar_rows(bars, 1.0)])


def _curves_and_calibration(figures: Mapping[str, Any], names: Sequence[str]) -> str:
    lines = [
        Line(f"IoU {name}", [i / (len(values) - 1) for i in range(len(values))], values, style)
        for (name, values), style in zip(figures["curves"].items(), _LINE_STYLES)
    ]
    chart = line_chart(lines, "recall", "precision")
    calibration = figures["calibration"]
    return (
        "<section id='curves'><div class='columns'><div id='precision'><h2>Precision and recall</h2>"
        "<p class='soft'>Shown: <b id='curves-of'>mean over the classes</b>.</p>"
        f"<div class='control'>{_class_choice(names)}</div>{chart}</div>"
        "<div><h2>Can the scores be believed?</h2><p class='soft'>Of detections with a score of 0.7, seven "
        "of ten are right if the score is calibrated. Expected calibration error: "
        f"<b>{percent(calibration['error'])} %</b>.</p>{calibration_chart([('precision', calibration)])}"
        f"{_counts(calibration['bins'])}</div></div></section>"
    )


def calibration_chart(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The reliability diagram of one run, or of two.

    Args:
        runs: name and `calibration` of each; of a single one the bins are drawn too.

    Returns:
        HTML.
    """
    lines = [Line("calibrated", (0, 1), (0, 1), "dashed")]
    for (name, calibration), style in zip(runs, _LINE_STYLES):
        bins = [entry for entry in calibration["bins"] if entry["count"]]
        scores, precisions = ([entry[key] for entry in bins] for key in ("score", "precision"))
        lines.append(Line(name, scores, precisions, style))
    behind = ""
    if len(runs) == 1:
        behind = "".join(
            rectangle(
                entry["from"],
                entry["to"],
                entry["precision"],
                "column",
                f"{entry['count']:,} detections, mean score {entry['score']:.2f}, "
                f"{percent(entry['precision'])} % right",
            )
            for entry in runs[0][1]["bins"]
            if entry["count"]
        )
    return line_chart(lines, "score", "share that is right", behind)


def _counts(bins: Sequence[Mapping[str, Any]]) -> str:
    """How many detections have a score, in columns below those of the reliability diagram."""
    columns = [
        (
            entry["from"],
            entry["to"],
            entry["count"],
            f"{entry['count']:,} with a score of {entry['from']:.1f} on",
        )
        for entry in bins
    ]
    return column_chart(columns, "detections")


def _class_section(classes: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(_class_row(label, entry) for label, entry in enumerate(classes))
    heads = ("class", "objects", "detections", *_COLUMNS)
    return (
        "<section id='classes'><h2>Classes</h2><p class='soft'>A click on a heading sorts; one on a class "
        "shows its worst cases. Last: the kind of error that costs this class most AP50.</p>"
        f"{sortable_table(heads, rows, ('costs most',))}</section>"
    )


def sortable_table(heads: Sequence[str], rows: str, plain: Sequence[str] = ()) -> str:
    """A table of classes with a field to find one, and headings that sort.

    Args:
        heads: of the columns: names first, then numbers.
        rows: HTML; their cells say in `data-value` by what they are sorted.
        plain: heads of columns behind them that do not sort.

    Returns:
        HTML.
    """
    head = "".join(
        f"<th{' class=number' if i else ''}><button type='button'>{name}</button></th>"
        for i, name in enumerate(heads)
    )
    head += "".join(f"<th>{name}</th>" for name in plain)
    return (
        "<div class='control'><label>find <input class='search' type='search'></label></div>"
        f"<div class='wide'><table class='classes'><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _class_row(label: int, entry: Mapping[str, Any]) -> str:
    name = escaped(entry["name"])
    cells = [
        f"<td data-value='{name}'><a href='#galleries' data-label='{label}'>{name}</a></td>",
        *(
            f"<td class='number' data-value='{entry[key]}'>{entry[key]:,}</td>"
            for key in ("objects", "detections")
        ),
    ]
    for column in _COLUMNS:
        value = entry["figures"][column]
        known = "" if value is None else value
        style = f" ap' style='--share:{100 * value:.0f}%" if column == "AP" and value is not None else ""
        cells.append(f"<td class='number{style}' data-value='{known}'>{percent(value)}</td>")
    costs = {kind: cost for kind, cost in entry["costs"].items() if cost}
    worst = max(costs, key=costs.get, default=None)
    said = f"{worst} ({percent(costs[worst])})" if worst and costs[worst] > 0 else "–"
    return f"<tr>{''.join(cells)}<td>{said}</td></tr>"


def _confusion(levels: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    options = "".join(
        f"<option value='{level['score']}'{' selected' if level['score'] == _FIRST_SHOWN else ''}>"
        f"{level['score']}</option>"
        for level in levels
    )
    blocks = "".join(
        f"<div class='confusion beside' data-score='{level['score']}'"
        f"{'' if level['score'] == _FIRST_SHOWN else ' hidden'}>"
        f"<div class='wide'>{matrix_chart(level['cells'], names)}</div>"
        f"<div class='wide'><h3>Most confused</h3>{confused_pairs(level['cells'], names)}</div></div>"
        for level in levels
    )
    return (
        "<section id='confusion'><h2>Confusion</h2><p class='soft'>Rows are true classes, columns detected "
        "ones, from a score on. The last column has objects that were not found, the last row detections of "
        "nothing.</p><div class='control'><label>score from "
        f"<select id='confusion-score'>{options}</select></label></div>{blocks}</section>"
    )


def _galleries(entries: Sequence[Mapping], drawings: Sequence[Drawing | None], names: Sequence[str]) -> str:
    label_of = {name: label for label, name in reversed(list(enumerate(names)))}
    groups = []
    for kind in KINDS:
        cases = [(e, drawing) for e, drawing in zip(entries, drawings) if e["kind"] == kind]
        if cases:
            figures = "".join(_case(entry, drawing, label_of) for entry, drawing in cases)
            groups.append(
                f"<details class='of-kind'{'' if groups else ' open'}><summary><h3>{kind} "
                f"(<span class='count'>{len(cases)}</span>) <small>{KIND_TEXTS[kind]}</small></h3></summary>"
                f"<div class='gallery'>{figures}</div></details>"
            )
    return (
        "<section id='galleries'><h2>Worst cases</h2><p class='soft'>Of each kind of error at most "
        f"{MOST_OF_A_KIND}: the wrong detections with the highest scores, the largest objects that were "
        "missed. <b class='truth'>what is there</b>, <b class='found'>what was found</b>; other boxes of the "
        "image are dashed. A click enlarges.</p>"
        f"<div class='control'>{_class_choice(names)}"
        "<label>score from <input id='score' type='range' min='0' max='1' step='0.05' value='0'> "
        "<output id='score-value'>0.00</output></label>"
        "<label><input id='show-truth' type='checkbox' checked> truth</label>"
        "<label><input id='show-found' type='checkbox' checked> detections</label>"
        f"</div>{''.join(groups) or '<p>There is no error.</p>'}</section>"
    )


def _class_choice(names: Sequence[str]) -> str:
    options = "".join(f"<option value='{label}'>{escaped(name)}</option>" for label, name in enumerate(names))
    return (
        "<label>class <select class='pick-class'><option value=''>all classes</option>"
        f"{options}</select></label>"
    )


def _case(entry: Mapping[str, Any], drawing: Drawing | None, label_of: Mapping[str, int]) -> str:
    found, truth = entry["found"], entry["truth"]
    labels = sorted({label_of[side["class"]] for side in (found, truth) if side})
    said = []
    if found:
        said.append(f"<b class='found'>{escaped(found['class'])} {found['score']:.2f}</b>")
    if truth:
        said.append(f"<b class='truth'>{escaped(truth['class'])}</b>")
    if found and truth:
        said.append(f"IoU&nbsp;{entry['iou']:.2f}")
    picture = "<div class='gone'>the image cannot be read</div>" if drawing is None else _picture(drawing)
    score = found["score"] if found else ""
    return (
        f"<figure class='case' data-kind='{entry['kind']}' data-classes='{' '.join(map(str, labels))}' "
        f"data-score='{score}'>{picture}<figcaption>{' '.join(said)}<br>"
        f"<span class='where'>{escaped(entry['image'])}</span></figcaption></figure>"
    )


def _picture(drawing: Drawing) -> str:
    height, width = drawing.picture.shape[:2]
    shapes = [_rectangle(box, "truth other") for box in drawing.other_truth]
    shapes += [_rectangle(box, "found other") for box in drawing.other_found]
    for box, sort in ((drawing.truth, "truth"), (drawing.found, "found")):
        if box is not None:
            shapes += [_rectangle(box, f"halo of-{sort}"), _rectangle(box, sort)]
    return (
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='boxes on a piece of the image'>"
        f"<image width='{width}' height='{height}' href='{picture_address(drawing.picture)}'/>"
        f"{''.join(shapes)}</svg>"
    )


def _rectangle(box, style: str) -> str:
    x0, y0, x1, y1 = (float(side) for side in box)
    return (
        f"<rect class='{style}' x='{x0:.1f}' y='{y0:.1f}' width='{max(x1 - x0, 0):.1f}' "
        f"height='{max(y1 - y0, 0):.1f}'/>"
    )


def _data_of_script(figures: Mapping[str, Any]) -> str:
    content = {
        "curves": figures["curves"],
        "classes": [{"name": entry["name"], "curves": entry["curves"]} for entry in figures["classes"]],
        "chart": {"left": LEFT, "top": TOP, "width": WIDTH, "height": HEIGHT},
    }
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return f"<script type='application/json' id='figures'>{data}</script>"
