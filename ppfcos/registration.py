"""Register PPFCOS in PaddleDetection's workspace as soon as PaddleDetection is imported, and not before.

A finder at the head of `sys.meta_path` waits for the import of `ppdet`. It lets the ordinary finders find it,
wraps their loader, and imports `ppfcos.modeling` (whose classes register themselves) once `ppdet` has run. A
program that never imports `ppdet` never pays for it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from ppfcos import environment

HOST = "ppdet"
REGISTERING_MODULE = "ppfcos.modeling"


def install() -> None:
    """See to it that `ppfcos.modeling` is imported with `ppdet`: now if that is there already, else later."""
    if HOST in sys.modules:
        environment.keep_freed_memory()
        importlib.import_module(REGISTERING_MODULE)
    elif not any(isinstance(finder, _HostFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _HostFinder())


class _HostFinder(importlib.abc.MetaPathFinder):
    """Find `ppdet` where the other finders do, with a loader that registers PPFCOS afterwards."""

    def __init__(self) -> None:
        self._searching = False

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find `ppdet`, and wrap its loader; None for every other module, or where it is not installed."""
        if fullname != HOST or self._searching:
            return None
        self._searching = True  # the search below asks every finder, this one included
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return spec
        spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """Load as the real loader does, then import `ppfcos.modeling`."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)  # get_source, get_data, is_package: whoever asks before the import

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Do as the real loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run `ppdet`, then register PPFCOS beside it.

        Raises:
            ImportError: what the import of `ppdet` or of `ppfcos.modeling` raised.
        """
        module.__spec__.loader = module.__loader__ = self._loader
        environment.import_users_of_zlib()
        environment.keep_freed_memory()  # whoever imports PaddleDetection trains or evaluates
        self._loader.exec_module(module)
        importlib.import_module(REGISTERING_MODULE)
