"""Weights and the state of a training, from and to files that `paddle.load` and PaddleDetection read too.

A checkpoint NAME is `NAME.pdparams`, the weights to evaluate and deploy, and `NAME.pdopt`, the state of the
optimizer. With averaged weights (EMA) these are in NAME.pdparams, and the ones that the optimizer moves in
`NAME.pdema`.

These files are pickles, and a pickle can run any code. Ours is read by an unpickler that knows NumPy's arrays
and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ppfcos.engine import distributed
from ppfcos.engine.files import replacing
from ppfcos.errors import OutputError, WeightsError

logger = logging.getLogger(__name__)

SUFFIXES = (".pdparams", ".pdopt", ".pdema")
NAME_TABLE = "StructuredToParameterName@@"  # paddle.save's: from places in the model to names of tensors
OURS = "ppfcos"  # the key of .pdopt that holds what Paddle's own state does not


class TrainingState(NamedTuple):
    """Where a training stands, besides its weights.

    Attributes:
        epochs: finished ones.
        ap: box AP of these weights, if they were evaluated.
    """

    epochs: int
    ap: float | None = None


def _array_bytes(text: str, encoding: str) -> bytes:
    """Old pickles hold bytes as text. The real `_codecs.encode` would take any codec there is."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


_SAFE = {
    "tuple": tuple,
    "dtype": np.dtype,
    "ndarray": np.ndarray,
    "_reconstruct": np.zeros(0).__reduce__()[0],  # wherever this version of NumPy keeps it
    "scalar": np.float64(0).__reduce__()[0],
    "OrderedDict": dict,
    "encode": _array_bytes,
}
_SAFE_MODULES = {
    "builtins": {"tuple"},
    "__builtin__": {"tuple"},
    "collections": {"OrderedDict"},
    "_codecs": {"encode"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _SAFE_MODULES.get(module, ()):
            raise _UnsafeError(f"{module}.{name}")
        return _SAFE[name]


class _UnsafeError(Exception):
    """A pickle asks for something that is no array."""


def read_state(path: Path | str) -> dict[str, Any]:
    """Read what `paddle.save` wrote, without the power to run code.

    Args:
        path: a .pdparams, .pdopt or .pdema file, of Paddle 2 or 3, or of PaddleDetection.

    Returns:
        Arrays, numbers and dicts of these, by name.

    Raises:
        WeightsError: the file is missing, corrupt, no pickle of a dict, or asks for more than arrays.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            state = _ArrayUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except _UnsafeError as error:
        raise WeightsError(
            f"{path} is refused: its pickle asks for {error}, and weights need nothing but NumPy arrays"
        ) from None
    except Exception as error:  # damaged bytes make the unpickler raise anything
        raise WeightsError(
            f"{path} is damaged or no weights file ({_as_one_line(error)}): download or write it again"
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds a {type(state).__name__}, not weights by their names")
    return {name: _without_tensor_names(value) for name, value in state.items()}


def _as_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def _without_tensor_names(value: Any) -> Any:
    """Tensors of a nested state are saved as pairs of a name and an array."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):
        return value[1]
    if isinstance(value, dict):
        return {name: _without_tensor_names(inner) for name, inner in value.items()}
    return value


def checkpoint_prefix(path: Path | str) -> Path:
    """The NAME of a checkpoint, however it was given.

    Args:
        path: `NAME`, or one of its files.

    Returns:
        The path without the suffix.
    """
    path = Path(path)
    return path.with_suffix("") if path.suffix in SUFFIXES else path


def _file(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _read_weights(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of NAME.pdparams."""
    path = Path(path)
    path = path if path.suffix in SUFFIXES else _file(path, ".pdparams")
    weights = {name: value for name, value in read_state(path).items() if name != NAME_TABLE}
    odd = [
        name
        for name, value in weights.items()
        if getattr(value, "dtype", np.dtype(object)).kind not in "fiub"
    ]
    if odd:
        raise WeightsError(f"{path} holds more than weights ({_some(odd)}): is it a .pdparams file?")
    return weights


def load_weights(model: nn.Layer, source: Path | str) -> None:
    """Give a model the weights of a checkpoint, all of them.

    Args:
        model: changed in place, or not at all.
        source: path of the checkpoint, with or without `.pdparams`, or its URL.

    Raises:
        WeightsError: the file cannot be read, or does not fit the model; the message lists what does not.
    """
    weights, tensors = _read_weights(_local(source)), model.state_dict()
    missing = [name for name in tensors if name not in weights]
    unexpected = [name for name in weights if name not in tensors]
    reshaped = [
        f"{name} {list(weights[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in weights and list(weights[name].shape) != list(tensor.shape)
    ]
    if missing or unexpected or reshaped:
        parts = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
        listed = "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in parts.items() if names)
        raise WeightsError(
            f"{source} holds weights of another model: {listed}. Use the configuration it was trained with, "
            "or start from it with -o pretrain_weights="
        )
    _assign(tensors, weights)


def load_pretrained(model: nn.Layer, source: str) -> None:
    """Give a model what fits of another one's weights, such as a backbone trained on ImageNet.

    A weight of the file is taken where its name, or what follows a dot in it, is a name of the model:
    `conv1.weight` fits `backbone.conv1.weight`. Of several, the longest is taken. This is PaddleDetection's
    rule.

    Args:
        model: changed in place.
        source: path of the file, with or without `.pdparams`, or its URL.

    Raises:
        WeightsError: it cannot be read or downloaded, nothing of it fits, or a weight of it fits twice.
    """
    weights, tensors = _read_weights(_local(source)), model.state_dict()
    matches = _match_names(tensors, weights)
    _check_unambiguous(source, matches)
    reshaped = [
        name for name, key in matches.items() if list(weights[key].shape) != list(tensors[name].shape)
    ]
    fitting = {name: weights[key] for name, key in matches.items() if name not in reshaped}
    if not fitting:
        raise WeightsError(
            f"pretrain_weights {source}: none of its {len(weights)} weights fits the model "
            f"({_some(list(weights))} in the file, {_some(list(tensors))} in the model)"
        )
    _assign(tensors, fitting)
    logger.info(
        "pretrained weights %s: %d of the model's %d taken%s%s",
        source,
        len(fitting),
        len(tensors),
        _counted("not in the model", [key for key in weights if key not in matches.values()]),
        _counted("of another shape", reshaped),
    )


def _match_names(wanted: Iterable[str], offered: Mapping[str, Any]) -> dict[str, str]:
    """For each name of the model the longest of the file's that it ends with."""
    matches: dict[str, str] = {}
    for name in wanted:
        parts = name.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts)))
        match = next((ending for ending in endings if ending in offered), None)
        if match is not None:
            matches[name] = match
    return matches


def _check_unambiguous(source: str, matches: Mapping[str, str]) -> None:
    takers: dict[str, str] = {}
    for name, key in matches.items():
        if key in takers:
            raise WeightsError(f"{source}: its {key} fits both {takers[key]} and {name} of the model")
        takers[key] = name


def _assign(tensors: Mapping[str, paddle.Tensor], weights: Mapping[str, np.ndarray]) -> None:
    for name, array in weights.items():
        if array.dtype == np.uint16:  # how Paddle keeps bfloat16 in NumPy: the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name].set_value(paddle.to_tensor(array).astype(tensors[name].dtype))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _counted(what: str, names: list[str]) -> str:
    return f", {len(names)} {what} ({_some(names)})" if names else ""


def _local(source: Path | str) -> Path | str:
    return _download(str(source)) if "://" in str(source) else source


def _download(url: str) -> str:
    """Path of a URL in PaddleDetection's cache. One process a machine downloads, the others wait."""
    from ppdet.utils.download import WEIGHTS_HOME, map_path, parse_url

    cached = map_path(parse_url(url), WEIGHTS_HOME)
    # Where several were to start at once, PaddleDetection would let them wait forever for one that fails. And
    # what it has in its cache already it asks the internet about.
    with distributed.together():
        if not os.path.isfile(cached) and os.environ.get("PADDLE_RANK_IN_NODE", "0") == "0":
            _download_to_cache(url)
    return cached


def _download_to_cache(url: str) -> None:
    from ppdet.utils.download import get_weights_path

    logger.info("downloading %s", url)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar, thousands of lines long in a log
            get_weights_path(url)
    except (Exception, SystemExit) as error:
        raise WeightsError(
            f"{url} cannot be downloaded ({_as_one_line(error)}): give a local file instead, "
            "or train from scratch with -o pretrain_weights="
        ) from error


def save_checkpoint(
    folder: Path | str,
    name: str,
    weights: Mapping[str, paddle.Tensor],
    optimizer: Optimizer,
    state: TrainingState,
    own: Mapping[str, paddle.Tensor] | None = None,
    average: Any = None,
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

    Returns:
        Path of the weights.

    Raises:
        OutputError: a file cannot be written.
    """
    prefix = Path(folder) / name
    ours = {"optimizer": type(optimizer).__name__, "ap": state.ap}
    if average is not None:
        ours["ema"] = {"step": average.step, "epoch": average.epoch, "sums": dict(average.state_dict)}
    files = {
        ".pdopt": {**optimizer.state_dict(), "last_epoch": state.epochs, OURS: ours},
        ".pdema": own,
        ".pdparams": weights,  # last: who finds it finds the others too
    }
    for suffix, content in files.items():
        path = _file(prefix, suffix)
        if content is None:
            _remove(path)
            continue
        with replacing(path) as unfinished:
            paddle.save(dict(content), str(unfinished))
    return _file(prefix, ".pdparams")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} of an earlier run cannot be removed: {error.strerror or error}") from error


def resume(model: nn.Layer, optimizer: Optimizer, path: Path | str, average: Any = None) -> TrainingState:
    """Go on from a checkpoint.

    Args:
        model: gets the weights.
        optimizer: gets its state, and that of the learning-rate schedule.
        path: of the checkpoint, with or without a suffix; PaddleDetection's work too.
        average: a new ModelEMA of the model, where the training has one.

    Returns:
        Where the training stood.

    Raises:
        WeightsError: a file is missing or does not fit the model or its optimizer.
    """
    prefix = checkpoint_prefix(path)
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
    return TrainingState(epochs, ours.get("ap"))


def saved_ap(path: Path | str) -> float | None:
    """The box AP of a checkpoint.

    Args:
        path: of the checkpoint, with or without a suffix.

    Returns:
        None if there is no such checkpoint, or it was not evaluated.
    """
    optimizer_file = _file(checkpoint_prefix(path), ".pdopt")
    return read_state(optimizer_file).get(OURS, {}).get("ap") if optimizer_file.is_file() else None


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
        sums, step = _read_weights(averaged), optimizer_state["LR_Scheduler"]["last_epoch"]
    else:
        sums, step = saved["sums"], saved["step"]
        average.epoch = saved["epoch"]
    # What is not averaged must stay the model's own tensor.
    sums = {
        name: paddle.to_tensor(value) for name, value in sums.items() if name not in average.ema_black_list
    }
    average.resume(sums, step)
