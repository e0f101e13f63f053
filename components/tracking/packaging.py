"""Our artifacts as MLflow models: a pyfunc whose code is a file of `components/tracking/pyfunc` and whose data is the sealed folder.

A version's files lie in a local folder, downloaded once where the store is remote; those around the sealed folder, with which MLflow
loads it, have a digest of their own.

The artifact's own manifest was sealed before they were written, so they are listed beside it. The digest of the list is given to the
version as a tag when it is made, and stands in the promotion record of the release that it belongs to.

`mlflow.pyfunc.log_model` is not used: it would work on the active run, pickle or inspect the environment, and copy the data three times.
The folder is linked into place instead and uploaded once, and the requirements are given, so nothing is inferred.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlparse

from components import settings
from components.artifacts import Artifact, digest_of, file_sha256, linked, read_json, require_written, write_json
from components.errors import ArtifactError, ModelError, masked
from components.text import visible
from components.tracking import embedded, labels
from components.tracking.live import scratch
from components.tracking.provenance import installed
from components.tracking.store import client, error_code, is_of_a_store, translated

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature


SEALED = "sealed"  # name of the artifact inside the pyfunc, and of the folder that holds it
SEALED_PATH = f"artifacts/{SEALED}"
LIST_FILE = "package.json"
_USE = ".uri"  # what stands beside a download: where it came from; its time is that of the last use
_META_FILE = "registered_model_meta"  # MLflow writes it when it loads a version where it lies
WITHIN_A_RUN = re.compile(r"(^|/)(m-)?[0-9a-f]{32}/artifacts/")  # what a run or a model keeps: whoever trains writes it, under any name


def write_package(root: Path) -> str:
    """List all files of a model's folder but the sealed ones by their sha256; returns the digest of the list."""
    files = {path.relative_to(root).as_posix(): file_sha256(path) for path in _members(root)}
    write_json(root / LIST_FILE, {"files": files})
    return digest_of({"files": files})


def check_package(folders: Sequence[Path], expected: str | None) -> bool:
    """Hash the files around the copies of a sealed artifact; False where none are listed, as for what was registered before.

    `expected`: the digest of the list, None when nothing names it. One copy has to have that list: another retriever may have registered
    the same artifact, with a list of its own. Raises ArtifactError that names the first difference, and for byte code beside the
    code, which Python would run in its place.
    """
    roots = [sealed.parents[1] for sealed in map(Path.absolute, folders) if sealed.as_posix().endswith(f"/{SEALED_PATH}")]
    listed = {_checked(root) for root in roots if (root / LIST_FILE).is_file()}
    if roots and expected is not None and expected not in listed:
        raise ArtifactError(f"{roots[0] / LIST_FILE} was changed or removed after the version was registered. Restore it.")
    return bool(listed)


def packaged_digest(sealed: Path) -> str:
    """The digest that the file MLmodel around a sealed artifact names for it; raises ArtifactError where it names none."""
    import yaml

    place = sealed.parents[1] / "MLmodel"
    try:
        entry = yaml.safe_load(place.read_text(encoding="utf-8"))["flavors"]["python_function"]["artifacts"][SEALED]["uri"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        entry = ""
    scheme, _, digest = str(entry).partition(":")
    if scheme != "sha256" or not digest:
        raise ArtifactError(f"{place} does not name the digest of the artifact that belongs to it. Restore the model's folder.")
    return digest


def _checked(root: Path) -> str:
    """The digest of the list of a model's folder, whose files are those of the list."""
    listed = read_json(root / LIST_FILE)
    require_written(root / LIST_FILE)
    files = listed.get("files") if isinstance(listed, dict) else None
    if not isinstance(files, dict):
        raise ArtifactError(f"{root / LIST_FILE} is not a list of files. Restore it.")
    _compare(root, files, {path.relative_to(root).as_posix(): path for path in _members(root)})
    return digest_of(listed)


def _compare(root: Path, listed: dict[str, str], found: dict[str, Path]) -> None:
    if cached := sorted(name for name in set(found) - set(listed) if name.endswith(".pyc") or "__pycache__" in name.split("/")):
        raise ArtifactError(
            f"{root}: {cached[0]} is byte code, which Python runs in place of the source that was registered. Delete every folder "
            "__pycache__ there. Versions of today leave none when MLflow loads them; older ones do."
        )
    if linked := next((path for path in root.rglob("*") if path.is_symlink()), None):
        raise ArtifactError(f"{linked} is a link, and what it leads to can change. Put the file itself there.")
    if strange := sorted(set(listed) ^ set(found)):
        what = "is missing" if strange[0] in listed else "does not belong there"
        raise ArtifactError(f"{root}: the file {strange[0]}, with which MLflow loads the version, {what}. Restore the model's folder.")
    for name, path in found.items():
        if file_sha256(path) != listed[name]:
            raise ArtifactError(f"{root}: the file {name}, with which MLflow loads the version, was changed. Restore it.")


def _members(root: Path) -> list[Path]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_relative_to(root / SEALED_PATH))
    return [path for path in files if path not in (root / LIST_FILE, root / _META_FILE)]


