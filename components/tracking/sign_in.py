"""Signing in to a server of this installation: where it is, whose password lies where, and which account a command uses.

`scalingnote ui --auth` notes its address in the home folder as long as it runs. Commands that change something then go through it and
not around it, so that the audit log holds them. The promote flow has an account of its own, whose stored password is taken. Who trains or
approves is a person, and named by the environment: with a shared account for training, a person could approve their own work unseen.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components import settings
from components.artifacts import read_json, write_json
from components.errors import ArtifactError
from components.settings import answers
from components.tracking.server.permissions import ADMIN
from components.tracking.store import TrackingError

PROMOTER = "promoter"
PREFECT_USER = "prefect"
BUSY_SECONDS = 30.0  # that a server which lives may take to answer
USERNAME, PASSWORD, ADMIN_PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD"


def password_file(user: str) -> Path:
    """Where a generated password lies, readable by the owner of the home folder alone."""
    return settings.home() / "mlflow" / (f"{ADMIN}-password" if user == ADMIN else f"passwords/{user}")


def stored_password(user: str) -> str | None:
    """The password in `password_file`, None when there is none."""
    try:
        return password_file(user).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def admin_password() -> str:
    """From `MLFLOW_AUTH_ADMIN_PASSWORD`, else generated once and kept."""
    return os.environ.get(ADMIN_PASSWORD) or stored_password(ADMIN) or keep_secret(password_file(ADMIN))


def prefect_account() -> str:
    """`user:password` for Prefect's API and page; the password is generated once and kept in `password_file("prefect")`."""
    return f"{PREFECT_USER}:{stored_password(PREFECT_USER) or keep_secret(password_file(PREFECT_USER))}"


def keep_secret(path: Path) -> str:
    """Write a new random secret to a file that only its owner may read (mode 0600) and return it."""
    secret = secrets.token_urlsafe(18)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")
    return secret


@contextmanager
def announced(url: str) -> Iterator[None]:
    """Note the address of a server with sign-in as long as the block runs; the note is locked until this process ends, however it does."""
    write_json(_note(), {"url": url, "pid": os.getpid(), "locked": True})
    with _note().open("r+b") as note:
        settings.locked(note)  # who looks whether we live holds it for an instant
        try:
            yield
        finally:
            _note().unlink(missing_ok=True)


def running_server() -> str | None:
    """Address of the server with sign-in that runs over this home folder, None when none answers.

    The note of one that was killed is not followed: whoever listens there now must not be sent a password.
    """
    try:
        note = read_json(_note())
        url, pid = str(note["url"]), int(note["pid"])
    except (ArtifactError, KeyError, TypeError, ValueError):
        return None
    # After a restart of the machine the number is soon that of another process; notes of earlier versions have no lock.
    there = _is_alive(pid) and not (note.get("locked") and _is_free(_note()))
    return url if there and answers(f"{url}/health") else None


def announced_server() -> str | None:
    """Address of the server with sign-in whose process lives and holds its note, whether it answers or not; None where none surely does."""
    try:
        with _note().open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(ArtifactError, KeyError, TypeError):
            return str(read_json(_note())["url"])
    except OSError:  # there is no note, or a file system without locks
        pass
    return None


def _is_free(path: Path) -> bool:
    """Whether nobody holds the lock of a file; False where that cannot be known."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except OSError:  # BlockingIOError where it is held, or a file system without locks
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):  # gone, somebody else's by now, or no number of a process
        return False
    return pid > 0


def sign_in(role: str) -> None:
    """Send this process to the running server, as the account named in the environment or, for the promoter alone, the stored one.

    Nothing happens when the environment names a tracking server or store, or when no server with sign-in runs over this home folder.
    A person's password is never taken from a file: raises TrackingError when a trainer's or reviewer's command finds none in the
    environment, and for a server that lives and does not answer.
    """
    if os.environ.get("MLFLOW_TRACKING_URI") or (url := _server_to_use()) is None:
        return
    os.environ["MLFLOW_TRACKING_URI"] = url
    if names_account():
        return
    password = stored_password(role) if role == PROMOTER else None
    if password is None:
        raise TrackingError(
            f"The server {url} asks who you are. Set {USERNAME} and {PASSWORD} to an account with the role {role}; "
            "`scalingnote bootstrap` makes accounts."
        )
    os.environ[USERNAME], os.environ[PASSWORD] = role, password


def _server_to_use() -> str | None:
    """`running_server`, waited for where it is busy: what is built past it can never be approved, and the audit log does not hold it."""
    url, deadline = running_server(), time.monotonic() + BUSY_SECONDS
    while url is None and (silent := announced_server()) is not None:
        if time.monotonic() > deadline:
            raise TrackingError(
                f"The server with sign-in of this home folder, {silent}, runs and has not answered for {BUSY_SECONDS:.0f} s. What changes "
                "something goes through it, so that its audit log holds it. Nothing was changed. Wait until it answers, or stop it and "
                "start it again (scalingnote ui --auth). Where it runs in a container or on another machine, name the address that it has "
                "from here in MLFLOW_TRACKING_URI."
            )
        time.sleep(0.5)
        url = running_server()
    return url


def names_account() -> bool:
    """Whether the environment names an account; raises TrackingError for half of one, in whose place another would act."""
    missing = [name for name in (USERNAME, PASSWORD) if not os.environ.get(name)]
    if len(missing) == 1:
        raise TrackingError(f"{USERNAME} and {PASSWORD} belong together, and {missing[0]} is not set. Set both, or neither.")
    return not missing


def _note() -> Path:
    return settings.home() / "mlflow" / "server.json"
