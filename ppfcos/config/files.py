"""Read configuration files, their base files and overrides into sections that record the origin of each key.

This module knows nothing of the meaning of keys.
"""

from __future__ import annotations

import os
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ppfcos.config.keys import TEXTS
from ppfcos.errors import ConfigError, hint
from ppfcos.fileio import read_bytes
from ppfcos.yaml_files import load_yaml

BASE_KEY = "_BASE_"
OVERRIDE = "-o"  # origin of keys that are set on the command line
EXPONENT_NUMBER = re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")  # 1e-4

# Limits of a configuration. The largest one in configs/ has 20 files and 1,000 values.
MAX_FILE_BYTES = 1 << 20
MAX_NODES = 20_000  # of a file; an alias counts as the values that it stands for
MAX_FILES = 100
MAX_COPIED_NODES = 200_000  # of all base files; a file counts each time it is inherited
MAX_KEY_LENGTH = 100
MAX_KEY_PARTS = 40  # of the key of an override


class Section(dict):
    """A mapping of a configuration.

    Attributes:
        origins: `file:line` or `-o` of each key.
        texts: each value as it is written, if it is a scalar or a list of scalars.
        tagged: it was written as !Name; as in PaddleDetection, it replaces a section instead of merging.
    """

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[str, str] = {}
        self.texts: dict[str, Any] = {}
        self.tagged = False

    def put(self, key: str, value: Any, origin: str, text: Any = None) -> None:
        """Set a key, its origin and its text."""
        self[key] = value
        self.origins[key] = origin
        self.texts[key] = text


class _Loader(yaml.SafeLoader):
    """Plain types of YAML, mappings as Sections, and !Name for the classes that may be tagged.

    Dates are text, and 1e-4 is a number, unlike in YAML 1.1.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar = {
        f"tag:yaml.org,2002:{name}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{name}"]
        for name in ("null", "bool", "int", "float", "str", "seq")
    }

    source = ""  # both are set in a subclass for each text
    named_classes: ClassVar[tuple[str, ...]] = ()

    def origin(self, node: yaml.Node) -> str:
        """`file:line` of a node."""
        return _origin(self.source, node.start_mark)

    def compose_scalar_node(self, anchor: str | None) -> yaml.ScalarNode:
        """Refuse control characters, which a terminal would obey, and NaN."""
        node = super().compose_scalar_node(anchor)
        if _has_control_characters(node.value):
            raise ConfigError(
                f"{self.origin(node)}: {quoted(node.value)} contains a control character: remove it"
            )
        if node.tag == "tag:yaml.org,2002:float" and node.value.lower() == ".nan":
            raise ConfigError(f"{self.origin(node)}: .nan is not a number")
        return node

    def section(self, node: yaml.Node) -> Section:
        """Construct a Section; a key that is not text or occurs twice is a ConfigError."""
        own_keys: dict[str, str] = {}
        for key_node, _ in node.value:
            origin = self.origin(key_node)
            is_scalar = isinstance(key_node, yaml.ScalarNode)
            is_text = is_scalar and key_node.tag.rpartition(":")[2] in ("str", "merge")
            if not is_text or len(key_node.value) > MAX_KEY_LENGTH:
                shown = quoted(key_node.value) if is_scalar else "a list or a mapping"
                raise ConfigError(
                    f"{origin}: a key should be text of at most {MAX_KEY_LENGTH} characters, "
                    f"and {shown} is not"
                )
            if key_node.value in own_keys:
                raise ConfigError(
                    f"{origin}: '{key_node.value}' occurs twice, first at {own_keys[key_node.value]}"
                )
            own_keys[key_node.value] = origin
        self.flatten_mapping(node)
        section = Section()
        for key_node, value_node in node.value:
            value = self.construct_object(value_node, deep=True)
            section.put(key_node.value, value, self.origin(key_node), _text_of(value_node))
        return section

    def named_section(self, node: yaml.Node) -> Section:
        """Construct {name: Name, ...} from !Name {...}; other tags are a ConfigError."""
        name, origin = node.tag.lstrip("!"), self.origin(node)
        if not node.tag.startswith("!") or name not in self.named_classes:
            tag = quoted(node.tag.replace("tag:yaml.org,2002:", "!!"))[1:-1]
            raise ConfigError(
                f"{origin}: the tag {tag} is refused: only schedules and data sets can be tags"
                f"{hint(name, self.named_classes)}"
            )
        if not isinstance(node, yaml.MappingNode) and node.value != "":
            raise ConfigError(f"{origin}: write the arguments of {node.tag} as a mapping")
        section = Section()
        section.tagged = True
        section.put("name", name, origin)
        arguments = self.section(node) if isinstance(node, yaml.MappingNode) else Section()
        if "name" in arguments:
            raise ConfigError(f"{arguments.origins['name']}: {node.tag} already sets `name`: remove it")
        _merge(section, arguments)
        return section


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.section)
_Loader.add_constructor(None, _Loader.named_section)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT_NUMBER, list("-+.0123456789"))


def _text_of(node: yaml.Node) -> Any:
    """The characters of a scalar that is not null, or of the scalars of a list; None for other nodes."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag.endswith(":null") else node.value
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [item.value for item in node.value]
    return None


