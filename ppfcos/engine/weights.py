"""Weights from files and addresses into a model: all of them, or those that fit."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppfcos.download import Limits, download, printable
from ppfcos.engine import distributed
from ppfcos.engine.weights import read_state
from ppfcos.errors import OutputError, PPFCOSError, WeightsError
from ppfcos.fileio import is_temporary
from ppfcos.modeling.qat import is_range, get_ranges

logger = logging.getLogger(__name__)

SUFFIXES = (".pdparams", ".pdopt", ".pdema")  # of the files of a checkpoint
# Half an hour is how long Paddle's processes wait for one another.
DOWNLOAD_LIMITS = Limits(max_size=4 << 30, attempts=3, seconds=20 * 60)
ARCHIVES = (".tar", ".zip", ".tgz", ".gz", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar")
ARCHIVE_BYTES = (b"PK\3\4", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")  # the first of a file
# Whose files PaddleDetection's cache tells apart by their names.
PADDLE_SERVERS = (
    "paddledet.bj.bcebos.com/",
    "bj.bcebos.com/v1/paddledet/",
    "paddle-hapi.bj.bcebos.com/",
    "paddle-imagenet-models-name.bj.bcebos.com/",
    "paddlemodels.bj.bcebos.com/",
)
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
        str(name)
        for name, value in weights.items()
        if type(name) is not str or getattr(value, "dtype", np.dtype(object)).kind not in "fiub"
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
    weights, tensors = read_weights(_local(source, "weights")), model.state_dict()
    if get_ranges(model) is None:
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
    weights, tensors = read_weights(_local(source, "pretrain_weights")), model.state_dict()
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


def _local(source: Path | str, key: str) -> Path | str:
    return _download(str(source), key) if "://" in str(source) else source


def _download(url: str, key: str) -> Path:
    """Path of a URL's file in PaddleDetection's cache. One process a machine downloads, the others wait.

    PaddleDetection's cache goes by the last part of an address alone. Its files are used for addresses of its
    own, and for others if these cannot be reached. What is downloaded here has the whole address in its name.
    """
    from ppdet.utils.download import WEIGHTS_HOME, parse_url

    url = parse_url(url)
    last = url.rpartition("/")[2]
    shared = Path(WEIGHTS_HOME, re.sub(r"\.(zip|tar|gz)", "", last))
    if url.partition("://")[2].startswith(PADDLE_SERVERS) and os.path.isfile(shared):
        return shared
    stem = re.sub("[^A-Za-z0-9_-]", "_", last.partition(".")[0])[:80]
    digest = hashlib.sha256(url.encode(errors="replace")).hexdigest()[:16]
    cached = Path(WEIGHTS_HOME, f"{stem}-{digest}.pdparams")
    with distributed.collective_error_check():
        if not os.path.isfile(cached) and os.environ.get("PADDLE_RANK_IN_NODE", "0") == "0":
            try:
                _download_to_cache(url, cached, key, once=os.path.isfile(shared))
            except PPFCOSError as error:
                if not os.path.isfile(shared):
                    raise
                logger.warning("%s; taken instead: %s, of an address that ends alike", error, shared)
    return cached if os.path.isfile(cached) else shared


def _download_to_cache(url: str, cached: Path, key: str, once: bool) -> None:
    cure = f"download it by hand and give the .pdparams file with -o {key}=FILE"
    if key == "pretrain_weights":
        cure += ", or train from scratch with -o pretrain_weights="
    if re.split("[?#]", url)[0].lower().endswith(ARCHIVES):
        raise WeightsError(f"{printable(url)} is an archive, which is not unpacked: {cure}")
    logger.info("downloading %s", printable(url))
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{cached.parent} cannot be made ({error.strerror}): {cure}") from error
    limits = DOWNLOAD_LIMITS._replace(attempts=1) if once else DOWNLOAD_LIMITS
    on_terminal = sys.stderr is not None and sys.stderr.isatty()  # in a log, it would be many lines
    download(url, cached, check=_fault, limits=limits, error=WeightsError, cure=cure, progress=on_terminal)


def _fault(path: Path) -> str | None:
    """Why a downloaded file is not a .pdparams file: a pickle of protocol 2 or later, as Paddle writes."""
    with open(path, "rb") as file:
        start = file.read(512)
        file.seek(-min(1, len(start)), os.SEEK_END)
        last = file.read(1)
    if start[:1] == b"\x80" and last == b".":
        return None
    if start.startswith(ARCHIVE_BYTES) or start[257:262] == b"ustar":
        return "it is an archive, which is not unpacked"
    if start.lstrip()[:1] == b"<":
        return "it is a web page"
    return "it is not a .pdparams file, or not all of one"
