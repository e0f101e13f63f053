"""The registry: registration, copies, aliases, and the files behind a version."""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from mlflow.exceptions import MlflowException

from components import settings
from components.artifacts import Artifact, seal, verify
from components.errors import ArtifactError, ConfigError, ModelError
from components.tracking import embedded, packaging, registry
from components.tracking.packaging import check_package
from components.tracking.provenance import version_tags
from components.tracking.registry import (
    RegisteredVersion,
    alias,
    artifact_folder,
    copied_from,
    copy_version,
    ensure_model,
    register,
    set_alias,
    versions,
)
from components.tracking.runs import StepRecord, open_flow_run, record_step
from components.tracking.store import TrackingError, client, translated
from tests.unit.promotion_world import PROVENANCE

MODEL = "retriever-index"


def make_index(folder: Path, content: str = "vectors") -> Artifact:
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "index.faiss").write_text(content)
    return seal(folder, "index", parents={"vectors": "f" * 64}, attributes={"space_id": "space-1", "nprobe": None})


def register_index(artifact: Artifact) -> RegisteredVersion:
    parent = open_flow_run("retriever", "retrain", {}, PROVENANCE, {})
    step = record_step(parent, StepRecord("build_index", {}, artifact))
    return register(MODEL, artifact, step, {}, version_tags(PROVENANCE, "d" * 64, {"a": 1}, "flow-1"))


def test_registered_version_carries_its_lineage(home: Path, tmp_path: Path) -> None:
    artifact = make_index(tmp_path / "index")
    version = register_index(artifact)
    (info,) = versions(MODEL)
    assert version == RegisteredVersion(name=MODEL, version=1, digest=artifact.digest)
    expected = {
        "digest": artifact.digest,
        "kind": "index",
        "parent.vectors": "f" * 64,
        "attribute.space_id": "space-1",
        "data_digest": "d" * 64,
        "code_revision": "abc",
        "dirty": "false",
        "lock_digest": "e" * 64,
        "flow_run_id": "flow-1",
    }
    assert {key: info.tags[f"scalingnote.{key}"] for key in expected} == expected
    assert len(info.tags["scalingnote.config_digest"]) == 64
    assert "scalingnote.patch_digest" not in info.tags
    assert client().get_registered_model(MODEL).description == registry._DESCRIPTIONS["-index"]
    registry.set_description(MODEL, 1, "# Evidence")
    assert client().get_model_version(MODEL, "1").description == "# Evidence"


def test_registering_again_gives_the_same_version(home: Path, tmp_path: Path) -> None:
    artifact = make_index(tmp_path / "index")
    assert register_index(artifact) == register_index(artifact)
    assert register_index(make_index(tmp_path / "other", "other")).version == 2
    assert [info.version for info in versions(MODEL)] == [1, 2]


