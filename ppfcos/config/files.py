"""Configuration files and overrides into one tree of sections, in which every key knows where it was written.

Nothing here knows what the keys mean.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import yaml

from ppfcos.config.keys import TEXTS
from ppfcos.errors import ConfigError
from ppfcos.hints import hint

BASE_KEY = "_BASE_"
OVERRIDE = "-o"  # where a key was written that no file holds
EXPONENT_NUMBER = re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")  # 1e-4


class Section(dict):
    """A mapping read from a file that remembers where each of its keys was written.

    Attributes:
        origins: `file:line` or `-o`, by key.
        tagged: it was written as !Name, which PaddleDetection takes for a whole object: it replaces, never
            merges.
    """

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[str, str] = {}
        self.tagged = False

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set a key and remember who did."""
        self[key] = value
        self.origins[key] = origin


class _Loader(yaml.SafeLoader):
    """YAML's plain types, mappings as Sections, and !Name for the classes that may be named so; nothing else.

    Dates stay text, and 1e-4 is a number, which it is not in YAML 1.1.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar = {
        f"tag:yaml.org,2002:{name}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{name}"]
        for name in ("null", "bool", "int", "float", "str", "seq")
    }

    def __init__(self, text: str, source: str, named_classes: Iterable[str]) -> None:
        super().__init__(text)
        self._source = source
        self._named_classes = tuple(named_classes)

    def origin(self, mark: yaml.Mark) -> str:
        """Where a key or a value was written."""
        return _origin(self._source, mark)

    def section(self, node: yaml.Node) -> Section:
        """A mapping node as a Section.

        Raises:
            ConfigError: a key is not text, or is there twice.
        """
        own_keys: dict[str, str] = {}
        for key_node, _ in node.value:
            origin = self.origin(key_node.start_mark)
            if not _is_text(key_node):
                raise ConfigError(f"{origin}: a key should be text, and {_source_text(key_node)} is not")
            if key_node.value in own_keys:
                raise ConfigError(
                    f"{origin}: '{key_node.value}' is here twice, first at {own_keys[key_node.value]}"
                )
            own_keys[key_node.value] = origin
        self.flatten_mapping(node)
        section = Section()
        for key_node, value_node in node.value:
            value = self.construct_object(value_node, deep=True)
            section.put(key_node.value, value, self.origin(key_node.start_mark))
        return section

    def named_section(self, node: yaml.Node) -> Section:
        """!Name {...} as {name: Name, ...}.

        Raises:
            ConfigError: the tag names anything but a schedule or a dataset.
        """
        name, origin = node.tag.lstrip("!"), self.origin(node.start_mark)
        if not node.tag.startswith("!") or name not in self._named_classes:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise ConfigError(
                f"{origin}: the tag {tag} is refused: only schedules and datasets may be written so"
                f"{hint(name, self._named_classes)}"
            )
        if not isinstance(node, yaml.MappingNode) and node.value != "":
            raise ConfigError(f"{origin}: write the arguments of {node.tag} as a mapping")
        section = Section()
        section.tagged = True
        section.put("name", name, origin)
        arguments = self.section(node) if isinstance(node, yaml.MappingNode) else Section()
        if "name" in arguments:
            raise ConfigError(f"{arguments.origins['name']}: {node.tag} is the name already")
        for key, value in arguments.items():
            section.put(key, value, arguments.origins[key])
        return section


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.section)
_Loader.add_constructor(None, _Loader.named_section)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT_NUMBER, list("-+.0123456789"))


def _is_text(key_node: yaml.Node) -> bool:
    return isinstance(key_node, yaml.ScalarNode) and key_node.tag.rpartition(":")[2] in ("str", "merge")


def _source_text(node: yaml.Node) -> str:
    return f"'{node.value}'" if isinstance(node, yaml.ScalarNode) else "a list or a mapping"


def _origin(source: str, mark: yaml.Mark | None) -> str:
    return source if source == OVERRIDE or mark is None else f"{source}:{mark.line + 1}"


def _parse(text: str, source: str, named_classes: Iterable[str]) -> Any:
    """A YAML text as Sections, lists and plain values.

    Raises:
        ConfigError: it is not YAML, or it holds what a configuration may not hold.
    """
    try:
        return _Loader(text, source, named_classes).get_single_data()
    except yaml.YAMLError as error:
        origin = _origin(source, getattr(error, "problem_mark", None))
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise ConfigError(f"{origin}: this is not YAML: {problem}") from error


def read_file(path: str, named_classes: Iterable[str], including: tuple[str, ...] = ()) -> Section:
    """A file merged over its base files.

    Args:
        path: the file.
        named_classes: the classes that may be written as !Name.
        including: the files that led here, the outermost first.

    Raises:
        ConfigError: a file is missing, unreadable, no mapping, or its own base.
    """
    if any(os.path.samefile(path, file) for file in including):
        chain = " -> ".join((*including, path))
        raise ConfigError(f"{path}: its {BASE_KEY} leads back to itself: {chain}")
    try:
        with open(path, encoding="utf-8") as file:
            config = _parse(file.read(), path, named_classes)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: this configuration file cannot be read: {error}") from error
    if config is None:
        config = Section()
    if not isinstance(config, Section):
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values")
    merged = Section()
    for base in _base_files(path, config):
        _merge(merged, read_file(base, named_classes, (*including, path)))
    _merge(merged, config)
    return merged


def _base_files(path: str, config: Section) -> list[str]:
    """Take `_BASE_` out of what was read from `path` and give the paths that it names."""
    bases, origin = config.pop(BASE_KEY, []), config.origins.get(BASE_KEY)
    bases = [bases] if isinstance(bases, str) else bases
    if not TEXTS.accepts(bases):
        raise ConfigError(f"{origin}: {BASE_KEY} should be a path or a list of paths")
    folder = os.path.dirname(path)
    paths = [os.path.normpath(os.path.join(folder, os.path.expanduser(base))) for base in bases]
    for base, base_path in zip(bases, paths):
        if not os.path.isfile(base_path):
            raise ConfigError(f"{origin}: {BASE_KEY} names {base}, but there is no file {base_path}")
    return paths


def _merge(target: Section, source: Section) -> None:
    """Write `source` over `target` as PaddleDetection does: mappings key by key, everything else as a whole.

    A mapping whose `name` differs describes another object, so that it replaces the one before.
    """
    for key, value in source.items():
        present = target.get(key)
        if _describe_one_object(present, value):
            _merge(present, value)
        else:
            target.put(key, _copy(value), source.origins[key])


def _describe_one_object(present: Any, value: Any) -> bool:
    if not isinstance(present, Section) or not isinstance(value, Section) or value.tagged:
        return False
    return "name" not in value or value["name"] == present.get("name")


def _copy(value: Any) -> Any:
    """A copy that shares nothing, though an alias (*name) in a file makes two keys share one value."""
    if isinstance(value, Section):
        copy = Section()
        copy.tagged = value.tagged
        for key, item in value.items():
            copy.put(key, _copy(item), value.origins[key])
        return copy
    return [_copy(item) for item in value] if isinstance(value, list) else value


def apply_override(config: Section, text: str, named_classes: Iterable[str]) -> None:
    """Carry out one `-o key=value`; the key's parts are joined by dots, whole numbers index lists.

    Raises:
        ConfigError: it is malformed, or the key leads nowhere.
    """
    key, equals, value_text = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"{OVERRIDE} {text}: write it as key=value or section.key=value")
    try:
        value = _parse(value_text, OVERRIDE, named_classes)
    except ConfigError as error:
        raise ConfigError(f"{OVERRIDE} {text}{str(error)[len(OVERRIDE) :]}") from error
    holder: Any = config
    for depth, part in enumerate(parts[:-1], start=1):
        holder = _step_into(holder, part, parts[:depth])
    if isinstance(holder, list):
        holder[_index(holder, parts[-1], parts[:-1])] = value
    else:
        change = Section()
        change.put(parts[-1], value, OVERRIDE)
        _merge(holder, change)


def _step_into(holder: Any, part: str, path: Sequence[str]) -> Any:
    """The section or list under `part`, made if it is not there yet."""
    if isinstance(holder, list):
        index = _index(holder, part, path[:-1])
        if holder[index] is None:
            holder[index] = Section()
        inner = holder[index]
    else:
        if holder.get(part) is None:
            holder.put(part, Section(), OVERRIDE)
        inner = holder[part]
    if not isinstance(inner, (Section, list)):
        cure = f": set those of {inner} itself" if isinstance(inner, str) and inner.isidentifier() else ""
        raise ConfigError(f"{OVERRIDE}: {'.'.join(path)} is {inner!r}, which has no keys{cure}")
    return inner


def _index(holder: list, part: str, path: Sequence[str]) -> int:
    if not part.isdigit() or int(part) >= len(holder):
        counted = f"a list of {len(holder)}, counted from 0" if holder else "an empty list"
        raise ConfigError(f"{OVERRIDE}: '{part}' is no element of {'.'.join(path)}, which is {counted}")
    return int(part)
