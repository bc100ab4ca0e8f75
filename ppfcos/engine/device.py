"""The device to compute on."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import paddle

from ppfcos.errors import DeviceError

NAMED_BY_SWITCH = ("gpu", "xpu", "npu", "mlu")  # PaddleDetection's use_gpu, use_xpu, ...


def select_device(cfg: Mapping) -> str:
    """Make Paddle compute on the configured device.

    Of the processes that `paddle.distributed.launch` started on one machine, each takes its own.

    Args:
        cfg: `device`: `auto` (a GPU if there is one, else the CPU), `cpu`, `gpu`, `gpu:1`, `xpu`, `npu`,
            `mlu` or the name of one of Paddle's plug-in devices. PaddleDetection's `use_gpu: true` asks for
            that device; `use_gpu: false` for the CPU instead of a GPU.

    Returns:
        The device as Paddle names it, such as `gpu:0`.

    Raises:
        DeviceError: it is not there; the message lists what is.
    """
    wanted, available = wanted_device(cfg), available_devices()
    if wanted == "auto":
        wanted = "gpu" if any(name.startswith("gpu") for name in available) else "cpu"
    if wanted not in available and wanted not in {name.split(":")[0] for name in available}:
        raise DeviceError(
            f"device {wanted}: not on this machine or not in this build of Paddle, which has "
            f"{', '.join(available)}; set -o device=auto to take what is there"
        )
    # Without a number, Paddle takes the one that the launcher gave to this process.
    paddle.set_device(wanted)
    return paddle.get_device()


def wanted_device(cfg: Mapping) -> str:
    """What `device`, `use_gpu`, `use_xpu` and so on ask for together.

    Args:
        cfg: the configuration.

    Returns:
        Name of a device, or `auto`.
    """
    device = str(cfg.get("device") or "auto").lower()
    for name in NAMED_BY_SWITCH:
        if cfg.get(f"use_{name}"):
            return device if device.startswith(name) else name
    if cfg.get("use_gpu") is False and device.split(":")[0] in ("auto", "gpu"):
        return "cpu"
    return device


def available_devices() -> list[str]:
    """Paddle's devices on this machine.

    Returns:
        `cpu` and the likes of `gpu:0` and `npu:1`.
    """
    found = [
        "cpu",
        *paddle.device.get_available_device(),
        *(paddle.device.get_available_custom_device() or []),
    ]
    return list(dict.fromkeys(found))


def peak_memory() -> int:
    """Most memory taken so far: of the GPU where one is used, else of this process.

    Returns:
        Bytes; 0 where the system does not tell.
    """
    if paddle.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_reserved()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