def test_a_registration_that_fails_half_way_leaves_no_files(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk each attempt left the files that it had copied, so that there was ever less room."""
    copy = type(client()).log_model_artifacts

    def half(*given: Any) -> None:
        copy(*given)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(TrackingError, match="No space left"):
        patch.setattr(type(client()), "log_model_artifacts", half)
        register_index(make_index(tmp_path / "index"))
    assert not [path for path in (home / "mlflow" / "artifacts").rglob("*") if path.name == "sealed"]
    again = register_index(make_index(tmp_path / "again"))
    verify(artifact_folder(again.name, again.version), again.digest)


def test_a_registration_that_fails_removes_no_folder_that_was_there_before(tmp_path: Path) -> None:
    """A server names the place of a new model, and may be wrong, or no friend."""
    (tmp_path / "mine").mkdir()
    for place, stays in ((tmp_path / "mine", True), (tmp_path / "new", False)):
        with pytest.raises(OSError, match="full"), packaging._whole_or_gone(place):
            (place / "sealed").mkdir(parents=True)
            raise OSError("full")
        assert place.exists() == stays


def test_files_are_a_verified_copy_of_their_own(home: Path, tmp_path: Path) -> None:
    artifact = make_index(tmp_path / "index")
    register_index(artifact)
    (tmp_path / "index" / "deep" / "index.faiss").write_text("changed later")
    folder = artifact_folder(MODEL, 1)
    assert folder.is_relative_to(home / "mlflow" / "artifacts")
    assert verify(folder, artifact.digest).space_id == "space-1"
    assert not list((home / "work" / "staging").iterdir())
    assert not list(folder.parents[1].rglob("__pycache__"))


def test_a_refreshed_index_shares_the_files_that_it_kept_with_the_version_it_was_made_from(home: Path, tmp_path: Path) -> None:
    register_index(make_index(tmp_path / "index", "kept"))
    first = artifact_folder(MODEL, 1)
    (tmp_path / "refreshed" / "deep").mkdir(parents=True)
    os.link(first / "deep" / "index.faiss", tmp_path / "refreshed" / "deep" / "index.faiss")
    (tmp_path / "refreshed" / "new.npy").write_text("added")
    made = seal(tmp_path / "refreshed", "index", parents={"index": verify(first).digest}, attributes={"space_id": "space-1"})
    register_index(made)
    second = artifact_folder(MODEL, 2)
    assert (second / "deep" / "index.faiss").samefile(first / "deep" / "index.faiss")
    assert not (second / "new.npy").samefile(tmp_path / "refreshed" / "new.npy")
    assert verify(second, made.digest).digest == made.digest and not list((home / "work" / "staging").iterdir())
    shutil.rmtree(first.parents[1])  # as `mlflow gc` does
    assert verify(second, made.digest).digest == made.digest


def test_missing_versions_and_lost_files_are_named(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no registered model 'retriever-index'"):
        artifact_folder(MODEL, 3)
    register_index(make_index(tmp_path / "index"))
    with pytest.raises(ModelError, match="no version 3 of 'retriever-index'"):
        artifact_folder(MODEL, 3)
    shutil.rmtree(artifact_folder(MODEL, 1))
    with pytest.raises(ArtifactError, match="files of retriever-index/1"):
        artifact_folder(MODEL, 1)


def test_copies_keep_tags_and_files_and_name_their_origin(home: Path, tmp_path: Path) -> None:
    artifact = make_index(tmp_path / "index")
    register_index(artifact)
    assert copy_version(MODEL, 1, "approved") == 1
    assert copy_version("approved", 1, "again") == 1
    (copy,) = versions("approved")
    assert copied_from(copy) == (MODEL, 1)
    assert copied_from(versions(MODEL)[0]) is None
    assert copy.tags["scalingnote.digest"] == artifact.digest
    assert artifact_folder("again", 1) == artifact_folder(MODEL, 1)
    promoted = client().copy_model_version(f"models:/{MODEL}/1", "approved")  # what MLflow's own "Promote" does
    assert copied_from(versions("approved")[1]) == (MODEL, 1)
    assert promoted.tags == copy.tags


def test_aliases(home: Path, tmp_path: Path) -> None:
    register_index(make_index(tmp_path / "index"))
    assert alias(MODEL, "champion") is None
    assert alias("nothing", "champion") is None
    set_alias(MODEL, "champion", 1)
    set_alias(MODEL, "previous", 1)
    assert alias(MODEL, "champion") == 1
    assert versions(MODEL)[0].aliases == ("champion", "previous")
    registry.delete_alias(MODEL, "champion")
    registry.delete_alias(MODEL, "champion")
    assert alias(MODEL, "champion") is None
    with pytest.raises(TrackingError, match="Could not set an alias"):
        set_alias(MODEL, "champion", 9)


def test_version_tags_get_the_prefix(home: Path, tmp_path: Path) -> None:
    register_index(make_index(tmp_path / "index"))
    registry.set_version_tag(MODEL, 1, "approved_by", "ada")
    assert versions(MODEL)[0].tags["scalingnote.approved_by"] == "ada"


def test_ensure_model_twice_and_unknown_kinds(home: Path, tmp_path: Path) -> None:
    ensure_model("retriever-release")
    ensure_model("retriever-release")
    assert versions("retriever-release") == []
    (tmp_path / "data").mkdir()
    with pytest.raises(ModelError, match="kind 'dataset'"):
        register_index(seal(tmp_path / "data", "dataset"))


def test_embedded_view_agrees_with_mlflow(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_index(make_index(tmp_path / "index"))
    register_index(make_index(tmp_path / "other", "other"))
    copy_version(MODEL, 2, "approved")
    set_alias(MODEL, "champion", 2)
    client().delete_model_version(MODEL, "1")
    assert embedded.reader() is not None, "MLflow's tables have changed: check embedded.py and add the revision"

    def everything() -> list[Any]:
        return [versions(MODEL), versions("approved"), versions("none"), alias(MODEL, "champion"), artifact_folder("approved", 1)]

    quick = everything()
    monkeypatch.setattr(embedded, "KNOWN_SCHEMAS", frozenset())
    assert embedded.reader() is None
    assert everything() == quick
    with pytest.raises(ModelError):
        artifact_folder(MODEL, 1)


def test_reading_a_home_that_does_not_exist_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert versions(MODEL) == []
    assert alias(MODEL, "champion") is None
    assert not (tmp_path / "none").exists()


def test_unreachable_server_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"No tracking server answers at http://127\.0\.0\.1:9\. Start it"):
        versions(MODEL)


class FakeIndex:
    """Stands for the real index, whose room has tests of its own."""

    dimension = 4

    def __init__(self, folder: Path, space_id: str, check: str) -> None:
        assert (space_id, check) == ("space-1", "sizes")  # the files were hashed just before

    def search(self, vectors: Any, k: int) -> tuple[Any, list[list[str]]]:
        return vectors, [[f"doc-{row}"] * k for row in range(len(vectors))]


class FakeRetriever:
    """Stands for the retriever: records what it was opened with."""

    index = SimpleNamespace(rows="rows")

    opened: ClassVar[list[Any]] = []

    @classmethod
    def open(cls, *parts: Any, check: str) -> FakeRetriever:
        assert check == "sizes"
        cls.opened.append(parts)
        return cls()

    def search(self, queries: list[str], k: int) -> list[list[Any]]:
        return [[SimpleNamespace(doc_id=f"{query}-{rank}", score=1.0) for rank in range(k)] for query in queries]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that the models from code import when MLflow loads them."""
    importlib.import_module("components.serving.loader")  # with the true ones, whichever test comes first
    encoder = SimpleNamespace(encode=lambda texts: np.array([[len(text), 1.0] for text in texts], dtype=np.float32))
    modules = {
        "components.distillation.student": SimpleNamespace(load_encoder=lambda folder: encoder),
        "components.index.search": SimpleNamespace(load_index=FakeIndex),
        "components.serving.retriever": SimpleNamespace(Retriever=FakeRetriever),
        "components.index.rows": SimpleNamespace(read_titles=lambda folder, rows: {"heart-0": f"The heart, {rows}"}),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow puts the model's code in front of it


def load(name: str) -> Any:
    from mlflow.pyfunc import load_model

    return load_model(f"models:/{name}/1")


def register_kind(folder: Path, kind: str, name: str, files: dict[str, Any]) -> RegisteredVersion:
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    artifact = seal(folder, kind, attributes={"space_id": "space-1"})
    step = record_step(open_flow_run("retriever", "retrain", {}, PROVENANCE, {}), StepRecord(kind, {}, artifact))
    return register(name, artifact, step, {}, {})


def test_index_pyfunc_searches_and_refuses_a_changed_file(home: Path, tmp_path: Path, fakes: None) -> None:
    register_index(make_index(tmp_path / "index"))
    vectors = np.zeros((2, 4), dtype=np.float32)
    assert load(MODEL).predict(vectors, params={"k": 2}) == [["doc-0", "doc-0"], ["doc-1", "doc-1"]]
    for k in (0, None):
        with pytest.raises(MlflowException, match=f"k is a whole number from 1, not {k}"):
            load(MODEL).predict(vectors, params={"k": k})
    for strange, said in (
        (vectors[:, :3], r"vectors of 4 dimensions.*\(2, 3\)"),
        (np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]]), "Row 1 holds values"),
    ):
        with pytest.raises(MlflowException, match=said) as refused:
            load(MODEL).predict(strange.astype(np.float32))
        assert refused.value.get_http_status_code() == 400
    (artifact_folder(MODEL, 1) / "deep" / "index.faiss").write_text("tampered")
    with pytest.raises(ArtifactError, match="was changed"):
        load(MODEL)