# --- The files behind registered versions: a local folder for each, downloaded once where the store is remote.


_log = logging.getLogger(__name__)
COPY = re.compile(r"^models:/+([^/]+)/([0-9]{1,18})/?\Z")  # the source of a version that was copied from another


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
    sealed, root = folder / SEALED_PATH, settings.artifact_root()
    if sealed.is_relative_to(root) and not sealed.resolve().is_relative_to(root.resolve()):
        raise ArtifactError(
            f"{sealed} leads out of the artifact store through a link, and what it leads to can change after it was checked. Put the files "
            "themselves there."
        )
    if not sealed.is_dir():
        raise ArtifactError(
            f"The files of {model_name}/{version} are not at {folder}. Restore the artifact store, or register the artifact again."
        )
    return sealed


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


def unused_downloads(days: int) -> Iterator[Path]:
    """Copies of the files of a remote store that nothing has opened for `days` days, and that could be fetched again.

    What the store does not list as it lies here may be the last copy there is; so may that of another store, and of one that is gone.
    """
    for use in sorted((settings.work_folder() / "downloads").glob(f"*{_USE}")):
        uri, folder, at = use.read_text("utf-8"), use.with_suffix(""), use.stat().st_mtime
        if not folder.is_dir() or folder != _download_folder(uri) or at > time.time() - days * 86_400:
            continue
        if (listed := _listed(uri)) is None:
            return  # it would be waited for as long again for each of them
        if listed == _held(folder) and use.stat().st_mtime == at:  # else it was asked for meanwhile
            yield folder


def _keep_use(uri: str, folder: Path) -> None:
    """Note when the download was asked for last, and where it came from, beside it: its own files are held against the store's list."""
    with suppress(OSError):  # a home that cannot be written to
        folder.with_suffix(_USE).write_text(masked(uri), "utf-8")  # a folder whose URI holds a password is never removed


def _is_current(uri: str, folder: Path) -> bool:
    """Whether the store still lists what was downloaded, by name and size. One that does not answer, or lost it, is taken to."""
    listed = _listed(uri)
    if listed is not None and not listed:  # perhaps the last copy there is
        _log.warning("The artifact store holds nothing at %s any more; the copy on this machine is used.", masked(uri))
    return not listed or listed == _held(folder)


