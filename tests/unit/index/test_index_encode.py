from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.artifacts import VectorShards, is_complete
from components.errors import ArtifactError, DataError, ModelError, SpaceMismatch
from components.index.config import EncodingConfig
from components.index.encode import encode_corpus
from components.index.shards import read_vectors, shard_manifest_path, vectors_path
from tests.encoders import WORDS, WordEncoder, dataset_of

DOCUMENTS = {f"d{i}": f"{word} {WORDS[(i + 1) % len(WORDS)]}" for i, word in enumerate(WORDS)} | {"d8": "apple", "d9": "stone"}
DATASET = dataset_of(DOCUMENTS, {}, [])
CONFIG = EncodingConfig(shard_size=4)


def encoded(folder: Path, encoder: WordEncoder | None = None, config: EncodingConfig = CONFIG) -> VectorShards:
    folder.mkdir(exist_ok=True)
    return encode_corpus(encoder or WordEncoder("document"), DATASET, {"dataset": "a" * 64}, config, folder)


def test_shards_hold_ids_hashes_and_vectors_in_the_order_of_the_documents(tmp_path: Path) -> None:
    artifact = encoded(tmp_path)
    rows = read_vectors(artifact)
    assert artifact.counts == {"documents": 10, "shards": 3}
    assert artifact.parents == {"dataset": "a" * 64}
    assert artifact.attributes == {"space_id": WordEncoder().space_id, "dimension": 9}
    assert rows.doc_ids == list(DOCUMENTS)
    assert rows.content_hashes == list(DATASET.documents["content_hash"])
    assert rows.shards == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    expected = WordEncoder().encode(list(DOCUMENTS.values()))
    np.testing.assert_allclose(rows.vectors, expected, atol=1e-6)
    assert rows.vectors.dtype == np.float32


def test_vectors_are_stored_as_half_floats(tmp_path: Path) -> None:
    encoded(tmp_path)
    schema = pq.read_table(vectors_path(tmp_path, 0)).schema
    assert schema.names == ["doc_id", "content_hash", "vector"]
    assert str(schema.field("vector").type.value_type) == "halffloat"


def test_same_input_gives_the_same_digest(tmp_path: Path) -> None:
    assert encoded(tmp_path / "a").digest == encoded(tmp_path / "b").digest


def test_goes_on_after_a_kill_without_encoding_finished_shards_again(tmp_path: Path) -> None:
    class Killed(WordEncoder):
        def encode(self, texts, batch_size=None, progress=None):  # type: ignore[no-untyped-def]
            if self.texts_seen >= 8:
                raise KeyboardInterrupt
            return super().encode(texts, batch_size, progress)

    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path / "killed", Killed("document"))
    assert not is_complete(tmp_path / "killed")
    second = WordEncoder("document")
    artifact = encoded(tmp_path / "killed", second)
    assert second.texts_seen == 2
    assert artifact.digest == encoded(tmp_path / "straight").digest


def test_a_table_without_its_manifest_or_with_a_changed_byte_is_encoded_again(tmp_path: Path) -> None:
    digest = encoded(tmp_path).digest
    shard_manifest_path(tmp_path, 0).unlink()
    broken = vectors_path(tmp_path, 1)
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    encoder = WordEncoder("document")
    assert encoded(tmp_path, encoder).digest == digest
    assert encoder.texts_seen == 8


def test_leftovers_of_other_settings_or_another_space_are_not_reused(tmp_path: Path) -> None:
    encoded(tmp_path, config=EncodingConfig(shard_size=2))
    artifact = encoded(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.parquet")) == [f"vectors-{n:05d}.parquet" for n in range(3)]
    other = WordEncoder("document", name="other")
    assert encoded(tmp_path, other).space_id == other.space_id != artifact.space_id
    assert other.texts_seen == 10


def test_a_shard_of_another_space_is_named(tmp_path: Path) -> None:
    artifact = encoded(tmp_path / "a")
    encoded(tmp_path / "b", WordEncoder("document", name="other"))
    for path in (vectors_path, shard_manifest_path):
        path(tmp_path / "a", 1).write_bytes(path(tmp_path / "b", 1).read_bytes())
    with pytest.raises(SpaceMismatch, match="vectors-00001"):
        read_vectors(artifact)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    artifact = encoded(tmp_path)
    vectors_path(tmp_path, 2).unlink()
    with pytest.raises(ArtifactError, match=r"vectors-00002.*missing"):
        read_vectors(artifact)


def test_refuses_a_query_encoder_and_no_documents(tmp_path: Path) -> None:
    with pytest.raises(SpaceMismatch, match="role 'query'"):
        encoded(tmp_path, WordEncoder("query"))
    with pytest.raises(DataError, match="no documents"):
        encode_corpus(WordEncoder("document"), dataset_of({}, {}, []), {}, CONFIG, tmp_path)


def test_refuses_vectors_that_are_not_finite(tmp_path: Path) -> None:
    class Broken(WordEncoder):
        def encode(self, texts, batch_size=None, progress=None):  # type: ignore[no-untyped-def]
            return super().encode(texts) * np.float32(np.nan)

    with pytest.raises(ModelError, match="not finite"):
        encoded(tmp_path, Broken("document"))


def test_the_token_budget_reaches_encoders_that_have_one(tmp_path: Path) -> None:
    encoder = WordEncoder("document")
    encoder.tokens_per_batch = 1  # type: ignore[attr-defined]
    encoded(tmp_path, encoder, EncodingConfig(tokens_per_batch=512))
    assert encoder.tokens_per_batch == 512  # type: ignore[attr-defined]
