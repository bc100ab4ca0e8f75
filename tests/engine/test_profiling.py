"""Where the time of a step went, found out with Paddle's real profiler around steps whose parts are known."""

from __future__ import annotations

import json
import logging
import re
import time

import paddle
import pytest
from paddle import nn

from ppfcos.engine.profiling import (
    BACKWARD,
    DATA_WAIT,
    FORWARD,
    OPTIMIZER,
    NoProfiler,
    StepProfiler,
    phase_table,
)


def _train(profiler, steps: int) -> None:
    """Two convolutions a step, and a wait of 30 ms for data, half of it within the forward pass."""
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


def _rows(text: str) -> dict[str, list[float]]:
    """The numbers of every line by what stands before them."""
    found = (
        re.match(r"(\S.*?)\s\s+([\d.]+)\s+([\d.]+)%(?:\s+([\d.]+))?$", line) for line in text.splitlines()
    )
    return {row[1]: [float(value) for value in row.groups()[1:] if value] for row in found if row}


@pytest.fixture
def profiled(tmp_path, monkeypatch, caplog):
    """What is logged about some steps, and the trace."""
    monkeypatch.chdir(tmp_path)

    def profile(steps: int) -> tuple[str, dict]:
        with caplog.at_level(logging.INFO, "ppfcos"):
            _train(StepProfiler(tmp_path / "run" / "profile", steps), steps)
        (trace,) = (tmp_path / "run" / "profile").iterdir()
        return caplog.text, json.loads(trace.read_text())

    return profile


def test_the_phases_and_the_operators_are_those_of_the_steps(profiled, tmp_path):
    text, trace = profiled(17)
    assert "where the time of steps 10 to 15 went" in text
    assert str(tmp_path / "run" / "profile" / "steps_10_to_15.json") in text
    rows = _rows(text)
    assert 30 <= rows["data wait"][0] < 60
    parts = [rows[name][0] for name in (DATA_WAIT, FORWARD, BACKWARD, OPTIMIZER)]
    assert sum(parts) == pytest.approx(rows["a step"][0], rel=0.05)
    assert rows["a step"][1] == 100
    assert rows["data wait"][1] == pytest.approx(100 * rows["data wait"][0] / rows["a step"][0], abs=0.1)
    # Two convolutions a step, forward and backward; no operator takes longer than the phase that it is in.
    assert rows["conv2d"][2] == rows["conv2d (backward)"][2] == 2
    assert rows["momentum_"][2] == 4  # two weights, two biases
    assert 0 < rows["conv2d"][0] <= rows["forward"][0] + 0.01
    assert 0 < rows["conv2d (backward)"][0] <= rows["backward"][0] + 0.01
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    phases = [event["name"].split("[")[0] for event in events if event["cat"] == "PythonUserDefined"]
    assert sorted(phases) == sorted([DATA_WAIT, FORWARD, DATA_WAIT, BACKWARD, OPTIMIZER] * 6)


def test_nothing_is_left_in_the_working_folder(profiled, tmp_path):
    profiled(3)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("steps", "first", "last"), [(1, 1, 1), (2, 2, 2), (5, 2, 5), (12, 7, 12), (15, 10, 15), (7329, 10, 15)]
)
def test_a_short_epoch_is_profiled_without_its_first_step_if_possible(tmp_path, steps, first, last):
    profiler = StepProfiler(tmp_path, steps)
    assert (profiler.first, profiler.last) == (first, last)


def test_the_only_step_of_a_run_is_profiled(profiled):
    text, _ = profiled(1)
    assert "where the time of steps 1 to 1 went" in text
    assert _rows(text)["conv2d"][2] == 2


def test_a_trace_that_cannot_be_written_does_not_end_the_training(tmp_path, caplog):
    (tmp_path / "profile").write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO, "ppfcos"):
        _train(StepProfiler(tmp_path / "profile", 3), 3)
    assert _rows(caplog.text)["conv2d"][2] == 2
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "steps_2_to_3.json cannot be written" in warning.getMessage()


class _Double(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_operators_have_readable_names(tmp_path, caplog):
    norm, x = nn.GroupNorm(2, 4), paddle.rand([1, 4, 8, 8])
    x.stop_gradient = False
    with caplog.at_level(logging.INFO, "ppfcos"), StepProfiler(tmp_path, 1) as profiler:
        _Double.apply(norm(x)).sum().backward()
        profiler.step()
    names = {"group_norm", "group_norm (backward)", "_Double (backward)", "sum", "sum (backward)", "scale"}
    assert names | {"gradients, summed and exchanged"} <= _rows(caplog.text).keys()


def test_a_failure_among_the_profiled_steps_ends_the_profiler_and_leaves_nothing(tmp_path):
    profiler = StepProfiler(tmp_path / "profile", 20)
    with pytest.raises(RuntimeError, match="broken"), profiler:
        for step in range(1, 20):
            if step == 12:
                raise RuntimeError("broken")
            profiler.step()
    assert not (tmp_path / "profile").exists()
    with profiler.phase(FORWARD):  # and works as if there were none
        pass
    with paddle.profiler.Profiler(on_trace_ready=lambda other: None):  # Paddle has one for a process
        paddle.zeros([1])


def test_without_a_profiler_a_step_costs_nothing(tmp_path):
    profiler = NoProfiler()
    _train(profiler, 1)
    start = time.perf_counter()
    for _ in range(10_000):
        with profiler.phase(FORWARD):
            pass
        profiler.step()
    assert (time.perf_counter() - start) / 10_000 < 1e-4


def test_the_phases_of_a_table_add_up():
    lines = phase_table(
        {"forward": 3.0, "backward": 5.0, "optimizer": 0.0, "other": 2.0}, steps=4
    ).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["forward", "750.00", "30.0%"],
        ["backward", "1250.00", "50.0%"],
        ["other", "500.00", "20.0%"],
        ["a", "step", "2500.00", "100.0%"],
    ]
