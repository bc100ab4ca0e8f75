"""Reading files that somebody else named, whatever lies there under the name."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def require_regular(path: str | Path) -> None:
    """Sees that something is a file: a pipe would be waited for, and a device such as /dev/zero has no end.

    Raises:
        OSError: It is none, or is not there.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))


def read_bytes(path: str | Path) -> bytes:
    """The content of a file.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    require_regular(path)
    return Path(path).read_bytes()


def read_text(path: str | Path) -> str:
    """The content of a text file in UTF-8, with or without a mark of that at its beginning.

    Raises:
        OSError: It cannot be read, or is no regular file.
        UnicodeDecodeError: It is not in UTF-8.
    """
    return read_bytes(path).decode("utf-8-sig")
