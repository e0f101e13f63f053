"""Our artifacts as MLflow models: a pyfunc whose code is a file of `components/tracking/pyfunc` and whose data is the sealed folder.

`mlflow.pyfunc.log_model` is not used: it would work on the active run, pickle or inspect the environment, and copy the data three
times. The folder is linked into place instead and uploaded once, and the requirements are given, so nothing is inferred.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components import settings
from components.artifacts import Artifact
from components.errors import ModelError
from components.tracking import labels
from components.tracking.files import local_path
from components.tracking.package_files import SEALED, SEALED_PATH, write_package
from components.tracking.provenance import installed
from components.tracking.store import client

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

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
    MLflow's page compares models by.
    """
    from mlflow.entities import LoggedModelOutput

    if artifact.kind not in _REQUIREMENTS:
        raise ModelError(f"Only {', '.join(_REQUIREMENTS)} can be registered as models; '{name}' is of kind '{artifact.kind}'.")
    model = client().create_logged_model(
        experiment, name=name, source_run_id=run_id, tags=_model_tags(artifact), params=dict(params or {}), model_type=artifact.kind
    )
    model_id = str(model.model_id)
    folder = settings.work_folder() / "staging"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        saved = Path(staging) / "model"
        package = _save(artifact, model, run_id, saved)
        store = local_path(str(model.artifact_location))
        if store is not None and former is not None:
            _share(saved / SEALED_PATH, store / SEALED_PATH, former)
        client().log_model_artifacts(model_id, str(saved))
        if store is not None and (store / SENTENCE_TRANSFORMER).is_dir():
            _share_within(store / SENTENCE_TRANSFORMER, store / SEALED_PATH)
    client().finalize_logged_model(model_id, "READY")
    client().log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return Logged(model_id, package)


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
    shutil.copytree(artifact.path, target / SEALED_PATH, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
    # The entry that save_model would write for `artifacts=`, with our digest in the place of a path of this machine.
    entry = {SEALED: {"path": SEALED_PATH, "uri": f"sha256:{artifact.digest}"}}
    model.flavors["python_function"]["artifacts"] = entry
    if (artifact.path / _MODULES).is_file():
        shutil.copytree(artifact.path, target / SENTENCE_TRANSFORMER, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
        model.add_flavor("sentence_transformers", sentence_transformers_version=version("sentence-transformers"))
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


def _link(source: str, target: str) -> str:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
