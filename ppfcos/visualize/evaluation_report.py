"""Write the report of an evaluation: a page, and a file with its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ppfcos.errors import DataError
from ppfcos.fileio import replacing
from ppfcos.json_files import JSONError, read_json, to_json
from ppfcos.metrics.confusion import SCORES, calibrate, confusion_matrix
from ppfcos.metrics.error_types import KINDS, Errors, find_errors
from ppfcos.metrics.matching import Matching, image_order, match
from ppfcos.visualize.comparison_page import comparison_page
from ppfcos.visualize.evaluation_page import evaluation_page
from ppfcos.visualize.gallery import Pictures, case_entry, draw_cases, worst_cases

VERSION = 1
REPORT = "evaluation"  # tells the file from other reports
SIZES = {  # COCO's, by area; the ends of the side of a square, in pixels
    "small": ("APs", "ARs", 0, 32),
    "medium": ("APm", "ARm", 32, 96),
    "large": ("APl", "ARl", 96, None),
}
NO_OBJECTS = -1.0  # COCO's figure where no object was to be found; null in the file


class Figures(Protocol):
    """What COCO's evaluation gives: `ppfcos.metrics.coco.CocoMetrics`."""

    class_stats: Mapping[Any, tuple]  # by category id, in the order of `named`
    class_curves: Mapping[Any, Mapping[str, tuple]]

    def named(self) -> dict[str, float]:
        """The twelve figures by their names."""

    def table(self) -> str:
        """The same as COCO prints them."""


def evaluation_figures(
    title: str, ground_truth: Mapping[str, Any], figures: Figures, matching: Matching, errors: Errors
) -> dict[str, Any]:
    """Gather what is known of a run.

    Args:
        title: of the run.
        ground_truth: COCO's annotation file.
        figures: of COCO's evaluation.
        matching: of the detections with the truth.
        errors: of these.

    Returns:
        What JSON can write. Figures are from 0 to 1; None where there is no object.
    """
    truth = matching.truth
    calibration = calibrate(matching.found.scores[~matching.ignored], matching.hits[~matching.ignored])
    return {
        "report": REPORT,
        "version": VERSION,
        "title": title,
        "images": len(ground_truth["images"]),
        "objects": int((~truth.crowd).sum()),
        "crowds": int(truth.crowd.sum()),
        "detections": len(matching.found.scores),
        "figures": _known_figures(figures.named()),
        "curves": _mean_curves(figures.class_curves),
        "classes": _classes(ground_truth, figures, matching, errors),
        "sizes": _sizes(matching, figures.named()),
        "errors": {
            "kinds": [
                {"kind": kind, "count": int(count), "cost": float(cost)}
                for kind, count, cost in zip(KINDS, errors.counts.sum(axis=0), errors.cost)
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
                {"from": low, "to": high, "count": int(count), "score": _number(s), "precision": _number(p)}
                for low, high, count, s, p in zip(
                    calibration.edges.round(3).tolist(),
                    calibration.edges[1:].round(3).tolist(),
                    calibration.counts,
                    calibration.scores,
                    calibration.precisions,
                )
            ],
        },
    }


def _classes(
    ground_truth: Mapping[str, Any], figures: Figures, matching: Matching, errors: Errors
) -> list[dict[str, Any]]:
    names = list(figures.named())
    detections = np.bincount(matching.found.labels, minlength=matching.classes)
    entries = []
    for label, category in enumerate(ground_truth["categories"]):
        stats = figures.class_stats.get(category["id"], (NO_OBJECTS,) * len(names))
        entries.append(
            {
                "name": str(category["name"]),
                "objects": int(matching.objects[label]),
                "detections": int(detections[label]),
                "figures": _known_figures(dict(zip(names, stats))),
                "errors": dict(zip(KINDS, errors.counts[label].tolist())),
                "costs": {kind: _number(cost) for kind, cost in zip(KINDS, errors.costs[label])},
                "curves": {
                    name: _rounded(values)
                    for name, values in figures.class_curves.get(category["id"], {}).items()
                },
            }
        )
    return entries


