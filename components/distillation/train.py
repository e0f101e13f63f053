"""Stage 2: align a student to the teacher's query vectors, prune and align it again, refine it against the frozen document vectors.

What goes into it is put together here, apart from `teacher_targets`, so that the teacher's vectors stay when only the training changes.

Alignment first: contrastive training alone, from scratch, collapses. Every epoch is scored on the dev judgements over the real index and
the best one is kept; student-teacher cosine barely predicts retrieval. A killed run continues from its last epoch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from components.artifacts import (
    Artifact,
    DatasetArtifact,
    EncoderArtifact,
    IndexArtifact,
    Scalar,
    VectorShards,
    by_role,
    parents_of,
    read_json,
    seal,
    write_json,
)
from components.data.dataset import load_dataset, wording
from components.distillation.config import HELD_OUT_TITLES, DistillationConfig, RefineTitles
from components.distillation.objectives import Refinement, alignment_loss, refinement_loss, similarity_loss
from components.distillation.plan import (
    DevSet,
    Epoch,
    Search,
    StudentOptimizer,
    dev_metrics,
    learning_rate,
    log_entry,
    make_plan,
    order_of,
    prune,
    retention_of,
    spread_of,
    texts_per_source,
)
from components.distillation.query_sources import dev_queries, held_out_wordings, mixed_noise, originals, query_sources, relevant
from components.distillation.student import check_student, load_student, new_student, save_student
from components.distillation.teacher_targets import first_sources, read_held_out, read_sources, read_teacher_targets
from components.errors import CollapseError, DataError, ModelError
from components.progress import measured, progress_bar
from components.text import is_blank
from components.towers.contract import Spread, record_probes, refuse_collapse, save_contract
from components.towers.device import autocast, pick_dtype
from components.towers.transformer import normalize

if TYPE_CHECKING:
    from torch import Tensor

    from components.data.dataset import Dataset


NOISED = "noised"
NoiseOf = Callable[[Sequence[str], int], list[str]]  # texts and a seed -> the texts with noise, in the same order


@dataclass(frozen=True)
class DistillationData:
    """Texts with teacher vectors (n, d), judged pairs (text number, document number), and document vectors (m, d); unit float32.

    `sources` names where each text comes from; `teacher_folder` is the teacher's query tower, for a student cut from it; `own` are pairs
    of a text and the document that it is itself, which is no negative of it. `held_out_titles` counts the documents that only held-out
    queries ask for and that are in a pair with their title all the same.
    """

    texts: Sequence[str]
    teacher: NDArray[np.float32]
    pairs: Sequence[tuple[int, int]]
    documents: NDArray[np.float32]
    space_id: str
    dev: DevSet
    sources: Sequence[str] = ()
    teacher_folder: Path | None = None
    own: Sequence[tuple[int, int]] = ()
    held_out_titles: int = 0


@dataclass(frozen=True)
class DocumentSide:
    """The frozen documents: unit vectors float32 (m, d) in the data set's order, their space, and the search over the real index."""

    vectors: NDArray[np.float32]
    space_id: str
    search: Search


@dataclass(frozen=True)
class StudentInputs:
    """What a student is made from. `query_tower`: for one that is cut from the teacher. `vectors`: None: those that the index keeps."""

    dataset: DatasetArtifact
    targets: Artifact
    index: IndexArtifact
    query_tower: EncoderArtifact | None = None
    vectors: VectorShards | None = None


class OpenDocuments(Protocol):
    """How an index is opened, which this room, standing below it, leaves to the caller (see components.index.search)."""

    def __call__(self, index: IndexArtifact, vectors: VectorShards | None, doc_ids: Sequence[str]) -> tuple[NDArray[np.float32], Search]:
        """Unit vectors of the documents, float32 (len(doc_ids), d), and the search over the index."""
        ...


def distil(inputs: StudentInputs, config: DistillationConfig, open_documents: OpenDocuments, folder: Path) -> EncoderArtifact:
    """The step distil_query_tower: align, prune and refine a student.

    Raises as `check_student`, `distillation_data` and `train_student` do, and what opening the index raises.
    """
    tower = inputs.query_tower.path if inputs.query_tower else None
    check_student(config, int(inputs.index.attributes["dimension"] or 0), tower)
    dataset = load_dataset(inputs.dataset.path)
    vectors, search = open_documents(inputs.index, inputs.vectors, dataset.documents["doc_id"].tolist())
    documents = DocumentSide(vectors, inputs.index.space_id, search)
    data = distillation_data(dataset, inputs.targets.path, documents, config, tower, mixed_noise)
    return train_student(data, config, parents_of(by_role(inputs)), folder)


