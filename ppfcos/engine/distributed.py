"""Collectives over the ranks that `paddle.distributed.launch` started.

All functions work over gloo (CPU) and NCCL (GPU), and do nothing in a run of one process.
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
    """Join the other ranks. Select the device before."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) < 2:
        return
    if paddle.get_device() == "cpu":
        # Otherwise, a build with CUDA insists on NCCL and a GPU for each process.
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
def process_group(stop_with_launcher: bool = False) -> Iterator[None]:
    """Be one of the launched ranks: if a rank or the launcher dies, all exit. Select the device before.

    Args:
        stop_with_launcher: send this process SIGTERM when the launcher ends, so that it writes a checkpoint.
    """
    with watchdog.exit_with_launcher(stop_with_launcher):
        start()
        with watchdog.watch(rank(), world_size(), broadcast_object):
            yield


def world_size() -> int:
    """Return the number of ranks; 1 without a launcher."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process; 0 without a launcher."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is rank 0, which writes the files and the log."""
    return rank() == 0


def all_gather_object(value: Any) -> list:
    """Return the values of all ranks, in their order; `value` can be any picklable object."""
    if world_size() == 1:
        return [value]
    values: list = []
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Return the value of rank 0, any picklable object."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_gather_rows(values: Tensor) -> np.ndarray:
    """Gather [N] float32 values, of one length on all ranks, as [ranks, N] float64."""
    rows = values.detach()
    if world_size() > 1:
        gathered: list = []
        dist.all_gather(gathered, rows)
        rows = paddle.concat(gathered)
    return rows.numpy().astype("float64").reshape([world_size(), -1])


@contextlib.contextmanager
def collective_error_check() -> Iterator[None]:
    """Raise a PPFCOSError of one rank on all ranks, so that none waits for it. All must enter and leave.

    An error that the machine or a limit caused is one, too. No other collective may be within the block: the
    ranks that it fails on would leave it, and wait for the others here.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error if isinstance(error, PPFCOSError) else errors.resource_error(error)
        if failure is None or world_size() == 1:
            raise
    raise_on_all_ranks(failure)


def raise_on_all_ranks(failure: PPFCOSError | None) -> None:
    """Raise the error of the first rank that has one, on all ranks. All must call it."""
    if world_size() == 1:
        if failure is not None:
            raise failure
        return
    try:
        failures = all_gather_object(None if failure is None else (type(failure), str(failure)))
    except Exception:  # the others are busy for longer than a collective waits; the watchdog tells them
        if failure is not None:
            raise failure from None
        raise
    if not any(failures):
        return
    first = next(number for number, known in enumerate(failures) if known)
    kind, message = failures[first]
    if not all(failures):
        message = f"process {first} of {len(failures)}: {message}"
    raise kind(message) from failure


def convert_sync_batchnorm(model: nn.Layer) -> None:
    """Replace batch norms by synchronized ones, which Paddle has on accelerators; keep frozen ones."""
    for parent in model.sublayers(include_self=True):
        for name, child in list(parent.named_children()):
            # Paddle's conversion of a whole model does not keep `use_global_stats`.
            if isinstance(child, nn.BatchNorm2D) and not child._use_global_stats:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


def broadcast_buffers(model: nn.Layer) -> None:
    """Give all ranks the running statistics of rank 0."""
    if world_size() == 1:
        return
    for tensor in model.state_dict().values():
        if tensor.stop_gradient:  # Paddle has statistics among the parameters
            dist.broadcast(tensor, src=0)
