"""Gates against the champion: paired scores, slices, and what a refresh removed.

The champion is asked again rather than remembered, also where its own evaluation is about the same judgements: within one run there is
one machine, one set of libraries and one set of judgements, and nothing but the two releases can make a difference. So new data needs no
exception: a champion that was evaluated on older judgements answers today's.

It answers with the documents that it serves, and one that is new counts against it. So that new documents hide no loss on the others, the
queries whose documents it serves as well (`known_queries`) are a part of their own, with the margin of all queries; the other slices, and
the power, which asks how far equal candidates differ by chance, stand on them alone.

The registered evaluation stands in for a champion that was not asked, if it is about the same judgements.

The rule for small slices: those with fewer than `min_slice_queries` queries are judged together, as `the others` of their dimension, so
that a language with 20 queries is not left out while it is too small to be judged alone. If they are too few even together they are not
judged: the gate is shown as off with the count, and their queries count in the gate over all queries. Were it `not_decidable`, one rare
slice would stop every release. What must not be passed over is named in `required_slices`: there an empty, small or missing slice is
`not_decidable`. A dimension none of whose slices is large enough, and a report without slices, are `not_decidable` as well.

Where the champion lacks documents, a slice is made of the queries whose documents it serves. One that is new to it has nothing to be
compared with: it is off, with the count.

`PairedScores` says which values are compared. Non-inferiority holds nDCG@10 per query, paired, against a margin; interval and power
resample the units that the queries were drawn in. Its three outcomes:

- fail when the loss is shown to be larger than the margin (the upper end of the interval lies below it), however few queries there are;
- not decidable when the power is below the policy's: the comparison could hardly have shown that an equal candidate is equal, so what it
  happens to show is more luck than news;
- else pass when the lower end of the interval is above the margin, and fail when it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from components.evaluation.champion_comparison import CANDIDATE, CHAMPION, SERVED, SHARED
from components.gates.config import PolicyConfig
from components.gates.decision import GateInputs, GateResult
from components.gates.measures import (
    NotDecidable,
    Outcome,
    beside,
    bound_text,
    ends_of,
    finite,
    gate,
    numbers_of,
    off,
    paired_bound,
    require_paired,
    scores,
    signed,
    spread_of,
    values_per_query,
)

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.champion_comparison import ComparisonSummary
    from components.evaluation.report import Evaluation


METRIC = "ndcg@10"
MOST_NEEDED = 10**12  # queries; that more are needed is told, and not how many
RUN_TOLERANCE = 1e-3  # absolute, of a mean; another batch may turn a tie in a ranking, but not make another candidate
_ASK = "Build the candidate again by the same command: finished steps come from the cache, and both are asked the same queries."


@dataclass(frozen=True)
class PairedScores:
    """nDCG@10 of both by query_id, in the same order, and in a sentence where the values come from."""

    candidate: pd.Series
    champion: pd.Series
    source: str


def paired_scores(evidence: GateInputs) -> PairedScores:
    """The values to compare; NotDecidable, with what to do, when there are none that can be compared in pairs."""
    return _of_evaluations(evidence) if evidence.values is None else _of_one_run(evidence, evidence.values)


def compared(evidence: GateInputs, missing: str) -> ComparisonSummary:
    """The comparison, which has to be with this champion and on these judgements; `missing` says what is lost without one."""
    found, summary = evidence.comparison, evidence.report.summary
    if found is None:
        raise NotDecidable(f"{missing} {_why(evidence)}")
    if (found.judgements_digest, found.queries) != (summary.judgements_digest, summary.queries):
        raise NotDecidable(f"Candidate and champion were compared on other judgements than those of this evaluation. {_ASK}")
    if found.baseline_version != evidence.champion:
        raise NotDecidable(f"The candidate was compared with release/{found.baseline_version}, which is not the champion here. {_ASK}")
    return found


def known_queries(evidence: GateInputs) -> frozenset[str] | None:
    """The queries whose relevant documents the champion serves as well; None where these are all, or nobody looked.

    None of them where it is not said of each, once, by a share: a query that is passed over would be judged in no slice.
    """
    table = _of_documents(evidence)
    shares = None if table is None else _served(table, CHAMPION)
    if shares is None or not len(shares):
        return None
    asked = set(evidence.report.per_query["query_id"])
    if not shares.index.is_unique or set(shares.index) != asked or not shares.between(0, 1).all():
        return frozenset()
    known = frozenset(shares[shares >= 1].index)
    return None if known == asked else known


def among_shared(evidence: GateInputs) -> PairedScores | None:
    """Values of both among the documents that both hold, where the champion has some that the candidate lacks; None where it has none.

    With fewer documents every query is easier, so a candidate that lost some is also compared on equal terms. Of no query where documents
    are gone and nobody did.
    """
    table = _of_documents(evidence)
    rows = None if table is None else table[table["metric"] == SHARED]
    if rows is None or not len(rows):
        removed = evidence.comparison.removed if evidence.comparison else None
        unsaid = not len(table) if table is not None else bool(removed)
        nothing = evidence.report.per_query["value"].iloc[:0]
        return PairedScores(nothing, nothing, "") if unsaid or (removed and table is not None and fully_served(table)) else None
    ours, theirs = (_numbers(rows[rows["system"] == who]).sort_index() for who in (CANDIDATE, CHAMPION))
    return PairedScores(ours, theirs, "Both rank the documents alone that both hold.")


def _of_documents(evidence: GateInputs) -> pd.DataFrame | None:
    """Where it stands which documents each serves: with the values of one run, else apart."""
    return evidence.shared if evidence.values is None else evidence.values


def fully_served(table: pd.DataFrame) -> set[str]:
    """Queries whose relevant documents both hold, each of them."""
    ours, theirs = (_served(table, who) for who in (CANDIDATE, CHAMPION))
    return {str(query) for query in ours[ours >= 1].index} & {str(query) for query in theirs[theirs >= 1].index}


def _of_one_run(evidence: GateInputs, table: pd.DataFrame) -> PairedScores:
    comparison = compared(evidence, "The values of candidate and champion come without the comparison that they belong to.")
    candidate, queries = scores(evidence.report, "student", METRIC), evidence.report.summary.queries
    asked, champion = (
        values_per_query(table, (who, METRIC), queries, f"{METRIC} of the {who} in one run") for who in (CANDIDATE, CHAMPION)
    )
    require_paired(candidate, asked)
    require_paired(candidate, champion)
    if not abs(asked.mean() - candidate.mean()) <= RUN_TOLERANCE:
        raise NotDecidable(
            f"In the comparison the candidate has a mean {METRIC} of {asked.mean():.4f}, in its evaluation {candidate.mean():.4f}: one of "
            f"both measured something else. {_ASK}"
        )
    return PairedScores(candidate, champion, f"Both were asked in one run{_documents(comparison)}.{_lacking(_served(table, CHAMPION))}")


def _of_evaluations(evidence: GateInputs) -> PairedScores:
    report, baseline = evidence.report, evidence.baseline
    if baseline is None:
        raise NotDecidable("There is no evaluation of the champion.")
    ours, theirs = report.summary.judgements_digest, baseline.summary.judgements_digest
    if not ours or ours != theirs:
        raise NotDecidable(
            f"The champion was evaluated on other judgements ({str(theirs)[:12]}, the candidate on {str(ours)[:12]}), and it was not asked "
            f"these. {_why(evidence)}"
        )
    champion = scores(baseline, "student", METRIC, "champion's ")
    candidate = scores(report, "student", METRIC)
    require_paired(candidate, champion)
    lacking = "" if evidence.shared is None else _lacking(_served(evidence.shared, CHAMPION))
    return PairedScores(candidate, champion, f"From the evaluations of both, which are about the same judgements.{lacking}")


def _why(evidence: GateInputs) -> str:
    return (evidence.facts.uncompared if evidence.facts else "") or _ASK


def _documents(comparison: ComparisonSummary) -> str:
    """That each searches its own documents, with their numbers where the comparison has them."""
    ours, theirs = (comparison.sizes.get(who, {}).get("documents") for who in (CANDIDATE, CHAMPION))
    numbers = "" if ours is None or theirs is None else f" (candidate {ours:,}, champion {theirs:,})"
    return f", each with the documents that it serves{numbers}"


def _lacking(shares: pd.Series) -> str:
    if len(shares) and not (shares > 0).any():
        raise NotDecidable(
            "The champion serves none of the documents that these queries ask for, so it says nothing about this candidate. Where the "
            "documents were exchanged on purpose, a reviewer decides with --override REASON, or the retriever gets a name of its own."
        )
    lacking = int((~(shares >= 1)).sum())
    return f" For {lacking:,} of the queries the champion lacks a relevant document, which counts against it." if lacking else ""


def _served(table: pd.DataFrame, who: str) -> pd.Series:
    """By query_id the share of the relevant documents that one side serves; empty for comparisons of older versions."""
    return _numbers(table[(table["system"] == who) & (table["metric"] == SERVED)])


def _numbers(rows: pd.DataFrame) -> pd.Series:
    """The values by query_id; what is no number becomes nan, which nothing passes by."""
    import pandas as pd

    return pd.to_numeric(rows.set_index("query_id")["value"], errors="coerce").astype(float)


# --- Which slices of the queries the gates judge.


OTHERS = "the others"
SERVED_BY_BOTH = "documents=served by both"
HELD_BY_BOTH = "documents=only those that both hold"  # each ranks these alone; above it is the queries that are chosen


@dataclass(frozen=True)
class Part:
    """A slice, named dimension=slice, and its queries; `problem` says why it cannot be judged, `required` that it had to be."""

    name: str
    query_ids: frozenset[str]
    problem: str = ""
    required: bool = False


def served_by_both(known: frozenset[str], policy: PolicyConfig) -> Part:
    """The queries whose documents the champion serves as well: without them nothing could be compared."""
    return part_of(SERVED_BY_BOTH, known, policy, required=True)


def judged_slices(report: Evaluation, policy: PolicyConfig, known: frozenset[str] | None = None) -> list[Part]:
    """Every slice of the report, the required ones that it lacks included; never empty. `known`: the queries to take, None for all."""
    table = report.slices
    if table is None or not len(table):
        return [Part("all", frozenset(), "The report says of no query which slice it is in; evaluate again.", True)]
    if table.isna().any(axis=None):
        return [Part("all", frozenset(), "The slices hold a query, a dimension or a slice without a name; evaluate again.", True)]
    if unknown := set(table["query_id"]) - set(report.per_query["query_id"]):
        return [Part("all", frozenset(unknown), f"The slices hold {len(unknown)} queries that the report does not.", True)]
    whole, table = table, table if known is None else table[table["query_id"].isin(known)]
    parts = [part for dimension, rows in table.groupby("dimension", sort=True) for part in _of_dimension(str(dimension), rows, policy)]
    parts += _new(whole, table, policy)
    return [*parts, *_missing(parts, whole, policy)]


def _of_dimension(dimension: str, rows: pd.DataFrame, policy: PolicyConfig) -> Iterator[Part]:
    slices = {f"{dimension}={name}": frozenset(found["query_id"]) for name, found in rows.groupby("slice", sort=True)}
    small = [name for name, ids in slices.items() if len(ids) < policy.min_slice_queries and name not in policy.required_slices]
    alone = [part_of(name, ids, policy) for name, ids in slices.items() if name not in small]
    yield from alone
    if small:
        others = frozenset[str]().union(*(slices[name] for name in small))
        none_is_judged = all(part.problem for part in alone)
        together = f"{dimension}={OTHERS}"
        while together in slices:  # a value of the data may read so
            together += " together"
        name = small[0] if len(small) == 1 else together
        yield part_of(name, others, policy, none_is_judged or dimension in policy.required_slices)


def part_of(name: str, ids: frozenset[str], policy: PolicyConfig, required: bool = False) -> Part:
    """The slice, with its problem when it is too small; `required` says that it may not be left out then."""
    required = required or name in policy.required_slices
    if len(ids) >= policy.min_slice_queries:
        return Part(name, ids, required=required)
    rule = "so it cannot be decided on" if required else "so it is not judged; its queries count in the gate over all of them"
    return Part(
        name,
        ids,
        f"{len(ids)} {'query' if len(ids) == 1 else 'queries'}, fewer than the {policy.min_slice_queries} that a slice needs, {rule}.",
        required,
    )


def _new(whole: pd.DataFrame, known: pd.DataFrame, policy: PolicyConfig) -> Iterator[Part]:
    """The slices that hold no known query."""
    kept = set(zip(known["dimension"], known["slice"], strict=True))
    for (dimension, label), rows in whole.groupby(["dimension", "slice"], sort=True):
        if (dimension, label) not in kept:
            problem = (
                f"The champion lacks the documents of all its {len(rows)} queries, so there is nothing to compare them with; they count in "
                "the gate over all queries."
            )
            name = f"{dimension}={label}"
            yield Part(name, frozenset(rows["query_id"]), problem, name in policy.required_slices or dimension in policy.required_slices)


def _missing(parts: list[Part], table: pd.DataFrame, policy: PolicyConfig) -> Iterator[Part]:
    there = {part.name for part in parts} | set(table["dimension"])
    for name in policy.required_slices:
        if name not in there:
            yield Part(name, frozenset(), "The policy requires this slice, and no query of the report is in it.", True)


# --- Gates against the champion: non-inferiority over all queries and in every slice, answer time and throughput in the same run.


NON_INFERIOR = "champion_non_inferior"


def champion_gates(evidence: GateInputs, policy: PolicyConfig) -> Iterator[GateResult]:
    """All gates of this module, those that are switched off too."""
    known, both = known_queries(evidence), cache(partial(paired_scores, evidence))
    yield gate(NON_INFERIOR, -policy.margin, lambda: _no_champion(evidence) or _overall(both(), known, policy))
    if known is not None and evidence.baseline is not None:
        yield _slice(served_by_both(known, policy), both, policy.margin, policy)
    if (shared := among_shared(evidence)) is not None and evidence.baseline is not None:
        yield gate(NON_INFERIOR, -policy.margin, partial(_on_equal_terms, shared, evidence, policy), HELD_BY_BOTH)
    yield from _slices(evidence, both, known, policy)
    yield _ratio("champion_p95", policy.max_p95_ratio, evidence, _p95)
    yield _ratio("champion_qps", policy.min_qps_ratio, evidence, _qps)


def _on_equal_terms(shared: PairedScores, evidence: GateInputs, policy: PolicyConfig) -> Outcome:
    import numpy as np

    asked, table = frozenset(shared.candidate.index), _of_documents(evidence)
    if not asked:
        raise NotDecidable(f"The candidate lacks documents of the champion, and {_uncompared(evidence)} {_ASK}")
    if not asked <= set(evidence.report.per_query["query_id"]) or (table is not None and fully_served(table) - asked):
        raise NotDecidable(f"What both reach on the documents that both hold is not there for every query, or for others too. {_ASK}")
    part = part_of(HELD_BY_BOTH, asked, policy, required=True)
    if part.problem:
        return Outcome("not_decidable", part.problem, queries=len(part.query_ids))
    require_paired(shared.candidate, shared.champion)
    if not shared.candidate.index.is_unique or not np.isfinite((shared.candidate - shared.champion).to_numpy()).all():
        raise NotDecidable(f"Of what both hold a query has no value, or more than one. {_ASK}")
    shared.candidate.attrs.update(scores(evidence.report, "student", METRIC).attrs)  # what is known of the queries, as their units
    outcome = non_inferior(shared.candidate, shared.champion, policy.margin, policy)
    return replace(outcome, reason=f"{outcome.reason} {shared.source}")


def _uncompared(evidence: GateInputs) -> str:
    """Why nobody compared both on the documents that both hold."""
    if evidence.values is None and evidence.shared is not None and not len(evidence.shared):
        return (
            "the evaluation of one of them keeps no rankings (student.trec, qrels.trec) from which both could be compared on the documents "
            "that both hold: those of before did not, nor those of ids with white space."
        )
    return "nobody compared both on those that both hold."


def _overall(both: PairedScores, known: frozenset[str] | None, policy: PolicyConfig) -> Outcome:
    outcome = non_inferior(both.candidate, both.champion, policy.margin, policy, known)
    return replace(outcome, reason=f"{outcome.reason} {both.source}")


def non_inferior(
    candidate: pd.Series, champion: pd.Series, margin: float, policy: PolicyConfig, known: frozenset[str] | None = None
) -> Outcome:
    """The test on values per query of the same queries; see the module for its outcomes. The power stands on `known` queries, or all."""
    from components.evaluation.units import power, queries_needed

    interval, queries = paired_bound(candidate, champion, policy), len(candidate)
    between = candidate - champion
    chosen = between if known is None else between[between.index.isin(known)]
    gaps, units = chosen.to_numpy(), numbers_of(chosen, candidate.loc[chosen.index])
    spread = spread_of(policy)
    strength = power(gaps, margin, policy.confidence, units, spread, ends_of(policy)) if len(gaps) > 1 else 0.0
    text = f"nDCG@10 of candidate minus champion: {bound_text(interval, policy, queries, -margin)}; a loss below {margin:g} is allowed."
    if interval.high < -margin:
        shown = f"{text} Shown to be worse: at most {signed(interval.high, -margin, 4)}."
        return Outcome("fail", shown, interval.low, queries, strength)
    if policy.min_power is not None and strength < policy.min_power:
        alone = len(gaps) < 2 or (units is not None and len(set(units.tolist())) < 2)
        try:
            wanted = policy.confidence, policy.min_power
            needed = policy.min_slice_queries if alone else queries_needed(gaps, margin, *wanted, units, spread)
        except OverflowError:  # of a margin of next to nothing
            needed = MOST_NEEDED
        told_needed = f"about {needed:,}" if needed < MOST_NEEDED else f"more than {MOST_NEEDED:,}"
        grouped = " in units like these" if interval.units is not None else ""
        told = beside(strength, policy.min_power, 0, percent=True)
        weak = (
            f"{text} Too few queries: an equal candidate would be shown to be equal with a chance of {told} only, and "
            f"{policy.min_power:.0%} is asked. That takes {told_needed} queries{grouped}, or a larger margin."
        )
        return Outcome("not_decidable", weak, interval.low, queries, strength)
    return Outcome("pass" if interval.low > -margin else "fail", f"{text} Power {strength:.0%}.", interval.low, queries, strength)


def _no_champion(evidence: GateInputs) -> Outcome | None:
    """A first release, None where there is a champion; not decidable where it was lost, so that its loss is no way around it."""
    if evidence.lost:
        raise NotDecidable(
            f"There is a champion, but {evidence.lost} Restore it and build again, or release without the comparison: a reviewer's "
            "override, and then scalingnote promote --without-champion REASON."
        )
    if evidence.baseline is not None:
        return None
    return Outcome("first_release", "There is no champion to compare with: this is a first release, and a person has to judge it.")


def _slices(
    evidence: GateInputs, both: Callable[[], PairedScores], known: frozenset[str] | None, policy: PolicyConfig
) -> Iterator[GateResult]:
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


def _slice(part: Part, both: Callable[[], PairedScores], margin: float, policy: PolicyConfig) -> GateResult:
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


def _ratio(name: str, asked: float | None, evidence: GateInputs, measure: Callable[[ComparisonSummary, float], Outcome]) -> GateResult:
    if asked is None:
        return off(name)
    return gate(name, asked, lambda: _no_champion(evidence) or measure(_speeds(evidence), asked))


def _speeds(evidence: GateInputs) -> ComparisonSummary:
    found = compared(evidence, "Candidate and champion were not timed in one run; times of different runs say nothing about each other.")
    ours, theirs = found.candidate, found.champion
    if ours.queries < 1 or (ours.queries, ours.batch_size) != (theirs.queries, theirs.batch_size):
        raise NotDecidable(
            f"The candidate was timed with {ours.queries} queries in batches of {ours.batch_size}, the champion with {theirs.queries} in "
            f"batches of {theirs.batch_size}; compare them again."
        )
    return found


def _p95(speeds: ComparisonSummary, asked: float) -> Outcome:
    ours, theirs = _positive(speeds.candidate.p95_ms, speeds.champion.p95_ms, "95th percentile of the answer time")
    text = f"95 % of the candidate's answers take at most {ours:.2f} ms, the champion's {theirs:.2f} ms in the same run: "
    value = ours / theirs
    return Outcome("pass" if value <= asked else "fail", f"{text}{beside(value, asked, 2)} times as long; {asked:g} allowed.", value)


def _qps(speeds: ComparisonSummary, asked: float) -> Outcome:
    ours, theirs = _positive(speeds.candidate.qps, speeds.champion.qps, "number of queries answered per second")
    text = f"The candidate answers {ours:,.0f} queries per second, the champion {theirs:,.0f} in the same run: "
    value = ours / theirs
    return Outcome("pass" if value >= asked else "fail", f"{text}{beside(value, asked, 2)} times as many; {asked:g} asked.", value)


def _positive(ours: float, theirs: float, what: str) -> tuple[float, float]:
    """Both numbers; not decidable when one is not above 0, which no measurement is."""
    candidate, champion = finite(ours, f"candidate's {what}"), finite(theirs, f"champion's {what}")
    if min(candidate, champion) <= 0:
        raise NotDecidable(f"The {what} is {candidate:g} for the candidate and {champion:g} for the champion; compare them again.")
    return candidate, champion