def _mean_curves(class_curves: Mapping[Any, Mapping[str, tuple]]) -> dict[str, list[float]]:
    curves = list(class_curves.values())
    names = list(curves[0]) if curves else []
    return {name: _rounded(np.mean([curve[name] for curve in curves], axis=0)) for name in names}


def _sizes(matching: Matching, named: Mapping[str, float]) -> list[dict[str, Any]]:
    sides = np.sqrt(matching.truth.areas[~matching.truth.crowd])
    entries = []
    for name, (precision, recall, low, high) in SIZES.items():
        inside = (sides >= low) & (sides < (math.inf if high is None else high))
        entries.append(
            {
                "name": name,
                "from": low,
                "to": high,
                "objects": int(inside.sum()),
                "AP": _known(named[precision]),
                "AR": _known(named[recall]),
            }
        )
    return entries


def _cells(matrix: np.ndarray) -> list[list[int]]:
    """[true class, detected class, number] of each cell that is not empty."""
    rows, columns = np.nonzero(matrix)
    return [list(cell) for cell in zip(rows.tolist(), columns.tolist(), matrix[rows, columns].tolist())]


def _known_figures(named: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _known(value) for name, value in named.items()}


def _known(value: float) -> float | None:
    return None if value == NO_OBJECTS else float(value)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _rounded(values) -> list[float]:
    return [round(float(value), 4) for value in values]


JSON_FILE, PAGE_FILE = "report.json", "report.html"
COMPARISON_FILE = "comparison.html"
# Names of files need not be text; what UTF-8 cannot write is written as JSON would have it.
_TEXT = {"encoding": "utf-8", "errors": "backslashreplace"}


def write_report(
    folder: Path | str,
    title: str,
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    figures: Figures,
    pictures: Pictures,
) -> Path:
    """Say all that can be said of a run.

    Args:
        folder: for JSON_FILE and PAGE_FILE; made where it is missing.
        title: of the run.
        ground_truth: COCO's annotation file.
        detections: COCO's result file.
        figures: of both.
        pictures: the images, for the worst cases.

    Returns:
        The page's path.

    Raises:
        OutputError: it cannot be written.
    """
    matching = match(ground_truth, detections)
    errors = find_errors(matching)
    images = image_order(ground_truth)
    names = [str(category["name"]) for category in ground_truth["categories"]]
    cases = worst_cases(matching, errors)
    content = evaluation_figures(title, ground_truth, figures, matching, errors)
    content["gallery"] = [
        case_entry(case, matching, names, pictures.name(images[case.image])) for case in cases
    ]
    drawings = draw_cases(cases, matching, images, pictures)
    text = evaluation_page(content, drawings, figures.table())
    with replacing(Path(folder) / JSON_FILE) as unfinished:
        unfinished.write_text(to_json(content, allow_nan=False), encoding="utf-8")
    with replacing(Path(folder) / PAGE_FILE) as unfinished:
        unfinished.write_text(text, **_TEXT)
    return Path(folder) / PAGE_FILE


def write_comparison(first: Path | str, second: Path | str, folder: Path | str) -> Path:
    """Put two reports side by side.

    Args:
        first: folder of a report.
        second: folder of another.
        folder: for COMPARISON_FILE; made where it is missing.

    Returns:
        The page's path.

    Raises:
        DataError: one of the folders has no report.
        OutputError: it cannot be written.
    """
    text = comparison_page(read_figures(first), read_figures(second))
    path = Path(folder) / COMPARISON_FILE
    with replacing(path) as unfinished:
        unfinished.write_text(text, **_TEXT)
    return path


def read_figures(folder: Path | str) -> dict[str, Any]:
    """Read the figures of a report.

    Args:
        folder: of `write_report`.

    Returns:
        What was written.

    Raises:
        DataError: they are missing, or something else is there.
    """
    path = Path(folder) / JSON_FILE
    try:
        content = read_json(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): write it first, with --report {folder}"
        ) from error
    except JSONError as error:
        raise DataError(f"{path} is no JSON ({error}): write it anew, with --report {folder}") from error
    if not isinstance(content, dict) or content.get("report") != REPORT:
        raise DataError(f"{path} is no report of an evaluation: write one with --report {folder}")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path} is of version {content.get('version')}, not {VERSION}: write it anew, "
            f"with --report {folder}"
        )
    return content
