"""All figures of an evaluation's report, as the JSON file has them. Pages are made of nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ppfcos.report.calibration import calibrate
from ppfcos.report.confusion import SCORES, confusion_matrix
from ppfcos.report.error_kinds import KINDS, Errors
from ppfcos.report.matching import Matching

VERSION = 1
REPORT = "evaluation"  # tells the file from other reports
SIZES = {  # COCO's, by area; the ends of the side of a square, in pixels
    "small": ("APs", "ARs", 0, 32),
    "medium": ("APm", "ARm", 32, 96),
    "large": ("APl", "ARl", 96, None),
}
NO_OBJECTS = -1.0  # COCO's figure where no object was to be found; null in the file


class Figures(Protocol):
    """What COCO's evaluation gives: `ppfcos.engine.coco_metrics.CocoFigures`."""

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
