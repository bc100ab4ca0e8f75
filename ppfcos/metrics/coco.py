"""COCO's detection metrics (cocodataset.org/#detection-eval), computed by faster-coco-eval."""

from __future__ import annotations

import collections
import contextlib
import io
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ppfcos.console import printable
from ppfcos.errors import DataError

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 100  # COCO's limit, per image and class
NO_OBJECTS = -1.0  # COCO's value of a metric where there is no object
RECALLS = tuple(np.linspace(0, 1, 101).tolist())  # at which COCO samples the precision
CURVE_NAMES = ("0.50", "0.75", "0.50:0.95")  # IoU of a precision curve; the last is the mean over all ten


class _Metric(NamedTuple):
    """What one of the twelve metrics is the mean of."""

    is_precision: bool
    iou: float | None = None
    area: str = "all"
    max_detections: int | None = None  # None: the limit of the evaluation


_METRICS = {
    "AP": _Metric(True),
    "AP50": _Metric(True, iou=0.5),
    "AP75": _Metric(True, iou=0.75),
    "APs": _Metric(True, area="small"),
    "APm": _Metric(True, area="medium"),
    "APl": _Metric(True, area="large"),
    "AR1": _Metric(False, max_detections=1),
    "AR10": _Metric(False, max_detections=10),
    "AR100": _Metric(False),
    "ARs": _Metric(False, area="small"),
    "ARm": _Metric(False, area="medium"),
    "ARl": _Metric(False, area="large"),
}
METRIC_NAMES = tuple(_METRICS)


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's metrics of an evaluation, from 0 to 1; NO_OBJECTS where there is no object.

    Attributes:
        stats: the twelve metrics, in the order of METRIC_NAMES.
        per_class: AP of each class, by name.
        precision: precision at IoU 0.50 at each of RECALLS, by the name of each class that has objects.
        class_stats: the twelve metrics of each class, by category id.
        class_curves: precision at each of RECALLS, by the category id of each class that has objects and by
            CURVE_NAMES.
        max_detections: limit of detections per image and class for all metrics but AR1 and AR10. "AR100" is
            the recall at this limit.
    """

    stats: tuple
    per_class: dict = field(default_factory=dict)
    precision: dict = field(default_factory=dict)
    class_stats: dict = field(default_factory=dict)
    class_curves: dict = field(default_factory=dict)
    max_detections: int = MAX_DETECTIONS

    @property
    def ap(self) -> float:
        """Box AP at IoU 0.50:0.95."""
        return self.stats[0]

    def mean_precision(self) -> tuple:
        """Precision at IoU 0.50 at each of RECALLS, the mean over classes with objects; empty without any."""
        return tuple(np.mean(list(self.precision.values()), axis=0).tolist()) if self.precision else ()

    def named(self) -> dict[str, float]:
        """The twelve metrics by name, such as {"AP": 0.389, "AP50": 0.581, ...}."""
        return dict(zip(METRIC_NAMES, self.stats))

    def table(self) -> str:
        """The twelve lines exactly as pycocotools prints them."""
        rows = zip(_METRICS.values(), self.stats)
        return "\n".join(_summary_line(metric, value, self.max_detections) for metric, value in rows)

    def class_table(self) -> str:
        """AP of each class, one per line."""
        rows = [(printable(name), ap) for name, ap in self.per_class.items()]
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join(
            f" {name:<{width}}  AP = " + ("no objects" if ap == NO_OBJECTS else f"{ap:0.3f}")
            for name, ap in rows
        )


def evaluate_detections(
    ground_truth: dict, detections: Iterable[dict], max_detections: int = MAX_DETECTIONS
) -> CocoMetrics:
    """Compute COCO's metrics.

    Args:
        ground_truth: COCO annotations: `images`, `annotations` and `categories`.
        detections: COCO results: dicts of `image_id`, `category_id`, `bbox` [x, y, width, height] in pixels
            of the original image, and `score`.
        max_detections: limit per image and class; the best scores count. More than 10.

    Raises:
        DataError: a detection has an image or a category that the annotations do not have.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    datasets = _annotations(ground_truth), _results(ground_truth, detections)
    _warn_of_crowded_images(datasets[0]["annotations"], max_detections)
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints its progress
        indexed = []
        for dataset in datasets:
            coco = COCO()
            coco.dataset = dataset
            coco.createIndex()
            indexed.append(coco)
        evaluation = COCOeval_faster(*indexed, iouType="bbox", print_function=logger.debug)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return _metrics(evaluation, {category["id"]: category["name"] for category in ground_truth["categories"]})


