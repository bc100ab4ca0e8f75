"""Several processes as one: who they are, what they tell one another, and how they fail together.

All of it works the same over gloo (CPU) and NCCL (GPU), and does nothing in a run of one process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor, nn

from ppfcos import environment, errors
from ppfcos.engine import watchdog
from ppfcos.errors import DeviceError, PPFCOSError


def start() -> None:
    """Join the other processes that `paddle.distributed.launch` started. Select the device before."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) < 2:
        return
    if paddle.get_device() == "cpu":
        # A build with CUDA would otherwise insist on NCCL, and on a GPU for each process.
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
    try:
        # It prints Paddle's flags, and holds Python's lock while it waits for the other ranks.
        with environment.quiet_imports(), watchdog.killed_with_launcher():
            dist.init_parallel_env()
    except (RuntimeError, OSError) as error:
        raise DeviceError(
            f"cannot join the other ranks ({errors.one_line(error)}): see their logs, and check that all run "
            "and that this machine reaches PADDLE_MASTER"
        ) from error


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Be one of the ranks that `paddle.distributed.launch` started: if one dies, or the launcher, all exit.

    The device must be selected before. Without a launcher, this does nothing.
    """
    with watchdog.exit_with_launcher():
        start()
        with watchdog.watch(rank(), world_size(), from_main):
            yield


def world_size() -> int:
    """Number of processes that train together.

    Returns:
        1 without a launcher.
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process.

    Returns:
        0 to `world_size()` − 1.
    """
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and speaks.

    Returns:
        True in process 0.
    """
    return rank() == 0


def gather(value: Any) -> list:
    """What each process has, in all of them.

    Args:
        value: anything that can be pickled, of any size.

    Returns:
        One value a process, in their order.
    """
    if world_size() == 1:
        return [value]
    values: list = []
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """What process 0 has, in all of them.

    Args:
        value: anything that can be pickled; only that of process 0 counts.

    Returns:
        That one.
    """
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_rows(values: Tensor) -> np.ndarray:
    """A few numbers of each process, in all of them.

    Args:
        values: [N] float32, of one length everywhere.

    Returns:
        [processes, N] float64.
    """
    rows = values.detach()
    if world_size() > 1:
        gathered: list = []
        dist.all_gather(gathered, rows)
        rows = paddle.concat(gathered)
    return rows.numpy().astype("float64").reshape([world_size(), -1])


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Let what fails inside in one process fail in all, so that none waits. All must enter and leave it.

    Raises:
        PPFCOSError: the error of the first process that has one.
    """
    failure = None
    try:
        yield
    except PPFCOSError as error:
        if world_size() == 1:
            raise
        failure = error
    raise_in_all(failure)


def raise_in_all(failure: PPFCOSError | None) -> None:
    """Raise one process's error in all of them; all must call it.

    Args:
        failure: this process's error, if it has one.

    Raises:
        PPFCOSError: the error of the first process that has one, of the same class.
    """
    if world_size() == 1:
        if failure is not None:
            raise failure
        return
    try:
        failures = gather(None if failure is None else (type(failure).__name__, str(failure)))
    except Exception:  # the others are busy for longer than a collective waits; the watchdog tells them
        if failure is not None:
            raise failure from None
        raise
    if not any(failures):
        return
    first = next(number for number, known in enumerate(failures) if known)
    name, message = failures[first]
    if not all(failures):
        message = f"process {first} of {len(failures)}: {message}"
    raise getattr(errors, name)(message) from failure


def synchronize_norms(model: nn.Layer) -> None:
    """Let batch norms take their statistics over all processes. Those that are frozen stay as they are.

    Args:
        model: or a part of one; changed in place. Paddle has such norms on accelerators only.
    """
    for parent in model.sublayers(include_self=True):
        for name, child in list(parent.named_children()):
            # Paddle's own conversion of a whole model would forget that a norm uses its stored statistics.
            if isinstance(child, nn.BatchNorm2D) and not child._use_global_stats:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


def share_statistics(model: nn.Layer) -> None:
    """Give all processes the running statistics of process 0: each took them from other images.

    Args:
        model: changed in place.
    """
    if world_size() == 1:
        return
    for tensor in model.state_dict().values():
        if tensor.stop_gradient:  # Paddle counts statistics among the parameters
            dist.broadcast(tensor, src=0)
