"""The folder of a run: its lock, its checkpoints, and which of them to keep or resume from."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import socket
import stat
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppfcos.engine import checkpoint_files as checkpoint
from ppfcos.engine.checkpoint_files import BEST, FINAL, RECORD
from ppfcos.engine.weights import SUFFIXES
from ppfcos.errors import OutputError, WeightsError
from ppfcos.fileio import is_abandoned, is_temporary

logger = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None


LOCK_FILE = ".lock"
_held: weakref.WeakValueDictionary[str, FolderLock] = weakref.WeakValueDictionary()


class FolderLock:
    """Keeps other trainings out of a run folder until `release` or the end of the process.

    The kernel holds the lock (`fcntl.lockf`): it ends with this process, and child processes do not hold it.
    The lock file names the holder. Within one process, a folder can be locked repeatedly.

    Attributes:
        is_exclusive: False on a file system without locks, of which a warning was logged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.is_exclusive = False
        self._file: Any = None
        self._pid = os.getpid()
        self._made: list[Path] = []  # folders

    def release(self) -> None:
        """Release the lock, and remove the folder if it was made for the lock and is empty."""
        file, self._file = self._file, None
        if file is None:
            return
        if self._pid == os.getpid():  # a forked process has this object, but not the lock
            for remove, path in [(os.unlink, self.path), *((os.rmdir, path) for path in self._made)]:
                with contextlib.suppress(OSError):
                    remove(path)
        file.close()

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lock."""
        return self._file is not None and self._pid == os.getpid()

    def __del__(self) -> None:
        self.release()

    def acquire(self) -> None:
        """Lock the folder, creating it if it is missing.

        Raises:
            OSError: the lock file cannot be made.
            OutputError: another process holds the lock.
        """
        folder = self.path.parent
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        while self._file is None:
            file = open(os.open(self.path, flags, 0o666), "r+b", buffering=0)  # noqa: SIM115 (kept open)
            try:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "is no regular file")
                self._lock(file)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    self._file, file = file, None
            except FileNotFoundError:  # whoever held it has just released and removed it
                pass
            finally:
                if file is not None:
                    file.close()
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        self._file.truncate(0)
        self._file.write(json.dumps(holder).encode())

    def _lock(self, file: Any) -> None:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise OutputError(
                    f"{self.path.parent} is in use by another training ({_holder(file)}): "
                    "wait for it, stop it, or choose another folder with -o save_dir=FOLDER"
                ) from None
            logger.warning(
                "%s cannot be locked (%s): nothing prevents another training from writing to this folder",
                self.path,
                error.strerror or error,
            )
        else:
            self.is_exclusive = True


def _holder(file: Any) -> str:
    """The holder of a lock according to its file, which may contain anything."""
    try:
        holder = json.loads(os.pread(file.fileno(), 1000, 0))
        pid, host, started = int(holder["pid"]), str(holder["host"]), str(holder["started"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "which does not say where it runs"
    printable = (text if text.isprintable() else ascii(text) for text in (host, started))
    return "process {} on {}, started {}".format(pid, *printable)


def lock_folder(folder: Path) -> FolderLock:
    """Lock a run folder before anything in it is read or written.

    Raises:
        OutputError: another process holds it (the message names it), or the folder cannot be written.
    """
    key = os.path.realpath(folder / LOCK_FILE)
    lock = _held.get(key)
    if lock is None or not lock.is_held:
        lock = FolderLock(folder / LOCK_FILE)
        try:
            lock.acquire()
        except OSError as error:
            raise OutputError(
                f"{lock.path} cannot be locked: {error.strerror or error}; "
                "remove it, or choose another folder with -o save_dir=FOLDER"
            ) from error
        _held[key] = lock
    return lock


def run_folder(cfg: Mapping[str, Any]) -> Path:
    """Return `{save_dir}/{filename}`."""
    return Path(cfg["save_dir"]) / cfg["filename"]


def checkpoint_name(state: checkpoint.TrainingState, epochs: int) -> str:
    """Return the name of a checkpoint.

    After an epoch it is the epoch's number, from 0 as PaddleDetection counts; after the last of `epochs`,
    `model_final`; within an epoch, for example `3_step1200`.
    """
    if state.step:
        return f"{state.epochs}_step{state.step}"
    return FINAL if state.epochs == epochs else str(state.epochs - 1)


def find_latest(folder: Path) -> Path | None:
    """Return the path, without suffix, of the newest undamaged checkpoint in a run folder; None without one.

    Damaged checkpoints and other NAME.json files are logged.

    Raises:
        WeightsError: the folder cannot be read.
    """
    return _first_undamaged([saved.path for saved in checkpoint.list_checkpoints(folder, _warn_skipped)])


def _warn_skipped(path: Path, error: WeightsError) -> None:
    logger.warning("the checkpoint %s is skipped: %s", path, error)


def _first_undamaged(paths: list[Path]) -> Path | None:
    """The first undamaged checkpoint; those before it are logged."""
    for path in paths:
        try:
            checkpoint.verify_checksums(path)
        except WeightsError as error:
            _warn_skipped(path, error)
            continue
        return path
    return None


def find_best(folder: Path, run: str | None) -> tuple[Path, float] | None:
    """Return path without suffix and box AP of a run's best undamaged checkpoint; None without one.

    `best_model` comes before others of the same AP.
    """
    found = {
        each.path: each.state.ap
        for each in checkpoint.list_checkpoints(folder)
        if each.state.run == run and each.state.ap is not None
    }
    path = _first_undamaged(sorted(found, key=lambda path: (found[path], path.name == BEST), reverse=True))
    return None if path is None else (path, found[path])


def remove_old_checkpoints(
    folder: Path, run: str | None, keep: int | None, newest: Path | None = None
) -> None:
    """Remove checkpoints of a run that the newest one makes superfluous.

    Of those at the end of an epoch the newest are kept, of those within an epoch the very newest; also the
    best one, and all of other runs.

    Args:
        folder: of the run.
        run: whose checkpoints may be removed.
        keep: how many to keep at the end of an epoch; None keeps all.
        newest: path without suffix of the checkpoint that counts as the newest; earlier ones in the list,
            which may be damaged, are kept and not counted. None: the newest of the run.

    Raises:
        OutputError: a file cannot be removed.
    """
    saved = [
        (each.path, each.state)
        for each in checkpoint.list_checkpoints(folder)
        if each.path.name != BEST and each.state.run == run
    ]
    if newest is not None:
        paths = [path for path, _ in saved]
        saved = saved[paths.index(newest) :] if newest in paths else []
    after_epochs = 0
    for number, (path, state) in enumerate(saved):
        after_epochs += not state.step
        if number > 0 if state.step else (keep is not None and after_epochs > keep):
            checkpoint.remove_checkpoint(path)


def warn_of_other_runs(folder: Path, run: str | None) -> None:
    """Warn if the folder of a run has checkpoints of others, which it overwrites one after another."""
    others = {each.state.run or "unknown" for each in checkpoint.list_checkpoints(folder)} - {run}
    if others:
        logger.warning(
            "%s has checkpoints of another training (started %s), which this one overwrites: stop and add "
            "-r auto to continue that one, or keep both with -o save_dir=FOLDER",
            folder,
            ", ".join(sorted(others)),
        )


def remove_unfinished(folder: Path, lock: FolderLock | None = None) -> None:
    """Complete interrupted checkpoints of a run folder, and remove temporary files of killed processes.

    Raises:
        OutputError: a file cannot be renamed or removed.
    """
    checkpoint.finish_interrupted(folder)
    names = [f"{suffix}." for suffix in (*SUFFIXES, RECORD)]
    for path in [*folder.glob(".*"), *folder.glob("profile/.*"), *folder.glob("vdl_log/.*")]:
        of_any_host = lock is not None and lock.is_exclusive and any(name in path.name for name in names)
        of_old_version = path.name.endswith(".unfinished") and not is_temporary(path)
        if is_abandoned(path, of_any_host) or of_old_version:
            with contextlib.suppress(OSError):  # harmless
                path.unlink()


def position_in_plan(saved: checkpoint.TrainingState, plan: checkpoint.Plan) -> tuple[int, int]:
    """Return finished epochs and finished steps of the next one in a plan that may differ from the saved one.

    Differences are logged.
    """
    before = saved.plan
    if before is None:
        return saved.epochs, saved.step
    if before.processes != plan.processes:
        logger.info("%d processes instead of %d: each step is the same", plan.processes, before.processes)
    if before.epochs != plan.epochs:
        logger.info(
            "%d epochs instead of %d; LearningRate's milestones are where the configuration has them",
            plan.epochs,
            before.epochs,
        )
    if (before.total_batch_size, before.steps_per_epoch) == (plan.total_batch_size, plan.steps_per_epoch):
        return saved.epochs, saved.step
    step = saved.step * plan.steps_per_epoch // before.steps_per_epoch
    logger.warning(
        "an epoch has %d steps of %d images instead of %d of %d: going on after step %d of %d; which images "
        "of this epoch were seen already is no longer known",
        plan.steps_per_epoch,
        plan.total_batch_size,
        before.steps_per_epoch,
        before.total_batch_size,
        step,
        plan.steps_per_epoch,
    )
    return saved.epochs, step
