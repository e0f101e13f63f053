"""What all gates share: values per query that were checked, intervals over them, and the sentence when something is missing.

The policy's confidence is one-sided, so the interval taken is the two-sided one at `2 * confidence - 1`, of which one end decides.
Values know the units that their queries were drawn in (see `components.evaluation.units`), so that no gate can forget them: what is
computed from a series resamples its units, and so does a part of it or a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, PrivateAttr

from components.errors import DataError
from components.gates.config import PolicyConfig
from components.gates.decision import GateResult, Status

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.report import Evaluation
    from components.evaluation.units import Ends, Interval, Numbers, Spread, Units

BOOTSTRAP_SAMPLES = 2000
TAIL_SAMPLES = 20  # resamples beyond an end of an interval, below which the end is a matter of luck
BOOTSTRAP_SEED = 13  # fixed: the same report and policy always give the same decision, so it can be recomputed
UNITS = "units"  # attribute of a series
ROUNDING = 1e-9  # of a value that is a share
_MOST_DIGITS = 9  # of a value that is told
SUMMARY_TOLERANCE = 1e-4  # absolute; a summary may be rounded to four digits, but not tell another story than its queries


# How spreads over units are told and what few units may show. Raised with a change of it, and written into every decision, so that one of
# before is made again in its own way. 1: by residuals, and units that all say the same pass however few; 2: by leaving units out, and few
# units that all say the same decide nothing, and a teacher is not the downloaded encoder by queries that both find at once or not at all;
# 3: intervals over single queries end as those over units do, and a teacher that nothing tells from the downloaded encoder is undecided.
METHOD = 3
LEFT_OUT_SINCE = 2  # the method from which on spreads are told by leaving units out, and reports say so
STUDENT_SINCE = 3  # and from which on intervals over single queries end by Student's t, which reports say too


class AskedPolicy(PolicyConfig):
    """A policy and the arithmetic that it is asked by, which is no setting: a policy asks for the same whatever that is."""

    _method: int = PrivateAttr(METHOD)

    @property
    def method(self) -> int:
        """See `METHOD`."""
        return self._method


def asked_by(policy: PolicyConfig, method: int) -> AskedPolicy:
    """The policy, asked by the arithmetic of an earlier decision or today's."""
    found = AskedPolicy.model_construct(policy.model_fields_set, **dict(policy))
    found._method = method
    return found


def method_of(policy: PolicyConfig) -> int:
    """By which arithmetic the gates are decided: today's, unless `asked_by` says another."""
    return policy.method if isinstance(policy, AskedPolicy) else METHOD


class NotDecidable(Exception):
    """Its message becomes the reason of the gate; it never leaves the gates."""


@dataclass(frozen=True)
class Outcome:
    """How one gate ended; see `GateResult`."""

    status: Status
    reason: str
    value: float | None = None
    queries: int | None = None
    power: float | None = None


def gate(name: str, threshold: float | None, measure: Callable[[], Outcome], part: str | None = None) -> GateResult:
    """The result of `measure`. `part` is the slice of the queries; it stands in the gate's name, so that every gate has its own."""
    try:
        outcome = measure()
    except NotDecidable as error:
        outcome = Outcome("not_decidable", str(error))
    return GateResult(
        name=f"{name}[{part}]" if part else name,
        status=outcome.status,
        reason=outcome.reason,
        value=outcome.value,
        threshold=threshold,
        slice=part,
        queries=outcome.queries,
        power=outcome.power,
    )


def off(name: str, reason: str = "Switched off by the policy.") -> GateResult:
    """A gate that was not asked."""
    return GateResult(name=name, status="off", reason=reason)


def at_least(value: float, threshold: float) -> Status:
    """Pass when `value` reaches the threshold; a value that is not a number does not."""
    return "pass" if value >= threshold else "fail"


def beside(value: float, threshold: float, digits: int, percent: bool = False) -> str:
    """A value as it stands beside its threshold, with so many decimals, or more where it would else read as what it is not.

    94.96 % is no 95.0 %, and told so its failure would look like a mistake.
    """
    scale, sign = (100.0, "%") if percent else (1.0, "")
    text, side = f"{scale * value:.{digits}f}", math.copysign(1.0, value - threshold)
    while abs(value - threshold) > ROUNDING and (float(text) - scale * threshold) * side <= 0 and digits < _MOST_DIGITS:
        digits += 1
        text = f"{scale * value:.{digits}f}"
    return text + sign


