"""What a training shows in VisualDL."""

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
from typing import Any, NamedTuple

import numpy as np

from ppfcos import environment
from ppfcos.engine.progress import Report
from ppfcos.fileio import replacing, require_writable
from ppfcos.metrics.coco import RECALLS, CocoMetrics
from ppfcos.visualize.drawing import encode_image

logger = logging.getLogger(__name__)

# In this order; `*` stands for the name of a class or a place in a list. A configuration has far more, and in
# a table of all of it nobody would find what differs.
CHOSEN = (
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


def select_hparams(cfg: Mapping[str, Any]) -> dict[str, int | float | str]:
    """What a configuration says of `CHOSEN`.

    Args:
        cfg: the configuration.

    Returns:
        Values by the last two parts of their names, such as `LearningRate base_lr`, `LinearWarmup steps` and
        `Resize target_size`: a table has no room for more, and VisualDL's leaves columns empty whose names
        have dots. Lists and switches are text.
    """
    parts = [part for part in cfg[cfg["architecture"]].values() if isinstance(part, str)]
    names = {pattern.split(".")[0] for pattern in CHOSEN} | set(parts)
    values = dict(_flat({name: cfg[name] for name in names if name in cfg}))
    chosen = [name for pattern in CHOSEN for name in sorted(values) if fnmatchcase(name, pattern)]
    return {" ".join(name.split(".")[-2:]): values[name] for name in chosen}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, int | float | str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        yield from _flat({item.get("name", str(i)): item for i, item in enumerate(value)}, name)
    elif isinstance(value, bool):
        yield name, str(value).lower()
    elif value is not None:
        yield name, value if isinstance(value, (int, float, str)) else str(value)


with environment.quiet_imports(), environment.temporary_home():
    from google.protobuf.message import DecodeError
    from visualdl.component import base_component as records
    from visualdl.proto.record_pb2 import Record
    from visualdl.reader.record_reader import RecordReader
    from visualdl.writer.record_writer import RecordWriter


STEPS = "train/"  # what the names begin with whose curves run over the steps; all others run over the epochs
COMPARED = ("eval/AP", "eval/AP50", "train/loss")  # curves whose last values stand beside a run's settings
MOST_CLASS_CURVES = 20  # with more classes than these, only their mean has a precision-recall curve


class VisualDLWriter:
    """Writes records that `visualdl --logdir FOLDER` shows.

    VisualDL's LogWriter is not used: it can neither carry a log on nor take precision as COCO has it, and on
    a full disk it leaves half a record, at which readers fail. Here every call writes at once, all or
    nothing, so that a killed run leaves whatever it has reported.

    Args:
        folder: made where missing.
        settings: of the run, by name.
        steps: taken before a run is resumed. The log that the folder has is carried on from there, and what
            the interrupted run wrote later is dropped, for it is about to be written again.
        epochs: finished before that.

    Raises:
        OutputError: it cannot be written to.
    """

    def __init__(
        self,
        folder: Path | str,
        settings: Mapping[str, int | float | str],
        steps: int = 0,
        epochs: int = 0,
    ):
        require_writable(folder)
        self.folder = Path(folder)
        self.failed = False
        self.path = self._begin_file(steps, epochs)
        self._write([records.hparam(self.path.name, dict(settings), COMPARED, _now())])

    def _begin_file(self, steps: int, epochs: int) -> Path:
        """A new file, the newest of the folder: the page shows only that one."""
        before = max(_files(self.folder), default=None)
        number = max(int(time.time()), before.number + 1 if before else 0)
        path = self.folder / f"vdlrecords.{number:010d}.log"
        kept = list(_kept(before.path, steps, epochs)) if before and steps else []
        with replacing(path) as unfinished:
            unfinished.write_bytes(_block([records.meta_data(walltime=_now()), *kept]))
        if kept:  # emptied, not removed: a page that is open reads on where it was in it
            with contextlib.suppress(OSError):
                os.truncate(before.path, 0)
        return path

    def add_step(self, report: Report) -> None:
        """Losses, learning rate, gradient norm, speed and memory, over the steps.

        Args:
            report: of the steps since the report before.
        """
        values = {
            **report.losses,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "images_per_second": report.images_per_second,
            "data_seconds": report.data_seconds,
            "memory_gb": report.memory / 2**30,
        }
        known = {f"{STEPS}{name}": value for name, value in values.items() if not math.isnan(value)}
        self._write(_scalars(known, report.global_step))

    def add_evaluation(self, figures: CocoMetrics, epochs: int) -> None:
        """The twelve COCO figures and the AP of each class, over the epochs; precision over recall.

        Where no object was to be found, a figure is −1, as COCO has it, and a class has no precision.

        Args:
            figures: of an evaluation.
            epochs: finished before it.
        """
        values = {f"eval/{name}": value for name, value in figures.named().items()}
        values.update({f"eval_AP_of_class/{name}": value for name, value in figures.per_class.items()})
        self._write([*_scalars(values, epochs), *_precision_recall(figures, epochs)])

    def add_pictures(self, pictures: Iterable[tuple[str, np.ndarray]], epochs: int) -> None:
        """Pictures of an evaluation, as JPEG: VisualDL's own PNG would take three times the room.

        Args:
            pictures: names, and [H, W, 3] uint8, blue first.
            epochs: finished before it.
        """
        for name, picture in pictures:
            image = Record.Image(encoded_image_string=encode_image(picture, ".jpg"))
            value = Record.Value(id=epochs, tag=f"images/{name}", timestamp=_now(), image=image)
            self._write([Record(values=[value])])

    def _write(self, new: Iterable[Any]) -> None:
        """Append records, or say once that it cannot be done: a training is worth more than its curves."""
        if self.failed:
            return
        block = _block(new)
        try:
            with open(self.path, "ab", buffering=0) as file:
                whole = file.tell()
                if file.write(block) < len(block):
                    file.truncate(whole)  # half a record would hide all others from the page
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.failed = True
            logger.warning("no more curves: %s cannot be written (%s)", self.path, error.strerror or error)


class _File(NamedTuple):
    """A file of records, in the order in which they were begun."""

    number: int
    path: Path


def _files(folder: Path) -> list[_File]:
    names = ((path, re.fullmatch(r"vdlrecords\.(\d+)\.log", path.name)) for path in folder.glob("*"))
    return [_File(int(name.group(1)), path) for path, name in names if name]


def _now() -> int:
    """Milliseconds, as VisualDL has its times."""
    return round(time.time() * 1000)


def _block(new: Iterable[Any]) -> bytes:
    """Records as they stand in a file."""
    block = io.BytesIO()
    writer = RecordWriter(block)
    for record in new:
        writer.write(record.SerializeToString())
    return block.getvalue()


def _scalars(values: Mapping[str, float], position: int) -> list[Any]:
    now = _now()
    return [records.scalar(name, value, position, now) for name, value in values.items()]


def _precision_recall(figures: CocoMetrics, epochs: int) -> list[Any]:
    """Curves at IoU 0.50, of which AP50 is the area.

    They have no thresholds and no counts, which COCO's precision does not keep: of what the page says of a
    point, precision and recall are meant, and the threshold is its place in the curve.
    """
    curves = figures.precision if len(figures.per_class) <= MOST_CLASS_CURVES else {}
    curves = {"mean": figures.mean_precision(), **{f"of_class/{name}": of for name, of in curves.items()}}
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


def _kept(path: Path, steps: int, epochs: int) -> Iterator[Any]:
    """What an interrupted run wrote up to where it is resumed; not its settings, which are written anew."""
    for data in RecordReader(str(path)).get_all():
        record = Record()
        try:
            record.ParseFromString(data)
        except DecodeError:  # the last one, if the run was killed while it wrote it
            return
        value = record.values[0]
        is_curve = value.WhichOneof("one_value") not in ("hparam", "meta_data")
        if is_curve and value.id <= (steps if value.tag.startswith(STEPS) else epochs):
            yield record
