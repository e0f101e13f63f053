"""Indexes, shards and releases that do not fit together, made over the real functions: for the cases of index compatibility."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.artifacts import Artifact, IndexArtifact, VectorShards, file_sha256, open_artifact, read_manifest, seal, write_json
from components.index.build import build_index
from components.index.config import EncodingConfig, IndexConfig
from components.index.corpus import ChosenDocuments, LoadedDocuments
from components.index.encode import LoadedEncoder, ShardJob, StoredTower, encode_corpus, encode_shards
from components.index.parts import merge_parts
from components.index.refresh import changes_since, refresh_index
from components.index.search import VectorIndex, load_index
from components.index.shards import ShardKeys, shard_manifest_path, vectors_path, write_shard
from components.serving.retriever import Retriever
from components.towers.contract import PROBE_FILE, record_probes, save_contract
from tests.encoders import WordEncoder, dataset_of

SPACE, OTHER = "a" * 64, "b" * 64
DIMENSION = 8
DOCUMENTS = 100
IVF = IndexConfig(index_key="IVF2,Flat", layout="shards", part_size=1, tuning_queries=10)
FLAT = IndexConfig(index_key="Flat", part_size=1)


def unit(count: int, seed: int = 0, dimension: int = DIMENSION) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def names(count: int) -> list[str]:
    return [f"d{n:04d}" for n in range(count)]


def shards(folder: Path, space: str = SPACE, dimension: int = DIMENSION, ids: list[str] | None = None, seed: int = 0) -> VectorShards:
    """Two shards of random vectors, the same for the same dimension and seed."""
    folder.mkdir(parents=True)
    wanted = ids or names(DOCUMENTS)
    vectors, half = unit(len(wanted), seed, dimension), len(wanted) // 2
    for number, some in enumerate((slice(None, half), slice(half, None))):
        write_shard(folder, ShardKeys(number, wanted[some], [f"hash {i}" for i in wanted[some]]), vectors[some], space)
    counts = {"documents": len(wanted), "shards": 2}
    artifact = seal(folder, "vectors", counts=counts, attributes={"space_id": space, "dimension": dimension})
    return VectorShards(**artifact.model_dump())


def built(folder: Path, config: IndexConfig = IVF, space: str = SPACE, seed: int = 0) -> IndexArtifact:
    vectors = shards(folder.with_name(f"{folder.name} vectors"), space, seed=seed)
    folder.mkdir()
    return build_index(vectors, config, folder)


def old_layout(folder: Path, key: str = "Flat") -> IndexArtifact:
    """An index as it was written before there were parts: one FAISS file beside the ids, and no layout version."""
    import faiss

    folder.mkdir()
    index = faiss.index_factory(DIMENSION, key, faiss.METRIC_INNER_PRODUCT)
    # Vectors were read back from fp16 and made unit again before they were added.
    half = unit(DOCUMENTS).astype(np.float16).astype(np.float32)
    index.add(half / np.linalg.norm(half, axis=1, keepdims=True))
    (folder / "index.faiss").write_bytes(faiss.serialize_index(index).tobytes())
    ids = names(DOCUMENTS)
    columns = {
        "doc_id": pa.array(ids, pa.string()),
        "content_hash": pa.array([f"hash {i}" for i in ids], pa.string()),
        "shard": pa.array([0 if n < DOCUMENTS // 2 else 1 for n in range(DOCUMENTS)], pa.int32()),
        "title": pa.array([f"title {i}" for i in ids], pa.string()),
    }
    pq.write_table(pa.table(columns), folder / "doc_ids.parquet")
    attributes = {"space_id": SPACE, "index_key": key, "dimension": DIMENSION, "faiss_version": str(faiss.__version__)}
    artifact = seal(folder, "index", counts={"documents": DOCUMENTS, "shards": 2}, parents={"vectors": "v" * 64}, attributes=attributes)
    return IndexArtifact(**artifact.model_dump())


def reseal(folder: Path, **attributes: Any) -> Artifact:
    """Make the manifest fit the files again, as a tool would that knows nothing of spaces and templates."""
    before = read_manifest(folder)
    return seal(folder, before.kind, counts=before.counts, parents=before.parents, attributes={**before.attributes, **attributes})


def edit(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Build -----------------------------------------------------------------------------------------------------------------------------


def build_from(folder: Path, spoil: Callable[[Path], object], config: IndexConfig = FLAT, sealed: bool = True) -> None:
    shards(folder / "vectors")
    spoil(folder / "vectors")
    if sealed:
        reseal(folder / "vectors")
    (folder / "index").mkdir()
    build_index(VectorShards(**open_artifact(folder / "vectors").model_dump()), config, folder / "index")


def take_second_shard(of: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put the second shard of other vectors in the place of the own one."""

    def spoil(folder: Path) -> None:
        other = folder.with_name("other")
        of(other)
        for path in (vectors_path, shard_manifest_path):
            shutil.copy(path(other, 1), path(folder, 1))

    return spoil


