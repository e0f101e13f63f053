"""Speed of teacher and student, in turns in one run, so that a machine that slows down slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from components.evaluation.report import EncoderSpeed, SpeedSummary

if TYPE_CHECKING:
    from components.evaluation.config import EvaluationConfig
    from components.evaluation.rankers import DenseRanker
    from components.towers.contract import TextEncoder

_ROUNDS = 5
_WARM_UP = 5
_TEACHER_SHARE = 4  # the teacher answers one query for this many of the student's
_STUDENT_BATCHES = 4  # batches per round; the teacher encodes one


@dataclass
class _Stopwatch:
    """Times of one encoder: seconds per query at batch 1, and per full batch."""

    single: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)

    def speed(self, batch_size: int) -> EncoderSpeed:
        p50, p95 = np.percentile(np.array(self.single) * 1000, [50, 95])
        qps = batch_size * len(self.batches) / sum(self.batches)
        return EncoderSpeed(p50_ms=float(p50), p95_ms=float(p95), qps=qps, batch_size=batch_size, queries=len(self.single))


def measure_speed(teacher: DenseRanker, student: DenseRanker, queries: Sequence[str], config: EvaluationConfig) -> SpeedSummary:
    """Time both encoders on the same queries, after a warm-up, in alternating rounds; then the student's search apart.

    Latency is the time of one `encode` call with one query, tokenisation included; throughput that of calls with
    `config.throughput_batch` queries. The search takes one query vector and `config.depth` documents.
    """
    from tqdm import tqdm

    texts = _sample(queries, max(config.latency_queries, config.throughput_batch), config.seed)
    shares = np.array_split(np.arange(config.latency_queries), _ROUNDS)
    watches = {"student": _Stopwatch(), "teacher": _Stopwatch()}
    for ranker in (student, teacher):
        _warm_up(ranker.encoder, texts, config.throughput_batch)
    for number, share in enumerate(tqdm(shares, desc="Measuring speed", unit="round", mininterval=1)):
        singles = [texts[i] for i in share]
        batch = _batch(texts, number, config.throughput_batch)
        _time(student.encoder, watches["student"], singles, [batch] * _STUDENT_BATCHES)
        _time(teacher.encoder, watches["teacher"], singles[::_TEACHER_SHARE], [batch])
    speeds = {name: watch.speed(config.throughput_batch) for name, watch in watches.items()}
    return SpeedSummary(
        teacher=speeds["teacher"],
        student=speeds["student"],
        speed_up=speeds["student"].qps / speeds["teacher"].qps,
        search_p50_ms=_search_p50_ms(student, texts[: config.latency_queries], config.depth),
    )


def _sample(queries: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` queries in a fixed random order, repeated when there are fewer."""
    order = np.random.default_rng(seed).permutation(len(queries))
    return [queries[order[i % len(order)]] for i in range(count)]


def _batch(texts: Sequence[str], number: int, size: int) -> list[str]:
    return [texts[(number * size + i) % len(texts)] for i in range(size)]


def _warm_up(encoder: TextEncoder, texts: Sequence[str], batch_size: int) -> None:
    for text in texts[:_WARM_UP]:
        encoder.encode([text])
    encoder.encode(_batch(texts, 0, batch_size), batch_size=batch_size)


def _time(encoder: TextEncoder, watch: _Stopwatch, singles: Sequence[str], batches: Sequence[list[str]]) -> None:
    for text in singles:
        watch.single.append(_seconds(lambda text=text: encoder.encode([text])))  # type: ignore[misc]
    for batch in batches:
        watch.batches.append(_seconds(lambda batch=batch: encoder.encode(batch, batch_size=len(batch))))  # type: ignore[misc]


def _search_p50_ms(ranker: DenseRanker, texts: Sequence[str], depth: int) -> float:
    vectors = ranker.encoder.encode(texts)
    ranker.index.search(vectors[:1], depth)
    times = [_seconds(lambda i=i: ranker.index.search(vectors[i : i + 1], depth)) for i in range(len(vectors))]  # type: ignore[misc]
    return float(np.median(times) * 1000)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
