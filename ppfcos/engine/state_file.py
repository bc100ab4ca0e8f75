"""State files of Paddle, read without the power to run code.

They are pickles, and a pickle can run any code. Ours is read by an unpickler that knows NumPy's arrays and
nothing else.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ppfcos.errors import WeightsError, one_line


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


class UnsafePickleError(Exception):
    """A pickle asks for something that is no array."""


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler of NumPy's arrays, and of nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name.

        Raises:
            UnsafePickleError: it names anything else.
        """
        if name not in _SAFE_MODULES.get(module, ()):
            raise UnsafePickleError(f"{module}.{name}")
        return _SAFE[name]


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
        yield
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
    """Read what `paddle.save` wrote, without the power to run code.

    Args:
        path: a .pdparams, .pdopt or .pdema file, of Paddle 2 or 3, or of PaddleDetection.

    Returns:
        Arrays, numbers and dicts of these, by name.

    Raises:
        WeightsError: the file is missing, corrupt, no pickle of a dict, or asks for more than arrays.
    """
    path = Path(path)
    with reading(path, "weights file", "NumPy arrays"), path.open("rb") as file:
        state = ArrayUnpickler(file, encoding="latin1").load()
    require_dict(path, state)
    return {name: _without_tensor_names(value) for name, value in state.items()}


def _without_tensor_names(value: Any) -> Any:
    """Tensors of a nested state are saved as pairs of a name and an array."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):
        return value[1]
    if isinstance(value, dict):
        return {name: _without_tensor_names(inner) for name, inner in value.items()}
    return value
