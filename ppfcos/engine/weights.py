"""Reads weights files with a restricted unpickler, downloads them, and loads them into a model."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppfcos.console import printable
from ppfcos.download import Limits, download
from ppfcos.engine.restricted_unpickler import Memory, RestrictedUnpickler, UnsafePickleError, checked_shape
from ppfcos.errors import OutputError, PPFCOSError, WeightsError, one_line
from ppfcos.fileio import is_temporary
from ppfcos.modeling.qat import get_ranges, is_range

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None

logger = logging.getLogger(__name__)

SUFFIXES = (".pdparams", ".pdopt", ".pdema")  # of the files of a checkpoint
NAME_TABLE = "StructuredToParameterName@@"  # paddle.save's: from names in the model to names of tensors
SLICES = "UnpackBigParamInfor@@"  # paddle.save's: which entries are slices of which array
# Paddle's ranks wait for one another for at most half an hour.
DOWNLOAD_LIMITS = Limits(max_size=4 << 30, attempts=3, seconds=20 * 60)
ARCHIVES = (".tar", ".zip", ".tgz", ".gz", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar")
ARCHIVE_BYTES = (b"PK\3\4", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")  # the first of a file
# Servers whose files have unique names in PaddleDetection's cache.
PADDLE_SERVERS = (
    "paddledet.bj.bcebos.com/",
    "bj.bcebos.com/v1/paddledet/",
    "paddle-hapi.bj.bcebos.com/",
    "paddle-imagenet-models-name.bj.bcebos.com/",
    "paddlemodels.bj.bcebos.com/",
)


# Reading ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(path: Path, kind: str, needed: str) -> Iterator[None]:
    """Turn any failure to read a weights file into a WeightsError of one line."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block, and a device never ends
            raise WeightsError(f"{path} cannot be read: it is not a regular file")
        yield
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnsafePickleError as error:
        raise WeightsError(
            f"{path} is refused: its pickle asks for {error}, and weights need nothing but {needed}"
        ) from None
    except Exception as error:  # damaged bytes make the unpickler raise anything
        raise WeightsError(
            f"{path} is damaged or no {kind} ({one_line(error)}): download or write it again"
        ) from error


def require_dict(path: Path, content: Any) -> None:
    """Raise a WeightsError unless the content of a file is a dictionary."""
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not weights by their names")


def read_state(path: Path | str) -> dict[str, Any]:
    """Read a file of `paddle.save` with a restricted unpickler.

    Returns:
        Arrays, numbers and dicts of these, by name.

    Raises:
        WeightsError: the file is missing or corrupt, takes more memory than its size explains, or contains
            other objects.
    """
    path = Path(path)
    with reading(path, "weights file", "NumPy arrays"), path.open("rb") as file:
        unpickler = RestrictedUnpickler(file, os.fstat(file.fileno()).st_size)
        state = unpickler.load()
        require_dict(path, state)
        _remove_tensor_names(state)
        _join_slices(state, unpickler.memory)
    return state


def _remove_tensor_names(state: dict[str, Any]) -> None:
    """Paddle saves tensors of a nested state as pairs of a name and an array."""
    pending, seen = [state], {id(state)}
    while pending:
        nested = pending.pop()
        for name, value in nested.items():
            if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):
                nested[name] = value[1]
            elif isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                pending.append(value)


def _join_slices(state: dict[str, Any], memory: Memory) -> None:
    """Before pickle protocol 4, Paddle saves an array of more than a GiB in slices."""
    slices = state.pop(SLICES, {})
    if type(slices) is not dict:
        raise pickle.UnpicklingError("slices without names")
    for name, about in slices.items():
        names, shape = about["slices"], checked_shape(about["OriginShape"])
        parts = [state.pop(part, None) for part in names if type(part) is str]
        if not parts or not all(
            isinstance(part, np.ndarray) and part.dtype == parts[0].dtype for part in parts
        ):
            raise pickle.UnpicklingError("slices of an array that are missing")
        memory.charge(sum(part.nbytes for part in parts))
        state[name] = np.concatenate(parts).reshape(shape)


def read_weights(path: Path | str) -> dict[str, np.ndarray]:
    """Read the arrays of a weights file by their names; `.pdparams` is appended to a NAME without suffix."""
    path = Path(path)
    # An interrupted checkpoint may have files under temporary names.
    path = path if path.suffix in SUFFIXES or is_temporary(path) else path.with_name(path.name + ".pdparams")
    weights = {name: value for name, value in read_state(path).items() if name != NAME_TABLE}
    odd = [
        str(name)
        for name, value in weights.items()
        if type(name) is not str or getattr(value, "dtype", np.dtype(object)).kind not in "fiub"
    ]
    if odd:
        raise WeightsError(f"{path} holds more than weights ({_shorten(odd)}): is it a .pdparams file?")
    return weights


