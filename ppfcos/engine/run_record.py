"""What a run writes about itself to its folder: the log, the configuration, and how it was started.

`train.log` has the log messages; `config.yml` the configuration with all that it inherits and every `-o`,
from which the same training can be started; `run.json` a list with an entry for each training in the folder.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import logging
import logging.handlers
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import paddle

import ppfcos
from ppfcos import console, environment
from ppfcos.config.imports import copy_imports
from ppfcos.config.show import config_text
from ppfcos.engine import distributed
from ppfcos.errors import OutputError, PPFCOSError, Stopped
from ppfcos.fileio import replacing
from ppfcos.json_files import to_json

CONFIG_FILE = "config.yml"
RECORD_FILE = "run.json"
LOG_FILE = "train.log"
GIT_SECONDS = 10  # timeout, for slow network drives

logger = logging.getLogger(__name__)
_package = logging.getLogger("ppfcos")


class RunLog:
    """Buffers the messages of ppfcos until the run folder is known, then writes them to its log file.

    A context. Every line is flushed, so that a killed run keeps its messages. Only rank 0 writes. An error
    that ends the run is the last message.
    """

    def __init__(self) -> None:
        self._buffer = logging.handlers.MemoryHandler(sys.maxsize, logging.CRITICAL + 1, flushOnClose=False)
        self._file: _LogFile | None = None

    def __enter__(self) -> RunLog:
        if console.is_main_process():
            _package.addHandler(self._buffer)
        return self

    def open(self, folder: Path, title: str) -> None:
        """Append the buffered messages to the log file, and write new ones at once.

        Raises:
            OutputError: the file cannot be written.
        """
        path = folder / LOG_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                # The last line of a killed run may lack its line break.
                file.write(("\n" if file.tell() else "") + f"===== {console.printable(title)} =====\n")
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error.strerror or error}; move it away, or choose another "
                "folder with -o save_dir=FOLDER"
            ) from error
        self._file = _LogFile(path, encoding="utf-8", delay=True)
        self._buffer.setTarget(self._file)
        self._buffer.flush()
        _package.removeHandler(self._buffer)
        _package.addHandler(self._file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _package.removeHandler(self._buffer)
        self._buffer.close()
        if self._file is None:
            return
        if error is not None:
            is_error = not isinstance(error, (KeyboardInterrupt, SystemExit, Stopped))
            is_unexpected = is_error and not isinstance(error, PPFCOSError)
            text = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            trace = (type(error), error, error.__traceback__) if is_unexpected else None
            level = logging.ERROR if is_error else logging.INFO
            self._file.handle(logging.LogRecord(__name__, level, __file__, 0, "%s", (text,), trace))
        _package.removeHandler(self._file)
        with contextlib.suppress(OSError):  # a full disk, which was reported before
            self._file.close()


class _LogFile(logging.FileHandler):
    """Warns once and stops when a line cannot be written: the training goes on."""

    def __init__(self, path: Path, **options: Any):
        super().__init__(path, **options)
        self.setFormatter(console.LineFormatter("%Y-%m-%d %H:%M:%S"))

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


def describe_run(device: str) -> dict[str, Any]:
    """Return a JSON-serializable record of the run; unknown values are None. All ranks must call it."""
    return {
        "command": command_line(),
        "launched_by": _launcher(),
        "folder": os.getcwd(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processes": distributed.world_size(),
        "devices": distributed.all_gather_object(f"{device}: {device_name(device)}"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": versions(),
        "checkout": git_state(Path(ppfcos.__file__).parent),
    }


def write_record(folder: Path, record: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """Write config.yml, and append an entry to run.json.

    Raises:
        OutputError: a file cannot be written, or run.json is not a list.
    """
    resolved = copy_imports(resolved, folder)
    records = [*_earlier_records(folder / RECORD_FILE), {**record, "config": resolved}]
    head = (
        f"# The configuration of the run of {record['started']}, with all that it inherits and every -o.\n"
        f"# It was started in {record['folder']}; relative paths refer to that folder.\n"
    )
    with replacing(folder / CONFIG_FILE) as unfinished:
        unfinished.write_text(console.valid(head + config_text(resolved)), encoding="utf-8")
    with replacing(folder / RECORD_FILE) as unfinished:
        unfinished.write_text(to_json(records, indent=2) + "\n", encoding="utf-8")


def _earlier_records(path: Path) -> list:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read ({error}), to add this run to it: move it away") from error
    if not isinstance(records, list):
        raise OutputError(f"{path} is no list of runs, to which this one could be added: move it away")
    return records


def command_line() -> str:
    """Return the command of this process, quoted for a shell."""
    return shlex.join(["python", *sys.argv] if sys.argv[0].endswith(".py") else sys.argv)


def _launcher() -> str | None:
    """The command line of `paddle.distributed.launch`, if it started this process."""
    if distributed.world_size() == 1:
        return None
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")
    except (OSError, UnicodeDecodeError):  # another system
        return None
    return shlex.join(word for word in words if word)


def device_name(device: str) -> str:
    """Return the product name of a device, such as `NVIDIA H200` or `AMD EPYC 9R14`, or `device` itself."""
    if device.startswith("gpu"):
        return paddle.device.cuda.get_device_name(device)
    if device == "cpu":
        return environment.processor_name() or platform.machine()
    return device


def versions() -> dict[str, str | None]:
    """Return the versions of the libraries by name; None if one is absent."""
    cuda, cudnn = (
        None if version in ("False", "None", "") else version  # "False": built without it
        for version in (paddle.version.cuda(), paddle.version.cudnn())
    )
    return {
        "python": platform.python_version(),
        "ppfcos": ppfcos.__version__,
        "paddle": paddle.__version__,
        "paddle_commit": paddle.version.commit,
        "ppdet": _installed("paddledet"),
        "numpy": np.__version__,
        "opencv": _installed("opencv-python"),
        "cuda": cuda,
        "cudnn": cudnn,
    }


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return `commit`, `dirty` and `changed` (tracked files that differ) of a package's checkout.

    None if the package is not in a checkout, as after `pip install`, or git is absent.
    """
    # A virtual environment may be within another checkout, which does not track it.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "diff", "--name-only", "HEAD")
    if commit is None or changed is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(changed), "changed": changed.splitlines()}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout
