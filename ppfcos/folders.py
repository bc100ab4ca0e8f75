"""Folders that are replaced as a whole: a reader finds the old one or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ppfcos.errors import OutputError
from ppfcos.files import is_abandoned, is_token, named_in_errors, new_token, temporary_path


@contextlib.contextmanager
def replacing_folder(target: Path | str) -> Iterator[Path]:
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
