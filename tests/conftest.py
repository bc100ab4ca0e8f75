"""Where the tests find real data, and what must be set before Paddle is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import start_browser
from selenium.webdriver import Chrome

from ppfcos import environment
from ppfcos.errors import BundleError

environment.configure_process()
with environment.quiet_imports():
    import paddle
    from ppdet.core.workspace import global_config

    from ppfcos.export.program import check_paddle

ROOT = Path(__file__).resolve().parent.parent
TEST_DATA = Path(os.environ.get("PPFCOS_TEST_DATA", ROOT.parent / "shared" / "data"))

paddle.seed(0)


def _why_it_cannot_export() -> str:
    """What the export says of this version of Paddle; empty where it goes on."""
    try:
        check_paddle()
    except BundleError as error:
        return str(error)
    return ""


CANNOT_EXPORT = _why_it_cannot_export()
needs_export = pytest.mark.skipif(bool(CANNOT_EXPORT), reason=CANNOT_EXPORT)
needs_proc = pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="finds processes in /proc, which this system has not got"
)


def skip_without_export() -> None:
    """For what makes a bundle on behalf of many tests."""
    if CANNOT_EXPORT:
        pytest.skip(CANNOT_EXPORT)


def _real_data(name: str) -> Path:
    folder = TEST_DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set PPFCOS_TEST_DATA to a folder that holds {name}/")
    return folder


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The BCCD blood-cell set in Pascal VOC layout (github.com/Shenggan/BCCD_Dataset)."""
    return _real_data("bccd")


@pytest.fixture(scope="session")
def tinycoco() -> Path:
    """A small piece of COCO 2017 in COCO's own layout, with crowds and images without objects."""
    return _real_data("tinycoco")


@pytest.fixture(scope="session")
def paddledetection() -> Path:
    """A clone of github.com/PaddlePaddle/PaddleDetection, or its folder deploy/python alone."""
    return _real_data("PaddleDetection")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def _started_browser() -> Iterator[Chrome]:
    driver = start_browser()
    yield driver
    driver.quit()


@pytest.fixture
def browser(_started_browser) -> Iterator[Chrome]:
    """A headless Chromium."""
    yield _started_browser
    _started_browser.get("about:blank")  # an open page, such as VisualDL's, goes on computing


@pytest.fixture
def workspace():
    """PaddleDetection's workspace, emptied of what other tests have set in it."""

    def clear():
        for value in global_config.values():
            if hasattr(value, "schema"):
                value.clear()

    clear()
    yield global_config
    clear()