def check_sources(dataset: Dataset, config: DistillationConfig) -> None:
    """Raise DataError when the data cannot feed the distillation: no dev judgements, or a share for a source without texts.

    Cheap, and meant to be asked before anything is trained.
    """
    if relevant(dataset, "dev").empty:
        raise DataError("The data has no relevant dev judgements; checkpoints cannot be chosen. Add qrels/dev.tsv.")
    sources = query_sources(dataset, config)
    found = Counter(first_sources(sources).values())  # as the targets count them: titles that are train queries too are no titles
    made = {name: 1 for name, wanted in (("generated", config.generated), (NOISED, config.noised)) if wanted}
    texts_per_source({**{name: found[name] for name in sources}, **made}, config.source_shares)


def distillation_data(
    dataset: Dataset,
    targets: Path,
    documents: DocumentSide,
    config: DistillationConfig,
    teacher_folder: Path | None = None,
    noise: NoiseOf | None = None,
) -> DistillationData:
    """Join teacher targets, pairs for the refinement, and the frozen document vectors, whose rows follow the data set's documents.

    `teacher_folder` is the teacher's query tower, which a student cut from it needs; `noise` makes the texts of `config.noised`, to which
    the alignment alone is extended.
    """
    texts, teacher = read_teacher_targets(targets)
    sources = read_sources(targets)
    copies = noised_copies(dataset, texts, config, noise) if noise is not None and config.noised else {}
    pairs = refinement_pairs(dataset, texts, config.refine_titles)
    held_out, doc_ids = held_out_documents(dataset), dataset.documents["doc_id"].tolist()
    return DistillationData(
        texts=[*texts, *copies],
        teacher=np.concatenate([teacher, teacher[list(copies.values())]]) if copies else teacher,
        pairs=pairs,
        held_out_titles=len({document for _, document in pairs if doc_ids[document] in held_out}),
        own=own_pairs(dataset, texts),
        documents=documents.vectors,
        space_id=documents.space_id,
        dev=dev_set(dataset, documents.search, read_held_out(targets)),
        sources=[*sources, *[NOISED] * len(copies)],
        teacher_folder=teacher_folder,
    )


def noised_copies(dataset: Dataset, texts: Sequence[str], config: DistillationConfig, noise: NoiseOf) -> dict[str, int]:
    """At most `config.noised` new texts -> the number of the text that each was made of, in the seed's order.

    A copy that noise left as it was, that stands among `texts`, or that reads as a held-out query is none.
    """
    order = np.random.default_rng([config.seed, 3]).permutation(len(texts)).tolist()
    known, tested, found = set(texts), held_out_wordings(dataset), dict[str, int]()
    for number, copy in zip(order, noise([texts[i] for i in order], config.seed), strict=True):
        if len(found) >= config.noised:
            break
        if copy not in known and not is_blank(copy) and wording(copy) not in tested:
            found.setdefault(copy, number)
    return found


def refinement_pairs(dataset: Dataset, texts: Sequence[str], titles: RefineTitles) -> list[tuple[int, int]]:
    """(text number, document number) of the relevant train judgements, of their queries' translations and, if wanted, of titles.

    All are among `texts`. `titles`: True for those of all documents, "train_documents" for all but those of `held_out_documents`.
    """
    text_row = {text: i for i, text in enumerate(texts)}
    document_row = {d: i for i, d in enumerate(dataset.documents["doc_id"])}
    train = relevant(dataset, "train")
    judged = list(zip(train["text"], train["doc_id"], strict=True))
    pairs = [(text_row[t], document_row[d]) for t, d in judged]
    translations: dict[str, list[str]] = {}
    for text, original in originals(dataset).items():
        if text in text_row:
            translations.setdefault(original, []).append(text)
    pairs += [(text_row[text], document_row[d]) for t, d in judged for text in translations.get(t, ())]
    if titles:
        unseen = held_out_documents(dataset) if titles == "train_documents" else frozenset()
        titled = enumerate(zip(dataset.documents["doc_id"], dataset.documents["title"], strict=True))
        pairs += [(text_row[title], i) for i, (doc_id, title) in titled if title in text_row and doc_id not in unseen]
    return list(dict.fromkeys(pairs))


