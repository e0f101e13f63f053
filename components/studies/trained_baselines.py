"""Baselines that are trained: one small encoder for both roles, or an LLM document tower and a small query encoder end to end.

Stage 1's own loop trains them, so that all is equal that is not the architecture.

The auxiliary losses of stage 1 (Matryoshka, query prediction) stay with the towers.

The symmetric pair of TwinBERT (Lu et al., CIKM 2020) with shared weights and the cosine in the place of its crossing layer, which a
vector index cannot hold.

The asymmetric pair called ScalingDoc in the comparison of ScalingNote (arXiv 2411.15766), of which little more than this is known. Chosen
here: the document tower is an adapter on the LLM as in stage 1; the query encoder is the student with its head, fitted before training to
the untrained LLM's query vectors, so that end-to-end training does not start from two unrelated spaces.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, EncoderArtifact, Scalar, seal
from components.distillation.config import DistillationConfig
from components.distillation.query_sources import query_sources
from components.distillation.student.encoder import StudentEncoder, linear_head
from components.distillation.student.initial import Source, at_most_positions, bare_student, new_student, role_prompts, with_prompt
from components.distillation.student.storage import load_student, save_student
from components.towers.base_models import tower_base
from components.towers.config import TowerConfig
from components.towers.contract import EncodingContract, Role, TextEncoder, record_probes, save_contract, space_id_of, unit
from components.towers.device import autocast, pick_dtype
from components.towers.encoder import load_tower
from components.towers.loop import CHECKPOINT, Training
from components.towers.negatives import check_mining
from components.towers.pairs import Pairs, document_kinds, training_pairs
from components.towers.transformer import normalize
from components.towers.two_towers import TwoTowers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from components.data.dataset import Dataset


class TrainablePair(Protocol):
    """Two encoders of one space, or one in both roles: what the loop asks of towers."""

    device: torch.device
    even: bool  # whether batches are padded to few shapes (see `components.towers.tokens.pad_batch`)

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids of each text."""
        ...

    def embed(self, rows: Sequence[Sequence[int]], role: Role) -> Tensor:
        """Unit float32 vectors (len(rows), dimension) with a graph."""
        ...

    def encode(self, rows: Sequence[Sequence[int]], role: Role, progress: str | None = None) -> NDArray[np.float32]:
        """The same without a graph, for any number of rows, in their order; `progress` labels a bar on stderr."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimizer, each group with its peak learning rate `lr` and its `weight_decay`."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Copies of all trained weights."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back weights given by `state()`."""
        ...

    def kept_bytes(self, config: TowerConfig) -> int:
        """Bytes that a pass over the largest chunk of `config` keeps for its backward pass; 0 where they are few."""
        ...

    def passing_twice(self) -> AbstractContextManager[None]:
        """A block within which rows pass without and with a graph (see `TwoTowers.passing_twice`)."""
        ...


class PairTraining(Training):
    """Stage 1's loop with a pair of encoders in the place of the towers."""

    def __init__(self, pair: TrainablePair, pairs: Pairs, config: TowerConfig, folder: Path) -> None:
        """Raises ModelError when there are fewer pairs than a batch needs, ConfigError for a mining that cannot be."""
        self._pair = pair
        check_mining(config)
        super().__init__(cast("TwoTowers", pair), pairs, config, folder)

    def _groups(self) -> list[dict[str, Any]]:
        return self._pair.groups()


def for_passes(config: TowerConfig, pairs: int, passes: float) -> TowerConfig:
    """Stage 1's configuration with as many steps as take `passes` passes over the pairs, at least one."""
    return config.model_copy(update={"steps": max(1, math.ceil(pairs * passes / config.batch_size))})


def without_auxiliary(config: TowerConfig) -> TowerConfig:
    """Stage 1's configuration without what only towers have: one loss, all dimensions, one process."""
    return config.model_copy(
        update={"matryoshka": (), "dimension": None, "query_prediction_weight": 0.0, "processes": 1, "sharding": "none"}
    )