def test_encoder_pyfunc_gives_vectors(home: Path, tmp_path: Path, fakes: None) -> None:
    register_kind(tmp_path / "encoder", "encoder", "retriever-query-encoder", {"weights.json": 1})
    vectors = load("retriever-query-encoder").predict(["heart", "kidney stone"])
    assert vectors.tolist() == [[5.0, 1.0], [12.0, 1.0]]
    for strange in (None, float("nan"), pd.NA, b"heart", 3):
        with pytest.raises(MlflowException, match=r"Row 1 holds .* in the place of a text"):
            load("retriever-query-encoder").predict(pd.DataFrame({"text": pd.Series(["heart", strange], dtype=object)}))


def test_release_pyfunc_opens_the_pinned_versions(home: Path, tmp_path: Path, fakes: None) -> None:
    encoder = register_kind(tmp_path / "encoder", "encoder", "retriever-query-encoder", {"weights.json": 1})
    index = register_index(make_index(tmp_path / "index"))
    pins = {
        role: {"model": pin.name, "version": pin.version, "digest": pin.digest}
        for role, pin in {"query_encoder": encoder, "index": index}.items()
    }
    register_kind(tmp_path / "release", "release", "retriever-candidate", {"release.json": {"name": "retriever", "pins": pins}})
    model = load("retriever-candidate")
    (row,) = model.predict(["heart"], params={"k": 2}).to_dict("records")
    assert row == {"doc_ids": ["heart-0", "heart-1"], "scores": [1.0, 1.0], "titles": ["The heart, rows", ""]}
    assert len(model.predict(["heart"])["doc_ids"][0]) == 10
    chosen = pd.DataFrame({"text": ["heart", "burn", "kidney"]}).iloc[[2, 0]]  # as a table takes them: by the names of its rows
    assert [ids[0] for ids in chosen.assign(found=model.predict(chosen)["doc_ids"])["found"]] == ["kidney-0", "heart-0"]
    for strange in (None, float("nan"), pd.NA, b"heart", "", " \u200b"):
        with pytest.raises(MlflowException, match=r"Row 1 holds .* asks for nothing"):
            model.predict(pd.DataFrame({"text": pd.Series(["heart", strange], dtype=object)}))
    for k in (0, -1, None):
        with pytest.raises(MlflowException, match=f"k is a whole number from 1, not {k}") as refused:
            model.predict(["heart"], params={"k": k})
        assert refused.value.get_http_status_code() == 400
    assert model.metadata.signature.outputs.input_names() == ["doc_ids", "scores", "titles"]
    assert len(model.predict(model.input_example)) == 1
    folders = [artifact_folder(pin.name, pin.version) for pin in (encoder, index)]
    assert list(FakeRetriever.opened[-1][1:3]) == folders
    (folders[1] / "deep" / "index.faiss").write_text("tampered")
    with pytest.raises(ArtifactError, match="was changed"):
        load("retriever-candidate")