def signed(value: float, threshold: float, digits: int) -> str:
    """The same with its sign."""
    return f"{'' if value < 0 else '+'}{beside(value, threshold, digits)}"


def scores(report: Evaluation, system: str, metric: str, owner: str = "") -> pd.Series:
    """One finite value per judged query with its unit, by query_id in a fixed order; not decidable when one is missing or strange."""
    require_present(report, system)
    entry = mapping(mapping(report.summary.systems).get(system))
    where = f"{metric} of the {owner}system '{system}'"
    values = values_per_query(report.per_query, (system, metric), report.summary.queries, where)
    agrees(mapping(entry.get("metrics")).get(metric), float(values.mean()), where)
    return in_units(values, units_of(report))


def units_of(report: Evaluation, split: str | None = None) -> Units | None:
    """The units of a split, by default of the one that is decided on; not decidable where the report does not say them of every query."""
    try:
        return report.units_of(split)
    except DataError as error:
        raise NotDecidable(str(error)) from None


def in_units(values: pd.Series, units: Units | None) -> pd.Series:
    """The values, by query_id, knowing their units; not decidable when the units lack one of the queries. None: each is its own."""
    if units is not None:
        if not set(values.index) <= set(units.query_ids):
            raise NotDecidable("For some queries the report does not say which unit they were drawn in; evaluate again.")
        values.attrs[UNITS] = units
    return values


def numbers_of(*series: pd.Series) -> Numbers | None:
    """The unit of each query of series over the same queries, from the first that knows; None where each query is its own."""
    known: Units | None = next((found for values in series if (found := values.attrs.get(UNITS)) is not None), None)
    return None if known is None else known.of(series[0].index)


def require_present(report: Evaluation, system: str) -> None:
    """Not decidable, with the reason that the evaluation gives, where it could not measure the system."""
    if (reason := report.summary.absent.get(system)) is not None:
        raise NotDecidable(reason)


def values_per_query(table: pd.DataFrame, chosen: tuple[str, str], queries: int, where: str) -> pd.Series:
    """The values of (system, metric) in a table with query_id, system, metric, value, which must hold exactly `queries`."""
    import numpy as np
    import pandas as pd

    system, metric = chosen
    rows = table[(table["system"] == system) & (table["metric"] == metric)] if len(table) else table
    if not len(rows):
        raise NotDecidable(f"The report has no {where}.")
    values = pd.to_numeric(rows.set_index("query_id")["value"], errors="coerce").astype(float).sort_index()
    if not values.index.is_unique:
        raise NotDecidable(f"The report has more than one {where} for the same query.")
    if len(values) != queries:
        raise NotDecidable(f"The report has {where} for {len(values)} of {queries} judged queries.")
    if not np.isfinite(values.to_numpy()).all():
        raise NotDecidable(f"The {where} is not a number for {int((~np.isfinite(values)).sum())} queries.")
    if not values.between(-ROUNDING, 1 + ROUNDING).all():
        raise NotDecidable(f"The {where} is not a share between 0 and 1 for every query.")
    return values


def agrees(stated: Any, found: float, what: str, tolerance: float = SUMMARY_TOLERANCE) -> None:
    """Not decidable when the summary states no value, or another than its queries give."""
    value = finite(stated, f"{what} in the summary")
    if abs(value - found) > tolerance:
        raise NotDecidable(f"The summary states {value:.4f} for the {what}, its queries give {found:.4f}.")


def mean_bound(values: pd.Series, policy: PolicyConfig, may_be_alike: bool = False) -> Interval:
    """The mean over queries and the one-sided ends of its interval; `may_be_alike`: few units that all say the same are no chance."""
    from components.evaluation.units import mean_interval

    found = mean_interval(values.to_numpy(), *_drawn(policy), numbers_of(values), ends_of(policy))
    return _more_than_one_unit(found) if may_be_alike else _enough_units(found, len(values), policy)


