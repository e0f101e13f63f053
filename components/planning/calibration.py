"""Rates of this machine: the real code, run for seconds on a few real texts with the models that the retraining names.

Each rate is taken in wall seconds and in processor seconds. The first are what people wait for; the second hold when other programs
share the machine. Sizes grow until a measurement fills its share of the time, so that a slow machine is not kept for minutes.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.planning.cost import UNITS
from components.planning.facts import padded
from components.settings import work_folder
from components.towers.device import freed_at_once, give_back_memory
from components.towers.tokens import tokens_of

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.distillation.train import DistillationData

FULL_SECONDS, QUICK_SECONDS = 12.0, 8.0  # of a plan, and of the estimate that a run begins with: what is timed; models load beside it
# Seconds that `_reference` takes on the machine that the constants of `cost` were measured on.
REFERENCE_SECONDS = 0.021
_DOCUMENTS = 4096  # random vectors that stand in for an index
_PAIRS = 32
_FIRST_TOKENS = 256  # of the first training step that is tried: of fewer the overhead of every layer says more than the tokens
_QUICK_TOKENS = 128  # of the same where seconds count: without fast instructions a step of 256 takes two
_BATCHES = 8
_WRITTEN = 8 * 2**20


class _Teacher(NamedTuple):
    """A tower's folder, and its seconds (wall, processor) for a single query and for a full batch of the timing."""

    folder: Path
    single: tuple[float, float]
    batch: tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """Seconds of every unit of `cost.UNITS`, by the wall clock and by the processors; what was measured on, and how long it took."""

    wall: Mapping[str, float]
    cpu: Mapping[str, float]
    device: str
    seconds: float


@dataclass
class _Clock:
    """Takes the seconds of calls, wall and processor."""

    limit: float
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def quick(self) -> bool:
        """Whether seconds count more than exactness."""
        return self.limit <= QUICK_SECONDS

    def of(self, call: Callable[[], object], times: int = 1) -> NDArray[np.float64]:
        """Seconds of a call, (2,): the least of `times`, since whatever disturbs it makes it slower."""
        return np.min([_seconds(call) for _ in range(times)], axis=0)

    def keep(self, unit: str, seconds: NDArray[np.float64], count: float) -> None:
        """Record the rate of `unit` from the seconds of `count` of it."""
        wall, cpu = np.maximum(seconds, 1e-9) / max(count, 1e-9)
        self.rates[unit] = (float(wall), float(cpu))

    def kept(self, unit: str, make: Callable[[], Any], count: float = 1) -> Any:
        """What `make` makes, its seconds recorded as those of `count` of `unit`."""
        made: list[Any] = []
        self.keep(unit, self.of(lambda: made.append(make())), count)
        return made[0]

    def grown(self, call: Callable[[int], object], first: int, most: int, share: float) -> tuple[NDArray[np.float64], int]:
        """Seconds and size of the largest call up to `most` that fits twice into this share of the limit.

        The second call of the size `first` shows how fast it is: the first one of all may take ten times as long. The one of the full
        size is made twice: what a library does once for every new shape (its kernels, its memory) is not counted. Where seconds count
        it is made once, and not at all where it would not be twice the size `first`. The share is not one of what is left: models that
        load slowly would leave nothing but the smallest size, whose overhead is several times its tokens.
        """
        call(first)
        seconds = self.of(lambda: call(first))
        fits = int(first * self.limit * share / 2 / max(float(seconds[0]), 1e-6))
        size = max(first, min(most, fits))
        if self.quick and size < 2 * first:
            return seconds, first
        return self.of(lambda: call(size), 1 if self.quick else 2), size


def calibrate(dataset: Dataset, config: Any, limit: float = FULL_SECONDS) -> Calibration:
    """Measure every rate for the models and settings of `config` (a RetrainConfig) on texts of `dataset`.

    Loading models and first calls come to `limit`: with FULL_SECONDS a plan takes 20 to 30 s. Raises ModelError for a model that cannot be
    used.
    """
    from components.tracking.live import scratch

    clock = _Clock(limit)
    with scratch(work_folder(), ".calibration-") as folder, _quiet():
        clock.keep("reference_second", clock.of(_reference, 3), REFERENCE_SECONDS)
        _write(clock, folder)
        texts = _Sample(dataset, config)
        _student(clock, texts, config, _teacher(clock, texts, config, folder))
        _search(clock, texts, config)
    give_back_memory()
    assert set(clock.rates) == set(UNITS), set(UNITS) ^ set(clock.rates)
    wall, cpu = ({unit: pair[kind] for unit, pair in clock.rates.items()} for kind in (0, 1))
    return Calibration(wall, cpu, describe_device(), time.perf_counter() - clock.started)


