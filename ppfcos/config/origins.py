"""A configuration with the file and line that each of its values comes from, for people to read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from ppfcos.config.files import Section
from ppfcos.config.keys import PLAIN_KEYS
from ppfcos.config.resolved import value_text
from ppfcos.config.workspace import read_checked

DEFAULT = "default"
INDENT = "  "
_WIDEST_VALUE = 60  # columns; longer ones push their own origin to the right, not everybody's


def annotated_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> str:
    """What a configuration says after inheritance and `-o`, and who said it.

    Args:
        path: the configuration file.
        overrides: as given to `-o`.

    Returns:
        YAML; behind each value, as a comment, `file:line`, `-o`, or `default` where nobody set a key that
        stands alone. The arguments of classes that nobody set are not there.

    Raises:
        ConfigError: as `ppfcos.config.load_config`.
    """
    config = read_checked(os.fspath(path), overrides).config
    unset = Section()
    for key, plain in PLAIN_KEYS.items():
        if key not in config and plain.default is not None:
            unset.put(key, plain.default, DEFAULT)
    alone = [item for item in config.items() if not isinstance(item[1], (Section, list))]
    nested = [item for item in config.items() if isinstance(item[1], (Section, list))]
    lines = [line for key, value in alone for line in _lines(key, value, config.origins[key], "")]
    lines += [line for key, value in unset.items() for line in _lines(key, value, DEFAULT, "")]
    lines += [line for key, value in nested for line in _lines(key, value, config.origins[key], "")]
    width = max((len(text) for text, origin in lines if origin and len(text) <= _WIDEST_VALUE), default=0)
    return "\n".join(f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines)


def _lines(key: str, value: Any, origin: str, indent: str) -> Iterator[tuple[str, str]]:
    """(text, origin) of a key and of all below it; the origin is empty where those below have their own."""
    if isinstance(value, Section) and value:
        yield f"{indent}{key}:", ""
        for name, inner in value.items():
            yield from _lines(name, inner, value.origins[name], indent + INDENT)
    elif isinstance(value, list) and any(isinstance(item, (Section, list)) for item in value):
        yield f"{indent}{key}:", origin
        for item in value:
            yield f"{indent}- {value_text(item)}", ""
    else:
        yield f"{indent}{key}: {value_text(value)}", origin
