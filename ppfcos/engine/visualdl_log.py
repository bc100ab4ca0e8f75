"""The curves of a training, for VisualDL."""

from __future__ import annotations

from pathlib import Path

from ppfcos import environment
from ppfcos.engine.coco_metrics import CocoFigures
from ppfcos.engine.files import require_writable
from ppfcos.engine.progress import Report


class VisualDLLog:
    """Writes records that `visualdl --logdir FOLDER` shows.

    Args:
        folder: made where missing.

    Raises:
        OutputError: it cannot be written to.
    """

    def __init__(self, folder: Path | str):
        require_writable(folder)
        with environment.quiet_imports():
            from visualdl import LogWriter
        self.folder = Path(folder)
        self._writer = LogWriter(logdir=str(folder))

    def add_step(self, report: Report) -> None:
        """Losses, learning rate and speed, over the steps.

        Args:
            report: of the steps since the report before.
        """
        values = {
            **report.losses,
            "learning_rate": report.learning_rate,
            "images_per_second": report.images_per_second,
            "data_seconds": report.data_seconds,
        }
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, report.global_step)

    def add_figures(self, figures: CocoFigures, epochs: int) -> None:
        """The twelve COCO figures, over the epochs.

        Args:
            figures: of an evaluation.
            epochs: finished before it.
        """
        for name, value in figures.named().items():
            self._writer.add_scalar(f"eval/{name}", value, epochs)

    def close(self) -> None:
        """Write what is not yet on the disk."""
        self._writer.close()
