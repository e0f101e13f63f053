"""Encoding of a corpus, shard by shard; a shard that is finished is not encoded again after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.artifacts import VectorShards, seal
from components.errors import DataError, ModelError, SpaceMismatch
from components.index.config import EncodingConfig
from components.index.shards import ShardRows, remove_strays, shard_is_finished, write_shard
from components.towers.contract import TextEncoder, space_id_of

if TYPE_CHECKING:
    from tqdm import tqdm

    from components.data.dataset import Dataset

# Documents per call of the encoder: small enough for a bar that moves, large enough for batches of similar length.
CHUNK = 256


def encode_corpus(encoder: TextEncoder, dataset: Dataset, parents: dict[str, str], config: EncodingConfig, folder: Path) -> VectorShards:
    """Encode every document into `folder`; run again after a kill, it goes on with the first unfinished shard.

    Raises SpaceMismatch when `encoder` is no document encoder of its own space, DataError when there are no documents, ModelError
    when the encoder gives vectors of another shape than its contract says or values that are not finite.
    """
    _require_document_encoder(encoder)
    shards = _split(dataset, config.shard_size)
    remove_strays(folder, len(shards))
    _set_token_budget(encoder, config.tokens_per_batch)
    todo = [shard for shard in shards if not shard_is_finished(folder, shard, encoder.space_id)]
    _encode_shards(encoder, todo, sum(len(s.doc_ids) for s in shards), folder)
    artifact = seal(
        folder,
        "vectors",
        counts={"documents": sum(len(s.doc_ids) for s in shards), "shards": len(shards)},
        parents=parents,
        attributes={"space_id": encoder.space_id, "dimension": encoder.contract.dimension},
    )
    return VectorShards(**artifact.model_dump())


def _require_document_encoder(encoder: TextEncoder) -> None:
    role = encoder.contract.role
    if role != "document" or space_id_of(encoder.contract) != encoder.space_id:
        raise SpaceMismatch(
            f"The corpus must be encoded by the document encoder that names the space {encoder.space_id[:12]}; this is an encoder "
            f"for the role '{role}' with another contract. Give the document tower."
        )


def _split(dataset: Dataset, shard_size: int) -> list[ShardRows]:
    ids = [str(i) for i in dataset.documents["doc_id"]]
    hashes = [str(h) for h in dataset.documents["content_hash"]]
    texts = dataset.document_texts()
    if not ids:
        raise DataError("The data set has no documents, so there is nothing to encode or to search.")
    starts = range(0, len(ids), shard_size)
    return [ShardRows(n, ids[i : i + shard_size], hashes[i : i + shard_size], texts[i : i + shard_size]) for n, i in enumerate(starts)]


def _set_token_budget(encoder: TextEncoder, tokens_per_batch: int) -> None:
    # Towers bound a batch by tokens; encoders that do not are left to their own batch size.
    if hasattr(encoder, "tokens_per_batch"):
        encoder.tokens_per_batch = tokens_per_batch


def _encode_shards(encoder: TextEncoder, shards: list[ShardRows], documents: int, folder: Path) -> None:
    from tqdm import tqdm

    done = documents - sum(len(s.doc_ids) for s in shards)
    if not shards:
        return
    with tqdm(total=documents, initial=done, desc="Encoding documents", unit="doc", mininterval=1, smoothing=0.05) as bar:
        for shard in shards:
            write_shard(folder, shard, _encode_shard(encoder, shard.texts, bar), encoder.space_id)


def _encode_shard(encoder: TextEncoder, texts: list[str], bar: tqdm) -> NDArray[np.float32]:
    """float32 (len(texts), d) in the order of `texts`, encoded longest first in chunks of similar length."""
    vectors = np.empty((len(texts), encoder.contract.dimension), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        vectors[rows] = _checked(encoder.encode([texts[i] for i in rows]), len(rows), encoder.contract.dimension)
        bar.update(len(rows))
    return vectors


def _checked(vectors: NDArray[np.float32], rows: int, dimension: int) -> NDArray[np.float32]:
    if vectors.shape != (rows, dimension):
        raise ModelError(f"The document encoder gave vectors of shape {vectors.shape}; its contract says {(rows, dimension)}.")
    if not np.isfinite(vectors).all():
        raise ModelError(
            "The document encoder gave vectors with values that are not finite. Train again, with a lower learning rate or in float32."
        )
    return vectors
