"""Headless Chromium under the driver of the same Debian release; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PROGRAMS = ("chromium", "chromedriver")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # Chromium refuses its sandbox to root, which containers run as
    "--disable-dev-shm-usage",  # the shared memory of a container is too small for a page
    "--disable-gpu",
    "--window-size=1400,1600",
    "--no-first-run",
    # A machine without a way out: Chromium would try its makers' hosts at every start, and a proxy for our own address.
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)
# A page that draws 60 pictures a second, as Prefect's graph does without a pause, takes a whole processor where there is no graphics card.
_FEW_PICTURES = """
const draw = window.requestAnimationFrame
window.requestAnimationFrame = step => setTimeout(() => draw(step), 250)
window.cancelAnimationFrame = clearTimeout
"""


def missing() -> str | None:
    """What the tests of this ring lack on this machine, as the reason of a skip; None when all is there."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        return f"no {' and no '.join(lacking)} on this machine; on Debian: apt install chromium chromium-driver"
    if importlib.util.find_spec("selenium") is None:
        return "the Python package selenium is not installed; it comes with the extra `test`"
    return None


@contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """A browser with a profile of its own: nobody is signed in. It is gone when the block is left."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    program, driver = (shutil.which(name) for name in PROGRAMS)
    options = ChromeOptions()
    options.binary_location = program or ""
    for option in (*_OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    browser = Chrome(options=options, service=Service(driver))  # given a driver, Selenium looks for none to download
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _FEW_PICTURES})
    try:
        yield browser
    finally:
        browser.quit()