# Loading ----------------------------------------------------------------------------------------------------


def load_weights(model: nn.Layer, source: Path | str) -> None:
    """Load all weights of a checkpoint, a path or URL, into a model, which is unchanged if this fails.

    A float model ignores the ranges of QAT.

    Raises:
        WeightsError: the file cannot be read or does not fit the model; the message lists the keys.
    """
    weights, tensors = read_weights(_local_path(source, "weights")), model.state_dict()
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
        listed = "; ".join(
            f"{len(names)} {what} ({_shorten(names)})" for what, names in parts.items() if names
        )
        raise WeightsError(
            f"{source} holds weights of another model: {listed}. Use the configuration it was trained with, "
            "or start from it with -o pretrain_weights="
        )
    _assign(tensors, weights)


def load_pretrained(model: nn.Layer, source: str) -> None:
    """Load the weights of a path or URL that fit a model by name and shape, by PaddleDetection's rule.

    A name of the file fits if it is the end of a name of the model: `conv1.weight` fits
    `backbone.conv1.weight`. The longest match wins.

    Raises:
        WeightsError: the file cannot be read or downloaded, no weight fits, or one fits twice.
    """
    weights, tensors = read_weights(_local_path(source, "pretrain_weights")), model.state_dict()
    matches = _match_names(tensors, weights)
    _check_unambiguous(source, matches)
    reshaped = [
        name for name, key in matches.items() if list(weights[key].shape) != list(tensors[name].shape)
    ]
    fitting = {name: weights[key] for name, key in matches.items() if name not in reshaped}
    if not fitting:
        raise WeightsError(
            f"pretrain_weights {source}: none of its {len(weights)} weights fits the model "
            f"({_shorten(list(weights))} in the file, {_shorten(list(tensors))} in the model)"
        )
    _assign(tensors, fitting)
    logger.info(
        "pretrained weights %s: %d of the model's %d taken%s%s",
        source,
        len(fitting),
        len(tensors),
        _count_keys("not in the model", [key for key in weights if key not in matches.values()]),
        _count_keys("of another shape", reshaped),
    )


def _match_names(wanted: Iterable[str], offered: Mapping[str, Any]) -> dict[str, str]:
    """Map each name of the model to the longest name of the file that it ends with."""
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
        if array.dtype == np.uint16:  # bfloat16 in NumPy: the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name].set_value(paddle.to_tensor(array).astype(tensors[name].dtype))


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _count_keys(what: str, names: list[str]) -> str:
    return f", {len(names)} {what} ({_shorten(names)})" if names else ""


def _local_path(source: Path | str, key: str) -> Path | str:
    return _download(str(source), key) if "://" in str(source) else source


def _download(url: str, key: str) -> Path:
    """Download a URL to PaddleDetection's cache; one process per machine downloads, the others wait.

    PaddleDetection's cache uses only the last part of a URL as the name. Its files are used for
    PaddlePaddle's own servers, and as a fallback for others; files downloaded here have a hash of the URL in
    their name.
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
    try:
        _download_to_cache(url, cached, key, once=os.path.isfile(shared))
    except PPFCOSError as error:
        if not os.path.isfile(shared):
            raise
        logger.warning("%s; using the cached %s of a URL that ends alike", error, shared)
        return shared
    return cached


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out of the block; do nothing on a file system without locks."""
    with contextlib.ExitStack() as cleanup:
        if fcntl is not None:
            descriptor = os.open(folder, os.O_RDONLY)
            cleanup.callback(os.close, descriptor)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _download_to_cache(url: str, cached: Path, key: str, once: bool) -> None:
    if os.path.isfile(cached):
        return
    fix = f"download it by hand and give the .pdparams file with -o {key}=FILE"
    if key == "pretrain_weights":
        fix += ", or train from scratch with -o pretrain_weights="
    if re.split("[?#]", url)[0].lower().endswith(ARCHIVES):
        raise WeightsError(f"{printable(url[:200])} is an archive, which is not unpacked: {fix}")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{cached.parent} cannot be made ({error.strerror}): {fix}") from error
    limits = DOWNLOAD_LIMITS._replace(attempts=1) if once else DOWNLOAD_LIMITS
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    with _locked(cached.parent):
        if not os.path.isfile(cached):  # another rank may have downloaded it
            logger.info("downloading %s", printable(url))
            download(
                url,
                cached,
                check=_find_fault,
                limits=limits,
                error=WeightsError,
                cure=fix,
                progress=on_terminal,
            )


def _find_fault(path: Path) -> str | None:
    """Return why a file is not a .pdparams file, a pickle of protocol 2 or later; None if it is."""
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
