"""Evaluation on a data set: of a model, of an exported bundle, and during a training."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppfcos import console
from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.data.loader import EvalLoader
from ppfcos.data.records import DetectionData, Record, stated_size
from ppfcos.deploy import Detections, Detector
from ppfcos.engine import checkpoint, distributed
from ppfcos.engine.amp import Precision
from ppfcos.engine.checkpoint_files import EVALUATIONS_FILE
from ppfcos.engine.loggers import MetricLoggers
from ppfcos.engine.run_folder import BEST, find_best
from ppfcos.engine.summary import Evaluation
from ppfcos.errors import DataError
from ppfcos.fileio import replacing
from ppfcos.json_files import JSONError, read_json
from ppfcos.metrics.coco import MAX_DETECTIONS, METRIC_NAMES, CocoMetrics, evaluate_detections
from ppfcos.visualize.drawing import draw_detections, draw_ground_truth, shrink

logger = logging.getLogger(__name__)

DETECTIONS_FILE = "bbox.json"  # PaddleDetection's name
MAX_IMAGE_SIDE = 640  # pixels, of validation images in the metric loggers
MIN_DRAWN_SCORE = 0.3

# Functions that rank 0 calls with the detections of all images, as dicts of COCO's result files.
Uses = Sequence[Callable[[list[dict]], object]]


def evaluate(
    model: nn.Layer,
    loader: Any,
    data: Any,
    precision: Precision,
    max_detections: int = MAX_DETECTIONS,
    uses: Uses = (),
) -> CocoMetrics:
    """Run the model on its part of the images and compute the COCO metrics. All ranks must call it.

    Returns:
        The metrics, on all ranks. An unreadable image counts as one without detections.

    Raises:
        DataError: an image cannot be transformed, or all are unreadable.
        OutputError: one of `uses` cannot write.
    """
    detections: list[dict] = []
    with distributed.collective_error_check():
        detections += detect(model, loader, data.categories, precision)
    return compute_metrics(detections, loader.bad_images, data, max_detections, uses)


def compute_metrics(
    detections: list[dict], bad_images: list[str], data: Any, max_detections: int, uses: Uses = ()
) -> CocoMetrics:
    """Gather the detections and unreadable images ('path: reason') of all ranks, and compute the metrics."""
    detections, unreadable = _gather_lists(detections), _gather_lists(bad_images)
    metrics = None
    with distributed.collective_error_check():
        if distributed.is_main():
            for image in unreadable:
                logger.warning("an unreadable image counts as one without detections: %s", image)
            if unreadable and len(unreadable) == len(data):
                raise DataError(
                    f"none of the {len(data)} images to evaluate can be decoded; the first one: "
                    f"{unreadable[0]}"
                )
            for use in uses:
                use(detections)
            metrics = evaluate_detections(data.coco_ground_truth(), detections, max_detections)
    return distributed.broadcast_object(metrics)


def _gather_lists(values: list) -> list:
    return [item for part in distributed.all_gather_object(values) for item in part]


def detect(model: nn.Layer, loader: Any, categories: Sequence[dict], precision: Precision) -> list[dict]:
    """Run the model on the batches of this rank.

    Returns:
        Dicts as in COCO's result files.
    """
    was_training = model.training
    model.eval()
    detections: list[dict] = []
    try:
        with paddle.no_grad(), precision.autocast(), console.bar("evaluating", len(loader)) as bar:
            for batch in loader:
                outputs = model(batch)
                # [N, 6] label, score, x0, y0, x1, y1; counts [B] of the images
                rows, counts = outputs["bbox"].numpy(), outputs["bbox_num"].numpy()
                images = np.repeat(batch["im_id"].numpy().reshape(-1), counts)
                detections += _as_coco(images, rows[:, 0].astype(int), rows[:, 1], rows[:, 2:], categories)
                bar.advance()
    finally:
        if was_training:
            model.train()
    return detections


def _as_coco(
    images: np.ndarray, labels: np.ndarray, scores: np.ndarray, boxes: np.ndarray, categories: Sequence[dict]
) -> list[dict]:
    """Convert [N] image ids, labels and scores and [N, 4] boxes x0, y0, x1, y1 to COCO's dicts."""
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    rows = zip(images.tolist(), labels.tolist(), boxes.tolist(), scores.tolist())
    return [
        {"image_id": image, "category_id": categories[label]["id"], "bbox": box, "score": score}
        for image, label, box, score in rows
    ]


def write_detections(folder: Path | str, detections: list[dict]) -> Path:
    """Write COCO's result file to a folder, and return its path."""
    path = Path(folder) / DETECTIONS_FILE
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(detections), encoding="utf-8")
    logger.info("detections: %s", path)
    return path


