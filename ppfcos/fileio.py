"""Read files of limited size; replace files and folders atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ppfcos.errors import OutputError

MAX_BYTES = 1 << 30  # default limit of a file that is read at once

# Without a file name in the error, these belong to a write to the current file.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# host, process, start of the process in clock ticks, random number
_TOKEN = r"(?P<host>[A-Za-z0-9-]+)\.(?P<pid>[0-9]{1,9})\.(?P<start>[0-9]{1,20})\.[0-9a-f]{8}"
_TEMPORARY = re.compile(rf"\..*\.{_TOKEN}\.(unfinished|old)(\.\w+)?")
_MAX_NAME = 120  # bytes of a file's name that its temporary name keeps; file systems allow 255


def require_regular(path: str | Path) -> None:
    """Raise an OSError unless `path` is a regular file: a pipe would block, and /dev/zero has no end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file; raise an OSError if it has more than `max_bytes`."""
    require_regular(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"has {size} bytes, and at most {max_bytes} are read", str(path))
        return file.read(max_bytes)


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """Read a UTF-8 file, with or without a byte order mark; raise a UnicodeDecodeError if it is not UTF-8."""
    return read_bytes(path, max_bytes).decode("utf-8-sig")


def sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Temporary names --------------------------------------------------------------------------------------------


def new_token() -> str:
    """Return a unique part of temporary names: host, process, start of the process, random number."""
    return f"{_host()}.{os.getpid()}.{_start_of(os.getpid()) or 0}.{secrets.token_hex(4)}"


def is_token(text: object) -> bool:
    """Whether `text` was returned by `new_token`, on any host."""
    return isinstance(text, str) and re.fullmatch(_TOKEN, text) is not None


def temporary_path(path: Path, token: str, ending: str = "unfinished") -> Path:
    """Return the temporary name of a file or folder, in the same folder."""
    name = os.fsencode(path.name)[:_MAX_NAME].decode("utf-8", "ignore")
    return path.with_name(f".{name}.{token}.{ending}")


def is_temporary(path: Path) -> bool:
    """Whether `path` is a temporary name of any process on any host."""
    return _TEMPORARY.fullmatch(path.name) is not None


def is_abandoned(path: Path, of_any_host: bool = False) -> bool:
    """Whether `path` is a temporary name of a process that no longer runs.

    Args:
        of_any_host: also count the files of other hosts, whose processes cannot be checked.
    """
    found = _TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    if found["host"] != _host():
        return of_any_host
    start = _start_of(int(found["pid"]))
    return start is None or (start != int(found["start"]) and 0 not in (start, int(found["start"])))


def _host() -> str:
    return re.sub("[^A-Za-z0-9-]", "-", socket.gethostname())[:40] or "-"


def _start_of(pid: int) -> int | None:
    """Start of a process in clock ticks; 0 if the system does not tell, None if it does not run."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else int(fields[18])
    except (OSError, ValueError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:  # of another user
        pass
    return 0


# Writing files ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Write a file under a temporary name, flush it, and rename it.

    If `path` is a symbolic link, its target is replaced and the link stays. A device or pipe such as
    /dev/null or /dev/stdout is not replaced: the content is copied into it at the end.

    Yields:
        The name to write to, always of a new regular file.

    Raises:
        OutputError: the file cannot be written, or is a folder, socket or block device; an existing file is
            unchanged. OSErrors about other files pass through.
    """
    path = Path(path)
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "output"
            yield temporary
            with named_in_errors(path):
                _copy_into(temporary, path)
        return
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    with writing_beside(target) as temporary:
        yield temporary
        with named_in_errors(target):
            flush_to_disk(temporary)
            os.replace(temporary, target)
    with named_in_errors(target):
        flush_to_disk(target.parent)


def is_stream(path: Path | str) -> bool:
    """Whether `path` is a device or pipe; raise an OutputError for folders, sockets and block devices."""
    path = Path(path)
    # Of a redirected command, these may be regular files, which the shell keeps open and goes on to write to.
    if str(path) in ("/dev/stdout", "/dev/stderr") or path.parent in (Path("/dev/fd"), Path("/proc/self/fd")):
        return True
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise _write_error(path, error) from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path} cannot be written: {os.strerror(errno.EISDIR)}")
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        kind = "socket" if stat.S_ISSOCK(mode) else "block device"
        raise OutputError(f"{path} cannot be written: it is a {kind}; choose the name of a file")
    return not stat.S_ISREG(mode)


def _copy_into(source: Path, stream: Path) -> None:
    # Without O_NONBLOCK, opening a pipe without a reader would block.
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(stream, flags)
    os.set_blocking(descriptor, True)
    with open(source, "rb") as content, open(descriptor, "wb") as out:
        shutil.copyfileobj(content, out)


@contextlib.contextmanager
def writing_beside(path: Path, token: str | None = None) -> Iterator[Path]:
    """Yield a temporary name for a file. The caller renames it; it is removed if the block fails.

    Args:
        path: final name; its folder is created.
        token: of the temporary name; default: a new one.

    Raises:
        OutputError: the file cannot be written.
    """
    temporary = temporary_path(path, token or new_token())
    try:
        with named_in_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with named_in_errors(path, temporary):
            yield temporary
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def named_in_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn an OSError into an OutputError that names `path`.

    Args:
        temporary: if given, only errors about this file are converted.
    """
    try:
        yield
    except OSError as error:
        if temporary is not None and not _is_about(error, temporary):
            raise
        raise _write_error(path, error) from error


def _is_about(error: OSError, temporary: Path) -> bool:
    known = (error.filename, error.filename2)
    names = [name for name in known if isinstance(name, (str, bytes, os.PathLike))]
    ours = [os.fsdecode(name).startswith(str(temporary)) for name in names]
    # A failed copy names its source first, whether that could not be read or the disk is full.
    return any(ours[:1]) or (error.errno in _DISK_ERRORS and (not ours or ours[-1]))


def _write_error(path: Path, error: Exception) -> OutputError:
    return OutputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}")


