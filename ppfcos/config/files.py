"""Configuration files and overrides into one tree of sections, in which every key knows where it was written.

Nothing here knows what the keys mean.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ppfcos.config.keys import TEXTS
from ppfcos.errors import ConfigError, hint
from ppfcos.fileio import require_regular
from ppfcos.yaml_files import load_yaml

BASE_KEY = "_BASE_"
OVERRIDE = "-o"  # where a key was written that no file holds
EXPONENT_NUMBER = re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")  # 1e-4

# Limits of one configuration. The largest one here has 20 files and 1,000 values.
MAX_FILE_BYTES = 1 << 20
MAX_NODES = 20_000  # of a file, aliases counted as what they stand for; of a merged file, the same
MAX_FILES = 100
MAX_BASE_DEPTH = 20  # of files that name files
MAX_COPIED_NODES = 200_000  # of all base files, each counted as often as it is inherited from
MAX_KEY_LENGTH = 100
MAX_KEY_PARTS = 40  # of the key of an override


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

    source = ""  # these two are set in a subclass for each text
    named_classes: ClassVar[tuple[str, ...]] = ()

    def origin(self, mark: yaml.Mark) -> str:
        """Where a key or a value was written."""
        return _origin(self.source, mark)

    def compose_scalar_node(self, anchor: str | None) -> yaml.ScalarNode:
        """Refuse text that a terminal would obey or that a message could not show.

        Raises:
            ConfigError: it holds a control character, or is not a number (`.nan`).
        """
        node = super().compose_scalar_node(anchor)
        if _has_control_characters(node.value):
            raise ConfigError(
                f"{self.origin(node.start_mark)}: {quoted(node.value)} holds a control character: remove it"
            )
        if node.tag == "tag:yaml.org,2002:float" and node.value.lower() == ".nan":
            raise ConfigError(f"{self.origin(node.start_mark)}: .nan is not a number")
        return node

    def section(self, node: yaml.Node) -> Section:
        """A mapping node as a Section.

        Raises:
            ConfigError: a key is not text, or is there twice.
        """
        own_keys: dict[str, str] = {}
        for key_node, _ in node.value:
            origin = self.origin(key_node.start_mark)
            if not _is_text(key_node):
                raise ConfigError(
                    f"{origin}: a key should be text of at most {MAX_KEY_LENGTH} characters, "
                    f"and {_source_text(key_node)} is not"
                )
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
        if not node.tag.startswith("!") or name not in self.named_classes:
            tag = quoted(node.tag.replace("tag:yaml.org,2002:", "!!"))[1:-1]
            raise ConfigError(
                f"{origin}: the tag {tag} is refused: only schedules and datasets may be written so"
                f"{hint(name, self.named_classes)}"
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
    is_text = isinstance(key_node, yaml.ScalarNode) and key_node.tag.rpartition(":")[2] in ("str", "merge")
    return is_text and len(key_node.value) <= MAX_KEY_LENGTH


def _source_text(node: yaml.Node) -> str:
    return quoted(node.value) if isinstance(node, yaml.ScalarNode) else "a list or a mapping"


def _has_control_characters(text: str) -> bool:
    """Whether there are control characters, lone surrogates, or separators of lines other than a space."""
    return not text.isprintable() and any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text
    )


def quoted(value: Any) -> str:
    """A value for a message: on one line, escaped, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}...{text[-1]}"


def _origin(source: str, mark: yaml.Mark | None) -> str:
    return source if source == OVERRIDE or mark is None else f"{source}:{mark.line + 1}"


def _parse(text: str, source: str, named_classes: Iterable[str]) -> Any:
    """A YAML text as Sections, lists and plain values.

    Raises:
        ConfigError: it is not YAML, or it holds what a configuration may not hold.
    """
    names = {"source": source, "named_classes": tuple(named_classes)}
    try:
        return load_yaml(text, type("_TextLoader", (_Loader,), names), max_nodes=MAX_NODES)
    except yaml.YAMLError as error:
        origin = _origin(source, getattr(error, "problem_mark", None))
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise ConfigError(f"{origin}: this is not YAML: {quoted(' '.join(problem.split()))[1:-1]}") from error


