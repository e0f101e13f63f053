"""The connection to MLflow: one client per store, experiments, and errors in words a user can act on."""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from components import settings
from components.errors import ConfigError, ScalingNoteError
from components.settings import answers, without_user
from components.tracking import embedded

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE = "mlflow.note.content"  # the tag that holds the text on the page of a run or an experiment
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow's page asks whoever opens an experiment for its kind
ABOUT = (
    "A run for each flow of `{name}`, and a nested run for each of its steps, with settings, data and metrics. "
    "What may be released is a version of a candidate under Models."
)
ABOUT_CHAIN = "Who promoted which release of `{name}`, when and why: a run for each record, in a chain. Nobody changes it by hand."
_GONE_SECONDS = 5.0  # a server that was found gone is not asked again so soon, by a command that asks it for several things
_gone: dict[str, float] = {}
# Drivers of databases that SQLAlchemy imports by name, and the packages that hold them.
_DRIVERS = {"psycopg": "'scalingnote[postgres]'", "psycopg2": "psycopg2-binary"}
_DRIVERS |= {"pymysql": "pymysql", "MySQLdb": "mysqlclient", "pyodbc": "pyodbc"}
# What MLflow is told unless somebody has; a variable that is set to nothing counts as unset, and MLflow fails at one that is no number.
_MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # by itself it tries an unreachable server for four minutes before the error shows
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # else two lines for every run that ends on a server
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # else two bars for every record or configuration that is read
}
# Those that MLflow reaches an artifact store in a cloud with.
_CLOUDS = {"boto3": "boto3", "botocore": "boto3", "google": "google-cloud-storage", "azure": "azure-storage-blob"}
_FOREIGN = {"mlflow", "sqlalchemy", "requests", "urllib3", "sqlite3", "alembic", "s3transfer", *_CLOUDS}


