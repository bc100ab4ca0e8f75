"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
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
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _flush_to_disk(unfinished)
        os.replace(unfinished, path)
        _flush_to_disk(path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


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
