"""A headless Chromium for tests of pages."""

from __future__ import annotations

import shutil

import pytest
from selenium import webdriver

PROGRAMS = ("chromium", "chromedriver")
INSTALL = "apt-get install chromium chromium-driver"  # on Debian; Ubuntu's are snaps


def start_browser() -> webdriver.Chrome:
    """Start Chromium, or skip the test where there is none. It reaches nothing but this machine.

    Returns:
        The driver; whoever called quits it.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} on this machine: {INSTALL}")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",  # Chromium's sandbox wants a user who is not root
        "--disable-dev-shm-usage",  # containers have little shared memory
        "--window-size=1400,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)
