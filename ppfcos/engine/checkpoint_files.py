"""The files of a checkpoint: writes, verifies, finds and orders them. `checkpoint.py` says what they contain.

A checkpoint is complete if its files are what its record, `NAME.json`, says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppfcos.engine.weights import SUFFIXES
from ppfcos.errors import OutputError, WeightsError, one_line
from ppfcos.fileio import (
    flush_to_disk,
    is_temporary,
    is_token,
    named_in_errors,
    new_token,
    replacing,
    require_regular,
    sha256,
    temporary_path,
    writing_beside,
)

logger = logging.getLogger(__name__)

BEST, FINAL = "best_model", "model_final"  # PaddleDetection's names
FORMAT = 2  # of the record; 1 had no checksum, start and token
RECORD = ".json"
PENDING = ".pending"
EVALUATIONS_FILE = "evaluations.json"
OTHER_JSON_FILES = {"run.json", EVALUATIONS_FILE}  # in a run's folder
MAX_RECORD_BYTES = 16 << 20


class Plan(NamedTuple):
    """Length and batch of a training; in another plan, steps and epochs mean something else.

    Attributes:
        epochs: of the whole training.
        steps_per_epoch: number of them.
        total_batch_size: images per step, over all ranks.
        processes: number of ranks.
    """

    epochs: int
    steps_per_epoch: int
    total_batch_size: int
    processes: int


class TrainingState(NamedTuple):
    """Where a training stands, besides its weights.

    Attributes:
        epochs: finished ones.
        step: finished steps of the next epoch.
        ap: box AP of these weights, if they were evaluated.
        run: start of the run, which identifies it; a resumed run keeps it.
        plan: of the run, if known.
        class_names: in the order of the labels, if known.
    """

    epochs: int
    step: int = 0
    ap: float | None = None
    run: str | None = None
    plan: Plan | None = None
    class_names: Sequence[str] | None = None


class Saved(NamedTuple):
    """A checkpoint in a folder.

    Attributes:
        path: without a suffix.
        state: of its record.
        start: number of the training in this folder that wrote it, from 1; 0 if the record does not tell.
        written: seconds since 1970, by the clock of that machine.
    """

    path: Path
    state: TrainingState
    start: int
    written: float


def checkpoint_prefix(path: Path | str) -> Path:
    """Return the path of a checkpoint without the suffix of its files."""
    path = Path(path)
    if not path.name:
        raise WeightsError(f"{path} is a folder: name a checkpoint in it")
    return path.with_suffix("") if path.suffix in (*SUFFIXES, RECORD) else path


def file_of(prefix: Path, suffix: str) -> Path:
    """Return the file of a checkpoint with a suffix."""
    return prefix.with_name(prefix.name + suffix)


def _pending(prefix: Path) -> Path:
    """The record of a checkpoint whose files are being renamed."""
    return prefix.with_name(f".{prefix.name}{PENDING}")


# Writing ----------------------------------------------------------------------------------------------------


def write_checkpoint(
    prefix: Path,
    record: Mapping[str, Any],
    suffixes: Sequence[str],
    write: Callable[[str, Path], Mapping[str, Any]],
) -> None:
    """Replace all files of a checkpoint, so that it can be read whenever this is interrupted.

    1. Write the new files and their record under temporary names.
    2. Rename the record to `.NAME.pending`. From here on, `finish_checkpoint` can complete the rest.
    3. Rename the new weights to `NAME.pdparams`. From here on, readers use the pending record and the
       remaining temporary names.
    4. Rename the other files, remove those that the new checkpoint lacks, rename the record to `NAME.json`.
    """
    finish_checkpoint(prefix)  # of an earlier process that was killed
    token = new_token()
    with contextlib.ExitStack() as cleanup:
        files = {}
        for suffix in suffixes:
            with writing_beside(file_of(prefix, suffix), token) as temporary:
                cleanup.callback(_remove_temporary, temporary)
                files[suffix] = write(suffix, temporary)
                flush_to_disk(temporary)
        with writing_beside(file_of(prefix, RECORD), token) as temporary:
            cleanup.callback(_remove_temporary, temporary)
            record = {**record, "files": files, "token": token}
            temporary.write_bytes(_record_bytes(record))
            flush_to_disk(temporary)
        with named_in_errors(file_of(prefix, RECORD)):
            os.replace(temporary, _pending(prefix))
        cleanup.pop_all()  # these files belong to the pending record now
    _rename_files(prefix, record)


def _remove_temporary(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _record_bytes(record: Mapping[str, Any]) -> bytes:
    content = {**record, "format": FORMAT}
    content["checksum"] = _checksum(content)
    return json.dumps(content, indent=1).encode()


def _checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record, whatever the order and white space of its file."""
    content = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def finish_checkpoint(prefix: Path) -> None:
    """Complete an interrupted writing of a checkpoint, or give it up if its files are damaged.

    Only the process that writes to the folder may call it.

    Raises:
        OutputError: a file cannot be renamed or removed.
    """
    pending = _pending(prefix)
    if not os.path.lexists(pending):
        return
    try:
        record = _read_record(pending)
    except WeightsError as error:  # of another program
        logger.warning("skipped: %s", error)
        return
    try:
        for suffix, path in _files_of(prefix, record).items():
            _require_whole_file(path, record["files"][suffix], pending)
    except WeightsError as error:
        logger.warning("an incomplete checkpoint is given up: %s", error)
        with named_in_errors(file_of(prefix, RECORD)):
            pending.unlink()
    else:
        _rename_files(prefix, record)


