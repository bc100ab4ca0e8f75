"""Checked reading of `bundle.yml`: an error names the file, the key and what the key must be."""

from __future__ import annotations

import math
import reprlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ppfcos.errors import BundleError, one_line
from ppfcos.fileio import read_text
from ppfcos.yaml_files import MAX_BYTES, load_yaml

REQUIRED = object()
MAX_LENGTH = 1000  # of a text
MAX_WHOLE = 2**31 - 1
# Control characters, lone surrogates, line and paragraph separators.
FORBIDDEN_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
EXPORT_AGAIN = "export the bundle again"

Options = TypeVar("Options")


class Section:
    """The keys of a manifest, or of a part of it.

    A key that is absent or null takes its default; without a default, or with a wrong value, it is a
    `BundleError`.

    Args:
        values: the parsed YAML; anything but a mapping is a `BundleError`.
        where: the file and the keys above, for messages.
    """

    def __init__(self, values: Any, where: str):
        if not isinstance(values, dict):
            raise BundleError(f"{where}: holds no keys; {EXPORT_AGAIN}")
        self.values = values
        self.where = where

    def text(self, key: str, choices: Sequence[str] = (), default: Any = REQUIRED) -> str:
        """A one-line text, one of `choices` if there are any."""
        expected = f"one of {', '.join(choices)}" if choices else "a text of one line"
        return self._get(
            key, default, expected, lambda value: is_text(value) and value in (choices or [value])
        )

    def whole(self, key: str, least: int, default: Any = REQUIRED, most: int = MAX_WHOLE) -> int:
        """A whole number from `least` to `most`."""
        expected = f"a whole number from {least}" + (f" to {most}" if most != MAX_WHOLE else "")
        return self._get(key, default, expected, lambda value: is_whole(value, least, most))

    def scales(self, key: str) -> tuple[float, ...]:
        """A list of positive numbers that float32 holds, with their products with 32-bit integers."""

        def is_valid(value: Any) -> bool:
            return bool(value) and isinstance(value, list) and all(map(_is_scale, value))

        return tuple(map(float, self._get(key, REQUIRED, "a list of positive numbers", is_valid)))

    def section(self, key: str) -> Section:
        """The keys below a key."""
        return Section(self._value(key, REQUIRED), f"{self.where}: {shown(key)}")

    def sections(self, key: str) -> list[Section]:
        """A list of at least one section."""
        listed = self._get(key, REQUIRED, "a list", lambda value: isinstance(value, list) and value)
        return [Section(each, f"{self.where}: {key}[{i}]") for i, each in enumerate(listed)]

    def options(self, cls: type[Options]) -> Options:
        """A dataclass that checks its own fields and raises ValueError."""
        given = {field.name: self.values.get(field.name) for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValueError as error:
            raise BundleError(f"{self.where}: {error}; {EXPORT_AGAIN}") from error

    def check(self, is_valid: bool, problem: str) -> None:
        """Raise a `BundleError` with this problem unless the section is valid."""
        if not is_valid:
            raise BundleError(f"{self.where}: {problem}; {EXPORT_AGAIN}")

    def refuse(self, key: Any, expected: str) -> BundleError:
        """The error for a wrong value."""
        return BundleError(
            f"{self.where}: `{shown(key)}` is {reprlib.repr(self.values.get(key))}, not {expected}; "
            f"{EXPORT_AGAIN}"
        )

    def _get(self, key: str, default: Any, expected: str, is_valid: Callable[[Any], Any]) -> Any:
        value = self._value(key, default)
        if value is not default and not is_valid(value):
            raise self.refuse(key, expected)
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is REQUIRED:
            raise BundleError(f"{self.where}: the key `{shown(key)}` is missing; {EXPORT_AGAIN}")
        return default


def is_text(value: Any) -> bool:
    """Whether a value is a text, not empty, that prints on one line."""
    is_short = isinstance(value, str) and 0 < len(value) <= MAX_LENGTH
    return is_short and not any(unicodedata.category(each) in FORBIDDEN_CATEGORIES for each in value)


def is_whole(value: Any, least: int, most: int) -> bool:
    """Whether a value is an int (not a bool) from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_scale(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 1e-30 < value < 1e25


def shown(key: Any) -> str:
    """A key of the file as a one-line message shows it."""
    return key if is_text(key) and len(key) <= 60 else reprlib.repr(key)


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, of which PyYAML takes the last."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):  # such as `!!map x`, which PyYAML rejects
            return super().construct_mapping(node, deep)
        keys = set()
        for key, _ in node.value:
            problem = ""
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key is not a text"
            elif key.value in keys:
                problem = f"duplicate key {shown(key.value)}"
            if problem:
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_manifest(path: Path) -> Section:
    """Read a YAML file of keys; a `BundleError` if it cannot be read or holds something else."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BundleError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; {EXPORT_AGAIN}")
        values = load_yaml(read_text(path), _Loader)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {EXPORT_AGAIN}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BundleError(f"{path}: cannot be read ({one_line(error)}); {EXPORT_AGAIN}") from error
    return Section(values, str(path))
