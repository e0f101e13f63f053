"""Export of an index's documents: Parquet shards, and Qdrant in its embedded mode; what cannot be exported is said before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.artifacts import IndexArtifact, VectorShards, seal, verify
from components.errors import ArtifactError, ConfigError
from components.index import export
from components.index.build import build_index
from components.index.config import EncodingConfig, IndexConfig
from components.index.encode import encode_corpus
from components.index.export import ExportError, export_parquet, export_qdrant, open_qdrant, open_source, require_empty
from components.index.rows import write_deleted
from tests.encoders import WordEncoder, dataset_of

DOCUMENTS = {"d1": "apple", "d2": "apple bread", "d3": "bread cheese", "d0": "figs", "d5": "stone"}
TITLES = {"d1": "An apple", "d2": "Both", "d3": "With cheese", "d0": "", "d5": "Stone"}


def index_of(tmp_path: Path, titles: dict[str, str] | None = None, deleted: tuple[int, ...] = (), **config: Any) -> IndexArtifact:
    vectors, index = tmp_path / "vectors", tmp_path / "index"
    vectors.mkdir()
    index.mkdir()
    shards = encode_corpus(WordEncoder("document"), dataset_of(DOCUMENTS, {}, []), {}, EncodingConfig(shard_size=2), vectors)
    made = build_index(VectorShards(**shards.model_dump()), IndexConfig(**config), index, titles)
    if deleted:
        write_deleted(index, np.array(deleted))
        counts = {**made.counts, "documents": len(DOCUMENTS) - len(deleted), "deleted": len(deleted)}
        made = IndexArtifact(**seal(index, "index", counts=counts, parents=made.parents, attributes=made.attributes).model_dump())
    return made


def test_parquet_holds_every_live_document_with_its_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ROWS_PER_SHARD", 3)
    index = index_of(tmp_path, TITLES, deleted=(1,))
    made = export_parquet(open_source(index), tmp_path / "out")
    tables = [pq.read_table(tmp_path / "out" / f"vectors-0000{n}.parquet") for n in range(2)]
    assert [table.num_rows for table in tables] == [3, 1]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["doc_id"] for row in rows] == ["d1", "d3", "d0", "d5"]
    assert [row["title"] for row in rows] == ["An apple", "With cheese", "", "Stone"]
    hashes = dict(zip(*(dataset_of(DOCUMENTS, {}, []).documents[c] for c in ("doc_id", "content_hash")), strict=True))
    assert all(row["content_hash"] == hashes[row["doc_id"]] for row in rows)
    expected = WordEncoder().encode([DOCUMENTS[row["doc_id"]] for row in rows]).astype(np.float16)
    np.testing.assert_array_equal(np.array([row["vector"] for row in rows], np.float16), expected)
    assert {k: v.decode() for k, v in tables[1].schema.metadata.items() for k in [k.decode()]} == {
        "space_id": index.space_id,
        "index_digest": index.digest,
        "dimension": "9",
    }
    assert made.counts == {"documents": 4, "shards": 2} and made.parents == {"index": index.digest}
    assert verify(tmp_path / "out").digest == made.digest


def test_an_index_without_titles_has_empty_ones(tmp_path: Path) -> None:
    export_parquet(open_source(index_of(tmp_path)), tmp_path / "out")
    assert set(pq.read_table(tmp_path / "out" / "vectors-00000.parquet")["title"].to_pylist()) == {""}


@pytest.mark.parametrize("what", ["file", "full folder"])
def test_files_are_never_written_over(tmp_path: Path, what: str) -> None:
    place = tmp_path / "out"
    if what == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        require_empty(place)
    (tmp_path / "new").mkdir()
    require_empty(tmp_path / "new")
    require_empty(tmp_path / "absent")


def test_an_index_without_stored_vectors_is_refused_with_what_to_do(tmp_path: Path) -> None:
    index = index_of(tmp_path)
    (index.path / "part-00000.vectors.npy").unlink()
    attributes = {**index.attributes, "refine": "none"}
    made = seal(index.path, "index", counts=index.counts, parents=index.parents, attributes=attributes)
    with pytest.raises(ArtifactError, match=r"keeps no vectors .*index\.refine was none.*Set index\.refine to fp16"):
        open_source(IndexArtifact(**made.model_dump()))


@pytest.fixture
def _qdrant() -> None:
    pytest.importorskip("qdrant_client", reason="the extra 'qdrant' is not installed")


@pytest.mark.usefixtures("_qdrant")
def test_qdrant_finds_what_the_index_finds(tmp_path: Path) -> None:
    index = index_of(tmp_path, TITLES, deleted=(1,))
    client = open_qdrant(":memory:", "clinic")
    assert export_qdrant(open_source(index), client, "clinic") == 4
    found = client.query_points("clinic", query=WordEncoder().encode(["bread"])[0].tolist(), limit=4, with_payload=True).points
    assert found[0].payload is not None and found[0].payload["doc_id"] == "d3" and found[0].payload["title"] == "With cheese"
    assert found[0].score == pytest.approx(np.sqrt(0.5), abs=1e-3)
    assert {point.payload["doc_id"] for point in found if point.payload} == {"d1", "d3", "d0", "d5"}
    assert client.get_collection("clinic").config.metadata == open_source(index).about


@pytest.mark.parametrize("name", ["a/b", "a:b", "what?", "", " ", "line\nbreak", "x" * 256])
def test_a_name_that_no_collection_can_have_is_refused_before_anything_is_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="names no collection"):
        open_qdrant(str(tmp_path / "store"), name)
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("_qdrant")
def test_a_collection_that_is_not_made_is_none_to_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_qdrant(":memory:", "clinic")

    def forbidden(*_: Any, **__: Any) -> None:
        raise RuntimeError("403 forbidden")

    monkeypatch.setattr(client, "create_collection", forbidden)
    with pytest.raises(ExportError, match=r"does not make the collection 'clinic': 403 forbidden\. Nothing was written there"):
        export_qdrant(open_source(index_of(tmp_path)), client, "clinic")


@pytest.mark.usefixtures("_qdrant")
def test_an_embedded_store_keeps_the_collection_and_refuses_a_second_of_its_name(tmp_path: Path) -> None:
    source = open_source(index_of(tmp_path))
    client = open_qdrant(str(tmp_path / "store"), "clinic")
    export_qdrant(source, client, "clinic")
    with pytest.raises(ExportError, match=r"cannot be used.*already accessed"):
        open_qdrant(str(tmp_path / "store"), "other")
    client.close()
    with pytest.raises(ExportError, match="already has a collection 'clinic'"):
        open_qdrant(str(tmp_path / "store"), "clinic")
    other = open_qdrant(str(tmp_path / "store"), "other")
    assert other.count("clinic").count == len(DOCUMENTS)
    other.close()


@pytest.mark.usefixtures("_qdrant")
def test_an_embedded_store_below_a_tilde_lies_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell replaces the tilde in --qdrant=~/store; a folder called ~ was made where the command ran."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    open_qdrant("~/store", "clinic").close()
    assert (tmp_path / "home" / "store").is_dir() and not any(Path().iterdir())


@pytest.mark.usefixtures("_qdrant")
@pytest.mark.parametrize("where", ["localhost:6333", "localhost", "qdrant.example.org:6333/", "127.0.0.1:6333", "[::1]:6333"])
def test_a_server_without_http_is_not_made_a_folder_of_that_name(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"Write http://{where}, or ./{where}")):
        open_qdrant(where, "clinic")
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("_qdrant")
def test_a_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(ExportError, match=r"http://127\.0\.0\.1:9 cannot be used"):
        open_qdrant("http://127.0.0.1:9", "clinic")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ConfigError, match=r"scalingnote\[qdrant\]"):
        open_qdrant(":memory:", "clinic")
