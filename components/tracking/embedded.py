"""A read-only view of the embedded store without importing MLflow, so that a search can open a release quickly.

MLflow keeps absolute locations of artifacts; where the home folder was moved, copied or mounted elsewhere, they are put right here.

Readers see the present locations at once (`embedded.Reader`), the database itself is corrected when MLflow opens it. The old place is
never read when the files are here, and never written.

Importing MLflow and opening its SQLite store takes more than 1.5 seconds; the few rows that resolve an alias take a millisecond. The view
knows the tables of the listed schema revisions alone: with any other, `reader` gives None and MLflow itself is asked.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from components import settings
from components.errors import ArtifactError, ConfigError

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
    return path if named is not None and _resolved(named) == path else None


def _resolved(path: Path) -> Path:
    """`Path.resolve` without its error for a link that leads back to itself, which whoever opens it is told by the system."""
    return Path(os.path.realpath(path))


def require_named_store() -> None:
    """Raise ConfigError where a store in a file that somebody has named is not there: nothing would seem to have been made.

    Raises ArtifactError as `require_whole` does.
    """
    require_whole()
    view = reader()
    if view is not None and not view.path.exists() and view.path != own_store() and settings.is_named(settings.tracking_uri()):
        raise ConfigError(
            f"The tracking store {view.path} is not there, so there is nothing to tell or to change. Correct MLFLOW_TRACKING_URI, or the "
            "link that leads there; a build makes a new store."
        )


def require_whole() -> None:
    """Raise ArtifactError for a store that is no plain file, and for a home whose store is gone or empty, though what it listed is there.

    MLflow would begin a new one, in which nothing was ever built, approved or promoted.
    """
    uri = settings.tracking_uri()
    path = Path(uri.removeprefix(_PREFIX).partition("?")[0])
    if not uri.startswith(_PREFIX):
        return
    if path.is_symlink() and not path.exists() and _resolved(path) == path:
        raise ArtifactError(f"{path} is a link that leads back to itself. Put the database of the tracking store there.")
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is no plain file. Put the database of the tracking store there, from a backup.")
    if path == own_store() and not (path.exists() and path.stat().st_size):
        root = settings.artifact_root()
        if left := next((entry.name for entry in sorted(root.glob("*")) if entry.is_dir() and any(entry.iterdir())), None):
            raise ArtifactError(
                f"The database {path} is {'empty' if path.exists() else 'gone'}, though files of '{left}' lie in {root}: runs, versions "
                "and promotion records are listed there alone. Restore it from a backup; to begin anew, move that folder away."
            )


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

    Raises ArtifactError when the store cannot be written, while another process uses it under its former path, and as `require_whole`.
    """
    require_whole()
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


# --- A read-only view of the embedded store without importing MLflow, so that a search can open a release quickly.


