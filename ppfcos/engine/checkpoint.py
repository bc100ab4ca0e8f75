"""Checkpoints: all that a training needs to go on, in files that `paddle.load` and PaddleDetection read too.

A checkpoint NAME is `NAME.pdparams`, the weights to evaluate and deploy; `NAME.pdopt`, the state of the
optimizer; with averaged weights (EMA), which are in NAME.pdparams then, `NAME.pdema`, the ones that the
optimizer moves; and `NAME.json`, which says where the training stood and holds the checksums of the others.
It is written last: a checkpoint that has it, and whose files are what it says, is whole.

Random states are not among all this. What a step draws comes from (seed, epoch, step) alone.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppfcos.engine.state_file import read_state
from ppfcos.engine.weights import NAME_TABLE, SUFFIXES, load_weights, read_weights
from ppfcos.errors import OutputError, WeightsError, one_line
from ppfcos.files import replacing, replacing_together, sha256

MANIFEST = ".json"
OURS = "ppfcos"  # the key of .pdopt that holds what Paddle's own state does not


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


def checkpoint_prefix(path: Path | str) -> Path:
    """The NAME of a checkpoint, however it was given.

    Args:
        path: `NAME`, or one of its files.

    Returns:
        The path without the suffix.
    """
    path = Path(path)
    return path.with_suffix("") if path.suffix in (*SUFFIXES, MANIFEST) else path


def _file(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


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
) -> Path:
    """Write a checkpoint. A reader finds the old one or the new one, never half of one.

    Args:
        folder: made where missing.
        name: of the checkpoint.
        weights: to evaluate and deploy.
        optimizer: with its learning-rate schedule.
        state: where the training stands.
        own: the weights that the optimizer moves, where `weights` are an average of them.
        average: PaddleDetection's ModelEMA, whose own sums are needed to go on.
        scaler: state of the loss scaler, in mixed precision.

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
    files = {}
    with replacing_together() as beside:
        for suffix, content in contents.items():
            if content is None:
                continue
            with beside(_file(prefix, suffix)) as unfinished:
                paddle.save(dict(content), str(unfinished))
                files[suffix] = {"bytes": unfinished.stat().st_size, "sha256": sha256(unfinished)}
        with beside(_file(prefix, MANIFEST)) as unfinished:
            _write_manifest(unfinished, state, files)
        _make_room(prefix, files)
    return _file(prefix, ".pdparams")


def _make_room(prefix: Path, coming: Collection[str]) -> None:
    """Remove what a checkpoint of this name says of itself, for that is not true of the files to come, and
    the files that none of these replaces. They must all be on the disk already: then a full one has kept
    the old checkpoint."""
    _remove(_file(prefix, MANIFEST))
    for suffix in SUFFIXES:
        if suffix not in coming:
            _remove(_file(prefix, suffix))


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
    state = read_manifest(prefix)._replace(ap=ap)
    with replacing(_file(prefix, MANIFEST)) as unfinished:
        _write_manifest(unfinished, state, _read_json(prefix)["files"])


def copy_checkpoint(path: Path | str, name: str) -> Path:
    """Give a checkpoint a second name, which takes no room where the file system has hard links.

    Args:
        path: of the checkpoint, with or without a suffix.
        name: the second one, in the same folder; what had it before is replaced.

    Returns:
        Path of the second name's weights.

    Raises:
        OutputError: it cannot be written.
    """
    source = checkpoint_prefix(path)
    target = source.with_name(name)
    suffixes = [suffix for suffix in (*SUFFIXES, MANIFEST) if _file(source, suffix).exists()]
    with replacing_together() as beside:
        for suffix in suffixes:
            with beside(_file(target, suffix)) as unfinished:
                try:
                    os.link(_file(source, suffix), unfinished)
                except OSError:
                    shutil.copyfile(_file(source, suffix), unfinished)
        _make_room(target, suffixes)
    return _file(target, ".pdparams")


def remove_checkpoint(path: Path | str) -> None:
    """Remove a checkpoint.

    Args:
        path: of the checkpoint, with or without a suffix.

    Raises:
        OutputError: it cannot be removed.
    """
    for suffix in (MANIFEST, *SUFFIXES):
        _remove(_file(checkpoint_prefix(path), suffix))


