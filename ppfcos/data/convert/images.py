"""Names for the pictures of a converted data set, and the pictures themselves under these names."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Callable

from ppfcos.console import printable
from ppfcos.data.convert.annotated import AnnotatedSet, Split
from ppfcos.errors import OutputError

_MAX_NAME = 255  # bytes of a file name, on all common file systems

HOW = {
    "link": lambda source, target: os.symlink(source.resolve(), target),
    "copy": shutil.copyfile,
}
# {(name of the split, image id): path in the new data set}
Names = Mapping[tuple[str, int], PurePosixPath]


def name_pictures(data: AnnotatedSet, wanted: Callable[[Split, PurePosixPath], PurePosixPath]) -> Names:
    """A path for every picture: one for all splits that it is in, and no other picture's but for the suffix.

    Args:
        data: The data set; what had to be renamed is added to its losses.
        wanted: The path that a picture should get, from its split and its file name.

    Returns:
        The paths, relative to the new data set.
    """
    names: dict[tuple[str, int], PurePosixPath] = {}
    by_picture: dict[str, PurePosixPath] = {}
    taken: set[PurePosixPath] = set()
    for split in data.splits:
        for image in split.images:
            picture = _identity(split, image)
            if picture not in by_picture:
                path = wanted(split, _inside(image["file_name"]))
                fitting = _fitting(path)
                by_picture[picture] = free = _free(fitting, split.name, taken)
                data.losses.remark(
                    "pictures are renamed: their names have bytes that are not UTF-8 or control characters, "
                    "or are too long",
                    fitting != path,
                )
                taken.add(free.with_suffix(""))
                data.losses.remark(
                    "pictures are renamed, because another one has the same name", free != fitting
                )
            names[split.name, image["id"]] = by_picture[picture]
    return names


def _identity(split: Split, image: dict[str, Any]) -> str:
    picture = split.pictures.get(image["id"])
    return f"{split.folder}/{image['file_name']}" if picture is None else os.path.abspath(picture)


def _inside(file_name: str) -> PurePosixPath:
    """A file name that leads nowhere out of its folder, whatever an annotation file says."""
    parts = [part for part in PurePosixPath(file_name).parts if part not in ("/", "..", ".")]
    return PurePosixPath(*(parts or ["unnamed"]))


def _fitting(path: PurePosixPath) -> PurePosixPath:
    """The path, with escapes for what lists, XML and tools cannot hold, and no part that is too long."""
    return PurePosixPath(*(_short(printable(part)) for part in path.parts))


def _short(name: str) -> str:
    """The name, or its beginning and a digest of the rest if a file cannot have it."""
    stem, suffix = os.path.splitext(name)
    # Annotations have suffixes of four letters.
    if len(stem.encode()) <= _MAX_NAME - 4 and len(name.encode()) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    beginning = stem.encode()[: _MAX_NAME // 2].decode(errors="ignore")
    return f"{beginning}-{digest}{suffix if len(suffix) < 10 else ''}"


def _free(path: PurePosixPath, prefix: str, taken: set[PurePosixPath]) -> PurePosixPath:
    candidate, number = path, 0
    while candidate.with_suffix("") in taken:
        candidate = path.with_name(_short(f"{prefix}_{number or ''}{path.name}"))
        number += 1
    return candidate


def place_pictures(data: AnnotatedSet, names: Names, folder: Path, how: str) -> int:
    """Puts every picture that is there under its name.

    Args:
        data: The data set.
        names: Of `name_pictures`.
        folder: The new data set's.
        how: A key of HOW: link or copy.

    Returns:
        The number of pictures.

    Raises:
        OutputError: One cannot be read or written.
    """
    placed = 0
    for split in data.splits:
        for number, picture in split.pictures.items():
            target = folder / names[split.name, number]
            if os.path.lexists(target):  # of an earlier split
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                HOW[how](picture, target)
            except OSError as error:
                reason = error.strerror or error
                raise OutputError(f"{picture} cannot be put into the new data set: {reason}") from error
            placed += 1
    return placed
