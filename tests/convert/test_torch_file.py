"""Checkpoints of PyTorch in both formats, and hostile pickles."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from ppfcos.convert.torch_file import is_torch_file, read_torch
from ppfcos.errors import WeightsError

torch = pytest.importorskip("torch")

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def tensors() -> dict:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    state = OrderedDict((name, (base * 9).to(getattr(torch, name))) for name in DTYPES)
    state["bfloat16"] = base.to(torch.bfloat16)
    state["transposed"] = base.t()
    state["part"] = base[1:3, 2:]  # of a storage that it shares
    state["scalar"] = torch.tensor(2.5)
    state["empty"] = torch.zeros(0, 3)
    state["parameter"] = torch.nn.Parameter(base.clone())
    state["channels last"] = torch.randn(2, 3, 4, 5, generator=generator).to(
        memory_format=torch.channels_last
    )
    state._metadata = OrderedDict({"": {"version": 1}})  # as every module has it
    return state


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_tensors_are_read_unchanged(tmp_path, zipped):
    state = tensors()
    path = tmp_path / "weights.pth"
    content = {"state_dict": state, "meta": {"epoch": 12, "CLASSES": ("a", "b")}, "seen": {1, 2}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert is_torch_file(path)
    found = read_torch(path)
    assert found["meta"] == {"epoch": 12, "CLASSES": ("a", "b")}
    assert list(found["state_dict"]) == list(state)
    for name, tensor in state.items():
        array = found["state_dict"][name]
        tensor = tensor.detach()
        expected = tensor.float().numpy() if name == "bfloat16" else tensor.numpy()
        assert array.dtype == expected.dtype, name
        np.testing.assert_array_equal(array, expected, err_msg=name)


class Runs:
    """An object whose pickle creates a file when an ordinary unpickler reads it."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, zipped):
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    torch.save({"model": Runs(trace)}, path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)
    assert trace.exists()
    trace.unlink()
    with pytest.raises(WeightsError, match=r"weights\.pth is refused: its pickle asks for"):
        read_torch(path)
    assert not trace.exists()


def stack_global(module: str, name: str, argument: str) -> bytes:
    """Return a pickle that calls module.name(argument)."""
    parts = [pickle.dumps(text, 4)[2:-1] for text in (module, name, argument)]
    return b"\x80\x04" + parts[0] + parts[1] + b"\x93" + parts[2] + b"\x85R."


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("torch.hub", "load"), ("subprocess", "run")],
)
def test_names_of_functions_are_refused(tmp_path, module, name):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stack_global(module, name, "1"))
    with pytest.raises(WeightsError, match=f"asks for {module}.{name}"):
        read_torch(path)


def test_objects_of_known_projects_are_not_created(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stack_global("mmcv.utils.config", "anything", "1"))
    with pytest.raises(WeightsError, match="a whole pickled model"):
        read_torch(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_damaged_files_are_named(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(64)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-100], b"<html>"):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"weights\.pth is damaged"):
            read_torch(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_torch(tmp_path / "absent.pth")


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    path, changed = tmp_path / "weights.pth", tmp_path / "changed.pth"
    torch.save({"weight": torch.ones(5)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert data.count(b"K\x05\x85") == 1  # the shape (5,)
                data = data.replace(b"K\x05\x85", b"K\x09\x85")
            target.writestr(name, data)
    with pytest.raises(WeightsError, match="beyond its storage"):
        read_torch(changed)