class TrackingError(ScalingNoteError):
    """MLflow cannot be reached, or refuses what was asked of it."""

    exit_code = 8


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn the errors of MLflow and of its stores into a TrackingError that names `action`, those of a package that is not here into a
    ConfigError. Also serves as a decorator.
    """
    try:
        yield
    except ScalingNoteError:
        raise
    except ModuleNotFoundError as error:
        driver = (error.name or "").partition(".")[0]
        if package := _CLOUDS.get(driver):
            raise ConfigError(f"Could not {action}: the artifact store needs a package that is not here. pip install {package}") from None
        if driver not in _DRIVERS:
            raise
        place = without_user(settings.tracking_uri())
        raise ConfigError(
            f"MLFLOW_TRACKING_URI names {place}, which needs the package {driver}: pip install {_DRIVERS[driver]}, or name the driver that "
            "you have, as in postgresql+psycopg://."
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and not is_of_a_store(error):  # what a server answered has that form too
            raise TrackingError(f"Could not {action}: {error}. Check free space and access rights, then run the command again.") from error
        if not is_of_a_store(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        if "failed with error code 401" in reason:
            who = signed_in_as() or "nobody"
            if who == "nobody" and os.environ.get("MLFLOW_TRACKING_TOKEN"):
                raise TrackingError(
                    f"Could not {action}: {settings.tracking_uri()} does not accept the token in MLFLOW_TRACKING_TOKEN. It may have run "
                    "out: get another."
                ) from error
            raise TrackingError(
                f"Could not {action}: {settings.tracking_uri()} does not accept the user name and password of '{who}'. "
                "Check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            ) from error
        if "database is locked" in reason:
            reason = (
                "the database is locked: another command or server has held it for longer than is waited for. Wait until that has ended, "
                "or stop it (`fuser` on the file names it), and run the command again. Nothing was changed"
            )
        if "file is not a database" in reason or "image is malformed" in reason:
            reason = f"the database is damaged ({reason}). Restore it from a backup; models, reports and records lie beside it as files"
        if "readonly database" in reason:
            reason = "this user may only read the database. See whose it is, and run the command as somebody who may write to it"
        raise TrackingError(f"Could not {action} at {settings.tracking_uri()}: {reason}") from error


def is_of_a_store(error: Exception) -> bool:
    """Whether an error is one of MLflow, of its database or of the library of an artifact store."""
    return type(error).__module__.partition(".")[0] in _FOREIGN


def require_driver() -> None:
    """Raise ConfigError when the tracking store is a database whose driver is not installed, before a server of MLflow is started on it."""
    uri = settings.tracking_uri()
    if is_server(uri) or "://" not in uri:
        return
    from sqlalchemy.engine import make_url

    with translated("open the tracking store"):
        make_url(uri).get_dialect().import_dbapi()


def is_server(uri: str) -> bool:
    """Whether `uri` is a tracking server, which decides by itself where artifacts lie."""
    return uri.lower().startswith(("http://", "https://"))


def signed_in_as() -> str | None:
    """The user name that calls to the tracking server carry; None for the embedded store, and where no name is configured."""
    if not is_server(settings.tracking_uri()):
        return None
    from mlflow.utils.credentials import read_mlflow_creds

    return read_mlflow_creds().username or None


def client() -> MlflowClient:
    """The client of the tracking store in `settings.tracking_uri()`, opened once per process."""
    uri = settings.tracking_uri()
    _require_one_store(uri)
    with translated("open the tracking store"):
        opened = _open(uri)
        _announce(uri)
    return opened


def _require_one_store(uri: str) -> None:
    """Records, runs and registered models belong together; with the registry elsewhere nothing would find its other half."""
    registry = os.environ.get("MLFLOW_REGISTRY_URI")
    if registry and settings.absolute_store(registry) != uri:
        raise ConfigError(f"MLFLOW_REGISTRY_URI names {registry}, the tracking store is {uri}; both have to be the same. Unset it.")
    if (workspace := os.environ.get("MLFLOW_WORKSPACE")) not in (None, "", "default"):
        raise ConfigError(f"MLFLOW_WORKSPACE names '{workspace}'; retrievers are kept in the default workspace. Unset it.")


@functools.lru_cache(maxsize=32)
def _open(uri: str) -> MlflowClient:
    os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"  # a place in the chain of records that is taken has to be refused at once
    for name, value in _MLFLOW.items():
        os.environ[name] = os.environ.get(name) or value
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if is_server(uri):
        require_answer()
        from mlflow import MlflowClient

        return MlflowClient(uri)
    with suppress(OSError):  # a home that is only read
        settings.artifact_root().mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    with settings.opening("MLflow"):
        embedded.settle()
        return MlflowClient(uri)


def require_answer() -> None:
    """Raise TrackingError within seconds when the tracking server is gone: MLflow itself goes on trying for some twenty."""
    uri = settings.tracking_uri()
    if not is_server(uri):
        return
    if time.monotonic() - _gone.get(uri, -_GONE_SECONDS) >= _GONE_SECONDS:
        if answers(f"{uri.rstrip('/')}/health"):
            return
        _gone[uri] = time.monotonic()
    raise TrackingError(f"No tracking server answers at {without_user(uri)}. Start it, or correct MLFLOW_TRACKING_URI.{_by_proxy(uri)}")


def _by_proxy(uri: str) -> str:
    """A sentence about the proxy through which a server is asked; empty where it is asked directly."""
    from urllib.request import getproxies, proxy_bypass

    asked = urlsplit(uri)
    proxies = getproxies()
    proxy = proxies.get(asked.scheme) or proxies.get("all")
    if not proxy or not asked.hostname or asked.hostname in settings.LOOPBACK or proxy_bypass(asked.hostname):
        return ""
    return f" It is asked through the proxy {without_user(proxy)}, which may be what is silent: name the host in NO_PROXY if it needs none."


def _announce(uri: str) -> None:
    """MLflow resolves `models:/` sources through its own current store, not through the client that was asked."""
    import mlflow

    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)


def error_code(error: Exception) -> str:
    """The code of an MLflow error, e.g. RESOURCE_DOES_NOT_EXIST; an empty string for any other error."""
    return str(getattr(error, "error_code", ""))


def experiment_id(name: str) -> str:
    """Id of the experiment `name`, made when missing. The embedded store keeps its artifacts under `settings.artifact_root()`."""
    return _experiment_id(settings.tracking_uri(), name)


@functools.lru_cache(maxsize=256)
def _experiment_id(uri: str, name: str) -> str:
    with translated(f"open the experiment '{name}'"):
        found = client().get_experiment_by_name(name)
        if found is None:
            return create_experiment(name, {}, ABOUT.format(name=name)) or _experiment_id(uri, name)
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"The experiment '{name}' was deleted; restore it with `mlflow experiments restore --experiment-id {found.experiment_id}`."
        )
    return str(found.experiment_id)


def create_experiment(name: str, tags: dict[str, str], about: str) -> str | None:
    """Make the experiment `name` with its tags in one atomic act; None when it exists already. Its page shows the text `about`."""
    from mlflow.exceptions import MlflowException

    uri = settings.tracking_uri()
    folder = re.sub(r"[^\w.-]", "_", name)
    location = None if is_server(uri) else (settings.artifact_root() / folder).as_uri()
    try:
        return str(client().create_experiment(name, artifact_location=location, tags={**tags, **KIND, NOTE: about}))
    except MlflowException as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise
        return None


def clear_caches() -> None:
    """Forget opened stores and known experiments, for example after the store's file was replaced."""
    _open.cache_clear()
    _gone.clear()
    embedded.forget()
    _experiment_id.cache_clear()
