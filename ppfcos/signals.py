"""SIGTERM and SIGINT: a command that is told to stop finishes its step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ppfcos.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process was told to stop. Until `listening` is entered nobody can tell it.

    Attributes:
        signal: number of the signal that came while it was deferred; 0 if none did.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._is_deferred = False
        self._is_stopping = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Within it, a signal raises Stopped, or is noted where that is wanted.

        Paddle's own handler prints a trace of its C++ frames and dies. This one takes its place, so Paddle
        must have been imported before.

        Yields:
            Itself.
        """
        if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                # paddle.distributed.launch sends SIGTERM up to three times: the last must not kill a process
                # that is on its way out.
                default = signal.SIG_DFL if handler is None else handler
                signal.signal(number, signal.SIG_IGN if self._is_stopping else default)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it, a signal is only noted; whoever entered it looks at `signal` when it suits."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `deferred`, a part that a signal may break off, such as one that came before it."""
        self._is_deferred = False
        if self.signal:
            self._handle(self.signal, None)
        try:
            yield
        finally:
            self._is_deferred = True

    def stopped(self, number: int, message: str) -> Stopped:
        """What to raise when all processes have agreed to stop. From now on signals are ignored.

        Args:
            number: of the signal.
            message: what is left behind, in one line.

        Returns:
            The exception.
        """
        self._is_stopping = True
        return Stopped(number, message, together=True)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._is_stopping:
            return
        is_impatient = number == signal.SIGINT and self.signal == signal.SIGINT
        if self._is_deferred and not is_impatient:
            self.signal = number
            return
        self._is_stopping = True
        raise Stopped(number, f"stopped by {signal.Signals(number).name}")
