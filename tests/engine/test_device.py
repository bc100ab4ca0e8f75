"""Device selection: CPU, fake plug-in devices, and absent devices."""

from __future__ import annotations

import paddle
import pytest
from helpers.pretend_device import build_plugin, run_with_plugins

from ppfcos.engine import device
from ppfcos.errors import DeviceError

ALL = "cpu, PretendChip:0, PretendChip:1, npu:0, npu:1"


@pytest.mark.parametrize(
    ("cfg", "wanted"),
    [
        ({}, "auto"),
        ({"device": "auto"}, "auto"),
        ({"device": "GPU:1"}, "gpu:1"),
        ({"device": "cuda:1"}, "gpu:1"),
        ({"device": "dcu"}, "gpu"),
        ({"device": "auto", "use_gpu": False}, "cpu"),
        ({"device": "gpu", "use_gpu": False}, "cpu"),
        ({"device": "xpu", "use_gpu": False}, "xpu"),
        ({"device": "auto", "use_gpu": True}, "gpu"),
        ({"device": "gpu:2", "use_gpu": True}, "gpu:2"),
        ({"device": "auto", "use_npu": True}, "npu"),
        ({"device": "cpu"}, "cpu"),
        ({"device": "iluvatar_gpu"}, "iluvatar_gpu"),
    ],
)
def test_the_device_of_paddledetections_and_our_keys(cfg, wanted):
    assert device.wanted_device(cfg) == wanted


def test_a_present_device_is_selected():
    assert device.select_device({"device": "cpu"}) == "cpu"
    assert paddle.get_device() == "cpu"
    if not paddle.device.is_compiled_with_cuda():
        assert device.select_device({"device": "auto"}) == "cpu"


@pytest.mark.parametrize("name", ["gpu:99", "xpu", "mlu", "fpga"])
def test_an_absent_device_is_an_error_that_lists_the_present_ones(name):
    with pytest.raises(DeviceError, match=rf"device {name}: not on this machine.*which has cpu"):
        device.select_device({"device": name})
    assert paddle.get_device() == "cpu"


# Plug-ins

SELECT = """
import json, os
from ppfcos import environment
with environment.quiet_imports():
    import paddle
    from ppfcos.engine.device import peak_memory, select_device
from ppfcos.errors import DeviceError

def select(cfg, **variables):
    os.environ.update(variables)
    try:
        name = select_device(cfg)
    except DeviceError as error:
        return f"error: {error}"
    finally:
        for variable in variables:
            del os.environ[variable]
    assert str(paddle.ones([1]).place) == f"Place({name})", paddle.ones([1]).place
    return name
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    for name in ("npu", "PretendChip"):
        build_plugin(folder, name)
    return folder


def test_devices_of_plugins_are_selected_by_name_number_and_launcher(plugins, root):
    cases = [
        ({"device": "npu"}, {}, "npu:0"),
        ({"device": "npu:1"}, {}, "npu:1"),
        ({"use_npu": True}, {}, "npu:0"),
        ({"use_npu": True, "device": "npu:1"}, {}, "npu:1"),
        ({"device": "pretendchip:1"}, {}, "PretendChip:1"),
        ({"device": "auto"}, {}, "cpu"),
        # as the launcher tells its processes
        ({"device": "npu"}, {"FLAGS_selected_npus": "1", "PADDLE_LOCAL_SIZE": "2"}, "npu:1"),
    ]
    script = f"print(json.dumps([select(cfg, **extra) for cfg, extra, _ in {cases!r}]))"
    found = run_with_plugins(plugins, root, SELECT + script)
    assert found == [wanted for _, _, wanted in cases]


def test_absent_devices_of_plugins_are_errors_that_list_the_present_ones(plugins, root):
    script = """
print(json.dumps([
    select({"device": "npu:7"}),
    select({"device": "mlu"}),
    select({"device": "npu:1"}, PADDLE_LOCAL_SIZE="2"),
]))
"""
    absent, unknown, shared = run_with_plugins(plugins, root, SELECT + script)
    hint = "set -o device=auto to take what is there"
    for name, message in (("npu:7", absent), ("mlu", unknown)):
        start = f"error: device {name}: not on this machine or not in this build of Paddle, which has "
        assert message == f"{start}{ALL}; {hint}"
    assert "2 processes on this machine cannot share it; set -o device=npu" in shared


def test_a_device_that_does_not_start_is_named(plugins, root):
    script = 'print(json.dumps(select({"device": "npu"})))'
    message = run_with_plugins(plugins, root, SELECT + script, PRETEND_BROKEN="1")
    assert message.startswith("error: device npu does not start (")
    assert "\n" not in message


@pytest.mark.skipif(
    not hasattr(paddle.device, "max_memory_reserved"), reason="this Paddle counts no memory of plug-ins"
)
def test_memory_is_that_of_the_plugins_device(plugins, root):
    script = """
select({"device": "npu:1"})
before = peak_memory()
block = paddle.zeros([1000, 1000])
print(json.dumps([before, peak_memory()]))
"""
    before, after = run_with_plugins(plugins, root, SELECT + script)
    assert before < 1e6
    assert 4e6 <= after < 1e7