KNOWN_SCHEMAS = frozenset({"dc11669786a5"})  # `alembic_version` of MLflow 3.17.2
MOST_BYTES = 200_000_000  # of one answer, some 700,000 short rows
_ROW_BYTES = 250  # of memory, without the text
_PREFIX = "sqlite:///"
# SQLite takes any value for any column; those that are not text have to be these.
_NUMBERS = {"version": (int,), "creation_time": (int,), "experiment_id": (int,), "start_time": (int, type(None))}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Reader:
    """Rows of one embedded store. A store that is not there yet has no rows. Locations are those of now (see `moved`)."""

    path: Path

    def rows(self, statement: str, *values: str | int) -> list[Row]:
        """Run one SELECT. A writer that holds the file is waited for.

        Raises ArtifactError where somebody wrote so much that it would fill the memory.
        """
        if not self.path.exists():
            return []
        connection = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, timeout=30)
        try:
            connection.row_factory = sqlite3.Row
            found, size = [], 0
            for row in connection.execute(statement, values):
                found.append(self._checked(dict(row)))
                size += _ROW_BYTES + sum(len(value) for value in row if isinstance(value, str))
                if size > MOST_BYTES:
                    raise ArtifactError(
                        f"{self.path}: what this command has to read there takes more than {MOST_BYTES:,} bytes, so somebody has filled it "
                        "with tags, parameters or runs. Find out with MLflow who wrote them, delete them there, or restore a backup."
                    )
        finally:
            connection.close()
        roots = former_roots(self.path)
        return [{name: present(value, roots) if isinstance(value, str) else value for name, value in row.items()} for row in found]

    def _checked(self, row: Row) -> Row:
        for name, value in row.items():
            if not isinstance(value, _NUMBERS.get(name, (str, type(None)))):
                raise ArtifactError(
                    f"{self.path}: in a column '{name}' stands {str(value)[:40]!r}, which MLflow does not write: somebody changed the "
                    "database past it. Put it right there, or restore a backup."
                )
        return row

    def aliases(self, model_name: str) -> dict[str, int]:
        """Alias -> version of a registered model."""
        found = self.rows("SELECT alias, version FROM registered_model_aliases WHERE name = ? AND workspace = 'default'", model_name)
        return {row["alias"]: int(row["version"]) for row in found}

    def versions(self, model_name: str) -> list[Row]:
        """Rows of a model's versions that were not deleted, oldest first."""
        return self.rows(
            "SELECT version, source, storage_location, run_id, creation_time FROM model_versions "
            "WHERE name = ? AND workspace = 'default' AND current_stage <> 'Deleted_Internal' ORDER BY version",
            model_name,
        )

    def version_tags(self, model_name: str) -> dict[int, dict[str, str]]:
        """Version -> its tags."""
        tags: dict[int, dict[str, str]] = {}
        statement = "SELECT version, key, value FROM model_version_tags WHERE name = ? AND workspace = 'default'"
        for row in self.rows(statement, model_name):
            tags.setdefault(int(row["version"]), {})[row["key"]] = row["value"] or ""
        return tags

    def experiment(self, name: str) -> Row | None:
        """Id and lifecycle stage of an experiment."""
        found = self.rows("SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = ? AND workspace = 'default'", name)
        return found[0] if found else None

    def experiment_of_run_tag(self, anchor: str, key: str, value: str) -> str | None:
        """Name of an experiment whose tag `anchor` names a run that has the tag `key` = `value`."""
        found = self.rows(
            "SELECT e.name FROM experiments e JOIN experiment_tags a ON a.experiment_id = e.experiment_id AND a.key = ? "
            "JOIN tags t ON t.run_uuid = a.value AND t.key = ? AND t.value = ? WHERE e.lifecycle_stage = 'active' ORDER BY e.name",
            *(anchor, key, value),
        )
        return str(found[0]["name"]) if found else None

    def experiment_tags(self, experiment: int) -> dict[str, str]:
        """Tags of an experiment."""
        statement = "SELECT key, value FROM experiment_tags WHERE experiment_id = ?"
        return {row["key"]: row["value"] or "" for row in self.rows(statement, experiment)}

    def runs(self, experiment: int) -> list[Row]:
        """Runs of an experiment, deleted ones too."""
        return self.rows("SELECT run_uuid, status, lifecycle_stage, artifact_uri FROM runs WHERE experiment_id = ?", experiment)

    def run(self, run_id: str) -> Row | None:
        """One run."""
        found = self.rows("SELECT run_uuid, status, lifecycle_stage, artifact_uri FROM runs WHERE run_uuid = ?", run_id)
        return found[0] if found else None

    def newest_run(self, experiment: int, key: str, latest: int) -> Row | None:
        """The active run that began last, and not after `latest`, of those that have the tag `key`: id, status and start (ms)."""
        found = self.rows(
            "SELECT r.run_uuid, r.status, r.start_time FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = ? "
            "WHERE r.experiment_id = ? AND r.lifecycle_stage = 'active' AND r.start_time <= ? ORDER BY r.start_time DESC LIMIT 1",
            *(key, experiment, latest),
        )
        return found[0] if found else None

    def run_tags(self, experiment: int, key: str) -> dict[str, str]:
        """Run id -> value of the tag `key`, for the runs of an experiment that have it."""
        statement = "SELECT t.run_uuid, t.value FROM tags t JOIN runs r ON r.run_uuid = t.run_uuid WHERE r.experiment_id = ? AND t.key = ?"
        return {row["run_uuid"]: row["value"] or "" for row in self.rows(statement, experiment, key)}

    def parameters(self, run_id: str) -> dict[str, str]:
        """Parameters of a run."""
        return {row["key"]: row["value"] for row in self.rows("SELECT key, value FROM params WHERE run_uuid = ?", run_id)}


def reader() -> Reader | None:
    """The view of the embedded store, or None when the store is a server or has tables this view does not know."""
    uri = settings.tracking_uri()
    if not uri.startswith(_PREFIX) or "?" in uri:
        return None
    view = Reader(_resolved(Path(uri.removeprefix(_PREFIX))))
    if not view.path.exists():
        return view
    try:
        revisions = {row["version_num"] for row in view.rows("SELECT version_num FROM alembic_version")}
    except sqlite3.Error:
        return None
    return view if revisions and revisions <= KNOWN_SCHEMAS else None