def cut_and_signed(folder: Path) -> None:
    cut(vectors_path(folder, 1))
    edit(shard_manifest_path(folder, 1), sha256=file_sha256(vectors_path(folder, 1)))


def newer_manifest(folder: Path) -> None:
    edit(folder / "manifest.json", schema_version=99)


def newer_shard(folder: Path) -> None:
    edit(shard_manifest_path(folder, 1), schema_version=99)


def same_ids(folder: Path) -> None:
    shutil.rmtree(folder)
    shards(folder, ids=[f"d{n % 60:04d}" for n in range(DOCUMENTS)])


def encode_where_vectors_differ(folder: Path) -> None:
    """A worker on another machine, whose document tower no longer gives the vectors recorded with it."""
    tower = WordEncoder("document")
    for name in ("tower", "shards"):
        (folder / name).mkdir()
    save_contract(folder / "tower", tower.contract, tower.space_id)
    record_probes(tower, folder / "tower")
    np.save(folder / "tower" / PROBE_FILE, np.roll(np.load(folder / "tower" / PROBE_FILE), 1, axis=1))
    documents = LoadedDocuments(dataset_of({"d1": "apple"}, {}, []), 10)
    with mock.patch("components.towers.encoder.load_tower", lambda path: tower):
        encode_shards(ShardJob(StoredTower(folder / "tower", 0.01), documents, 64, folder / "shards"), {})


# Merge and load --------------------------------------------------------------------------------------------------------------------


def merge(folder: Path, spoil: Callable[[Path], object], count: int = 2) -> None:
    index = built(folder / "index")
    spoil(index.path)
    merge_parts(index.path, count)


def load(folder: Path, spoil: Callable[[Path], object], config: IndexConfig = IVF, sealed: bool = True) -> VectorIndex:
    index = built(folder / "index", config)
    spoil(index.path)
    if sealed:
        reseal(index.path)
    return load_index(index.path, SPACE)


def take_second_part(space: str = SPACE, seed: int = 0) -> Callable[[Path], None]:
    """Put a part of an index of other vectors, or in another space, in the place of the own one. FAISS would notice neither."""

    def spoil(folder: Path) -> None:
        for path in built(folder.with_name("other"), IVF, space, seed).path.glob("part-00001.*"):
            shutil.copy(path, folder / path.name)

    return spoil


def newer_part(folder: Path) -> None:
    edit(folder / "part-00001.json", schema_version=99)


def newer_layout(folder: Path) -> None:
    reseal(folder, layout_version=99)


def other_template(folder: Path) -> None:
    shutil.copy(built(folder.with_name("other"), seed=1).path / "template.faiss", folder / "template.faiss")


def fewer_ids(folder: Path) -> None:
    table = pq.read_table(folder / "doc_ids.parquet")
    pq.write_table(table.slice(0, DOCUMENTS - 1), folder / "doc_ids.parquet")


def fewer_vectors(folder: Path) -> None:
    path = folder / "part-00001.vectors.npy"
    np.save(path, np.load(path)[:-1])


