"""Downloads one file over HTTP or HTTPS, with bounded size and time. Nothing is unpacked here.

Uses the standard library only, so that data can be downloaded before anything is installed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import os
import re
import shutil
import socket
import ssl
import stat
import string
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Callable, NamedTuple

from ppfcos.console import printable
from ppfcos.errors import DataError, OutputError, PPFCOSError

try:
    import fcntl
except ImportError:  # Windows: there is no lock against two processes that download the same file
    fcntl = None

_BLOCK = 1 << 16  # bytes
_MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE = 60.0  # seconds
_NUMBER = "[0-9]{1,18}"


class Limits(NamedTuple):
    """Limits after which a download fails.

    Attributes:
        max_size: bytes of a file of unknown size.
        timeout: seconds to connect, and between two checks of the speed.
        min_speed: bytes per second; a connection that is slower between two checks is closed.
        attempts: number of attempts in a row without progress.
        seconds: for the whole download; None: no limit while `min_speed` is reached.
    """

    max_size: int = 1 << 30
    timeout: float = 20.0
    min_speed: float = 10_000.0
    attempts: int = 6
    seconds: float | None = None


class _RefusedError(Exception):
    """The download has failed, and another attempt would not help."""


def download(
    url: str,
    target: Path,
    size: int | None = None,
    md5: str | None = None,
    pause: float = 1.0,
    *,
    check: Callable[[Path], str | None] | None = None,
    limits: Limits | None = None,
    error: type[PPFCOSError] = DataError,
    cure: str = "try again later",
    progress: bool = True,
) -> None:
    """Download a file to NAME.part, check it, and rename it to NAME.

    A broken connection is resumed. With `md5`, NAME.part is kept after a failure, and the next call resumes
    it; otherwise it is removed. A file that is already complete is not downloaded again.

    Args:
        url: http:// or https://; redirects are followed to such addresses only.
        target: the file's path.
        size: bytes that the file must have.
        md5: MD5 sum that it must have.
        pause: seconds before the second attempt; doubled for each further one.
        check: returns what is wrong with a downloaded file, or None.
        limits: of size and time.
        error: class of the error if the server or the address is at fault.
        cure: what the user can do; the end of the message.
        progress: whether to show progress on standard error.

    Raises:
        PPFCOSError: of class `error`: the file cannot be downloaded, or is not the expected one.
        OutputError: the file cannot be written.
    """
    limits = limits or Limits()
    if size is not None:
        limits = limits._replace(max_size=size)
    try:
        _Download(url, target, size, md5, pause, check, limits, progress).run()
    except _RefusedError as refusal:
        raise error(f"{short(url)} cannot be downloaded: {refusal}: {cure}") from None
    except OSError as failure:  # of files: network errors are handled in _attempt
        raise OutputError(f"{target} cannot be written: {failure.strerror or failure}") from failure


@dataclass
class _Download:
    url: str
    target: Path
    size: int | None
    md5: str | None
    pause: float
    check: Callable[[Path], str | None] | None
    limits: Limits
    progress: bool

    def __post_init__(self) -> None:
        self.url = _address(self.url)
        self.part = self.target.with_name(self.target.name + ".part")
        self.until = time.monotonic() + (self.limits.seconds or float("inf"))
        self.etag: str | None = None
        self.total = self.size

    def run(self) -> None:
        with _locked(self.part, self.limits.seconds or 0) as stream:
            renamed = False
            try:
                if self._is_complete():
                    return
                if self.md5 is None:
                    stream.truncate(0)
                self._receive(stream)
                fault = self._fault(self.part)
                if fault:
                    stream.truncate(0)
                    raise _RefusedError(fault)
                os.fsync(stream.fileno())
                os.replace(self.part, self.target)
                renamed = True
            finally:
                if not renamed and (self.md5 is None or _length(stream) == 0):
                    with contextlib.suppress(OSError):
                        self.part.unlink()

    def _is_complete(self) -> bool:
        if self.target.is_file():
            return self._fault(self.target) is None
        if not self.target.is_symlink():
            _require_regular(self.target)
        return False

    def _fault(self, path: Path) -> str | None:
        if self.size not in (None, path.stat().st_size):
            return f"it has {path.stat().st_size} bytes, not {self.size}"
        found = _md5_of(path, self.progress) if self.md5 else self.md5
        if found != self.md5:
            return f"its MD5 sum is {found}, not {self.md5}"
        return self.check(path) if self.check else None

    def _receive(self, stream: BinaryIO) -> None:
        """Make requests until the file is complete.

        `credit` is the time that may pass without progress. Only bytes beyond the largest length so far are
        progress, at `min_speed`: a server that resets each connection after one byte, or refuses every range,
        fails; one that resets after each megabyte does not.
        """
        limits, failures, most = self.limits, 0, _length(stream)
        credit = most_credit = limits.attempts * limits.timeout
        began = time.monotonic()
        while True:
            reason = self._attempt(stream)
            if reason is None:
                return
            length, now = _length(stream), time.monotonic()
            credit = min(most_credit, credit - (now - began) + max(0, length - most) / limits.min_speed)
            failures = 0 if length > most else failures + 1
            most, began = max(most, length), now
            nap = min(self.pause * 2**failures / 2, _LONGEST_PAUSE)
            if now + nap > self.until:
                reason = f"it takes longer than {limits.seconds:g} s"
            if failures >= limits.attempts or credit <= 0 or now + nap > self.until:
                total = "an unknown number of" if self.total is None else self.total
                raise _RefusedError(f"it ended at {length} of {total} bytes ({reason})")
            time.sleep(nap)

    def _attempt(self, stream: BinaryIO) -> str | None:
        """Request what is missing; returns why the file is not complete afterwards, or None."""
        if self.size is not None and _length(stream) > self.size:
            stream.truncate(0)
        if _length(stream) == self.size:
            return None
        with _Watch(self.limits, self.until) as watch:
            try:
                with self._open(_length(stream), watch) as response:
                    whole = self._read(response, stream, watch)
                return None if whole else watch.reason or "the connection broke off"
            except urllib.error.HTTPError as answer:
                return self._error_status(answer.code, stream)
            # http.client and urllib raise ValueError for invalid responses and addresses
            except (OSError, http.client.HTTPException, ValueError) as failure:
                cause = getattr(failure, "reason", None)
                if isinstance(cause, ssl.SSLCertVerificationError):
                    raise _RefusedError(f"its certificate is not valid ({cause.verify_message})") from None
                return watch.reason or short(cause or failure or type(failure).__name__)

    def _error_status(self, code: int, stream: BinaryIO) -> str:
        phrase = f"the server responds with {code} {http.client.responses.get(code, '')}".rstrip()
        if code == 416 and _length(stream):  # the part is not the beginning of the server's file
            stream.truncate(0)
        elif code not in _TRY_AGAIN:
            raise _RefusedError(phrase)
        return phrase

    def _open(self, offset: int, watch: _Watch) -> http.client.HTTPResponse:
        headers = {"User-Agent": "ppfcos", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self.etag:
                headers["If-Range"] = self.etag
        opener, url = _opener(watch), self.url
        # urllib's own handler reads the body of a redirect, however long, and follows it to ftp://.
        for _ in range(_MAX_REDIRECTS):
            request = urllib.request.Request(url, headers=headers)
            try:
                return opener.open(request, timeout=self.limits.timeout)
            except urllib.error.HTTPError as answer:
                location = answer.headers["Location"]
                answer.close()
                if answer.code not in _REDIRECTS or not location:
                    raise
            url = _redirected(url, location)
        raise _RefusedError(f"the server redirects more than {_MAX_REDIRECTS} times")

    def _read(self, response: http.client.HTTPResponse, stream: BinaryIO, watch: _Watch) -> bool:
        """Append the body; whether the file is complete."""
        length, status = _content_length(response), response.status
        offset, total = 0, length
        if status == http.HTTPStatus.PARTIAL_CONTENT and _length(stream):
            offset = _length(stream)
            total = _total_of_range(response.headers["Content-Range"] or "", offset, length)
            if total is None:
                stream.truncate(0)  # so that the next request is for the whole file
                raise ConnectionError("the server sends another range than the requested one")
        elif status != http.HTTPStatus.OK:
            raise _RefusedError(f"the server responds with {status}")
        if self.size is not None and total not in (None, self.size):
            raise _RefusedError(f"it has {total} bytes, but the right file has {self.size}")
        bound = self.limits.max_size if total is None else total
        if bound > self.limits.max_size:
            raise _RefusedError(f"it has {total} bytes, more than the {self.limits.max_size} it may have")
        etag = response.headers["ETag"] or ""
        self.etag = etag if re.fullmatch(r'"[!-~]{1,200}"', etag) else None
        self.total = total = self.size if total is None else total
        require_space(self.target.parent, (total or 0) - offset)
        stream.truncate(offset)
        stream.seek(offset)
        shown = Progress(self.target.name, total, offset, self.progress)
        while block := response.read1(_BLOCK):
            offset += len(block)
            if offset > bound:
                stream.truncate(0)
                raise _RefusedError(f"the server sends more than {bound} bytes")
            _write(stream, block, self.part)
            watch.received += len(block)
            shown.add(len(block))
        shown.end()
        return not watch.reason if total is None else offset == total


def _address(url: str, encoding: str = "utf-8") -> str:
    """An HTTP or HTTPS address, with the characters escaped that may not be sent."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        quoted = urllib.parse.quote(url, safe=string.punctuation, encoding=encoding)
    except ValueError:
        good = False
    if not good:
        raise _RefusedError("it is not a valid address that begins with http:// or https://")
    if "@" in parts.netloc:
        raise _RefusedError("addresses with a user name are not supported")
    return quoted


