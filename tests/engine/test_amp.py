"""Mixed precision on a CPU, which has none, and on a fake plug-in device that has it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from helpers.pretend_device import build_plugin, run_with_plugins
from paddle import nn

from ppfcos.engine.amp import Precision
from ppfcos.errors import ConfigError
from ppfcos.paddle_versions import HAS_NEW_IR

needs_bfloat16_of_plugins = pytest.mark.skipif(
    not HAS_NEW_IR, reason="Paddle 2.6 casts to bfloat16 on no plug-in device"
)


def test_mixed_precision_on_a_cpu_logs_a_warning(caplog):
    with caplog.at_level("WARNING", logger="ppfcos"):
        precision = Precision({"amp": True, "amp_level": "O2", "amp_dtype": "bfloat16"}, "cpu")
    assert "Paddle has no mixed precision on a CPU" in caplog.text
    assert precision.dtype is None
    weight = paddle.create_parameter([2], "float32")
    before = weight.numpy()
    optimizer = paddle.optimizer.SGD(0.5, parameters=[weight])
    with precision.autocast():
        loss = (weight * 2).sum()
    precision.backward(loss)
    precision.update(optimizer)
    np.testing.assert_allclose(weight.numpy(), before - 1, atol=1e-6)
    assert weight.grad is None or not weight.grad.numpy().any()
    assert precision.state_dict() == {}


def test_contradictions_are_refused():
    both = {"custom_white_list": ["concat", "tile"], "custom_black_list": ["tile"]}
    with pytest.raises(ConfigError, match="both name tile"):
        Precision({"amp": True, **both}, "cpu")
    with pytest.raises(ConfigError, match="master_weight: false"):
        Precision({"amp": True, "master_weight": False}, "cpu")
    Precision({"amp": False, "master_weight": False, **both}, "cpu")


def test_the_gradient_norm_is_that_of_all_gradients_as_one_vector():
    precision = Precision({}, "cpu")
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    model[2].bias.stop_gradient = True
    unused = paddle.create_parameter([7], "float32")
    parameters = [*model.parameters(), unused]
    assert precision.gradient_norm(parameters) == 0
    for scale in (1.0, 3.0):  # of two batches that make one step
        precision.backward((model(paddle.rand([6, 5])) ** 2).sum() * scale)
    whole = np.concatenate([p.grad.numpy().ravel() for p in parameters if p.grad is not None])
    assert whole.size == 5 * 4 + 4 + 4 * 3
    length = np.linalg.norm(whole.astype("float64"))
    assert float(precision.gradient_norm(parameters)) == pytest.approx(length, rel=1e-5)


# A device with mixed precision. One of this name has bfloat16, says Paddle.

START = """
import json, logging
from ppfcos import environment
with environment.quiet_imports():
    import paddle
    from ppfcos.engine.amp import Precision
    from ppfcos.paddle_versions import is_autocast_enabled
from ppfcos.errors import ConfigError

device = str(paddle.set_device(NAME))[6:-1]
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    for name in ("iluvatar_gpu", "other_chip"):
        build_plugin(folder, name)
    return folder


def _run(plugins, root, name: str, script: str):
    return run_with_plugins(plugins, root, START.replace("NAME", repr(name)) + script)


@needs_bfloat16_of_plugins
def test_operators_compute_in_the_configured_dtype(plugins, root):
    script = """
x = paddle.ones([2, 3])
weight = paddle.create_parameter([2, 3], "float32")

def dtypes(**cfg):
    with Precision({"amp": True, "amp_dtype": "float16", **cfg}, device).autocast():
        found = [paddle.concat([x, weight]), paddle.scale(x, 2.0), x.astype("float32").exp()]
    return [str(each.dtype)[7:] for each in found]

print(json.dumps([
    dtypes(),
    dtypes(custom_white_list=["concat"]),
    dtypes(amp_level="O2", custom_black_list=["exp"]),
    dtypes(amp_level="O2", custom_black_list=["concat", "exp"]),
    dtypes(amp_level="O2", custom_black_list=["exp"], amp_dtype="bfloat16"),
    dtypes(amp=False),
]))
"""
    assert _run(plugins, root, "iluvatar_gpu", script) == [
        ["float32", "float32", "float32"],
        ["float16", "float32", "float32"],
        ["float16", "float16", "float32"],
        ["float32", "float16", "float32"],
        ["bfloat16", "bfloat16", "float32"],
        ["float32", "float32", "float32"],
    ]


