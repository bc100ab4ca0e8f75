"""The report of an evaluation as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ppfcos.report.charts import (
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Bar,
    Line,
    bar_rows,
    column_chart,
    line_chart,
    rectangle,
)
from ppfcos.report.confusion_chart import confused_pairs, matrix_chart
from ppfcos.report.error_kinds import KINDS
from ppfcos.report.evaluation_look import SCRIPT, STYLE, TABLE_SCRIPT
from ppfcos.report.gallery import MOST_OF_A_KIND, Drawing
from ppfcos.report.page import escaped, page, picture_address

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