def held_out_documents(dataset: Dataset) -> frozenset[str]:
    """Ids of the documents that a query of another split asks for and no train query does."""
    asked = {split: frozenset(relevant(dataset, split)["doc_id"]) for split in dataset.splits}
    return frozenset[str]().union(*(ids for split, ids in asked.items() if split != "train")) - asked.get("train", frozenset())


def own_pairs(dataset: Dataset, texts: Sequence[str]) -> list[tuple[int, int]]:
    """(text number, document number) of the train queries among `texts` that are documents themselves."""
    left_out = dataset.own_documents("train").left_out
    if not left_out:
        return []
    text_row = {text: i for i, text in enumerate(texts)}
    document_row = {d: i for i, d in enumerate(dataset.documents["doc_id"])}
    queries = dataset.judged_queries("train")
    found = zip(queries["query_id"], queries["text"], strict=True)
    return [(text_row[text], document_row[query]) for query, text in found if query in left_out and text in text_row]


def dev_set(dataset: Dataset, search: Search, teacher: Mapping[str, NDArray[np.float32]] | None = None) -> DevSet:
    """The dev judgements with the search that scores them, and the teacher's vectors of the queries when all are given.

    Raises DataError when there are no dev judgements.
    """
    judged = relevant(dataset, "dev")
    if judged.empty:
        raise DataError("The data has no relevant dev judgements; checkpoints cannot be chosen. Add qrels/dev.tsv.")
    answers = [frozenset(ids) for ids in judged.groupby("query_id", sort=True)["doc_id"].agg(list)]
    queries = dev_queries(dataset)
    known = teacher is not None and all(text in teacher for text in queries)
    vectors = np.stack([teacher[text] for text in queries]) if teacher is not None and known else None
    left_out = dataset.own_documents("dev").left_out
    own = {place: query for place, query in enumerate(sorted(set(judged["query_id"]))) if query in left_out}
    return DevSet(queries, answers, search, vectors, own)


# --- Stage 2: align a student to the teacher's query vectors, prune and align it again, refine it against the frozen document vectors.


CHECKPOINT = "checkpoint.pt"
LOG = "training_log.json"


def train_student(data: DistillationData, config: DistillationConfig, parents: Mapping[str, str], folder: Path) -> EncoderArtifact:
    """Train, keep the best epoch, save it as a SentenceTransformer with contract and probes.

    Raises ModelError for an unusable student, DataError for a share of a source without texts, and CollapseError when the student's
    vectors crowd together.
    """
    run = Distillation(data, config, folder)
    run.to_end()
    run.restore_best()
    vectors = run.student.encode(data.dev.queries)
    # A few queries cannot span more directions than there are queries.
    refuse_collapse("student", spread_of(vectors), config.max_mean_cosine, min(config.min_effective_rank, len(vectors) / 2))
    contract = save_student(run.student, folder)
    save_contract(folder, contract, data.space_id)
    record_probes(load_student(folder), folder)
    write_json(folder / LOG, run.history)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    attributes = {
        "space_id": data.space_id,
        "role": "query",
        "dimension": contract.dimension,
        "base_model": contract.base_model,
        "layers": run.student.layer_count,
        **_chosen(run.history[run.best_epoch]),
        **_shares(data.sources, config),
    }
    counts = {"queries": len(data.texts), **{f"source_{name}": size for name, size in Counter(data.sources).items()}}
    counts |= {HELD_OUT_TITLES: data.held_out_titles} if config.refine_epochs else {}
    made = seal(folder, "encoder", counts=counts, parents=parents, attributes=attributes)
    return EncoderArtifact.model_validate(made.model_dump())


def _chosen(best: Mapping[str, Any]) -> dict[str, Scalar]:
    """The epoch that was kept, and what it reached on dev."""
    kept = {name: round(best[name], 4) for name in ("mean_cosine", "effective_rank")}
    retention = {f"dev_{name.replace('@', '_at_')}": round(best[name], 4) for name in best if name.startswith("retention_")}
    return {
        "chosen": f"{best['phase']} {best['epoch']}",
        "dev_recall_at_50": round(best["recall@50"], 4),
        "dev_ndcg_at_10": round(best["ndcg@10"], 4),
        **retention,
        **kept,
    }


