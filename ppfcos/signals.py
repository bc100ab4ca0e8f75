"""SIGTERM, SIGINT and SIGHUP: a command that is told to stop finishes its step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ppfcos.errors import Stopped

# SIGHUP: the terminal was closed. Windows does not have it.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class StopRequest:
    """Handles SIGTERM, SIGINT and SIGHUP within `listening`.

    Attributes:
        signal: number of a signal that was deferred; 0 if none was.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._is_deferred = False
        self._is_stopping = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Raise Stopped on a signal within the block, or note it where it is deferred.

        This replaces Paddle's handler, which prints C++ frames and dies, so Paddle must be imported before.
        """
        if threading.current_thread() is not threading.main_thread():  # Python handles signals only there
            yield self
            return
        before = {
            number: signal.signal(number, self._handle)
            for number in SIGNALS
            # nohup ignores SIGHUP: the run outlives the terminal
            if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield self
        finally:
            for number, handler in before.items():
                # paddle.distributed.launch sends SIGTERM up to three times; the last must not kill a process
                # that is about to exit.
                default = signal.SIG_DFL if handler is None else handler
                signal.signal(number, signal.SIG_IGN if self._is_stopping else default)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note signals within the block, in `signal`; a second SIGINT still raises Stopped."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Raise Stopped on signals, also earlier ones, in this part of a `deferred` block."""
        self._is_deferred = False
        if self.signal:
            self._handle(self.signal, None)
        try:
            yield
        finally:
            self._is_deferred = True

    def agree_to_stop(self, number: int, message: str) -> Stopped:
        """Ignore further signals, and return the exception to raise when all ranks stop at the same step."""
        self._is_stopping = True
        return Stopped(number, message, together=True)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._is_stopping:
            return
        is_second_interrupt = number == signal.SIGINT and self.signal == signal.SIGINT
        if self._is_deferred and not is_second_interrupt:
            self.signal = number
            return
        self._is_stopping = True
        raise Stopped(number, f"stopped by {signal.Signals(number).name}")
