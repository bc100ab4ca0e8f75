"""The figures by which COCO ranks detectors (cocodataset.org/#detection-eval).

Two libraries match boxes and give the precision at every recall: faster-coco-eval, and pycocotools as the
reference. The twelve figures are means over these, taken here in the same way for both, so that neither
library prints anything.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ppfcos.console import printable
from ppfcos.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

NO_OBJECTS = -1.0  # the figure where no object was to be found, as COCO has it

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class _Figure(NamedTuple):
    """What one of the twelve figures is a mean over."""

    is_precision: bool
    iou: float | None = None
    area: str = "all"
    max_detections: int = 100


RECALLS = tuple(np.linspace(0, 1, 101).tolist())  # at which COCO takes the precision
CURVE_NAMES = ("0.50", "0.75", "0.50:0.95")  # the IoU of a curve; the last is the mean over all of COCO's

_FIGURES = (
    _Figure(True),
    _Figure(True, iou=0.5),
    _Figure(True, iou=0.75),
    _Figure(True, area="small"),
    _Figure(True, area="medium"),
    _Figure(True, area="large"),
    _Figure(False, max_detections=1),
    _Figure(False, max_detections=10),
    _Figure(False),
    _Figure(False, area="small"),
    _Figure(False, area="medium"),
    _Figure(False, area="large"),
)


class _Curves(NamedTuple):
    """Curves: T thresholds of the IoU, R of the recall, K categories, A areas, M limits.

    Attributes:
        precision: [T, R, K, A, M]; −1 where no object was to be found.
        recall: [T, K, A, M]; likewise.
        thresholds: [T] of the IoU.
        areas: A names.
        limits: M numbers of detections an image.
        categories: K category ids.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray
    areas: Sequence[str]
    limits: Sequence[int]
    categories: Sequence[int]


@dataclass(frozen=True)
class CocoMetrics:
    """How well the boxes were found.

    Attributes:
        stats: the twelve figures in the order of `METRIC_NAMES`, from 0 to 1; −1 where no object was to be
            found.
        per_class: AP of each class by its name; −1 where the class has no object.
        precision: of each class that has objects, by its name: the precision at IoU 0.50 and each of COCO's
            recalls (`RECALLS`), which rise from 0 to 1. Their mean is the class's AP50.
        class_stats: the twelve figures of each class alone, by its category id, as `stats`.
        class_curves: of each class that has objects, by its category id: the precision at each of `RECALLS`,
            by the IoU it is at (`CURVE_NAMES`).
    """

    stats: tuple
    per_class: dict = field(default_factory=dict)
    precision: dict = field(default_factory=dict)
    class_stats: dict = field(default_factory=dict)
    class_curves: dict = field(default_factory=dict)

    @property
    def ap(self) -> float:
        """Box AP at IoU 0.50 to 0.95, by which models are compared."""
        return self.stats[0]

    def mean_precision(self) -> tuple:
        """Precision at IoU 0.50, the mean over the classes that have objects.

        Returns:
            A value for each of `RECALLS`; their mean is AP50. Empty where there is no object at all.
        """
        return tuple(np.mean(list(self.precision.values()), axis=0).tolist()) if self.precision else ()

    def named(self) -> dict[str, float]:
        """The twelve figures by their names.

        Returns:
            Such as {"AP": 0.389, "AP50": 0.581, ...}.
        """
        return dict(zip(METRIC_NAMES, self.stats))

    def table(self) -> str:
        """The twelve lines that COCO's users know.

        Returns:
            Lines, to the character as pycocotools prints them.
        """
        return "\n".join(_line(figure, value) for figure, value in zip(_FIGURES, self.stats))

    def class_table(self) -> str:
        """AP of every class.

        Returns:
            A line a class.
        """
        rows = [(printable(name), ap) for name, ap in self.per_class.items()]
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join(
            f" {name:<{width}}  AP = " + ("no objects" if ap == NO_OBJECTS else f"{ap:0.3f}")
            for name, ap in rows
        )


