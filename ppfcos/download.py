"""Downloads one file over HTTP or HTTPS, with bounded size and time. Nothing is unpacked here.

Only the standard library is used, so that data can be downloaded before anything is installed.
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
from pathlib import Path
from typing import BinaryIO, Callable, NamedTuple

from ppfcos.errors import DataError, OutputError, PPFCOSError

try:
    import fcntl
except ImportError:  # Windows: two processes that download the same file are not kept apart there
    fcntl = None

_BLOCK = 1 << 16  # bytes
_MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE = 60.0  # seconds
_NUMBER = "[0-9]{1,18}"


class Limits(NamedTuple):
    """When a download is given up.

    Attributes:
        max_size: bytes of a file whose size is not known beforehand.
        timeout: seconds to connect, and between two checks of the speed.
        min_speed: bytes per second; a connection that is slower between two checks is closed.
        attempts: in a row that bring nothing new.
        seconds: for the whole download; None: as long as `min_speed` is reached.
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
    """Download a file. It appears under its name when it is complete and checked; until then it is NAME.part.

    A connection that breaks off is continued. With `md5`, NAME.part is kept after a failure, and the next
    call continues it; otherwise it is removed. A whole file that is there already is left alone.

    Args:
        url: http:// or https://; redirects are followed to such addresses only.
        target: the file's path.
        size: bytes that the file must have.
        md5: MD5 sum that it must have.
        pause: seconds before the second attempt; doubled for each further one.
        check: returns what is wrong with a file that was downloaded, or None.
        limits: of size and time.
        error: class of the error where the server or the address is at fault.
        cure: what the user can do then; the end of the message.
        progress: whether standard error shows how far it is.

    Raises:
        PPFCOSError: of class `error`: the file cannot be downloaded, or is not the one that is wanted.
        OutputError: the file cannot be written.
    """
    limits = limits or Limits()
    if size is not None:
        limits = limits._replace(max_size=size)
    try:
        _Download(url, target, size, md5, pause, check, limits, progress).run()
    except _RefusedError as refusal:
        raise error(f"{printable(url)} cannot be downloaded: {refusal}: {cure}") from None
    except OSError as failure:  # of files: those of the network are dealt with where they arise
        raise OutputError(f"{target} cannot be written: {failure.strerror or failure}") from failure


