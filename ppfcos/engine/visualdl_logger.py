"""Writes the VisualDL log of a training: scalars, precision-recall curves, images, text, hyper-parameters."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppfcos import environment
from ppfcos.engine.loggers import STEP_PREFIX, MetricLogger
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

COMPARED = ("eval/AP", "eval/AP50", "train/loss")  # scalars that VisualDL shows beside the hyper-parameters
MAX_CLASS_CURVES = 20  # with more classes, only the mean has a precision-recall curve


class VisualDLLogger(MetricLogger):
    """Writes records that `visualdl --logdir FOLDER` shows. Every call writes at once, all or nothing.

    The log of a resumed run is continued without the records after the checkpoint. Images are JPEG, since
    VisualDL's PNG is three times as large.

    Args:
        folder: of the log, created by `begin`; None: `vdl_log` in the folder of the run.
    """

    def __init__(self, folder: Path | str | None = None):
        self.folder = None if folder is None else Path(folder)

    def begin(self, folder: Path, steps: int, epochs: int) -> None:
        """Make a new file, the newest of the folder: VisualDL shows only that one."""
        self.folder = folder / "vdl_log" if self.folder is None else self.folder
        require_writable(self.folder, "-o vdl_log_dir=FOLDER")
        names = ((re.fullmatch(r"vdlrecords\.(\d+)\.log", path.name), path) for path in self.folder.glob("*"))
        files = {int(name[1]): path for name, path in names if name}
        last = max(files, default=-1)
        self.path = self.folder / f"vdlrecords.{max(int(time.time()), last + 1):010d}.log"
        kept = list(_read_records(files[last], steps, epochs)) if files and steps else []
        with replacing(self.path) as unfinished:
            unfinished.write_bytes(_serialize([records.meta_data(walltime=_now()), *kept]))
        if kept:  # truncated, not removed: an open page continues to read it
            with contextlib.suppress(OSError):
                os.truncate(files[last], 0)

    def add_hparams(self, values: Mapping[str, int | float | str]) -> None:
        self._write([records.hparam(self.path.name, dict(values), COMPARED, _now())])

    def add_scalars(self, values: Mapping[str, float], position: int) -> None:
        self._write([records.scalar(name, value, position, _now()) for name, value in values.items()])

    def add_images(self, images: Iterable[tuple[str, np.ndarray]], epochs: int) -> None:
        for name, image in images:
            data = Record.Image(encoded_image_string=encode_image(image, ".jpg"))
            value = Record.Value(id=epochs, tag=f"images/{name}", timestamp=_now(), image=data)
            self._write([Record(values=[value])])

    def add_text(self, name: str, text: str, epochs: int) -> None:
        self._write([records.text(name, text, epochs, _now())])

    def add_evaluation(self, metrics: CocoMetrics, epochs: int) -> None:
        """Also log precision-recall curves at IoU 0.50, with AP50 as area.

        COCO keeps neither thresholds nor counts, so the curves have none.
        """
        super().add_evaluation(metrics, epochs)
        curves = metrics.precision if len(metrics.per_class) <= MAX_CLASS_CURVES else {}
        curves = {"mean": metrics.mean_precision(), **{f"of_class/{name}": of for name, of in curves.items()}}
        self._write(
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
        )

    def summary(self) -> str:
        return f"curves: visualdl --language en --logdir {self.folder}"

    def _write(self, new: Iterable[Any]) -> None:
        block = _serialize(new)
        with open(self.path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(block) < len(block):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                file.truncate(size)  # VisualDL shows nothing after half a record
                raise


def _now() -> int:
    """Milliseconds, VisualDL's unit of time."""
    return round(time.time() * 1000)


def _serialize(new: Iterable[Any]) -> bytes:
    block = io.BytesIO()
    writer = RecordWriter(block)
    for record in new:
        writer.write(record.SerializeToString())
    return block.getvalue()


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