def _has_control_characters(text: str) -> bool:
    """Whether there are control characters, lone surrogates, or line or paragraph separators."""
    return not text.isprintable() and any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text
    )


def quoted(value: Any) -> str:
    """`repr` of a value for a message, cut to 120 characters."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}...{text[-1]}"


def _origin(source: str, mark: yaml.Mark | None) -> str:
    return source if source == OVERRIDE or mark is None else f"{source}:{mark.line + 1}"


def _parse(text: str, source: str, named_classes: Iterable[str]) -> Any:
    """Parse YAML into Sections, lists and plain values."""
    names = {"source": source, "named_classes": tuple(named_classes)}
    try:
        return load_yaml(text, type("_TextLoader", (_Loader,), names), max_nodes=MAX_NODES)
    except yaml.YAMLError as error:
        origin = _origin(source, getattr(error, "problem_mark", None))
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise ConfigError(f"{origin}: this is not YAML: {quoted(' '.join(problem.split()))[1:-1]}") from error


class _Files:
    """Files with their base files, each parsed once."""

    def __init__(self, named_classes: Iterable[str]) -> None:
        self._named_classes = tuple(named_classes)
        self._merged: dict[str, Section] = {}  # by real path: a file merged over its base files
        self._copied_nodes = 0

    def read(self, path: str, including: tuple[str, ...] = ()) -> Section:
        """Return a file merged over its base files; `including` are the files that inherit from it."""
        real_path = os.path.realpath(path)
        if real_path in map(os.path.realpath, including):
            chain = [*including, path]
            chain = [*chain[:3], "...", path] if len(chain) > 8 else chain
            raise ConfigError(f"{path}: its {BASE_KEY} leads back to itself: {' -> '.join(chain)}")
        if real_path not in self._merged:
            if len(self._merged) + len(including) >= MAX_FILES:
                raise ConfigError(f"{path}: a configuration may have at most {MAX_FILES} base files")
            config = _parse_file(path, self._named_classes)
            _resolve_imports(path, config)
            merged = Section()
            for base in _base_files(path, config):
                self._merge(merged, self.read(base, (*including, path)), path)
            self._merge(merged, config, path)
            self._merged[real_path] = merged
        return self._merged[real_path]

    def _merge(self, target: Section, source: Section, path: str) -> None:
        self._copied_nodes += _count_nodes(source)
        if self._copied_nodes > MAX_COPIED_NODES:
            raise ConfigError(f"{path}: it inherits more than {MAX_COPIED_NODES} values in all")
        _merge(target, source)


def _count_nodes(value: Any) -> int:
    inner = value.values() if isinstance(value, Section) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count_nodes, inner))


def _parse_file(path: str, named_classes: Iterable[str]) -> Section:
    try:
        text = read_bytes(path, MAX_FILE_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: this configuration file cannot be read: {error}") from error
    config = _parse(text, path, named_classes)
    if config is not None and not isinstance(config, Section):
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values")
    return Section() if config is None else config


def shipped_folder() -> Path:
    """Return the folder of the configurations that come with this package, in a checkout or installed."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_file(path: str) -> str:
    """Return `path`, or the configuration of that name that comes with this package if there is no such file.

    The name may lack `.yml` and may start with `configs/`.
    """
    if os.path.exists(path) or os.path.isabs(path):
        return path
    name = Path(path[:-4] if path.endswith(".yml") else path)
    name = Path(*name.parts[1:]) if name.parts[:1] == ("configs",) else name
    shipped = shipped_folder() / f"{name}.yml"
    return str(shipped) if ".." not in name.parts and shipped.is_file() else path


def read_file(path: str, named_classes: Iterable[str]) -> Section:
    """Return a file merged over its base files.

    Args:
        named_classes: the classes that may be written as !Name.

    Raises:
        ConfigError: a file is missing, unreadable, not a mapping, its own base, or too large.
    """
    return _Files(named_classes).read(path)


