"""Fetches COCO 2017 and BCCD: resumes what broke off, checks every byte, unpacks nothing outside its folder.

Only Python's own library is used, so that the data can be on its way before anything is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import shutil
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Callable

from ppfcos.errors import DataError, OutputError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_ATTEMPTS = 6  # in a row that bring nothing new
_FAULTS_OF_ZIP_FILES = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, RuntimeError, EOFError)
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Archive:
    """One zip file, and by what its unpacked contents are known to be complete.

    Attributes:
        part: What a user calls it.
        path: Its path on the server.
        size: Its length in bytes; None if it is not known.
        md5: Its sum; None if it is not known: then the checks within the zip file must do.
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
        """The file's name without its folder."""
        return PurePosixPath(self.path).name

    def is_unpacked(self, folder: Path) -> bool:
        """Whether everything that it contains is in `folder`."""
        return all((folder / name).is_file() for name in self.files) and all(
            _number_of_files(folder / name) >= count for name, count in self.counts
        )


COCO_SERVER = "http://images.cocodataset.org"
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
# GitHub packs the file anew now and then: neither its length nor its sum is known beforehand.
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
) -> None:
    """Downloads, checks and unpacks archives; skips what is complete.

    Args:
        folder: Where the data goes; the archives are kept there until they are unpacked.
        archives: What to fetch.
        server: The address that the archives' paths are appended to: COCO's own, or a mirror's.
        keep_archives: Whether the zip files stay.
        pause: Seconds before the second attempt; doubled for each further one.

    Raises:
        DataError: The server cannot be reached, or does not have the file that is wanted.
        OutputError: The folder cannot be written or the disk is too full.
    """
    if urllib.parse.urlsplit(server).scheme not in ("http", "https"):
        raise DataError(f"{server} is not an address that begins with http:// or https://")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for archive in archives:
            _fetch_one(folder, archive, f"{server.rstrip('/')}/{archive.path}", keep_archives, pause)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error


def _fetch_one(folder: Path, archive: Archive, url: str, keep_archive: bool, pause: float) -> None:
    if archive.is_unpacked(folder):
        logger.info("%s: already in %s", archive.part, folder)
        return
    target = folder / archive.name
    download(url, target, archive.size, archive.md5, pause)
    unpack(target, folder, archive.inside)
    if not archive.is_unpacked(folder):
        wanted = ", ".join([*archive.files, *(f"{count} files in {name}" for name, count in archive.counts)])
        raise DataError(
            f"{target} is whole but lacks what it should contain ({wanted}): {url} is another archive"
        )
    if not keep_archive:
        target.unlink()
    logger.info("%s: complete in %s", archive.part, folder)


def download(
    url: str, target: Path, size: int | None = None, md5: str | None = None, pause: float = 1.0
) -> None:
    """Downloads a file; what arrived before an interruption is kept in `target`.part and continued from.

    Args:
        url: The address.
        target: The file; it only appears once it is complete and checked.
        size: The length that it must have.
        md5: The sum that it must have; without it, a zip file's own checks are made.
        pause: Seconds before the second attempt; doubled for each further one.

    Raises:
        DataError: The server fails again and again, or its file is not the one that is wanted.
        OutputError: The disk is too full, or the file cannot be written.
    """
    part = target.with_name(target.name + ".part")
    if target.is_file():
        os.replace(target, part)  # an earlier one: checked as if it had just arrived
    total, failures = size, 0
    while total is None or _length(part) != total:
        before, reason = _length(part), "the connection broke off"
        try:
            total = _transfer(url, part, size)
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        if _length(part) == total:
            break
        failures = 0 if _length(part) > before else failures + 1
        if failures >= _ATTEMPTS:
            raise DataError(
                f"{url} ended {failures} times at {_length(part)} of {total or 'an unknown number of'} bytes "
                f"({reason}): try again later, or another server with --mirror"
            )
        time.sleep(min(pause * 2**failures, 60))
    _check(part, url, md5)
    os.replace(part, target)


def _transfer(url: str, part: Path, size: int | None) -> int:
    """One request that continues `part`; returns the whole file's length, whether or not all of it came."""
    offset = _length(part)
    with _request(url, offset, part) as response:
        offset, total = _extent(response, offset)
        if size is not None and total is not None and total != size:
            raise DataError(f"{url} has {total} bytes, but the right file has {size}: is --mirror right?")
        _require_space(part.parent, (total or 0) - offset)
        progress = _Progress(part.stem, total, offset)
        with _written(part, offset) as write:
            while chunk := response.read(_CHUNK):
                write(chunk)
                progress.add(len(chunk))
        progress.end()
    return _length(part) if total is None else total


def _request(url: str, offset: int, part: Path) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "ppfcos", "Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            part.unlink()  # as long as the server's file, or longer: not a beginning of it
            raise ConnectionError("the server has no more than what is here") from None
        if error.code in _TRY_AGAIN:
            raise
        raise DataError(
            f"{url}: the server answers {error.code} {error.reason}: is --mirror right?"
        ) from None


