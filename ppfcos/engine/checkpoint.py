"""Saves checkpoints and resumes from them; `paddle.load` and PaddleDetection read the files, too.

A checkpoint NAME is `NAME.pdparams`, the weights to evaluate and deploy; `NAME.pdopt`, the state of the
optimizer; with an EMA, whose weights are in NAME.pdparams, `NAME.pdema`, the raw weights that the optimizer
updates; and `NAME.json`, the record of where the training stood, with checksums of the files and of itself.

Random states are not saved: they follow from (seed, epoch, step).
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
    find_training_state,
    has_record_file,
    note_ap,
    read_manifest,
    remove_checkpoint,
    require_regular_weights,
    start_of_run,
    state_of,
    verify_checksums,
    view,
    write_checkpoint,
)
from ppfcos.engine.ema import ModelEMA
from ppfcos.engine.weights import NAME_TABLE, SUFFIXES, load_weights, read_state, read_weights
from ppfcos.errors import WeightsError, one_line
from ppfcos.fileio import sha256

__all__ = [
    "Plan",
    "TrainingState",
    "checkpoint_prefix",
    "copy_checkpoint",
    "find_training_state",
    "note_ap",
    "read_manifest",
    "remove_checkpoint",
    "resume",
    "save_checkpoint",
    "saved_class_names",
    "verify_checksums",
]

STATE_DTYPES = (np.float32, np.uint16)  # uint16: bfloat16 in NumPy
EXTRA = "ppfcos"  # key of .pdopt for what Paddle's state lacks


def save_checkpoint(
    folder: Path | str,
    name: str,
    weights: Mapping[str, paddle.Tensor],
    optimizer: Optimizer,
    state: TrainingState,
    raw: Mapping[str, paddle.Tensor] | None = None,
    ema: ModelEMA | None = None,
    scaler: Mapping[str, Any] | None = None,
    start: int | None = None,
) -> Path:
    """Write a checkpoint and return the path of its weights. A reader gets the old or the new one.

    `raw` are the weights that the optimizer updates, if `weights` are EMA weights. `start` is the number of
    the training, from `next_start`; None: that of the run's last checkpoint.

    Raises:
        OutputError: a file cannot be written.
    """
    prefix = Path(folder) / name
    extra: dict[str, Any] = {"optimizer": type(optimizer).__name__, "scaler": dict(scaler or {})}
    if ema is not None:
        extra["ema"] = ema.state_dict()
    contents = {
        ".pdopt": {**optimizer.state_dict(), "last_epoch": state.epochs, EXTRA: extra},
        ".pdema": raw,
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


def resume(
    model: nn.Layer, optimizer: Optimizer, path: Path | str, ema: ModelEMA | None = None, scaler: Any = None
) -> TrainingState:
    """Restore a training from a checkpoint, also from one of PaddleDetection.

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
    extra, epochs = saved.pop(EXTRA, {}), saved.pop("last_epoch", 0)
    _check_optimizer(prefix, optimizer, extra, saved)
    try:
        _check_values(epochs, saved, extra)
        # The names in .pdema are those of copies, which the optimizer does not know.
        table = read_state(weights).get(NAME_TABLE, {})
        renamed = _renamed(saved, _new_names(model, table))
        _check_arrays(model, renamed)
        optimizer.set_state_dict(_as_tensors(renamed))
        if ema is not None:
            if "ema" in extra:
                ema.set_state_dict(extra["ema"]["sums"], extra["ema"]["step"], extra["ema"]["decay"])
            else:  # PaddleDetection saves the EMA weights, not the sums
                ema.set_state_dict(read_weights(weights), saved["LR_Scheduler"]["last_epoch"])
        if scaler is not None and extra.get("scaler"):
            scaler.set_state_dict(extra["scaler"])
    except WeightsError:
        raise
    except Exception as error:  # whatever Paddle raises for a state of another model
        raise WeightsError(
            f"{files['.pdopt']} does not fit the model and its optimizer ({one_line(error)}): resume from "
            f"another checkpoint, or start from the weights with -o pretrain_weights={weights}"
        ) from error
    return TrainingState(int(epochs)) if record is None else state_of(record)


def saved_class_names(source: Path | str | None) -> Sequence[str] | None:
    """Return the class names in the record beside a weights file, in the order of the labels.

    None if `source` is None or a URL, or has no record.
    """
    state = None if source is None or "://" in str(source) else find_training_state(source)
    return None if state is None else state.class_names


def _check_optimizer(prefix: Path, optimizer: Optimizer, extra: dict, saved: dict) -> None:
    written_by = extra.get("optimizer") if isinstance(extra, dict) else None
    current = type(optimizer).__name__
    if written_by not in (None, current):
        raise WeightsError(
            f"{prefix}.pdopt is the state of the optimizer {written_by}, the configuration wants {current}: "
            "resume with the configuration of that run, or start again with -o pretrain_weights="
        )
    if "LR_Scheduler" not in saved:
        raise WeightsError(f"{prefix}.pdopt holds no learning-rate schedule: is it an optimizer's state?")


def _check_values(epochs: Any, saved: dict, extra: Any) -> None:
    """Raise a ValueError unless numbers are numbers; `read_state` lets any plain value pass."""
    schedule, parts = saved["LR_Scheduler"], extra if isinstance(extra, dict) else {}
    scaler, ema = parts.get("scaler") or {}, parts.get("ema", {"step": 0, "decay": 0.0, "sums": {}})
    right = {
        "last_epoch": _is_whole(epochs),
        EXTRA: isinstance(extra, dict),
        "LR_Scheduler": isinstance(schedule, dict)
        and _is_whole(schedule["last_epoch"])
        and _is_number(schedule.get("last_lr", 0.0)),
        "scaler": isinstance(scaler, dict)
        and (not scaler or (_is_number(scaler["loss_scale"]) and _is_whole(scaler["good_steps"]))),
        "ema": _is_whole(ema["step"]) and _is_number(ema["decay"]) and isinstance(ema["sums"], dict),
    }
    wrong = [key for key, is_right in right.items() if not is_right]
    if wrong:
        raise ValueError(f"{wrong[0]} has an impossible value")


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and 0 <= value < 1e30


def _check_arrays(model: nn.Layer, state: dict) -> None:
    """Raise a ValueError for an array of another shape: Paddle notices it in the first step."""
    shapes = {tensor.name: tensor.shape for tensor in model.state_dict().values()}
    for key, value in {**state, **state.get("master_weights", {})}.items():
        shape = next((shape for name, shape in shapes.items() if f"{key}_".startswith(f"{name}_")), None)
        if shape is None or "_pow_acc_" in key:
            continue
        if getattr(value, "dtype", None) not in STATE_DTYPES or list(value.shape) != shape:
            raise ValueError(f"{key} is no array of shape {shape}")


def _new_names(model: nn.Layer, table: Mapping[str, str]) -> dict[str, str]:
    """Map the tensor names of the run that wrote a checkpoint to those of this process.

    Paddle numbers tensors as they are made, so anything made before the model shifts the names.
    """
    return {table[name]: tensor.name for name, tensor in model.state_dict().items() if name in table}


def _renamed(state: dict, names: Mapping[str, str]) -> dict:
    """Translate the tensor names with which the keys of the optimizer's state start."""

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
