"""Reading a file of keys, each checked as it is read: a wrong one is named, with what it may be."""

from __future__ import annotations

import math
import reprlib
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ppfcos.errors import BundleError, one_line
from ppfcos.fileio import read_text
from ppfcos.yaml_files import MAX_BYTES, load_yaml

REQUIRED = object()
MAX_LENGTH = 1000  # of a text
LARGEST = 2**31 - 1  # of a whole number
NOT_IN_TEXT = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, separators of lines


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
        wanted = f"one of {', '.join(choices)}" if choices else "a text of one line"
        return self._checked(
            key, default, wanted, lambda value: is_text(value) and value in (choices or [value])
        )

    def whole(self, key: str, least: int, default: Any = REQUIRED, most: int = LARGEST) -> int:
        """A whole number from `least` to `most`; `default` where it is absent or null."""
        wanted = f"a whole number from {least}" + (f" to {most}" if most != LARGEST else "")
        return self._checked(key, default, wanted, lambda value: _is_whole(value) and least <= value <= most)

    def fraction(self, key: str, default: Any = REQUIRED) -> float:
        """A number from 0 to 1; `default` where it is absent or null."""
        value = self._checked(
            key, default, "a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1
        )
        return float(value)

    def flag(self, key: str, default: Any = REQUIRED) -> bool:
        """true or false; `default` where it is absent or null."""
        return self._checked(key, default, "true or false", lambda value: isinstance(value, bool))

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of positive numbers."""

        def is_list(value: Any) -> bool:
            # float32 holds them, and their products with integers of 32 bits
            return isinstance(value, list) and all(is_number(each) and 1e-30 < each < 1e25 for each in value)

        listed = self._checked(
            key, REQUIRED, "a list of positive numbers", lambda value: value and is_list(value)
        )
        return tuple(map(float, listed))

    def section(self, key: str) -> Section:
        """The keys below a key."""
        return Section(self._value(key, REQUIRED), f"{self.where}: {shown(key)}")

    def sections(self, key: str) -> list[Section]:
        """A list of parts with keys of their own, at least one."""
        value = self._checked(key, REQUIRED, "a list", lambda value: isinstance(value, list) and value)
        return [Section(each, f"{self.where}: {key}[{i}]") for i, each in enumerate(value)]

    def refuse(self, key: Any, wanted: str) -> BundleError:
        """The error that says what a key is and what it should be."""
        return BundleError(
            f"{self.where}: `{shown(key)}` is {reprlib.repr(self.values.get(key))}, not {wanted}; "
            "export the bundle again"
        )

    def _checked(self, key: str, default: Any, wanted: str, is_right: Callable[[Any], Any]) -> Any:
        value = self._value(key, default)
        if value is not default and not is_right(value):
            raise self.refuse(key, wanted)
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is REQUIRED:
            raise BundleError(f"{self.where}: the key `{shown(key)}` is missing; export the bundle again")
        return default


def is_text(value: Any) -> bool:
    """Whether it is a text that is not empty and can be shown in one line."""
    is_short = isinstance(value, str) and 0 < len(value) <= MAX_LENGTH
    return is_short and not any(unicodedata.category(each) in NOT_IN_TEXT for each in value)


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def shown(key: Any) -> str:
    """A key of the file as it is named in a message of one line."""
    return key if is_text(key) and len(key) <= 60 else reprlib.repr(key)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which PyYAML takes the last."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):  # such as `!!map x`, which PyYAML refuses
            return super().construct_mapping(node, deep)
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem="a key is not a text", problem_mark=key.start_mark
                )
            if key.value in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {shown(key.value)} is there twice", problem_mark=key.start_mark
                )
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_manifest(path: Path) -> Section:
    """Read a YAML file of keys.

    Raises:
        BundleError: it cannot be read, or holds something else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BundleError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; export the bundle again")
        values = load_yaml(read_text(path), _Loader)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); export the bundle again") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BundleError(f"{path}: cannot be read ({one_line(error)}); export the bundle again") from error
    return Section(values, str(path))
