"""Selects the device to compute on."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

import paddle

from ppfcos import environment
from ppfcos.errors import DeviceError
from ppfcos.paddle_versions import max_memory_reserved

SWITCHES = ("gpu", "xpu", "npu", "mlu")  # of PaddleDetection's use_gpu, use_xpu, ...
GPU_ALIASES = ("cuda", "dcu")  # other names that Paddle accepts


def select_device(cfg: Mapping) -> str:
    """Make Paddle compute on the configured device. Ranks on one machine each take their own.

    Args:
        cfg: `device`: `auto` (a GPU if there is one, else the CPU), `cpu`, `gpu`, `gpu:1`, `xpu`, `npu`,
            `mlu` or the name of a Paddle plug-in device such as `iluvatar_gpu`. PaddleDetection's `use_gpu:
            true` selects a GPU, `use_gpu: false` the CPU instead of a GPU.

    Returns:
        The device as Paddle names it, such as `gpu:0`.

    Raises:
        DeviceError: the device is absent or does not start, or several local processes would share it.
    """
    wanted, available = wanted_device(cfg), available_devices()
    if wanted == "auto":
        wanted = "gpu" if any(_kind(name) == "gpu" for name in available) else "cpu"
    # Plug-ins choose their names, in capitals or not.
    spelt = {name.lower(): name for device in available for name in (device, _kind(device))}
    if wanted not in spelt:
        raise DeviceError(
            f"device {wanted}: not on this machine or not in this build of Paddle, which has "
            f"{', '.join(available)}; set -o device=auto to take what is there"
        )
    if ":" in wanted and environment.local_processes() > 1:
        raise DeviceError(
            f"device {wanted}: {environment.local_processes()} processes on this machine cannot share it; "
            f"set -o device={_kind(wanted)}, and choose with --devices of paddle.distributed.launch"
        )
    try:
        # Without a number, Paddle takes the device that the launcher gave to this process.
        paddle.set_device(spelt[wanted])
        paddle.zeros([1])  # a device starts when it is first used
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DeviceError(
            f"device {wanted} does not start ({reason[:200]}): check its driver, and whether another process "
            "uses it"
        ) from error
    return paddle.get_device()


def wanted_device(cfg: Mapping) -> str:
    """Return the device that `device`, `use_gpu`, `use_xpu` and so on select, in lower case, or `auto`."""
    device = str(cfg.get("device") or "auto").lower()
    device = re.sub(rf"^({'|'.join(GPU_ALIASES)})(?=:|$)", "gpu", device)
    for name in SWITCHES:
        if cfg.get(f"use_{name}"):
            return device if _kind(device) == name else name
    if cfg.get("use_gpu") is False and _kind(device) in ("auto", "gpu"):
        return "cpu"
    return device


def available_devices() -> list[str]:
    """Return Paddle's devices on this machine: `cpu` and names such as `gpu:0` and `npu:1`."""
    found = [
        "cpu",
        *paddle.device.get_available_device(),
        *(paddle.device.get_available_custom_device() or []),
    ]
    return list(dict.fromkeys(found))


def peak_memory() -> int:
    """Return the peak memory of the accelerator, or of this process on a CPU, in bytes; 0 if unknown."""
    device = paddle.get_device()
    if _kind(device) == "gpu":
        return paddle.device.cuda.max_memory_reserved()
    if _kind(device) in (paddle.device.get_all_custom_device_type() or ()):
        return max_memory_reserved(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _kind(device: str) -> str:
    """`npu` of `npu:1`."""
    return device.split(":")[0]
