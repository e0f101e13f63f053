"""Speed of query encoders, in turns in one run, so that a machine that slows down slows all of them; and the machine, in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, read_manifest
from components.data.dataset import load_dataset
from components.evaluation.bm25 import Bm25Ranker
from components.evaluation.rankers import DenseRanker, FusedRanker, Ranker
from components.evaluation.report import EncoderSpeed, SpeedSummary
from components.evaluation.summarize import judged_split
from components.progress import progress_bar
from components.tracking.provenance import processor

if TYPE_CHECKING:
    from torch import nn

    from components.evaluation.config import EvaluationConfig
    from components.towers.contract import TextEncoder


def describe_machine() -> str:
    """Processor, threads in use, GPU if there is one, and the number format the models run in."""
    import torch

    from components.towers.device import pick_dtype

    devices = [f"{processor()}, {torch.get_num_threads()} threads"]
    devices += [torch.cuda.get_device_name(0)] if torch.cuda.is_available() else []
    return f"{' with '.join(devices)}, {str(pick_dtype('auto')).removeprefix('torch.')}"


# --- Speed of query encoders, in turns in one run, so that a machine that slows down slows all of them.


_ROUNDS = 5
_LONGEST = 60.0  # seconds of timing, after which no round begins: on a machine that others use it would measure these
_WARM_UP = 5
_BATCH_SECONDS = 1.0  # of full batches for the slowest system in one round; all systems answer as many
_MOST_BATCHES = 32
_FEWEST_SINGLES, _FEWEST_BATCHES = 10, 3  # of fewer no interval is worth its name
_Z = 1.96
PARTS = (2, 4, 8)  # in how many parts of similar length an encoder may read a batch

Answer = Callable[[list[str]], object]


@dataclass(frozen=True)
class Timed:
    """A system to time: what answers a batch of queries, and other ways to do so. The way that is fastest on a batch is timed."""

    answer: Answer
    others: tuple[Answer, ...] = ()


@dataclass
class _Stopwatch:
    """Times of one system by its fastest way: seconds per query at batch 1, and per full batch. `first` is the warm-up's full batch."""

    answer: Answer
    first: float
    single: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)

    def spread(self) -> float:
        """Half of the 95 % interval of the median query and of the mean batch, over the figure itself; the larger of the two.

        Of the median by order statistics, which assumes nothing about the times; infinite while there are too few.
        """
        single, batches = np.sort(self.single), np.array(self.batches)
        if len(single) < _FEWEST_SINGLES or len(batches) < _FEWEST_BATCHES:
            return float("inf")
        reach = _Z * np.sqrt(len(single)) / 2
        low, high = (single[round(np.clip(len(single) / 2 + side, 0, len(single) - 1))] for side in (-reach, reach))
        mean_batch = _Z * batches.std(ddof=1) / np.sqrt(len(batches)) / batches.mean()
        return float(max((high - low) / 2 / np.median(single), mean_batch))

    @property
    def seconds(self) -> float:
        """All that was timed."""
        return sum(self.single) + sum(self.batches)

    def speed(self, batch_size: int) -> EncoderSpeed:
        p50, p95 = np.percentile(np.array(self.single) * 1000, [50, 95])
        qps = batch_size * len(self.batches) / sum(self.batches)
        return EncoderSpeed(p50_ms=float(p50), p95_ms=float(p95), qps=qps, batch_size=batch_size, queries=len(self.single))


def is_timed(system: TextEncoder | Ranker) -> bool:
    """Whether its times say anything: stored vectors compute nothing, and an endpoint's times are those of a network, at its price."""
    if isinstance(system, FusedRanker):
        return is_timed(system.dense)
    encoder = system.encoder if isinstance(system, DenseRanker) else system
    return getattr(getattr(encoder, "contract", None), "form", None) not in ("vectors", "endpoint")


