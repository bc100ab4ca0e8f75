"""The device to compute on."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

import paddle

from ppfcos import environment
from ppfcos.errors import DeviceError
from ppfcos.paddle_versions import max_memory_reserved

NAMED_BY_SWITCH = ("gpu", "xpu", "npu", "mlu")  # PaddleDetection's use_gpu, use_xpu, ...
OTHER_NAMES_OF_GPUS = ("cuda", "dcu")  # that Paddle takes too


def select_device(cfg: Mapping) -> str:
    """Make Paddle compute on the configured device.

    Of the processes that `paddle.distributed.launch` started on one machine, each takes its own.

    Args:
        cfg: `device`: `auto` (a GPU if there is one, else the CPU), `cpu`, `gpu`, `gpu:1`, `xpu`, `npu`,
            `mlu` or the name of any of Paddle's plug-in devices, such as `iluvatar_gpu`. PaddleDetection's
            `use_gpu: true` asks for that device; `use_gpu: false` for the CPU instead of a GPU.

    Returns:
        The device as Paddle names it, such as `gpu:0`.

    Raises:
        DeviceError: it is not there, and the message lists what is; it does not start; or several processes
            of this machine are to share it.
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
        # Without a number, Paddle takes the one that the launcher gave to this process.
        paddle.set_device(spelt[wanted])
        paddle.zeros([1])  # a device starts when it is first used
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DeviceError(
            f"device {wanted} does not start ({reason[:200]}): is its driver there, and nobody else using it?"
        ) from error
    return paddle.get_device()


def wanted_device(cfg: Mapping) -> str:
    """What `device`, `use_gpu`, `use_xpu` and so on ask for together.

    Args:
        cfg: the configuration.

    Returns:
        Name of a device in small letters, or `auto`.
    """
    device = str(cfg.get("device") or "auto").lower()
    device = re.sub(rf"^({'|'.join(OTHER_NAMES_OF_GPUS)})(?=:|$)", "gpu", device)
    for name in NAMED_BY_SWITCH:
        if cfg.get(f"use_{name}"):
            return device if _kind(device) == name else name
    if cfg.get("use_gpu") is False and _kind(device) in ("auto", "gpu"):
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
    """Most memory taken so far: of the accelerator where one is used, else of this process.

    Returns:
        Bytes; 0 where the system does not tell.
    """
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