def _relative_to(path: str, names: Iterable[str]) -> list[str]:
    """Join names to the folder of the file that holds them."""
    folder = os.path.dirname(path)
    return [os.path.normpath(os.path.join(folder, os.path.expanduser(name))) for name in names]


def _base_files(path: str, config: Section) -> list[str]:
    """Remove `_BASE_` from `config` and return the paths in it."""
    bases, origin = config.pop(BASE_KEY, []), config.origins.get(BASE_KEY)
    bases = [bases] if isinstance(bases, str) else bases
    if not TEXTS.accepts(bases) or len(bases) > MAX_FILES:
        raise ConfigError(f"{origin}: {BASE_KEY} should be a path or a list of at most {MAX_FILES} paths")
    paths = _relative_to(path, bases)
    for base, base_path in zip(bases, paths):
        if not os.path.isfile(base_path) and find_file(base) == base:
            raise ConfigError(f"{origin}: {BASE_KEY} names {base}, but {base_path} is not a file")
    return [each if os.path.isfile(each) else find_file(base) for base, each in zip(bases, paths)]


def _resolve_imports(path: str, config: Section) -> None:
    """Make the paths under `imports` relative to the working directory."""
    if TEXTS.accepts(config.get("imports")):
        config["imports"] = _relative_to(path, config["imports"])


def _merge(target: Section, source: Section) -> None:
    """Write `source` over `target` as PaddleDetection does: sections merge, other values are replaced.

    A section with another `name` describes another object, so it replaces the section.
    """
    for key, value in source.items():
        present = target.get(key)
        is_section = isinstance(present, Section) and isinstance(value, Section) and not value.tagged
        if is_section and value.get("name", present.get("name")) == present.get("name"):
            _merge(present, value)
        else:
            target.put(key, _copy(value), source.origins[key], _copy(source.texts[key]))


def _copy(value: Any) -> Any:
    """Copy without sharing: with an alias in a file, two keys share one value."""
    if isinstance(value, Section):
        copy = Section()
        copy.tagged = value.tagged
        _merge(copy, value)
        return copy
    return [_copy(item) for item in value] if isinstance(value, list) else value


def apply_override(config: Section, text: str, named_classes: Iterable[str]) -> None:
    """Apply one `-o key=value`. Dots separate the parts of the key; whole numbers index lists.

    Raises:
        ConfigError: it is malformed, or the key does not exist in a list or a plain value.
    """
    key, equals, value_text = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    text = quoted(text)[1:-1]
    if not equals or not all(parts):
        raise ConfigError(f"{OVERRIDE} {text}: write it as key=value or section.key=value")
    if len(parts) > MAX_KEY_PARTS or max(map(len, parts)) > MAX_KEY_LENGTH or _has_control_characters(key):
        raise ConfigError(
            f"{OVERRIDE} {text}: a key has at most {MAX_KEY_PARTS} parts, each of at most {MAX_KEY_LENGTH} "
            "printable characters"
        )
    try:
        change = _parse("value:\n" + textwrap.indent(value_text, " "), OVERRIDE, named_classes)
    except ConfigError as error:
        raise ConfigError(f"{OVERRIDE} {text}{str(error)[len(OVERRIDE) :]}") from error
    holder: Any = config
    for depth, part in enumerate(parts[:-1], start=1):
        holder = _step_into(holder, part, parts[:depth])
    if isinstance(holder, list):
        holder[_index(holder, parts[-1], parts[:-1])] = change["value"]
    else:
        named = Section()
        named.put(parts[-1], change["value"], OVERRIDE, change.texts["value"])
        _merge(holder, named)


def _step_into(holder: Any, part: str, path: Sequence[str]) -> Any:
    """Return the section or list under `part`; create a section if there is none."""
    key = _index(holder, part, path[:-1]) if isinstance(holder, list) else part
    inner = holder[key] if isinstance(holder, list) else holder.get(key)
    if inner is None:
        inner = Section()
        if isinstance(holder, list):
            holder[key] = inner
        else:
            holder.put(key, inner, OVERRIDE)
    if not isinstance(inner, (Section, list)):
        cure = f": set those of {inner} itself" if isinstance(inner, str) and inner.isidentifier() else ""
        raise ConfigError(f"{OVERRIDE}: {'.'.join(path)} is {quoted(inner)}, which has no keys{cure}")
    return inner


def _index(holder: list, part: str, path: Sequence[str]) -> int:
    if not part.isdecimal() or len(part) > 6 or int(part) >= len(holder):
        size = f"a list of {len(holder)}, counted from 0" if holder else "an empty list"
        raise ConfigError(f"{OVERRIDE}: '{part}' is not an index of {'.'.join(path)}, which is {size}")
    return int(part)