def _redirected(url: str, location: str) -> str:
    try:
        # http.client decodes headers as ISO 8859-1.
        address = _address(urllib.parse.urljoin(url, location), "iso-8859-1")
    except (ValueError, _RefusedError):
        raise _RefusedError(f"the server redirects to {short(location)}, not to http(s)://") from None
    if url.startswith("https:") and not address.startswith("https:"):
        raise _RefusedError(f"the server redirects from https:// to {short(location)}")
    return address


def _content_length(response: http.client.HTTPResponse) -> int | None:
    """The size of the body, or None if the server does not send it."""
    encoding = response.headers["Content-Encoding"] or "identity"
    if encoding != "identity":
        raise _RefusedError(f"the server sends it encoded as {short(encoding)}, which was not requested")
    # The size of a chunked body is not that of its Content-Length.
    lengths = set(() if response.chunked else response.headers.get_all("Content-Length") or ())
    if len(lengths) > 1 or not all(re.fullmatch(_NUMBER, length) for length in lengths):
        raise _RefusedError(f"the server sends a wrong Content-Length ({short(', '.join(sorted(lengths)))})")
    return int(lengths.pop()) if lengths else None


def _total_of_range(header: str, offset: int, length: int | None) -> int | None:
    """The size of the whole file in a Content-Range; None if the range does not start at `offset`."""
    span = re.fullmatch(f"bytes ({_NUMBER})-({_NUMBER})/({_NUMBER}|[*])", header)
    if span:
        first, end = int(span[1]), int(span[2]) + 1
        total = end if span[3] == "*" else int(span[3])
        if first == offset < end <= total and length in (None, end - first):
            return total
    return None


