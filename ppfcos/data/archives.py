"""Downloads COCO 2017 and BCCD: checks the zip files, and unpacks them within their folder.

Uses the standard library only, so that data can be downloaded before anything is installed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ppfcos.download import Limits, Progress, download, require_space, short
from ppfcos.errors import DataError, OutputError
from ppfcos.fileio import writing_beside

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20  # bytes
_MAX_UNKNOWN = 32_000_000  # bytes of an archive whose size is not known; BCCD has 8 MB
# COCO's largest archive has 118,287 files, and its annotations are 3.3 times as large as their archive.
_MAX_FILES = 200_000
_MAX_RATIO = 20  # bytes unpacked a byte of the archive
_ALWAYS_ALLOWED = 10_000_000  # bytes unpacked of a small archive
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the memory of the others depends on the archive
_LONGEST_NAME = 200  # bytes: systems take 255, and the unfinished file has a longer name
_LONGEST_PATH = 500  # bytes
_DEEPEST = 16  # folders and name
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


@dataclass(frozen=True)
class Archive:
    """A zip file, and the files that it must contain.

    Attributes:
        part: Its name on the command line.
        path: Its path on the server.
        size: In bytes; None if unknown, and then at most 32 MB.
        md5: MD5 sum; None if unknown: then the checksums in the zip file are checked.
        files: Files that it contains.
        counts: Folders that it contains, with the number of their files.
        inside: The folder in it that is unpacked, without its name; empty: all of it.
    """

    part: str
    path: str
    size: int | None = None
    md5: str | None = None
    files: tuple[str, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    inside: str = ""

    @property
    def name(self) -> str:
        """The name of the file."""
        return PurePosixPath(self.path).name

    def is_unpacked(self, folder: Path) -> bool:
        """Whether everything that it contains is in `folder`."""
        return all((folder / name).is_file() for name in self.files) and all(
            _number_of_files(folder / name) >= count for name, count in self.counts
        )


# The bucket behind http://images.cocodataset.org, whose certificate is for this name.
COCO_SERVER = "https://s3.amazonaws.com/images.cocodataset.org"
COCO_2017 = (
    Archive(
        "annotations",
        "annotations/annotations_trainval2017.zip",
        252907541,
        "f4bbac642086de4f52a3fdda2de5fa2c",
        files=("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
    ),
    Archive(
        "val", "zips/val2017.zip", 815585330, "442b8da7639aecaf257c1dceb8ba8c80", counts=(("val2017", 5000),)
    ),
    Archive(
        "train",
        "zips/train2017.zip",
        19336861798,
        "cced6f7f71b7629ddf16f17bbcfab6b2",
        counts=(("train2017", 118287),),
    ),
)

GITHUB = "https://github.com"
# GitHub packs this file again from time to time: its size and sum change.
BCCD = Archive(
    "bccd",
    "Shenggan/BCCD_Dataset/archive/refs/heads/master.zip",
    files=tuple(f"ImageSets/Main/{name}.txt" for name in ("train", "val", "trainval", "test")),
    counts=(("Annotations", 364), ("JPEGImages", 364)),
    inside="BCCD_Dataset-master/BCCD",
)


def fetch(
    folder: Path,
    archives: Sequence[Archive] = COCO_2017,
    server: str = COCO_SERVER,
    keep_archives: bool = False,
    pause: float = 1.0,
    limits: Limits | None = None,
) -> None:
    """Download, check and unpack archives; skips what is complete.

    Args:
        folder: For the data, and for the archives until they are unpacked.
        archives: What to fetch.
        server: Address to which the archives' paths are appended: COCO's, or a mirror's.
        keep_archives: Whether to keep the zip files.
        pause: Seconds before the second attempt; doubled for each further one.
        limits: Of the downloads.

    Raises:
        DataError: The server cannot be reached, or does not have the file.
        OutputError: The folder cannot be written or the disk is too full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for archive in archives:
            _fetch_one(folder, archive, f"{server.rstrip('/')}/{archive.path}", keep_archives, pause, limits)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error


def _fetch_one(
    folder: Path, archive: Archive, url: str, keep_archive: bool, pause: float, limits: Limits | None
) -> None:
    if archive.is_unpacked(folder):
        logger.info("%s: already in %s", archive.part, folder)
        return
    target = folder / archive.name
    download(
        url,
        target,
        archive.size,
        archive.md5,
        pause,
        check=None if archive.md5 else fault_in_zip,
        limits=limits or Limits(max_size=_MAX_UNKNOWN),
        cure="run again later to continue, or choose another server with --mirror",
    )
    unpack(target, folder, archive.inside)
    if not archive.is_unpacked(folder):
        wanted = ", ".join([*archive.files, *(f"{count} files in {name}" for name, count in archive.counts)])
        raise DataError(f"{target} lacks what it should contain ({wanted}): {url} is another archive")
    if not keep_archive:
        target.unlink()
    logger.info("%s: complete in %s", archive.part, folder)


def fault_in_zip(path: Path) -> str | None:
    """What is wrong with a zip file that has no known MD5 sum."""
    try:
        with _opened(path) as contents:
            for member, _ in _files(contents, path):
                for _ in _content(contents, member, path):
                    pass
    except DataError as error:
        return str(error)
    return None


