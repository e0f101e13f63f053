"""The three pictures of the README: a candidate's page in MLflow, its report, and its lineage.

    python -m tests.browser.pictures --home FOLDER [--candidate 1] [--to .github/images]

FOLDER is a home with a registered candidate, such as the demo leaves it; nothing in it is changed but what `scalingnote ui` writes. Needs
Chromium and its driver (see `chromium.py`).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.browser.chromium import chromium, missing
from tests.browser.pages import Person
from tests.flows.cli_world import free_port

WIDTH, HEIGHT = 1200, 760  # pixels
STARTING = 180.0  # seconds


@contextmanager
def pages_of(home: Path) -> Iterator[str]:
    """The address of MLflow over `home`, as `scalingnote ui` starts it."""
    port = free_port()
    command = [sys.executable, "-m", "flows.cli", "ui", "--mlflow-port", str(port), "--prefect-port", str(free_port())]
    with subprocess.Popen(command, env={**os.environ, "SCALINGNOTE_HOME": str(home)}, stdout=subprocess.DEVNULL) as ui:
        try:
            yield _answering(f"http://127.0.0.1:{port}", ui)
        finally:
            ui.send_signal(signal.SIGINT)


def _answering(url: str, ui: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and ui.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return url
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"MLflow did not start at {url}.")


def traced(home: Path, candidate: int, folder: Path) -> Path:
    """The page that `scalingnote trace --format html` writes."""
    page = folder / "lineage.html"
    command = [sys.executable, "-m", "flows.cli", "trace", f"candidate/{candidate}", "--format", "html", "-o", str(page)]
    subprocess.run(command, env={**os.environ, "SCALINGNOTE_HOME": str(home)}, stdout=subprocess.DEVNULL, check=True)
    return page


def report_of(home: Path, candidate: int) -> Path:
    """The report beside the manifest of a candidate, found by MLflow's own record of where its files lie."""
    asked = "from components import settings; from components.tracking import registry; settings.activate(); "
    asked += f"print(registry.artifact_folder('retriever-candidate', {candidate}))"
    command = [sys.executable, "-c", asked]
    done = subprocess.run(command, env={**os.environ, "SCALINGNOTE_HOME": str(home)}, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip().splitlines()[-1]) / "report.html"


def main() -> None:
    """Take the pictures and name their files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--candidate", type=int, default=1)
    parser.add_argument("--to", type=Path, default=Path(".github/images"))
    options = parser.parse_args()
    if reason := missing():
        raise SystemExit(reason)
    home = options.home.resolve()
    options.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, chromium(Path(scratch) / "profile") as browser:
        browser.set_window_size(WIDTH, HEIGHT)
        for name, page in {"report": report_of(home, options.candidate), "lineage": traced(home, options.candidate, Path(scratch))}.items():
            browser.get(page.as_uri())
            _keep(browser.get_screenshot_as_png(), options.to / f"{name}.png")
        browser.set_window_size(WIDTH + 400, HEIGHT)  # MLflow has a column of its own on either side
        with pages_of(home) as url:
            Person(browser, url).open_version("retriever-candidate", options.candidate)
            Person(browser, url).see("Verdict")
            _keep(browser.get_screenshot_as_png(), options.to / "candidate.png")


def _keep(picture: bytes, file: Path) -> None:
    file.write_bytes(picture)
    print(f"{file}: {len(picture) // 1024} KiB")


if __name__ == "__main__":
    main()
