"""Speed of query encoders, in turns in one run, so that a machine that slows down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from components.evaluation.report import EncoderSpeed, SpeedSummary
from components.progress import progress_bar

if TYPE_CHECKING:
    from components.evaluation.config import EvaluationConfig
    from components.evaluation.rankers import DenseRanker
    from components.towers.contract import TextEncoder

_ROUNDS = 5
_WARM_UP = 5
_BATCH_SECONDS = 0.25  # of full batches for one system in one round: one batch of a large model, many of a small one
_MOST_BATCHES = 32
_FEWEST_SINGLES, _FEWEST_BATCHES = 10, 3  # of fewer no interval is worth its name
_Z = 1.96
TEACHER_SHARE = 4  # the teacher answers one query for this many of a student's

Answer = Callable[[list[str]], object]


@dataclass(frozen=True)
class Timed:
    """A system to time: what answers a batch of queries, and how many of the single queries it skips (1: none, 4: three of four)."""

    answer: Answer
    share: int = 1


@dataclass
class _Stopwatch:
    """Times of one system: seconds per query at batch 1, and per full batch; `batches_each_round` follows from its warm-up."""

    batches_each_round: int
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

    def speed(self, batch_size: int) -> EncoderSpeed:
        p50, p95 = np.percentile(np.array(self.single) * 1000, [50, 95])
        qps = batch_size * len(self.batches) / sum(self.batches)
        return EncoderSpeed(p50_ms=float(p50), p95_ms=float(p95), qps=qps, batch_size=batch_size, queries=len(self.single))


def encoding(encoder: TextEncoder) -> Answer:
    """Answer a batch by encoding it, tokenisation included."""
    return lambda texts: encoder.encode(texts, batch_size=len(texts))


def measure_speed(teacher: DenseRanker | None, student: DenseRanker, queries: Sequence[str], config: EvaluationConfig) -> SpeedSummary:
    """Time the encoding of teacher, where there is one, and student (see `measure_speeds`), then the student's search apart.

    The search takes one query vector and `config.depth` documents.
    """
    systems = {"student": Timed(encoding(student.encoder))}
    if teacher is not None:
        systems["teacher"] = Timed(encoding(teacher.encoder), TEACHER_SHARE)
    speeds = measure_speeds(systems, queries, config)
    texts = _sample(queries, config.latency_queries, config.seed)
    return SpeedSummary(
        teacher=speeds.get("teacher"),
        student=speeds["student"],
        speed_up=speeds["student"].qps / speeds["teacher"].qps if teacher is not None else None,
        search_p50_ms=_search_p50_ms(student, texts, config.depth),
    )


def seconds_of_timing(speeds: Mapping[str, tuple[float, float]], config: EvaluationConfig) -> float:
    """What `measure_speed` will take, the search apart: `speeds` are seconds of a query and of a full batch of `teacher` and `student`."""
    whole = 0.0
    for name, share in (("student", 1), ("teacher", TEACHER_SHARE)):
        single, batch = speeds[name]
        each_round = int(np.clip(_BATCH_SECONDS / max(batch, 1e-9), 1, _MOST_BATCHES))
        whole += (_WARM_UP + config.latency_queries / share) * single + (2 + _ROUNDS * each_round) * batch
    return whole


def measure_speeds(systems: Mapping[str, Timed], queries: Sequence[str], config: EvaluationConfig) -> dict[str, EncoderSpeed]:
    """Time all systems on the same queries, after a warm-up, in alternating rounds.

    Latency is the time of one call with one query; throughput that of calls with `config.throughput_batch` queries. Timing ends with
    the round after which every figure is known to within `config.speed_precision`, and after five rounds in any case.
    """
    texts = _sample(queries, max(config.latency_queries, config.throughput_batch), config.seed)
    shares = np.array_split(np.arange(config.latency_queries), _ROUNDS)
    watches = {name: _warmed_up(system, texts, config.throughput_batch) for name, system in systems.items()}
    with progress_bar(len(shares), "Measuring speed", "round") as bar:
        for number, share in enumerate(shares):
            singles = [texts[i] for i in share]
            batch = _batch(texts, number, config.throughput_batch)
            for name, system in systems.items():
                _time(system, watches[name], singles[:: system.share], batch)
            bar.update()
            # A p95 stands on the slowest few queries: those of one round are too few.
            if number and all(watch.spread() <= config.speed_precision for watch in watches.values()):
                break
    return {name: watch.speed(config.throughput_batch) for name, watch in watches.items()}


def _sample(queries: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` queries in a fixed random order, repeated when there are fewer."""
    order = np.random.default_rng(seed).permutation(len(queries))
    return [queries[order[i % len(order)]] for i in range(count)]


def _batch(texts: Sequence[str], number: int, size: int) -> list[str]:
    return [texts[(number * size + i) % len(texts)] for i in range(size)]


def _warmed_up(system: Timed, texts: Sequence[str], batch_size: int) -> _Stopwatch:
    for text in texts[:_WARM_UP]:
        system.answer([text])
    batch = _batch(texts, 0, batch_size)
    system.answer(batch)
    seconds = _seconds(lambda: system.answer(batch))
    return _Stopwatch(int(np.clip(_BATCH_SECONDS / max(seconds, 1e-9), 1, _MOST_BATCHES)))


def _time(system: Timed, watch: _Stopwatch, singles: Sequence[str], batch: list[str]) -> None:
    for text in singles:
        watch.single.append(_seconds(lambda text=text: system.answer([text])))  # type: ignore[misc]
    for _ in range(watch.batches_each_round):
        watch.batches.append(_seconds(lambda: system.answer(batch)))


def _search_p50_ms(ranker: DenseRanker, texts: Sequence[str], depth: int) -> float:
    vectors = ranker.encoder.encode(texts)
    ranker.index.search(vectors[:1], depth)
    times = [_seconds(lambda i=i: ranker.index.search(vectors[i : i + 1], depth)) for i in range(len(vectors))]  # type: ignore[misc]
    return float(np.median(times) * 1000)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