def unpack(archive: Path, folder: Path, inside: str = "") -> None:
    """Unpack a zip file. Files of the right size that exist already are kept.

    Args:
        archive: The zip file.
        folder: The folder to unpack to.
        inside: The folder in it that is unpacked, without its name; empty: all of it.

    Raises:
        DataError: The archive is damaged, or a file in it is refused, such as a path that leads out of the
            folder; then nothing is unpacked.
        OutputError: The disk is too full, or a file cannot be written.
    """
    top = PurePosixPath(inside).parts
    with _opened(archive) as contents:
        files = [
            (member, folder.joinpath(*parts[len(top) :]))
            for member, parts in _files(contents, archive)
            if parts[: len(top)] == top
        ]
        left = [(member, target) for member, target in files if not _is_whole(target, member)]
        size = sum(member.file_size for member, _ in left)
        require_space(folder, size)
        progress = Progress(f"unpacking {archive.name}", size)
        for member, target in left:
            _write(_content(contents, member, archive), target)
            progress.add(member.file_size)
        progress.end()


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    with _reading(archive):
        contents = zipfile.ZipFile(archive)
    with contents:
        yield contents


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # zipfile raises any error of its parsing: struct.error, UnicodeDecodeError, zlib.error, ...
        reason = short(error) or type(error).__name__
        raise DataError(f"{archive} is damaged ({reason}): remove it and run again") from error


def _content(contents: zipfile.ZipFile, member: zipfile.ZipInfo, archive: Path) -> Iterator[bytes]:
    """The blocks of a file in a zip file; together never more than its declared size."""
    with _reading(archive):
        source, left = contents.open(member), member.file_size
    with source:
        while True:
            with _reading(archive):
                block = source.read(_BLOCK)
                left -= len(block)
                if not block and left:
                    raise zipfile.BadZipFile(f"{member.filename} is shorter than its declared size")
            if not block:
                return
            yield block


def _files(contents: zipfile.ZipFile, archive: Path) -> list[tuple[zipfile.ZipInfo, tuple[str, ...]]]:
    """The files of a zip file, with the folders and the name of each, after all of them have been checked.

    Raises:
        DataError: The archive is refused.
    """
    members = contents.infolist()
    if len(members) > _MAX_FILES:
        raise DataError(f"{archive} has {len(members)} files, more than {_MAX_FILES}: nothing was unpacked")
    size = sum(member.file_size for member in members)
    if size > max(_ALWAYS_ALLOWED, _MAX_RATIO * archive.stat().st_size):
        raise DataError(
            f"{archive} would unpack to {size / 1e6:.0f} MB, which is suspicious: nothing was unpacked"
        )
    files: dict[tuple[str, ...], zipfile.ZipInfo] = {}
    folders: set[tuple[str, ...]] = set()
    for member in members:
        parts = _parts(member, archive)
        folders.update(parts[:length] for length in range(1, len(parts)))
        if member.is_dir():
            folders.add(parts)
        elif parts in files:
            raise _refusal(archive, member, "has this name twice")
        else:
            files[parts] = member
    for parts in folders & files.keys():
        raise _refusal(archive, files[parts], "has a file and a folder of this name")
    return [(member, parts) for parts, member in files.items()]


def _parts(member: zipfile.ZipInfo, archive: Path) -> tuple[str, ...]:
    """The folders and the name of a file in a zip file, checked to stay in the folder on every system."""
    name = member.filename.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or ":" in name:
        raise _refusal(archive, member, "contains a path outside its folder")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise _refusal(archive, member, "contains a link, which could lead anywhere")
    if len(name.encode()) > _LONGEST_PATH or len(parts) > _DEEPEST:
        raise _refusal(archive, member, "has a path that is too long")
    for part in parts:
        stem = part.split(".")[0].rstrip().lower()
        if (
            not part.isprintable()
            or part[-1] in " ."
            or stem in _RESERVED
            or len(part.encode()) > _LONGEST_NAME
        ):
            raise _refusal(archive, member, "has a name that not every system takes")
    if member.flag_bits & 1:
        raise _refusal(archive, member, "is encrypted")
    if member.compress_type not in _METHODS:
        raise _refusal(archive, member, f"uses the compression method {member.compress_type}")
    return parts


def _refusal(archive: Path, member: zipfile.ZipInfo, reason: str) -> DataError:
    return DataError(f"{archive} {reason} ({short(member.filename)}): nothing was unpacked")


def _is_whole(target: Path, member: zipfile.ZipInfo) -> bool:
    return os.path.isfile(target) and target.stat().st_size == member.file_size


def _write(blocks: Iterator[bytes], target: Path) -> None:
    if target.exists() and not target.is_file():
        raise OutputError(f"{target} is not a regular file, and is not replaced: remove it")
    with writing_beside(target) as unfinished:
        with open(unfinished, "xb") as stream:
            stream.writelines(blocks)
        os.replace(unfinished, target)


def _number_of_files(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(not entry.name.startswith(".") and entry.is_file() for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return 0