def test_versions_are_described_and_compared_by_what_was_measured(home: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = seal(tmp_path / "data", "dataset", attributes={"name": "clinic"})
    parent = open_flow_run("retriever", "retrain", {}, PROVENANCE, {})
    found = []
    for place, recall in enumerate((0.7, 0.9)):
        artifact = make_index(tmp_path / f"index-{place}", f"vectors {place}")
        step = record_step(parent, StepRecord("build_index", {"kind": "exact", "nested": {"lists": 8}}, artifact))
        version = register(MODEL, artifact, step, {}, {})
        registry.log_version_metrics(version, {"recall@50": recall, "gates/pass": 3.0, "lost": float("nan")}, data)
        registry.log_version_metrics(version, {"recall@50": recall}, data)
        found.append(client().get_model_version(MODEL, str(version.version)))
    experiment = client().get_run(parent).info.experiment_id
    (best,) = client().search_logged_models([experiment], filter_string="metrics.recall_at_50 > 0.8")
    assert found[1].source == f"models:/{best.model_id}"
    assert best.params == {"kind": "exact", "nested.lists": "8", "space_id": "space-1", "nprobe": "None"}
    assert sorted((m.key, m.value, m.dataset_name, m.dataset_digest) for m in best.metrics) == [
        ("gates/pass", 3.0, "clinic", data.digest[:36]),
        ("recall_at_50", 0.9, "clinic", data.digest[:36]),
    ]
    assert len(client().search_logged_models([experiment], filter_string="metrics.recall_at_50 > 0.1")) == 2
    assert "Index over the vectors of the document tower." in found[0].description and "- space id: space-1" in found[0].description
    assert "None" not in found[0].description, "what an artifact has not is no fact about it"
    assert [info.tags["scalingnote.metric.recall_at_50"] for info in versions(MODEL)] == ["0.7000", "0.9000"]


def test_a_copy_is_measured_with_its_origin(home: Path, tmp_path: Path) -> None:
    artifact = make_index(tmp_path / "index")
    register_index(artifact)
    copy_version(MODEL, 1, "retriever-release")
    registry.log_version_metrics(RegisteredVersion(name="retriever-release", version=1, digest=artifact.digest), {"x": 1.0}, artifact)
    (origin,) = client().search_logged_models([client().get_experiment_by_name("retriever").experiment_id])
    assert [metric.key for metric in origin.metrics] == ["x"]


def test_a_version_whose_run_was_deleted_is_no_reason_to_stop(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    artifact = make_index(tmp_path / "index")
    version = register_index(artifact)
    client().delete_run(client().get_model_version(MODEL, "1").run_id)
    registry.log_version_metrics(version, {"recall@50": 0.5}, artifact)
    assert "cannot compare retriever-index/1" in caplog.text
    assert versions(MODEL)[0].tags["scalingnote.metric.recall_at_50"] == "0.5000"


def test_the_challenger_is_the_newest_candidate_that_passed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        register_kind(tmp_path / f"release-{n}", "release", "retriever-candidate", {"release.json": {"name": "retriever", "n": n}})
        for n in range(2)
    ]
    registry.mark_challenger(made[1])
    registry.mark_challenger(made[0])  # an older one that was found again
    assert alias("retriever-candidate", "challenger") == 2
    newest = register_kind(tmp_path / "release-3", "release", "retriever-candidate", {"release.json": {"name": "retriever", "n": 3}})

    def refuse(*_: Any) -> None:
        raise TrackingError("ada (trainer) may not set alias on retriever-candidate")

    monkeypatch.setattr(registry, "set_alias", refuse)
    registry.mark_challenger(newest)  # a server of before that does not let a trainer set it
    assert alias("retriever-candidate", "challenger") == 2


def test_a_student_is_also_a_model_of_sentence_transformers(home: Path, tmp_path: Path) -> None:
    register_kind(tmp_path / "encoder", "encoder", "retriever-query-encoder", {"modules.json": [], "weights.json": 1})
    sealed = artifact_folder("retriever-query-encoder", 1)
    package = sealed.parents[1]
    other = package / "model.sentence_transformer"
    assert {path.name for path in other.iterdir()} == {path.name for path in sealed.iterdir()}
    assert all((other / path.name).samefile(path) for path in sealed.iterdir()), "the files take space twice"
    flavors = yaml.safe_load((package / "MLmodel").read_text())["flavors"]
    assert flavors["sentence_transformers"]["sentence_transformers_version"]
    assert check_package([sealed], registry.package_digest("retriever-query-encoder", 1))
    (other / "weights.json").unlink()
    (other / "weights.json").write_text("2")
    with pytest.raises(ArtifactError, match=r"weights\.json, with which MLflow loads the version, was changed"):
        check_package([sealed], None)


def test_mlflow_knows_the_size_of_a_whole_model(home: Path, tmp_path: Path) -> None:
    register_index(make_index(tmp_path / "index", "v" * 100_000))
    model = artifact_folder(MODEL, 1).parents[1]
    told = yaml.safe_load((model / "MLmodel").read_text())["model_size_bytes"]
    beside = sum((model / name).stat().st_size for name in ("MLmodel", packaging.LIST_FILE))  # written when the size is known
    assert told == pytest.approx(sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) - beside, abs=10_000)


