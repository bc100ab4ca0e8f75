"""Loss and gradients of a batch do not depend on the number of processes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest


def run(root, folder, quality, processes):
    script = [str(root / "tests" / "helpers" / "distributed_step.py"), str(folder), quality]
    launch = [
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        str(processes),
        "--log_dir",
        str(folder / "log"),
    ]
    command = [sys.executable, *(launch if processes > 1 else []), *script]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [dict(np.load(folder / f"{processes}_{rank}.npz")) for rank in range(processes)]


@pytest.mark.parametrize("quality", ["centerness", "iou"])
def test_two_processes_with_unequal_positives_equal_one(root, tmp_path, quality):
    (whole,) = run(root, tmp_path, quality, 1)
    first, second = run(root, tmp_path, quality, 2)
    assert first["loss.loss_box"] > 0
    assert second["loss.loss_box"] == 0, "the second process must have no positive"
    for name, value in whole.items():
        if name.startswith("loss."):
            mean = (first[name] + second[name]) / 2
            assert mean == pytest.approx(value, rel=1e-6), name
        else:
            np.testing.assert_allclose(
                first[name], value, rtol=0, atol=1e-6 * np.abs(value).max(), err_msg=name
            )
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert sum(not name.startswith("loss.") for name in whole) > 50
