"""Writes the report of an evaluation, and the comparison of two: an HTML page and its metrics as JSON."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppfcos.errors import DataError
from ppfcos.fileio import replacing
from ppfcos.json_files import JSONError, read_json, to_json
from ppfcos.metrics.coco import METRIC_NAMES, NO_OBJECTS, CocoMetrics
from ppfcos.metrics.confusion import SCORES, calibrate, confusion_matrix
from ppfcos.metrics.error_types import ERROR_TYPES, Errors, find_errors
from ppfcos.metrics.matching import Matching, image_order, match
from ppfcos.metrics.thresholds import OperatingPoint, best_f1
from ppfcos.metrics.voc import voc_average_precisions
from ppfcos.visualize.gallery import MOST_OF_A_TYPE, Crop, Images, case_entry, draw_cases, worst_cases
from ppfcos.visualize.page import percent, render

logger = logging.getLogger(__name__)

VERSION = 1
REPORT = "evaluation"  # marks the JSON file
JSON_FILE, PAGE_FILE, COMPARISON_FILE = "report.json", "report.html", "comparison.html"
CLASSES_FILE = "classes.csv"
VOC_NAMES = ("11-point", "area")

SIZES = {  # COCO's: AP, AR, and the range of the square root of the area in pixels
    "small": ("APs", "ARs", 0, 32),
    "medium": ("APm", "ARm", 32, 96),
    "large": ("APl", "ARl", 96, None),
}
ERROR_TEXTS = {
    "class": "localized correctly (IoU of at least 0.5), wrong class",
    "localisation": "correct class, IoU of 0.1 to 0.5",
    "both": "wrong class, IoU of 0.1 to 0.5",
    "duplicate": "of an object that a better detection has matched",
    "background": "no object (IoU of at most 0.1)",
    "missed": "objects without a detection of the types above",
}
MOST_PAIRS = 12  # of the most confused classes
_STYLES = ("first", "second", "third")


def write_report(
    folder: Path | str,
    title: str,
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    metrics: CocoMetrics,
    images: Images,
) -> Path:
    """Write the report of an evaluation.

    Args:
        folder: for JSON_FILE, CLASSES_FILE and PAGE_FILE; created if missing.
        title: of the run.
        ground_truth: COCO annotations.
        detections: COCO results.
        metrics: of both.
        images: for the gallery of the worst errors.

    Returns:
        The path of the page.

    Raises:
        OutputError: it cannot be written.
    """
    matching = match(ground_truth, detections, metrics.max_detections)
    errors = find_errors(matching)
    image_ids = image_order(ground_truth)
    names = [str(category["name"]) for category in ground_truth["categories"]]
    cases = worst_cases(matching, errors)
    report = evaluation_report(title, ground_truth, metrics, matching, errors)
    report["gallery"] = [
        case_entry(case, matching, names, images.name(image_ids[case.image])) for case in cases
    ]
    if report["best_f1"]:
        logger.info("best %s at IoU 0.50", OperatingPoint(**report["best_f1"]))
    page = evaluation_page(report, draw_cases(cases, matching, image_ids, images), metrics.table())
    with replacing(Path(folder) / JSON_FILE) as temporary:
        temporary.write_text(to_json(report, allow_nan=False), encoding="utf-8")
    with replacing(Path(folder) / CLASSES_FILE) as temporary:
        temporary.write_text(classes_csv(report["classes"]), encoding="utf-8", errors="backslashreplace")
    return _write_page(Path(folder) / PAGE_FILE, page)


def write_comparison(first: Path | str, second: Path | str, folder: Path | str) -> Path:
    """Write COMPARISON_FILE into a folder, from the reports in two others.

    Returns:
        The path of the page.

    Raises:
        DataError: one of the folders has no report.
        OutputError: the page cannot be written.
    """
    page = comparison_page(read_report(first), read_report(second))
    return _write_page(Path(folder) / COMPARISON_FILE, page)


def _write_page(path: Path, page: str) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def read_report(folder: Path | str) -> dict[str, Any]:
    """Read JSON_FILE of a report.

    Raises:
        DataError: it is missing or is no report of this version.
    """
    path = Path(folder) / JSON_FILE
    hint = f"write it with --report {folder}"
    try:
        report = read_json(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): {hint}") from error
    except JSONError as error:
        raise DataError(f"{path} is not valid JSON ({error}): {hint}") from error
    if not isinstance(report, dict) or report.get("report") != REPORT:
        raise DataError(f"{path} is not an evaluation report: {hint}")
    if report.get("version") != VERSION:
        raise DataError(f"{path} has version {report.get('version')}, expected {VERSION}: {hint}")
    return report


def evaluation_report(
    title: str, ground_truth: Mapping[str, Any], metrics: CocoMetrics, matching: Matching, errors: Errors
) -> dict[str, Any]:
    """Collect the content of JSON_FILE without its gallery; fractions are None where there is no object."""
    truth, found = matching.ground_truth, matching.detections
    best, best_of_class = best_f1(matching)
    voc = voc_average_precisions(matching)
    calibration = calibrate(found.scores[~matching.ignored], matching.hits[~matching.ignored])
    edges = calibration.edges.round(3).tolist()
    return {
        "report": REPORT,
        "version": VERSION,
        "title": title,
        "images": len(ground_truth["images"]),
        "objects": int((~truth.crowd).sum()),
        "crowds": int(truth.crowd.sum()),
        "detections": len(found.scores),
        "figures": {name: _known(value) for name, value in metrics.named().items()},
        "curves": _mean_curves(list(metrics.class_curves.values())),
        "best_f1": best and best._asdict(),
        "classes": [
            {
                **entry,
                "best_f1": point and point._asdict(),
                "voc": dict(zip(VOC_NAMES, map(_known, values))),
            }
            for entry, point, *values in zip(
                _classes(ground_truth, metrics, matching, errors), best_of_class, *voc
            )
        ],
        "voc": {
            name: float(np.nanmean(values)) if matching.objects.any() else None
            for name, values in zip(VOC_NAMES, voc)
        },
        "sizes": _sizes(matching, metrics.named()),
        "errors": {
            "kinds": [
                {"kind": error_type, "count": int(count), "cost": float(cost)}
                for error_type, count, cost in zip(ERROR_TYPES, errors.counts.sum(axis=0), errors.cost)
            ],
            "false_positives": errors.false_positives,
            "false_negatives": errors.false_negatives,
        },
        "confusion": [
            {"score": score, "cells": _cells(confusion_matrix(matching, score))} for score in SCORES
        ],
        "calibration": {
            "error": calibration.error,
            "bins": [
                {
                    "from": low,
                    "to": high,
                    "count": int(count),
                    "score": _known(score),
                    "precision": _known(ratio),
                }
                for low, high, count, score, ratio in zip(
                    edges, edges[1:], calibration.counts, calibration.scores, calibration.precisions
                )
            ],
        },
    }


def _classes(
    ground_truth: Mapping[str, Any], metrics: CocoMetrics, matching: Matching, errors: Errors
) -> list[dict[str, Any]]:
    detections = np.bincount(matching.detections.labels, minlength=matching.classes)
    entries = []
    for label, category in enumerate(ground_truth["categories"]):
        stats = metrics.class_stats.get(category["id"], (NO_OBJECTS,) * len(METRIC_NAMES))
        curves = metrics.class_curves.get(category["id"], {})
        entries.append(
            {
                "name": str(category["name"]),
                "objects": int(matching.objects[label]),
                "detections": int(detections[label]),
                "figures": {name: _known(value) for name, value in zip(METRIC_NAMES, stats)},
                "errors": dict(zip(ERROR_TYPES, errors.counts[label].tolist())),
                "costs": {name: _known(cost) for name, cost in zip(ERROR_TYPES, errors.costs[label])},
                "curves": {name: _rounded(values) for name, values in curves.items()},
            }
        )
    return entries


def _mean_curves(curves: Sequence[Mapping[str, tuple]]) -> dict[str, list[float]]:
    names = curves[0] if curves else ()
    return {name: _rounded(np.mean([curve[name] for curve in curves], axis=0)) for name in names}


def _sizes(matching: Matching, metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    sides = np.sqrt(matching.ground_truth.areas[~matching.ground_truth.crowd])
    return [
        {
            "name": name,
            "from": low,
            "to": high,
            "objects": int(((sides >= low) & (sides < (high or math.inf))).sum()),
            "AP": _known(metrics[precision]),
            "AR": _known(metrics[recall]),
        }
        for name, (precision, recall, low, high) in SIZES.items()
    ]


def _cells(matrix: np.ndarray) -> list[list[int]]:
    """[ground-truth label, detected label, count] of each cell that is not zero."""
    rows, columns = np.nonzero(matrix)
    return np.stack([rows, columns, matrix[rows, columns]], axis=1).tolist()


def _known(value: float) -> float | None:
    return None if value == NO_OBJECTS or math.isnan(value) else float(value)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in values]


def classes_csv(classes: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row per class, its metrics as fractions; a field is empty where there is no object."""
    table = [
        {
            "class": entry["name"],
            "objects": entry["objects"],
            "detections": entry["detections"],
            **entry["figures"],
            **{f"VOC AP50 ({name})": value for name, value in entry["voc"].items()},
            **{f"best {name}": (entry["best_f1"] or {}).get(name) for name in OperatingPoint._fields},
        }
        for entry in classes
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, table[0] if table else ["class"])
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def evaluation_page(report: Mapping[str, Any], crops: Sequence[Crop | None], table: str) -> str:
    """Render a report with the crops of its gallery and COCO's summary table."""
    names = [entry["name"] for entry in report["classes"]]
    bins = report["calibration"]["bins"]
    return render(
        "evaluation.html",
        title=f"{report['title']}: evaluation",
        report=report,
        table=table,
        error_bars=[
            _error_bar(entry, entry["kind"], "second", ERROR_TEXTS[entry["kind"]])
            for entry in report["errors"]["kinds"]
        ],
        size_bars=_size_bars(report["sizes"]),
        precision_curves=[
            {"name": f"IoU {name}", "ys": values, "style": style}
            for (name, values), style in zip(report["curves"].items(), _STYLES)
        ],
        calibration_lines=_calibration_lines({"precision": report}),
        calibration_columns=[
            {
                **entry,
                "value": entry["precision"],
                "title": f"{entry['count']:,} detections, mean score {entry['score']:.2f}, "
                f"precision {percent(entry['precision'])} %",
            }
            for entry in bins
            if entry["count"]
        ],
        score_bins=[
            {
                **entry,
                "title": f"{entry['count']:,} detections, score {entry['from']:.1f} to {entry['to']:.1f}",
            }
            for entry in bins
        ],
        class_curves=[{"name": entry["name"], "curves": entry["curves"]} for entry in report["classes"]],
        matrices=[_matrix(level, names) for level in report["confusion"]],
        galleries=_galleries(report["gallery"], crops, names),
        most_of_a_type=MOST_OF_A_TYPE,
    )


