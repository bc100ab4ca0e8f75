"""The lock of a run's folder, which keeps two trainings from writing to one folder."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import socket
import stat
import weakref
from pathlib import Path
from typing import Any

from ppfcos.errors import OutputError

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_held: weakref.WeakValueDictionary[str, FolderLock] = weakref.WeakValueDictionary()


class FolderLock:
    """Keeps other trainings out of a run's folder, until `release`, or until the process ends in any way.

    The lock is the kernel's (`fcntl.lockf`): it ends with this process, and processes that this one starts or
    forks do not hold it. The lock file says who holds it. In one process a folder can be locked repeatedly.

    Attributes:
        is_exclusive: False on a file system that has no locks; a warning was logged then.
    """

    def __init__(self, path: Path):
        self.path = path
        self.is_exclusive = False
        self._file: Any = None
        self._pid = os.getpid()
        self._made: list[Path] = []  # folders

    def release(self) -> None:
        """Let other trainings use the folder; it is removed if it was made for the lock and is empty."""
        file, self._file = self._file, None
        if file is None:
            return
        if self._pid == os.getpid():  # a forked process has this object, but not the lock
            for remove, path in [(os.unlink, self.path), *((os.rmdir, path) for path in self._made)]:
                with contextlib.suppress(OSError):
                    remove(path)
        file.close()

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lock."""
        return self._file is not None and self._pid == os.getpid()

    def __del__(self) -> None:
        self.release()

    def acquire(self) -> None:
        """Lock the folder, which is made where it is missing.

        Raises:
            OSError: the lock file cannot be made.
            OutputError: another process holds it.
        """
        folder = self.path.parent
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        while self._file is None:
            file = open(os.open(self.path, flags, 0o666), "r+b", buffering=0)  # noqa: SIM115 (kept open)
            try:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "is no regular file")
                self._lock(file)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    self._file, file = file, None
            except FileNotFoundError:  # whoever held it has just released and removed it
                pass
            finally:
                if file is not None:
                    file.close()
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        self._file.truncate(0)
        self._file.write(json.dumps(holder).encode())

    def _lock(self, file: Any) -> None:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise OutputError(
                    f"{self.path.parent} is in use by another training ({_holder(file)}): "
                    "wait for it, stop it, or choose another folder with -o save_dir=FOLDER"
                ) from None
            logger.warning(
                "%s cannot be locked (%s): nothing prevents another training from writing to this folder",
                self.path,
                error.strerror or error,
            )
        else:
            self.is_exclusive = True


def _holder(file: Any) -> str:
    """Who holds a lock, as its file says; the file may hold anything."""
    try:
        holder = json.loads(os.pread(file.fileno(), 1000, 0))
        pid, host, started = int(holder["pid"]), str(holder["host"]), str(holder["started"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "which does not say where it runs"
    printable = (text if text.isprintable() else ascii(text) for text in (host, started))
    return "process {} on {}, started {}".format(pid, *printable)


def lock_folder(folder: Path) -> FolderLock:
    """Lock a run's folder, before anything in it is read or written.

    Args:
        folder: made where missing.

    Returns:
        The lock; it is released when nothing refers to it any more.

    Raises:
        OutputError: another process holds it (the message names it), or the folder cannot be written.
    """
    key = os.path.realpath(folder / LOCK_FILE)
    lock = _held.get(key)
    if lock is None or not lock.is_held:
        lock = FolderLock(folder / LOCK_FILE)
        try:
            lock.acquire()
        except OSError as error:
            raise OutputError(
                f"{lock.path} cannot be locked: {error.strerror or error}; "
                "remove it, or choose another folder with -o save_dir=FOLDER"
            ) from error
        _held[key] = lock
    return lock
