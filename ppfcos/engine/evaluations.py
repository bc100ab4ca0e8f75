"""The evaluations of a training: the figures of each, and the checkpoint that is the best so far."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle import nn

from ppfcos.data.loader import EvalLoader
from ppfcos.data.records import DetectionData
from ppfcos.engine import checkpoint, distributed
from ppfcos.engine.coco_metrics import CocoFigures
from ppfcos.engine.evaluator import evaluate
from ppfcos.engine.precision import Precision
from ppfcos.engine.run_folder import BEST, best_whole
from ppfcos.engine.summary import Evaluation
from ppfcos.engine.validation_pictures import ValidationPictures
from ppfcos.engine.visualdl_log import VisualDLLog

logger = logging.getLogger(__name__)


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
    ) -> CocoFigures:
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
