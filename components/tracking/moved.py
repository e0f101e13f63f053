"""A home folder that was moved, copied or mounted elsewhere. MLflow keeps absolute locations of artifacts; they are put right here.

Readers see the present locations at once (`embedded.Reader`), the database itself is corrected when MLflow opens it. The old place is
never read when the files are here, and never written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from components import settings
from components.errors import ArtifactError

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_END = "/mlflow/artifacts"
_in_use: dict[Path, IO[str]] = {}


def own_store() -> Path | None:
    """The SQLite file of MLflow in the home folder, when that is the tracking store; a store elsewhere may serve several homes."""
    path = settings.home() / "mlflow" / "mlflow.db"
    uri = settings.tracking_uri()
    named = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    return path if named is not None and named.resolve() == path else None


@lru_cache(maxsize=32)
def former_roots(path: Path) -> Mapping[str, str]:
    """Former URI of the artifact folder -> its present one, for a store whose home folder lay elsewhere; empty for any other.

    An experiment that another home made in this store, whose files lie there and not here, keeps its place.
    """
    if path != own_store() or not path.exists():
        return {}
    root = settings.artifact_root()
    roots = {}
    with _connected(path, "ro") as connection:
        try:
            found = [row[0] or "" for row in connection.execute("SELECT artifact_location FROM experiments")]
        except sqlite3.OperationalError:  # no tables yet
            return {}
    for location in found:
        former, _, folder = location.rpartition("/")
        if not former.endswith(_END) or former == root.as_uri():
            continue
        if (root / unquote(folder)).exists() or not _is_there(Path(unquote(urlsplit(location).path))):
            roots[former] = root.as_uri()
    return roots


def present(location: str, roots: Mapping[str, str]) -> str:
    """Where `location` lies now."""
    former = next((former for former in roots if location.startswith(f"{former}/")), None)
    return location if former is None else roots[former] + location.removeprefix(former)


def settle() -> None:
    """Correct the locations in the home's own store, and mark it as in use here as long as this process lives.

    Raises ArtifactError when the store cannot be written, or while another process uses it under its former path.
    """
    path = own_store()
    if path is None or path in _in_use:
        return
    try:
        lock = (settings.home() / "locks" / "mlflow-in-use.lock").open("a+")  # NFS gives a shared lock only where one may read
    except OSError:  # a home that is only read
        lock = None
    if roots := former_roots(path):
        _correct(path, roots, lock)
        former_roots.cache_clear()
    if lock is not None:
        _in_use[path] = lock
        settings.locked(lock, wait=False, shared=True)


def forget() -> None:
    """Let go of the stores in use, for a process that goes to work in another home."""
    for lock in _in_use.values():
        lock.close()
    _in_use.clear()
    former_roots.cache_clear()


def _correct(path: Path, roots: Mapping[str, str], lock: IO[str] | None) -> None:
    former = ", ".join(unquote(urlsplit(uri).path).removesuffix(_END) for uri in roots)
    if lock is None:
        raise ArtifactError(
            f"{settings.home()} was moved here from {former} and cannot be written, so MLflow would look for its files there. "
            "Run a command such as `scalingnote promote` once as somebody who may write to it."
        )
    if not settings.locked(lock, wait=False):
        raise ArtifactError(
            f"{settings.home()} is in use as {former} by a running command or server. Stop that first, or use the folder under one path."
        )
    with _connected(path, "rw") as connection:
        for table, column in _COLUMNS:
            for old, new in roots.items():
                statement = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                connection.execute(statement, (new, len(old) + 1, len(old) + 1, f"{old}/"))


def _is_there(folder: Path) -> bool:
    try:
        return folder.exists()
    except OSError:  # of somebody else
        return True


@contextmanager
def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are kept together when the block ends without an error."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=30)
    try:
        with connection:
            yield connection
    finally:
        connection.close()
