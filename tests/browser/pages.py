"""What a person does with MLflow's pages: sign in, open a candidate, read its report, press Promote; and with Prefect's: read and press."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

SECONDS = 600.0  # how long a page may take; a loaded machine has taken minutes
T = TypeVar("T")
# MLflow shows an error for three seconds, which a loaded machine may miss: the page keeps them.
# Whether nothing covers the middle of an element, such as the shade behind a dialog; one that has to be scrolled to counts as free.
_ON_TOP = """const at = arguments[0].getBoundingClientRect();
const top = document.elementFromPoint(at.x + at.width / 2, at.y + at.height / 2);
return top === null || top.contains(arguments[0]) || arguments[0].contains(top);"""
_KEEP_NOTICES = """
window.notices = []
new MutationObserver(() => document.querySelectorAll(".du-bois-light-notification-notice-message").forEach(
  notice => notice.innerText && !window.notices.includes(notice.innerText) && window.notices.push(notice.innerText)
)).observe(document.body, {childList: true, subtree: true, characterData: true})
"""


@dataclass(frozen=True)
class Person:
    """Somebody in front of a browser, at the MLflow server `url`."""

    browser: Chrome
    url: str

    def sign_in(self, user: str, password: str) -> str:
        """Answer the question for name and password; returns the title of the page that comes, empty for one that does not."""
        parts = urlsplit(self.url)
        self.browser.get(f"{parts.scheme}://{quote(user)}:{quote(password)}@{parts.netloc}/")
        title: str = self.browser.title
        return title

    def open(self, route: str) -> None:
        """Open a page by its hash route, from a blank one: else the app would only change what it shows."""
        self.browser.get("about:blank")
        self.browser.get(f"{self.url}/#{route}")

    def open_version(self, model: str, version: int) -> None:
        """The page of a registered version, loaded."""
        self.open(f"/models/{model}/versions/{version}")
        self.see(f"Version {version}")
        self.find(".promote-model-btn")

    def text(self) -> str:
        """All text in sight."""
        found: str = self.browser.execute_script("return document.body ? document.body.innerText : ''")
        return found

    def see(self, *words: str) -> str:
        """Wait until all of `words` stand on the page; returns its text."""
        return self._wait(lambda: all(word in self.text() for word in words) and self.text(), f"{words} on the page")

    def find(self, css: str) -> WebElement:
        """Wait for an element that can be used."""
        from selenium.webdriver.common.by import By

        return self._usable(By.CSS_SELECTOR, css)

    def follow(self, title: str) -> None:
        """Click a link by its text; where it opens a page of its own, go on there."""
        from selenium.webdriver.common.by import By

        before = self.browser.current_url, len(self.browser.window_handles)
        self._usable(By.LINK_TEXT, title).click()
        self._wait(lambda: (self.browser.current_url, len(self.browser.window_handles)) != before, f"the page of '{title}'")
        self.browser.switch_to.window(self.browser.window_handles[-1])

    def read_framed(self, *words: str) -> str:
        """Wait until `words` stand in the frame where the artifact viewer shows an HTML file; returns its text."""
        self.browser.switch_to.frame(self.find("iframe.mlflow-html-iframe"))
        try:
            return self.see(*words)
        finally:
            self.browser.switch_to.default_content()

    def press(self, label: str) -> None:
        """Press what bears this text, a button or a tab, and lies under nothing; of several the one that came last, which is a dialog's."""
        from selenium.webdriver.common.by import By

        def labelled() -> WebElement | None:
            found = reversed(self.browser.find_elements(By.XPATH, f"//body//*[text()[normalize-space()='{label}']]"))
            usable = (each for each in found if each.is_displayed() and each.is_enabled())
            return next((each for each in usable if self.browser.execute_script(_ON_TOP, each)), None)

        self._wait(labelled, f"'{label}' to press").click()

    def promote(self, target: str) -> None:
        """On the page of a version: MLflow's own "Promote model", into the registered model `target`."""
        self.browser.execute_script(_KEEP_NOTICES)
        self.find(".promote-model-btn").click()
        self.find("[role=dialog] input#selectedModel").send_keys(target)
        self.find(f".du-bois-light-select-item-option[title='{target}']").click()
        self.find("[role=dialog] .du-bois-light-btn-primary").click()

    def notice(self) -> str:
        """Wait for what MLflow says after `promote` when the server refused it."""
        return self._wait(lambda: "\n".join(self.browser.execute_script("return window.notices")), "a notice of a refusal")

    def _usable(self, by: str, what: str) -> WebElement:
        def usable() -> WebElement | None:
            found = self.browser.find_elements(by, what)
            return next((element for element in found if element.is_displayed() and element.is_enabled()), None)

        return self._wait(usable, what)

    def _wait(self, look: Callable[[], T | bool | None], what: str) -> T:
        """The first thing that `look` finds; AssertionError with the page's text when it finds none in time."""
        from selenium.common.exceptions import StaleElementReferenceException

        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with suppress(StaleElementReferenceException):  # the app drew the page anew between two looks
                if found := look():
                    return cast(T, found)
            time.sleep(0.1)
        raise AssertionError(f"not seen in {SECONDS:.0f} s: {what}; the page says:\n{self.text()[:3000]}")