def require_writable(folder: Path | str, option: str = "-o save_dir=FOLDER") -> None:
    """Raise an OutputError that names `option` unless a file can be created in `folder`; leave no trace."""
    folder = Path(folder)
    missing: list[Path] = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"the output folder {folder} cannot be written to: {error.strerror or error}; "
            f"choose another one with {option}"
        ) from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                os.rmdir(path)


def require_writable_file(path: Path | str, option: str) -> None:
    """Like `require_writable`, for the path of a file, device or pipe."""
    if not is_stream(path):
        require_writable(Path(path).parent, option)


# Writing folders --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replace_folder(target: Path | str) -> Iterator[Path]:
    """Fill a folder under a temporary name, and rename it when it is complete.

    An existing folder of that name is replaced as a whole. If `target` is a symbolic link, its target is
    replaced and the link stays. Leftovers of killed processes are removed.

    Yields:
        The folder to write to; it is removed if the block fails.

    Raises:
        OutputError: the folder cannot be written, or `target` is not a folder; an existing folder is
            unchanged. OSErrors about other files pass through.
    """
    target = Path(target)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    if os.path.lexists(target) and not target.is_dir():
        raise OutputError(f"{target} cannot be written: it is not a folder")
    token = new_token()
    unfinished = temporary_path(target, token)
    try:
        with named_in_errors(target):
            _clear_abandoned(target)
            unfinished.mkdir(parents=True)
        with named_in_errors(target, unfinished):
            yield unfinished
        with named_in_errors(target):
            _put_into_place(unfinished, target, temporary_path(target, token, "old"))
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _clear_abandoned(target: Path) -> None:
    """Remove leftovers of killed processes; restore the old folder of one that died between two renames."""
    with contextlib.suppress(FileNotFoundError):
        for left in list(target.parent.iterdir()):
            token, _, ending = left.name[len(f".{target.name}.") :].rpartition(".")
            if not is_token(token) or left != temporary_path(target, token, ending) or not is_abandoned(left):
                continue
            if ending == "old" and not target.exists():
                os.replace(left, target)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _put_into_place(unfinished: Path, target: Path, aside: Path) -> None:
    """Move the old folder aside first: a folder cannot be renamed onto a non-empty one."""
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(unfinished, target)
    except OSError:
        if aside.exists():
            os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
