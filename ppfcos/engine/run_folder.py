"""The checkpoints of a run: their names, which of them stay, and from which one to go on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppfcos.engine import checkpoint
from ppfcos.errors import WeightsError

logger = logging.getLogger(__name__)

BEST, FINAL = "best_model", "model_final"  # PaddleDetection's names


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
        Its path without suffix; None if there is none. Those that are broken are named in the log.
    """
    for path in checkpoint.checkpoints_by_age(folder):
        try:
            checkpoint.require_whole(path)
        except WeightsError as error:
            logger.warning("the checkpoint %s is passed over: %s", path, error)
            continue
        return path
    return None


def remove_old(folder: Path, run: str | None, keep: int | None) -> None:
    """Remove the checkpoints that the newest one has made superfluous.

    Of those at the end of an epoch the newest stay, of those within an epoch only the newest of all; the best
    one stays, and so does whatever another run has left here.

    Args:
        folder: of the run.
        run: whose checkpoints may be removed.
        keep: how many to keep at the end of an epoch; None keeps them all.

    Raises:
        OutputError: a file cannot be removed.
    """
    after_epochs, newest = 0, True
    for path in checkpoint.checkpoints_by_age(folder):
        if path.name == BEST:
            continue
        try:
            state = checkpoint.read_manifest(path)
        except WeightsError:
            continue
        if state.run != run:
            continue
        after_epochs += not state.step
        if (not newest) if state.step else (keep is not None and after_epochs > keep):
            checkpoint.remove_checkpoint(path)
        newest = False


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