def pairs_with_titles(dataset: Dataset, config: DistillationConfig, batches_by: str = "") -> Pairs:
    """The pairs that a student is refined on, for the training of two encoders: train judgements, and titles where `refine_titles` is set.

    The titles are those of `query_sources`. `batches_by` as for `training_pairs`.
    """
    train = training_pairs(dataset, batches_by)
    if not config.refine_titles:
        return train
    titles = query_sources(dataset, config)["titles"]
    rows = {title: len(train.queries) + i for i, title in enumerate(titles)}
    found = [(rows[title], i) for i, title in enumerate(dataset.documents["title"]) if title in rows]
    relevant = {query: set(documents) for query, documents in train.relevant.items()}
    for query, document in found:
        relevant.setdefault(query, set()).add(document)
    ids = dataset.documents["doc_id"].tolist()
    return Pairs(
        queries=[*train.queries, *titles],
        documents=train.documents,
        pairs=[*train.pairs, *found],
        relevant={query: frozenset(documents) for query, documents in relevant.items()},
        origins=[*train.origins, *(dataset.origin_of(ids[document]) for _, document in found)],
        own=train.own,
        kinds=[*train.kinds, *document_kinds(dataset, [document for _, document in found], batches_by)] if batches_by else (),
    )


def train_pair(pair: TrainablePair, pairs: Pairs, config: TowerConfig, folder: Path, label: str) -> list[float]:
    """Train `pair` in place as stage 1 trains its towers; a killed training continues. Returns the loss of every step."""
    run = PairTraining(pair, pairs, config, folder)
    run.label = label
    run.to_end()
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return run.losses


# --- Baseline: one small encoder for queries and documents, fine-tuned contrastively on the teacher's training pairs.


QUERY_PROMPT = "query_prompt"


