from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import pytest

from components.evaluation import latency
from components.evaluation.config import EvaluationConfig
from components.evaluation.latency import Timed, measure_speeds
from components.evaluation.report import EncoderSpeed

QUERIES = [f"query {i}" for i in range(50)]


def measured(monkeypatch: pytest.MonkeyPatch, times: Iterator[float], precision: float = 0.1, share: int = 1) -> EncoderSpeed:
    """The speed of a system whose calls take `times`, one after the other."""

    def timed(call: Callable[[], object]) -> float:
        call()
        return next(times)

    monkeypatch.setattr(latency, "_seconds", timed)
    config = EvaluationConfig(latency_queries=200, throughput_batch=4, speed_precision=precision)
    return measure_speeds({"it": Timed(len, share)}, QUERIES, config)["it"]


def test_timing_ends_when_its_interval_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, cycle([0.1]))
    assert found.queries == 80  # two rounds of five: the p95 of one would stand on two queries
    assert (found.p50_ms, found.p95_ms, found.qps) == pytest.approx((100, 100, 40))


def test_times_that_scatter_are_measured_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, cycle([0.1, 0.9, 0.2, 2.5, 0.1, 0.1, 4.0])).queries == 200


def test_a_precision_of_nought_times_every_query(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, cycle([0.24, 0.25, 0.26]), precision=0.0).queries == 200


def test_a_large_model_is_timed_until_three_batches_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    # One batch a round, since a batch takes longer than a round's share; a quarter of the queries.
    assert measured(monkeypatch, cycle([1.0]), share=4).queries == 30