def narrower_vectors(folder: Path) -> None:
    path = folder / "part-00001.vectors.npy"
    np.save(path, np.load(path)[:, :-1])


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def load_for_another_space(folder: Path) -> None:
    load_index(built(folder / "index").path, OTHER)


def load_replaced(folder: Path) -> None:
    load_index(built(folder / "index").path, SPACE, "0" * 64)


def load_vectors_as_index(folder: Path) -> None:
    load_index(shards(folder / "vectors").path, SPACE)


# Refresh ---------------------------------------------------------------------------------------------------------------------------


def documents_of(ids: list[str]) -> pa.Table:
    return pa.table({"doc_id": ids, "content_hash": [f"hash {i}" for i in ids]})


def refresh(folder: Path, previous: IndexArtifact, **delta: Any) -> IndexArtifact:
    """Add two documents, remove the first."""
    ids = [*names(DOCUMENTS)[1:], "new 1", "new 2"]
    changes = changes_since(previous.path, documents_of(ids))
    added = shards(folder / "delta", ids=ids[-2:], **delta)
    (folder / "refreshed").mkdir()
    config = FLAT if previous.attributes["index_key"] == "Flat" else IVF
    return refresh_index(previous, added, changes, config, folder / "refreshed", {i: f"title {i}" for i in ids})


def refresh_of_newer(folder: Path) -> None:
    index = built(folder / "index")
    newer_layout(index.path)
    refresh(folder, IndexArtifact(**open_artifact(index.path).model_dump()))


def refresh_of_changed(folder: Path) -> None:
    index = built(folder / "index")
    other_template(index.path)
    refresh(folder, index)


def encode_with_another_tower(folder: Path) -> None:
    """The changed documents encoded by a document encoder of another space than the index."""
    documents = {"d1": "apple", "d2": "bread"}
    (folder / "vectors").mkdir()
    vectors = encode_corpus(WordEncoder("document"), dataset_of(documents, {}, []), {}, EncodingConfig(), folder / "vectors")
    (folder / "index").mkdir()
    index = build_index(vectors, FLAT, folder / "index")
    grown = dataset_of(documents | {"d3": "cheese"}, {}, [])
    (folder / "data").mkdir()
    grown.documents.to_parquet(folder / "data" / "documents.parquet", index=False)
    changes = changes_since(index.path, pa.Table.from_pandas(grown.documents[["doc_id", "content_hash"]], preserve_index=False))
    (folder / "delta").mkdir()
    chosen = ChosenDocuments(folder / "data" / "documents.parquet", changes.encoded, 10)
    delta = encode_shards(ShardJob(LoadedEncoder(WordEncoder("document", "other")), chosen, 64, folder / "delta"), {})
    (folder / "refreshed").mkdir()
    refresh_index(index, delta, changes, FLAT, folder / "refreshed", {})


# Serve -----------------------------------------------------------------------------------------------------------------------------


def serve(folder: Path, encoder: WordEncoder, spoil: Callable[[Path], object] = lambda folder: None) -> Retriever:
    for name in ("vectors", "index", "encoder"):
        (folder / name).mkdir()
    vectors = encode_corpus(WordEncoder("document"), dataset_of({"d1": "apple"}, {}, []), {}, EncodingConfig(), folder / "vectors")
    index = build_index(vectors, FLAT, folder / "index")
    record_probes(encoder, folder / "encoder")
    spoil(folder)
    return Retriever.open(encoder, folder / "encoder", index.path, 0.01, index.digest)


def changed_probes(folder: Path) -> None:
    np.save(folder / "encoder" / PROBE_FILE, np.roll(np.load(folder / "encoder" / PROBE_FILE), 1, axis=1))


def other_probe_width(folder: Path) -> None:
    np.save(folder / "encoder" / PROBE_FILE, np.load(folder / "encoder" / PROBE_FILE)[:, :-1])


def resealed_index(folder: Path) -> None:
    reseal(folder / "index", probe="another")
