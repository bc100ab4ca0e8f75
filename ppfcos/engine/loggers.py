"""Metric loggers: what a training records besides its text log, for VisualDL and for loggers of your own.

`loggers: [VisualDL, MyLogger]` names them. A logger of your own is a registered class in a file that the
configuration names under `imports`; docs/extending.md has an example.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from ppdet.core.workspace import create

from ppfcos.config.keys import VISUALDL
from ppfcos.engine.progress import Report
from ppfcos.errors import ConfigError, PPFCOSError, one_line
from ppfcos.metrics.coco import CocoMetrics

logger = logging.getLogger(__name__)

STEP_PREFIX = "train/"  # of names whose position is a step; that of all others is an epoch
# Hyper-parameters, in this order; `*` is the name of a class or an index of a list.
HPARAMS = (
    *("filename", "architecture", "*.depth", "*.norm_type", "pretrain_weights", "epoch", "seed"),
    *("TrainReader.total_batch_size", "TrainReader.accumulate_steps", "lr_batch_size"),
    *("TrainReader.sample_transforms.*.target_size", "LearningRate.base_lr"),
    *("LearningRate.schedulers.*.milestones", "LearningRate.schedulers.*.max_epochs"),
    *("LearningRate.schedulers.*.steps", "OptimizerBuilder.optimizer.type"),
    *("OptimizerBuilder.optimizer.momentum", "OptimizerBuilder.regularizer.factor"),
    *("use_ema", "ema_decay", "amp", "*.center_sampling_radius", "*.box_loss", "*.quality"),
)


class MetricLogger:
    """Base class of metric loggers. Override what you need; the methods here do nothing.

    Only rank 0 has loggers. If a method other than `begin` raises an exception, the logger is dropped with a
    warning and the training goes on.
    """

    def begin(self, folder: Path, steps: int, epochs: int) -> None:
        """Prepare to log.

        Args:
            folder: of the run; it exists.
            steps: finished steps. In a resumed run, later records of the interrupted run are repeated.
            epochs: finished epochs.
        """

    def add_hparams(self, values: Mapping[str, int | float | str]) -> None:
        """Log the hyper-parameters, once after `begin`."""

    def add_scalars(self, values: Mapping[str, float], position: int) -> None:
        """Log values by name.

        Args:
            values: `train/loss`, `train/learning_rate` and so on, or `eval/AP` and so on.
            position: finished steps of names that begin with `train/`, else finished epochs.
        """

    def add_images(self, images: Iterable[tuple[str, np.ndarray]], epochs: int) -> None:
        """Log named BGR images [H, W, 3] uint8: validation images with ground truth and detections."""

    def add_text(self, name: str, text: str, epochs: int) -> None:
        """Log a text of several lines: `config`, the configuration, and `eval/table`."""

    def add_evaluation(self, metrics: CocoMetrics, epochs: int) -> None:
        """Log the COCO metrics, AP of each class, and the table.

        Without objects, a metric is -1, as in COCO.
        """
        values = {f"eval/{name}": value for name, value in metrics.named().items()}
        values.update({f"eval_AP_of_class/{name}": value for name, value in metrics.per_class.items()})
        self.add_scalars(values, epochs)
        self.add_text("eval/table", metrics.table(), epochs)

    def close(self) -> None:
        """Finish, at the end of the training or after an error."""

    def summary(self) -> str:
        """Return a line for the end of the training, such as how to show the log; empty: none."""
        return ""


class MetricLoggers:
    """Passes records on to several loggers.

    Args:
        loggers: of the configuration.

    Attributes:
        loggers: those that have not failed.
    """

    def __init__(self, loggers: Iterable[MetricLogger]):
        self.loggers = list(loggers)

    def add_step(self, report: Report) -> None:
        """Log losses, learning rate, gradient norm, speed and memory of a report."""
        values = {
            **report.losses,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "images_per_second": report.images_per_second,
            "data_seconds": report.data_seconds,
            "memory_gb": report.memory / 2**30,
        }
        known = {f"{STEP_PREFIX}{name}": value for name, value in values.items() if not math.isnan(value)}
        self.call("add_scalars", known, report.global_step)

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of each logger."""
        for each in list(self.loggers):
            try:
                getattr(each, method)(*arguments)
            except Exception as error:  # whatever a logger raises
                self.loggers.remove(each)
                logger.warning(
                    "the logger %s failed and is not used any more: %s",
                    type(each).__name__,
                    one_line(error, 400),
                )


def build_loggers(cfg: Mapping[str, Any], folder: Path, steps: int, epochs: int) -> MetricLoggers:
    """Build and begin the loggers of the keys `loggers` and `use_vdl`.

    Raises:
        ConfigError: a name is no logger.
        OutputError: a logger cannot write.
    """
    names = [VISUALDL] if cfg["use_vdl"] else []
    loggers = []
    for name in dict.fromkeys([*names, *(cfg.get("loggers") or ())]):
        each = _build(name, cfg)
        try:
            each.begin(folder, steps, epochs)
        except PPFCOSError:
            raise
        except Exception as error:
            raise ConfigError(f"loggers: {name} cannot begin: {one_line(error)}") from error
        loggers.append(each)
    return MetricLoggers(loggers)


def _build(name: str, cfg: Mapping[str, Any]) -> MetricLogger:
    if name == VISUALDL:
        from ppfcos.engine.visualdl_logger import VisualDLLogger  # imported late, since it takes long

        return VisualDLLogger(cfg.get("vdl_log_dir"))
    try:
        built = create(name)
    except Exception as error:
        raise ConfigError(f"loggers: {name} cannot be built: {one_line(error)}") from error
    if not isinstance(built, MetricLogger):
        raise ConfigError(
            f"loggers: {name} is no logger: derive it from ppfcos.engine.loggers.MetricLogger, or name "
            f"{VISUALDL}"
        )
    return built


def select_hparams(cfg: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Return the values of `HPARAMS` by the last two parts of their names, such as `LearningRate base_lr`.

    VisualDL's table cannot show more, and leaves columns empty whose names have dots. Lists and booleans
    are text.
    """
    parts = [part for part in cfg[cfg["architecture"]].values() if isinstance(part, str)]
    names = {pattern.split(".")[0] for pattern in HPARAMS} | set(parts)
    values = dict(_flatten({name: cfg[name] for name in names if name in cfg}))
    chosen = [name for pattern in HPARAMS for name in sorted(values) if fnmatchcase(name, pattern)]
    return {" ".join(name.split(".")[-2:]): values[name] for name in chosen}


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, int | float | str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        yield from _flatten({item.get("name", str(i)): item for i, item in enumerate(value)}, name)
    elif isinstance(value, bool):
        yield name, str(value).lower()
    elif value is not None:
        yield name, value if isinstance(value, (int, float, str)) else str(value)
