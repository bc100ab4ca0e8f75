"""The step profiler, with Paddle's profiler around steps whose parts are known."""

from __future__ import annotations

import gc
import json
import logging
import re
import time

import paddle
import pytest
from paddle import nn

from ppfcos.engine.profiling import BACKWARD, DATA_WAIT, FORWARD, OPTIMIZER, StepProfiler


def _train(profiler, steps: int) -> None:
    """Two convolutions per step, and a wait of 30 ms for data, half of it within the forward pass."""
    model = nn.Sequential(nn.Conv2D(3, 8, 3), nn.ReLU(), nn.Conv2D(8, 8, 3))
    optimizer = paddle.optimizer.Momentum(0.01, parameters=model.parameters())
    images = paddle.rand([2, 3, 32, 32])
    with profiler:
        for _ in range(steps):
            with profiler.phase(DATA_WAIT):
                time.sleep(0.015)
            with profiler.phase(FORWARD):
                loss = model(images).square().mean()
                with profiler.phase(DATA_WAIT):
                    time.sleep(0.015)
            with profiler.phase(BACKWARD):
                loss.backward()
            with profiler.phase(OPTIMIZER):
                optimizer.step()
                optimizer.clear_grad()
            profiler.step()


def _phases(text: str) -> dict[str, list[float]]:
    """Milliseconds and percentage of each phase in the log."""
    rows = (re.match(r"(\S.*?)\s\s+([\d.]+)\s+([\d.]+)%$", line) for line in text.splitlines())
    return {row[1]: [float(row[2]), float(row[3])] for row in rows if row}


def _operators(text: str) -> dict[str, tuple[int, float]]:
    """Calls and total milliseconds of each operator in the log."""
    rows = (re.match(r"(\w+)(?: dygraph)?\s+(\d+)\s+([\d.]+) / ", line) for line in text.splitlines())
    return {row[1]: (int(row[2]), float(row[3])) for row in rows if row}


@pytest.fixture(autouse=True)
def _release_profiler():
    gc.collect()  # Paddle has one profiler per process


@pytest.fixture
def profile(tmp_path, monkeypatch, caplog):
    """Profiles some steps; returns the log and the trace."""
    monkeypatch.chdir(tmp_path)

    def profile(steps: int) -> tuple[str, dict]:
        with caplog.at_level(logging.INFO, "ppfcos"):
            _train(StepProfiler(tmp_path / "run" / "profile", steps), steps)
        (trace,) = (tmp_path / "run" / "profile").iterdir()
        return caplog.text, json.loads(trace.read_text())

    return profile


def test_phases_operators_and_trace(profile, tmp_path):
    text, trace = profile(17)
    assert "time of steps 10 to 15" in text
    assert str(tmp_path / "run" / "profile" / "steps_10_to_15.json") in text
    phases = _phases(text)
    assert 30 <= phases["data wait"][0] < 60
    parts = [phases[name][0] for name in (DATA_WAIT, FORWARD, BACKWARD, OPTIMIZER)]
    assert sum(parts) == pytest.approx(phases["a step"][0], rel=0.05)
    assert phases["a step"][1] == 100
    assert phases["data wait"][1] == pytest.approx(
        100 * phases["data wait"][0] / phases["a step"][0], abs=0.1
    )
    # Six steps of two convolutions; no operator takes longer than its phase.
    calls, milliseconds = _operators(text)["conv2d"]
    assert calls == 2 * 6
    assert 0 < milliseconds <= 6 * phases["forward"][0] + 0.01
    assert len(_operators(text)) == 10
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    names = [event["name"].split("[")[0] for event in events if event["cat"] == "PythonUserDefined"]
    assert sorted(names) == sorted([DATA_WAIT, FORWARD, DATA_WAIT, BACKWARD, OPTIMIZER] * 6)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("steps", "first", "last"), [(1, 1, 1), (2, 2, 2), (5, 2, 5), (12, 7, 12), (15, 10, 15), (7329, 10, 15)]
)
def test_profiled_steps_leave_out_the_first_if_possible(tmp_path, steps, first, last):
    profiler = StepProfiler(tmp_path, steps)
    assert (profiler.first, profiler.last) == (first, last)


def test_a_run_of_one_step_is_profiled(profile):
    text, _ = profile(1)
    assert "time of steps 1 to 1" in text
    assert _operators(text)["conv2d"][0] == 2


def test_the_training_continues_if_the_trace_cannot_be_written(tmp_path, caplog):
    (tmp_path / "profile").write_text("a file instead of the folder")
    with caplog.at_level(logging.INFO, "ppfcos"):
        _train(StepProfiler(tmp_path / "profile", 3), 3)
    assert _operators(caplog.text)["conv2d"][0] == 4
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "steps_2_to_3.json cannot be written" in warning.getMessage()


def test_an_error_within_the_profiled_steps_stops_the_profiler(tmp_path):
    profiler = StepProfiler(tmp_path / "profile", 20)
    with pytest.raises(RuntimeError, match="broken"), profiler:
        for step in range(1, 20):
            if step == 12:
                raise RuntimeError("broken")
            profiler.step()
    assert not (tmp_path / "profile").exists()
    with profiler.phase(FORWARD):
        pass
    with paddle.profiler.Profiler(on_trace_ready=lambda other: None):  # Paddle has one per process
        paddle.zeros([1])