def _held(folder: Path) -> dict[str, int]:
    """Bytes of each file, by its path within the folder."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _listed(uri: str) -> dict[str, int] | None:
    """The same of what the store lists at `uri`; None where it does not answer, which is told."""
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
    except Exception as error:
        # Also in the words of the library of a cloud; one that is missing here is another matter.
        if not (isinstance(error, MlflowException | OSError) or is_of_a_store(error)):
            raise
        _log.warning("The artifact store does not list %s (%s); the copy on this machine is kept.", masked(uri), masked(str(error)))
        return None
    return listed


def _download(uri: str, fresh: bool) -> Path:
    """The folder appears under its name only when it is complete."""
    target = _download_folder(uri)
    client()
    if target.is_dir():
        _keep_use(uri, target)
        if not fresh and _is_current(uri, target):
            return target
    with scratch(target.parent, ".partial-") as staging:
        found = Path(_fetched(uri, staging / "new"))
        try:
            if target.is_dir():
                target.replace(staging / "old")
            found.replace(target)
        except OSError:
            if not target.is_dir():  # another process that downloaded the same was first
                raise
    _keep_use(uri, target)
    return target


def _fetched(uri: str, folder: Path) -> str:
    """Download what lies at `uri`. Raises ArtifactError where the store answers and holds nothing there, as after a sweep."""
    from mlflow.artifacts import download_artifacts, list_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return str(download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except ValueError as error:
        if isinstance(error, OSError):  # an answer of a server that is none
            raise
        raise ArtifactError(
            f"'{visible(uri)}' is no place of an artifact store ({error}). Whoever made this version has named it."
        ) from None
    except MlflowException:
        try:
            listed = list_artifacts(artifact_uri=uri)  # which raises what a store does that is away
        except MlflowException as error:
            if error_code(error) not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            listed = None  # it answers that there is no such run, model or folder
        if listed:
            raise
    raise ArtifactError(f"The artifact store holds nothing at {uri}. Restore it, or register the artifact again.") from None


# --- Our artifacts as MLflow models: a pyfunc whose code is a file of `components/tracking/pyfunc` and whose data is the sealed folder.


# The folder that `mlflow.sentence_transformers.load_model` opens, and the file that says that an encoder can be opened so.
SENTENCE_TRANSFORMER, _MODULES = "model.sentence_transformer", "modules.json"
_MODELS = Path(__file__).parent / "pyfunc"
_EXAMPLE = "kidney stone"
_COMMON = ("mlflow", "pydantic", "numpy", "pandas", "pyarrow")
_ENCODER = ("torch", "transformers", "sentence-transformers", "peft", "safetensors", "tokenizers")
_REQUIREMENTS = {
    "encoder": _COMMON + _ENCODER,
    "index": (*_COMMON, "faiss-cpu"),
    "release": (*_COMMON, *_ENCODER, "faiss-cpu"),
}


class Logged(NamedTuple):
    """Id of a LoggedModel, and the digest of the list of its files around the artifact (see `package_files`)."""

    model_id: str
    package: str


def log_model(
    artifact: Artifact, name: str, experiment: str, run_id: str, former: Path | None = None, params: Mapping[str, str] | None = None
) -> Logged:
    """Upload `artifact` as a LoggedModel, an output of the run. It is READY only when all of it is there.

    `former`: the folder in a local store of the registered version that it was made from, whose files it may share. `params`: what
    MLflow's page compares models by. Raises ModelError for a kind of artifact that is no model.
    """
    from mlflow.entities import LoggedModelOutput

    if artifact.kind not in _REQUIREMENTS:
        raise ModelError(f"Only {', '.join(_REQUIREMENTS)} can be registered as models; '{name}' is of kind '{artifact.kind}'.")
    model = client().create_logged_model(
        experiment, name=name, source_run_id=run_id, tags=_model_tags(artifact), params=dict(params or {}), model_type=artifact.kind
    )
    model_id, store = str(model.model_id), local_path(str(model.artifact_location))
    with scratch(settings.work_folder() / "staging", "model-") as staging, _whole_or_gone(store):
        saved = staging / "model"
        package = _save(artifact, model, run_id, saved)
        if store is not None and former is not None:
            _share(saved / SEALED_PATH, store / SEALED_PATH, former)
        client().log_model_artifacts(model_id, str(saved))
        if store is not None and (store / SENTENCE_TRANSFORMER).is_dir():
            _share_within(store / SENTENCE_TRANSFORMER, store / SEALED_PATH)
    client().finalize_logged_model(model_id, "READY")
    client().log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return Logged(model_id, package)


@contextmanager
def _whole_or_gone(store: Path | None) -> Iterator[None]:
    """Remove what a block that fails has put into the folder of a local store: the next attempt writes into one of its own, so a disk that
    became full here would stay so. A folder that was there before is none of ours, whatever a server calls the place of a new model.
    """
    new = store is not None and not store.exists()
    try:
        yield
    except BaseException:
        if store is not None and new:
            shutil.rmtree(store, ignore_errors=True)
        raise


def _model_tags(artifact: Artifact) -> dict[str, str]:
    return labels.prefixed({labels.DIGEST: artifact.digest, labels.KIND: artifact.kind})


def _save(artifact: Artifact, logged: LoggedModel, run_id: str, target: Path) -> str:
    """Write the pyfunc folder `target`; the artifact's files are linked, not copied. Returns the digest of the list of all others."""
    import mlflow.pyfunc
    from mlflow.models import Model

    model = Model(artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example")  # what has none is an index without a known width
        mlflow.pyfunc.save_model(
            path=str(target),
            mlflow_model=model,
            python_model=str(_MODELS / f"{artifact.kind}_model.py"),
            code_paths=[str(_MODELS.parents[1])],
            pip_requirements=requirements(artifact.kind),
            signature=_signature(artifact),
            input_example=_example(artifact),
        )
    for cache in list(target.rglob("__pycache__")):
        shutil.rmtree(cache, ignore_errors=True)
    shutil.copytree(artifact.path, target / SEALED_PATH, copy_function=linked, ignore=shutil.ignore_patterns(".*"))
    # The entry that save_model would write for `artifacts=`, with our digest in the place of a path of this machine.
    entry = {SEALED: {"path": SEALED_PATH, "uri": f"sha256:{artifact.digest}"}}
    model.flavors["python_function"]["artifacts"] = entry
    if (artifact.path / _MODULES).is_file():
        shutil.copytree(artifact.path, target / SENTENCE_TRANSFORMER, copy_function=linked, ignore=shutil.ignore_patterns(".*"))
        model.add_flavor("sentence_transformers", sentence_transformers_version=version("sentence-transformers"))
    model.model_size_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())  # MLflow knew nothing of the artifact
    model.save(str(target / "MLmodel"))
    return write_package(target)


