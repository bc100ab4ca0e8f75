"""Importing this module imports PaddleDetection (`ppdet`) without packages that its FCOS does not use.

PaddleDetection's `__init__` imports all of its modules, among them trackers and lane detectors, which import
the packages of UNUSED. Those that are not installed are empty modules while PaddleDetection is imported.
Import this module, or a package that imports it, before `ppdet`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import io
import sys
import types
from typing import Any

from ppfcos import environment

# Imported by PaddleDetection 2.6.0: the first two. By its develop branch: all.
UNUSED = ("sklearn", "pkg_resources", "imgaug", "shapely")


class _EmptyModule(types.ModuleType):
    """A module with any class, for `from imgaug.augmentables.lines import LineString`."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last in sys.meta_path, finds the modules of UNUSED that are not installed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in UNUSED:
            return None
        self.names.append(name)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _EmptyModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _import_paddledetection() -> None:
    """Import PaddleDetection; discard what it prints about absent packages.

    Raises:
        MissingLibraryError: a package is not installed; the message names the command.
    """
    output, stdout = io.StringIO(), sys.stdout
    empty = _EmptyModules()
    try:
        with contextlib.redirect_stdout(output):
            environment.import_users_of_zlib()
            importlib.import_module("paddle")  # and what it imports, before there are empty modules
            sys.meta_path.append(empty)
            importlib.import_module("ppdet")
    except Exception as error:
        fix = environment.find_fix(error)
        if fix is not None:
            raise environment.MissingLibraryError(f"{error}: {fix}") from error
        if stdout is not None:
            stdout.write(output.getvalue())
        raise
    finally:
        if empty in sys.meta_path:
            sys.meta_path.remove(empty)
        for name in empty.names:
            sys.modules.pop(name, None)
        environment.restore_loggers({output: stdout})


if "ppdet" not in sys.modules:
    _import_paddledetection()
