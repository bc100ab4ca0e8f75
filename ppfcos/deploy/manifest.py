"""Reading a file of keys, each checked as it is read: a wrong one is named, with what it may be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ppfcos.errors import BundleError
from ppfcos.regular_files import read_text

REQUIRED = object()


class Section:
    """The keys of a manifest, or of a part of it.

    Args:
        values: what was read.
        where: the file and the keys above these, for messages.

    Raises:
        BundleError: there are no keys.
    """

    def __init__(self, values: Any, where: str):
        if not isinstance(values, dict):
            raise BundleError(f"{where}: holds no keys; export the bundle again")
        self.values = values
        self.where = where

    def text(self, key: str, choices: Sequence[str] = (), default: Any = REQUIRED) -> str:
        """A text, one of `choices` where there are any; `default` where it is absent or null."""
        value = self._value(key, default)
        if value is default:
            return value
        if not isinstance(value, str) or not value or (choices and value not in choices):
            self._refuse(key, f"one of {', '.join(choices)}" if choices else "a text")
        return value

    def whole(self, key: str, least: int, default: Any = REQUIRED) -> int:
        """A whole number from `least` on; `default` where it is absent or null."""
        value = self._value(key, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self._refuse(key, f"a whole number from {least}")
        return value

    def number(self, key: str, default: Any = REQUIRED) -> float:
        """A number; `default` where it is absent or null."""
        value = self._value(key, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse(key, "a number")
        return float(value)

    def flag(self, key: str, default: Any = REQUIRED) -> bool:
        """true or false; `default` where it is absent or null."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self._refuse(key, "true or false")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of positive numbers."""
        value = self._value(key, REQUIRED)
        listed = isinstance(value, list) and value
        if not listed or not all(
            isinstance(each, (int, float)) and not isinstance(each, bool) and each > 0 for each in value
        ):
            self._refuse(key, "a list of positive numbers")
        return tuple(float(each) for each in value)

    def section(self, key: str) -> Section:
        """The keys below a key."""
        return Section(self._value(key, REQUIRED), f"{self.where}: {key}")

    def sections(self, key: str) -> list[Section]:
        """A list of parts with keys of their own, at least one."""
        value = self._value(key, REQUIRED)
        if not isinstance(value, list) or not value:
            self._refuse(key, "a list")
        return [Section(each, f"{self.where}: {key}[{i}]") for i, each in enumerate(value)]

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is REQUIRED:
            raise BundleError(f"{self.where}: the key `{key}` is missing; export the bundle again")
        return default

    def _refuse(self, key: str, wanted: str) -> None:
        raise BundleError(
            f"{self.where}: `{key}` is {self.values.get(key)!r}, not {wanted}; export the bundle again"
        )


def read_manifest(path: Path) -> Section:
    """Read a YAML file of keys.

    Raises:
        BundleError: it cannot be read, or holds something else.
    """
    try:
        values = yaml.safe_load(read_text(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{path}: cannot be read ({reason}); export the bundle again") from error
    return Section(values, str(path))
