"""Weights from files and addresses into a model: all of them, or those that fit."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppfcos.engine import distributed
from ppfcos.engine.state_file import read_state
from ppfcos.errors import WeightsError, one_line
from ppfcos.files import is_temporary
from ppfcos.modeling.quantization.placement import is_range, ranges_of

logger = logging.getLogger(__name__)

SUFFIXES = (".pdparams", ".pdopt", ".pdema")  # of the files of a checkpoint
NAME_TABLE = "StructuredToParameterName@@"  # paddle.save's: from places in the model to names of tensors


def read_weights(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of a weights file.

    Args:
        path: of the file; `.pdparams` is added where it has no suffix of a checkpoint.

    Returns:
        Arrays by their places in the model.

    Raises:
        WeightsError: it cannot be read, or holds something else.
    """
    path = Path(path)
    # A checkpoint whose writing was interrupted may have files under temporary names.
    path = path if path.suffix in SUFFIXES or is_temporary(path) else path.with_name(path.name + ".pdparams")
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

    A model in float does without the ranges of a quantisation-aware training.

    Args:
        model: changed in place, or not at all.
        source: path of the checkpoint, with or without `.pdparams`, or its URL.

    Raises:
        WeightsError: the file cannot be read, or does not fit the model; the message lists what does not.
    """
    weights, tensors = read_weights(_local(source)), model.state_dict()
    if ranges_of(model) is None:
        weights = {name: value for name, value in weights.items() if not is_range(name)}
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
    weights, tensors = read_weights(_local(source)), model.state_dict()
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
            f"{url} cannot be downloaded ({one_line(error)}): give a local file instead, "
            "or train from scratch with -o pretrain_weights="
        ) from error
