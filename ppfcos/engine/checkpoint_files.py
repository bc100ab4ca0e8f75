"""The files of a checkpoint: how they are written, checked, found and ordered.

A checkpoint NAME is `NAME.pdparams`, `NAME.pdopt`, with averaged weights `NAME.pdema`, and `NAME.json`, the
record, which says where the training stood and holds the checksums of the others and of itself. A checkpoint
is whole if its files are what its record says. `checkpoint.py` says what is in the files.
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
OTHER_JSON_FILES = {"run.json"}  # in a run's folder
LARGEST_RECORD = 16 << 20  # bytes


class Plan(NamedTuple):
    """What a training set out to do; of another plan, steps and epochs mean something else.

    Attributes:
        epochs: of the whole training.
        steps_per_epoch: number of them.
        total_batch_size: images a step, over all processes.
        processes: number of them.
    """

    epochs: int
    steps_per_epoch: int
    total_batch_size: int
    processes: int


class TrainingState(NamedTuple):
    """Where a training stands, besides its weights.

    Attributes:
        epochs: finished ones.
        step: finished steps of the epoch after these.
        ap: box AP of these weights, if they were evaluated.
        run: when the run began, which tells its checkpoints from those of another; a resumed run is the same.
        plan: of the run, if the checkpoint says it.
        class_names: what the labels mean, if the checkpoint says it.
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
        state: what its record says.
        start: number of the training of this folder that wrote it, from 1; 0 if the record does not say.
        written: seconds since 1970, by the clock of that machine.
    """

    path: Path
    state: TrainingState
    start: int
    written: float


def checkpoint_prefix(path: Path | str) -> Path:
    """The NAME of a checkpoint, however it was given.

    Args:
        path: `NAME`, or one of its files.

    Returns:
        The path without the suffix.

    Raises:
        WeightsError: the path has no name, such as `.` or `/`.
    """
    path = Path(path)
    if not path.name:
        raise WeightsError(f"{path} is a folder: name a checkpoint in it")
    return path.with_suffix("") if path.suffix in (*SUFFIXES, RECORD) else path


def file_of(prefix: Path, suffix: str) -> Path:
    """The file of a checkpoint that has a suffix."""
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
    """Replace all files of a checkpoint, so that one that is whole can be read whatever interrupts it.

    1. The new files and their record are written under temporary names.
    2. The record is renamed to `.NAME.pending`. From here on `finish_checkpoint` can complete the rest.
    3. The new weights are renamed to `NAME.pdparams`. From here on readers go by the pending record, and by
       the temporary names that are left.
    4. The other files are renamed, those that the new checkpoint does not have are removed, and the record
       is renamed to `NAME.json`.

    Args:
        prefix: of the checkpoint.
        record: without `files`.
        suffixes: of the files.
        write: writes the file of a suffix to a path, and returns its size and checksum.
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
    """SHA-256 of a record, whatever the order and the white space of its file."""
    content = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def finish_checkpoint(prefix: Path) -> None:
    """Complete the writing of a checkpoint that was interrupted, if there is one and its files are whole.

    Only the process that writes to the folder may call it.

    Args:
        prefix: path of the checkpoint without a suffix.

    Raises:
        OutputError: a file cannot be renamed or removed.
    """
    pending = _pending(prefix)
    if not os.path.lexists(pending):
        return
    try:
        record = _read_record(pending)
    except WeightsError as error:  # of another program
        logger.warning("passed over: %s", error)
        return
    try:
        for suffix, path in _files_of(prefix, record).items():
            _require_whole_file(path, record["files"][suffix], pending)
    except WeightsError as error:
        logger.warning("a checkpoint that was not completed is given up: %s", error)
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
    """Complete the writing of all checkpoints of a folder that were interrupted.

    Args:
        folder: of the run.

    Raises:
        OutputError: a file cannot be renamed or removed.
    """
    for path in _names_in(folder):
        if path.name.startswith(".") and path.name.endswith(PENDING):
            finish_checkpoint(path.with_name(path.name[1 : -len(PENDING)]))


def note_ap(path: Path | str, ap: float) -> None:
    """Add the result of an evaluation to a checkpoint.

    Args:
        path: of the checkpoint, with or without a suffix.
        ap: box AP of its weights.

    Raises:
        OutputError: it cannot be written.
        WeightsError: there is no such checkpoint.
    """
    prefix = checkpoint_prefix(path)
    finish_checkpoint(prefix)
    record = _read_record(file_of(prefix, RECORD))
    with replacing(file_of(prefix, RECORD)) as temporary:
        temporary.write_bytes(_record_bytes({**record, "ap": float(ap) if math.isfinite(ap) else None}))


