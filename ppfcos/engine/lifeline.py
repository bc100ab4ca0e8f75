"""The death of one process ends all of them, within seconds and with its name.

A process that is killed, or that crashes, leaves the others waiting in a message to all that it will never
answer. So every process holds a connection to process 0, over which nothing is said while all is well.
However a process ends, its system closes the connection; process 0 sees that and tells the rest, and all of
them stop. The connections of a machine that vanishes without closing them are given up by TCP itself, since
nobody answers its probes. Whoever leaves in good order says so first.

It takes a thread that sleeps until something happens, and nothing at all in a run of one process. The
standard library is all it needs, so that it works whatever Paddle is doing at that moment.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

from ppfcos.errors import PPFCOSError, Stopped

logger = logging.getLogger(__name__)

EXIT_CODE = 3  # of a process that stops because another one died: 2 is for what the user can cure
CONNECT_SECONDS = 30.0
SEND_SECONDS = 5.0
LONGEST_INTRODUCTION = 8192  # bytes
# After one process fails with an error, until those that have not left by themselves are stopped. An error
# that all raise together takes them out much sooner.
FAILURE_SECONDS = 15.0
# When a message to all breaks off, this long is waited for the news of whose death broke it.
NEWS_SECONDS = 5.0
FLUSH_SECONDS = 2.0

# Seconds of silence before a machine is asked whether it is there, from one such probe to the next, and how
# many may go unanswered.
PROBE_AFTER, PROBE_EVERY, PROBES = 8, 4, 3


class Member(NamedTuple):
    """One of the processes, as the others speak of it.

    Attributes:
        rank: from 0.
        world_size: number of processes.
        host: name of its machine.
        pid: on that machine.
        log: path of its output there; empty where that is not known.
    """

    rank: int
    world_size: int
    host: str
    pid: int
    log: str

    @classmethod
    def this_process(cls, rank: int, world_size: int) -> Member:
        """This process, started by `paddle.distributed.launch` or not.

        Args:
            rank: from 0.
            world_size: number of processes.

        Returns:
            What there is to know.
        """
        folder, number = os.environ.get("PADDLE_LOG_DIR"), os.environ.get("PADDLE_LOCAL_RANK")
        log = os.path.join(folder, f"workerlog.{number}") if folder and number else ""
        return cls(rank, world_size, socket.gethostname(), os.getpid(), log)

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world_size} (pid {self.pid} on {self.host})"


@contextlib.contextmanager
def held(rank: int, world_size: int, from_main: Callable[[Any], Any]) -> Iterator[None]:
    """Within it, this process ends when another one dies. All processes must enter it.

    Args:
        rank: of this process, from 0.
        world_size: number of processes; of one alone, nothing is done.
        from_main: gives all processes the value of process 0, as `distributed.from_main` does.
    """
    if world_size == 1:
        yield
        return
    me = Member.this_process(rank, world_size)
    watch = _Watch(me, _connect(me, from_main))
    try:
        yield
    except BaseException as error:
        watch.leave_with(error)
        raise
    else:
        watch.leave()


class _Connection:
    """Messages to and from another process, one JSON object a line."""

    def __init__(self, link: socket.socket, member: Member | None = None):
        self.link = link
        self.member = member
        self._unfinished = b""
        link.settimeout(SEND_SECONDS)
        _give_up_on_silence(link)
        _keep_from_children(link)

    def send(self, **message: Any) -> None:
        """Send a message, or do without: the other end may be gone already."""
        with contextlib.suppress(OSError):
            self.link.sendall(json.dumps(message).encode() + b"\n")

    def receive_first(self) -> dict:
        """The first message, read byte by byte: those behind it are the listener's.

        Raises:
            OSError: the other end has closed the connection, or says nothing.
            ValueError: what it says is no message.
        """
        line = b""
        while not line.endswith(b"\n") and len(line) < LONGEST_INTRODUCTION:
            byte = self.link.recv(1)
            if not byte:
                raise ConnectionResetError(errno.ECONNRESET, "closed")
            line += byte
        return json.loads(line)

    def receive(self) -> list[dict]:
        """What arrives next: as many messages as are complete.

        Raises:
            OSError: the other end has closed the connection, or does not answer.
        """
        received = self.link.recv(65536)
        if not received:
            raise ConnectionResetError(errno.ECONNRESET, "closed")
        *lines, self._unfinished = (self._unfinished + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        _children_close.discard(self.link)
        self.link.close()


def _give_up_on_silence(link: socket.socket) -> None:
    """Have the system probe a quiet connection. A busy process need not answer itself: its system does."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": PROBE_AFTER,
        "TCP_KEEPALIVE": PROBE_AFTER,  # macOS's name for it
        "TCP_KEEPINTVL": PROBE_EVERY,
        "TCP_KEEPCNT": PROBES,
        "TCP_USER_TIMEOUT": 1000 * (PROBE_AFTER + PROBES * PROBE_EVERY),  # for the receipt of a message
    }
    for name, value in options.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# A process that reads images is a fork of its training process, with a copy of the connection that would keep
# it open after the death of the original.
_children_close: set[socket.socket] = set()


def _close_in_child() -> None:
    for link in _children_close:
        link.close()
    _children_close.clear()


if hasattr(os, "register_at_fork"):  # systems without it do not fork
    os.register_at_fork(after_in_child=_close_in_child)


def _keep_from_children(link: socket.socket) -> None:
    _children_close.add(link)


