"""Read untrusted JSON files within limits; write JSON that is valid UTF-8."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ppfcos.console import valid
from ppfcos.errors import ConfigError
from ppfcos.fileio import read_text

MAX_BYTES_VARIABLE = "PPFCOS_MAX_JSON_BYTES"
# The largest common annotation file, of Objects365, has about 3 GB; COCO's has 0.45 GB.
MAX_BYTES = 4 << 30


class JSONError(ValueError):
    """A file is not JSON, or cannot be loaded. The message is one line without the name of the file."""


def read_json(path: str | Path) -> Any:
    """Load a JSON file in UTF-8 of at most MAX_BYTES, or PPFCOS_MAX_JSON_BYTES of the environment.

    NaN and Infinity are accepted, and the last of equal keys wins, as in Python's json.

    Raises:
        OSError: it cannot be read, is not a regular file, or is too large.
        JSONError: it is not JSON in UTF-8, is nested too deeply, or needs too much memory.
        ConfigError: the environment variable is not a number.
    """
    try:
        return json.loads(read_text(path, _max_bytes()))
    except RecursionError:
        raise JSONError("it is nested too deeply") from None
    except MemoryError:
        raise JSONError("there is not enough memory to read it") from None
    except ValueError as error:  # also for other encodings and numbers with thousands of digits
        raise JSONError((str(error).splitlines() or ["it is not JSON"])[0]) from None


def _max_bytes() -> int:
    text = os.environ.get(MAX_BYTES_VARIABLE)
    if text is None:
        return MAX_BYTES
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ConfigError(f"{MAX_BYTES_VARIABLE} is a number of bytes, such as {MAX_BYTES}, not {text!r}")
    return int(text)


def to_json(content: Any, **options: Any) -> str:
    r"""Return `json.dumps(content, ensure_ascii=False, **options)`, encodable as UTF-8.

    A byte of a file name that is not UTF-8 is written as its value: Latin-1's `café.jpg` becomes
    `caf\xe9.jpg`.
    """
    text = json.dumps(content, **{"ensure_ascii": False, **options})
    return valid(text, backslash="\\\\")