def requirements(kind: str) -> list[str]:
    """Pinned requirements of a pyfunc: the versions installed here, by which an index of packages knows them.

    A build for one kind of machine, as torch 2.13.0+cpu, is in no index.
    """
    from packaging.version import Version

    versions: Mapping[str, str] = installed(_REQUIREMENTS[kind])
    return [f"{name}=={Version(version).public}" for name, version in versions.items()]


def _signature(artifact: Artifact) -> ModelSignature:
    """Texts in for encoder and release, vectors in for an index; `k` bounds what an index or a release returns.

    An encoder gives vectors, an index lists of ids, a release three lists for each query: `doc_ids`, `scores` and `titles`.
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array

    texts = Schema([ColSpec(DataType.string)])
    vectors = Schema([TensorSpec(np.dtype(np.float32), (-1, -1))])
    k = ParamSchema([ParamSpec("k", DataType.long, 10)])
    if artifact.kind == "encoder":
        return ModelSignature(inputs=texts, outputs=vectors)
    if artifact.kind == "index":
        return ModelSignature(inputs=vectors, outputs=Schema([ColSpec(Array(DataType.string))]), params=k)
    columns = {"doc_ids": DataType.string, "scores": DataType.double, "titles": DataType.string}
    return ModelSignature(inputs=texts, outputs=Schema([ColSpec(Array(kind), name) for name, kind in columns.items()]), params=k)


def _example(artifact: Artifact) -> Any:
    """What a model can be tried with: a text, or a unit vector of the index's width; None for an index that does not name it."""
    import numpy as np
    import pandas as pd

    if artifact.kind != "index":
        return pd.DataFrame([_EXAMPLE])
    width = artifact.attributes.get("dimension")
    return np.eye(1, width, dtype=np.float32) if isinstance(width, int) else None


def _share(sealed: Path, place: Path, former: Path) -> None:
    """Give the staged files that are still those of the former version their place in the store by a link: they take no space twice.

    The staged names of them go, and all that is left is uploaded. Nothing writes into a registered file, every version has names of its
    own, and the bytes go with the last name: versions may be deleted in any order.
    """
    for path in [path for path in sealed.rglob("*") if path.is_file()]:
        target, earlier = place / path.relative_to(sealed), former / path.relative_to(sealed)
        if earlier.is_file() and earlier.samefile(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(earlier, target)
            except OSError:  # a file may have 65,000 names on ext4, 1,024 on NTFS: then it is uploaded like a new one
                continue
            path.unlink()


def _share_within(folder: Path, sealed: Path) -> None:
    """Let the files in `folder` of a local store be those of the sealed artifact once more: a second copy would only take space."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        beside = path.with_name(f".{path.name}")
        with suppress(OSError):  # a file system without links, where the copy stays
            os.link(sealed / path.relative_to(folder), beside)
            beside.replace(path)
