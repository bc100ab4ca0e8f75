"""Networks of the PaddleClas package from PyPI."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Packages that contain the networks. They are not run, because they import what is not installed.
PACKAGES = ("", ".ppcls", ".ppcls.arch", ".ppcls.arch.backbone", ".ppcls.utils")


def paddleclas_networks(module: str) -> ModuleType:
    """A module of `ppcls.arch.backbone`, as published.

    Args:
        module: its name there.

    Returns:
        The module. The test is skipped where the package is not installed.
    """
    _create_packages()
    return importlib.import_module(f"paddleclas.ppcls.arch.backbone.{module}")


@functools.cache
def _create_packages() -> None:
    found = importlib.util.find_spec("paddleclas")
    if found is None:
        pytest.skip("PaddleClas is not installed: pip install --no-deps -r requirements/tests_apart.txt")
    root = Path(found.submodule_search_locations[0])
    for name in PACKAGES:
        package = ModuleType(f"paddleclas{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[package.__name__] = package
    # Their constructors log what PaddleClas will deprecate.
    importlib.import_module("paddleclas.ppcls.utils.logger").init_logger(log_level=logging.ERROR)
