"""Watchdog: if one rank dies or is stopped, all exit within seconds and name it.

A rank that ends leaves the others waiting in a collective, and `paddle.distributed.launch` stops only the
ranks of its own machine. Therefore every rank has a TCP connection to rank 0. A small process beside each
rank sends a blank line over its connections every second while the rank runs. A closed connection means that
the rank died; silence for SILENT_SECONDS means that it is stopped (SIGSTOP), or that its machine or the
network is down. Rank 0 tells the others. A rank that exits normally says so first.

The lines come from another process because a long call of a C extension, such as parsing a large annotation
file, blocks all Python threads of a rank. Other messages are JSON objects, one per line.
"""

from __future__ import annotations

import contextlib
import ctypes
import hmac
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, NoReturn

from ppfcos import environment
from ppfcos.errors import PPFCOSError, Stopped

logger = logging.getLogger(__name__)

EXIT_CODE = 3  # of a rank that exits because another one died; 2 is for errors that a user can fix
SILENT_SECONDS = 20.0  # gloo's collectives time out after 30, and some of its exceptions abort the process
CONNECT_SECONDS, HELLO_SECONDS = 10.0, 3.0
# From the error of one rank until ranks that still run are stopped; if all raise it, they exit sooner.
FAILURE_SECONDS = 15.0
# After an error that may only be a broken collective: time to learn which rank broke it.
NEWS_SECONDS = 5.0
STOP_SECONDS = 60.0  # after the launcher has ended: time for a step and a checkpoint
FLUSH_SECONDS = 2.0
POLL_SECONDS = 1.0
LONGEST_LINE = 8192  # bytes
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

# Arguments: the rank's process, and the numbers of its sockets. T and t: stopped by a signal or a debugger.
BEATS = """
import ctypes, os, signal, sys, time

try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with the rank, at once
except (AttributeError, OSError):  # not Linux: within a second
    pass
rank, *sockets = map(int, sys.argv[1:])
while os.getppid() == rank:
    try:
        with open(f"/proc/{rank}/stat") as file:
            is_stopped = file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:  # not Linux
        is_stopped = False
    for number in [] if is_stopped else sockets:
        try:
            os.write(number, b"\\n")
        except OSError:
            pass
    time.sleep(1)
"""


class Rank(NamedTuple):
    """Identifies a rank; `log` is the path of its output on its machine, or empty."""

    rank: int
    world_size: int
    host: str
    pid: int
    log: str

    @classmethod
    def this_process(cls, rank: int, world_size: int) -> Rank:
        """Return the rank of this process, with the log file of `paddle.distributed.launch`."""
        folder, number = os.environ.get("PADDLE_LOG_DIR"), os.environ.get("PADDLE_LOCAL_RANK")
        log = os.path.join(folder, f"workerlog.{number}") if folder and number else ""
        return cls(rank, world_size, socket.gethostname(), os.getpid(), log)

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size} (pid {self.pid} on {self.host})"


