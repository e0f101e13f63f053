"""Energy and prices against values worked out by hand."""

from __future__ import annotations

import pytest

from components.studies.worth import Prices, break_even, energy_kwh, money, money_per_million

PRICES = Prices(watts=200.0, per_kwh=0.5, per_hour=1.9)  # an hour: 1.9 + 0.2 kWh x 0.5 = 2.0


def test_half_an_hour() -> None:
    assert energy_kwh(1800, PRICES) == pytest.approx(0.1)
    assert money(1800, PRICES) == pytest.approx(1.0)


def test_a_million_queries_at_a_thousand_a_second_take_a_thousand_seconds() -> None:
    assert money_per_million(1000, PRICES) == pytest.approx(2.0 * 1000 / 3600)


def test_dearer_training_is_repaid_by_cheaper_serving() -> None:
    assert break_even(30.0, 10.0, 5.0, 1.0) == pytest.approx(5.0)
    assert break_even(10.0, 30.0, 5.0, 1.0) == 0.0
    assert break_even(30.0, 10.0, 1.0, 1.0) is None