class _Download:
    def __init__(
        self,
        url: str,
        target: Path,
        size: int | None,
        md5: str | None,
        pause: float,
        check: Callable[[Path], str | None] | None,
        limits: Limits,
        progress: bool,
    ):
        self._url = _address(url)
        self._target = target
        self._part = target.with_name(target.name + ".part")
        self._size, self._md5, self._check = size, md5, check
        self._pause, self._limits, self._progress = pause, limits, progress
        self._until = time.monotonic() + (limits.seconds or float("inf"))
        self._etag: str | None = None
        self._total = size

    def run(self) -> None:
        with _locked(self._part, self._limits.seconds or 0) as stream:
            renamed = False
            try:
                if self._is_complete():
                    return
                if self._md5 is None:
                    stream.truncate(0)
                self._receive(stream)
                fault = self._fault(self._part)
                if fault:
                    stream.truncate(0)
                    raise _RefusedError(fault)
                os.fsync(stream.fileno())
                os.replace(self._part, self._target)
                renamed = True
            finally:
                if not renamed and (self._md5 is None or _length(stream) == 0):
                    with contextlib.suppress(OSError):
                        self._part.unlink()

    def _is_complete(self) -> bool:
        if self._target.is_file():
            return self._fault(self._target) is None
        if not self._target.is_symlink():
            _require_regular(self._target)
        return False

    def _fault(self, path: Path) -> str | None:
        if self._size not in (None, path.stat().st_size):
            return f"it has {path.stat().st_size} bytes, not {self._size}"
        found = _md5_of(path, self._progress) if self._md5 else self._md5
        if found != self._md5:
            return f"its MD5 sum is {found}, not {self._md5}"
        return self._check(path) if self._check else None

    def _receive(self, stream: BinaryIO) -> None:
        """Make requests until the file is complete.

        `credit` is the time that may pass without progress. Only bytes beyond the furthest that was reached
        before count as progress, at `min_speed`: a server that resets each connection after one byte, or
        refuses every range, is given up; one that resets after each megabyte is not.
        """
        limits, failures, most = self._limits, 0, _length(stream)
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
            nap = min(self._pause * 2**failures / 2, _LONGEST_PAUSE)
            if now + nap > self._until:
                reason = f"it takes longer than {limits.seconds:g} s"
            if failures >= limits.attempts or credit <= 0 or now + nap > self._until:
                total = "an unknown number of" if self._total is None else self._total
                raise _RefusedError(f"it ended at {length} of {total} bytes ({reason})")
            time.sleep(nap)

    def _attempt(self, stream: BinaryIO) -> str | None:
        """One request for what is missing; why the file is not complete after it, or None."""
        if self._size is not None and _length(stream) > self._size:
            stream.truncate(0)
        if _length(stream) == self._size:
            return None
        with _Watch(self._limits, self._until) as watch:
            try:
                with self._open(_length(stream), watch) as response:
                    whole = self._read(response, stream, watch)
                return None if whole else watch.reason or "the connection broke off"
            except urllib.error.HTTPError as answer:
                return self._error_status(answer.code, stream)
            # ValueError: of http.client and urllib, where an answer or an address makes no sense.
            except (OSError, http.client.HTTPException, ValueError) as failure:
                cause = getattr(failure, "reason", None)
                if isinstance(cause, ssl.SSLCertVerificationError):
                    raise _RefusedError(f"its certificate is not valid ({cause.verify_message})") from None
                return watch.reason or printable(cause or failure or type(failure).__name__)

    def _error_status(self, code: int, stream: BinaryIO) -> str:
        phrase = f"the server answers {code} {http.client.responses.get(code, '')}".rstrip()
        if code == 416 and _length(stream):  # what is here is no beginning of the server's file
            stream.truncate(0)
        elif code not in _TRY_AGAIN:
            raise _RefusedError(phrase)
        return phrase

    def _open(self, offset: int, watch: _Watch) -> http.client.HTTPResponse:
        headers = {"User-Agent": "ppfcos", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self._etag:
                headers["If-Range"] = self._etag
        opener, url = _opener(watch), self._url
        # urllib's own handler reads the body of a redirect, however long, and follows it to ftp://.
        for _ in range(_MAX_REDIRECTS):
            request = urllib.request.Request(url, headers=headers)
            try:
                return opener.open(request, timeout=self._limits.timeout)
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
                raise ConnectionError("the server sends another range than the one that was asked for")
        elif status != http.HTTPStatus.OK:
            raise _RefusedError(f"the server answers {status}")
        if self._size is not None and total not in (None, self._size):
            raise _RefusedError(f"it has {total} bytes, but the right file has {self._size}")
        bound = self._limits.max_size if total is None else total
        if bound > self._limits.max_size:
            raise _RefusedError(f"it has {total} bytes, more than the {self._limits.max_size} it may have")
        etag = response.headers["ETag"] or ""
        self._etag = etag if re.fullmatch(r'"[!-~]{1,200}"', etag) else None
        self._total = total = self._size if total is None else total
        require_space(self._target.parent, (total or 0) - offset)
        stream.truncate(offset)
        stream.seek(offset)
        shown = Progress(self._target.name, total, offset, self._progress)
        while block := response.read1(_BLOCK):
            offset += len(block)
            if offset > bound:
                stream.truncate(0)
                raise _RefusedError(f"the server sends more than {bound} bytes")
            _write(stream, block, self._part)
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
        raise _RefusedError(f"the server redirects to {printable(location)}, not to http(s)://") from None
    if url.startswith("https:") and not address.startswith("https:"):
        raise _RefusedError(f"the server redirects from https:// to {printable(location)}")
    return address


def _content_length(response: http.client.HTTPResponse) -> int | None:
    """The size of the body, if the server names it."""
    encoding = response.headers["Content-Encoding"] or "identity"
    if encoding != "identity":
        raise _RefusedError(f"the server sends it encoded as {printable(encoding)}, which was not asked for")
    # The size of a chunked body is not that of its Content-Length.
    lengths = set(() if response.chunked else response.headers.get_all("Content-Length") or ())
    if len(lengths) > 1 or not all(re.fullmatch(_NUMBER, length) for length in lengths):
        raise _RefusedError(
            f"the server sends a wrong Content-Length ({printable(', '.join(sorted(lengths)))})"
        )
    return int(lengths.pop()) if lengths else None


def _total_of_range(header: str, offset: int, length: int | None) -> int | None:
    """The size of the whole file in a Content-Range; None where that is not what follows `offset`."""
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
    """A connection that its watch can close."""

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
    """urllib's, with its proxies, and without file://, ftp://, data: and redirects."""
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
    """A regular file, made where it is missing, unbuffered, that no other download writes to meanwhile."""
    until = time.monotonic() + wait
    while True:
        _require_regular(path)
        # Whatever takes the name in between: a link is not followed, a pipe not waited for.
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
    """False where the process that had the lock before has renamed or removed the file."""
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


def printable(text: object) -> str:
    """A text of a server or a file in one short line, without control characters."""
    shown = "".join(each if each.isprintable() else "?" for each in str(text))
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


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
