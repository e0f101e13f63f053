"""The files behind registered versions: a local folder for each, downloaded once where the store is remote."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from components import settings
from components.errors import ArtifactError, ModelError
from components.tracking import embedded
from components.tracking.package_files import SEALED_PATH
from components.tracking.store import client, error_code, translated

_log = logging.getLogger(__name__)
COPY = re.compile(r"^models:/+([^/]+)/(\d+)/?$")  # the source of a version that was copied from another


@translated("read the files of a model version")
def artifact_folder(model_name: str, version: int, fresh: bool = False) -> Path:
    """Local folder of the sealed artifact in a registered version. Its content is not verified here: callers do.

    From a remote store it is downloaded once, and again when the store holds other files than then, such as a signature that came later.
    `fresh`: download it anyway, to see what the store holds now and not what it held then. Raises ModelError when there is no such
    version, ArtifactError when its files are gone.
    """
    location = _location(model_name, version).rstrip("/")
    folder = local_path(location)
    if folder is None:
        return _download(f"{location}/{SEALED_PATH}", fresh)
    if not (folder / SEALED_PATH).is_dir():
        raise ArtifactError(
            f"The files of {model_name}/{version} are not at {folder}. Restore the artifact store, or register the artifact again."
        )
    return folder / SEALED_PATH


def local_files(model_name: str, version: int) -> Path | None:
    """Where the sealed artifact of a version lies when the store is local; None for a remote one."""
    folder = local_path(_location(model_name, version).rstrip("/"))
    return None if folder is None else folder / SEALED_PATH


def are_lost(model_name: str, version: int) -> bool:
    """Whether the files of a version were swept from a local store, as by `mlflow gc`. Of a remote one nothing is said."""
    folder = local_files(model_name, version)
    return folder is not None and not folder.is_dir()


def forget_download(model_name: str, version: int) -> bool:
    """Remove this machine's copy of a version's files, so that they are fetched again; False where there is none, as in a local store."""
    location = _location(model_name, version).rstrip("/")
    target = _download_folder(f"{location}/{SEALED_PATH}")
    if local_path(location) is not None or not target.is_dir():
        return False
    _log.warning("The local copy of the files of %s/%s is damaged and is fetched again.", model_name, version)
    shutil.rmtree(target)
    return True


@translated("add a file to a model version")
def share_file(model_name: str, version: int, file_name: str) -> None:
    """Send a file of `artifact_folder` that came after the registration to the store; nothing to do where that is local."""
    location = _location(model_name, version).rstrip("/")
    if local_path(location) is not None:
        return
    # The copy on this machine as it lies there: asked for anew it would be fetched again, since the store does not list the file yet.
    file = _download_folder(f"{location}/{SEALED_PATH}") / file_name
    found = client().get_model_version(model_name, str(version))
    while copied := COPY.match(found.source or ""):
        found = client().get_model_version(*copied.groups())
    model_id = str(found.source).removeprefix("models:/")
    client().log_model_artifact(model_id, str(file), SEALED_PATH)


def local_path(location: str) -> Path | None:
    """The local path of an artifact location; None for a remote one."""
    parsed = urlparse(location)
    if parsed.scheme not in ("", "file"):
        return None
    return Path(unquote(parsed.path) if parsed.scheme else location)


def _location(model_name: str, version: int) -> str:
    """Where the files lie. MLflow resolved copies of copies when it made the version."""
    view = embedded.reader()
    if view is None:
        return _ask(model_name, version)
    for row in view.versions(model_name):
        if row["version"] == version:
            return str(row["storage_location"] or row["source"])
    raise _unknown(model_name, version)


def _ask(model_name: str, version: int) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client().get_model_version_download_uri(model_name, str(version)))
    except MlflowException as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
    raise _unknown(model_name, version)


def _unknown(model_name: str, version: int) -> ModelError:
    from mlflow.exceptions import MlflowException

    try:
        client().get_registered_model(model_name)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ModelError(
            f"There is no registered model '{model_name}' in {settings.tracking_uri()}: it was renamed or deleted. Give it its name again "
            "in MLflow, or restore the store from a backup."
        )
    return ModelError(f"There is no version {version} of '{model_name}' in {settings.tracking_uri()}. List them with `scalingnote status`.")


def _download_folder(uri: str) -> Path:
    return settings.work_folder() / "downloads" / hashlib.sha256(f"{settings.tracking_uri()} {uri}".encode()).hexdigest()[:32]


def _is_current(uri: str, folder: Path) -> bool:
    """Whether the store still lists the files that were downloaded, by name and size. One that does not answer is taken to."""
    from mlflow.artifacts import list_artifacts
    from mlflow.exceptions import MlflowException

    listed: dict[str, int] = {}
    waiting = [""]
    try:
        while waiting:
            place = waiting.pop()
            for entry in list_artifacts(artifact_uri=f"{uri}/{place}".rstrip("/")):
                name = f"{place}/{Path(entry.path).name}".lstrip("/")
                if entry.is_dir:
                    waiting.append(name)
                else:
                    listed[name] = int(entry.file_size or 0)
    except (MlflowException, OSError) as error:
        _log.warning("The artifact store does not list %s (%s); the copy on this machine is used.", uri, error)
        return True
    return listed == {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _download(uri: str, fresh: bool) -> Path:
    """The folder appears under its name only when it is complete."""
    target = _download_folder(uri)
    client()
    if target.is_dir() and not fresh and _is_current(uri, target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
    try:
        from mlflow.artifacts import download_artifacts

        found = Path(download_artifacts(artifact_uri=uri, dst_path=str(staging / "new")))
        if target.is_dir():
            target.replace(staging / "old")
        found.replace(target)
    except OSError:
        if not target.is_dir():  # another process that downloaded the same was first
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target
