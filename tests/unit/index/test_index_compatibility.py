"""What does not belong together is refused by name, wherever it meets: at build, merge, load, refresh and serve. Older files are read.

FAISS checks none of this: parts of other centroids are merged, and queries of another space answered, with documents ranked by chance.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from components.artifacts import write_json
from components.errors import ArtifactError, ConfigError, ProbeMismatch, ScalingNoteError, SpaceMismatch
from components.index.config import IndexConfig
from components.index.rows import read_rows, read_titles
from components.index.search import load_index
from components.index.shards import vectors_path
from tests.encoders import WordEncoder
from tests.unit.compatibility_world import (
    DOCUMENTS,
    FLAT,
    OTHER,
    SPACE,
    build_from,
    built,
    changed_probes,
    cut,
    cut_and_signed,
    encode_where_vectors_differ,
    encode_with_another_tower,
    fewer_ids,
    fewer_vectors,
    load,
    load_for_another_space,
    load_replaced,
    load_vectors_as_index,
    merge,
    names,
    narrower_vectors,
    newer_layout,
    newer_manifest,
    newer_part,
    newer_shard,
    old_layout,
    other_probe_width,
    other_template,
    refresh,
    refresh_of_changed,
    refresh_of_newer,
    reseal,
    resealed_index,
    same_ids,
    serve,
    shards,
    take_second_part,
    take_second_shard,
    unit,
    without,
)


@dataclass(frozen=True)
class Case:
    """A kind of mismatch: what is done in an empty folder, the error that stops it, and what its message names."""

    do: Callable[[Path], object]
    error: type[ScalingNoteError]
    said: str


CASES = {
    "build: shard of another space": Case(
        lambda f: build_from(f, take_second_shard(lambda other: shards(other, OTHER))), SpaceMismatch, r"vectors-00001.*bbbb.*Encode"
    ),
    "build: shard of another dimension": Case(
        lambda f: build_from(f, take_second_shard(lambda other: shards(other, dimension=4))),
        ArtifactError,
        r"vectors-00001.*4.*8.*[Ee]ncode",
    ),
    "build: truncated shard": Case(
        lambda f: build_from(f, lambda v: cut(vectors_path(v, 1)), sealed=False), ArtifactError, "vectors-00001.parquet was changed"
    ),
    "build: truncated shard under a fresh manifest": Case(
        lambda f: build_from(f, lambda v: cut(vectors_path(v, 1))), ArtifactError, "vectors-00001.parquet is missing or was changed"
    ),
    "build: truncated shard under fresh manifests of both": Case(
        lambda f: build_from(f, cut_and_signed), ArtifactError, r"vectors-00001.parquet cannot be read.*again"
    ),
    "build: document id in two shards": Case(lambda f: build_from(f, same_ids), ArtifactError, r"d0000.*unique"),
    "build: newer manifest": Case(lambda f: build_from(f, newer_manifest, sealed=False), ArtifactError, "schema version 99.*Update"),
    "build: newer shard": Case(lambda f: build_from(f, newer_shard), ArtifactError, "shard-00001.json has schema version 99.*Update"),
    "build: unknown key": Case(
        lambda f: build_from(f, lambda v: None, IndexConfig(index_key="HNFW32")), ConfigError, "index_key HNFW32.*FAISS does not know"
    ),
    "build: codes that do not divide the dimension": Case(
        lambda f: build_from(f, lambda v: None, IndexConfig(index_key="PQ3")), ConfigError, "index_key PQ3.*8 dimensions"
    ),
    "build: too few vectors for the lists": Case(
        lambda f: build_from(f, lambda v: None, IndexConfig(index_key="IVF128,Flat")), ConfigError, r"128 lists.*100 vectors.*IVF2"
    ),
    "build: document tower whose vectors changed": Case(encode_where_vectors_differ, ProbeMismatch, "recorded versions"),
    "merge: part of another space": Case(
        lambda f: merge(f, take_second_part(space=OTHER)), SpaceMismatch, r"part-00001.*bbbb.*aaaa.*document encoder"
    ),
    "merge: part of another template": Case(lambda f: merge(f, take_second_part(seed=1)), ArtifactError, r"part-00001.*template.*again"),
    "merge: newer part": Case(lambda f: merge(f, newer_part), ArtifactError, "part-00001.json has schema version 99.*Update"),
    "merge: part that is not there": Case(lambda f: merge(f, lambda p: None, 3), ArtifactError, "part-00002.json is missing"),
    "load: index of another space": Case(load_for_another_space, SpaceMismatch, r"aaaa.*query encoder to bbbb.*same release"),
    "load: replaced index": Case(load_replaced, ArtifactError, "expected the artifact 000000000000.*restore"),
    "load: something else": Case(load_vectors_as_index, ArtifactError, "kind 'vectors', not an index"),
    "load: part of another space": Case(lambda f: load(f, take_second_part(space=OTHER)), SpaceMismatch, "part-00001.*bbbb"),
    "load: part of another template": Case(lambda f: load(f, take_second_part(seed=1)), ArtifactError, "part-00001.*template"),
    "load: newer part": Case(lambda f: load(f, newer_part), ArtifactError, "part-00001.json has schema version 99.*Update"),
    "load: newer layout": Case(lambda f: load(f, newer_layout, sealed=False), ArtifactError, "layout.*99.*Update"),
    "load: newer manifest": Case(lambda f: load(f, newer_manifest, sealed=False), ArtifactError, "schema version 99.*Update"),
    "load: another template": Case(lambda f: load(f, other_template), ArtifactError, r"template\.faiss"),
    "load: ids of another number": Case(lambda f: load(f, fewer_ids), ArtifactError, r"99.*100|100.*99"),
    "load: fewer stored vectors than rows": Case(lambda f: load(f, fewer_vectors), ArtifactError, "part-00001"),
    "load: stored vectors of another dimension": Case(lambda f: load(f, narrower_vectors), ArtifactError, "part-00001"),
    "load: exact index, fewer stored vectors": Case(lambda f: load(f, fewer_vectors, FLAT), ArtifactError, "part-00001"),
    "load: exact index, another dimension": Case(lambda f: load(f, narrower_vectors, FLAT), ArtifactError, "part-00001"),
    "load: part without its codes": Case(lambda f: load(f, without("part-00001.faiss")), ArtifactError, r"part-00001\.faiss"),
    "load: part without its vectors": Case(lambda f: load(f, without("part-00001.vectors.npy")), ArtifactError, "part-00001.vectors"),
    "load: part without its description": Case(lambda f: load(f, without("part-00001.json")), ArtifactError, "part-00001.json is missing"),
    "load: truncated codes": Case(
        lambda f: load(f, lambda i: cut(i / "part-00001.faiss")), ArtifactError, "part-00001.faiss cannot be read"
    ),
    "load: truncated vectors": Case(lambda f: load(f, lambda i: cut(i / "part-00001.vectors.npy")), ArtifactError, "part-00001.vectors"),
    "load: truncated ids": Case(lambda f: load(f, lambda i: cut(i / "doc_ids.parquet")), ArtifactError, "doc_ids.parquet"),
    "refresh: delta of another space": Case(lambda f: refresh(f, built(f / "index"), space=OTHER), SpaceMismatch, r"bbbb.*aaaa|aaaa.*bbbb"),
    "refresh: delta of another dimension": Case(lambda f: refresh(f, built(f / "index"), dimension=4), ArtifactError, r"4.*8|8.*4"),
    "refresh: delta of another space, exact": Case(
        lambda f: refresh(f, built(f / "index", FLAT), space=OTHER), SpaceMismatch, r"bbbb.*aaaa|aaaa.*bbbb"
    ),
    "refresh: delta of another dimension, exact": Case(
        lambda f: refresh(f, built(f / "index", FLAT), dimension=4), ArtifactError, r"4.*8|8.*4"
    ),
    "refresh: newer index": Case(refresh_of_newer, ArtifactError, "layout.*99.*Update"),
    "refresh: index whose template was changed": Case(refresh_of_changed, ArtifactError, r"template\.faiss"),
    "refresh: another document tower": Case(encode_with_another_tower, SpaceMismatch, "vector space"),
    "serve: query encoder of another space": Case(lambda f: serve(f, WordEncoder(name="other")), SpaceMismatch, "same release"),
    "serve: document encoder": Case(lambda f: serve(f, WordEncoder("document")), ArtifactError, "needs a query encoder"),
    "serve: encoder whose vectors changed": Case(lambda f: serve(f, WordEncoder(), changed_probes), ProbeMismatch, "recorded versions"),
    "serve: encoder of another dimension": Case(lambda f: serve(f, WordEncoder(), other_probe_width), ProbeMismatch, "shape"),
    "serve: another index": Case(lambda f: serve(f, WordEncoder(), resealed_index), ArtifactError, "expected the artifact"),
}


@pytest.mark.parametrize("name", CASES)
def test_index_mismatch_is_refused_by_name(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    with pytest.raises(case.error, match=f"(?s){case.said}"):
        case.do(tmp_path)


def test_an_index_of_the_old_layout_is_read(tmp_path: Path) -> None:
    old = load_index(old_layout(tmp_path / "old").path, SPACE)
    new = load_index(built(tmp_path / "new", FLAT).path, SPACE)
    queries = unit(20, seed=3)
    scores, ids = old.search(queries, 7)
    expected = queries @ unit(DOCUMENTS).T
    assert [row[0] for row in ids] == [f"d{best:04d}" for best in expected.argmax(axis=1)]
    np.testing.assert_allclose(scores[:, 0], expected.max(axis=1), atol=1e-3)
    for index in (old, new):
        assert index.search(queries, 7)[1] == index.exact(queries, 7)[1] == ids
        np.testing.assert_array_equal(index.search(queries, 7)[0], scores)
    assert (len(old), list(old.doc_ids)) == (DOCUMENTS, names(DOCUMENTS))


def test_titles_of_the_old_layout_are_read(tmp_path: Path) -> None:
    folder = old_layout(tmp_path / "old").path
    assert read_titles(folder, read_rows(folder))["d0007"] == "title d0007"


def test_an_index_of_the_old_layout_is_refreshed(tmp_path: Path) -> None:
    refreshed = refresh(tmp_path, old_layout(tmp_path / "old"))
    index = load_index(refreshed.path, SPACE, refreshed.digest)
    assert len(index) == DOCUMENTS + 1
    # The two new documents have the vectors of the first two, of which the first was removed.
    assert [row[0] for row in index.search(unit(DOCUMENTS), 1)[1]] == ["new 1", *names(DOCUMENTS)[1:]]
    assert index.search(unit(DOCUMENTS)[1:2], 2)[1] == [["d0001", "new 2"]]


def test_a_newer_layout_is_refused_also_where_it_looks_old(tmp_path: Path) -> None:
    reseal(old_layout(tmp_path / "old").path, layout_version=3)
    with pytest.raises(ArtifactError, match=r"layout.*3.*Update"):
        load_index(tmp_path / "old", SPACE)


def test_what_a_manifest_without_a_version_says_is_read(tmp_path: Path) -> None:
    index = built(tmp_path / "index", FLAT)
    raw = json.loads((index.path / "manifest.json").read_text())
    del raw["schema_version"]
    write_json(index.path / "manifest.json", raw)
    assert load_index(index.path, SPACE, index.digest).space_id == SPACE