def test_the_columns_of_a_data_set_have_their_types_and_vectors_are_lists_of_numbers(tmp_path: Path) -> None:
    from mlflow.types import DataType
    from mlflow.types.schema import Array, Schema

    vectors = pd.Series([np.zeros(4, np.float16)], dtype=pd.ArrowDtype(pa.list_(pa.float16(), 4)))
    pd.DataFrame({"doc_id": ["d1"], "vector": vectors, "rank": [1]}).to_parquet(tmp_path / "vectors-00000.parquet")
    schema = registry._schema(seal(tmp_path, "vectors"))
    types = {column.name: column.type for column in Schema.from_json(json.dumps(json.loads(schema or "")["mlflow_colspec"]))}
    assert types == {
        "vectors-00000.doc_id": DataType.string,
        "vectors-00000.vector": Array(DataType.double),
        "vectors-00000.rank": DataType.long,
    }


def test_an_encoder_that_is_no_package_has_no_such_flavor(home: Path, tmp_path: Path) -> None:
    register_kind(tmp_path / "tower", "encoder", "retriever-query-tower", {"weights.json": 1})
    package = artifact_folder("retriever-query-tower", 1).parents[1]
    assert list(yaml.safe_load((package / "MLmodel").read_text())["flavors"]) == ["python_function"]


def test_requirements_name_versions_that_an_index_of_packages_has(monkeypatch: pytest.MonkeyPatch) -> None:
    versions_here = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "faiss-cpu": "1.15.1.post1"}
    monkeypatch.setattr(packaging, "installed", lambda names: versions_here)
    assert packaging.requirements("index") == ["torch==2.13.0", "numpy==2.4.6", "faiss-cpu==1.15.1.post1"]