def _metrics(evaluation: Any, names: dict[int, str]) -> CocoMetrics:
    """Reduce the library's arrays: precision [IoU, recall, class, area, limit], recall without its axis."""
    params = evaluation.params
    precision, recall = (np.asarray(evaluation.eval[key]) for key in ("precision", "recall"))

    def values(classes: slice) -> tuple:
        stats = []
        precisions = np.ascontiguousarray(precision[:, :, classes])  # of one class: much faster
        recalls = np.ascontiguousarray(recall[:, classes])
        for metric in _METRICS.values():
            array = precisions if metric.is_precision else recalls
            if metric.iou is not None:
                array = array[np.isclose(params.iouThrs, metric.iou)]
            limit = params.maxDets.index(metric.max_detections or params.maxDets[-1])
            stats.append(_mean(array[..., params.areaRngLbl.index(metric.area), limit]))
        return tuple(stats)

    class_stats, class_curves = {}, {}
    for k, category in enumerate(map(int, params.catIds)):
        class_stats[category] = values(slice(k, k + 1))
        if class_stats[category][0] != NO_OBJECTS:
            at_all = precision[:, :, k, params.areaRngLbl.index("all"), -1]
            at_50, at_75 = (at_all[np.argmin(np.abs(params.iouThrs - iou))] for iou in (0.5, 0.75))
            curves = (at_50, at_75, at_all.mean(axis=0))
            class_curves[category] = {name: tuple(ys.tolist()) for name, ys in zip(CURVE_NAMES, curves)}
    return CocoMetrics(
        values(slice(None)),
        {names[category]: stats[0] for category, stats in class_stats.items()},
        {names[category]: curves[CURVE_NAMES[0]] for category, curves in class_curves.items()},
        class_stats,
        class_curves,
        params.maxDets[-1],
    )


def _annotations(ground_truth: dict) -> dict:
    """Add missing areas, and number annotations from 1: the library ignores the object with id 0."""
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
    return {**_images_and_categories(ground_truth), "annotations": annotations}


def _results(ground_truth: dict, detections: Iterable[dict]) -> dict:
    """Turn detections into annotations."""
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"]: category["name"] for category in ground_truth["categories"]}
    annotations = []
    for number, detection in enumerate(detections, start=1):
        if detection["image_id"] not in images:
            raise DataError(
                f"there are detections of image {detection['image_id']}, which the annotations do not have: "
                "use the detections of this data set"
            )
        if detection["category_id"] not in categories:
            known = ", ".join(f"{number} {printable(name)}" for number, name in list(categories.items())[:10])
            raise DataError(
                f"there are detections of category {detection['category_id']}, which the annotations do not "
                f"have: category_id must be the id of a category ({known}{', …' * (len(categories) > 10)}), "
                "not its position"
            )
        _, _, width, height = detection["bbox"]
        annotations.append({**detection, "id": number, "area": width * height, "iscrowd": 0})
    return {**_images_and_categories(ground_truth), "annotations": annotations}


def _warn_of_crowded_images(annotations: Iterable[dict], limit: int) -> None:
    """Warn of images in which no detector can reach a recall of 1."""
    counts = collections.Counter(
        (each["image_id"], each["category_id"]) for each in annotations if not each["iscrowd"]
    )
    crowded = {image for (image, _), count in counts.items() if count > limit}
    if crowded:
        logger.warning(
            "%d images have more than %d objects of a class (up to %d), but the evaluation counts the best "
            "%d detections of each: raise max_detections",
            len(crowded),
            limit,
            max(counts.values()),
            limit,
        )


def _images_and_categories(ground_truth: dict) -> dict:
    return {
        "images": [{"id": image["id"]} for image in ground_truth["images"]],
        "categories": [dict(category) for category in ground_truth["categories"]],
    }


def _mean(values: np.ndarray) -> float:
    known = values[values > NO_OBJECTS]
    return float(np.mean(known)) if known.size else NO_OBJECTS


def _summary_line(metric: _Metric, value: float, max_detections: int) -> str:
    name = "Average Precision  (AP)" if metric.is_precision else "Average Recall     (AR)"
    iou = "0.50:0.95" if metric.iou is None else f"{metric.iou:0.2f}"
    limit = metric.max_detections or max_detections
    return f" {name} @[ IoU={iou:<9} | area={metric.area:>6} | maxDets={limit:>3} ] = {value:0.3f}"