def read_detections(folder: Path | str) -> list[dict]:
    """Read COCO's result file of a folder; raise a DataError if it is missing or has other contents."""
    path = Path(folder) / DETECTIONS_FILE
    try:
        detections = read_json(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): write it first, with --output_eval {folder}"
        ) from error
    except JSONError as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(detections, list):
        raise DataError(f"{path} is no list of detections: write it again, with --output_eval {folder}")
    wrong = next((i for i, each in enumerate(detections) if not _is_detection(each)), None)
    if wrong is not None:
        raise DataError(
            f"{path}: entry {wrong} is no detection, which has whole numbers image_id and category_id, "
            "a number score and a bbox of four numbers"
        )
    return detections


def _is_detection(entry: Any) -> bool:
    """Whether it is as in COCO's result files, with finite numbers that fit into 64 bits."""
    if not isinstance(entry, dict):
        return False
    box = entry.get("bbox")
    numbers = (entry.get("score"), *box) if isinstance(box, list) and len(box) == 4 else ()
    ids = (entry.get("image_id"), entry.get("category_id"))
    return (
        len(numbers) == 5
        and all(type(value) in (int, float) and abs(value) < 1e300 for value in numbers)
        and all(type(value) is int and abs(value) < 2**63 for value in ids)
    )


# A bundle ---------------------------------------------------------------------------------------------------


def evaluate_bundle(
    detector: Detector, data: Any, max_detections: int, uses: Uses = ()
) -> tuple[CocoMetrics, float]:
    """Evaluate an exported bundle. All ranks must call it; each takes a part of the images.

    Returns:
        The metrics, as `evaluate`; and images per second of all ranks together, decoding included, without
        unreadable images.

    Raises:
        DataError: all images are unreadable.
        OutputError: one of `uses` cannot write.
    """
    positions = range(distributed.rank(), len(data), distributed.world_size())
    results: list[dict] = []
    bad_images: list[str] = []
    with distributed.collective_error_check():
        for _ in detector.detect(_read(data, positions[:1], [])):  # warm-up: the first run also prepares
            pass
        started = time.perf_counter()
        with console.bar("evaluating", len(positions)) as bar:
            for position, _, found in detector.detect(_read(data, positions, bad_images)):
                images = np.full(len(found.labels), data.record(position)["im_id"][0])
                boxes = found.boxes.astype(float)
                results += _as_coco(images, found.labels, found.scores, boxes, data.categories)
                bar.advance()
        seconds = time.perf_counter() - started
    metrics = compute_metrics(results, bad_images, data, max_detections, uses)
    slowest = max(distributed.all_gather_object(seconds))
    decoded = len(data) - sum(distributed.all_gather_object(len(bad_images)))
    return metrics, decoded / slowest


