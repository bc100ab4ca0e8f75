"""Two launchers, as two machines would run them, against one launcher of as many processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.small_config import write_config

from ppfcos.data.shapes import generate
from ppfcos.engine.checkpoint import read_state


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    generate(folder, train=7, val=5, size=96, seed=1)
    return folder


def _launch(folder: Path, root: Path, config: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "paddle.distributed.launch", *options]
    command += [root / "tools" / "train.py", "-c", config, "--eval"]
    # Any number of threads but the same one: it decides in which order sums are rounded.
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = (folder / f"launch{len(list(folder.glob('launch*')))}.out").open("w")
    with output:
        return subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=output)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, dataset, root) -> tuple[Path, Path]:
    """Folders of a training by one launcher of two processes, and by two launchers of one process each."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    configs = [write_config(run / "small.yml", root, dataset, run / "run") for run in (one, two)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        master = f"127.0.0.1:{free.getsockname()[1]}"
    machines = ("--nnodes", "2", "--nproc_per_node", "1", "--master", master)
    launchers = [
        _launch(one, root, configs[0], "--nproc_per_node", "2"),
        _launch(two, root, configs[1], *machines, "--rank", "0", "--log_dir", "log0"),
        _launch(two, root, configs[1], *machines, "--rank", "1", "--log_dir", "log1"),
    ]
    try:
        codes = [launcher.wait(timeout=240) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert codes == [0, 0, 0], "\n".join(file.read_text() for file in two.glob("launch*.out"))
    return one, two


def _steps(log: Path) -> list[str]:
    """Losses and learning rates, as they were printed."""
    return re.findall(r"epoch: \[.*? loss_quality: \S+", log.read_text())


def test_two_launchers_print_the_losses_of_one(runs):
    one, two = runs
    expected = _steps(one / "log" / "workerlog.0")
    assert len(expected) == 3
    assert _steps(two / "log0" / "workerlog.0") == expected
    assert _steps(two / "log1" / "workerlog.0") == []
    assert "2 processes on cpu" in (two / "log0" / "workerlog.0").read_text()


@pytest.mark.parametrize("suffix", ["pdparams", "pdopt"])
def test_two_launchers_write_the_checkpoint_of_one(runs, suffix):
    first, second = (read_state(run / "run" / "small" / f"model_final.{suffix}") for run in runs)
    assert first.keys() == second.keys()
    arrays = [name for name, value in first.items() if isinstance(value, np.ndarray)]
    assert len(arrays) > 50
    for name in arrays:
        np.testing.assert_array_equal(second[name], first[name], err_msg=name)


def test_two_launchers_print_the_table_of_one(runs):
    tables = [
        re.findall(r"^ Average .*$", (run / log / "workerlog.0").read_text(), re.MULTILINE)
        for run, log in zip(runs, ("log", "log0"))
    ]
    assert len(tables[0]) == 12
    assert tables[1] == tables[0]