def test_at_o2_weights_and_their_gradients_stay_float32(plugins, root):
    script = """
weight = paddle.create_parameter([3], "float32")
weight.set_value(paddle.to_tensor([1.0, 2.0, 3.0]))
optimizer = paddle.optimizer.SGD(1e-4, parameters=[weight])
precision = Precision({"amp": True, "amp_level": "O2", "amp_dtype": "float16"}, device)
with precision.autocast():
    seen = paddle.scale(weight, 2.0)
precision.backward(seen.astype("float32").sum())
gradient = str(weight.grad.dtype)
precision.update(optimizer)
print(json.dumps([str(seen.dtype), gradient, str(weight.dtype), weight.tolist()]))
"""
    seen, gradient, weight, values = _run(plugins, root, "iluvatar_gpu", script)
    assert (seen, gradient, weight) == ("paddle.float16", "paddle.float32", "paddle.float32")
    # Steps of 2e-4, a tenth of what float16 can tell apart at 3.
    np.testing.assert_allclose(values, [0.9998, 1.9998, 2.9998], rtol=1e-6)


def test_float16_scales_the_loss_and_skips_steps_that_overflow(plugins, root):
    script = """
logging.basicConfig(level="INFO", format="%(message)s")
x = paddle.to_tensor([1.0, 2.0, 2.0])
weight = paddle.create_parameter([3], "float32")
weight.set_value(paddle.zeros([3]))
optimizer = paddle.optimizer.SGD(0.5, parameters=[weight])
cfg = {"amp": True, "amp_dtype": "float16", "init_loss_scaling": 4096}
precision = Precision(cfg, device)
seen = []

def step(precision, *factors):
    for factor in factors:
        with precision.autocast():
            loss = (weight * x * factor).sum()
        precision.backward(loss)
    seen.append([weight.grad.tolist(), float(precision.gradient_norm([weight]))])
    precision.update(optimizer)
    seen[-1] += [weight.tolist(), precision.state_dict(), weight.grad is None or not bool(weight.grad.any())]

step(precision, 1.0)
step(precision, 1.0, 2.0)
step(precision, 1.0, 3e38)
resumed = Precision(cfg, device)
resumed.set_state_dict(precision.state_dict())
step(resumed, 1.0)
resumed.set_state_dict({})
print(json.dumps([[str(part) if i == 1 else part for i, part in enumerate(one)] for one in seen]))
"""
    first, accumulated, overflowed, resumed = _run(plugins, root, "iluvatar_gpu", script)
    state = {"loss_scale": 4096, "good_steps": 1}
    assert first == [[4096, 8192, 8192], "3.0", [-0.5, -1, -1], state, True]
    state["good_steps"] = 2
    assert accumulated == [[3 * 4096, 6 * 4096, 6 * 4096], "9.0", [-2, -4, -4], state, True]
    assert not np.isfinite(float(overflowed[1]))
    assert overflowed[2:] == [[-2, -4, -4], {"loss_scale": 2048, "good_steps": 0}, True]
    state = {"loss_scale": 2048, "good_steps": 1}
    assert resumed == [[2048, 4096, 4096], "3.0", [-2.5, -5, -5], state, True]


@needs_bfloat16_of_plugins
def test_bfloat16_is_not_scaled(plugins, root):
    script = """
precision = Precision({"amp": True, "amp_dtype": "bfloat16"}, device)
weight = paddle.create_parameter([3], "float32")
with precision.autocast():
    enabled = is_autocast_enabled()
    loss = (weight * 2).sum()
precision.backward(loss)
print(json.dumps([enabled, precision.dtype, weight.grad.tolist(), float(precision.gradient_norm([weight]))]))
"""
    enabled, dtype, gradient, norm = _run(plugins, root, "iluvatar_gpu", script)
    assert (enabled, dtype, gradient) == (True, "bfloat16", [2, 2, 2])
    assert norm == pytest.approx(12**0.5)


def test_a_device_without_the_configured_dtype_is_named(plugins, root):
    script = """
try:
    Precision({"amp": True, "amp_dtype": "bfloat16"}, device)
except ConfigError as error:
    print(json.dumps([str(error), Precision({"amp": True}, device).dtype]))
"""
    message, chosen = _run(plugins, root, "other_chip:1", script)
    assert message == "amp_dtype: other_chip:1 has no bfloat16, but float16: set that, or auto"
    assert chosen == "float16"