def test_stored_model_needs_no_checkout_and_names_its_requirements(home: Path, tmp_path: Path) -> None:
    register_index(make_index(tmp_path / "index"))
    model = artifact_folder(MODEL, 1).parents[1]
    assert (model / "code" / "components" / "artifacts.py").is_file()
    assert any(line.startswith("faiss-cpu==") for line in (model / "requirements.txt").read_text().splitlines())
    assert str(tmp_path) not in (model / "MLmodel").read_text().replace(model.parent.as_uri(), "")


def test_two_equal_runs_at_once_register_one_version(home: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    artifact = make_index(tmp_path / "index")
    steps = [record_step(open_flow_run("retriever", "retrain", {}, PROVENANCE, {}), StepRecord("index", {}, artifact)) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda step: register(MODEL, artifact, step, {}, {}), steps))
    assert len(versions(MODEL)) == 1 and {one.version for one in found} == {1}


# What the model files of versions that were registered before 2026-11-28 (commit 810eae2) import.
FORMER_IMPORTS = {
    "components.artifacts": ("read_json", "verify"),
    "components.distillation.student": ("load_encoder",),
    "components.index.config": ("IndexConfig",),
    "components.index.rows": ("read_titles",),
    "components.index.search": ("load_index",),
    "components.promotion.pinned": ("require_as_registered",),
    "components.serving.retriever": ("Retriever",),
    "components.tracking.audit_plugin": ("create_app",),  # by the entry point of an installation of then
    "components.tracking.package_files": ("packaged_digest",),
    "components.tracking.registry": ("artifact_folder",),
}


@pytest.mark.parametrize("before", ["", "import components.serving.loader, components.tracking.packaging"])
def test_the_code_of_versions_that_were_registered_before_finds_what_it_imports(before: str) -> None:
    lines = [before, *(f"from {module} import {', '.join(names)}" for module, names in FORMER_IMPORTS.items())]
    same = "from components.tracking.packaging import packaged_digest as now; assert packaged_digest is now"
    done = subprocess.run([sys.executable, "-c", "\n".join([*lines, same])], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr


def test_a_module_that_was_never_there_is_missed_all_the_same() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"components\.promotion\.unpinned"):
        importlib.import_module("components.promotion.unpinned")


def test_an_artifact_store_in_a_cloud_that_does_not_answer_or_has_no_driver_is_told_in_words() -> None:
    """Both were unexpected failures."""
    away = type("EndpointConnectionError", (Exception,), {"__module__": "botocore.exceptions"})
    with pytest.raises(TrackingError, match=r"Could not read the files .*Could not connect"), translated("read the files"):
        raise away('Could not connect to the endpoint URL: "https://store.example/"')
    with pytest.raises(ConfigError, match="pip install boto3"), translated("read the files"):
        raise ModuleNotFoundError("No module named 'boto3'", name="boto3")


def test_a_version_that_names_a_place_which_is_no_store_is_a_finding(home: Path) -> None:
    client().create_registered_model("retriever-release")
    client().create_model_version("retriever-release", source="https://example.org/elsewhere")
    with pytest.raises(ArtifactError, match="no place of an artifact store"):
        registry.artifact_folder("retriever-release", 1)


def test_who_waits_for_another_registration_is_told_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = home / "work" / "registering" / "retriever-index.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as handle:
        assert settings.locked(handle)
        threading.Timer(0.3, lambda: fcntl.flock(handle, fcntl.LOCK_UN)).start()
        with registry._one_at_a_time("retriever-index"):
            assert "another command is registering a version of 'retriever-index'" in capsys.readouterr().err


def test_many_data_sets_have_a_name_that_mlflow_takes(home: Path, tmp_path: Path) -> None:
    """Their name is all names with a plus between them; beyond 500 letters the first step of a run failed."""
    name = "+".join(f"collection-of-the-department-{number}" for number in range(20))
    (tmp_path / "data").mkdir()
    data = seal(tmp_path / "data", "dataset", attributes={"name": name, "source_digest": "e" * 64})
    run_id = open_flow_run("retriever", "retrain", {}, PROVENANCE, {})
    registry.log_source(run_id, data)
    registry.log_inputs(run_id, "0", {"dataset": data})
    found = sorted(entry.dataset.name for entry in client().get_run(run_id).inputs.dataset_inputs)
    assert len(name) > 500 and found[0].startswith(name[:400]) and found[1].endswith(" source")
