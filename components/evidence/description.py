"""The description of a candidate in the MLflow UI: what a reviewer reads first, as Markdown that fits MLflow's limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from components.evaluation.metrics import RETAINED
from components.evaluation.table import render_shift
from components.evaluation.units import effective_queries
from components.evidence.dossier import Dossier, require_measured
from components.evidence.glance import moved, override_words
from components.evidence.labels import (
    STATUS_WORDS,
    first_line,
    gate_words,
    held_out_titles,
    metric_words,
    noise_words,
    release_words,
    signed,
    systems_words,
)
from components.evidence.numbers import METRIC, Delta, against_champion, baseline_rivals, deltas
from components.evidence.quality_sections import changes_of
from components.gates.decision import GateResult
from components.release.champion import release_model
from components.release.marks import RED, as_text
from components.tracking.links import version_link

LIMIT = 4500  # of MLflow's 5,000 characters: what is put above it later, as the mark of an override, has to fit as well
_SENTENCES = 4  # of what is worse and better
_LINES = 6  # of each subject that changed; the report has all of them
_REASON, _PASSED, _CHANGE = 240, 130, 140  # characters of a reason, of that of a gate that passed, and of a change
_MOST_GATES = 2000  # characters of the table; in a longer one the gates that passed are counted only
_MORE = "The rest stands in the report."
_SIGNS = {"pass": "\u2714 pass", "fail": "\u2718 **FAIL**", "not_decidable": "\u26a0 **not decidable**"}


def describe(dossier: Dossier, links: Mapping[str, str]) -> str:
    """Verdict, gates, differences with intervals, what changed, and the links (title -> address).

    A block that would make it too long is left out, and a line says so; raises PromotionError for an evaluation over no query.
    """
    require_measured(dossier)
    blocks = [_verdict(dossier), _links(links), _moved(dossier), _gates(dossier.manifest.decision.gates), _differences(dossier)]
    kept, whole = _fitting([*blocks, _next(dossier)], [])
    # What changed is never left out: of many changes fewer are named.
    changes = [_changes(dossier, lines) for lines in range(_LINES, -1, -1)]
    fitting = next((block for block in changes if not block or _fitting([block], kept)[1]), changes[-1])
    kept, whole_end = _fitting([fitting, _shift(dossier)], kept)
    return "\n\n".join(kept if whole and whole_end else [*kept, _MORE])


def _fitting(blocks: Sequence[str], before: Sequence[str]) -> tuple[list[str], bool]:
    """The blocks that fit behind those `before` them, with these, and whether all do; empty ones are passed over."""
    kept = list(before)
    for block in filter(None, blocks):
        if len("\n\n".join([*kept, block, _MORE])) <= LIMIT:
            kept.append(block)
    return kept, len(kept) == len(before) + sum(map(bool, blocks))


def _verdict(dossier: Dossier) -> str:
    decision, summary = dossier.manifest.decision, dossier.evaluation.summary
    champion = "This is a first release: there is no champion to compare with, a person has to decide."
    if dossier.champion is not None:
        champion = f"Champion: [release/{dossier.champion.version}]({_champion_page(dossier)})."
    own = f" {summary.own_documents.words}" if summary.own_documents else ""
    measured = f"{summary.queries:,} judged queries ({summary.split}), {summary.documents:,} documents.{own}{_left_out(dossier)}"
    measured += _units(dossier)
    first = f"## Verdict: {_SIGNS[decision.verdict]}{as_text(first_line('', summary))}"
    titles = held_out_titles(dossier.manifest)
    verdict = f"{first}\n\n{release_words(dossier.manifest.release_type)}. {champion} {measured}{f' {titles}' if titles else ''}"
    overridden = override_words(dossier)
    return f"{verdict}\n\n{RED} {as_text(_cut(overridden, _REASON))}" if overridden else verdict


def _units(dossier: Dossier) -> str:
    """In how many units the queries were drawn, where these are not the queries themselves."""
    found, queries = dossier.evaluation.summary.units, dossier.evaluation.summary.queries
    if found is None or found.units == queries:
        return ""
    told = f" The queries are {found.units:,} units, of up to {found.largest:,} that were drawn together"
    effect = found.design_effects.get(METRIC)
    return f"{told}: they say as much as {effective_queries(queries, effect):,} independent ones by nDCG@10." if effect else f"{told}."


def _left_out(dossier: Dossier) -> str:
    """The rows that the data lacks because they were dropped, by rule; what was measured was measured without them."""
    counts: dict[str, int] = {}
    for entry in dossier.validation.left_out:
        counts[entry.rule] = counts.get(entry.rule, 0) + entry.rows
    told = ", ".join(f"{rows:,} {as_text(rule)}" for rule, rows in counts.items())
    return f" **Left out of the data:** {sum(counts.values()):,} rows ({told})." if counts else ""


def _champion_page(dossier: Dossier) -> str:
    return version_link(release_model(dossier.manifest.name), dossier.champion.version if dossier.champion else 0)


def _links(links: Mapping[str, str]) -> str:
    return " · ".join(f"[{title}]({address})" for title, address in links.items())


def _moved(dossier: Dossier) -> str:
    """What is worse and what is better than in the champion, beyond chance; the first few of each."""
    if (found := moved(dossier)) is None:
        return ""
    rows = []
    for word, lines in (("Worse", found.worse), ("Better", found.better)):
        more = f"; and {len(lines) - _SENTENCES} more" if len(lines) > _SENTENCES else ""
        told = "; ".join(as_text(_cut(line, _CHANGE)) for line in lines[:_SENTENCES])
        rows.append(f"**{word} than the champion:** {told or 'nothing is shown to be'}{more}.")
    return "\n\n".join(rows)


def _gates(gates: Sequence[GateResult]) -> str:
    """Open gates first, with their reasons; what does not fit of those that passed, slices first, and those that are off are counted."""
    order = {"fail": 0, "not_decidable": 1, "first_release": 2, "pass": 3}
    shown = sorted((gate for gate in gates if gate.status in order), key=lambda gate: (order[gate.status], gate.slice is not None))
    opened = [gate for gate in shown if gate.status != "pass"]
    while len(_gate_table(shown)) > _MOST_GATES and len(shown) > len(opened):
        shown = shown[:-1]
    passed = sum(gate.status == "pass" for gate in gates) - (len(shown) - len(opened))
    counted = {"more passed": passed, "switched off by the policy": sum(gate.status == "off" for gate in gates)}
    others = ", ".join(f"{count} {what}" for what, count in counted.items() if count)
    return f"### Gates\n\n{_gate_table(shown)}" + (f"\n\nOther gates: {others}." if others else "")


def _gate_table(gates: Sequence[GateResult]) -> str:
    rows = [_row(gate_words(gate), _status(gate), as_text(_reason(gate))) for gate in gates]
    return "\n".join(["| gate | status | reason |", "|---|---|---|", *rows])


def _status(gate: GateResult) -> str:
    return _SIGNS.get(gate.status, STATUS_WORDS[gate.status][1])


def _reason(gate: GateResult) -> str:
    text = f"{gate.slice}: {gate.reason}" if gate.slice else gate.reason
    return _cut(text, _PASSED if gate.status == "pass" else _REASON)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _differences(dossier: Dossier) -> str:
    rivals = against_champion(dossier)
    found = deltas(rivals, dossier) if rivals else []
    found = found or list(
        chain.from_iterable(deltas(pair, dossier, RETAINED) for pair in baseline_rivals(dossier) if pair.second != "teacher")
    )
    if not found:
        return ""
    rows = [_row(systems_words(d.name), metric_words(d.metric), signed(d.difference), _ends(d), f"{d.queries:,}") for d in found]
    head = ["| systems | metric | difference | 95 % interval | queries |", "|---|---|---:|---|---:|"]
    return "\n".join(["### Differences", "", *head, *rows, "", as_text(noise_words(dossier))])


def _ends(delta: Delta) -> str:
    return "too few queries" if delta.low is None or delta.high is None else f"{signed(delta.low)} to {signed(delta.high)}"


def _changes(dossier: Dossier, most: int) -> str:
    notes = [f"- {as_text(note)}" for note in dossier.notes]
    found = changes_of(dossier)
    if found is None:
        return "\n".join(["### What changed", "", *notes]) if notes else ""
    lines = [line for name, changes in found.subjects().items() for line in _subject(name, changes, most)]
    return "\n".join(["### What changed since the champion", "", *notes, *lines])


def _subject(name: str, changes: Sequence[str], most: int) -> list[str]:
    if not changes or not most:
        return [f"- **{name}**: {f'{len(changes)} changes' if changes else 'unchanged'}"]
    more = [f"  - and {len(changes) - most} more"] if len(changes) > most else []
    return [f"- **{name}**:", *(f"  - {as_text(_cut(change, _CHANGE))}" for change in changes[:most]), *more]


def _shift(dossier: Dossier) -> str:
    """Retention off the training distribution and the spread of the vectors, as a terminal shows them."""
    text = render_shift(dossier.evaluation.summary)
    return f"### Off the training distribution, and spread of the vectors\n\n```\n{text}\n```" if text else ""


def _next(dossier: Dossier) -> str:
    text = (
        f"To approve: *Promote model* into `{release_model(dossier.manifest.name)}`. To reject: the tag `review` with the value "
        "`rejected: reason`."
    )
    if dossier.manifest.decision.verdict == "pass":
        return text
    return (
        f"{text} Its gates did not pass, so an approval takes a written reason: the tag `override` on the promoted version where people "
        "sign in, else `scalingnote approve --override REASON`."
    )


def _row(*cells: str) -> str:
    """Cells kept apart, which MLflow's style for tables does not."""
    return "| " + " &ensp;| ".join(cells) + " |"
