"""Write a configuration with its base files and overrides as one file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from ppfcos.config.files import EXPONENT_NUMBER, Section
from ppfcos.config.keys import PLAIN_KEYS
from ppfcos.config.workspace import read_checked

DEFAULT = "default"
INDENT = "  "
_WIDEST_VALUE = 60  # columns; the origins of longer values are not aligned


def annotated_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> str:
    """Return a configuration with its base files and overrides as YAML.

    A comment after each value names its origin: `file:line`, `-o`, or `default` for plain keys. Arguments of
    classes are listed if they are set. Raises the ConfigErrors of `load_config`.
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
    """Yield (text, origin) of a key and all keys below it; the origin of a section is empty."""
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


class _Dumper(yaml.SafeDumper):
    """Plain types of YAML; text that the configuration reader would take for a number is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # write shared values twice instead of *id001


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT_NUMBER, list("-+.0123456789"))


def resolved_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a configuration from `load_config`: plain keys, then the sections that set arguments."""
    plain = {key: _copy(value) for key, value in cfg.items() if not isinstance(value, Mapping)}
    sections = {key: _copy(value) for key, value in cfg.items() if isinstance(value, Mapping) and value}
    return {**plain, **sections}


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, (list, tuple)) else value


def config_text(resolved: Mapping[str, Any]) -> str:
    """Return YAML from which `load_config` reads the same configuration, under any file name.

    Args:
        resolved: from `resolved_config`.
    """
    return yaml.dump(dict(resolved), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def value_text(value: Any) -> str:
    """Format a value on one line, as YAML in flow style."""
    text = yaml.dump(
        _copy(value),
        Dumper=_Dumper,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=10**6,
    )
    return text.removesuffix("\n").removesuffix("\n...")
