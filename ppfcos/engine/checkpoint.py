"""Checkpoints: all that a training needs to go on, in files that `paddle.load` and PaddleDetection read too.

A checkpoint NAME is `NAME.pdparams`, the weights to evaluate and deploy; `NAME.pdopt`, the state of the
optimizer; with averaged weights (EMA), which are in NAME.pdparams then, `NAME.pdema`, the ones that the
optimizer moves; and `NAME.json`, the record, which says where the training stood and holds the checksums of
the others and of itself. A checkpoint is whole if its files are what its record says.

Random states are not among all this. What a step draws comes from (seed, epoch, step) alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppfcos.engine.checkpoint_files import (
    Plan,
    TrainingState,
    checkpoint_prefix,
    copy_checkpoint,
    file_of,
    has_record_file,
    note_ap,
    read_manifest,
    remove_checkpoint,
    require_regular_weights,
    verify_checksums,
    find_training_state,
    start_of_run,
    state_of,
    view,
    write_checkpoint,
)
from ppfcos.engine.weights import read_state
from ppfcos.engine.weights import NAME_TABLE, SUFFIXES, load_weights, read_weights
from ppfcos.errors import WeightsError
from ppfcos.fileio import sha256

__all__ = [
    "Plan",
    "TrainingState",
    "checkpoint_prefix",
    "copy_checkpoint",
    "note_ap",
    "read_manifest",
    "remove_checkpoint",
    "verify_checksums",
    "resume",
    "save_checkpoint",
    "saved_class_names",
    "find_training_state",
]

OURS = "ppfcos"  # the key of .pdopt that holds what Paddle's own state does not


# Writing ----------------------------------------------------------------------------------------------------


def save_checkpoint(
    folder: Path | str,
    name: str,
    weights: Mapping[str, paddle.Tensor],
    optimizer: Optimizer,
    state: TrainingState,
    own: Mapping[str, paddle.Tensor] | None = None,
    average: Any = None,
    scaler: Mapping[str, Any] | None = None,
    start: int | None = None,
) -> Path:
    """Write a checkpoint. A reader finds the old one or the new one, never a part of one.

    Args:
        folder: made where missing.
        name: of the checkpoint.
        weights: to evaluate and deploy.
        optimizer: with its learning-rate schedule.
        state: where the training stands.
        own: the weights that the optimizer moves, where `weights` are an average of them.
        average: PaddleDetection's ModelEMA, whose own sums are needed to go on.
        scaler: state of the loss scaler, in mixed precision.
        start: number of the training, from `next_start`; None: that of the run's last checkpoint.

    Returns:
        Path of the weights.

    Raises:
        OutputError: a file cannot be written.
    """
    prefix = Path(folder) / name
    ours: dict[str, Any] = {"optimizer": type(optimizer).__name__, "scaler": dict(scaler or {})}
    if average is not None:
        ours["ema"] = {
            "step": average.step,
            "epoch": average.epoch,
            "decay": getattr(average, "_decay", average.decay),  # of the last step
            "sums": dict(average.state_dict),
        }
    contents = {
        ".pdopt": {**optimizer.state_dict(), "last_epoch": state.epochs, OURS: ours},
        ".pdema": own,
        ".pdparams": weights,
    }
    record = {
        "run": state.run,
        "start": start_of_run(Path(folder), state.run) if start is None else start,
        "written": time.time(),
        "epochs": state.epochs,
        "step": state.step,
        "ap": state.ap,
        "plan": state.plan and state.plan._asdict(),
        "class_names": state.class_names and list(state.class_names),
    }

    def write(suffix: str, path: Path) -> dict[str, Any]:
        paddle.save(dict(contents[suffix]), str(path))
        return {"bytes": path.stat().st_size, "sha256": sha256(path)}

    suffixes = [suffix for suffix, content in contents.items() if content is not None]
    write_checkpoint(prefix, record, suffixes, write)
    return file_of(prefix, ".pdparams")


# Reading ----------------------------------------------------------------------------------------------------


def resume(
    model: nn.Layer, optimizer: Optimizer, path: Path | str, average: Any = None, scaler: Any = None
) -> TrainingState:
    """Go on from a checkpoint.

    Args:
        model: gets the weights.
        optimizer: gets its state, and that of the learning-rate schedule.
        path: of the checkpoint, with or without a suffix; PaddleDetection's work too.
        average: a new ModelEMA of the model, where the training has one.
        scaler: something with `set_state_dict`, in mixed precision: gets the loss scaler's state.

    Returns:
        Where the training stood.

    Raises:
        WeightsError: a file is missing, damaged, or does not fit the model or its optimizer.
    """
    prefix = checkpoint_prefix(path)
    if has_record_file(prefix):
        verify_checksums(prefix)
        record, files = view(prefix)
    else:
        record = None
        files = {suffix: file_of(prefix, suffix) for suffix in SUFFIXES}
        if not os.path.lexists(files[".pdema"]):
            del files[".pdema"]
        for file in files.values():
            require_regular_weights(file)
    weights = files[".pdparams"]
    saved = read_state(files[".pdopt"])
    load_weights(model, files.get(".pdema", weights))
    ours = saved.pop(OURS, {})
    epochs = int(saved.pop("last_epoch", 0))
    _check_optimizer(prefix, optimizer, ours, saved)
    # Copies of weights, as .pdema holds where there is one, have not the names that the optimizer knows.
    table = read_state(weights).get(NAME_TABLE, {})
    renamed = _renamed(saved, _new_names(model, table))
    optimizer.set_state_dict(_as_tensors(renamed))
    if average is not None:
        _resume_average(average, ours.get("ema"), weights, saved)
    if scaler is not None and ours.get("scaler"):
        scaler.set_state_dict(ours["scaler"])
    return TrainingState(epochs) if record is None else state_of(record)


def saved_class_names(source: Path | str | None) -> Sequence[str] | None:
    """The classes that weights were trained on.

    Args:
        source: path of a weights file, its address, or None.

    Returns:
        Their names in the order of the labels; None where nothing says it.

    Raises:
        WeightsError: the NAME.json beside the weights is damaged.
    """
    state = None if source is None or "://" in str(source) else find_training_state(source)
    return None if state is None else state.class_names


def _check_optimizer(prefix: Path, optimizer: Optimizer, ours: dict, saved: dict) -> None:
    written_by, current = ours.get("optimizer"), type(optimizer).__name__
    if written_by not in (None, current):
        raise WeightsError(
            f"{prefix}.pdopt is the state of the optimizer {written_by}, the configuration wants {current}: "
            "resume with the configuration of that run, or start anew with -o pretrain_weights="
        )
    if "LR_Scheduler" not in saved:
        raise WeightsError(f"{prefix}.pdopt holds no learning-rate schedule: is it an optimizer's state?")


def _new_names(model: nn.Layer, table: Mapping[str, str]) -> dict[str, str]:
    """From the names that tensors had in the run that wrote a checkpoint to those of this process.

    Paddle numbers tensors as they are made, so anything made before the model shifts them.
    """
    return {table[name]: tensor.name for name, tensor in model.state_dict().items() if name in table}


def _renamed(state: dict, names: Mapping[str, str]) -> dict:
    """The optimizer's state, whose keys start with names of tensors, with these translated."""

    def translate(key: str) -> str:
        # `conv2d_0.w_0_velocity_0` and `conv2d_0.w_0_fp32_master_0_velocity_0` belong to `conv2d_0.w_0`.
        ends = (end for end in range(len(key), 0, -1) if end == len(key) or key[end] == "_")
        end = next((end for end in ends if key[:end] in names), None)
        return key if end is None else names[key[:end]] + key[end:]

    return {
        translate(key): _renamed(value, names) if key == "master_weights" else value
        for key, value in state.items()
    }


def _as_tensors(state: dict) -> dict:
    return {
        key: paddle.to_tensor(value)
        if isinstance(value, np.ndarray)
        else (_as_tensors(value) if key == "master_weights" else value)
        for key, value in state.items()
    }


def _resume_average(average: Any, saved: dict | None, averaged: Path, optimizer_state: dict) -> None:
    if saved is None:  # PaddleDetection's checkpoints hold the averaged weights, not the sums they came from
        sums, step = read_weights(averaged), optimizer_state["LR_Scheduler"]["last_epoch"]
    else:
        sums, step = saved["sums"], saved["step"]
        average.epoch = saved["epoch"]
        average._decay = saved["decay"]  # without which it gives no average before its next step
    # What is not averaged must stay the model's own tensor.
    sums = {
        name: paddle.to_tensor(value) for name, value in sums.items() if name not in average.ema_black_list
    }
    average.resume(sums, step)
