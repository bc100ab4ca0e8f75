"""Programs of other versions of Paddle; tests/helpers/small_program.py has written them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import FIXTURES
from helpers.small_program import SmallNetwork

from ppfcos.deploy.runtimes.paddle_inference import PaddleInferenceRuntime
from ppfcos.errors import BundleError, DeviceError
from ppfcos.export.program import make_readable_by_3_0
from ppfcos.paddle_versions import HAS_NEW_IR, NEWEST_PROGRAM

OLD, NEW = (FIXTURES / "programs" / name for name in ("paddle_2.6.2.pdmodel", "paddle_3.3.1.json"))
IMAGE = np.random.default_rng(1).normal(0, 1, (2, 3, 12, 18)).astype(np.float32)


def open_program(program, **options):
    return PaddleInferenceRuntime(
        program, program.with_suffix(".pdiparams"), ("maps",), threads=1, device="cpu", **options
    )


def assert_runs(program):
    network = SmallNetwork()
    network.eval()
    expected = network(paddle.to_tensor(IMAGE)).numpy()
    found = open_program(program).run({"image": IMAGE})["maps"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_program_of_paddle_2_6_runs():
    assert_runs(OLD)
    with pytest.raises(DeviceError, match=r"bf16.*paddle_2\.6\.2\.pdmodel"):
        open_program(OLD, precision="bf16")


def rewritten(folder):
    program = json.loads(NEW.read_text())
    make_readable_by_3_0(program)
    shutil.copy(NEW.with_suffix(".pdiparams"), folder / "model.pdiparams")
    (folder / "model.json").write_text(json.dumps(program))
    return folder / "model.json"


@pytest.mark.skipif(not HAS_NEW_IR, reason="Paddle 2.6 cannot run programs of Paddle 3")
def test_program_of_paddle_3_3_runs_after_it_is_rewritten(tmp_path):
    assert_runs(rewritten(tmp_path))


def test_rewriting_changes_only_types_and_version(tmp_path):
    before, after = NEW.read_text(), json.loads(rewritten(tmp_path).read_text())
    assert before.count("a_f64") == 5 and "a_f64" not in json.dumps(after)
    assert after["base_code"]["version"] == 1
    as_before = json.dumps(after).replace("a_f32", "a_f64").replace("a_i32", "a_i64")
    originals = json.loads(before.replace("a_f32", "a_f64").replace("a_i32", "a_i64"))
    originals["base_code"]["version"] = 1
    assert json.loads(as_before) == originals
    again = json.loads(json.dumps(after))
    make_readable_by_3_0(again)
    assert again == after


def test_program_of_a_newer_paddle_names_the_one_that_runs_it(tmp_path):
    if float("inf") == NEWEST_PROGRAM:
        pytest.skip("it is unknown which programs this Paddle cannot run")
    program = json.loads(NEW.read_text())
    program["base_code"]["version"] = NEWEST_PROGRAM + 1
    (tmp_path / "model.json").write_text(json.dumps(program))  # without weights: nothing is loaded
    with pytest.raises(
        BundleError, match=r"model\.json.*cannot run it; install Paddle 3\.\d.*onnxruntime"
    ) as raised:
        open_program(tmp_path / "model.json")
    assert "\n" not in str(raised.value)


def test_paddle2onnx_for_another_paddle_is_named(root, tmp_path):
    (tmp_path / "paddle2onnx.py").write_text("raise ImportError('undefined symbol: _ZN3pir')")
    command = [sys.executable, "-c", "import ppfcos.export.onnx_export"]
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    *_, line = done.stderr.strip().splitlines()
    assert "MissingLibraryError: paddle2onnx" in line and "pip install paddle2onnx==" in line
