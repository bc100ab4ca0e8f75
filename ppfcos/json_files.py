"""JSON files: read whatever lies there under the name, and written so that every reader takes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ppfcos.console import valid
from ppfcos.errors import ConfigError
from ppfcos.fileio import read_text

MAX_BYTES_VARIABLE = "PPFCOS_MAX_JSON_BYTES"
# Objects365's training annotations, the largest in common use, have about 3 GB; COCO's have 0.45 GB.
MAX_BYTES = 4 << 30


class JSONError(ValueError):
    """A file is not JSON that can be read here; the message is one line, without the file's name."""


def read_json(path: str | Path) -> Any:
    """The content of a JSON file in UTF-8.

    As Python's json, it takes NaN and Infinity, and of equal keys in an object the last.

    Args:
        path: at most MAX_BYTES, or what the environment variable PPFCOS_MAX_JSON_BYTES says.

    Raises:
        OSError: it cannot be read, is no regular file, or is too large.
        JSONError: it is not JSON in UTF-8, nested too deeply, or needs more memory than there is.
        ConfigError: the environment variable is no number.
    """
    try:
        return json.loads(read_text(path, _max_bytes()))
    except RecursionError:
        raise JSONError("it is nested too deeply") from None
    except MemoryError:
        raise JSONError("there is not enough memory to read it") from None
    except ValueError as error:  # also of another encoding, and of numbers with thousands of digits
        raise JSONError((str(error).splitlines() or ["it is not JSON"])[0]) from None


def _max_bytes() -> int:
    text = os.environ.get(MAX_BYTES_VARIABLE)
    if text is None:
        return MAX_BYTES
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ConfigError(f"{MAX_BYTES_VARIABLE} is a number of bytes, such as {MAX_BYTES}, not {text!r}")
    return int(text)


def to_json(content: Any, **options: Any) -> str:
    r"""JSON text that can be written as UTF-8.

    File names on Linux are bytes and need not be text. JSON holds text only: a byte of a name that is not
    UTF-8 is written as its value, so that Latin-1's `café.jpg` becomes `caf\xe9.jpg`.

    Args:
        content: what json.dumps takes.
        **options: of json.dumps; `ensure_ascii` is False unless it is given.

    Returns:
        The text.
    """
    text = json.dumps(content, **{"ensure_ascii": False, **options})
    return valid(text, backslash="\\\\")
