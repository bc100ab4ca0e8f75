"""Reads the state files of Paddle, which are pickles, with a restricted unpickler."""

from __future__ import annotations

import contextlib
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ppfcos.engine.restricted_unpickler import Memory, RestrictedUnpickler, UnsafePickleError, checked_shape
from ppfcos.errors import WeightsError, one_line

SLICES = "UnpackBigParamInfor@@"  # paddle.save's: which entries are slices of which array


@contextlib.contextmanager
def reading(path: Path, kind: str, needed: str) -> Iterator[None]:
    """Within it, whatever goes wrong with a file of weights is told in one line.

    Args:
        path: of the file.
        kind: what it should be, such as `weights file`.
        needed: all that its pickle may ask for.

    Raises:
        WeightsError: the file is missing, damaged, or asks for more.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait, and a device never ends
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
    """See that a file holds weights by their names.

    Args:
        path: of the file.
        content: what was read of it.

    Raises:
        WeightsError: it is no dictionary.
    """
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not weights by their names")


def read_state(path: Path | str) -> dict[str, Any]:
    """Read what `paddle.save` wrote, with a restricted unpickler.

    Args:
        path: a .pdparams, .pdopt or .pdema file, of Paddle 2 or 3, or of PaddleDetection.

    Returns:
        Arrays, numbers and dicts of these, by name. Tensors that Paddle saved as pairs of a name and an array
        are arrays.

    Raises:
        WeightsError: the file is missing, corrupt, no pickle of a dict, takes more memory than its size
            explains, or asks for more than arrays.
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
    """Tensors of a nested state are saved as pairs of a name and an array."""
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
