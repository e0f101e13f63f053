"""Vectors that exist, from `adopt` to a served release, and what says that their encoder is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.data_world import write_rows
from tests.endpoint_world import Endpoint, endpoint_on_loopback
from tests.flows.cli_world import SMALL, assert_refused, at_home, done, scalingnote, write_collection

pytestmark = [pytest.mark.server, pytest.mark.slow]
# The models of the smoke preset, and no demand for a speed that stored vectors do not have.
NO_SPEED = ("policy.min_speed_up=null", "policy.min_effective_rank_share=null", "distillation.epochs=2")
LESS = (*SMALL[4:], *(word for setting in NO_SPEED for word in ("--set", setting)))


def rows_of(path: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["_id"]: " ".join(filter(None, (row.get("title"), row["text"]))) for row in lines}


def write_vectors(folder: Path, data: Path, queries: bool) -> Path:
    """Vectors of the collection by an encoder that nobody here has: a direction for each word."""
    encoder = Endpoint("", width=64)
    folder.mkdir(parents=True)
    for kind, file in (("documents", "corpus"), *((("queries", "queries"),) if queries else ())):
        texts = rows_of(data / f"{file}.jsonl")
        pd.DataFrame({"_id": list(texts), "vector": list(encoder.vectors(list(texts.values())))}).to_parquet(folder / f"{kind}.parquet")
    return folder


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[dict[str, Any]]:
    """Two retrievers of adopted vectors: `mine` with those of queries, `bare` without; each chapter is the JSON of a command."""
    folder = tmp_path_factory.mktemp("adopted")
    data = write_collection(folder / "clinic")
    full, bare = (write_vectors(folder / name, data, queries) for name, queries in (("full", True), ("bare", False)))
    with at_home(folder / "home", mlflow_template):
        adopt = ("adopt", "--preset", "smoke", *LESS, "--data", data)
        yield {
            "data": data,
            "adopted": done(*adopt, "--vectors", full, "--name", "mine"),
            "refreshed": done("refresh-query-tower", "--name", "mine"),
            "refreshed again": done("refresh-query-tower", "--name", "mine"),
            "approved": done("approve", "candidate/1", "--as", "Ada", "--name", "mine"),
            "promoted": done("promote", "--name", "mine"),
            "found": done("search", "kidney stone", "--name", "mine"),
            "verified": done("verify", "--name", "mine"),
            "bare": done(*adopt, "--vectors", bare, "--name", "bare"),
            "bare refreshed": done("refresh-query-tower", "--name", "bare"),
            "from a database": done(*adopt, *stored_in_qdrant(folder / "store", full), "--name", "stored"),
            "static": done(
                "refresh-query-tower", "--name", "stored", "--set", "distillation.form=static", "--set", "distillation.layers=null"
            ),
        }


def stored_in_qdrant(store: Path, vectors: Path) -> tuple[Any, ...]:
    """The documents' vectors of the folder `vectors` go into an embedded Qdrant; the options that adopt them, with the queries' beside."""
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, PointStruct, VectorParams

    table = pd.read_parquet(vectors / "documents.parquet")
    client = QdrantClient(path=str(store))
    client.create_collection("clinic", VectorParams(size=64, distance=Distance.DOT))
    rows = zip(table["_id"], table["vector"], strict=True)
    client.upsert("clinic", [PointStruct(id=n, vector=v.tolist(), payload={"doc_id": name}) for n, (name, v) in enumerate(rows)])
    client.close()
    beside = store.parent / "queries alone"
    beside.mkdir()
    shutil.copy(vectors / "queries.parquet", beside)
    return ("--qdrant", store, "--collection", "clinic", "--vectors", beside)


def test_adopted_vectors_are_registered_and_make_no_candidate_yet(story: dict[str, Any]) -> None:
    adopted = story["adopted"]
    assert (adopted["documents"], adopted["dimension"], adopted["index"]) == (210, 64, "mine-index/1")
    assert adopted["queries"] > 210
    assert story["bare"]["queries"] == 0


def test_a_query_encoder_is_made_for_them_and_gated_like_any_other(story: dict[str, Any]) -> None:
    refreshed = story["refreshed"]
    assert (refreshed["candidate"], refreshed["verdict"], refreshed["base"]) == ("candidate/1", "pass", "the adopted vectors")
    statuses = {gate["name"]: gate["status"] for gate in refreshed["gates"]}
    assert statuses["retention"] == "pass" and statuses["speed_up"] == "off" and statuses["lineage_complete"] == "pass"
    assert story["refreshed again"]["cached"] and story["refreshed again"]["candidate"] == "candidate/1"


def test_the_release_is_served_and_verified(story: dict[str, Any]) -> None:
    assert story["promoted"]["status"] == "promoted" and story["promoted"]["to_version"] == 1
    assert len(story["found"]["hits"]) == 10
    assert story["verified"]["verified"] if "verified" in story["verified"] else story["verified"]


def test_without_query_vectors_the_gates_about_the_teacher_are_undecided_and_say_why(story: dict[str, Any]) -> None:
    refreshed = story["bare refreshed"]
    gates = {gate["name"]: gate for gate in refreshed["gates"]}
    assert refreshed["verdict"] == "not_decidable"
    assert gates["retention"]["status"] == "not_decidable"
    assert "judged queries (test) have none, so it cannot be measured" in gates["retention"]["reason"]
    assert gates["enough_queries"]["status"] == "pass"


def test_vectors_in_a_database_are_adopted_as_those_in_files_and_name_their_origin(story: dict[str, Any]) -> None:
    adopted = story["from a database"]
    assert adopted["space_id"] == story["adopted"]["space_id"]
    assert (adopted["documents"], adopted["queries"]) == (story["adopted"]["documents"], story["adopted"]["queries"])
    tower = Path(story["static"]["folder"]).parent
    manifests = [
        json.loads(path.read_text(encoding="utf-8")) for path in tower.parents[1].glob("train_towers/*/document_tower/manifest.json")
    ]
    origins = {manifest["attributes"].get("copied_from") for manifest in manifests}
    assert any(origin and origin.startswith("Qdrant: 'clinic' in ") for origin in origins)


def test_a_static_student_is_made_for_adopted_vectors(story: dict[str, Any]) -> None:
    static = story["static"]
    assert (static["candidate"], static["verdict"]) == ("candidate/1", "pass")
    assert {gate["name"]: gate["status"] for gate in static["gates"]}["retention"] == "pass"


def test_a_database_that_is_named_wrongly_is_one_sentence(story: dict[str, Any], tmp_path: Path) -> None:
    adopt = ("adopt", "--preset", "smoke", "--data", story["data"], "--name", "x")
    assert_refused(scalingnote(*adopt, "--qdrant", tmp_path / "none", "--collection", "x"), 3, "there is no such file or folder")
    assert_refused(scalingnote(*adopt, "--qdrant", "http://127.0.0.1:9", "--collection", "x"), 3, "cannot be read", "Check address")
    assert_refused(scalingnote(*adopt, "--qdrant", tmp_path), 2, "--collection NAME")
    assert_refused(scalingnote(*adopt, "--vectors", tmp_path, "--id-field", "x"), 2, "--id-field belongs to a database")


def test_new_documents_say_that_their_encoder_is_missing(story: dict[str, Any], tmp_path: Path) -> None:
    data = write_collection(tmp_path / "clinic")
    rows = [json.loads(line) for line in (data / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    write_rows(data / "corpus.jsonl", [*rows, {"_id": "new", "title": "Something new", "text": "Nobody encoded it.", "metadata": {}}])
    refused = scalingnote("refresh-index", "--data", data, "--name", "mine")
    assert_refused(refused, 4, "1 documents are new and 0 have another text", "scalingnote adopt")


def test_mistakes_are_said_before_anything_is_built(story: dict[str, Any], tmp_path: Path) -> None:
    assert_refused(scalingnote("adopt", "--name", "x"), 2, "Name the folder of the vectors with --vectors DIR")
    nowhere = scalingnote("adopt", "--preset", "smoke", "--vectors", tmp_path / "none", "--data", story["data"], "--name", "x")
    assert_refused(nowhere, 3, "does not exist")
    assert_refused(scalingnote("refresh-query-tower", "--release", "adopted", "--name", "never"), 7, "has adopted no vectors yet")
    teacher = scalingnote("refresh-query-tower", "--name", "bare", "--set", "distillation.student=teacher")
    assert_refused(teacher, 4, "has no layers here")


def test_an_endpoint_is_a_teacher_like_any_other(story: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_ENDPOINT_KEY", "sk-secret")
    with endpoint_on_loopback() as server:
        server.width, server.key = 64, "sk-secret"
        named = ("--set", "towers.base_model=endpoint", "--set", f"towers.endpoint.url={server.url}", "--set", "towers.endpoint.model=mini")
        build = ("retrain", "--preset", "smoke", *LESS, "--data", story["data"], "--name", "asked", *named)
        assert_refused(scalingnote(*build, "--set", "towers.endpoint.max_tokens=100"), 2, "The run needs about", "max_tokens (100)")
        first, asked = done(*build), len(server.requests)
        assert first["verdict"] == "pass" and asked > 10
        again = done(*build)
        assert again["cached"] and len(server.requests) - asked <= 1