def _rename_files(prefix: Path, record: Mapping[str, Any]) -> None:
    """Steps 3 and 4 of `write_checkpoint`."""
    with named_in_errors(file_of(prefix, RECORD)):
        flush_to_disk(prefix.parent)
        files = _files_of(prefix, record)
        for suffix in SUFFIXES:  # the weights first
            final = file_of(prefix, suffix)
            if suffix not in files:
                final.unlink(missing_ok=True)
            elif files[suffix] != final:
                os.replace(files[suffix], final)
        os.replace(_pending(prefix), file_of(prefix, RECORD))
        flush_to_disk(prefix.parent)


def finish_interrupted(folder: Path) -> None:
    """Complete the interrupted writing of all checkpoints of a run folder."""
    for path in _names_in(folder):
        if path.name.startswith(".") and path.name.endswith(PENDING):
            finish_checkpoint(path.with_name(path.name[1 : -len(PENDING)]))


def note_ap(path: Path | str, ap: float) -> None:
    """Write the box AP of an evaluation into the record of a checkpoint."""
    prefix = checkpoint_prefix(path)
    finish_checkpoint(prefix)
    record = _read_record(file_of(prefix, RECORD))
    with replacing(file_of(prefix, RECORD)) as temporary:
        temporary.write_bytes(_record_bytes({**record, "ap": float(ap) if math.isfinite(ap) else None}))


def copy_checkpoint(path: Path | str, name: str) -> Path:
    """Give a checkpoint a second name in its folder, with hard links if the file system has them.

    Raises:
        OutputError: it cannot be written.
        WeightsError: there is no such checkpoint.
    """
    source = checkpoint_prefix(path)
    record, files = view(source)

    def link(suffix: str, target: Path) -> Mapping[str, Any]:
        try:
            os.link(files[suffix], target)
        except OSError:
            shutil.copyfile(files[suffix], target)
        return record["files"][suffix]

    write_checkpoint(source.with_name(name), record, list(files), link)
    return file_of(source.with_name(name), ".pdparams")


def remove_checkpoint(path: Path | str) -> None:
    """Remove a checkpoint, its record last: if interrupted, the next `remove_old_checkpoints` continues."""
    prefix = checkpoint_prefix(path)
    for file in (_pending(prefix), *(file_of(prefix, suffix) for suffix in (*SUFFIXES, RECORD))):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{file} cannot be removed: {error.strerror or error}") from error


