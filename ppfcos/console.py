"""What the screen shows: lines everywhere, and on a terminal also bars, which lines do not tear.

Names of files and classes may hold anything. All text that leaves for a terminal or a log goes through
`printable`: in `show`, `complain` and `LineFormatter`.

A bar is for somebody who looks at it. Where nobody does (a file, a pipe, a build server), in a terminal that
cannot go back in its line, and in all processes of a training but the first, there is none.
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
WITH_FIGURES = "{desc} {percentage:3.0f}%|{bar}| {figures}"

# What a log record takes as `extra` whose content the bar shows already: it goes to files, and to the screen
# only where there is no bar.
HIDDEN_BY_BAR = {"shown_by_bar": True}

READER_LEFT = 141  # exit code: 128 + SIGPIPE, as shells count

# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional embeddings, overrides and
# isolates, and surrogates. Everything else, such as the joiners of emoji and of Persian, is left alone.
_UNPRINTABLE = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)

_SURROGATE = re.compile("[\\ud800-\\udfff]")
_BYTES = re.compile("[\\udc80-\\udcff]+")  # as os.fsdecode stands for bytes that it cannot decode

_open_bars: list[Any] = []


def printable(text: object, keep: str = "") -> str:
    r"""Text that can be printed, logged and written to any UTF-8 file: it moves no cursor and ends no line.

    Args:
        text: any; of what is not a string, its string.
        keep: characters that stay, such as the line breaks of a table.

    Returns:
        The text with escapes (`\n`, `\x1b`, `\u202e`) for control characters, line separators, bidirectional
        controls and lone surrogates. A byte of a file name that could not be decoded is its value (`\xe9`).
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), valid(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def valid(text: object, backslash: str = "\\") -> str:
    r"""Text that can be written as UTF-8; control characters stay.

    Args:
        text: any; of what is not a string, its string.
        backslash: what an escape begins with.

    Returns:
        The text with escapes for lone surrogates. Those that stand for bytes of a file name are decoded as
        UTF-8 where they are that, as in a process whose locale is ASCII; a byte that is not is its value
        (`\xe9`).
    """
    decoded = _BYTES.sub(lambda found: _decoded(found[0]).replace("\\", backslash), str(text))
    return _SURROGATE.sub(lambda found: backslash + _escape(found[0])[1:], decoded)


def _decoded(surrogates: str) -> str:
    return surrogates.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def show(text: object) -> None:
    """Print text of one or several lines on the standard output.

    Raises:
        SystemExit: nobody reads it any more, as in `| head -1`.
        OutputError: it cannot be written, such as on a full disk.
    """
    try:
        print(printable(text, keep="\n"), flush=True)
    except OSError as error:
        _output_failed(error)


def flush() -> None:
    """Write what the standard output still holds; raises as `show`."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _output_failed(error)


def _output_failed(error: OSError) -> None:
    write_to_nobody(sys.stdout)
    if isinstance(error, BrokenPipeError):
        raise SystemExit(READER_LEFT) from None
    raise OutputError(f"the standard output cannot be written: {error.strerror or error}") from error


def complain(text: object, keep: str = "") -> None:
    """Print a message on the standard error, if that can be written.

    Args:
        text: one line.
        keep: as for `printable`.
    """
    try:
        print(printable(text, keep), file=sys.stderr, flush=True)
    except OSError:
        write_to_nobody(sys.stderr)


def prepare_streams() -> None:
    """Make the standard streams ones that every text can be written to.

    A stream that was closed when the process started is opened to nowhere: else the next file that is opened
    would take its number, and get what C++ libraries print. Characters that the encoding of the terminal
    lacks are written as escapes.
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
    """Whether this is the process that speaks, of those that `paddle.distributed.launch` started.

    Returns:
        True without a launcher.
    """
    return os.environ.get("PADDLE_TRAINER_ID", "0") == "0"


def has_bars() -> bool:
    """Whether bars are shown in this process.

    Returns:
        True where the standard output is a terminal that can move its cursor, in the first process, and tqdm
        is there, which a machine that only runs an exported model need not have.
    """
    on_terminal = is_main_process() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return on_terminal and importlib.util.find_spec("tqdm") is not None


class Bar:
    """A bar on the last line of a terminal, or nothing.

    Args:
        shown: tqdm's bar; None where nothing is shown.
    """

    def __init__(self, shown: Any = None):
        self._shown = shown

    @property
    def is_shown(self) -> bool:
        """Whether anybody sees it."""
        return self._shown is not None

    def advance(self, count: int = 1) -> None:
        """Go on.

        Args:
            count: of things done since.
        """
        if self._shown is not None:
            self._shown.update(count)

    def move_to(self, done: int, title: str, figures: str) -> None:
        """Show how far it is, and what is to be known about it.

        Args:
            done: things done from the very first on.
            title: before the bar.
            figures: behind the bar, in the layout WITH_FIGURES.
        """
        if self._shown is not None:
            self._shown.figures = printable(figures)
            self._shown.set_description_str(printable(title), refresh=False)
            self._shown.update(done - self._shown.n)


@contextlib.contextmanager
def bar(title: str, total: int, done: int = 0, layout: str = COUNTED) -> Iterator[Bar]:
    """Show a bar where bars are shown. One within another is below it.

    Args:
        title: what is done.
        total: number of things to do.
        done: of these before.
        layout: COUNTED or WITH_FIGURES.

    Yields:
        The bar; it is gone at the end, whatever the end is.
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
        shown.close()


@functools.cache  # bars of one class know of one another
def _bar_class() -> type:
    """Imported where a bar is wanted: a machine that only runs an exported model has no tqdm."""
    from tqdm import tqdm

    class FiguresBar(tqdm):
        monitor_interval = 0  # no thread that redraws: processes are forked while the bar is up
        figures = ""

        @property
        def format_dict(self) -> dict:
            return {**super().format_dict, "figures": self.figures}

    FiguresBar.set_lock(threading.RLock())  # tqdm's own is shared with other processes, which draw nothing
    return FiguresBar


class LineFormatter(logging.Formatter):
    """`[11/20 14:03:59] message`, with `warning: ` and the like where it is one.

    A message has one line, unless its format has line breaks, such as "AP of each class:\\n%s". Then what is
    put into it may have several: names in it must be `printable`.

    Args:
        date_format: of the time, as for `time.strftime`.
    """

    def __init__(self, date_format: str = "%m/%d %H:%M:%S"):
        super().__init__("[%(asctime)s] %(message)s", date_format)

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if record.levelno < logging.WARNING:
            return line
        return line.replace("] ", f"] {record.levelname.lower()}: ", 1)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Without control characters, and without line breaks of names."""
        record.message = printable(record.message, keep="\n" if "\n" in str(record.msg) else "")
        return super().formatMessage(record)

    def formatException(self, exc_info: Any) -> str:
        """A traceback without control characters."""
        return printable(super().formatException(exc_info), keep="\n")


class ScreenHandler(logging.StreamHandler):
    """Prints log messages to the standard output, above the bars where there are any.

    Attributes:
        failure: why messages are no longer printed, such as a full disk; None while they are, and where
            nobody reads them any more.
    """

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self.setFormatter(LineFormatter())
        self.failure: OSError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if not _open_bars:
            super().emit(record)
        elif not getattr(record, "shown_by_bar", False):
            with _open_bars[-1].external_write_mode(file=self.stream):
                super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on where messages cannot be printed: a training must not end with `| head` or a full disk."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        write_to_nobody(self.stream)
        if not isinstance(error, BrokenPipeError):
            self.failure = error


def write_to_nobody(stream: IO) -> None:
    """Let what is written to a stream that cannot be written go nowhere; or Python tries again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
