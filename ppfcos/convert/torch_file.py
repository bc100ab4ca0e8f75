"""Reads checkpoints of PyTorch with a restricted unpickler, without PyTorch.

`torch.save` writes a zip archive (since version 1.6), or pickles followed by the data of the storages. In
both, the pickle names functions that make tensors of storages; functions of this module replace them. Objects
of known projects become placeholders. Everything else is refused.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Callable

import numpy as np

from ppfcos.engine.restricted_unpickler import (
    ARRAY_COST,
    CONTAINER_NAMES,
    NUMPY_NAMES,
    PLACEHOLDER,
    Function,
    Memory,
    Name,
    Placeholder,
    RestrictedUnpickler,
    UnsafePickleError,
    array_of_bytes,
    checked_shape,
)
from ppfcos.engine.weights import reading, require_dict
from ppfcos.errors import WeightsError

OLD_FORMAT_MAGIC = 0x1950A86A20F9469CFC6C
OLD_FORMAT_PROTOCOL = 1001
BFLOAT16 = "bfloat16"  # which NumPy does not know: read as 16-bit integers, widened to float32
# A zip entry takes some 800 bytes in memory and at least 46 in the archive's directory.
DIRECTORY_BYTES = 1 << 20
DIRECTORY_RATIO = 1 / 64  # of the archive
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
DTYPES = (
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool"),
    *("uint8", "int8", "int16", "int32", "int64"),
)
# Logs and hyperparameters beside the weights, which are not needed.
PLACEHOLDER_MODULES = (
    *("mmengine", "mmcv", "mmdet", "yacs", "fcos_core", "detectron2", "fvcore", "adet", "argparse"),
    *("pathlib", "datetime", "omegaconf"),
)
MODULES_OF_MODELS = ("torch.nn.", "torchvision.", "__main__.")


@dataclass
class _Storage:
    """The data of tensors, which are views of it. In the old format it follows the pickle."""

    dtype: str
    count: int
    numbers: np.ndarray | None = None
    # (array, offset, strides) of the tensors that wait for the numbers
    waiting: list[tuple[np.ndarray, int, tuple[int, ...]]] = field(default_factory=list)

    @property
    def stored_dtype(self) -> np.dtype:
        return np.dtype("u2" if self.dtype == BFLOAT16 else self.dtype)

    @property
    def stored_bytes(self) -> int:
        return self.count * self.stored_dtype.itemsize

    def set_numbers(self, memory: Memory, data: bytes | bytearray, byteorder: str) -> None:
        """Set the data, and fill the tensors that wait for it.

        Raises:
            pickle.UnpicklingError: the number of bytes is wrong.
        """
        if len(data) != self.stored_bytes:
            raise pickle.UnpicklingError("a storage that is cut off")
        numbers = array_of_bytes(memory, data, self.stored_dtype.newbyteorder(byteorder))
        if self.dtype == BFLOAT16:
            numbers = widen_bfloat16(memory, numbers)
        self.numbers = numbers
        for array, offset, strides in self.waiting:
            array[...] = _view(numbers, offset, array.shape, strides)
        self.waiting.clear()


def widen_bfloat16(memory: Memory, numbers: np.ndarray) -> np.ndarray:
    """Convert bfloat16, the upper half of a float32, from 16-bit integers to float32."""
    memory.charge(4 * numbers.size)
    wide = numbers.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _view(numbers: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    steps = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps)


def _rebuild_tensor(
    unpickler: _TorchUnpickler, storage: Any, offset: Any, shape: Any, strides: Any, *_: object
) -> np.ndarray:
    if type(storage) is not _Storage or type(offset) is not int or offset < 0:
        raise pickle.UnpicklingError("a tensor without storage")
    shape, strides = checked_shape(shape), checked_shape(strides)
    if len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor with an invalid shape")
    unpickler.memory.charge(ARRAY_COST)
    count = math.prod(shape)
    dtype = np.dtype("f4" if storage.dtype == BFLOAT16 else storage.dtype)
    if not count:
        return np.empty(shape, dtype)
    if offset + sum((size - 1) * step for size, step in zip(shape, strides)) >= storage.count:
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    if storage.numbers is not None:
        view = _view(storage.numbers, offset, shape, strides)
        if view.flags.c_contiguous:
            return view
    unpickler.memory.charge(count * dtype.itemsize)
    if storage.numbers is not None:
        return np.ascontiguousarray(view)
    array = np.empty(shape, dtype)
    storage.waiting.append((array, offset, strides))
    return array


def _rebuild_parameter(unpickler: _TorchUnpickler, tensor: Any, *_: object) -> Any:
    return tensor


_TORCH_NAMES: dict[tuple[str, str], Function | Name] = {
    **NUMPY_NAMES,
    **CONTAINER_NAMES,
    ("torch._utils", "_rebuild_tensor"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Function(_rebuild_parameter),
    ("torch", "Size"): NUMPY_NAMES["builtins", "tuple"],
    ("torch", "device"): PLACEHOLDER,
    ("torch.serialization", "_get_layout"): PLACEHOLDER,
    **{("torch", name): PLACEHOLDER for name in DTYPES},
    **{("torch", name): Name(dtype) for name, dtype in STORAGES.items()},
}
_STORAGE_NAMES = [_TORCH_NAMES["torch", name] for name in STORAGES]


class _TorchUnpickler(RestrictedUnpickler):
    def __init__(
        self,
        file: BinaryIO,
        size: int,
        load_storage: Callable[[str, _Storage], _Storage],
        memory: Memory | None = None,
    ):
        super().__init__(file, size, _TORCH_NAMES, memory)
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Function | Name:
        if (module, name) not in _TORCH_NAMES and module.split(".", 1)[0] in PLACEHOLDER_MODULES:
            return PLACEHOLDER
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        # ("storage", type, key, device, count), and in the old format what it is a part of, or None
        if type(pid) is not tuple or not 5 <= len(pid) <= 6 or pid[0] != "storage":
            raise pickle.UnpicklingError("a reference to something that is no storage")
        _, kind, key, _, count = pid[:5]
        if kind not in _STORAGE_NAMES or type(key) is not str or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("a reference to an invalid storage")
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("a storage that is a part of another one")
        self.memory.charge(ARRAY_COST)
        return self._load_storage(key, _Storage(kind.value, count))


def is_torch_file(path: Path) -> bool:
    """Whether a file starts like those of `torch.save`, in either format."""
    with reading(path, "checkpoint", "tensors"):
        start = _first_bytes(path)
    magic = OLD_FORMAT_MAGIC.to_bytes(10, "little")
    return start.startswith(b"PK\x03\x04") or magic in start


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def read_torch(path: Path) -> dict[str, Any]:
    """Read a dictionary that `torch.save` has written; tensors become NumPy arrays.

    Raises:
        WeightsError: the file is missing, damaged or no dictionary, or its pickle would run code.
    """
    path = Path(path)
    with reading(path, "checkpoint of PyTorch", "tensors"):
        is_zip = zipfile.is_zipfile(path)
        if not is_zip and _first_bytes(path)[:4] == b"PK\3\4":
            raise WeightsError(f"{path} is damaged: its end is missing; download or write it again")
        try:
            content = _read_zip(path) if is_zip else _read_old_format(path)
        except UnsafePickleError as error:
            if not str(error).startswith(MODULES_OF_MODELS):
                raise
            raise whole_model_error(path, str(error)) from None
    if isinstance(content, Placeholder):
        raise whole_model_error(path, "an object")
    require_dict(path, content)
    return content


def whole_model_error(path: Path, kind: str) -> WeightsError:
    """Return the error for a file with a model instead of weights."""
    return WeightsError(
        f"{path} contains a whole pickled model ({kind}), and only weights are read: in its project, save "
        "model.state_dict() with torch.save, and convert that file"
    )


def _read_zip(path: Path) -> Any:
    with path.open("rb") as file:
        archive_size = os.fstat(file.fileno()).st_size
        end = zipfile._EndRecData(file)  # before the directory is read: its entries take much memory
        if end is None or end[zipfile._ECD_SIZE] > DIRECTORY_BYTES + DIRECTORY_RATIO * archive_size:
            raise zipfile.BadZipFile("an archive with too large a directory")
        memory = Memory(archive_size)
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, archive_size, memory)


def _read_archive(archive: zipfile.ZipFile, archive_size: int, memory: Memory) -> Any:
    entries = {entry.filename: entry for entry in archive.infolist()}
    loaded: dict[str, _Storage] = {}

    def read(name: str) -> bytes:
        entry = entries.get(name)
        if entry is None:
            raise zipfile.BadZipFile("an entry of the archive is missing")
        # Of the other methods, zipfile does not bound how much a few bytes expand to.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile("an unusual compression")
        if entry.compress_size > archive_size:
            raise zipfile.BadZipFile("an entry that is larger than the archive")
        memory.charge(entry.file_size + (entry.compress_size if entry.compress_type else 0))
        with archive.open(entry) as opened:
            return opened.read(entry.file_size)

    def load_storage(key: str, storage: _Storage) -> _Storage:
        if key not in loaded:
            storage.set_numbers(memory, read(f"{folder}data/{key}"), byteorder)
            loaded[key] = storage
        return loaded[key]

    if any(name.endswith("/constants.pkl") or "/code/" in name for name in entries):
        raise WeightsError(
            f"{archive.fp.name} is a TorchScript program, and only weights are read: save "
            "torch.jit.load(FILE).state_dict() with torch.save, and convert that file"
        )
    pickled = next((name for name in entries if name.endswith("data.pkl")), "data.pkl")
    folder = pickled[: -len("data.pkl")]
    big_endian = f"{folder}byteorder" in entries and read(f"{folder}byteorder") == b"big"
    byteorder = ">" if big_endian else "<"
    content = read(pickled)
    return _TorchUnpickler(io.BytesIO(content), len(content), load_storage, memory).load()


def _read_old_format(path: Path) -> Any:
    """Five pickles (magic, protocol, machine, content, keys), then each storage's count and numbers."""
    storages: dict[str, _Storage] = {}
    with path.open("rb") as file:
        unpickler = _TorchUnpickler(file, os.fstat(file.fileno()).st_size, storages.setdefault)
        if (unpickler.load(), unpickler.load()) != (OLD_FORMAT_MAGIC, OLD_FORMAT_PROTOCOL):
            raise pickle.UnpicklingError("no file of torch.save")
        machine, content, keys = (unpickler.load() for _ in range(3))
        if type(machine) is not dict or type(keys) is not list:
            raise pickle.UnpicklingError("no file of torch.save")
        little = machine.get("little_endian", True) is not False
        for key in keys:
            storage = storages.pop(key, None) if type(key) is str else None
            if storage is None:
                raise pickle.UnpicklingError("a storage that no tensor has")
            if int.from_bytes(unpickler.read(8), "little" if little else "big") != storage.count:
                raise pickle.UnpicklingError("a storage of another size than its tensors say")
            data = unpickler.read_buffer(storage.stored_bytes)
            storage.set_numbers(unpickler.memory, data, "<" if little else ">")
    if storages:
        raise pickle.UnpicklingError("a storage without numbers")
    return content