def encoding(encoder: TextEncoder) -> Timed:
    """Answer a batch by encoding it, tokenisation included: at once, or in parts of similar length, which hold less padding."""

    def way(parts: int) -> Answer:
        return lambda texts: encoder.encode(texts, batch_size=-(-len(texts) // parts))

    return Timed(way(1), tuple(map(way, PARTS)))


def measure_speed(teacher: DenseRanker | None, student: DenseRanker, queries: Sequence[str], config: EvaluationConfig) -> SpeedSummary:
    """Time the encoding of teacher, where there is one, and student (see `measure_speeds`), then the student's search apart.

    The search takes one query vector and `config.depth` documents.
    """
    import torch

    encoders = {"student": student.encoder, **({"teacher": teacher.encoder} if teacher is not None else {})}
    speeds = measure_speeds({name: encoding(encoder) for name, encoder in encoders.items()}, queries, config)
    texts = _sample(queries, config.latency_queries, config.seed)
    return SpeedSummary(
        teacher=with_work(speeds["teacher"], teacher.encoder, texts) if teacher is not None else None,
        student=with_work(speeds["student"], student.encoder, texts),
        speed_up=speeds["student"].qps / speeds["teacher"].qps if teacher is not None else None,
        search_p50_ms=_search_p50_ms(student, texts, config.depth),
        threads=torch.get_num_threads(),
    )


def with_work(speed: EncoderSpeed, encoder: TextEncoder, texts: Sequence[str]) -> EncoderSpeed:
    """`speed` with the tokens and floating-point operations of `texts` added; unchanged where the encoder does not tell its tokens.

    Two operations for each parameter of a linear map and token, and four for each number of a query vector and pair of tokens in every
    layer's attention. Embeddings are looked up, and norms are left out. A layer that is cut short for a pooled token counts as a whole one.
    """
    tokens = getattr(encoder, "tokens", None)
    if tokens is None:
        return speed
    lengths = np.array([len(row) for row in tokens(list(texts))], np.float64)
    read, flops = lengths.mean(), _operations(encoder, lengths)
    if (companion := getattr(encoder, "companion", None)) is not None:  # a tower whose vectors are those of two encoders
        beside = np.array([len(row) for row in companion.tokens(list(texts))], np.float64)
        read, flops = read + beside.mean(), flops + _operations(companion, beside)
    return speed.model_copy(update={"tokens_per_second": float(speed.qps * read), "flops_per_query": flops})


def _operations(encoder: TextEncoder, lengths: NDArray[np.float64]) -> float:
    """Floating-point operations for a text, the mean over texts of these lengths in tokens."""
    from components.towers.model_size import stated

    model, head = getattr(encoder, "model", None), getattr(encoder, "head", None)
    once = 2.0 * (_matrix_numbers(head) if head is not None else 0)
    found = getattr(model, "config", None)
    config = None if found is None else found.get_text_config()
    attention = 0.0
    if config is not None and (heads := int(stated(config, "num_attention_heads") or 0)):  # Mamba's layers have none
        attention = 4.0 * config.num_hidden_layers * heads * int(stated(config, "head_dim") or config.hidden_size // heads)
    return float(once + 2.0 * _matrix_numbers(model) * lengths.mean() + attention * np.square(lengths).mean())


def _matrix_numbers(module: Any) -> int:
    """Numbers in the matrices of a module that are no tables of embeddings; shared ones count as often as they work."""
    from torch import nn

    maps = (m for m in module.modules() if not isinstance(m, nn.Embedding | nn.EmbeddingBag))
    return sum(p.numel() for m in maps for p in m.parameters(recurse=False) if p.ndim > 1)


def seconds_of_timing(speeds: Mapping[str, tuple[float, float]], config: EvaluationConfig) -> float:
    """What `measure_speed` will take, the search apart: `speeds` are seconds of a query and of a full batch of `teacher` and `student`."""
    each_round = _batches_each_round([batch for _, batch in speeds.values()])
    batches = 2 * (1 + len(PARTS)) + _ROUNDS * each_round
    return sum((_WARM_UP + config.latency_queries) * single + batches * batch for single, batch in speeds.values())


def measure_speeds(systems: Mapping[str, Timed], queries: Sequence[str], config: EvaluationConfig) -> dict[str, EncoderSpeed]:
    """Time all systems on the same queries, after a warm-up, in alternating rounds: each answers as many queries and batches as any other.

    Latency is the time of one call with one query; throughput that of calls with `config.throughput_batch` queries. Timing ends with
    the round after which every figure is known to within `config.speed_precision`, or after a minute to within whatever it is; after five
    rounds in any case. Of no systems there are no speeds.
    """
    if not systems:
        return {}
    texts = _sample(queries, max(config.latency_queries, config.throughput_batch), config.seed)
    shares = np.array_split(np.arange(config.latency_queries), _ROUNDS)
    watches = {name: _warmed_up(system, texts, config.throughput_batch) for name, system in systems.items()}
    each_round = _batches_each_round([watch.first for watch in watches.values()])
    with progress_bar(len(shares), "Measuring speed", "round") as bar:
        for number, share in enumerate(shares):
            singles = [texts[i] for i in share]
            places = range(number * each_round, (number + 1) * each_round)
            batches = [_batch(texts, place, config.throughput_batch) for place in places]
            for watch in watches.values():
                _time(watch, singles, batches)
            bar.update()
            # A p95 stands on the slowest few queries: those of one round are too few.
            spread = max(watch.spread() for watch in watches.values()) if number else float("inf")
            taken = sum(watch.seconds for watch in watches.values())
            if spread <= config.speed_precision or (taken > _LONGEST and spread < float("inf")):
                break
    return {name: watch.speed(config.throughput_batch) for name, watch in watches.items()}


def _batches_each_round(seconds: Sequence[float]) -> int:
    """Full batches that every system answers in a round, from the seconds that each takes for one."""
    return int(np.clip(_BATCH_SECONDS / max(*seconds, 1e-9), 1, _MOST_BATCHES))


def _sample(queries: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` queries in a fixed random order, repeated when there are fewer."""
    order = np.random.default_rng(seed).permutation(len(queries))
    return [queries[order[i % len(order)]] for i in range(count)]


def _batch(texts: Sequence[str], number: int, size: int) -> list[str]:
    return [texts[(number * size + i) % len(texts)] for i in range(size)]


def _warmed_up(system: Timed, texts: Sequence[str], batch_size: int) -> _Stopwatch:
    """The system's stopwatch with its fastest way; each way answers a full batch twice, and a way that is slower ends the search."""
    batch = _batch(texts, 0, batch_size)
    best: _Stopwatch | None = None
    for answer in (system.answer, *system.others):
        answer(batch)
        seconds = _seconds(lambda answer=answer: answer(batch))  # type: ignore[misc]
        if best is not None and seconds >= best.first:
            break
        best = _Stopwatch(answer, seconds)
    assert best is not None
    for text in texts[:_WARM_UP]:
        best.answer([text])
    return best


def _time(watch: _Stopwatch, singles: Sequence[str], batches: Sequence[list[str]]) -> None:
    for text in singles:
        watch.single.append(_seconds(lambda text=text: watch.answer([text])))  # type: ignore[misc]
    for batch in batches:
        watch.batches.append(_seconds(lambda batch=batch: watch.answer(batch)))  # type: ignore[misc]


def _search_p50_ms(ranker: DenseRanker, texts: Sequence[str], depth: int) -> float:
    vectors = ranker.encoder.encode(texts)
    ranker.index.search(vectors[:1], depth)
    times = [_seconds(lambda i=i: ranker.index.search(vectors[i : i + 1], depth)) for i in range(len(vectors))]  # type: ignore[misc]
    return float(np.median(times) * 1000)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# --- Speed and size of a teacher and its students, all opened at once and timed in turns.


def encoder_speeds(encoders: Mapping[str, Artifact], dataset: Artifact, config: EvaluationConfig) -> dict[str, Any]:
    """Name -> p50_ms and p95_ms at batch 1, qps at batch `config.throughput_batch`, work and parameters; and the `machine` in words.

    Only encoding is timed, tokenisation included; the search is the same for all. One that is not timed (see `is_timed`) is left out.
    """
    from components.distillation.student import load_encoder

    opened = {name: encoder for name, artifact in encoders.items() if is_timed(encoder := load_encoder(artifact.path))}
    queries = judged_split(load_dataset(dataset.path), config.split).texts
    speeds = measure_speeds({name: encoding(encoder) for name, encoder in opened.items()}, queries, config)
    return {
        "machine": describe_machine(),
        "systems": {name: {**with_work(speeds[name], e, queries).model_dump(), **parameters_of(e)} for name, e in opened.items()},
    }


def serving_speeds(openers: Mapping[str, Callable[[], Ranker]], dataset: Artifact, config: EvaluationConfig) -> dict[str, Any]:
    """Name -> speed of whole answers, search of `config.depth` documents included, and the seconds that opening the system took.

    Opening BM25 is indexing the documents, opening an untrained encoder is encoding them; others load what was built before. Of an encoder
    work and parameters are told as well. One that is not timed (see `is_timed`) is left out.
    """
    rankers, opening = {}, {}
    for name, open_ranker in openers.items():
        started = time.perf_counter()
        ranker = open_ranker()
        if is_timed(ranker):
            rankers[name], opening[name] = ranker, time.perf_counter() - started
    queries = judged_split(load_dataset(dataset.path), config.split).texts
    speeds = measure_speeds({name: answering(ranker, config.depth) for name, ranker in rankers.items()}, queries, config)
    systems = {name: {**_worked(speeds[name], ranker, queries), "opening_seconds": opening[name]} for name, ranker in rankers.items()}
    return {"machine": describe_machine(), "systems": systems}


def _worked(speed: EncoderSpeed, ranker: Ranker, queries: Sequence[str]) -> dict[str, Any]:
    size = {"bytes": bytes_of(ranker)}
    if not isinstance(ranker, DenseRanker):
        return {**speed.model_dump(), **size}
    return {**with_work(speed, ranker.encoder, queries).model_dump(), **parameters_of(ranker.encoder), **size}


def bytes_of(ranker: Ranker) -> int | None:
    """What a system has to keep at hand to answer: weights, vectors, and BM25's table of words and documents; None where nobody knows.

    Of an index that was built these are its files, of one in memory its vectors in float32.
    """
    if isinstance(ranker, Bm25Ranker):
        return ranker.nbytes
    if isinstance(ranker, FusedRanker):
        both = [bytes_of(ranker.dense), bytes_of(ranker.lexical)]
        return None if None in both else sum(filter(None, both))
    if not isinstance(ranker, DenseRanker):
        return None
    index = ranker.index
    files = read_manifest(index.artifact.path).files.values() if index.artifact is not None else ()
    kept = sum(file.bytes for file in files) if files else len(index.rows) * index.dimension * np.dtype(np.float32).itemsize
    weights = {id(p): p.numel() * p.element_size() for module in _modules(ranker.encoder) for p in module.parameters(recurse=False)}
    return int(sum(weights.values()) + kept)


def answering(ranker: Ranker, depth: int) -> Timed:
    """Whole answers without progress bars, which would be timed too; an encoder may read a batch in parts, as in `encoding`."""
    if isinstance(ranker, FusedRanker) and isinstance(ranker.dense, DenseRanker):
        quiet, dense = ranker.quiet(), answering(ranker.dense, depth)

        def both(answer: Answer) -> Answer:
            return lambda texts: quiet.fused(answer(texts), quiet.lexical.rank(texts, depth), depth)  # type: ignore[arg-type]

        return Timed(both(dense.answer), tuple(map(both, dense.others)))
    if not isinstance(ranker, DenseRanker):
        silent = ranker.quiet() if isinstance(ranker, Bm25Ranker) else ranker
        return Timed(lambda texts: silent.rank(texts, depth))

    def way(parts: int) -> Answer:
        return lambda texts: ranker.rank_vectors(ranker.encoder.encode(texts, batch_size=-(-len(texts) // parts)), depth)

    return Timed(way(1), tuple(map(way, PARTS)))


def parameters_of(encoder: TextEncoder) -> dict[str, int]:
    """`parameters`, and `parameters_without_embeddings`: those that work for every token. Shared weights count once."""
    from torch import nn

    modules = _modules(encoder)
    sizes = {id(p): p.numel() for module in modules for p in module.parameters(recurse=False)}
    tables = {id(m.weight): m.weight.numel() for m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    total = sum(sizes.values())
    return {"parameters": total, "parameters_without_embeddings": total - sum(tables.values())}


def _modules(encoder: TextEncoder) -> list[nn.Module]:
    from torch import nn

    parts = (encoder, *filter(None, [getattr(encoder, "companion", None)]))
    return [module for part in parts for owner in vars(part).values() if isinstance(owner, nn.Module) for module in owner.modules()]
