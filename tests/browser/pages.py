"""What a person does with MLflow's pages: sign in, open a candidate, read its report, press Promote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

SECONDS = 60.0  # how long a page may take; a loaded machine has taken half of it
T = TypeVar("T")
_VISIBLE = "//*[normalize-space(.)={text}][not(*[normalize-space(.)={text}])]"


@dataclass(frozen=True)
class Person:
    """Somebody in front of a browser, at the MLflow server `url`."""

    browser: Chrome
    url: str

    def sign_in(self, user: str, password: str) -> str:
        """Answer the browser's question for name and password; returns the text of the page that comes."""
        parts = urlsplit(self.url)
        self.browser.get(f"{parts.scheme}://{quote(user)}:{quote(password)}@{parts.netloc}/health")
        return self.text()

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

        def usable() -> Any:
            return next(
                (found for found in self.browser.find_elements(By.CSS_SELECTOR, css) if found.is_displayed() and found.is_enabled()), None
            )

        return self._wait(usable, css)

    def read_framed(self, *words: str) -> str:
        """Wait until `words` stand in the frame where the artifact viewer shows an HTML file; returns its text."""
        self.browser.switch_to.frame(self.find("iframe.mlflow-html-iframe"))
        try:
            return self.see(*words)
        finally:
            self.browser.switch_to.default_content()

    def promote(self, target: str) -> None:
        """On the page of a version: MLflow's own "Promote model", into the registered model `target`."""
        from selenium.webdriver.common.keys import Keys

        self.find(".promote-model-btn").click()
        self.find("[role=dialog] input#selectedModel").send_keys(target)
        self.find(f".du-bois-light-select-item-option[title='{target}']").click()
        self.find("[role=dialog] .du-bois-light-btn-primary").click()

    def _wait(self, look: Callable[[], T | bool | None], what: str) -> T:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.browser, SECONDS, 0.1, ignored_exceptions=[StaleElementReferenceException])
        return waiting.until(lambda _: look(), f"not seen in {SECONDS:.0f} s: {what}; the page says:\n{self.text()[:2000]}")