class _Watch:
    """Closes the connections of one attempt when it is too slow or takes too long.

    The time-out of a socket is not enough: it starts again with each byte, and http.client reads on while
    lines of a header, chunk sizes or trailers arrive.
    """

    def __init__(self, limits: Limits, until: float):
        self.received = 0  # bytes of bodies
        self.reason = ""
        self._limits, self._until = limits, until
        self._sockets: list[socket.socket] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def add(self, connection: socket.socket) -> None:
        self._sockets.append(connection)
        if self.reason:
            raise TimeoutError(self.reason)

    def _run(self) -> None:
        limits, before = self._limits, 0
        while not self._ended.wait(max(0.0, min(limits.timeout, self._until - time.monotonic()))):
            if time.monotonic() >= self._until:
                self.reason = f"it takes longer than {limits.seconds:g} s"
            elif self.received - before < limits.min_speed * limits.timeout:
                self.reason = f"less than {limits.min_speed / 1000:g} kB/s in {limits.timeout:g} s"
            if self.reason:
                for connection in self._sockets:
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not that of ssl, which waits
                return
            before = self.received


class _Watched:
    """A connection that a _Watch can close."""

    def __init__(self, watch: _Watch, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._watch = watch

    def connect(self) -> None:
        super().connect()
        self._watch.add(self.sock)


class _HTTPConnection(_Watched, http.client.HTTPConnection):
    pass


class _HTTPSConnection(_Watched, http.client.HTTPSConnection):
    pass


class _Handler(urllib.request.AbstractHTTPHandler):
    def __init__(self, watch: _Watch):
        super().__init__()
        self._watch = watch

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_HTTPConnection, self._watch), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_HTTPSConnection, self._watch), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


