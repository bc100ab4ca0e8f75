"""Reading files that somebody else named, whatever lies there under the name."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

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