def _connect(me: Member, from_main: Callable[[Any], Any]) -> list[_Connection]:
    """Connections to all others in process 0, to process 0 in the others; fewer where that fails."""
    if me.rank > 0:
        return _connect_to_main(me, from_main(None))
    with socket.create_server(("", 0), backlog=me.world_size) as server:
        secret = secrets.token_hex(16)
        from_main({"port": server.getsockname()[1], "secret": secret, "member": me})
        return _accept_others(server, secret, me.world_size)


def _connect_to_main(me: Member, main: dict) -> list[_Connection]:
    address = (_main_host(), main["port"])
    try:
        connection = _Connection(socket.create_connection(address, CONNECT_SECONDS), main["member"])
    except OSError as error:
        logger.warning(
            "process %d cannot reach process 0 at %s:%d (%s): the death of a process will not be noticed "
            "by all others",
            me.rank,
            *address,
            error,
        )
        return []
    connection.send(secret=main["secret"], member=me)
    return [connection]


def _main_host() -> str:
    """Address of process 0's machine, by which Paddle itself reaches it."""
    endpoints = os.environ.get("PADDLE_TRAINER_ENDPOINTS") or "127.0.0.1:0"
    return endpoints.split(",")[0].rpartition(":")[0]


def _accept_others(server: socket.socket, secret: str, world_size: int) -> list[_Connection]:
    connections: dict[int, _Connection] = {}
    until = time.monotonic() + CONNECT_SECONDS
    while len(connections) < world_size - 1 and time.monotonic() < until:
        server.settimeout(max(0.01, until - time.monotonic()))
        try:
            connection = _Connection(server.accept()[0])
        except OSError:
            break
        connection.member = _introduced(connection, secret)
        if connection.member is None:
            connection.close()
        else:
            connections[connection.member.rank] = connection
    missing = [str(rank) for rank in range(1, world_size) if rank not in connections]
    if missing:
        logger.warning(
            "process %s did not connect to process 0: its death will not be noticed by the others",
            ", ".join(missing),
        )
    return list(connections.values())


def _introduced(connection: _Connection, secret: str) -> Member | None:
    """Who has connected; None where it is a stranger, such as a scanner of ports."""
    try:
        message = connection.receive_first()
        known = hmac.compare_digest(str(message["secret"]), secret)
        return Member(*message["member"]) if known else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Watch:
    """Listens to the others until this process leaves, and ends it where one of them dies."""

    def __init__(self, me: Member, connections: list[_Connection]):
        self._me = me
        self._connections = connections
        self._selector = selectors.DefaultSelector()
        for connection in connections:
            self._selector.register(connection.link, selectors.EVENT_READ, connection)
        self._bell, self._bell_heard = socket.socketpair()
        self._selector.register(self._bell_heard, selectors.EVENT_READ)
        self._last_words, self._stop_at = "", float("inf")
        self._thread = threading.Thread(target=self._listen, name="lifeline", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Leave in good order."""
        self._stop_listening()
        self._tell_all(leaves=True)
        for connection in self._connections:
            connection.close()
        self._selector.close()
        self._bell_heard.close()

    def leave_with(self, error: BaseException) -> None:
        """Leave because of an error, which those that do not raise it too have to know of.

        Args:
            error: on its way out of this process.
        """
        if isinstance(error, Stopped) and error.together:
            self.leave()
            return
        if isinstance(error, Exception) and not isinstance(error, (PPFCOSError, Stopped)):
            # It may be no more than a broken message to all. Then the listener soon knows why it broke.
            self._thread.join(NEWS_SECONDS)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        self._tell_all(text=f"{self._me} stopped with {reason}", seconds=FAILURE_SECONDS)
        self.leave()

    def _stop_listening(self) -> None:
        self._bell.send(b"!")  # closing it would not ring: a child may have a copy
        self._thread.join()
        self._bell.close()

    def _tell_all(self, **message: Any) -> None:
        for connection in self._connections:
            connection.send(**message)

    def _listen(self) -> None:
        while True:
            left = self._stop_at - time.monotonic()
            ready = self._selector.select(None if left == float("inf") else max(0.0, left))
            if not ready:
                self._end_process()
            for key, _ in ready:
                if key.data is None:
                    return
                self._hear(key.data)

    def _hear(self, connection: _Connection) -> None:
        try:
            messages = connection.receive()
        except OSError as error:
            self._selector.unregister(connection.link)
            self._stop_all(_obituary(connection.member, error), 0.0)
            return
        for message in messages:
            if "leaves" in message:
                self._selector.unregister(connection.link)
            else:
                self._stop_all(message["text"], message["seconds"])

    def _stop_all(self, text: str, seconds: float) -> None:
        """Stop here and, if this is process 0, everywhere; at the earliest time that anyone has named."""
        text = self._last_words or text  # who goes later goes because of the first
        if self._me.rank == 0:
            self._tell_all(text=text, seconds=seconds)
        if time.monotonic() + seconds < self._stop_at:
            self._last_words, self._stop_at = text, time.monotonic() + seconds
        if seconds == 0:
            self._end_process()

    def _end_process(self) -> None:
        """End at once: the main thread may be waiting for the dead, for ever."""
        # Not through sys.stderr, whose lock the main thread may hold.
        with contextlib.suppress(OSError):
            os.write(2, f"error: {self._last_words}; {self._me} stops too\n".encode())
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)
        os._exit(EXIT_CODE)


def _obituary(member: Member, error: OSError) -> str:
    if error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"{member} does not answer: its machine is down, or the network between is cut"
    log = f": see the end of its log, {member.log}" if member.log else ""
    return f"{member} was killed or crashed{log}; most often memory ran out"


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    logging.shutdown()
