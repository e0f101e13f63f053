"""Connections as a machine's environment has them: loopback goes past every proxy, and a server that is gone is noticed within seconds."""

from __future__ import annotations

import os
import re
import ssl
import threading
import urllib.request
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONTACT_SECONDS = 2.5


def spare_loopback() -> None:
    """Name the loopback addresses in NO_PROXY, beside what stands there, for this process and all that it starts.

    Prefect (httpx), MLflow (requests), websockets and urllib ask the proxy of a company's network for 127.0.0.1 otherwise.
    """
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if given.strip() == "*":  # no proxy for anything
        return
    entries = [entry.strip() for entry in given.split(",") if entry.strip()]
    # Both spellings: some libraries read one alone, and the others let the small letters win.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*entries, *(a for a in LOOPBACK if a not in entries)])


def without_user(url: str) -> str:
    """`url` without the user name and password that it may carry."""
    return re.sub(r"(?<=://)[^/?#]*@", "", url)


def answers(url: str, seconds: float = CONTACT_SECONDS) -> bool:
    """Whether a server answers at `url` within about `seconds`, with whatever HTTP status or certificate."""
    return _status(url, seconds) is not None


def is_healthy(url: str, seconds: float = CONTACT_SECONDS) -> bool:
    """Whether a server answers at `url` within about `seconds`, with HTTP status 200."""
    return _status(url, seconds) == 200


def _status(url: str, seconds: float) -> int | None:
    """The HTTP status; 0 for a server whose certificate is not known here, None where nobody answers.

    It is asked in a thread of its own: looking up a host's name takes no time limit.
    """
    found: list[int | None] = []
    asking = threading.Thread(target=lambda: found.append(_ask(without_user(url), seconds)), daemon=True)
    asking.start()
    asking.join(seconds)
    return found[0] if found else None


def _ask(url: str, seconds: float) -> int | None:
    try:
        own = urlsplit(url).hostname in LOOPBACK
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({})) if own else urllib.request.build_opener()
        with opener.open(url, timeout=seconds) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code
    except URLError as error:
        return 0 if isinstance(error.reason, ssl.SSLError) else None
    except (OSError, ValueError, HTTPException):
        return None