def ratio_bound(a: pd.Series, b: pd.Series, policy: PolicyConfig) -> Interval:
    """Mean of `a` over mean of `b`, paired by query, and the one-sided ends of its interval."""
    from components.evaluation.units import ratio_interval

    require_paired(a, b)
    found = ratio_interval(a.to_numpy(), b.to_numpy(), *_drawn(policy), numbers_of(a, b), ends_of(policy))
    return _enough_units(found, len(a), policy)


def paired_bound(a: pd.Series, b: pd.Series, policy: PolicyConfig) -> Interval:
    """Mean of `a` minus mean of `b`, paired by query, and the one-sided ends of its interval."""
    from components.evaluation.units import paired_bootstrap

    require_paired(a, b)
    found = paired_bootstrap(a.to_numpy(), b.to_numpy(), *_drawn(policy), numbers_of(a, b), ends_of(policy))
    if not _enough_units(found, len(a), policy).known:
        raise NotDecidable("The bootstrap gave no finite interval.")
    return found


def _more_than_one_unit(interval: Interval) -> Interval:
    if interval.units == 1:
        raise NotDecidable(
            "All these queries are one unit: they share an answer, or the group that the splits were made by, so nothing says how far "
            "others would be from them. Judge queries of other groups, or, if they were drawn one by one, set evaluation.query_groups, and "
            "policy.own_units to false."
        )
    return interval


def _enough_units(interval: Interval, queries: int, policy: PolicyConfig) -> Interval:
    """Not decidable for a single unit, nor for few that all say the same: their interval has no width, and chance is not nothing."""
    from components.evaluation.units import too_few_alike, units_alike

    units = queries if interval.units is None else _more_than_one_unit(interval).units or 0
    if method_of(policy) > 1 and interval.high - interval.low <= ROUNDING and too_few_alike(units, policy.confidence):
        raise NotDecidable(
            f"All {units} units of these queries say the same, {interval.difference:.4f}, and so few may do so by chance: at least "
            f"{units_alike(policy.confidence)} are needed. Judge queries of other groups."
        )
    return interval


def spread_of(policy: PolicyConfig) -> Spread:
    """How the spread over units is told, by the method that the policy is asked by."""
    return "left_out" if method_of(policy) >= LEFT_OUT_SINCE else "residuals"


def ends_of(policy: PolicyConfig) -> Ends:
    """How intervals over single queries end, by the same."""
    return "student" if method_of(policy) >= STUDENT_SINCE else "percentile"


def two_sided(policy: PolicyConfig) -> float:
    """The confidence of the two-sided interval whose ends are one-sided bounds at the policy's confidence."""
    return 2 * policy.confidence - 1


def _drawn(policy: PolicyConfig) -> tuple[int, float, int]:
    """Resamples, two-sided confidence and seed of an interval."""
    return max(BOOTSTRAP_SAMPLES, math.ceil(TAIL_SAMPLES / (1 - policy.confidence))), two_sided(policy), BOOTSTRAP_SEED


def require_paired(a: pd.Series, b: pd.Series) -> None:
    """Not decidable when the values are not of the same queries."""
    if not a.index.equals(b.index):
        raise NotDecidable("The two systems were measured on different queries, so they cannot be compared in pairs.")


def bound_text(interval: Interval, policy: PolicyConfig, queries: int, threshold: float = 0.0) -> str:
    """A difference with its lower end, which is held against the threshold, and sample size, as it stands in reasons."""
    end = f"at least {signed(interval.low, threshold, 4)} with {100 * policy.confidence:g}% confidence"
    return f"{interval.difference:+.4f}, {end}, {sample_text(queries, interval)}"


def sample_text(queries: int, interval: Interval) -> str:
    """`641 queries in 62 units`."""
    return f"{queries} queries" if interval.units is None else f"{queries} queries in {interval.units} units"


def finite(value: Any, what: str) -> float:
    """`value` as a number; not decidable when it is missing or none."""
    if value is None:
        raise NotDecidable(f"The report has no {what}.")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise NotDecidable(f"The {what} is not a finite number ({value}).")
    return float(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """A section of the summary as a plain dict; empty when the section is absent."""
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True)
    return dict(value) if isinstance(value, dict) else {}
