"""Encoding of a corpus, shard by shard; a shard that is finished is not encoded again after a kill.

Who encodes which shard, and in which process, is the runner's: a function of the job and the numbers of the shards to do. A shard's
files depend on its documents and the encoder alone, so every runner leaves the same artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from components.artifacts import DatasetArtifact, EncoderArtifact, Scalar, VectorShards, by_role, parents_of, seal
from components.errors import ModelError, SpaceMismatch
from components.index.config import EncodingConfig
from components.index.corpus import ChosenDocuments, Documents, LoadedDocuments, StoredDocuments, require_unique, shard_sizes
from components.index.shards import read_shard_manifest, remove_strays, shard_is_finished, shard_manifest_path, write_shard
from components.index.workers import ShardProgress, shown_progress
from components.towers.config import WITHOUT_WEIGHTS
from components.towers.contract import EncodingContract, TextEncoder, load_contract, space_id_of

if TYPE_CHECKING:
    from components.data.dataset import Dataset

# Documents go to the encoder in calls of about so many batches: the encoder sorts a call's documents by their tokens, so the more of
# them there are, the less padding and the fewer batches that are not full; the bar moves and memory is bounded by a call.
BATCHES_PER_CALL = 16
CHARACTERS_PER_TOKEN = 4


class EncoderSource(Protocol):
    """Where a worker gets its encoder from. Picklable, and equal sources give the same encoder: a worker loads it once."""

    def contract(self) -> tuple[EncodingContract, str]:
        """Its contract and space_id, without loading it."""
        ...

    def load(self) -> TextEncoder:
        """The encoder itself."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class StoredTower:
    """A tower in its folder; `tolerance` is the largest 1 - cosine of a probe text against the vector recorded there."""

    path: Path
    tolerance: float

    def contract(self) -> tuple[EncodingContract, str]:
        """As saved beside the tower."""
        return load_contract(self.path)

    def load(self) -> TextEncoder:
        """Raises ArtifactError when base, tokenizer or weights are not those of the contract, ProbeMismatch when its vectors are others.

        A worker may run where another library or number format is installed, and would add vectors that do not fit the others.
        """
        from components.towers.contract import check_probes
        from components.towers.encoder import open_tower

        encoder = open_tower(self.path)
        # No library computes stored vectors, and an endpoint was asked when it was opened.
        if encoder.contract.base_model not in WITHOUT_WEIGHTS:
            check_probes(encoder, self.path, self.tolerance)
        return encoder


@dataclass(frozen=True, eq=False)
class LoadedEncoder:
    """An encoder that is in memory, for the process that holds it."""

    encoder: TextEncoder

    def contract(self) -> tuple[EncodingContract, str]:
        """Its own."""
        return self.encoder.contract, self.encoder.space_id

    def load(self) -> TextEncoder:
        """The encoder, as it is."""
        return self.encoder


@dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to encode any shard of a corpus. Small and picklable, when its parts are."""

    encoder: EncoderSource
    documents: Documents
    tokens_per_batch: int
    folder: Path


Runner = Callable[[ShardJob, Sequence[int]], None]


@dataclass(frozen=True)
class EncodingInputs:
    """What vectors of documents are made from."""

    dataset: DatasetArtifact
    document_tower: EncoderArtifact


def encode_dataset(
    inputs: EncodingInputs,
    config: EncodingConfig,
    tolerance: float,
    runner: Runner,
    folder: Path,
    rows: NDArray[np.int64] | None = None,
) -> VectorShards:
    """The steps encode_corpus and, with `rows` (int64, ascending) of the data set's documents alone, encode_changes.

    `tolerance` as of `StoredTower`. Raises as `encode_shards` does.
    """
    table, size = inputs.dataset.path / "documents.parquet", config.shard_size
    documents = StoredDocuments(table, size) if rows is None else ChosenDocuments(table, rows, size)
    job = ShardJob(StoredTower(inputs.document_tower.path, tolerance), documents, config.tokens_per_batch, folder)
    return encode_shards(job, parents_of(by_role(inputs)), runner)


def encode_corpus(encoder: TextEncoder, dataset: Dataset, parents: dict[str, str], config: EncodingConfig, folder: Path) -> VectorShards:
    """Encode every document of a loaded data set into `folder`, in this process; raises as `encode_shards` does."""
    documents = LoadedDocuments(dataset, config.shard_size)
    return encode_shards(ShardJob(LoadedEncoder(encoder), documents, config.tokens_per_batch, folder), parents)


def encode_in_process(job: ShardJob, numbers: Sequence[int]) -> None:
    """The runner that encodes one shard after the other, here."""
    encoder = job.encoder.load()
    for number in numbers:
        encode_shard(job, number, encoder)


def encode_shards(job: ShardJob, parents: dict[str, str], runner: Runner = encode_in_process) -> VectorShards:
    """Encode the documents of `job`; run again after a kill, only the unfinished shards are encoded.

    Raises SpaceMismatch when the encoder is no document encoder of its own space, DataError when there are no documents or an id occurs
    twice, ArtifactError when the documents cannot be read, ModelError when the encoder gives vectors of another shape than its contract
    says or values that are not finite. Finished shards stay.
    """
    contract, space_id = job.encoder.contract()
    _require_document_encoder(contract, space_id)
    sizes = shard_sizes(job.documents)
    require_unique(job.documents, len(sizes))
    remove_strays(job.folder, len(sizes))
    todo = {n: size for n, size in enumerate(sizes) if not shard_is_finished(job.folder, job.documents.keys(n), space_id)}
    if todo:
        for number in todo:  # a manifest that verifies nothing any more would count as progress
            shard_manifest_path(job.folder, number).unlink(missing_ok=True)
        with shown_progress(job.folder, todo, sum(sizes) - sum(todo.values())):
            runner(job, list(todo))
    for number in range(len(sizes)):
        read_shard_manifest(job.folder, number)  # a runner that left a shard out is found here
    counts = {"documents": sum(sizes), "shards": len(sizes)}
    attributes: dict[str, Scalar] = {"space_id": space_id, "dimension": contract.dimension}
    artifact = seal(job.folder, "vectors", counts=counts, parents=parents, attributes=attributes)
    return VectorShards(**artifact.model_dump())


def encode_shard(job: ShardJob, number: int, encoder: TextEncoder) -> None:
    """Encode shard `number` and write it; returns at once when it is finished already."""
    keys = job.documents.keys(number)
    if shard_is_finished(job.folder, keys, encoder.space_id):
        return
    # Towers bound a batch by tokens; encoders that do not are left to their own batch size.
    if hasattr(encoder, "tokens_per_batch"):
        encoder.tokens_per_batch = job.tokens_per_batch
    progress = ShardProgress(job.folder, number)
    write_shard(job.folder, keys, _vectors(encoder, job, number, progress), encoder.space_id)
    progress.remove()


def encode_shard_in_worker(job: ShardJob, number: int) -> int:
    """Encode shard `number` in a process that does nothing else: its encoder is loaded once and kept. Returns the number."""
    encode_shard(job, number, _kept(job.encoder))
    return number


@lru_cache(maxsize=1)
def _kept(source: EncoderSource) -> TextEncoder:
    return source.load()


def _require_document_encoder(contract: EncodingContract, space_id: str) -> None:
    if contract.role != "document" or space_id_of(contract) != space_id:
        raise SpaceMismatch(
            f"The corpus must be encoded by the document encoder that names the space {space_id[:12]}; this is an encoder "
            f"for the role '{contract.role}' with another contract. Give the document tower."
        )


def _vectors(encoder: TextEncoder, job: ShardJob, number: int, progress: ShardProgress) -> NDArray[np.float32]:
    """float32 (documents, d) of a shard, in the order of its documents."""
    if hasattr(encoder, "of_documents"):  # stored vectors are known by ids, and two documents of one text may have two of them
        keys = job.documents.keys(number)
        return _checked(encoder.of_documents(keys.doc_ids, keys.content_hashes), len(keys.doc_ids), encoder.contract.dimension)
    texts = job.documents.texts(number)
    vectors = np.empty((len(texts), encoder.contract.dimension), dtype=np.float32)
    # What lies beyond the longest document that the encoder reads costs nothing.
    lengths = [min(len(text), CHARACTERS_PER_TOKEN * encoder.contract.max_length) for text in texts]
    for rows in calls_by_length(lengths, BATCHES_PER_CALL * CHARACTERS_PER_TOKEN * job.tokens_per_batch):
        finished = progress.done + len(rows)
        # The encoder itself says how far it is, batch by batch: on a slow machine a call takes minutes.
        found = encoder.encode([texts[i] for i in rows], progress=progress.add)
        vectors[rows] = _checked(found, len(rows), encoder.contract.dimension)
        progress.add(finished - progress.done)  # for an encoder that does not say
    return vectors


def calls_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Row numbers, longest first, in groups of about `budget` in all: a group ends with the row that reaches it."""
    rows: list[int] = []
    used = 0
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rows.append(row)
        used += lengths[row]
        if used >= budget:
            yield rows
            rows, used = [], 0
    if rows:
        yield rows


def _checked(vectors: NDArray[np.float32], rows: int, dimension: int) -> NDArray[np.float32]:
    if vectors.shape != (rows, dimension):
        raise ModelError(f"The document encoder gave vectors of shape {vectors.shape}; its contract says {(rows, dimension)}.")
    if not np.isfinite(vectors).all():
        raise ModelError(
            "The document encoder gave vectors with values that are not finite. Train again, with a lower learning rate or in float32."
        )
    return vectors
