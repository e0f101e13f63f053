"""What training and serving cost: energy and money from seconds, stated watts and stated prices.

energy [kWh] = seconds / 3600 * watts / 1000
money        = seconds / 3600 * (price of the machine for an hour + watts / 1000 * price of a kilowatt-hour)

The watts are what the whole machine is stated to draw under load; they are not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

SECONDS_PER_HOUR = 3600
MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """Power of the machine in watts, and prices in one currency."""

    watts: float
    per_kwh: float
    per_hour: float

    @property
    def of_an_hour(self) -> float:
        """An hour of the machine under load, its electricity included."""
        return self.per_hour + self.watts / 1000 * self.per_kwh


def energy_kwh(seconds: float, prices: Prices) -> float:
    """Energy in kilowatt-hours."""
    return seconds / SECONDS_PER_HOUR * prices.watts / 1000


def money(seconds: float, prices: Prices) -> float:
    """Price of so many seconds of the machine under load."""
    return seconds / SECONDS_PER_HOUR * prices.of_an_hour


def money_per_million(queries_per_second: float, prices: Prices) -> float:
    """Price of a million queries on a machine that does nothing else and is never idle."""
    return money(MILLION / queries_per_second, prices)


def break_even(dearer_training: float, cheaper_training: float, dear_serving: float, cheap_serving: float) -> float | None:
    """Million queries after which the dearer training has paid for itself by cheaper serving; None when it never does.

    The trainings are prices, the servings prices per million queries.
    """
    saved = dear_serving - cheap_serving
    return max(0.0, dearer_training - cheaper_training) / saved if saved > 0 else None
