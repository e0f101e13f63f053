"""Gates against the champion: non-inferiority over all queries and in every slice, answer time and throughput in the same run.

`gate_rivals` says which values are compared. Non-inferiority holds nDCG@10 per query, paired, against a margin; interval and power
resample the units that the queries were drawn in. Its three outcomes:

- fail when the loss is shown to be larger than the margin (the upper end of the interval lies below it), however few queries there are;
- not decidable when the power is below the policy's: the comparison could hardly have shown that an equal candidate is equal, so what it
  happens to show is more luck than news;
- else pass when the lower end of the interval is above the margin, and fail when it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from components.gates.config import PolicyConfig
from components.gates.decision import Evidence, GateResult
from components.gates.gate_rivals import METRIC, Rivals, among_shared, compared, known_queries, rivals
from components.gates.gate_slices import HELD_BY_BOTH, Part, judged_slices, part_of, served_by_both
from components.gates.measures import NotDecidable, Outcome, bound_text, finite, gate, numbers_of, off, paired_bound, require_paired, scores

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.comparison import ComparisonSummary

NON_INFERIOR = "champion_non_inferior"


def champion_gates(evidence: Evidence, policy: PolicyConfig) -> Iterator[GateResult]:
    """All gates of this module, those that are switched off too."""
    known, both = known_queries(evidence), cache(partial(rivals, evidence))
    yield gate(NON_INFERIOR, -policy.margin, lambda: _no_champion(evidence) or _overall(both(), known, policy))
    if known is not None and evidence.baseline is not None:
        yield _slice(served_by_both(known, policy), both, policy.margin, policy)
    if (shared := among_shared(evidence)) is not None and evidence.baseline is not None:
        yield gate(NON_INFERIOR, -policy.margin, partial(_on_equal_terms, shared, evidence, policy), HELD_BY_BOTH)
    yield from _slices(evidence, both, known, policy)
    yield _ratio("champion_p95", policy.max_p95_ratio, evidence, _p95)
    yield _ratio("champion_qps", policy.min_qps_ratio, evidence, _qps)


def _on_equal_terms(shared: Rivals, evidence: Evidence, policy: PolicyConfig) -> Outcome:
    part = part_of(HELD_BY_BOTH, frozenset(shared.candidate.index), policy, required=True)
    if part.problem:
        return Outcome("not_decidable", part.problem, queries=len(part.query_ids))
    require_paired(shared.candidate, shared.champion)
    shared.candidate.attrs.update(scores(evidence.report, "student", METRIC).attrs)  # what is known of the queries, as their units
    outcome = non_inferior(shared.candidate, shared.champion, policy.margin, policy)
    return replace(outcome, reason=f"{outcome.reason} {shared.source}")


def _overall(both: Rivals, known: frozenset[str] | None, policy: PolicyConfig) -> Outcome:
    outcome = non_inferior(both.candidate, both.champion, policy.margin, policy, known)
    return replace(outcome, reason=f"{outcome.reason} {both.source}")


def non_inferior(
    candidate: pd.Series, champion: pd.Series, margin: float, policy: PolicyConfig, known: frozenset[str] | None = None
) -> Outcome:
    """The test on values per query of the same queries; see the module for its outcomes. The power stands on `known` queries, or all."""
    from components.evaluation.power import power, queries_needed

    interval, queries = paired_bound(candidate, champion, policy), len(candidate)
    between = candidate - champion
    chosen = between if known is None else between[between.index.isin(known)]
    gaps, units = chosen.to_numpy(), numbers_of(chosen, candidate.loc[chosen.index])
    strength = power(gaps, margin, policy.confidence, units) if len(gaps) > 1 else 0.0
    text = f"nDCG@10 of candidate minus champion: {bound_text(interval, policy, queries)}; a loss below {margin:g} is allowed."
    if interval.high < -margin:
        shown = f"{text} Shown to be worse: at most {interval.high:+.4f}."
        return Outcome("fail", shown, interval.low, queries, strength)
    if policy.min_power is not None and strength < policy.min_power:
        alone = len(gaps) < 2 or (units is not None and len(set(units.tolist())) < 2)
        needed = policy.min_slice_queries if alone else queries_needed(gaps, margin, policy.confidence, policy.min_power, units)
        grouped = " in units like these" if interval.units is not None else ""
        weak = (
            f"{text} Too few queries: an equal candidate would be shown to be equal with a chance of {strength:.0%} only, and "
            f"{policy.min_power:.0%} is asked. That takes about {needed:,} queries{grouped}, or a larger margin."
        )
        return Outcome("not_decidable", weak, interval.low, queries, strength)
    return Outcome("pass" if interval.low > -margin else "fail", f"{text} Power {strength:.0%}.", interval.low, queries, strength)


def _no_champion(evidence: Evidence) -> Outcome | None:
    """A first release, None where there is a champion; not decidable where it was lost, so that its loss is no way around it."""
    if evidence.lost:
        raise NotDecidable(
            f"There is a champion, but {evidence.lost} Restore it and build again, or release without the comparison: a reviewer's "
            "override, and then scalingnote promote --without-champion REASON."
        )
    if evidence.baseline is not None:
        return None
    return Outcome("first_release", "There is no champion to compare with: this is a first release, and a person has to judge it.")


def _slices(evidence: Evidence, both: Callable[[], Rivals], known: frozenset[str] | None, policy: PolicyConfig) -> Iterator[GateResult]:
    """One gate for every slice that is large enough; those that are not are shown, and count in the gate over all queries only."""
    margin = policy.slice_margin
    if margin is None:
        yield off(f"{NON_INFERIOR}_in_slices")
        return
    if evidence.baseline is None:
        yield gate(f"{NON_INFERIOR}_in_slices", -margin, lambda: _no_champion(evidence) or _overall(both(), known, policy))
        return
    for part in judged_slices(evidence.report, policy, known):
        yield _slice(part, both, margin, policy)


def _slice(part: Part, both: Callable[[], Rivals], margin: float, policy: PolicyConfig) -> GateResult:
    def measure() -> Outcome:
        if part.problem:
            return Outcome("not_decidable" if part.required else "off", part.problem, queries=len(part.query_ids))
        try:
            found, chosen = both(), sorted(part.query_ids)
        except NotDecidable:
            raise NotDecidable(f"Nothing to compare, for the reason that {NON_INFERIOR} gives.") from None
        if not set(chosen) <= set(found.candidate.index):
            raise NotDecidable("The slice holds queries that were not measured; evaluate again.")
        return non_inferior(found.candidate.loc[chosen], found.champion.loc[chosen], margin, policy)

    return gate(NON_INFERIOR, -margin, measure, part.name)


def _ratio(name: str, asked: float | None, evidence: Evidence, measure: Callable[[ComparisonSummary, float], Outcome]) -> GateResult:
    if asked is None:
        return off(name)
    return gate(name, asked, lambda: _no_champion(evidence) or measure(_speeds(evidence), asked))


def _speeds(evidence: Evidence) -> ComparisonSummary:
    found = compared(evidence, "Candidate and champion were not timed in one run; times of different runs say nothing about each other.")
    ours, theirs = found.candidate, found.champion
    if min(ours.queries, theirs.queries) < 1 or ours.batch_size != theirs.batch_size:
        raise NotDecidable(
            f"The candidate was timed with {ours.queries} queries in batches of {ours.batch_size}, the champion with {theirs.queries} in "
            f"batches of {theirs.batch_size}; compare them again."
        )
    return found


def _p95(speeds: ComparisonSummary, asked: float) -> Outcome:
    ours, theirs = _positive(speeds.candidate.p95_ms, speeds.champion.p95_ms, "95th percentile of the answer time")
    text = f"95 % of the candidate's answers take at most {ours:.2f} ms, the champion's {theirs:.2f} ms in the same run: "
    value = ours / theirs
    return Outcome("pass" if value <= asked else "fail", f"{text}{value:.2f} times as long; {asked:g} allowed.", value)


def _qps(speeds: ComparisonSummary, asked: float) -> Outcome:
    ours, theirs = _positive(speeds.candidate.qps, speeds.champion.qps, "number of queries answered per second")
    text = f"The candidate answers {ours:,.0f} queries per second, the champion {theirs:,.0f} in the same run: "
    value = ours / theirs
    return Outcome("pass" if value >= asked else "fail", f"{text}{value:.2f} times as many; {asked:g} asked.", value)


def _positive(ours: float, theirs: float, what: str) -> tuple[float, float]:
    """Both numbers; not decidable when one is not above 0, which no measurement is."""
    candidate, champion = finite(ours, f"candidate's {what}"), finite(theirs, f"champion's {what}")
    if min(candidate, champion) <= 0:
        raise NotDecidable(f"The {what} is {candidate:g} for the candidate and {champion:g} for the champion; compare them again.")
    return candidate, champion