def comparison_page(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Render the comparison of two reports; classes are matched by name."""
    of_second = {entry["name"]: entry for entry in second["classes"]}
    classes = [(a, of_second[a["name"]]) for a in first["classes"] if a["name"] in of_second]
    costs = [{entry["kind"]: entry for entry in run["errors"]["kinds"]} for run in (first, second)]
    warnings = [
        f"{first[key]:,} and {second[key]:,} {key}"
        for key in ("images", "objects", "crowds")
        if first[key] != second[key]
    ]
    different = of_second.keys() ^ {entry["name"] for entry in first["classes"]}
    if different:
        warnings.append(f"{len(different)} classes that only one of them has")
    return render(
        "comparison.html",
        title=f"{first['title']} and {second['title']}: evaluations",
        first=first,
        second=second,
        warnings=warnings,
        error_bars=[
            _error_bar(run[error_type], name, style)
            for error_type in ERROR_TYPES
            for run, name, style in zip(costs, (f"{error_type}, A", "B"), _STYLES)
        ],
        calibration_lines=_calibration_lines({"A": first, "B": second}),
        classes=sorted(classes, key=lambda pair: _change(*pair)),
    )


def _change(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    a, b = first["figures"]["AP"], second["figures"]["AP"]
    return math.inf if a is None or b is None else b - a


def _error_bar(entry: Mapping[str, Any], name: str, style: str, note: str = "") -> dict[str, Any]:
    text = f"{percent(entry['cost'])} ({entry['count']:,})"
    return {"name": name, "text": text, "note": note, "parts": [{"value": entry["cost"], "style": style}]}


def _size_bars(sizes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    bars = []
    for entry in sizes:
        sides = f"{entry['from']} to {entry['to']}" if entry["to"] else f"over {entry['from']}"
        notes = (f"{sides} px, {entry['objects']:,} objects", "")
        for metric, style, note in zip(("AP", "AR"), ("first", "third"), notes):
            bar = {"name": f"{entry['name']}, {metric}", "text": percent(entry[metric]), "note": note}
            bars.append({**bar, "parts": [{"value": entry[metric] or 0, "style": style}]})
    return bars


def _calibration_lines(runs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a reliability diagram with the ideal one."""
    lines = [{"name": "calibrated", "xs": (0, 1), "ys": (0, 1), "style": "dashed"}]
    for (name, run), style in zip(runs.items(), _STYLES):
        bins = [entry for entry in run["calibration"]["bins"] if entry["count"]]
        xs, ys = ([entry[key] for entry in bins] for key in ("score", "precision"))
        lines.append({"name": name, "xs": xs, "ys": ys, "style": style})
    return lines


def _matrix(level: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The cells of a confusion matrix with fraction and text, and the most confused pairs of classes."""
    background = len(names)
    cells = np.array(level["cells"], np.int64).reshape(-1, 3)
    rows = np.bincount(cells[:, 0], cells[:, 2], background + 1)
    columns = np.bincount(cells[:, 1], cells[:, 2], background + 1)
    drawn = []
    for row, column, count in level["cells"]:
        fraction = count / (columns[column] if row == background else rows[row])
        if row == background:
            text = f"{count} detections of {names[column]} on background"
        elif column == background:
            text = f"{count} of {names[row]} missed"
        else:
            text = f"{count} of {names[row]} detected as {names[column]}"
        drawn.append((row, column, count, fraction, f"{text} ({percent(fraction)} %)"))
    pairs = [cell for cell in drawn if cell[0] != cell[1] and max(cell[:2]) < background]
    pairs.sort(key=lambda cell: -cell[2])
    return {"score": level["score"], "cells": drawn, "pairs": pairs[:MOST_PAIRS]}


def _galleries(
    entries: Sequence[Mapping[str, Any]], crops: Sequence[Crop | None], names: Sequence[str]
) -> list[tuple]:
    """The error types that have cases: name, text, and entry, labels and crop of each case."""
    label_of = {name: label for label, name in reversed(list(enumerate(names)))}
    groups: dict[str, list[tuple]] = {}
    for entry, crop in zip(entries, crops):
        labels = sorted({label_of[side["class"]] for side in (entry["found"], entry["truth"]) if side})
        groups.setdefault(entry["kind"], []).append((entry, labels, crop))
    return [(name, ERROR_TEXTS[name], groups[name]) for name in ERROR_TYPES if name in groups]
