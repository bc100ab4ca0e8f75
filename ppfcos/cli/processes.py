"""Sharing work among the processes that `paddle.distributed.launch` started.

Paddle is imported where there is more than one process, and only there: a bundle runs without it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from ppfcos import environment

T = TypeVar("T")


def count() -> int:
    """The number of processes; 1 without a launcher."""
    text = os.environ.get("PADDLE_TRAINERS_NUM", "1")
    return max(1, int(text)) if text.isdigit() else 1


def rank() -> int:
    """The number of this process; 0 without a launcher."""
    return 0 if count() == 1 else int(os.environ["PADDLE_TRAINER_ID"])


def share(things: Sequence[T]) -> Sequence[T]:
    """This process's part: every n-th of n processes, for neighbours are often alike."""
    if count() == 1:
        return things
    return things[rank() :: count()]


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes: if one fails or dies, all end. The device must be selected before."""
    from ppfcos.engine import watchdog

    with watchdog.exit_with_launcher():
        if count() == 1:
            yield
            return
        with environment.quiet_imports():
            from ppfcos.engine import distributed
        with distributed.joined():
            yield


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Let what fails inside in one process fail in all. They must be joined."""
    if count() == 1:
        yield
        return
    from ppfcos.engine import distributed

    with distributed.together():
        yield


def gather(value: Any) -> list:
    """What each process has, in all of them. They must be joined."""
    if count() == 1:
        return [value]
    from ppfcos.engine import distributed

    return distributed.gather(value)