def _shares(sources: Sequence[str], config: DistillationConfig) -> dict[str, Scalar]:
    """The part of each source in an alignment epoch."""
    counts = texts_per_source(Counter(sources), config.source_shares)
    return {f"share_{name}": round(count / sum(counts.values()), 4) for name, count in counts.items()}


class Distillation:
    """The state of a distillation and its loop."""

    def __init__(self, data: DistillationData, config: DistillationConfig, folder: Path) -> None:
        _require_one_width(data)
        texts_per_source(Counter(data.sources), config.source_shares)
        self.data, self.config, self.folder = data, config, folder
        self.student = new_student(data.texts, data.teacher, data.space_id, config, data.teacher_folder)
        self.dtype = pick_dtype(config.precision)
        self.rows = self.student.tokens(data.texts)
        self.teacher = self._tensor(data.teacher)
        self.documents = self._tensor(data.documents)
        self.refinement = Refinement(self.documents, self.teacher, data.pairs, config.refine_positive_share, data.own)
        self.history: list[dict[str, Any]] = []
        self._steps = 0  # of this process, for whoever watches
        self.best: dict[str, Tensor] = {}
        self.epochs = make_plan(len(data.texts), len(data.pairs), config)
        self._resume()

    @property
    def best_epoch(self) -> int:
        """Number in `history` of the best epoch of the student's present size, the earliest of equals."""
        same = [i for i, entry in enumerate(self.history) if entry["layers"] == self.student.layer_count]
        return max(same, key=lambda i: (self.history[i]["score"], -i))

    def to_end(self) -> None:
        """Run the epochs that are left and score each on dev."""
        for number in range(len(self.history), len(self.epochs)):
            epoch = self.epochs[number]
            if epoch.number == 0:
                self.enter(epoch)
            loss = self._epoch(epoch)
            self.history.append(self._score(epoch, loss))
            self._tell_epoch()
            if self.best_epoch == number:
                self.best = self.student.state()
            self._save()

    def restore_best(self) -> None:
        """Put the best epoch's weights back into the student."""
        self.student.load_state(self.best)

    def enter(self, epoch: Epoch) -> None:
        """Begin a phase from the best weights so far, with fewer layers if it says so, and a new optimizer."""
        if self.best:
            self.restore_best()
        if epoch.phase.prune_to is not None:
            prune(self.student, epoch.phase.prune_to)
        self.optimizer = self._new_optimizer()

    def _epoch(self, epoch: Epoch) -> float:
        if epoch.phase.kind == "refine" and self.config.refine_negatives == "mined":
            self._mine()
        elif epoch.phase.kind == "refine" and self.config.refine_negatives == "spread":
            self.refinement.spread(self.config.refine_depth, (self.config.seed, epoch.place, epoch.number))
        losses, size = [], self.config.batch_size
        order = order_of(epoch, self.data.sources, self.config)
        label = f"{epoch.phase.name}: student, epoch {epoch.number + 1}"
        with progress_bar(len(order), label, "query") as bar:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                losses.append(self.learn(batch, epoch, start))
                bar.update(len(batch))
                bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", refresh=False)
                self._tell_step(losses[-1], learning_rate(epoch, start, self.config), bar.format_dict["rate"] or 0.0)
        return _finite(float(np.mean(losses)), label)

    def learn(self, batch: NDArray[np.int64], epoch: Epoch, start: int) -> float:
        """One step on the texts (alignment) or pairs (refinement) numbered in `batch`, which begins at `start` of the epoch; its loss."""
        loss = self._align(batch, (epoch.place, epoch.number, start)) if epoch.phase.kind == "align" else self._refine(batch)
        loss.backward()
        self._norm = self.optimizer.step(learning_rate(epoch, start, self.config))
        return float(loss.detach())

    def _tell_step(self, loss: float, rate: float, speed: float) -> None:
        self._steps += 1
        values = {"batch_loss": loss, "learning_rate": rate, "gradient_norm": self._norm, "queries_per_second": speed}
        measured(self._steps, {f"training/student_{name}": value for name, value in values.items()})

    def _tell_epoch(self) -> None:
        entry = self.history[-1]
        phase = [earlier for earlier in self.history if earlier["phase"] == entry["phase"]]
        measured(len(phase), {f"training/student_loss_{entry['phase']}": entry["loss"]})
        measured(len(self.history), {f"training/student_dev_{name}": entry[name] for name in ("ndcg@10", "recall@50", "mean_cosine")})

    def _score(self, epoch: Epoch, loss: float) -> dict[str, Any]:
        """The log entry of a finished epoch."""
        vectors = self.student.encode(self.data.dev.queries)
        metrics = dev_metrics(vectors, self.data.dev)
        retention = retention_of(metrics, self._teacher_on_dev[0]) if self._teacher_on_dev else {}
        health = log_entry(spread_of(vectors), self._teacher_on_dev[1] if self._teacher_on_dev else None, retention)
        for sign in health["collapse_signs"]:
            print(f"[student] {epoch.phase.name}, epoch {epoch.number + 1}: a sign of collapse: {sign}", flush=True)
        place = {"phase": epoch.phase.name, "epoch": epoch.number + 1, "layers": self.student.layer_count}
        return {**place, "loss": loss, **metrics, **health}

    @cached_property
    def _teacher_on_dev(self) -> tuple[Mapping[str, float], Spread] | None:
        vectors = self.data.dev.teacher
        return None if vectors is None else (dev_metrics(vectors, self.data.dev), spread_of(vectors))

    def _mine(self) -> None:
        texts = [self.data.texts[i] for i in self.refinement.texts]
        queries = self._tensor(self.student.encode(texts, progress="mine negatives with the student"))
        self.refinement.mine(queries, self.config.refine_depth)

    def _project(self, texts: Sequence[int]) -> Tensor:
        with autocast(self.student.device, self.dtype):
            return self.student.project([self.rows[i] for i in texts]).float()

    def _align(self, batch: NDArray[np.int64], place: tuple[int, ...]) -> Tensor:
        config, raw, teacher = self.config, self._project(batch.tolist()), self.teacher[batch]
        loss = alignment_loss(raw, teacher, config.mse_weight, config.cosine_weight)
        if not config.similarity_weight:
            return loss
        count = min(config.similarity_documents, len(self.documents))
        drawn = np.random.default_rng([config.seed, *place]).choice(len(self.documents), count, replace=False)
        matched = similarity_loss(normalize(raw), teacher, self.documents[drawn], config.similarity_temperature)
        return loss + config.similarity_weight * matched

    def _refine(self, batch: NDArray[np.int64]) -> Tensor:
        texts = self.refinement.text_numbers(batch)
        raw, among = self._project(texts), self.refinement.candidates(batch)
        loss = refinement_loss(normalize(raw), among.documents, among.targets, self.config.refine_temperature, among.blocked)
        return loss + alignment_loss(raw, self.teacher[texts], 0.0, self.config.refine_cosine_weight)

    def _tensor(self, vectors: NDArray[np.float32]) -> Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(vectors)).to(self.student.device)

    def _new_optimizer(self) -> StudentOptimizer:
        trained, table = self.student.parameters(self.config.train_embeddings, self.config.trained_layers), self.student.token_table
        table.sparse = table.weight.requires_grad
        return StudentOptimizer([p for p in trained if p is not table.weight], [table.weight] if table.sparse else [])

    def _save(self) -> None:
        import torch

        beside = self.folder / f".{CHECKPOINT}.tmp"
        state = {
            "layers": self.student.layer_count,
            "weights": self.student.state(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }
        torch.save(state, beside)
        os.replace(beside, self.folder / CHECKPOINT)

    def _resume(self) -> None:
        import torch

        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.student.device, weights_only=True)
        if state["layers"] != self.student.layer_count:
            prune(self.student, state["layers"])
        self.student.load_state(state["weights"])
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.history = state["best"], state["history"]


def _finite(loss: float, label: str) -> float:
    if not np.isfinite(loss):
        raise CollapseError(f"{label}: the mean loss is {loss}, not a finite number. Lower the learning rate, or set precision to float32.")
    return loss


def _require_one_width(data: DistillationData) -> None:
    teacher, documents = data.teacher.shape[1], data.documents.shape[1]
    if teacher != documents:
        raise ModelError(f"The teacher's vectors have {teacher} dimensions, the documents' {documents}. Retrain the towers.")


def training_epochs(folder: Path) -> list[dict[str, Any]] | None:
    """The log of a finished student, one entry an epoch: phase, epoch, loss and what it reached on dev; None when it has no log."""
    return list(read_json(folder / LOG)) if (folder / LOG).is_file() else None
