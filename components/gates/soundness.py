"""Gates about what no metric shows: the index against exact search, broken contracts, gaps in the lineage, mixed vector spaces.

The gate of the index is apart from those of the models: it holds the index against exact search on the same vectors, so no encoder can
raise or lower it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from components.evaluation.champion_comparison import CHAMPION
from components.evaluation.table import units_mark
from components.gates.champion import compared
from components.gates.config import PolicyConfig
from components.gates.decision import Findings, GateInputs, GateResult
from components.gates.measures import (
    NotDecidable,
    Outcome,
    agrees,
    beside,
    finite,
    gate,
    in_units,
    mapping,
    mean_bound,
    off,
    sample_text,
    units_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.report import Evaluation

ANN_DEPTH = 100  # documents of exact search that the index has to find
SHOWN = 3
REMOVED, UNITS = "removed_documents", "units"


def soundness_gates(evidence: GateInputs, policy: PolicyConfig) -> Iterator[GateResult]:
    """All gates of this module, those that are switched off too."""
    asked, errors, facts = policy.min_ann_recall, policy.max_contract_errors, evidence.facts
    yield off("ann_recall") if asked is None else gate("ann_recall", asked, lambda: _ann_recall(evidence.report, asked, policy))
    yield off("contracts") if errors is None else gate("contracts", errors, lambda: _contracts(facts, errors))
    share = policy.max_removed_share
    yield off(REMOVED) if share is None else gate(REMOVED, share, lambda: _removed(evidence, share))
    yield gate("lineage_complete", 0, lambda: _lineage(facts)) if policy.require_lineage else off("lineage_complete")
    yield gate("space_compatible", 0, lambda: _space(facts)) if policy.require_space else off("space_compatible")
    split, known = policy.split, facts.foreign_policy if facts else None
    told = evidence.report.summary.units is not None
    yield gate(UNITS, None, lambda: _units(evidence.report)) if policy.own_units and told else off(UNITS)
    yield off("split") if split is None else gate("split", None, lambda: _split(evidence.report.summary.split, split))
    yield off("policy", "This installation names no policy.") if known is None else gate("policy", None, lambda: _policy(known))


def _contracts(facts: Findings | None, allowed: int) -> Outcome:
    errors = facts.contract_errors if facts else None
    if facts is None or errors is None:
        raise NotDecidable("Nothing says how many rules of the data contracts are broken; validate the data again.")
    text = f"Rules of the data contracts that are broken: {errors} errors ({allowed} allowed), {facts.contract_warnings or 0} warnings."
    return Outcome("pass" if errors <= allowed else "fail", text, float(errors))


def _removed(evidence: GateInputs, allowed: float) -> Outcome:
    """Documents that are gone since the champion, and since the release that an index refresh started from; fewer of them raise scores.

    It asks the comparison alone, not the champion's evaluation: a champion that is lost later does not change what was decided.
    """
    counts = dict(_gone(evidence))
    if not counts:
        return Outcome("first_release", "There is no champion, so no document that was served before can be missing.")
    since, (gone, before) = max(counts.items(), key=lambda entry: entry[1][0] / max(1, entry[1][1]))
    value = gone / max(1, before)
    told = beside(value, allowed, 1, percent=True)
    text = f"Of the {before:,} documents of {since} {gone:,} are gone ({told}; {100 * allowed:.4g}% allowed)."
    if value <= allowed:
        return Outcome("pass", text, value)
    told = (
        "Fewer documents make every query easier, so figures cannot decide on this: where they are to go, a reviewer says so (--override)."
    )
    return Outcome("not_decidable", f"{text} {told}", value)


def _gone(evidence: GateInputs) -> Iterator[tuple[str, tuple[int, int]]]:
    facts = evidence.facts
    if facts and facts.removed_documents is not None and facts.documents_before is not None:
        yield "the release that was refreshed", (facts.removed_documents, facts.documents_before)
    if evidence.champion is None and evidence.comparison is None:
        return
    found = compared(evidence, "Candidate and champion were not opened in one run, so nobody counted the documents that are gone.")
    before = found.sizes.get(CHAMPION, {}).get("documents")
    if found.removed is None or not before:
        raise NotDecidable("The comparison with the champion did not count the documents that are gone; build the candidate again.")
    yield "the champion", (found.removed, before)


def _lineage(facts: Findings | None) -> Outcome:
    if facts is None or facts.lineage_gaps is None:
        raise NotDecidable("The lineage of this candidate was not examined; build it again.")
    return _none_of(facts.lineage_gaps, "Every parent of the release is known.", "gaps in the lineage")


def _space(facts: Findings | None) -> Outcome:
    if facts is None or facts.space_mismatches is None:
        raise NotDecidable("The vector spaces of encoders and index were not compared; build the candidate again.")
    return _none_of(facts.space_mismatches, "Encoders and index belong to one vector space.", "parts of another vector space")


def _split(measured: str, asked: str) -> Outcome:
    if measured == asked:
        return Outcome("pass", f"Measured on the split '{asked}', as the policy asks.")
    return Outcome("fail", f"Measured on the split '{measured}'; the policy asks '{asked}', on which nothing was chosen. Evaluate on it.")


def _units(report: Evaluation) -> Outcome:
    """Single queries of one answer or group count as more than they are worth, in every gate over queries."""
    if (mark := units_mark(report.summary)) == "":
        return Outcome("pass", "Queries that the data holds together count as one unit.")
    raise NotDecidable(
        f"{mark} Set evaluation.query_groups to auto; where they were drawn one by one all the same, a reviewer says so (--override), or "
        "the policy does (policy.own_units: false)."
    )


def _policy(foreign: str) -> Outcome:
    return Outcome("fail", foreign) if foreign else Outcome("pass", "The policy is one of this installation's.")


def _none_of(found: Sequence[str], fine: str, what: str) -> Outcome:
    if not found:
        return Outcome("pass", fine, 0.0)
    more = f" And {len(found) - SHOWN} more." if len(found) > SHOWN else ""
    return Outcome("fail", f"{len(found)} {what}: {' '.join(found[:SHOWN])}{more}", float(len(found)))


def _ann_recall(report: Evaluation, asked: float, policy: PolicyConfig) -> Outcome:
    values = _ann_values(report)
    interval = mean_bound(values, policy, may_be_alike=True)  # exact search finds all, of any query
    lost = finite(mapping(report.summary.ann).get("ndcg_lost"), "nDCG@10 that the index loses")
    low = beside(interval.low, asked, 1, percent=True)
    text = (
        f"The index finds {interval.difference:.1%} of what exact search finds (recall@{ANN_DEPTH}), at least {low} with "
        f"{100 * policy.confidence:g}% confidence, {sample_text(len(values), interval)}; {100 * asked:.4g}% asked. "
        f"It costs the student {lost:.4f} of nDCG@10."
    )
    if interval.low >= asked:
        return Outcome("pass", text, interval.low, len(values))
    advice = "This is the index, not the models: raise index.target_recall and run again; the towers and vectors stay."
    return Outcome("fail", f"{text} {advice}", interval.low, len(values))


def _ann_values(report: Evaluation) -> pd.Series:
    """recall@100 of the index, one finite value per query that was searched; not decidable when one is missing or strange."""
    metric = f"recall@{ANN_DEPTH}"
    stated = mapping(report.summary.ann)
    if not stated or report.ann is None:
        raise NotDecidable(f"The report has no {metric} of the index against exact search. Evaluate again; index.refine must not be none.")
    rows = report.ann[report.ann["metric"] == metric]
    values = rows.set_index("query_id")["value"].astype(float).sort_index()
    if not values.index.is_unique:
        raise NotDecidable(f"The report has more than one {metric} of the index for the same query.")
    if not len(values) or len(values) != stated.get("queries"):
        raise NotDecidable(f"The report has {metric} of the index for {len(values)} of {stated.get('queries')} queries.")
    if not all(0 <= value <= 1 for value in values):
        raise NotDecidable(f"The {metric} of the index is not a share between 0 and 1 for every query.")
    agrees(mapping(stated.get("recall")).get(metric), float(values.mean()), f"{metric} of the index")
    return in_units(values, units_of(report))
