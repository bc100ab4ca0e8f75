"""Reads what a conversion needs of a checkpoint: weights, class names, and the text of its configuration."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ppfcos.convert.torch_file import BFLOAT16, is_torch_file, read_torch, whole_model_error, widen_bfloat16
from ppfcos.engine.restricted_unpickler import Memory, Placeholder, checked_shape
from ppfcos.engine.weights import read_state, reading
from ppfcos.errors import WeightsError

# Keys of the weights in checkpoints. EMA weights are used where there are no others: MMEngine stores those
# that it evaluates as `state_dict`.
WRAPPERS = ("state_dict", "model", "model_state_dict", "blobs", "ema_state_dict", "model_ema")
# DataParallel, Lightning and torch.compile put these before the names of a model.
PREFIXES = ("module.", "model.", "_orig_mod.")
MAX_TEXT = 1 << 20  # characters of a configuration
# The first bytes of files that are no checkpoints, and what to do.
NO_CHECKPOINTS = (
    (b"<", "is a web page: download the file itself"),
    (b"version https://git-lfs", "is a pointer of Git LFS: run `git lfs pull` in its repository"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it"),
    (b"\x89HDF", "is an HDF5 file, which is not read: convert a checkpoint of PyTorch, Paddle or Detectron"),
)
MAX_HEADER = 4 << 20  # bytes of JSON in a safetensors file; some 100 kB for a detector
SAFETENSORS_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BFLOAT16, "BOOL": "?"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"},
}


class Checkpoint(NamedTuple):
    """Contents of a checkpoint.

    Attributes:
        arrays: the weights, by their original names.
        key: of the weights in the file; None: they are the file.
        class_names: by label, if known.
        config: text of its configuration, if it contains one.
    """

    arrays: dict[str, np.ndarray]
    key: str | None = None
    class_names: list[str] | None = None
    config: str | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of PyTorch, Paddle or Detectron, or a safetensors file.

    Raises:
        WeightsError: the file cannot be read, or contains no weights.
    """
    content: Any = None
    with reading(path, "checkpoint", "tensors"), path.open("rb") as file:
        start = file.read(64)
        if path.suffix.lower() == ".safetensors" or (start[8:9] == b"{" and start[4:8] == bytes(4)):
            content = _read_safetensors(file)
    problem = next((problem for first, problem in NO_CHECKPOINTS if start.lstrip().startswith(first)), None)
    if path.suffix.lower() == ".onnx" or (start[:1] == b"\x08" and start[2:3] == b"\x12"):
        problem = "is an ONNX model, whose weights are not converted: convert the checkpoint that it is from"
    if problem is not None:
        raise WeightsError(f"{path} {problem}")
    if content is None:
        content = read_torch(path) if is_torch_file(path) else read_state(path)
    meta = content.get("meta")
    names, config = _read_meta(meta) if isinstance(meta, dict) else (None, None)
    key = None
    while True:
        wrapper = next((each for each in WRAPPERS if isinstance(content.get(each), dict)), None)
        if wrapper is None:
            break
        content, key = content[wrapper], wrapper
    arrays = _names_without_prefix(path, content)
    if not arrays and any(isinstance(value, Placeholder) for value in content.values()):
        raise whole_model_error(path, "an object")
    if not arrays:
        keys = ", ".join([str(key) for key in content][:3]) + (", ..." if len(content) > 3 else "")
        raise WeightsError(f"{path} contains no weights: its keys are {keys or 'none'}")
    return Checkpoint(arrays, key, names, config)


def _names_without_prefix(path: Path, content: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for key, value in content.items():
        if not isinstance(value, np.ndarray):
            continue
        name = str(key).replace("._orig_mod.", ".")
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        if name in arrays:
            raise WeightsError(f"{path} contains {name} twice, under different prefixes: keep one of them")
        arrays[name] = value
    return arrays


def _read_meta(meta: Mapping[Any, Any]) -> tuple[list[str] | None, str | None]:
    """Return class names and text of the configuration from the `meta` of MMDetection 2 or 3."""
    dataset = meta.get("dataset_meta")
    names = None
    for each in (meta, dataset if isinstance(dataset, dict) else {}):
        for key in ("CLASSES", "classes"):
            value = each.get(key)
            value = (value,) if isinstance(value, str) else value  # of one class
            if isinstance(value, (tuple, list)) and value and all(isinstance(name, str) for name in value):
                names = list(value)
    texts = [meta.get(key) for key in ("cfg", "config")]
    return names, next((text[:MAX_TEXT] for text in texts if isinstance(text, str) and text), None)


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read a safetensors file: the length of a header in 8 bytes, the header in JSON, and the numbers."""
    size = os.fstat(file.fileno()).st_size
    memory = Memory(size)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MAX_HEADER):
        raise ValueError("a header with an invalid length")
    header = json.loads(file.read(length))
    data = file.read()
    arrays, left = {}, len(data)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, (first, end) = SAFETENSORS_DTYPES[entry["dtype"]], entry["data_offsets"]
        shape = checked_shape(tuple(entry["shape"]))
        stored = np.dtype("<u2" if kind == BFLOAT16 else kind)
        if type(first) is not int or type(end) is not int or not 0 <= first <= end <= len(data):
            raise ValueError("a tensor beyond the end of the file")
        if end - first != math.prod(shape) * stored.itemsize:
            raise ValueError("a tensor of another size than its shape")
        left -= end - first
        if left < 0:
            raise ValueError("tensors that overlap")
        numbers = np.frombuffer(data, stored, math.prod(shape), first)
        if kind == BFLOAT16:
            numbers = widen_bfloat16(memory, numbers)
        arrays[name] = numbers.reshape(shape)
    return arrays