def _write_manifest(path: Path, state: TrainingState, files: Mapping[str, Any]) -> None:
    content = {
        "format": 1,
        "run": state.run,
        "written": time.time(),
        "epochs": state.epochs,
        "step": state.step,
        "ap": state.ap,
        "plan": state.plan and state.plan._asdict(),
        "class_names": state.class_names and list(state.class_names),
        "files": files,
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be removed: {error.strerror or error}") from error


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
    if _file(prefix, MANIFEST).exists():
        require_whole(prefix)
    moved = _file(prefix, ".pdema") if _file(prefix, ".pdema").is_file() else _file(prefix, ".pdparams")
    saved = read_state(_file(prefix, ".pdopt"))
    load_weights(model, moved)
    ours = saved.pop(OURS, {})
    epochs = int(saved.pop("last_epoch", 0))
    _check_optimizer(prefix, optimizer, ours, saved)
    # Copies of weights, as .pdema holds where there is one, have not the names that the optimizer knows.
    table = read_state(_file(prefix, ".pdparams")).get(NAME_TABLE, {})
    renamed = _renamed(saved, _new_names(model, table))
    optimizer.set_state_dict(_as_tensors(renamed))
    if average is not None:
        _resume_average(average, ours.get("ema"), _file(prefix, ".pdparams"), saved)
    if scaler is not None and ours.get("scaler"):
        scaler.set_state_dict(ours["scaler"])
    return saved_state(prefix) or TrainingState(epochs)


def read_manifest(path: Path | str) -> TrainingState:
    """Where the training stood when a checkpoint was written.

    Args:
        path: of the checkpoint, with or without a suffix.

    Returns:
        What its NAME.json says.

    Raises:
        WeightsError: that is missing or damaged.
    """
    content = _read_json(checkpoint_prefix(path))
    plan = content["plan"] and Plan(**content["plan"])
    return TrainingState(
        content["epochs"], content["step"], content["ap"], content["run"], plan, content["class_names"]
    )


def require_whole(path: Path | str) -> None:
    """Compare a checkpoint's files with their checksums.

    Args:
        path: of the checkpoint, with or without a suffix.

    Raises:
        WeightsError: one is missing or not what it was; the message names it.
    """
    prefix = checkpoint_prefix(path)
    for suffix, known in _read_json(prefix)["files"].items():
        file = _file(prefix, suffix)
        try:
            whole = file.stat().st_size == known["bytes"] and sha256(file) == known["sha256"]
        except OSError as error:
            raise WeightsError(f"{file} cannot be read: {error.strerror or error}") from error
        if not whole:
            raise WeightsError(
                f"{file} is damaged: it is not what {prefix.name}{MANIFEST} says was written; "
                "resume from another checkpoint, or let -r auto find one"
            )


def checkpoints_by_age(folder: Path | str) -> list[Path]:
    """All checkpoints in a folder that have a NAME.json, whole or not.

    Args:
        folder: need not exist.

    Returns:
        Their paths without suffix, the newest first.
    """
    found = []
    for path in Path(folder).glob("*" + MANIFEST):
        try:
            found.append((_read_json(path.with_suffix(""))["written"], path.with_suffix("")))
        except WeightsError:
            if _file(path.with_suffix(""), ".pdparams").exists():
                found.append((path.stat().st_mtime, path.with_suffix("")))
    return [path for _, path in sorted(found, reverse=True)]


def _read_json(prefix: Path) -> dict[str, Any]:
    path = _file(prefix, MANIFEST)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != 1:
            raise WeightsError(f"{path} is of format {content['format']!r}, which this version does not know")
        for key in ("written", "epochs", "step", "ap", "run", "plan", "class_names", "files"):
            content[key]
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise WeightsError(f"{path} is damaged or describes no checkpoint ({one_line(error)})") from error
    return content


def saved_state(path: Path | str) -> TrainingState | None:
    """As `read_manifest`, of a checkpoint that need not be there.

    Args:
        path: of the checkpoint, with or without a suffix.

    Returns:
        What its NAME.json says; None if it has none.

    Raises:
        WeightsError: that is damaged.
    """
    prefix = checkpoint_prefix(path)
    return read_manifest(prefix) if _file(prefix, MANIFEST).is_file() else None


def saved_class_names(source: Path | str | None) -> Sequence[str] | None:
    """The classes that weights were trained on.

    Args:
        source: path of a weights file, its address, or None.

    Returns:
        Their names in the order of the labels; None where nothing says it.

    Raises:
        WeightsError: the NAME.json beside the weights is damaged.
    """
    state = None if source is None or "://" in str(source) else saved_state(source)
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