# Order ------------------------------------------------------------------------------------------------------


def next_start(folder: Path) -> int:
    """Return the number of a training that starts now, larger than that of all checkpoints in the folder."""
    return 1 + max((saved.start for saved in list_checkpoints(folder)), default=0)


def start_of_run(folder: Path, run: str | None) -> int:
    """Return the number of a run's last checkpoint, or of a new training if it has none."""
    saved = list_checkpoints(folder)
    own = [each.start for each in saved if each.state.run == run]
    return max(own) if own else 1 + max((each.start for each in saved), default=0)


def list_checkpoints(
    folder: Path | str, skipped: Callable[[Path, WeightsError], object] | None = None
) -> list[Saved]:
    """List the checkpoints of a folder whose record can be read; their other files are not checked.

    The order does not depend on the clock: the last started training first, then by epochs and steps. Only
    runs whose records have no start number (format 1) are ordered by the time of their last checkpoint.

    Raises:
        WeightsError: the folder cannot be read.
    """
    found = []
    for prefix in _prefixes(Path(folder)):
        try:
            record, _ = view(prefix)
        except WeightsError as error:
            if skipped is not None:
                skipped(prefix, error)
            continue
        saved = Saved(prefix, state_of(record), record.get("start", 0), record["written"])
        found.append(saved)
    last: dict[tuple, float] = {}
    for saved in found:
        key = saved.start, saved.state.run
        last[key] = max(last.get(key, 0), saved.written)

    def age(saved: Saved) -> tuple:
        state = saved.state
        of_run = last[saved.start, state.run]
        position = state.epochs, state.step
        return saved.start, of_run, state.run or "", *position, saved.path.name != BEST, saved.written

    return sorted(found, key=age, reverse=True)


def _prefixes(folder: Path) -> list[Path]:
    """Paths of possible checkpoints, by name."""
    prefixes = set()
    for path in _names_in(folder):
        if is_temporary(path) or path.name in OTHER_JSON_FILES:
            continue
        if path.name.startswith(".") and path.name.endswith(PENDING):
            prefixes.add(path.with_name(path.name[1 : -len(PENDING)]))
        elif path.suffix == RECORD:
            prefixes.add(path.with_suffix(""))
    return sorted(prefix for prefix in prefixes if prefix.name)


def _names_in(folder: Path) -> list[Path]:
    try:
        return sorted(Path(folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise WeightsError(f"{folder} cannot be read: {error.strerror or error}") from error


# Reading ----------------------------------------------------------------------------------------------------


def read_manifest(path: Path | str) -> TrainingState:
    """Return where the training stood when a checkpoint was written; raise a WeightsError if unknown."""
    return state_of(view(checkpoint_prefix(path))[0])


def verify_checksums(path: Path | str) -> None:
    """Compare the files of a checkpoint with their checksums; raise a WeightsError that names a bad file."""
    prefix = checkpoint_prefix(path)
    record, files = view(prefix)
    for suffix in (".pdparams", ".pdopt"):
        if suffix not in files:
            raise WeightsError(f"{file_of(prefix, RECORD)} is damaged: it names no {prefix.name}{suffix}")
    for suffix, file in files.items():
        _require_whole_file(file, record["files"][suffix], file_of(prefix, RECORD))


def _require_whole_file(file: Path, known: Mapping[str, Any], record: Path) -> None:
    try:
        require_regular(file)
        whole = file.stat().st_size == known["bytes"] and sha256(file) == known["sha256"]
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror or error}") from error
    if not whole:
        raise WeightsError(
            f"{file} is damaged: it is not what {record.name} says was written; "
            "resume from another checkpoint, or let -r auto find one"
        )


def require_regular_weights(file: Path) -> None:
    """Raise a WeightsError unless it is a regular file: a pipe would block, and devices have no end."""
    try:
        require_regular(file)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror or error}") from error


