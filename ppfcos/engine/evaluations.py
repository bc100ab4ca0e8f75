"""The evaluations of a training: the figures of each, and the checkpoint that is the best so far."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paddle import nn

from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.data.loader import EvalLoader
from ppfcos.data.records import DetectionData, Record, stated_size
from ppfcos.deploy import Detections
from ppfcos.engine import checkpoint, distributed
from ppfcos.engine.amp import Precision
from ppfcos.engine.evaluator import evaluate
from ppfcos.engine.run_folder import BEST, best_whole
from ppfcos.engine.summary import Evaluation
from ppfcos.engine.writer import VisualDLLog
from ppfcos.metrics.coco import CocoMetrics
from ppfcos.visualize.drawing import draw_detections, draw_ground_truth, shrink

logger = logging.getLogger(__name__)

LONGEST_SIDE = 640  # pixels: enough to judge boxes by, and small in a log that keeps every evaluation's
LOWEST_SCORE = 0.3  # of a box that is drawn


class ValidationPictures:
    """Draws what was to be found in some images of a data set, and what was found.

    Args:
        data: the images, with their objects.
        number: how many of them, spread evenly over those with objects.
    """

    def __init__(self, data: DetectionData, number: int):
        self.records = _spread([record for record in data.records if len(record.get("gt_bbox", ()))], number)
        self.categories = data.categories

    def drawn(self, detections: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
        """Draw them; an image that cannot be read is left out, for the evaluation has named it.

        Args:
            detections: of all images, dicts as in COCO's result files.

        Yields:
            A name and the picture, [H, W, 3] uint8, blue first: the truth in white, the detections with a
            score of at least `LOWEST_SCORE` in the colours of their classes.
        """
        rows: dict[int, list] = {int(record["im_id"][0]): [] for record in self.records}
        for detection in detections:
            if detection["image_id"] in rows:
                rows[detection["image_id"]].append(detection)
        for position, record in enumerate(self.records, start=1):
            try:
                image = read_image(record["im_file"], stated_size(record))[..., ::-1]
            except ImageUnreadable:
                continue
            image, factor = shrink(image, LONGEST_SIDE)
            found = _detections(rows[int(record["im_id"][0])], self.categories, factor)
            picture = draw_detections(
                draw_ground_truth(image, record["gt_bbox"] * factor), found, LOWEST_SCORE
            )
            yield f"{position}_{Path(record['im_file']).name}", picture


def _spread(records: Sequence[Record], number: int) -> list[Record]:
    chosen = np.linspace(0, len(records) - 1, min(number, len(records))).round().astype(int)
    return [records[i] for i in chosen]


def _detections(rows: Sequence[Mapping], categories: Sequence[Mapping], factor: float) -> Detections:
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        boxes * factor,
        np.array([row["score"] for row in rows], np.float32),
        np.array([label_of[row["category_id"]] for row in rows], np.int64),
        tuple(category["name"] for category in categories),
    )


class Evaluations:
    """Evaluates a model while it is trained. All processes must call its methods.

    Args:
        cfg: the configuration.
        data: of EvalDataset; None in a training without evaluations.
        folder: of the run.

    Attributes:
        data: as given.
        made: those of this run.
        best: the best checkpoint's path and its box AP, which may be an earlier run's; None without any.
    """

    def __init__(self, cfg: Mapping[str, Any], data: DetectionData | None, folder: Path):
        place = distributed.world_size(), distributed.rank()
        self.data = data
        self.made: list[Evaluation] = []
        self.best: tuple[Path, float] | None = None
        self._loader = None if data is None else EvalLoader(cfg, data, "EvalReader", *place)
        self._cfg = cfg
        self._file = folder / f"{BEST}.pdparams"

    def find_best(self, run: str | None) -> None:
        """Go on from the best checkpoint that an earlier part of a run has left.

        The AP that each checkpoint notes decides; a run that was killed may not have copied the best one yet.

        Args:
            run: which the checkpoint must be of.
        """
        best = None
        with distributed.together():
            if distributed.is_main():
                best = best_whole(self._file.parent, run)
                if best is not None and best[0].name != BEST:
                    checkpoint.copy_checkpoint(best[0], BEST)
        best = distributed.from_main(best)
        self.best = None if best is None else (self._file, best[1])

    def evaluate(
        self, model: nn.Layer, precision: Precision, epochs: int, curves: VisualDLLog | None
    ) -> CocoMetrics:
        """Measure the model, and say, note and draw what came out.

        Args:
            model: left in the mode in which it came.
            precision: of the network.
            epochs: finished ones.
            curves: of the main process, if there are any.

        Returns:
            The figures.
        """
        uses = [] if curves is None else [lambda found: self._draw(found, epochs, curves)]
        figures = evaluate(model, self._loader, self.data, precision, self._cfg["coco_eval"], uses)
        logger.info("after epoch %d:\n%s", epochs, figures.table())
        self.made.append(Evaluation(epochs, figures))
        if curves is not None:
            curves.add_evaluation(figures, epochs)
        return figures

    def keep_if_best(self, path: Path, ap: float) -> None:
        """Note a checkpoint's AP beside it, and copy it if it is the best so far.

        Args:
            path: of the checkpoint.
            ap: its box AP.
        """
        is_best = self.best is None or ap > self.best[1]
        with distributed.together():
            if distributed.is_main():
                checkpoint.note_ap(path, ap)
                if is_best:
                    checkpoint.copy_checkpoint(path, BEST)
        if is_best:
            self.best = self._file, ap

    def _draw(self, detections: list[dict], epochs: int, curves: VisualDLLog) -> None:
        """A handful of the images, with what was found of all of them."""
        pictures = ValidationPictures(self.data, self._cfg["vdl_images"])
        curves.add_pictures(pictures.drawn(detections), epochs)
