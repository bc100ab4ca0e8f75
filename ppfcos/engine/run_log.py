"""The log of a run on the disk: what the screen showed, and what a bar kept from it."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys
from pathlib import Path
from types import TracebackType

from ppfcos import console
from ppfcos.errors import OutputError, PPFCOSError, Stopped

LOG_FILE = "train.log"
ENDS_IN_GOOD_ORDER = (KeyboardInterrupt, SystemExit, Stopped)

logger = logging.getLogger(__name__)
_package = logging.getLogger("ppfcos")


class RunLog:
    """Keeps the messages of ppfcos in memory until the run folder may be written to, and then in a file.

    A context, entered before anything is said. Every line is handed to the system at once, so that a killed
    run leaves all that it said. Only the first process writes. Behind the messages stands what ended the run,
    if an error did.
    """

    def __init__(self) -> None:
        self._kept = logging.handlers.MemoryHandler(sys.maxsize, logging.CRITICAL + 1, flushOnClose=False)
        self._file: _LogFile | None = None

    def __enter__(self) -> RunLog:
        if console.is_first_process():
            _package.addHandler(self._kept)
        return self

    def open(self, folder: Path, title: str) -> None:
        """Write what was said so far behind the log of earlier runs, and from now on everything at once.

        Args:
            folder: of the run; made where missing.
            title: of this run, such as its command line: it stands between the runs.

        Raises:
            OutputError: the file cannot be written to.
        """
        path = folder / LOG_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                # Of a run that was killed, the last line may have no end.
                file.write(("\n" if file.tell() else "") + f"===== {console.printable(title)} =====\n")
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error.strerror or error}; move it away, or choose another "
                "folder with -o save_dir=FOLDER"
            ) from error
        self._file = _LogFile(path)
        self._kept.setTarget(self._file)
        self._kept.flush()
        _package.removeHandler(self._kept)
        _package.addHandler(self._file)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _package.removeHandler(self._kept)
        self._kept.close()
        if self._file is None:
            return
        if error is not None:
            self._file.add_end(error)
        _package.removeHandler(self._file)
        with contextlib.suppress(OSError):  # a full disk, of which has been spoken already
            self._file.close()


class _LogFile(logging.FileHandler):
    """The file; it gives up, and says so once, where a line cannot be written: a training is worth more."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8")
        self.setFormatter(console.LineFormatter("%Y-%m-%d %H:%M:%S"))

    def add_end(self, error: BaseException) -> None:
        """Note what ends the run; on the screen others do."""
        level = logging.INFO if isinstance(error, ENDS_IN_GOOD_ORDER) else logging.ERROR
        is_explained = level == logging.INFO or isinstance(error, PPFCOSError)
        trace = None if is_explained else (type(error), error, error.__traceback__)
        text = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        self.handle(logging.LogRecord(__name__, level, __file__, 0, "%s", (text,), trace))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.setLevel(logging.CRITICAL + 1)
        _package.removeHandler(self)
        logger.warning(
            "%s cannot be written (%s): going on without it", self.baseFilename, error.strerror or error
        )
