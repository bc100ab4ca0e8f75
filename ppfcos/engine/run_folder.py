"""The folder of a run: its checkpoints, which of them stay, and from which one to go on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppfcos.engine import checkpoint_files as checkpoint
from ppfcos.engine.checkpoint_files import BEST, FINAL, RECORD
from ppfcos.engine.folder_lock import FolderLock
from ppfcos.engine.weights import SUFFIXES
from ppfcos.errors import WeightsError
from ppfcos.files import is_abandoned, is_temporary

logger = logging.getLogger(__name__)


def run_folder(cfg: Mapping[str, Any]) -> Path:
    """Where a run keeps its checkpoints.

    Args:
        cfg: the configuration.

    Returns:
        `{save_dir}/{filename}`.
    """
    return Path(cfg["save_dir"]) / cfg["filename"]


def checkpoint_name(state: checkpoint.TrainingState, epochs: int) -> str:
    """What the checkpoint of a position is called.

    Args:
        state: the position.
        epochs: of the whole training.

    Returns:
        After an epoch its number, from 0 as PaddleDetection counts, after the last one `model_final`; within
        an epoch such as `3_step1200`.
    """
    if state.step:
        return f"{state.epochs}_step{state.step}"
    return FINAL if state.epochs == epochs else str(state.epochs - 1)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what was written.

    Args:
        folder: of the run.

    Returns:
        Its path without suffix; None if there is none. Those that are damaged are named in the log, and so
        are files NAME.json that are no record of a checkpoint.

    Raises:
        WeightsError: the folder cannot be read.
    """
    return first_whole([saved.path for saved in checkpoint.list_checkpoints(folder, _pass_over)])


def _pass_over(path: Path, error: WeightsError) -> None:
    logger.warning("the checkpoint %s is passed over: %s", path, error)


def first_whole(paths: list[Path]) -> Path | None:
    """The first checkpoint whose files are what was written; those before it are named in the log.

    Args:
        paths: without suffix.
    """
    for path in paths:
        try:
            checkpoint.require_whole(path)
        except WeightsError as error:
            _pass_over(path, error)
            continue
        return path
    return None


def best_whole(folder: Path, run: str | None) -> tuple[Path, float] | None:
    """The checkpoint of a run with the highest AP that an evaluation has noted.

    Args:
        folder: of the run.
        run: which the checkpoint must be of.

    Returns:
        Its path without suffix, and its AP; None if there is none. `best_model` comes before others of the
        same AP.
    """
    found = {
        each.path: each.state.ap
        for each in checkpoint.list_checkpoints(folder)
        if each.state.run == run and each.state.ap is not None
    }
    path = first_whole(sorted(found, key=lambda path: (found[path], path.name == BEST), reverse=True))
    return None if path is None else (path, found[path])


def remove_old(folder: Path, run: str | None, keep: int | None, newest: Path | None = None) -> None:
    """Remove the checkpoints that the newest one has made superfluous.

    Of those at the end of an epoch the newest stay, of those within an epoch only the newest of all; the best
    one stays, and so does whatever another run has left here.

    Args:
        folder: of the run.
        run: whose checkpoints may be removed.
        keep: how many to keep at the end of an epoch; None keeps them all.
        newest: path of a checkpoint without suffix that counts as the newest: those that come before it,
            which may be damaged, stay and are not counted. None: the newest of the run.

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


def remove_unfinished(folder: Path, lock: FolderLock | None = None) -> None:
    """Complete checkpoints whose files a killed process was renaming, and remove its temporary files.

    Args:
        folder: of the run.
        lock: of the folder. With it, no process of another host can be writing a checkpoint.

    Raises:
        OutputError: a file cannot be renamed or removed.
    """
    checkpoint.finish_all(folder)
    names = [f"{suffix}." for suffix in (*SUFFIXES, RECORD)]
    for path in [*folder.glob(".*"), *folder.glob("profile/.*"), *folder.glob("vdl_log/.*")]:
        of_any_host = lock is not None and lock.is_exclusive and any(name in path.name for name in names)
        of_old_version = path.name.endswith(".unfinished") and not is_temporary(path)
        if is_abandoned(path, of_any_host) or of_old_version:
            with contextlib.suppress(OSError):  # it is in nobody's way
                path.unlink()


def position_in_plan(saved: checkpoint.TrainingState, plan: checkpoint.Plan) -> tuple[int, int]:
    """Where a training stands in a plan that may be another than that of its checkpoint. Says what differs.

    Args:
        saved: what the checkpoint says.
        plan: of the run that goes on.

    Returns:
        Finished epochs and finished steps of the next one.
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
