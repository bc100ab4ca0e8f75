"""Load a checked configuration into PaddleDetection's workspace, from which models are built."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ppfcos import environment
from ppfcos.config.checks import Checker
from ppfcos.config.files import Section, apply_override, find_file, read_file, shipped_folder
from ppfcos.config.imports import IMPORTS_KEY, import_files, is_imported
from ppfcos.config.keys import PADDLEDETECTION_SECTIONS, PLAIN_KEYS, READER_KEYS, SCHEDULES, TEXTS
from ppfcos.errors import ConfigError, hint

logger = logging.getLogger(__name__)

# config.yml of a run can contain sections that its model does not use.
RECORD_START = b"# The configuration of the run of "


class Config(dict):
    """A loaded configuration, independent of other ones.

    It has every key that the files and overrides set, the defaults of PLAIN_KEYS, `filename` (the name of the
    run), and a SchemaDict for each registered class.

    Attributes:
        modules: SchemaDict of each registered class in PaddleDetection's workspace, by name.
    """

    def __init__(self, values: dict[str, Any], modules: dict[str, Any]) -> None:
        super().__init__(values)
        self.modules = modules
        for name, schema in modules.items():
            self[name] = schema.copy()  # with the class and its defaults
            self[name].clear()
            self[name].update(values.get(name) or {})


def load_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Config:
    """Read a configuration, check it, and put it into PaddleDetection's workspace.

    If it fails, the workspace is unchanged.

    Args:
        path: the configuration file, or the name of one that comes with this package.
        overrides: as given to `-o`: `epoch=1`, `PPFCOSHead.num_convs=2`,
            `TrainReader.sample_transforms.1.Resize.target_size=[320,320]`.

    Raises:
        ConfigError: a file is missing or malformed, or keys or values are wrong. `messages` has one line for
            each error: the file and line or the override, the key, and a similar valid one.
    """
    path = os.fspath(path)
    checked = read_checked(path, overrides)
    stem = os.path.splitext(os.path.basename(path))[0]
    defaults = {key: plain.default for key, plain in PLAIN_KEYS.items() if plain.default is not None}
    values = {**defaults, "filename": stem, **_plain_sections(checked.config, checked.checker)}
    config = Config(values, checked.modules)
    if config["coco_eval"] != defaults["coco_eval"]:
        logger.warning("coco_eval is no longer used: %s computes the same metrics", defaults["coco_eval"])
    use_config(config)
    return config


def use_config(config: Mapping[str, Any]) -> None:
    """Replace everything in PaddleDetection's workspace, so that `create` builds the parts of `config`.

    Args:
        config: from `load_config`; anything else leaves the workspace unchanged.
    """
    from ppdet.core.workspace import global_config

    if not isinstance(config, Config):
        return
    global_config.clear()
    for key, value in config.items():
        schema = config.modules.get(key)
        if schema is None:
            global_config[key] = _as_plain(value)
        else:
            schema.clear()
            schema.update(_as_plain(value))
            global_config[key] = schema


class CheckedConfig(NamedTuple):
    """A configuration without errors, its checker, and the SchemaDict of each registered class."""

    config: Section
    checker: Checker
    modules: dict[str, Any]


def read_checked(path: str, overrides: Iterable[str]) -> CheckedConfig:
    """Read and check a configuration; raise the ConfigErrors of `load_config`."""
    path = find_file(path)
    if os.path.isdir(path):
        raise ConfigError(f"{path}: this is a folder; name a configuration file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"{path}: this is not a regular file: name a configuration file")
    if not os.path.isfile(path):
        folder = Path(path).parent if os.path.dirname(path) else shipped_folder()
        beside = [file.name for file in folder.glob("*.yml")]
        raise ConfigError(f"{path}: there is no such configuration file{hint(Path(path).name, beside)}")
    modules, datasets = registered_modules()
    named_classes = (*SCHEDULES, *datasets)
    config = read_file(path, named_classes)
    _refuse_paddledetections(path, config)
    errors = []
    for text in overrides:
        try:
            apply_override(config, text, named_classes)
        except ConfigError as error:
            errors.append(str(error))
    files = config.get(IMPORTS_KEY)
    if TEXTS.accepts(files):
        modules.update(import_files(files, config.origins[IMPORTS_KEY]))
        datasets = _names_of_datasets(modules)
    checker = Checker(modules, datasets, errors)
    checker.check(path, config, refuse_unread=not _is_record_of_run(path))
    return CheckedConfig(config, checker, modules)


def _refuse_paddledetections(path: str, config: Section) -> None:
    """Name the command that converts a configuration of PaddleDetection's FCOS."""
    theirs = [key for key in PADDLEDETECTION_SECTIONS if key in config]
    if config.get("architecture") == "FCOS" and "PPFCOS" not in config:
        theirs = ["architecture: FCOS", *theirs]
    if theirs:
        raise ConfigError(
            f"{path}: this is a configuration of PaddleDetection ({theirs[0]}): convert it with "
            f"`ppfcos convert-config {path} -o OURS.yml`"
        )


def _is_record_of_run(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(len(RECORD_START)) == RECORD_START


# Every registered class: a program may overwrite one in the workspace.
_registered: dict[str, Any] = {}


def registered_modules() -> tuple[dict[str, Any], list[str]]:
    """Return the SchemaDict of each class of PaddleDetection and ppfcos, and the names of data sets."""
    with environment.quiet_imports():
        import ppfcos.paddledetection  # isort: skip
        from ppdet.core.config.schema import SchemaDict
        from ppdet.core.workspace import global_config

        import ppfcos.data.datasets
        import ppfcos.modeling  # noqa: F401
    for name, value in global_config.items():
        if isinstance(value, SchemaDict) and not is_imported(value):
            _registered[name] = value
    return dict(_registered), _names_of_datasets(_registered)


def _names_of_datasets(modules: dict[str, Any]) -> list[str]:
    from paddle.io import Dataset

    classes = {name: getattr(schema.pymodule, name) for name, schema in modules.items()}
    return [name for name, each in classes.items() if isinstance(each, type) and issubclass(each, Dataset)]


def _plain_sections(config: Section, checker: Checker) -> dict[str, Any]:
    """Turn a checked configuration into plain dictionaries.

    PaddleDetection creates the parts of a model by name. A part that is written in place of its name, such as
    {name: ResNet, depth: 18}, becomes a section.
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
