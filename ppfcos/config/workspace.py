"""A checked configuration into PaddleDetection's workspace, which builds the parts of the model from it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ppfcos import environment
from ppfcos.config.checks import Checker
from ppfcos.config.files import Section, apply_override, read_file
from ppfcos.config.keys import PLAIN_KEYS, READER_KEYS, SCHEDULES
from ppfcos.errors import ConfigError, hint


def load_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read a configuration, check it, and put it into PaddleDetection's workspace.

    The workspace holds one configuration: a second call replaces the first, and the objects that two calls
    return are the same. A call that fails leaves the workspace as it was.

    Args:
        path: the configuration file.
        overrides: as given to `-o`: `epoch=1`, `PPFCOSHead.num_convs=2`,
            `TrainReader.sample_transforms.1.Resize.target_size=[320,320]`.

    Returns:
        The workspace's configuration: every key that the files and overrides set, the defaults of PLAIN_KEYS,
        `filename` (the file's stem, which names the run), and the registered classes.

    Raises:
        ConfigError: a file is missing or malformed, a key is unknown or a value impossible. The message names
            the file and line or the override, the key, and the nearest one that exists.
    """
    path = os.fspath(path)
    checked = read_checked(path, overrides)
    stem = os.path.splitext(os.path.basename(path))[0]
    defaults = {key: plain.default for key, plain in PLAIN_KEYS.items() if plain.default is not None}
    config = {**defaults, "filename": stem, **_plain_sections(checked.config, checked.checker)}
    return _fill_workspace(config, checked.modules)


class CheckedConfig(NamedTuple):
    """A configuration that was read and checked, and is in no workspace yet.

    Attributes:
        config: its sections, which know where each key was written.
        checker: what found nothing wrong with it.
        modules: every registered class: its SchemaDict by name.
    """

    config: Section
    checker: Checker
    modules: dict[str, Any]


def read_checked(path: str, overrides: Iterable[str]) -> CheckedConfig:
    """Read a configuration and check it.

    Args:
        path: the configuration file.
        overrides: as given to `-o`.

    Returns:
        What was read.

    Raises:
        ConfigError: as `load_config`.
    """
    if os.path.isdir(path):
        raise ConfigError(f"{path}: this is a folder; name a configuration file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"{path}: this is no regular file: name a configuration file")
    if not os.path.isfile(path):
        beside = [file.name for file in Path(path).parent.glob("*.yml")]
        raise ConfigError(f"{path}: there is no such configuration file{hint(Path(path).name, beside)}")
    modules, datasets = registered_modules()
    named_classes = (*SCHEDULES, *datasets)
    config = read_file(path, named_classes)
    for text in overrides:
        apply_override(config, text, named_classes)
    checker = Checker(modules, datasets)
    checker.check(path, config)
    return CheckedConfig(config, checker, modules)


# Every class that was ever seen in the workspace, so that one that a configuration has overwritten comes
# back.
_seen_modules: dict[str, Any] = {}


def registered_modules() -> tuple[dict[str, Any], list[str]]:
    """Every registered class, PPFCOS's among them: its SchemaDict by name; and the names of the datasets."""
    with environment.quiet_imports():
        import ppdet  # noqa: F401
        from paddle.io import Dataset
        from ppdet.core.config.schema import SchemaDict
        from ppdet.core.workspace import global_config

        import ppfcos.data.datasets
        import ppfcos.modeling  # noqa: F401
    _seen_modules.update(
        {name: value for name, value in global_config.items() if isinstance(value, SchemaDict)}
    )
    datasets = []
    for name, schema in _seen_modules.items():
        registered = getattr(schema.pymodule, name)
        if isinstance(registered, type) and issubclass(registered, Dataset):
            datasets.append(name)
    return dict(_seen_modules), datasets


def _plain_sections(config: Section, checker: Checker) -> dict[str, Any]:
    """Turn a checked configuration into plain dictionaries, every module where the workspace looks for it.

    PaddleDetection creates the parts of an architecture by name, so that one that is written in place of its
    name, {name: ResNet, depth: 18}, moves to its own section.
    """
    plain = {key: _as_plain(value) for key, value in config.items()}
    architecture = config["architecture"]
    parts = plain.get(architecture) or {}
    for key, value in parts.items():
        if isinstance(value, dict) and checker.takes_module(architecture, key):
            name = value.pop("name")
            plain[name] = {**(plain.get(name) or {}), **value}
            parts[key] = name
    for reader in READER_KEYS:
        for transforms in (plain.get(reader) or {}).values():
            for element in transforms if isinstance(transforms, list) else ():
                element.update({name: {} for name, arguments in element.items() if arguments is None})
    return plain


def _as_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_plain(item) for key, item in value.items()}
    return [_as_plain(item) for item in value] if isinstance(value, list) else value


def _fill_workspace(config: dict[str, Any], modules: dict[str, Any]) -> dict[str, Any]:
    """Empty PaddleDetection's workspace but for its registered classes, and put the configuration into it."""
    from ppdet.core.workspace import global_config

    global_config.clear()
    for name, schema in modules.items():
        schema.clear()  # the user's values; the class and its defaults stay
        global_config[name] = schema
    for key, value in config.items():
        if key in modules:
            modules[key].update(value or {})
        else:
            global_config[key] = value
    return global_config
