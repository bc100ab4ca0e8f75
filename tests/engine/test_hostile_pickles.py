"""Pickles that would run code, crash the interpreter or fill the memory are refused; real ones are read."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import hostile_pickles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppfcos.convert.torch_file import is_torch_file, read_torch
from ppfcos.engine.restricted_unpickler import NUMERIC_DTYPES
from ppfcos.engine.weights import read_state
from ppfcos.errors import WeightsError


def read_apart(folder: Path, files: dict[str, bytes]) -> dict[str, dict]:
    """Read each file in a separate process; an exit code if that process died."""
    paths = {}
    for index, (name, content) in enumerate(files.items()):
        paths[folder / f"{index}.weights"] = name
        (folder / f"{index}.weights").write_bytes(content)
    left, results = list(paths), {}
    while left:
        command = [sys.executable, hostile_pickles.__file__, *map(str, left)]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        results.update({paths[path]: line for path, line in zip(left, lines)})
        left = left[len(lines) :]
        if left:
            results[paths[left.pop(0)]] = {"outcome": f"exit code {done.returncode}: {done.stderr[-200:]}"}
    return results


@pytest.mark.parametrize("kind", ["states", "checkpoints"])
def test_hostile_files_are_refused_in_one_line_and_bounded_memory_and_time(tmp_path, kind):
    files = getattr(hostile_pickles, f"hostile_{kind}")()
    results = read_apart(tmp_path, files)
    wrong = {
        name: result
        for name, result in results.items()
        if result["outcome"] != "refused"
        or not hostile_pickles.within_limits(result, len(files[name]))
        or result["seconds"] > 10  # of CPU time, with tracemalloc
        or result["file"] not in result["message"]
        or not result["message"].isprintable()
        or len(result["message"]) > 600
    }
    assert wrong == {}
    assert results.keys() == files.keys()


def test_a_deflated_entry_is_read_to_the_size_that_it_states(tmp_path):
    lying = hostile_pickles.lying_entry()
    (result,) = read_apart(tmp_path, {"lying": lying}).values()
    assert hostile_pickles.within_limits(result, len(lying))


def test_a_pipe_and_a_device_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        for read in (read_state, is_torch_file, read_torch):
            with pytest.raises(WeightsError, match="not a regular file"):
                read(path)


# Random ones ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_files(tmp_path_factory) -> list[bytes]:
    """Small files that Paddle and PyTorch wrote."""
    folder = tmp_path_factory.mktemp("real")
    return [path.read_bytes() for path in hostile_pickles.write_real_files(folder)]


@pytest.fixture(scope="module")
def random_path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("random") / "random.weights"


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(source=st.randoms(use_true_random=False))
def test_random_files_give_a_dict_or_a_weights_error(real_files, random_path, source):
    content = hostile_pickles.random_file(source, real_files, repeats=1_000)
    random_path.write_bytes(content)
    tracemalloc.start()
    try:
        result = hostile_pickles.measure(random_path)
    finally:
        tracemalloc.stop()
    assert hostile_pickles.within_limits(result, len(content)), (result, content)


def test_the_larger_fuzzer_runs(root):
    """In a process for each batch, so that a crash of the interpreter is an exit code."""
    command = [sys.executable, root / "benchmarks" / "fuzz_pickles.py", "--minutes", "0.01", "--batch", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "; 0 failures" in done.stdout and "'refused': " in done.stdout


# Real ones --------------------------------------------------------------------------------------------------

ARRAYS = {
    **{code: (np.arange(6) % 2).astype(code).reshape(2, 3) for code in NUMERIC_DTYPES},
    "big-endian": np.arange(6, dtype=">f4"),
    "Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24, dtype="f4").reshape(2, 3, 4).transpose(2, 0, 1),
    "every second": np.arange(10, dtype="i4")[::2],
    "0-d": np.array(2.5, "f4"),
    "empty": np.zeros((0, 3), "f4"),
    "large": np.arange(200_000, dtype="f4").reshape(400, 500),
    "float32 scalar": np.float32(2.5),
    "int64 scalar": np.int64(-3),
    "bool scalar": np.bool_(True),
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_numpy_are_read(tmp_path, protocol):
    path = tmp_path / "weights.pdparams"
    state = {
        **ARRAYS,
        "again": ARRAYS["large"],
        "nested": collections.OrderedDict(a=ARRAYS["i8"], b=[1, (2.5, "x")]),
    }
    for core in (b"numpy.core", b"numpy._core"):
        content = pickle.dumps(state, protocol)
        path.write_bytes(content if protocol > 3 else content.replace(b"numpy.core", core))
        found = read_state(path)
        assert found["again"] is found["large"]
        assert found["nested"]["b"] == [1, (2.5, "x")]
        for name, array in ARRAYS.items():
            assert type(found[name]) is type(array), name
            assert found[name].dtype == array.dtype.newbyteorder("="), name
            np.testing.assert_array_equal(found[name], array, err_msg=name)
            if isinstance(array, np.ndarray) and array.size:
                found[name][...] = 0  # the arrays can be written to


def test_slices_of_a_large_array_are_joined(tmp_path):
    parts = {"w@@.0": np.arange(4.0), "w@@.1": np.arange(4.0, 6.0), "b": np.ones(2)}
    about = {"w": {"OriginShape": (2, 3), "slices": ["w@@.0", "w@@.1"]}}
    path = tmp_path / "weights.pdparams"
    path.write_bytes(pickle.dumps({**parts, "UnpackBigParamInfor@@": about}, 2))
    state = read_state(path)
    assert sorted(state) == ["b", "w"]
    np.testing.assert_array_equal(state["w"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("form", ["zip", "old", "deflated"])
def test_a_whole_checkpoint_of_pytorch_is_read(tmp_path, monkeypatch, form):
    torch = pytest.importorskip("torch")
    module = types.ModuleType("mmengine")

    class HistoryBuffer:
        def mean(self):
            return 0

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine", "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = "mmengine", "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setitem(sys.modules, "mmengine", module)
    buffer = HistoryBuffer()
    buffer.methods, buffer.values = {"mean": HistoryBuffer.mean}, np.arange(3.0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 11, 11])
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    storage = torch.arange(12.0)
    content = {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "param_schedulers": [schedule.state_dict()],
        "message_hub": {"log": buffer},
        "expanded": torch.ones(1, 3).expand(1000, 3),
        "views": {"a": storage[2:8].view(2, 3), "b": storage[1::2], "c": storage},
        "meta": {
            "size": torch.Size([2, 3]), "device": torch.device("cpu"), "dtype": torch.float16, "seen": {1, 2},
            "args": argparse.Namespace(lr=0.1), "default": collections.defaultdict(list, a=[1]),
            "frozen": frozenset([3]), "counts": collections.Counter("aab"), "layout": torch.strided,
            "random": np.random.RandomState(0).get_state(),
        },
    }  # fmt: skip
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=form != "old")
    if form == "deflated":
        with zipfile.ZipFile(path) as source:
            entries = {name: source.read(name) for name in source.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for name, data in entries.items():
                target.writestr(name, data)
    found = read_torch(path)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(found["state_dict"][name], tensor.numpy(), err_msg=name)
    moments = optimizer.state_dict()["state"][0]["exp_avg"]
    np.testing.assert_array_equal(found["optimizer"]["state"][0]["exp_avg"], moments.numpy())
    assert found["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert found["param_schedulers"][0]["milestones"] == {8: 1, 11: 2}
    np.testing.assert_array_equal(found["expanded"], np.ones((1000, 3)))
    for name, tensor in content["views"].items():
        np.testing.assert_array_equal(found["views"][name], tensor.numpy(), err_msg=name)
    meta = found["meta"]
    assert meta["size"] == (2, 3)
    assert meta["seen"] == {1, 2}
    assert meta["frozen"] == {3}
    assert meta["counts"] == {"a": 2, "b": 1}
    assert meta["default"] == {"a": [1]}
    np.testing.assert_array_equal(meta["random"][1], content["meta"]["random"][1])