def copy_checkpoint(path: Path | str, name: str) -> Path:
    """Give a checkpoint a second name, which takes no room where the file system has hard links.

    Args:
        path: of the checkpoint, with or without a suffix.
        name: the second one, in the same folder; what had it before is replaced.

    Returns:
        Path of the second name's weights.

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
    """Remove a checkpoint. Its record goes last: where this is interrupted, the next `remove_old_checkpoints` goes on.

    Args:
        path: of the checkpoint, with or without a suffix.

    Raises:
        OutputError: it cannot be removed.
    """
    prefix = checkpoint_prefix(path)
    for file in (_pending(prefix), *(file_of(prefix, suffix) for suffix in (*SUFFIXES, RECORD))):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{file} cannot be removed: {error.strerror or error}") from error


# Order ------------------------------------------------------------------------------------------------------


def next_start(folder: Path) -> int:
    """The number of a training that starts now in a folder: larger than that of all checkpoints in it.

    Args:
        folder: of the run; need not exist.
    """
    return 1 + max((saved.start for saved in list_checkpoints(folder)), default=0)


def start_of_run(folder: Path, run: str | None) -> int:
    """The number that checkpoints of a run have got so far; that of a new training where it has none."""
    saved = list_checkpoints(folder)
    own = [each.start for each in saved if each.state.run == run]
    return max(own) if own else 1 + max((each.start for each in saved), default=0)


def list_checkpoints(
    folder: Path | str, passed_over: Callable[[Path, WeightsError], object] | None = None
) -> list[Saved]:
    """All checkpoints of a folder whose record can be read; their other files are not looked at.

    The order does not depend on the clock, which may go back: first those of the training that was started
    last, of these the most epochs and steps. Only runs whose records do not number the starts (format 1) are
    ordered by the time of their last checkpoint.

    Args:
        folder: need not exist.
        passed_over: is called for each NAME.json that is no checkpoint's record, or is damaged.

    Returns:
        The newest first.

    Raises:
        WeightsError: the folder cannot be read.
    """
    found = []
    for prefix in _prefixes(Path(folder)):
        try:
            record, _ = view(prefix)
        except WeightsError as error:
            if passed_over is not None:
                passed_over(prefix, error)
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
    """Of all that may be checkpoints, in the order of their names."""
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
    """Where the training stood when a checkpoint was written.

    Args:
        path: of the checkpoint, with or without a suffix.

    Returns:
        What its NAME.json says.

    Raises:
        WeightsError: that is missing or damaged.
    """
    return state_of(view(checkpoint_prefix(path))[0])


def verify_checksums(path: Path | str) -> None:
    """Compare a checkpoint's files with their checksums.

    Args:
        path: of the checkpoint, with or without a suffix.

    Raises:
        WeightsError: one is missing or not what it was; the message names it.
    """
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
    """Reading a pipe would wait for ever, and reading some devices has no end."""
    try:
        require_regular(file)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror or error}") from error


def has_record_file(prefix: Path) -> bool:
    """Whether there is a record, readable or not."""
    return os.path.lexists(file_of(prefix, RECORD)) or os.path.lexists(_pending(prefix))


def view(prefix: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """The record of a checkpoint, and where its files are: elsewhere only while it is replaced.

    Raises:
        WeightsError: there is no record, or it is damaged.
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
    """Where the files of a pending record are: under their temporary names until they are renamed."""
    files = {}
    for suffix in record["files"]:
        final = file_of(prefix, suffix)
        temporary = temporary_path(final, record["token"]) if "token" in record else final
        files[suffix] = temporary if os.path.lexists(temporary) else final
    return files


def state_of(record: Mapping[str, Any]) -> TrainingState:
    """Where the training stood that wrote a record."""
    plan = record["plan"] and Plan(**record["plan"])
    position = record["epochs"], record["step"], record["ap"]
    return TrainingState(*position, record["run"], plan, record["class_names"])


def _read_record(path: Path) -> dict[str, Any]:
    try:
        require_regular(path)
        if path.stat().st_size > LARGEST_RECORD:
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
    """Raises ValueError or a relative where a record is not what `_record_bytes` has ever written."""
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}")
    format_ = record["format"]
    if not _is_whole(format_, 1) or format_ > FORMAT:
        raise ValueError(f"format {format_!r}, which this version does not know")
    if format_ > 1 and record["checksum"] != _checksum(record):
        raise ValueError("its checksum is another one")
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
    """As `read_manifest`, of a checkpoint that need not be there.

    Args:
        path: of the checkpoint, with or without a suffix.

    Returns:
        What its NAME.json says; None if it has none.

    Raises:
        WeightsError: that is damaged.
    """
    prefix = checkpoint_prefix(path)
    has_record = os.path.lexists(file_of(prefix, RECORD))
    # The pending record of a new checkpoint does not count before its weights have their name.
    if not has_record and os.path.lexists(_pending(prefix)):
        has_record = os.path.lexists(file_of(prefix, ".pdparams"))
    return read_manifest(prefix) if has_record else None
