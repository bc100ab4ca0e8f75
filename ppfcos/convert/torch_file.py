"""Checkpoints of PyTorch, read without PyTorch and without the power to run code.

`torch.save` writes a zip archive (since version 1.6) or pickles one after another with the raw numbers behind
them. In both, the pickle names functions that put tensors together from storages. Here these few are our own,
classes of the projects that we know become empty shells, and everything else is refused.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Callable, NamedTuple

import numpy as np

from ppfcos.engine.state_file import ArrayUnpickler, reading, require_dict
from ppfcos.errors import WeightsError

OLD_FORMAT_MAGIC = 0x1950A86A20F9469CFC6C
OLD_FORMAT_PROTOCOL = 1001
BFLOAT16 = "bfloat16"  # which NumPy does not know: read as 16-bit integers, widened to float32
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
# Training logs and settings that projects keep beside their weights; what is in them is not needed.
SHELLED_MODULES = ("mmengine", "mmcv", "mmdet", "yacs", "fcos_core", "detectron2", "argparse")


class _Storage(NamedTuple):
    """The numbers behind tensors: a flat array, or, in the old format, the promise of one."""

    key: str
    dtype: str
    count: int
    numbers: np.ndarray | None = None


class _Tensor:
    """A view of a storage whose numbers may not have been read yet."""

    def __init__(self, storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int]):
        self.storage, self.offset = storage, int(offset)
        self.shape, self.strides = tuple(map(int, shape)), tuple(map(int, strides))

    def array(self, numbers: np.ndarray) -> np.ndarray:
        """A copy of the numbers that the view covers.

        Raises:
            pickle.UnpicklingError: it reaches beyond them.
        """
        if min((self.offset, *self.shape, *self.strides)) < 0:
            raise pickle.UnpicklingError("a tensor with a negative size")
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides))
        if math.prod(self.shape) and last >= len(numbers):
            raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
        step = numbers.itemsize
        view = np.lib.stride_tricks.as_strided(
            numbers[self.offset :], self.shape, [stride * step for stride in self.strides]
        )
        return np.ascontiguousarray(view).reshape(self.shape)


class _Shell:
    """Stands for an object of another project: takes whatever it is given, and does nothing with it."""

    def __new__(cls, *args: object, **kwargs: object) -> _Shell:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        """Forget it."""

    def extend(self, items: object) -> None:
        """Forget them."""


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_: object
) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: _Tensor, *_: object) -> _Tensor:
    return tensor


_TORCH_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,  # not dict: a state_dict has an attribute besides
    ("torch", "device"): _Shell,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class _TorchUnpickler(ArrayUnpickler):
    def __init__(self, file: BinaryIO, load_storage: Callable[[tuple], _Storage]):
        super().__init__(file, encoding="latin1")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TORCH_NAMES:
            return _TORCH_NAMES[module, name]
        if module.split(".")[0] in SHELLED_MODULES:
            return _Shell
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("a reference to something that is no storage")
        return self._load_storage(pid)


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as `torch.save`'s do, in either format.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    magic = OLD_FORMAT_MAGIC.to_bytes(10, "little")
    return start.startswith(b"PK\x03\x04") or magic in start


def read_torch(path: Path) -> dict[str, Any]:
    """Read what `torch.save` wrote of a dictionary.

    Args:
        path: of the checkpoint.

    Returns:
        The dictionary; its tensors, also those in dictionaries within, are NumPy arrays.

    Raises:
        WeightsError: the file is missing, damaged or no dictionary, or its pickle asks for code to be run.
    """
    read = _read_zip if zipfile.is_zipfile(path) else _read_old_format
    with reading(Path(path), "checkpoint of PyTorch", "tensors"):
        content = read(path)
    require_dict(path, content)
    return content


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        folder = pickled[: -len("data.pkl")]
        byteorder = "<"
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") == b"big":
            byteorder = ">"
        loaded: dict[str, _Storage] = {}

        def load_storage(pid: tuple) -> _Storage:
            _, dtype, key, _, count = pid[:5]
            if key not in loaded:
                numbers = _numbers(archive.read(f"{folder}data/{key}"), dtype, int(count), byteorder)
                loaded[key] = _Storage(key, dtype, int(count), numbers)
            return loaded[key]

        with archive.open(pickled) as file:
            content = _TorchUnpickler(file, load_storage).load()
    return _arrays(content, {key: storage.numbers for key, storage in loaded.items()})


def _read_old_format(path: Path) -> Any:
    """Five pickles (magic, protocol, machine, content, keys), then each storage's count and numbers."""
    promised: dict[str, _Storage] = {}

    def promise_storage(pid: tuple) -> _Storage:
        _, dtype, key, _, count = pid[:5]
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("a storage that is a part of another one")
        return promised.setdefault(key, _Storage(key, dtype, int(count)))

    with path.open("rb") as file:
        magic, protocol = (ArrayUnpickler(file).load() for _ in range(2))
        if (magic, protocol) != (OLD_FORMAT_MAGIC, OLD_FORMAT_PROTOCOL):
            raise pickle.UnpicklingError("no file of torch.save")
        machine = ArrayUnpickler(file).load()
        content = _TorchUnpickler(file, promise_storage).load()
        order = "<" if machine.get("little_endian", True) else ">"
        numbers = {}
        for key in ArrayUnpickler(file).load():
            storage = promised[key]
            if int.from_bytes(file.read(8), "little" if order == "<" else "big") != storage.count:
                raise pickle.UnpicklingError("a storage of another size than its tensors say")
            size = storage.count * (2 if storage.dtype == BFLOAT16 else np.dtype(storage.dtype).itemsize)
            numbers[key] = _numbers(file.read(size), storage.dtype, storage.count, order)
    return _arrays(content, numbers)


def _numbers(data: bytes, dtype: str, count: int, byteorder: str) -> np.ndarray:
    kind = np.dtype("u2" if dtype == BFLOAT16 else dtype).newbyteorder(byteorder)
    if len(data) != count * kind.itemsize:
        raise pickle.UnpicklingError("a storage that is cut off")
    numbers = np.frombuffer(data, kind)
    if dtype == BFLOAT16:  # the upper half of a float32
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(kind.newbyteorder("="), copy=False)


def _arrays(content: Any, numbers: Mapping[str, np.ndarray | None]) -> Any:
    """The same with arrays in the place of tensors."""
    if isinstance(content, _Tensor):
        return content.array(numbers[content.storage.key])
    if isinstance(content, dict):
        return {key: _arrays(value, numbers) for key, value in content.items()}
    return content