class SmallEncoder:
    """A small encoder in contrastive training. Both baselines have one."""

    def __init__(self, student: StudentEncoder, config: DistillationConfig, learning_rate: float) -> None:
        self.student, self._rate = student, learning_rate
        self.device, self._dtype = student.device, pick_dtype(config.precision)
        self._trained = student.parameters(config.train_embeddings)

    def embed(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Unit float32 vectors (len(rows), dimension) with a graph."""
        with autocast(self.device, self._dtype):
            return normalize(self.student.project(rows).float())

    def encode(self, rows: Sequence[Sequence[int]], progress: str | None = None) -> NDArray[np.float32]:
        """Unit float32 vectors (len(rows), dimension) without a graph, in the order of `rows`."""
        return unit(self.student.encode_rows(rows, progress=progress))

    def groups(self) -> list[dict[str, Any]]:
        """Its trainable parameters as a group of the optimizer."""
        return [{"params": self._trained, "lr": self._rate, "weight_decay": 0.01}]


class SymmetricPair:
    """The small encoder in both roles (see components.studies.trained_baselines.TrainablePair), which differ by their prompts alone."""

    def __init__(self, encoder: SmallEncoder, query_prompt: str) -> None:
        self.encoder, self.device, self.even = encoder, encoder.device, False
        self._queries = with_prompt(encoder.student, query_prompt)

    def kept_bytes(self, config: TowerConfig) -> int:
        """See components.studies.trained_baselines.TrainablePair."""
        return 0

    def passing_twice(self) -> AbstractContextManager[None]:
        """All layers are trained, so nothing can be kept."""
        return nullcontext()

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids behind the role's prompt."""
        return (self._queries if role == "query" else self.encoder.student).tokens(texts)

    def embed(self, rows: Sequence[Sequence[int]], role: Role) -> Tensor:
        """Unit float32 vectors (len(rows), dimension) with a graph; the roles do not differ."""
        return self.encoder.embed(rows)

    def encode(self, rows: Sequence[Sequence[int]], role: Role, progress: str | None = None) -> NDArray[np.float32]:
        """The same without a graph, for any number of rows."""
        return self.encoder.encode(rows, progress)

    def groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimizer."""
        return self.encoder.groups()

    def state(self) -> dict[str, Tensor]:
        """Copies of all trained weights."""
        return self.encoder.student.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back weights given by `state()`."""
        self.encoder.student.load_state(state)


def train_symmetric(
    pairs: Pairs, configs: tuple[TowerConfig, DistillationConfig], learning_rate: float, parents: Mapping[str, str], folder: Path
) -> EncoderArtifact:
    """Train the encoder that `configs[1]` names as `configs[0]` trains its towers, and save it as a document encoder of its own space.

    Queries and documents have their prompts as published (see `role_prompts`); `symmetric_roles` opens what was saved. Raises ModelError
    for an unusable encoder or too few pairs.
    """
    towers, small = configs
    prompts = role_prompts(small, [*pairs.documents, *pairs.queries])
    student = _with_identity(pairs, towers, small, prompts["document"])
    pair = SymmetricPair(SmallEncoder(student, small, learning_rate), prompts["query"])
    losses = train_pair(pair, pairs, without_auxiliary(towers), folder, "train symmetric pair")
    contract = save_student(student, folder)
    space_id = space_id_of(contract)
    save_contract(folder, contract, space_id)
    record_probes(load_student(folder), folder)
    attributes: dict[str, Scalar] = {
        "space_id": space_id,
        "role": "document",
        "dimension": contract.dimension,
        "base_model": contract.base_model,
        "final_loss": round(float(np.mean(losses[-10:])), 4),
        QUERY_PROMPT: prompts["query"],
    }
    counts = {"pairs": len(pairs.pairs), "pairs_seen": towers.steps * towers.batch_size}
    return EncoderArtifact.model_validate(seal(folder, "encoder", counts=counts, parents=parents, attributes=attributes).model_dump())


def symmetric_roles(trained: Artifact) -> tuple[StudentEncoder, StudentEncoder]:
    """The encoder that `train_symmetric` made, for queries and for documents."""
    document = load_student(trained.path)
    return with_prompt(document, str(trained.attributes[QUERY_PROMPT])), document


def _with_identity(pairs: Pairs, towers: TowerConfig, small: DistillationConfig, prompt: str) -> StudentEncoder:
    """The encoder with a square head that changes nothing at the start, so that it is saved and loaded like any student."""
    import torch

    source = Source(small.model_copy(update={"query_prompt": prompt}), [*pairs.documents, *pairs.queries], None)
    bare = bare_student(source)
    update = {"role": "document", "max_length": at_most_positions(bare, towers.max_document_length)}
    head = linear_head(torch.eye(bare.contract.dimension))
    return StudentEncoder(bare.model, bare.tokenizer, head, bare.contract.model_copy(update=update), "in training")


# --- Baseline: an LLM document tower and a small query encoder, trained end to end by one contrastive loss.


FIT_QUERIES = 4096  # train queries that the head is fitted on
DOCUMENT_TOWER, QUERY_ENCODER = "document_tower", "query_encoder"
TOWERS = "towers/"


class AsymmetricPair:
    """The document tower and the query encoder (see components.studies.trained_baselines.TrainablePair)."""

    def __init__(self, towers: TwoTowers, tower_rate: float, query: SmallEncoder) -> None:
        self.towers, self.tower_rate, self.query = towers, tower_rate, query
        self.device, self.even = towers.device, towers.even

    def kept_bytes(self, config: TowerConfig) -> int:
        """See components.studies.trained_baselines.TrainablePair."""
        return self.towers.kept_bytes(config)

    def passing_twice(self) -> AbstractContextManager[None]:
        """See components.studies.trained_baselines.TrainablePair."""
        return self.towers.passing_twice()

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids under the contract of the role's own encoder."""
        return self.query.student.tokens(texts) if role == "query" else self.towers.tokens(texts, "document")

    def embed(self, rows: Sequence[Sequence[int]], role: Role) -> Tensor:
        """Unit float32 vectors (len(rows), dimension) with a graph."""
        return self.query.embed(rows) if role == "query" else self.towers.embed(rows, "document")

    def encode(self, rows: Sequence[Sequence[int]], role: Role, progress: str | None = None) -> NDArray[np.float32]:
        """The same without a graph, for any number of rows."""
        return self.query.encode(rows, progress) if role == "query" else self.towers.encode(rows, "document", progress)

    def groups(self) -> list[dict[str, Any]]:
        """Both encoders' parameters, each with its own learning rate; the tower's query adapter gets no gradient and stays."""
        return [{"params": self.towers.parameters(), "lr": self.tower_rate, "weight_decay": 0.0}, *self.query.groups()]

    def state(self) -> dict[str, Tensor]:
        """Copies of all trained weights."""
        return {**{TOWERS + name: value for name, value in self.towers.state().items()}, **self.query.student.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back weights given by `state()`."""
        self.towers.load_state({name.removeprefix(TOWERS): value for name, value in state.items() if name.startswith(TOWERS)})
        self.query.student.load_state({name: value for name, value in state.items() if not name.startswith(TOWERS)})


def train_asymmetric(
    pairs: Pairs, configs: tuple[TowerConfig, DistillationConfig], learning_rate: float, parents: Mapping[str, str], folder: Path
) -> Artifact:
    """Train both encoders end to end and write `folder`/document_tower and `folder`/query_encoder, each an encoder artifact.

    `configs` are those of stage 1 and of the student; `learning_rate` is the query encoder's, the tower has stage 1's. Vectors keep
    the LLM's whole width. Raises ModelError for an unusable model or too few pairs.
    """
    config, small = without_auxiliary(configs[0]), configs[1]
    towers = TwoTowers(tower_base(config, [*pairs.documents, *pairs.queries]), config)
    texts = list(dict.fromkeys(pairs.queries))[:FIT_QUERIES]
    untrained = towers.encode(towers.tokens(texts, "query"), "query", "queries with the untrained LLM")
    student = new_student(texts, untrained, "in training", small, None)
    pair = AsymmetricPair(towers, config.learning_rate, SmallEncoder(student, small, learning_rate))
    losses = train_pair(pair, pairs, config, folder, "train end to end")
    _write(pair, parents, folder)
    counts = {"pairs": len(pairs.pairs), "pairs_seen": config.steps * config.batch_size}
    attributes = {"final_loss": round(float(np.mean(losses[-10:])), 4), "steps": config.steps}
    return seal(folder, "towers", counts=counts, parents=parents, attributes=attributes)


def _write(pair: AsymmetricPair, parents: Mapping[str, str], folder: Path) -> None:
    """Save both with contract, space and probes; the space is named by the document tower."""
    targets = {name: folder / name for name in (DOCUMENT_TOWER, QUERY_ENCODER)}
    for target in targets.values():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    # None is for the other ones of several processes; this training has one.
    document = cast("EncodingContract", pair.towers.save("document", targets[DOCUMENT_TOWER]))
    query = save_student(pair.query.student, targets[QUERY_ENCODER])
    space_id = space_id_of(document)
    _finish(targets[DOCUMENT_TOWER], document, space_id, parents)
    _finish(targets[QUERY_ENCODER], query, space_id, parents)


def _finish(folder: Path, contract: EncodingContract, space_id: str, parents: Mapping[str, str]) -> None:
    save_contract(folder, contract, space_id)
    encoder: TextEncoder = load_tower(folder) if contract.role == "document" else load_student(folder)
    record_probes(encoder, folder)
    attributes: dict[str, Scalar] = {
        "space_id": space_id,
        "role": contract.role,
        "dimension": contract.dimension,
        "base_model": contract.base_model,
    }
    seal(folder, "encoder", counts={"probes": 64}, parents=parents, attributes=attributes)