def evaluate_detections(
    ground_truth: dict, detections: Iterable[dict], backend: str = "faster_coco_eval"
) -> CocoMetrics:
    """Compare detections with the truth.

    Args:
        ground_truth: COCO's annotation file: `images`, `annotations` and `categories`.
        detections: COCO's result file: dicts of `image_id`, `category_id`, `bbox` [x, y, width, height] in
            pixels of the original image, and `score`.
        backend: `faster_coco_eval` or `pycocotools`; their figures differ by less than 1e-15.

    Returns:
        The figures. Without any detection they are zero.

    Raises:
        ConfigError: there is no such backend.
        DataError: a detection is of an image that the truth does not have.
    """
    if backend not in _BACKENDS:
        raise ConfigError(f"coco_eval is {backend!r}: it is {' or '.join(_BACKENDS)}")
    truth, found = _plain_truth(ground_truth), _plain_detections(ground_truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # both libraries print while they work
        curves = _BACKENDS[backend](truth, found)
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    per_class = {names[number]: _class_ap(curves, k) for k, number in enumerate(curves.categories)}
    precision = {names[number]: _class_precision(curves, k) for k, number in enumerate(curves.categories)}
    return CocoMetrics(
        tuple(_value(curves, figure) for figure in _FIGURES),
        per_class,
        {name: values for name, values in precision.items() if per_class[name] != NO_OBJECTS},
        {number: _class_stats(curves, k) for k, number in enumerate(curves.categories)},
        {
            number: _class_curves(curves, k)
            for k, number in enumerate(curves.categories)
            if _class_ap(curves, k) != NO_OBJECTS
        },
    )


def _plain_truth(ground_truth: dict) -> dict:
    """The truth with what the libraries need: an area for every object, and numbers that start from 1.

    Both libraries take an object with number 0 for none at all, and files that number from 0 are common.
    """
    annotations = [
        {
            "id": number,
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": annotation["bbox"],
            "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
            "iscrowd": annotation.get("iscrowd", 0),
        }
        for number, annotation in enumerate(ground_truth.get("annotations", []), start=1)
    ]
    return {**_frame(ground_truth), "annotations": annotations}


def _plain_detections(ground_truth: dict, detections: Iterable[dict]) -> dict:
    """The detections in the form of a truth."""
    images = {image["id"] for image in ground_truth["images"]}
    annotations = []
    for number, detection in enumerate(detections, start=1):
        if detection["image_id"] not in images:
            raise DataError(
                f"detections of image {detection['image_id']}, which the annotations do not have: "
                "they belong to another data set"
            )
        _, _, width, height = detection["bbox"]
        annotations.append({**detection, "id": number, "area": width * height, "iscrowd": 0})
    return {**_frame(ground_truth), "annotations": annotations}


def _frame(ground_truth: dict) -> dict:
    return {
        "images": [{"id": image["id"]} for image in ground_truth["images"]],
        "categories": [dict(category) for category in ground_truth["categories"]],
    }


def _curves_by_faster_coco_eval(truth: dict, found: dict) -> _Curves:
    from faster_coco_eval import COCO, COCOeval_faster

    evaluation = COCOeval_faster(
        _indexed(COCO, truth), _indexed(COCO, found), iouType="bbox", print_function=logger.debug
    )
    return _run(evaluation)


def _curves_by_pycocotools(truth: dict, found: dict) -> _Curves:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _run(COCOeval(_indexed(COCO, truth), _indexed(COCO, found), iouType="bbox"))


_BACKENDS = {"faster_coco_eval": _curves_by_faster_coco_eval, "pycocotools": _curves_by_pycocotools}


def _indexed(coco_class: type, dataset: dict) -> object:
    coco = coco_class()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _run(evaluation) -> _Curves:
    evaluation.evaluate()
    evaluation.accumulate()
    params = evaluation.params
    return _Curves(
        np.asarray(evaluation.eval["precision"]),
        np.asarray(evaluation.eval["recall"]),
        np.asarray(params.iouThrs),
        params.areaRngLbl,
        params.maxDets,
        [int(number) for number in params.catIds],
    )


def _value(curves: _Curves, figure: _Figure) -> float:
    values = curves.precision if figure.is_precision else curves.recall
    if figure.iou is not None:
        values = values[np.isclose(curves.thresholds, figure.iou)]
    return _mean(values[..., curves.areas.index(figure.area), curves.limits.index(figure.max_detections)])


def _class_ap(curves: _Curves, k: int) -> float:
    return _mean(curves.precision[:, :, k, curves.areas.index("all"), -1])


def _class_precision(curves: _Curves, k: int) -> tuple:
    return _class_curves(curves, k)["0.50"]


def _class_curves(curves: _Curves, k: int) -> dict[str, tuple]:
    at_all = curves.precision[:, :, k, curves.areas.index("all"), -1]
    at_50, at_75 = (at_all[int(np.argmin(np.abs(curves.thresholds - iou)))] for iou in (0.5, 0.75))
    lines = (at_50, at_75, at_all.mean(axis=0))
    return {name: tuple(line.tolist()) for name, line in zip(CURVE_NAMES, lines)}


def _class_stats(curves: _Curves, k: int) -> tuple:
    """The twelve figures of one class: the curves of all, with the other classes left out."""
    alone = curves._replace(precision=curves.precision[:, :, [k]], recall=curves.recall[:, [k]])
    return tuple(_value(alone, figure) for figure in _FIGURES)


def _mean(values: np.ndarray) -> float:
    known = values[values > NO_OBJECTS]
    return float(np.mean(known)) if known.size else NO_OBJECTS


def _line(figure: _Figure, value: float) -> str:
    name = "Average Precision  (AP)" if figure.is_precision else "Average Recall     (AR)"
    iou = "0.50:0.95" if figure.iou is None else f"{figure.iou:0.2f}"
    limit = figure.max_detections
    return f" {name} @[ IoU={iou:<9} | area={figure.area:>6} | maxDets={limit:>3} ] = {value:0.3f}"