@contextlib.contextmanager
def _written(path: Path, offset: int) -> Iterator[Callable[[bytes], None]]:
    """A function that appends to a file from `offset` on. Its errors are the disk's and not the network's."""
    try:
        stream = open(path, "r+b" if offset else "wb")  # noqa: SIM115 (closed below)
        stream.truncate(offset)
        stream.seek(offset)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None

    def write(chunk: bytes) -> None:
        try:
            stream.write(chunk)
            stream.flush()
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from None

    with stream:
        yield write


def _extent(response: http.client.HTTPResponse, offset: int) -> tuple[int, int | None]:
    """Where in the file the answer begins, and the length of the whole file, if it is said."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        try:
            span, total = response.headers["Content-Range"].split(" ", 1)[1].split("/")
            if int(span.split("-")[0]) == offset:
                return offset, int(total) if total != "*" else None
        except (AttributeError, IndexError, ValueError):
            pass
        raise ConnectionError("the server sends another range than the one asked for")
    length = response.headers["Content-Length"]
    return 0, int(length) if length and length.isdigit() else None


def _check(part: Path, url: str, md5: str | None) -> None:
    """Compares the sum, or has the zip file check itself; removes a wrong file, to start anew."""
    if md5 is None:
        wrong = _fault_in_zip(part)
    else:
        found = _md5_of(part)
        wrong = f"its MD5 sum is {found}, not {md5}" if found != md5 else None
    if wrong:
        part.unlink()
        raise DataError(
            f"{url} arrived damaged ({wrong}) and was removed: run again, or use another --mirror"
        )


def _md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    progress = _Progress(f"checking {path.stem}", _length(path), 0)
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            progress.add(len(chunk))
    progress.end()
    return digest.hexdigest()


def _fault_in_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except _FAULTS_OF_ZIP_FILES as error:
        return str(error)
    return f"{broken} in it is broken" if broken else None


def unpack(archive: Path, folder: Path, inside: str = "") -> None:
    """Unpacks a zip file. A file appears under its name once it is whole; whole ones are not redone.

    Args:
        archive: The zip file.
        folder: Where to.
        inside: The folder in it that is unpacked, without its name; empty: all of it.

    Raises:
        DataError: The archive is damaged, or a path in it leads out of the folder; then nothing is unpacked.
        OutputError: The disk is too full.
        OSError: A file cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as contents:
            members = [member for member in contents.infolist() if not member.is_dir()]
            places = [(member, _parts(member, archive)) for member in members]
            top = PurePosixPath(inside).parts
            targets = [
                (member, folder.joinpath(*parts[len(top) :]))
                for member, parts in places
                if parts[: len(top)] == top
            ]
            left = [(member, target) for member, target in targets if not _is_whole(target, member)]
            unpacked_size = sum(member.file_size for member, _ in left)
            _require_space(folder, unpacked_size)
            progress = _Progress(f"unpacking {archive.name}", unpacked_size, 0)
            for member, target in left:
                _unpack_one(contents, member, target)
                progress.add(member.file_size)
            progress.end()
    except _FAULTS_OF_ZIP_FILES as error:
        raise DataError(f"{archive} is damaged ({error}): remove it and run again") from None


def _parts(member: zipfile.ZipInfo, archive: Path) -> tuple[str, ...]:
    """The folders and the name of a file in a zip file, which lead nowhere else."""
    name = member.filename.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or ":" in parts[0]:
        raise DataError(
            f"{archive} wants to write outside its folder ({member.filename}): nothing was unpacked"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(
            f"{archive} contains a link ({member.filename}), which could lead anywhere: nothing was unpacked"
        )
    return parts


def _is_whole(target: Path, member: zipfile.ZipInfo) -> bool:
    return target.is_file() and _length(target) == member.file_size


def _unpack_one(contents: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.part")
    try:
        with contents.open(member) as source, open(unfinished, "wb") as stream:
            shutil.copyfileobj(source, stream, _CHUNK)
        os.replace(unfinished, target)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder} needs {needed / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free: make room"
        )


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _number_of_files(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(not entry.name.startswith(".") and entry.is_file() for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return 0


class _Progress:
    """Shows on standard error how far something is: in place on a terminal, else a line every tenth.

    Args:
        name: What is going on.
        total: Bytes in all, if known.
        done: Bytes at the beginning.
    """

    def __init__(self, name: str, total: int | None, done: int):
        self._name, self._total, self._start, self._done = name, total, done, done
        self._terminal = sys.stderr.isatty()
        self._began = self._shown_at = time.monotonic()
        self._shown_step = self._step()

    def add(self, further: int) -> None:
        """Counts further bytes, and shows it if it is time to."""
        self._done += further
        now = time.monotonic()
        if now - self._shown_at < 0.5 if self._terminal else self._step() == self._shown_step:
            return
        self._shown_at, self._shown_step = now, self._step()
        share = f"{self._done / 1e6:.0f} MB"
        if self._total:
            share = f"{100 * self._done / self._total:.0f} % of {self._total / 1e6:.0f} MB"
        speed = (self._done - self._start) / max(now - self._began, 1e-3) / 1e6
        line = f"{self._name}: {share}, {speed:.0f} MB/s"
        print(
            f"\r{line}  " if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        """Leaves the line on a terminal."""
        if self._terminal and self._shown_at > self._began:
            print(file=sys.stderr)

    def _step(self) -> int:
        return 10 * self._done // self._total if self._total else self._done >> 28