def has_record_file(prefix: Path) -> bool:
    """Whether a record exists, readable or not."""
    return os.path.lexists(file_of(prefix, RECORD)) or os.path.lexists(_pending(prefix))


def view(prefix: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the record of a checkpoint, and its files: under temporary names while it is replaced.

    Raises:
        WeightsError: the record is missing or damaged.
    """
    if os.path.lexists(_pending(prefix)):
        with contextlib.suppress(WeightsError):
            record = _read_record(_pending(prefix))
            files = _files_of(prefix, record)
            if files.get(".pdparams") == file_of(prefix, ".pdparams"):  # the weights are the new ones already
                return record, files
    record = _read_record(file_of(prefix, RECORD))
    return record, {suffix: file_of(prefix, suffix) for suffix in record["files"]}


def _files_of(prefix: Path, record: Mapping[str, Any]) -> dict[str, Path]:
    """Files of a pending record, under their temporary names until they are renamed."""
    files = {}
    for suffix in record["files"]:
        final = file_of(prefix, suffix)
        temporary = temporary_path(final, record["token"]) if "token" in record else final
        files[suffix] = temporary if os.path.lexists(temporary) else final
    return files


def state_of(record: Mapping[str, Any]) -> TrainingState:
    """Return the training state of a record."""
    plan = record["plan"] and Plan(**record["plan"])
    position = record["epochs"], record["step"], record["ap"]
    return TrainingState(*position, record["run"], plan, record["class_names"])


def _read_record(path: Path) -> dict[str, Any]:
    try:
        require_regular(path)
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        record = json.loads(path.read_bytes().decode("utf-8"), parse_int=_parse_int)
        _check_record(record)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged or no checkpoint's record ({one_line(error)})") from error
    return record


def _parse_int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _check_record(record: Any) -> None:
    """Raise a ValueError, LookupError or TypeError if `_record_bytes` cannot have written the record."""
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}")
    format_ = record["format"]
    if not _is_whole(format_, 1) or format_ > FORMAT:
        raise ValueError(f"format {format_!r}, which this version does not know")
    if format_ > 1 and record["checksum"] != _checksum(record):
        raise ValueError("its checksum does not match")
    ap, plan, run, names, files = (record[key] for key in ("ap", "plan", "run", "class_names", "files"))
    right = {
        "written": _is_number(record["written"]) and record["written"] >= 0,
        "epochs": _is_whole(record["epochs"]),
        "step": _is_whole(record["step"]),
        "start": _is_whole(record.get("start", 0)),
        "ap": ap is None or (_is_number(ap) and -1 <= ap <= 1.000001),
        "run": run is None or isinstance(run, str),
        "class_names": names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names)),
        "plan": plan is None
        or (plan.keys() == set(Plan._fields) and all(_is_whole(value, 1) for value in plan.values())),
        "files": set(files) <= set(SUFFIXES) and all(_is_sum(known) for known in files.values()),
        "token": "token" not in record or is_token(record["token"]),
    }
    if plan and right["plan"] and right["step"]:
        right["step"] = record["step"] <= plan["steps_per_epoch"]
    for key, is_right in right.items():
        if not is_right:
            raise ValueError(f"its {key} is {record.get(key)!r}")


def _is_whole(value: object, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**62


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_sum(known: Mapping[str, Any]) -> bool:
    return _is_whole(known["bytes"]) and re.fullmatch("[0-9a-f]{64}", known["sha256"]) is not None


def find_training_state(path: Path | str) -> TrainingState | None:
    """Like `read_manifest`, but None if the checkpoint has no record."""
    prefix = checkpoint_prefix(path)
    has_record = os.path.lexists(file_of(prefix, RECORD))
    # The pending record of a new checkpoint does not count before its weights have their name.
    if not has_record and os.path.lexists(_pending(prefix)):
        has_record = os.path.lexists(file_of(prefix, ".pdparams"))
    return read_manifest(prefix) if has_record else None
