"""Folders that are either the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ppfcos.errors import OutputError


@contextlib.contextmanager
def replacing_folder(target: Path | str) -> Iterator[Path]:
    """Fill a folder beside its name, and rename it once it is complete.

    Args:
        target: the folder's name; the folder above it is made where it is missing. A folder that has the name
            is replaced as a whole: whether it may be is for the caller to say.

    Yields:
        The folder to write to; gone in the end whatever happens.

    Raises:
        OutputError: it cannot be written; what had the name before is untouched.
    """
    target = Path(target)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        _put_into_place(unfinished, target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_into_place(unfinished: Path, target: Path) -> None:
    """Rename; the old folder steps aside first, for a folder cannot be renamed over a full one."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(unfinished, target)
    except OSError:
        if aside.exists():
            os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
