"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ppfcos.errors import OutputError


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Write a file beside its name, and rename it once it is complete and on the disk.

    Args:
        path: the file's name; its folder is made where it is missing.

    Yields:
        The name to write to.

    Raises:
        OutputError: the file cannot be written; what had the name before is untouched.
    """
    with replacing_together() as beside, beside(Path(path)) as unfinished:
        yield unfinished


@contextlib.contextmanager
def replacing_together() -> Iterator[Callable[[Path], contextlib.AbstractContextManager[Path]]]:
    """Write files that belong together, and rename them once all are complete and on the disk.

    Yields:
        A function of a file's name: a context manager that gives the name to write to. The files are renamed
        in the order in which they were written.

    Raises:
        OutputError: a file cannot be written; what had the names before is untouched.
    """
    written: list[Path] = []

    @contextlib.contextmanager
    def beside(path: Path) -> Iterator[Path]:
        written.append(path)
        with _named_where_it_fails(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield _unfinished(path)
            _flush_to_disk(_unfinished(path))

    try:
        yield beside
        for path in written:
            with _named_where_it_fails(path):
                os.replace(_unfinished(path), path)
        for folder in {path.parent for path in written}:
            with _named_where_it_fails(folder):
                _flush_to_disk(folder)
    finally:
        for path in written:
            with contextlib.suppress(OSError):
                _unfinished(path).unlink()


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


@contextlib.contextmanager
def _named_where_it_fails(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


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
    probe = folder / ".writable"
    missing: list[Path] = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    except OSError as error:
        raise OutputError(
            f"the output folder {folder} cannot be written to: {error.strerror or error}; "
            f"choose another one with {option}"
        ) from error
    finally:
        for remove, path in [(os.unlink, probe), *((os.rmdir, path) for path in missing)]:
            with contextlib.suppress(OSError):
                remove(path)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
