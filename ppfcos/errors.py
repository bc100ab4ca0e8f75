"""Errors that a user can cause.

Each message is one line that names the file, the key or the image, and a remedy. Commands print it without a
traceback and exit with `exit_code`; `--debug` prints the traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from typing import Any

MAX_LISTED = 13  # valid names that `hint` lists
SIMILARITY = 0.75  # difflib's ratio from which a name is suggested
SHARED_MEMORY = "/dev/shm"  # of Linux
# In messages of the dynamic linker and of C++ libraries.
_NO_MEMORY = ("failed to map segment", "annot allocate memory", "std::bad_alloc")


class PPFCOSError(Exception):
    """Base of every error that a user can cause and fix."""

    exit_code = 2


class ConfigError(PPFCOSError):
    """A configuration file, a key in it or an `-o` override is wrong.

    Args:
        messages: one line for each error.
    """

    def __init__(self, *messages: str):
        super().__init__("; also ".join(messages))
        self.messages = messages


class DataError(PPFCOSError):
    """A data set, an annotation or an image is missing, unreadable or contradicts the configuration."""


class WeightsError(PPFCOSError):
    """A weights file is missing, corrupt, or belongs to another model."""


class OutputError(PPFCOSError):
    """A file or folder cannot be written."""


class DeviceError(PPFCOSError):
    """The requested device is not on this machine, or not supported by this build of Paddle."""


class TrainingError(PPFCOSError):
    """The training cannot continue, for example after a loss that is not finite."""


class BundleError(PPFCOSError):
    """An exported bundle is incomplete, or cannot be made or run."""


class ResourceError(PPFCOSError):
    """The machine, or a limit of the process, does not let the command run."""


class Stopped(BaseException):
    """A signal ended the run. It is a BaseException, like KeyboardInterrupt, so that no handler catches it.

    Args:
        signal_number: of the signal.
        message: what was saved, in one line.
        together: whether all ranks stop at the same step.
    """

    def __init__(self, signal_number: int, message: str, together: bool = False):
        super().__init__(message)
        self.together = together
        self.exit_code = 128 + signal_number  # as in shells


def hint(name: Any, valid: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: a similar valid name, or a short list of all.

    A similar name starts with the same letter: `map_type` does not mean `amp_dtype`.
    """
    name, valid = str(name).lower(), sorted(valid)
    by_lower = {candidate.lower(): candidate for candidate in valid}
    same_start = [each for each in by_lower if each.lstrip("-_")[:1] == name.lstrip("-_")[:1]]
    nearest = difflib.get_close_matches(name, same_start, n=1, cutoff=SIMILARITY)
    if nearest:
        return f"; did you mean '{by_lower[nearest[0]]}'?"
    return f"; there are: {', '.join(valid)}" if 0 < len(valid) <= MAX_LISTED else ""


def one_line(error: Exception, length: int = 120) -> str:
    """Return the class and message of an exception in at most `length` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]


def resource_error(error: BaseException) -> ResourceError | None:
    """Return a one-line ResourceError for an error that the machine or a process limit caused, or None."""
    text = str(error)
    # Without memory, C extensions also raise errors such as "error return without exception set".
    is_odd = isinstance(error, SystemError) or (isinstance(error, ImportError) and "No module" not in text)
    lacks_memory = isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)
    if lacks_memory or (is_odd and _is_address_space_limited()):
        return ResourceError(
            "there is not enough memory, or the address space is limited: see `free -g` and `ulimit -v`"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return ResourceError(
            "no thread can be started: see `ulimit -u` and `ulimit -v`, or the container's limit of processes"
        )
    if isinstance(error, (OSError, ImportError)) and "Too many open files" in text:
        return ResourceError("too many files are open: raise the limit, such as with `ulimit -n 1024`")
    if isinstance(error, UnicodeEncodeError) and error.encoding not in ("utf-8", "utf8"):
        return ResourceError(
            f"a file name holds {error.object[error.start]!r}, which the encoding of this locale, "
            f"{error.encoding}, lacks: set the environment variable PYTHONUTF8=1"
        )
    if isinstance(error, OSError) and error.errno is not None:
        where = ": ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        if error.errno == errno.ENOENT and not where and not _has_working_directory():
            where = "the working directory was removed: change to another one"
        where = where or _shared_memory_problem()
        return ResourceError(f"{error.strerror or text}{f': {where}' if where else ''}; --debug shows where")
    return None


def _is_address_space_limited() -> bool:
    try:
        import resource
    except ImportError:  # not on Windows
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _shared_memory_problem() -> str:
    """Why processes cannot share memory and semaphores; "" if they can."""
    if not os.path.isdir(SHARED_MEMORY):
        return ""
    if not os.access(SHARED_MEMORY, os.W_OK):
        return f"processes cannot share memory, for {SHARED_MEMORY} cannot be written to"
    free = os.statvfs(SHARED_MEMORY)
    if free.f_bavail * free.f_frsize < 1 << 20:
        return f"processes cannot share memory, for {SHARED_MEMORY} is full"
    return ""


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True
