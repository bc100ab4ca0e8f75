"""Writes the VisualDL log of a training: scalars, precision-recall curves, images and hyper-parameters."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from ppfcos import environment
from ppfcos.engine.progress import Report
from ppfcos.fileio import replacing, require_writable
from ppfcos.metrics.coco import RECALLS, CocoMetrics
from ppfcos.visualize.drawing import encode_image

# VisualDL's public LogWriter can neither continue a log without repeating steps, nor take precision and
# recall as COCO has them, nor survive a full disk without half a record.
with environment.quiet_imports(), environment.temporary_home():
    from google.protobuf.message import DecodeError
    from visualdl.component import base_component as records
    from visualdl.proto.record_pb2 import Record
    from visualdl.reader.record_reader import RecordReader
    from visualdl.writer.record_writer import RecordWriter

logger = logging.getLogger(__name__)

# Hyper-parameters in the log, in this order; `*` is the name of a class or an index of a list.
HPARAMS = (
    "filename",
    "architecture",
    "*.depth",
    "*.norm_type",
    "pretrain_weights",
    "epoch",
    "seed",
    "TrainReader.total_batch_size",
    "TrainReader.accumulate_steps",
    "lr_batch_size",
    "TrainReader.sample_transforms.*.target_size",
    "LearningRate.base_lr",
    "LearningRate.schedulers.*.milestones",
    "LearningRate.schedulers.*.max_epochs",
    "LearningRate.schedulers.*.steps",
    "OptimizerBuilder.optimizer.type",
    "OptimizerBuilder.optimizer.momentum",
    "OptimizerBuilder.regularizer.factor",
    "use_ema",
    "ema_decay",
    "amp",
    "*.center_sampling_radius",
    "*.box_loss",
    "*.quality",
)
STEP_PREFIX = "train/"  # of tags whose position is a step; that of all others is an epoch
COMPARED = ("eval/AP", "eval/AP50", "train/loss")  # scalars that VisualDL shows beside the hyper-parameters
MAX_CLASS_CURVES = 20  # with more classes, only the mean has a precision-recall curve


def select_hparams(cfg: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Return the values of `HPARAMS` by the last two parts of their names, such as `LearningRate base_lr`.

    VisualDL's table has no room for more, and leaves columns empty whose names have dots. Lists and booleans
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


class VisualDLWriter:
    """Writes records that `visualdl --logdir FOLDER` shows. Every call writes at once, all or nothing.

    Args:
        folder: it is created.
        hparams: hyper-parameters by name.
        steps: finished steps of a resumed run. The existing log is continued after them: later records of the
            interrupted run are dropped.
        epochs: finished epochs of a resumed run.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        hparams: Mapping[str, int | float | str],
        steps: int = 0,
        epochs: int = 0,
    ):
        require_writable(folder)
        self.folder = Path(folder)
        self.failed = False
        self.path = self._begin_file(steps, epochs)
        self._write([records.hparam(self.path.name, dict(hparams), COMPARED, _now())])

    def _begin_file(self, steps: int, epochs: int) -> Path:
        """Make a new file, the newest of the folder: VisualDL shows only that one."""
        names = ((re.fullmatch(r"vdlrecords\.(\d+)\.log", path.name), path) for path in self.folder.glob("*"))
        files = {int(name[1]): path for name, path in names if name}
        last = max(files, default=-1)
        path = self.folder / f"vdlrecords.{max(int(time.time()), last + 1):010d}.log"
        kept = list(_read_records(files[last], steps, epochs)) if files and steps else []
        with replacing(path) as unfinished:
            unfinished.write_bytes(_serialize([records.meta_data(walltime=_now()), *kept]))
        if kept:  # truncated, not removed: an open page continues to read it
            with contextlib.suppress(OSError):
                os.truncate(files[last], 0)
        return path

    def add_step(self, report: Report) -> None:
        """Write losses, learning rate, gradient norm, speed and memory of a report."""
        values = {
            **report.losses,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "images_per_second": report.images_per_second,
            "data_seconds": report.data_seconds,
            "memory_gb": report.memory / 2**30,
        }
        known = {f"{STEP_PREFIX}{name}": value for name, value in values.items() if not math.isnan(value)}
        self._write(_scalars(known, report.global_step))

    def add_evaluation(self, metrics: CocoMetrics, epochs: int) -> None:
        """Write the COCO metrics, AP of each class, and precision-recall curves after so many epochs.

        Without objects, a metric is −1, as in COCO, and there is no curve.
        """
        values = {f"eval/{name}": value for name, value in metrics.named().items()}
        values.update({f"eval_AP_of_class/{name}": value for name, value in metrics.per_class.items()})
        self._write([*_scalars(values, epochs), *_precision_recall(metrics, epochs)])

    def add_images(self, images: Iterable[tuple[str, np.ndarray]], epochs: int) -> None:
        """Write named BGR images [H, W, 3] uint8 as JPEG; VisualDL's PNG is three times as large."""
        for name, image in images:
            data = Record.Image(encoded_image_string=encode_image(image, ".jpg"))
            value = Record.Value(id=epochs, tag=f"images/{name}", timestamp=_now(), image=data)
            self._write([Record(values=[value])])

    def _write(self, new: Iterable[Any]) -> None:
        """Append records; warn once if that fails: the training goes on."""
        if self.failed:
            return
        block = _serialize(new)
        try:
            with open(self.path, "ab", buffering=0) as file:
                size = file.tell()
                if file.write(block) < len(block):
                    file.truncate(size)  # VisualDL shows nothing after half a record
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.failed = True
            logger.warning(
                "%s cannot be written (%s): nothing more is logged for VisualDL",
                self.path,
                error.strerror or error,
            )


def _now() -> int:
    """Milliseconds, VisualDL's unit of time."""
    return round(time.time() * 1000)


def _serialize(new: Iterable[Any]) -> bytes:
    block = io.BytesIO()
    writer = RecordWriter(block)
    for record in new:
        writer.write(record.SerializeToString())
    return block.getvalue()


def _scalars(values: Mapping[str, float], position: int) -> list[Any]:
    now = _now()
    return [records.scalar(name, value, position, now) for name, value in values.items()]


def _precision_recall(metrics: CocoMetrics, epochs: int) -> list[Any]:
    """Curves at IoU 0.50, with AP50 as area. COCO keeps neither thresholds nor counts, so they have none."""
    curves = metrics.precision if len(metrics.per_class) <= MAX_CLASS_CURVES else {}
    curves = {"mean": metrics.mean_precision(), **{f"of_class/{name}": of for name, of in curves.items()}}
    return [
        records.pr_curve_raw(
            tag=f"precision_recall_IoU50/{name}",
            **{"tp": [], "fp": [], "tn": [], "fn": []},
            precision=precision[::-1],  # VisualDL begins with the lowest threshold: the largest recall
            recall=RECALLS[::-1],
            step=epochs,
            walltime=_now(),
        )
        for name, precision in curves.items()
        if precision
    ]


def _read_records(path: Path, steps: int, epochs: int) -> Iterator[Any]:
    """Yield the records of an interrupted run up to a position, without its hyper-parameters."""
    for data in RecordReader(str(path)).get_all():
        record = Record()
        try:
            record.ParseFromString(data)
        except DecodeError:  # the last one, if the run was killed while it wrote it
            return
        value = record.values[0]
        has_position = value.WhichOneof("one_value") not in ("hparam", "meta_data")
        if has_position and value.id <= (steps if value.tag.startswith(STEP_PREFIX) else epochs):
            yield record
