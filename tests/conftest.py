"""Markers, test data, the browser and PaddleDetection's workspace.

Every test has one of these markers, set from its folder, its module and its fixtures:

    docs         README and docs/: links, commands, quoted messages
    browser      opens a page in Chromium
    integration  starts processes, trains, exports or runs an exported model
    unit         everything else

`slow` is set by hand on tests that take minutes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppfcos import environment

environment.configure_process()

import ppfcos.paddledetection  # noqa: E402, F401  # before a test imports ppdet

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
TEST_DATA = Path(os.environ.get("PPFCOS_TEST_DATA", ROOT.parent / "shared" / "data"))

INTEGRATION_FOLDERS = {"cli", "convert", "deploy", "engine", "export"}
INTEGRATION_IMPORTS = {"subprocess", "multiprocessing", "Trainer", "export_bundle"}
BROWSER_FIXTURES = {"browser", "_started_browser"}

needs_export = pytest.mark.needs_export
needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads processes from /proc")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test."""
    for item in items:
        item.add_marker(_kind_of(item))


def _kind_of(item: pytest.Item) -> str:
    folder = item.path.relative_to(ROOT / "tests").parts[0]
    if folder == "docs":
        return "docs"
    if BROWSER_FIXTURES & set(item.fixturenames):
        return "browser"
    if folder in INTEGRATION_FOLDERS or INTEGRATION_IMPORTS & set(vars(item.module)):
        return "integration"
    return "unit"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `needs_export` where this version of Paddle cannot export."""
    if item.get_closest_marker("needs_export"):
        skip_without_export()


def skip_without_export() -> None:
    """Skip the test where this version of Paddle cannot export."""


@pytest.fixture(scope="session", autouse=True)
def _seed_paddle() -> None:
    if "paddle" in sys.modules:
        sys.modules["paddle"].seed(0)


def _data(name: str) -> Path:
    """A data set below PPFCOS_TEST_DATA, or its small form below tests/fixtures."""
    for folder in (TEST_DATA / name, FIXTURES / name):
        if folder.is_dir():
            return folder
    pytest.skip(f"{TEST_DATA / name} is absent: set PPFCOS_TEST_DATA to a folder that holds {name}/")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Photographs of blood cells in Pascal VOC layout (github.com/Shenggan/BCCD_Dataset)."""
    return _data("bccd")


@pytest.fixture(scope="session")
def tinycoco() -> Path:
    """A small data set in COCO's layout, with crowds and images without objects."""
    return _data("tinycoco")


@pytest.fixture(scope="session")
def paddledetection() -> Path:
    """A clone of github.com/PaddlePaddle/PaddleDetection, or its folder deploy/python alone."""
    return _data("PaddleDetection")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def _started_browser() -> Iterator:
    from helpers.browser import start_browser

    driver = start_browser()
    yield driver
    driver.quit()


@pytest.fixture
def browser(_started_browser) -> Iterator:
    """A headless Chromium."""
    yield _started_browser
    _started_browser.get("about:blank")  # a page left open, such as VisualDL's, keeps computing


@pytest.fixture
def workspace() -> Iterator[dict]:
    """PaddleDetection's workspace without values set by other tests."""
    from ppdet.core.workspace import global_config

    def clear() -> None:
        for value in global_config.values():
            if hasattr(value, "schema"):
                value.clear()

    clear()
    yield global_config
    clear()