def _read(data: Any, positions: Iterable[int], bad_images: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield positions and BGR images, rotated as annotated; add unreadable ones to `bad_images`."""
    for position in positions:
        record = data.record(position)
        height, width = int(record.get("h", 0)), int(record.get("w", 0))
        try:
            image = read_image(record["im_file"], (height, width) if height and width else None)
        except ImageUnreadable as error:
            bad_images.append(str(error))
            continue
        yield position, image[:, :, ::-1]


# During a training ------------------------------------------------------------------------------------------


class Validation:
    """Evaluates the model during a training, and keeps the best checkpoint. All ranks must call its methods.

    Args:
        cfg: the configuration.
        data: of EvalDataset; None in a training without evaluations.
        folder: of the run.

    Attributes:
        data: as given.
        results: evaluations of this run.
        best: path and box AP of the best checkpoint, also of an earlier part of the run; None without one.
    """

    def __init__(self, cfg: Mapping[str, Any], data: DetectionData | None, folder: Path):
        place = distributed.world_size(), distributed.rank()
        self.data = data
        self.results: list[Evaluation] = []
        self.best: tuple[Path, float] | None = None
        self._loader = None if data is None else EvalLoader(cfg, data, "EvalReader", *place)
        self._cfg = cfg
        self._file = folder / f"{BEST}.pdparams"
        self._run: str | None = None

    def begin(self, run: str | None, epochs: int) -> None:
        """Begin the evaluations of a run, or continue them after so many epochs."""
        self._run = run
        if epochs:
            self.results = read_evaluations(self._file.parent, run, epochs)
        self.find_best(run)

    def find_best(self, run: str | None) -> None:
        """Find the best checkpoint of an earlier part of a run.

        The AP in each checkpoint decides; a killed run may not have copied the best one yet.
        """
        best = None
        with distributed.collective_error_check():
            if distributed.is_main():
                best = find_best(self._file.parent, run)
                if best is not None and best[0].name != BEST:
                    checkpoint.copy_checkpoint(best[0], BEST)
        best = distributed.broadcast_object(best)
        self.best = None if best is None else (self._file, best[1])

    def evaluate(
        self, model: nn.Layer, precision: Precision, epochs: int, loggers: MetricLoggers
    ) -> CocoMetrics:
        """Evaluate the model, and log, record and draw the results."""

        def draw(detections: list[dict]) -> None:
            images = ValidationImages(self.data, self._cfg["vdl_images"])
            loggers.call("add_images", list(images.draw(detections)), epochs)

        uses = [draw] if loggers.loggers else []
        metrics = evaluate(model, self._loader, self.data, precision, self._cfg["max_detections"], uses)
        logger.info("after epoch %d:\n%s", epochs, metrics.table())
        others = [each for each in self.results if each.epochs != epochs]
        self.results = [*others, Evaluation(epochs, metrics)]
        with distributed.collective_error_check():
            if distributed.is_main():
                write_evaluations(self._file.parent, self._run, self.results)
        loggers.call("add_evaluation", metrics, epochs)
        return metrics

    def keep_if_best(self, path: Path, ap: float) -> None:
        """Write the box AP into a checkpoint's record, and copy the checkpoint if it is the best so far."""
        is_best = self.best is None or ap > self.best[1]
        with distributed.collective_error_check():
            if distributed.is_main():
                checkpoint.note_ap(path, ap)
                if is_best:
                    checkpoint.copy_checkpoint(path, BEST)
        if is_best:
            self.best = self._file, ap


def write_evaluations(folder: Path, run: str | None, results: Sequence[Evaluation]) -> None:
    """Write the evaluations of a run, so that a resumed run has them all in its table."""
    content = {"run": run, "evaluations": [[each.epochs, list(each.metrics.stats)] for each in results]}
    with replacing(folder / EVALUATIONS_FILE) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")


def read_evaluations(folder: Path, run: str | None, epochs: int) -> list[Evaluation]:
    """Return the evaluations of a run in its first epochs, none if the file is missing or damaged."""
    try:
        content = read_json(folder / EVALUATIONS_FILE)
        found = [
            Evaluation(int(after), CocoMetrics(tuple(map(float, stats))))
            for after, stats in content["evaluations"]
        ]
        is_whole = all(len(each.metrics.stats) == len(METRIC_NAMES) for each in found)
    except FileNotFoundError:
        return []
    except (OSError, JSONError, LookupError, TypeError, ValueError, OverflowError):
        is_whole = False
    if not is_whole:
        logger.warning("%s is damaged: the table lacks earlier evaluations", folder / EVALUATIONS_FILE)
        return []
    return [each for each in found if content["run"] == run and each.epochs <= epochs]


class ValidationImages:
    """Draws ground truth and detections on some images of a data set."""

    def __init__(self, data: DetectionData, number: int):
        records: list[Record] = [record for record in data.records if len(record.get("gt_bbox", ()))]
        chosen = np.linspace(0, len(records) - 1, min(number, len(records))).round().astype(int)
        self.records = [records[i] for i in chosen]
        self.categories = data.categories

    def draw(self, detections: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield a name and a BGR image [H, W, 3] uint8 for each readable image.

        The ground truth is white; detections of at least `MIN_DRAWN_SCORE` have the colors of their classes.
        """
        rows: dict[int, list] = {int(record["im_id"][0]): [] for record in self.records}
        for detection in detections:
            if detection["image_id"] in rows:
                rows[detection["image_id"]].append(detection)
        for position, record in enumerate(self.records, start=1):
            try:
                image = read_image(record["im_file"], stated_size(record))[..., ::-1]
            except ImageUnreadable:  # the evaluation warns of it
                continue
            image, factor = shrink(image, MAX_IMAGE_SIDE)
            found = _from_coco(rows[int(record["im_id"][0])], self.categories, factor)
            drawn = draw_detections(
                draw_ground_truth(image, record["gt_bbox"] * factor), found, MIN_DRAWN_SCORE
            )
            yield f"{position}_{Path(record['im_file']).name}", drawn


def _from_coco(rows: Sequence[Mapping], categories: Sequence[Mapping], factor: float) -> Detections:
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        boxes * factor,
        np.array([row["score"] for row in rows], np.float32),
        np.array([label_of[row["category_id"]] for row in rows], np.int64),
        tuple(category["name"] for category in categories),
    )