@contextlib.contextmanager
def exit_with_launcher(stop_first: bool = False) -> Iterator[None]:
    """Exit, within the block, when `paddle.distributed.launch`, which started this process, has ended.

    Without the launcher this does nothing: a training may outlive the shell that started it.

    Args:
        stop_first: send SIGTERM to this process, and exit if it still runs after STOP_SECONDS.
    """
    launcher = environment.launcher()
    if launcher is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            if os.getppid() != launcher:
                if stop_first:
                    logger.warning("the launcher (pid %d) has ended: stopping", launcher)
                    os.kill(os.getpid(), signal.SIGTERM)
                if not stop_first or not done.wait(STOP_SECONDS):
                    _exit(_without_launcher(launcher))

    threading.Thread(target=watch, name="watchdog of the launcher", daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextlib.contextmanager
def killed_with_launcher() -> Iterator[None]:
    """Like `exit_with_launcher`, for calls that block other Python threads; without a message."""
    launcher = environment.launcher()
    if launcher is None or not sys.platform.startswith("linux"):
        yield
        return
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if os.getppid() != launcher:  # it ended before the call
            _exit(_without_launcher(launcher))
        yield
    finally:
        prctl(_PR_SET_PDEATHSIG, 0)


def _without_launcher(launcher: int) -> str:
    return f"the launcher (pid {launcher}) has ended; pid {os.getpid()} exits too"


@contextlib.contextmanager
def watch(rank: int, world_size: int, broadcast: Callable[[Any], Any]) -> Iterator[None]:
    """Exit, within the block, when another rank dies. All ranks must enter it."""
    if world_size == 1:
        yield
        return
    me = Rank.this_process(rank, world_size)
    watchdog = _Watchdog(me, _connect(me, broadcast))
    try:
        yield
    except BaseException as error:
        watchdog.leave_with(error)
        raise
    else:
        watchdog.leave()


class _Connection:
    """Sends messages to a rank and receives its messages."""

    def __init__(self, link: socket.socket, peer: Rank | None = None):
        link.settimeout(SILENT_SECONDS)
        self.link = link
        self.peer = peer
        self._lines = link.makefile("rb")
        _close_in_children.add(link)

    def send(self, **message: Any) -> None:
        """Send a message; does nothing if the peer is gone."""
        with contextlib.suppress(OSError):
            self.link.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict:
        """Return the next message.

        Raises:
            OSError: the peer was silent for too long, or the connection is lost.
            ValueError: it sent other data.
        """
        line = b"\n"
        while line == b"\n":
            line = self._lines.readline(LONGEST_LINE)
        if not line:
            raise ConnectionResetError("closed")
        return json.loads(line)

    def close(self) -> None:
        """Close the connection; a `receive` that waits in another thread ends."""
        _close_in_children.discard(self.link)
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self.link.close()


# Data-loading workers are forks of their rank: their copy would keep a connection open after its death.
_close_in_children: set[socket.socket] = set()


def _after_fork() -> None:
    for link in _close_in_children:
        os.close(link.detach())  # link.close() would wait for the file object made of it
    _close_in_children.clear()


if hasattr(os, "register_at_fork"):  # systems without it do not fork
    os.register_at_fork(after_in_child=_after_fork)


def _connect(me: Rank, broadcast: Callable[[Any], Any]) -> list[_Connection]:
    """Connect rank 0 to all others, and the others to rank 0; failures are logged."""
    if me.rank > 0:
        return _connect_to_main(me, broadcast(None))
    with socket.create_server(("", 0), backlog=me.world_size) as server:
        secret = secrets.token_hex(16)
        broadcast({"port": server.getsockname()[1], "secret": secret, "member": me})
        return _accept_others(server, secret, me.world_size)


def _connect_to_main(me: Rank, main: dict) -> list[_Connection]:
    # Paddle itself reaches rank 0 at this address.
    endpoints = os.environ.get("PADDLE_TRAINER_ENDPOINTS") or "127.0.0.1:0"
    address = (endpoints.split(",")[0].rpartition(":")[0], main["port"])
    try:
        link = socket.create_connection(address, CONNECT_SECONDS)
    except OSError as error:
        logger.warning(
            "rank %d cannot connect to rank 0 at %s:%d (%s): if a rank dies, not all others will notice",
            me.rank,
            *address,
            error,
        )
        return []
    connection = _Connection(link, Rank(*main["member"]))
    connection.send(secret=main["secret"], member=me)
    return [connection]


def _accept_others(server: socket.socket, secret: str, world_size: int) -> list[_Connection]:
    connections: dict[int, _Connection] = {}
    until = time.monotonic() + CONNECT_SECONDS
    while len(connections) < world_size - 1 and time.monotonic() < until:
        server.settimeout(max(0.01, until - time.monotonic()))
        try:
            link = server.accept()[0]
        except OSError:
            break
        connection = _authenticate(link, secret)
        if connection is not None:
            connections[connection.peer.rank] = connection
    missing = [str(rank) for rank in range(1, world_size) if rank not in connections]
    if missing:
        logger.warning(
            "rank %s did not connect to rank 0: the others will not notice its death", ", ".join(missing)
        )
    return list(connections.values())


def _authenticate(link: socket.socket, secret: str) -> _Connection | None:
    """Return the connection if it is that of a rank and not, for example, of a port scanner."""
    connection = _Connection(link)
    link.settimeout(HELLO_SECONDS)
    try:
        message = connection.receive()
        known = hmac.compare_digest(str(message["secret"]), secret)
        connection.peer = Rank(*message["member"]) if known else None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if connection.peer is None:
        connection.close()
        return None
    link.settimeout(SILENT_SECONDS)
    return connection


class _Watchdog:
    """Listens to the other ranks until this one exits normally, and exits when one of them dies."""

    def __init__(self, me: Rank, connections: list[_Connection]):
        self._me = me
        self._connections = connections
        self._lock = threading.Lock()  # one thread listens to each connection
        self._leaving = False
        self._failure: tuple[str, int] | None = None  # the first one: its text and exit code
        sockets = [connection.link.fileno() for connection in connections]
        self._beats = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BEATS, *map(str, (os.getpid(), *sockets))],
            pass_fds=sockets,
            start_new_session=True,  # signals of the terminal and of the launcher do not end it
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._threads = [
            threading.Thread(target=self._listen, args=[connection], name="watchdog", daemon=True)
            for connection in connections
        ]
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Tell the others that this rank exits normally."""
        with self._lock:
            self._leaving = True
        self._tell_all(leaves=True)
        self._beats.kill()
        self._beats.wait()
        for connection in self._connections:
            connection.close()
        for thread in self._threads:
            thread.join()

    def leave_with(self, error: BaseException) -> None:
        """Tell the others of an error that they may not have."""
        if isinstance(error, Stopped) and error.together:
            self.leave()
            return
        if isinstance(error, Exception) and not isinstance(error, PPFCOSError):
            time.sleep(NEWS_SECONDS)  # if another rank is the cause, this process exits here and names it
        text = " ".join(f"{self._me} stopped with {type(error).__name__}: {error}".split())[:1000]
        code = error.exit_code if isinstance(error, PPFCOSError) else EXIT_CODE
        self._tell_all(text=text, seconds=FAILURE_SECONDS, code=code)
        self.leave()

    def _tell_all(self, **message: Any) -> None:
        for connection in self._connections:
            connection.send(**message)

    def _listen(self, connection: _Connection) -> None:
        try:
            while "leaves" not in (message := connection.receive()):
                with self._lock:
                    self._stop_all(message["text"], message["seconds"], message["code"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            with self._lock:
                if not self._leaving:
                    self._stop_all(_death_message(connection.peer, error), 0.0, EXIT_CODE)

    def _stop_all(self, text: str, seconds: float, code: int) -> None:
        """Exit after some seconds unless this rank leaves before; rank 0 makes all ranks exit."""
        self._failure = self._failure or (text, code)
        text, code = self._failure
        if self._me.rank == 0:
            self._tell_all(text=text, seconds=seconds, code=code)
        if seconds == 0:
            _exit(f"{text}; {self._me} exits too", code)
        timer = threading.Timer(seconds, self._exit_unless_left)
        timer.daemon = True
        timer.start()

    def _exit_unless_left(self) -> None:
        with self._lock:
            if not self._leaving:
                text, code = self._failure
                _exit(f"{text}; {self._me} exits too", code)


def _death_message(peer: Rank, error: Exception) -> str:
    if isinstance(error, socket.timeout):
        return (
            f"{peer} has not responded for {SILENT_SECONDS:.0f} seconds: it is stopped (SIGSTOP), "
            "or its machine or the network is down"
        )
    log = f": see the end of its log, {peer.log}" if peer.log else ""
    return f"{peer} was killed or crashed{log}; most often memory ran out"


def _exit(reason: str, code: int = EXIT_CODE) -> NoReturn:
    """Exit at once: the main thread may be blocked in a collective."""
    # Not through sys.stderr, whose lock the main thread may hold.
    with contextlib.suppress(OSError):
        os.write(2, f"error: {reason}\n".encode())
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(FLUSH_SECONDS)
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    logging.shutdown()
