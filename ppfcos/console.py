"""Terminal output: printable text, progress bars, and log messages above the bars.

File and class names may hold any characters, so all text for a terminal or a log goes through `printable`: in
`show`, `complain` and `LineFormatter`. Bars are shown only on a terminal and by the main process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

from ppfcos.errors import OutputError

COUNTED = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left"
WITH_METRICS = "{desc} {percentage:3.0f}%|{bar}| {metrics}"

# `extra` of a log record that repeats what a bar shows: it is written to files, and to a screen without a
# bar.
HIDDEN_BY_BAR = {"hidden_by_bar": True}

PIPE_CLOSED = 141  # exit code: 128 + SIGPIPE, as in shells

# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional embeddings, overrides and
# isolates, and surrogates. The joiners of emoji and of Persian are kept.
_UNPRINTABLE = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)

_SURROGATE = re.compile("[\\ud800-\\udfff]")
_BYTES = re.compile("[\\udc80-\\udcff]+")  # as os.fsdecode stands for bytes that it cannot decode

_open_bars: list[Any] = []


def printable(text: object, keep: str = "") -> str:
    r"""Escape control characters, line separators, bidirectional controls and lone surrogates in `str(text)`.

    Undecodable bytes of a file name become their value (`\xe9`).

    Args:
        keep: characters that are not escaped, such as the line breaks of a table.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), valid(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def valid(text: object, backslash: str = "\\") -> str:
    r"""Replace lone surrogates in `str(text)`, so that it can be encoded as UTF-8; keep control characters.

    Surrogates that stand for bytes of a file name are decoded as UTF-8 where possible, as in a process with
    an ASCII locale; other bytes become their value (`\xe9`).
    """
    decoded = _BYTES.sub(lambda found: _decoded(found[0]).replace("\\", backslash), str(text))
    return _SURROGATE.sub(lambda found: backslash + _escape(found[0])[1:], decoded)


def _decoded(surrogates: str) -> str:
    return surrogates.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def show(text: object) -> None:
    """Print lines on the standard output.

    Raises:
        SystemExit: the reader closed the pipe, as in `| head -1`.
        OutputError: the output cannot be written, for example on a full disk.
    """
    try:
        print(printable(text, keep="\n"), flush=True)
    except OSError as error:
        _output_failed(error)


def flush() -> None:
    """Flush the standard output; raises like `show`."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _output_failed(error)


def _output_failed(error: OSError) -> None:
    redirect_to_null(sys.stdout)
    if isinstance(error, BrokenPipeError):
        raise SystemExit(PIPE_CLOSED) from None
    raise OutputError(f"the standard output cannot be written: {error.strerror or error}") from error


def complain(text: object, keep: str = "") -> None:
    """Print a message on the standard error, if that can be written; `keep` as for `printable`."""
    try:
        print(printable(text, keep), file=sys.stderr, flush=True)
    except OSError:
        redirect_to_null(sys.stderr)


def prepare_streams() -> None:
    """Make the standard streams accept any text.

    A stream that was closed at the start of the process is opened on /dev/null: otherwise the next opened
    file would get its number, and the output of C++ libraries. Characters that the terminal's encoding lacks
    are written as escapes.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_main_process() -> bool:
    """Whether this process is rank 0 of `paddle.distributed.launch`, or was started without it."""
    return os.environ.get("PADDLE_TRAINER_ID", "0") == "0"


def has_bars() -> bool:
    """Whether bars are shown: by the main process, on a terminal that can move its cursor, if tqdm exists.

    A machine that only runs an exported model need not have tqdm.
    """
    on_terminal = is_main_process() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return on_terminal and _has_size() and importlib.util.find_spec("tqdm") is not None


def _has_size() -> bool:
    """Whether the terminal has rows and columns; that of a serial console or of `script` may have none."""
    try:
        return min(os.get_terminal_size(sys.stdout.fileno())) > 0
    except OSError:
        return False


class Bar:
    """A progress bar on the last line of a terminal; does nothing without a tqdm bar."""

    def __init__(self, tqdm_bar: Any = None):
        self._bar = tqdm_bar

    @property
    def is_shown(self) -> bool:
        """Whether the bar is displayed."""
        return self._bar is not None

    def advance(self, count: int = 1) -> None:
        """Add to the number of finished items."""
        if self._bar is not None:
            with _ignoring_closed_terminal():
                self._bar.update(count)

    def move_to(self, done: int, title: str, metrics: str) -> None:
        """Set the number of finished items, the title, and the text behind the bar (layout WITH_METRICS)."""
        if self._bar is not None:
            self._bar.metrics = printable(metrics)
            self._bar.set_description_str(printable(title), refresh=False)
            with _ignoring_closed_terminal():
                self._bar.update(done - self._bar.n)


@contextlib.contextmanager
def bar(title: str, total: int, done: int = 0, layout: str = COUNTED) -> Iterator[Bar]:
    """Show a bar for `total` items of which `done` are finished; an inner bar is below the outer one.

    Args:
        layout: COUNTED or WITH_METRICS.
    """
    if not has_bars():
        yield Bar()
        return
    shown = _bar_class()(
        desc=printable(title),
        total=total,
        initial=done,
        bar_format=layout,
        file=sys.stdout,
        dynamic_ncols=True,
        leave=False,
    )
    _open_bars.append(shown)
    try:
        yield Bar(shown)
    finally:
        _open_bars.remove(shown)
        with _ignoring_closed_terminal():
            shown.close()


@contextlib.contextmanager
def _ignoring_closed_terminal() -> Iterator[None]:
    """Discard further output if the terminal is closed, as after SIGHUP: the run still saves a checkpoint."""
    try:
        yield
    except OSError:
        redirect_to_null(sys.stdout)


@functools.cache  # tqdm positions bars of one class relative to one another
def _bar_class() -> type:
    from tqdm import tqdm  # here, because a machine that only runs an exported model has no tqdm

    class MetricsBar(tqdm):
        monitor_interval = 0  # no redrawing thread: worker processes are forked while the bar is shown
        metrics = ""

        @property
        def format_dict(self) -> dict:
            return {**super().format_dict, "metrics": self.metrics}

    MetricsBar.set_lock(
        threading.RLock()
    )  # tqdm's own lock is shared with other processes, which draw nothing
    return MetricsBar


class LineFormatter(logging.Formatter):
    """Formats `[11/20 14:03:59] message`, with the level for warnings and errors.

    A message is one line unless its format has line breaks, such as "AP of each class:\\n%s". Then its
    arguments may have several lines, and names in them must be `printable`.
    """

    def __init__(self, date_format: str = "%m/%d %H:%M:%S"):
        super().__init__("[%(asctime)s] %(message)s", date_format)

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if record.levelno < logging.WARNING:
            return line
        return line.replace("] ", f"] {record.levelname.lower()}: ", 1)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message, keep="\n" if "\n" in str(record.msg) else "")
        return super().formatMessage(record)

    def formatException(self, exc_info: Any) -> str:
        return printable(super().formatException(exc_info), keep="\n")


class ScreenHandler(logging.StreamHandler):
    """Prints log messages on the standard output, above the bars.

    tqdm.contrib.logging is not used: it replaces this handler while a bar is shown, and with it HIDDEN_BY_BAR
    and the handling of failures below.

    Attributes:
        failure: the error, such as a full disk, that ended the printing; None after a closed pipe.
    """

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self.setFormatter(LineFormatter())
        self.failure: OSError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if not _open_bars:
            super().emit(record)
        elif not getattr(record, "hidden_by_bar", False):
            with _ignoring_closed_terminal(), _open_bars[-1].external_write_mode(file=self.stream):
                super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Stop printing, without an error: a training must not end with `| head` or a full disk."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        redirect_to_null(self.stream)
        if not isinstance(error, BrokenPipeError):
            self.failure = error


def redirect_to_null(stream: IO) -> None:
    """Discard further output of a stream that cannot be written; Python would try again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
