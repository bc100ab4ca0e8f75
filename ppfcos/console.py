"""What the screen shows: lines everywhere, and on a terminal also bars, which lines do not tear.

A bar is for somebody who looks at it. Where nobody does (a file, a pipe, a build server), in a terminal that
cannot go back in its line, and in all processes of a training but the first, there is none.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

COUNTED = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left"
WITH_FIGURES = "{desc} {percentage:3.0f}%|{bar}| {figures}"

# What a log record takes as `extra` whose content the bar shows already: it goes to files, and to the screen
# only where there is no bar.
SHOWN_BY_BAR = {"shown_by_bar": True}

_open_bars: list[Any] = []


def is_first_process() -> bool:
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
    on_terminal = is_first_process() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
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
            self._shown.figures = figures
            self._shown.set_description_str(title, refresh=False)
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
        desc=title,
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


class ScreenHandler(logging.StreamHandler):
    """Prints log messages to the standard output, above the bars where there are any."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self.setFormatter(LineFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        if not _open_bars:
            super().emit(record)
        elif not getattr(record, "shown_by_bar", False):
            with _open_bars[-1].external_write_mode(file=self.stream):
                super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on in silence where nobody reads any more: a training must not end with `| head`."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            write_to_nobody(self.stream)
        else:
            super().handleError(record)


def write_to_nobody(stream: IO) -> None:
    """Let what is written to a pipe that nobody reads go nowhere; or Python tries again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
