"""Execute the Python files under `imports` of a configuration, which register classes.

A file registers backbones, necks, heads, losses, assigners and loggers with `ppdet.core.workspace.register`,
and transforms with `ppdet.data.transform.operators.register_op`. It runs with the rights of the user.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ppfcos.errors import ConfigError, OutputError, one_line
from ppfcos.fileio import replacing, require_regular

IMPORTS_KEY = "imports"
IMPORTS_FOLDER = "imports"  # in the folder of a run
MAX_FILE_BYTES = 1 << 20
MODULE_PREFIX = "ppfcos_imports_"

logger = logging.getLogger(__name__)


class _Imported(NamedTuple):
    """The classes and transforms that a file has registered."""

    module: ModuleType
    classes: dict[str, Any]
    operators: list[str]


_imported: dict[str, _Imported] = {}  # by digest of the content: a copy of a file is the same module


def import_files(paths: Iterable[str], origin: str) -> dict[str, Any]:
    """Execute each file once in the process; return the SchemaDict of each class that they register, by name.

    Args:
        origin: of the key in the configuration, for errors.

    Raises:
        ConfigError: a file is missing or fails; the message names the file and the line.
    """
    classes: dict[str, Any] = {}
    for path in paths:
        if Path(path).suffix != ".py" or not os.path.isfile(path):
            raise ConfigError(f"{origin}: {IMPORTS_KEY} names {path}, which is not a Python file")
        content = _read(path, origin)
        digest = hashlib.sha256(content).hexdigest()
        if digest not in _imported:
            logger.info("imports: running %s", path)
            _imported[digest] = _run(path, content, MODULE_PREFIX + digest[:16])
        imported = _imported[digest]
        _publish_operators(imported)
        classes.update(imported.classes)
    return classes


def is_imported(schema: Any) -> bool:
    """Whether a registered class comes from an imported file."""
    return schema.pymodule.__name__.startswith(MODULE_PREFIX)


def copy_imports(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Copy the imported files to the folder of a run, which can then be moved.

    Args:
        config: from `resolved_config`.

    Returns:
        The configuration with the paths of the copies, relative to the folder.
    """
    copies = []
    for number, path in enumerate(config.get(IMPORTS_KEY) or ()):
        names = [Path(copy).name for copy in copies]
        name = f"{number}_{Path(path).name}" if Path(path).name in names else Path(path).name
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise OutputError(f"{path} cannot be copied to {folder}: {error.strerror}") from error
        with replacing(folder / IMPORTS_FOLDER / name) as unfinished:
            unfinished.write_bytes(content)
        copies.append(f"{IMPORTS_FOLDER}/{name}")
    return {**config, IMPORTS_KEY: copies} if copies else dict(config)


def _read(path: str, origin: str) -> bytes:
    try:
        require_regular(path)
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{origin}: {path} cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{origin}: {path} is larger than {MAX_FILE_BYTES >> 20} MiB")
    return content


def _run(path: str, content: bytes, name: str) -> _Imported:
    from ppdet.core.config.schema import SchemaDict
    from ppdet.core.workspace import global_config
    from ppdet.data.transform import operators

    for earlier in _imported.values():  # another version of the file may register the same names
        for registered in earlier.classes:
            global_config.pop(registered, None)
        for operator in set(earlier.operators) & set(operators.registered_ops):
            operators.registered_ops.remove(operator)
            delattr(operators.BaseOperator, operator)
    before, operators_before = dict(global_config), list(operators.registered_ops)
    module = ModuleType(name)
    module.__file__ = os.path.abspath(path)
    module.__spec__ = importlib.util.spec_from_file_location(name, module.__file__)
    sys.modules[name] = module  # for `register` and for worker processes
    try:
        exec(compile(content, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        for registered in set(global_config) - set(before):
            del global_config[registered]
        del operators.registered_ops[len(operators_before) :]
        raise ConfigError(f"{path}:{_line_of(error, path)}: {one_line(error)}") from error
    added = {
        key: value
        for key, value in global_config.items()
        if isinstance(value, SchemaDict) and before.get(key) is not value
    }
    new_operators = [each for each in operators.registered_ops if each not in operators_before]
    return _Imported(module, added, new_operators)


def _line_of(error: BaseException, path: str) -> int:
    """Return the line of the file that raised the error."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] if lines else 1


def _publish_operators(imported: _Imported) -> None:
    """Register the transforms of this version of a file; another version may have replaced them."""
    from ppdet.data import transform
    from ppdet.data.transform.operators import BaseOperator, registered_ops

    for name in imported.operators:
        for place in (transform, BaseOperator):
            setattr(place, name, getattr(imported.module, name))
        if name not in registered_ops:
            registered_ops.append(name)