def describe_device() -> str:
    """The processor or GPU that the models will run on, its threads and number format."""
    from components.evaluation.speed import describe_machine

    return describe_machine()


class _Sample:
    """Real texts for the measurements: training pairs, documents and queries."""

    def __init__(self, dataset: Dataset, config: Any) -> None:
        from components.distillation.query_sources import query_sources
        from components.towers.pairs import training_pairs

        self.pairs = training_pairs(dataset)
        rng = np.random.default_rng(0)
        self.chosen = [int(i) for i in rng.permutation(len(self.pairs.pairs))[:_PAIRS]]
        documents = self.pairs.documents
        self.documents = [documents[i] for i in rng.permutation(len(documents))[:1000]]
        targets = [text for texts in query_sources(dataset, config.distillation).values() for text in texts]
        size = (_BATCHES + 2) * config.distillation.batch_size
        self.targets = [targets[i % len(targets)] for i in rng.permutation(max(size, len(targets)))[:size]]
        self.built_from = [*documents, *self.pairs.queries]
        self.count = len(documents)


def _teacher(clock: _Clock, texts: _Sample, config: Any, folder: Path) -> _Teacher:
    """Rates of the teacher, with a query tower that is saved as a training saves it."""
    from components.towers.base_models import tower_base
    from components.towers.contract import save_contract
    from components.towers.encoder import load_tower
    from components.towers.two_towers import TwoTowers

    base = tower_base(config.towers, texts.built_from)
    alone = {"processes": 1, "sharding": "none", "hard_negatives": 0, "homogeneous_batches": False, "length_window": 1}
    settings = config.towers.model_copy(update={**alone, "batch_size": min(2, len(texts.chosen))})
    towers = TwoTowers(base, settings)
    _train(clock, towers, texts, settings, min(config.towers.batch_size, len(texts.chosen)), folder, towers.kept_bytes(config.towers))
    tower = folder / "query_tower"
    tower.mkdir()
    contract = towers.save("query", tower)
    assert contract is not None
    save_contract(tower, contract, "calibration")
    del towers
    gc.collect()
    encoder = clock.kept("teacher_load", lambda: load_tower(tower))
    queries = texts.targets[:64]
    lengths = _tokens(encoder.tokenizer, texts.documents, config.towers.document_prompt)
    cap = encoder.contract.max_length
    rows = max(1, config.encoding.tokens_per_batch // max(1, int(np.minimum(lengths, config.towers.max_document_length).mean())))
    # The query tower with the documents' length: the same transformer, whichever adapter was merged.
    encoder.contract = encoder.contract.model_copy(update={"max_length": config.towers.max_document_length})
    seconds, size = clock.grown(lambda n: encoder.encode(texts.documents[:n]), min(4, len(texts.documents)), min(rows, 1000), 0.3)
    clock.keep("teacher_token", seconds, encoder.worked_tokens(texts.documents[:size]))
    encoder.contract = encoder.contract.model_copy(update={"max_length": cap})
    single = _pair(clock.of(lambda: encoder.encode(queries[:1], batch_size=1), 3))
    # A full batch would take seconds on a slow machine: its tokens say as much.
    batch_size = min(config.evaluation.throughput_batch, len(queries))
    tokens = padded(_tokens(encoder.tokenizer, queries, config.towers.query_prompt)[:batch_size], batch_size, cap, 10**9)
    whole = tokens * config.evaluation.throughput_batch / batch_size
    wall, cpu = clock.rates["teacher_token"]
    return _Teacher(tower, single, (whole * wall, whole * cpu))


def _train(clock: _Clock, towers: Any, texts: _Sample, settings: Any, most: int, folder: Path, kept: int) -> None:
    """Rates of the training itself, on `texts.chosen`; `kept`: bytes that a pass of the real one keeps."""
    from components.towers.loop import Training
    from components.towers.pairs import Pairs

    pairs = texts.pairs
    queries = [pairs.queries[pairs.pairs[i][0]] for i in texts.chosen]
    documents = [pairs.documents[pairs.pairs[i][1]] for i in texts.chosen]
    sample = Pairs(queries, documents, [(i, i) for i in range(len(queries))], {i: frozenset({i}) for i in range(len(queries))})
    run = Training(towers, sample, settings.model_copy(update={"chunk_size": max(1, most)}), folder)
    each = max(1, (sum(map(len, run.query_tokens)) + sum(map(len, run.document_tokens))) // len(queries))
    first = min(most, max(2, (_QUICK_TOKENS if clock.quick else _FIRST_TOKENS) // each))
    with freed_at_once(kept):
        seconds, size = clock.grown(lambda n: run.backward(list(range(n)), None), first, most, 0.4)
    rows = [run.query_tokens[:size], run.document_tokens[:size]]
    clock.keep("teacher_train_token", seconds, sum(tokens_of(max(map(len, some)), size, towers.even) for some in rows))
    clock.keep("teacher_step", clock.of(run.optimizer.step), 1)
    run.optimizer.zero_grad(set_to_none=True)
    shown = run.document_tokens[:size]
    seconds = clock.of(lambda: towers.encode(shown, "document"), 2)
    clock.keep("teacher_cached_token", seconds, tokens_of(max(map(len, shown)), size, towers.even))
    characters = sum(map(len, texts.documents))
    clock.keep("teacher_character", clock.of(lambda: towers.tokens(texts.documents, "document")), characters)


def _tokens(tokenizer: Any, texts: Sequence[str], prompt: str) -> NDArray[np.int64]:
    rows = tokenizer([prompt + text for text in texts], truncation=False, verbose=False)["input_ids"]
    return np.array([len(row) + 1 for row in rows], np.int64)


def _student(clock: _Clock, texts: _Sample, config: Any, teacher: _Teacher) -> None:
    """Rates of the student, and of the rounds of timing that both take."""
    from components.distillation.student import untrained_student
    from components.evaluation.speed import seconds_of_timing
    from components.evaluation.systems import UNTRAINED_MAX_LENGTH

    _learning(clock, texts, config, teacher.folder)
    shown, wanted = texts.targets[:128], config.distillation
    built = [*texts.documents, *texts.targets]
    student = clock.kept("student_load", lambda: untrained_student(wanted, built, teacher.folder, UNTRAINED_MAX_LENGTH))
    most = min(256, len(texts.documents))
    grown, size = clock.grown(lambda n: student.encode(texts.documents[:n]), min(8, most), most, 0.2)
    clock.keep("student_token", grown, sum(len(row) for row in student.tokens(texts.documents[:size])))
    single = clock.of(lambda: student.encode(shown[:1], batch_size=1), 5)
    batch = config.evaluation.throughput_batch
    whole = clock.of(lambda: student.encode(shown[:batch], batch_size=batch), 3) * batch / min(batch, len(shown))
    singles, batches = ([_pair(single), teacher.single], [_pair(whole), teacher.batch])
    kinds = [{name: (singles[i][kind], batches[i][kind]) for i, name in enumerate(("student", "teacher"))} for kind in (0, 1)]
    clock.rates["timing"] = _pair([seconds_of_timing(seconds, config.evaluation) for seconds in kinds])


def _lessons(texts: _Sample, config: Any, tower: Path) -> DistillationData:
    """A distillation of real texts with random vectors."""
    from components.distillation.plan import DevSet
    from components.distillation.student.initial import width_of
    from components.distillation.train import DistillationData

    rng = np.random.default_rng(0)
    dimension = width_of(config.towers)
    vectors = _unit(rng, len(texts.targets), dimension)
    documents = _unit(rng, min(texts.count, _DOCUMENTS), dimension)
    pairs = [(i, i % len(documents)) for i in range(len(texts.targets))]
    dev = DevSet(texts.targets[:2], [frozenset({"a"})] * 2, lambda v, k: [["a"]] * len(v))
    return DistillationData(texts.targets, vectors, pairs, documents, "calibration", dev, ["train"] * len(texts.targets), tower)


def _learning(clock: _Clock, texts: _Sample, config: Any, tower: Path) -> None:
    """Rates of a batch of alignment, and of refinement against two numbers of documents."""
    from components.distillation.objectives import Refinement
    from components.distillation.train import Distillation

    folder = tower.parent / "student"
    folder.mkdir()
    settings = config.distillation.model_copy(update={"prune_to": (), "source_shares": {}, "epochs": 1, "refine_epochs": 1})
    run = Distillation(_lessons(texts, config, tower), settings, folder)
    shown = texts.targets[:128]
    clock.keep("student_float_token", clock.of(lambda: run.student.encode(shown), 2), sum(map(len, run.student.tokens(shown))))
    size = settings.batch_size
    batches = [np.arange(start, start + size) for start in range(0, (2 if clock.quick else _BATCHES) * size, size)]
    aligned, refined = run.epochs[0], run.epochs[-1]
    run.enter(aligned)
    run.learn(batches[0], aligned, 0)
    clock.keep("align_batch", clock.of(lambda: [run.learn(batch, aligned, 0) for batch in batches]), len(batches))
    few = max(1, len(run.documents) // 8)
    found = []
    for count in (few, len(run.documents)):
        pairs = [(i, i % count) for i in range(len(run.data.texts))]
        run.refinement = Refinement(run.documents[:count], run.teacher, pairs, settings.refine_positive_share)
        run.learn(batches[0], refined, 0)
        found.append(clock.of(lambda: [run.learn(batch, refined, 0) for batch in batches]) / len(batches))
    slope = np.maximum(found[1] - found[0], 0) / max(1, len(run.documents) - few)
    clock.keep("refine_score", slope, size)
    clock.keep("refine_batch", np.maximum(found[0] - few * slope, 1e-6), 1)


def _search(clock: _Clock, texts: _Sample, config: Any) -> None:
    import pandas as pd

    from components.distillation.student.initial import width_of
    from components.evaluation.bm25 import Bm25Documents, Bm25Ranker
    from components.evaluation.metrics import per_query_metrics
    from components.index.search import index_in_memory

    rng = np.random.default_rng(0)
    count, dimension, depth = min(texts.count, _DOCUMENTS), width_of(config.towers), min(config.evaluation.depth, texts.count)
    ids = [str(i) for i in range(count)]
    index = index_in_memory(_unit(rng, count, dimension), ids, "calibration")
    queries = _unit(rng, 64, dimension)
    index.search(queries, depth)
    clock.keep("score", clock.of(lambda: index.search(queries, depth), 2), 64 * count)
    clock.keep("single_score", clock.of(lambda: index.search(queries[:1], depth), 5), count)
    documents = texts.documents
    names = [str(i) for i in range(len(documents))]

    def read() -> Bm25Ranker:
        return Bm25Ranker(Bm25Documents.read(names, documents, progress=False), progress=False)

    ranker = clock.kept("bm25_character", read, sum(map(len, documents)))
    asked = texts.targets[:32]
    clock.keep("bm25_score", clock.of(lambda: ranker.rank(asked, depth)), len(asked) * len(documents))
    names = [f"q{i}" for i in range(100)]
    judged = pd.DataFrame({"query_id": names, "doc_id": [ids[0]] * 100, "score": [1] * 100})
    ranking = {name: [(doc_id, float(-i)) for i, doc_id in enumerate(ids[:depth])] for name in names}
    per_query_metrics(judged, ranking)
    clock.keep("metric_query", clock.of(lambda: per_query_metrics(judged, ranking)), 100)


def _unit(rng: np.random.Generator, rows: int, dimension: int) -> NDArray[np.float32]:
    vectors = rng.standard_normal((rows, dimension), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _reference() -> int:
    """Plain Python: what readers, contracts and reports do, dictionaries and texts."""
    found: dict[str, int] = {}
    for number in range(60_000):
        word = f"{number % 997}-{number}"
        found[word[:4]] = found.get(word[:4], 0) + len(word.split("-"))
    return len(found)


def _write(clock: _Clock, folder: Path) -> None:
    block = os.urandom(2**20) * (_WRITTEN // 2**20)

    def write() -> None:
        with (folder / "block").open("wb") as handle:
            handle.write(block)
            handle.flush()
            os.fsync(handle.fileno())

    clock.keep("written_byte", clock.of(write), _WRITTEN)


def _seconds(call: Callable[[], object]) -> NDArray[np.float64]:
    _finish()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    _finish()
    return np.array([time.perf_counter() - wall, time.process_time() - cpu])


def _finish() -> None:
    """Wait for the GPU: its work goes on after a call has returned."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _pair(seconds: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    return float(seconds[0]), float(seconds[1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of the steps that are tried."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