class _Files:
    """Files with their base files, each read once.

    Args:
        named_classes: the classes that may be written as !Name.
    """

    def __init__(self, named_classes: Iterable[str]) -> None:
        self._named_classes = tuple(named_classes)
        self._merged: dict[str, Section] = {}  # by its real path, a file merged over its base files
        self._copied_nodes = 0

    def read(self, path: str, including: tuple[str, ...] = ()) -> Section:
        """A file merged over its base files.

        Args:
            path: the file.
            including: the files that led here, the outermost first.
        """
        real_path = os.path.realpath(path)
        if real_path in map(os.path.realpath, including):
            raise ConfigError(f"{path}: its {BASE_KEY} leads back to itself: {_chain(including, path)}")
        if len(including) > MAX_BASE_DEPTH:
            raise ConfigError(
                f"{path}: more than {MAX_BASE_DEPTH} levels of base files: {_chain(including, path)}"
            )
        if real_path not in self._merged:
            if len(self._merged) + len(including) >= MAX_FILES:
                raise ConfigError(f"{path}: a configuration may consist of at most {MAX_FILES} files")
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


def _chain(including: tuple[str, ...], path: str) -> str:
    chain = [*including, path]
    return " -> ".join([*chain[:3], "...", chain[-1]] if len(chain) > 8 else chain)


def _count_nodes(value: Any) -> int:
    inner = value.values() if isinstance(value, Section) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count_nodes, inner))


def _parse_file(path: str, named_classes: Iterable[str]) -> Section:
    """What a file says, its base files left aside."""
    try:
        require_regular(path)
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: this configuration file cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: a configuration file may have at most {MAX_FILE_BYTES >> 20} MiB")
    config = _parse(text, path, named_classes)
    if config is None:
        config = Section()
    if not isinstance(config, Section):
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values")
    return config


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
    """A file merged over its base files.

    Args:
        path: the file.
        named_classes: the classes that may be written as !Name.

    Raises:
        ConfigError: a file is missing, unreadable, no mapping, its own base, or too large.
    """
    return _Files(named_classes).read(path)


def _base_files(path: str, config: Section) -> list[str]:
    """Take `_BASE_` out of what was read from `path` and give the paths that it names."""
    bases, origin = config.pop(BASE_KEY, []), config.origins.get(BASE_KEY)
    bases = [bases] if isinstance(bases, str) else bases
    if not TEXTS.accepts(bases) or len(bases) > MAX_FILES:
        raise ConfigError(f"{origin}: {BASE_KEY} should be a path or a list of at most {MAX_FILES} paths")
    folder = os.path.dirname(path)
    paths = [os.path.normpath(os.path.join(folder, os.path.expanduser(base))) for base in bases]
    for base, base_path in zip(bases, paths):
        if not os.path.isfile(base_path) and find_file(base) == base:
            raise ConfigError(f"{origin}: {BASE_KEY} names {base}, but {base_path} is no file")
    return [each if os.path.isfile(each) else find_file(base) for base, each in zip(bases, paths)]


def _resolve_imports(path: str, config: Section) -> None:
    """Join the paths under `imports` to the folder of the file that names them."""
    files = config.get("imports")
    if TEXTS.accepts(files):
        folder = os.path.dirname(path)
        config["imports"] = [os.path.normpath(os.path.join(folder, os.path.expanduser(f))) for f in files]


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
    text = quoted(text)[1:-1]
    if not equals or not all(parts):
        raise ConfigError(f"{OVERRIDE} {text}: write it as key=value or section.key=value")
    if len(parts) > MAX_KEY_PARTS or max(map(len, parts)) > MAX_KEY_LENGTH or _has_control_characters(key):
        raise ConfigError(
            f"{OVERRIDE} {text}: a key has at most {MAX_KEY_PARTS} parts, each of at most {MAX_KEY_LENGTH} "
            "printable characters"
        )
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
        raise ConfigError(f"{OVERRIDE}: {'.'.join(path)} is {quoted(inner)}, which has no keys{cure}")
    return inner


def _index(holder: list, part: str, path: Sequence[str]) -> int:
    if not part.isdecimal() or len(part) > 6 or int(part) >= len(holder):
        counted = f"a list of {len(holder)}, counted from 0" if holder else "an empty list"
        raise ConfigError(f"{OVERRIDE}: '{part}' is no element of {'.'.join(path)}, which is {counted}")
    return int(part)
