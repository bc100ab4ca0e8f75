"""Folders that are replaced as a whole: a reader finds the old one or the new one, never a part of it."""

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

MAX_BYTES = 1 << 30  # unless the caller knows better: lists of millions of images have 0.5 GB


def require_regular(path: str | Path) -> None:
    """Sees that something is a file: a pipe would be waited for, and a device such as /dev/zero has no end.

    Raises:
        OSError: It is none, or is not there.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a file of at most `max_bytes`.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger.
    """
    require_regular(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"has {size} bytes, and at most {max_bytes} are read", str(path))
        return file.read(max_bytes)


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """The content of a text file in UTF-8, with or without a mark of that at its beginning.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger than `max_bytes`.
        UnicodeDecodeError: It is not in UTF-8.
    """
    return read_bytes(path, max_bytes).decode("utf-8-sig")


# Without a file name in the error, these are of a write to the file at hand.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# host, process, start of the process in clock ticks, random
_TOKEN = r"(?P<host>[A-Za-z0-9-]+)\.(?P<pid>[0-9]{1,9})\.(?P<start>[0-9]{1,20})\.[0-9a-f]{8}"
_TEMPORARY = re.compile(rf"\..*\.{_TOKEN}\.(unfinished|old)(\.\w+)?")
_LONGEST_NAME = 120  # bytes of a file's name that its temporary name keeps; file systems allow 255


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Write a file under a temporary name, and rename it once it is complete and on the disk.

    Where `path` is a symbolic link, the file that it points to is replaced and the link stays. A character
    device or a pipe, such as /dev/null and /dev/stdout, is never replaced: the content is written into it at
    the end.

    Args:
        path: the file's name; its folder is made where it is missing.

    Yields:
        The name to write to: always that of a new regular file.

    Raises:
        OutputError: the file cannot be written, or is a folder, socket or block device. What had the name
            before is untouched. An OSError of the caller that is about another file is not changed.
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
    """Whether output to a path goes into a device or a pipe instead of a file.

    Args:
        path: need not exist.

    Raises:
        OutputError: it is something that cannot be written to, such as a folder or a block device.
    """
    path = Path(path)
    # Of a redirected command, these may be regular files, which the shell keeps open and goes on to write to.
    if str(path) in ("/dev/stdout", "/dev/stderr") or path.parent in (Path("/dev/fd"), Path("/proc/self/fd")):
        return True
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise _cannot_be_written(path, error) from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path} cannot be written: {os.strerror(errno.EISDIR)}")
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        kind = "socket" if stat.S_ISSOCK(mode) else "block device"
        raise OutputError(f"{path} cannot be written: it is a {kind}; choose the name of a file")
    return not stat.S_ISREG(mode)


def _copy_into(source: Path, stream: Path) -> None:
    # Without O_NONBLOCK, opening a pipe that nobody reads would wait for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(stream, flags)
    os.set_blocking(descriptor, True)
    with open(source, "rb") as content, open(descriptor, "wb") as out:
        shutil.copyfileobj(content, out)


def new_token() -> str:
    """What makes temporary names unique: the host, the process, its start and a random number."""
    return f"{_host()}.{os.getpid()}.{_start_of(os.getpid()) or 0}.{secrets.token_hex(4)}"


def is_token(text: object) -> bool:
    """Whether something is what `new_token` returns, on any host."""
    return isinstance(text, str) and re.fullmatch(_TOKEN, text) is not None


def temporary_path(path: Path, token: str, ending: str = "unfinished") -> Path:
    """The temporary name of a file or folder, in the same folder.

    Args:
        path: its name.
        token: from `new_token`.
        ending: of the name.
    """
    name = os.fsencode(path.name)[:_LONGEST_NAME].decode("utf-8", "ignore")
    return path.with_name(f".{name}.{token}.{ending}")


def is_abandoned(path: Path, of_any_host: bool = False) -> bool:
    """Whether a path is a temporary one of a process that no longer runs.

    Args:
        path: of any file or folder.
        of_any_host: whether those of other hosts count as abandoned, too; whether their processes run cannot
            be found out from here.
    """
    found = _TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    if found["host"] != _host():
        return of_any_host
    start = _start_of(int(found["pid"]))
    return start is None or (start != int(found["start"]) and 0 not in (start, int(found["start"])))


def is_temporary(path: Path) -> bool:
    """Whether a path is a temporary one of any process of any host."""
    return _TEMPORARY.fullmatch(path.name) is not None


def _host() -> str:
    return re.sub("[^A-Za-z0-9-]", "-", socket.gethostname())[:40] or "-"


def _start_of(pid: int) -> int | None:
    """When a process was started, in clock ticks; 0 if the system does not say, None if it does not run."""
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


@contextlib.contextmanager
def writing_beside(path: Path, token: str | None = None) -> Iterator[Path]:
    """Write a file under a temporary name. It is removed where the body of the `with` fails.

    Args:
        path: the name that the file shall have; its folder is made where it is missing.
        token: of the temporary name; a new one where None.

    Yields:
        The temporary name. Renaming or removing it is left to the caller.

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
    """Turn an OSError into an OutputError that names the file.

    Args:
        path: of the file.
        temporary: its temporary name; where it is given, errors about any other file are left as they are.
    """
    try:
        yield
    except OSError as error:
        if temporary is not None and not _is_about(error, temporary):
            raise
        raise _cannot_be_written(path, error) from error


def _is_about(error: OSError, temporary: Path) -> bool:
    known = (error.filename, error.filename2)
    names = [name for name in known if isinstance(name, (str, bytes, os.PathLike))]
    ours = [os.fsdecode(name).startswith(str(temporary)) for name in names]
    # A failed copy names its source first, whether that could not be read or the disk is full.
    return any(ours[:1]) or (error.errno in _DISK_ERRORS and (not ours or ours[-1]))


def _cannot_be_written(path: Path, error: Exception) -> OutputError:
    return OutputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}")


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def require_writable(folder: Path | str, option: str = "-o save_dir=FOLDER") -> None:
    """Find out whether files can be written to a folder, and leave no trace of it.

    Args:
        folder: need not exist.
        option: by which the user chooses it.

    Raises:
        OutputError: it cannot be made or written to.
    """
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
    """Find out whether a file can be written, and leave no trace of it.

    Args:
        path: of the file, or a device or pipe.
        option: by which the user chooses it.

    Raises:
        OutputError: it cannot be written.
    """
    if not is_stream(path):
        require_writable(Path(path).parent, option)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replace_folder(target: Path | str) -> Iterator[Path]:
    """Fill a folder under a temporary name, and rename it once it is complete.

    Where `target` is a symbolic link, the folder that it points to is replaced and the link stays. What
    killed processes left of earlier calls is removed; a folder that was moved aside is put back.

    Args:
        target: the folder's name; the folder above it is made where it is missing. A folder that has the name
            is replaced as a whole: whether it may be is for the caller to say.

    Yields:
        The folder to write to; gone in the end whatever happens.

    Raises:
        OutputError: it cannot be written, or `target` is no folder. What had the name before is untouched. An
            OSError of the caller that is about another file is not changed.
    """
    target = Path(target)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    if os.path.lexists(target) and not target.is_dir():
        raise OutputError(f"{target} cannot be written: it is no folder")
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
    """Remove what killed processes left. If one died between its two renames, the old folder goes back."""
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
    """Rename. The old folder is moved aside first: a folder cannot be renamed over a full one."""
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(unfinished, target)
    except OSError:
        if aside.exists():
            os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