def _opener(watch: _Watch) -> urllib.request.OpenerDirector:
    """urllib's opener with proxies, without file://, ftp://, data: and redirects."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Handler(watch),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


@contextlib.contextmanager
def _locked(path: Path, wait: float) -> Iterator[BinaryIO]:
    """Open or create a regular file, unbuffered, and lock it against other downloads."""
    until = time.monotonic() + wait
    while True:
        _require_regular(path)
        # If the name changes in between: a link is not followed, and a pipe does not block.
        safely = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | safely, 0o666)
        with open(descriptor, "r+b", buffering=0) as stream:
            _require_regular(path)
            _lock(stream, until)
            if _has_name(stream, path):
                yield stream
                return


def _lock(stream: BinaryIO, until: float) -> None:
    while fcntl is not None:
        try:
            return fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise _RefusedError("another process is downloading it") from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return None


def _has_name(stream: BinaryIO, path: Path) -> bool:
    """False if the process that had the lock before has renamed or removed the file."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _require_regular(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OutputError(f"{path} is not a regular file, and is not replaced: remove it")


def _write(stream: BinaryIO, block: bytes, path: Path) -> None:
    try:
        left = memoryview(block)
        while left:
            left = left[stream.write(left) :]
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _length(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def _md5_of(path: Path, progress: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    shown = Progress(f"checking {path.name.removesuffix('.part')}", path.stat().st_size, 0, progress)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            shown.add(len(block))
    shown.end()
    return digest.hexdigest()


def short(text: object) -> str:
    """Text of a server in one short line."""
    return printable(text)[:200]


def require_space(folder: Path, needed: int) -> None:
    """Raise OutputError if the disk of a folder has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder} needs {needed / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free: make room"
        )


class Progress:
    """Shows progress on standard error: in place on a terminal, else a line every tenth.

    Args:
        name: what is done.
        total: bytes in all; None: not known.
        done: bytes done before.
        shown: whether anything is shown.
    """

    def __init__(self, name: str, total: int | None, done: int = 0, shown: bool = True):
        self._name, self._total, self._start, self._done = name, total, done, done
        self._shown = shown and sys.stderr is not None
        self._terminal = self._shown and sys.stderr.isatty()
        self._began = self._shown_at = time.monotonic()
        self._shown_step = self._step()

    def add(self, further: int) -> None:
        """Count further bytes."""
        self._done += further
        now = time.monotonic()
        too_soon = now - self._shown_at < 0.5 if self._terminal else self._step() == self._shown_step
        if too_soon or not self._shown:
            return
        self._shown_at, self._shown_step = now, self._step()
        share = f"{self._done / 1e6:.0f} MB"
        if self._total:
            share = f"{100 * self._done / self._total:.0f} % of {self._total / 1e6:.0f} MB"
        speed = (self._done - self._start) / max(now - self._began, 1e-3) / 1e6
        line = f"{self._name}: {share}, {speed:.0f} MB/s"
        print(
            f"\r{line}  " if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        """End the line on a terminal."""
        if self._terminal and self._shown_at > self._began:
            print(file=sys.stderr)

    def _step(self) -> int:
        return 10 * self._done // self._total if self._total else self._done >> 28
