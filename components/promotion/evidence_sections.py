"""Sections of the reviewer's report about the decision and the quality: gates, changes, differences, slices."""

from __future__ import annotations

from collections.abc import Sequence

from components.evaluation.metrics import METRICS
from components.promotion.decision import GateDecision, GateResult
from components.promotion.evidence import Dossier
from components.promotion.evidence_changes import Changes, changes_between
from components.promotion.evidence_html import Cell, Safe, bullets, details, heading, paragraph, section, table
from components.promotion.evidence_numbers import METRIC, Delta, Rivals, against_champion, baseline_rivals, deltas, slice_deltas
from components.promotion.evidence_plots import Mark, Words, forest
from components.promotion.marks import RED

STATUS_WORDS = {
    "pass": ("good", "pass"),
    "fail": ("bad", "FAIL"),
    "not_decidable": ("warn", "not decidable"),
    "first_release": ("warn", "first release"),
    "off": ("", "off"),
}
SYSTEMS = {"bm25": "BM25", "student_untrained": "untrained student", "teacher": "teacher", "student": "candidate (student)"}
METRIC_WORDS = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}
_READINGS: dict[str, Cell] = {"better": ("good", "better"), "worse": ("bad", "worse"), "open": "not told apart"}
_SHAPES = "Triangle up: the interval lies above 0 (better). Triangle down: below 0 (worse). Circle: it holds 0 (not told apart)."


def banner(decision: GateDecision) -> Safe:
    """The verdict in words, with what is open."""
    style, word = STATUS_WORDS[decision.verdict]
    opened = decision.open_gates()
    failed = f" {len(opened)} of {len(decision.gates)} gates are open: {', '.join(_gate_name(gate) for gate in opened)}." if opened else ""
    first = " This is a first release: there is no champion to compare with, a person has to decide." if decision.first_release else ""
    inner = paragraph(f"Verdict: {word}.{failed}{first}")
    return Safe(f'<div class="banner {style}" role="status">{inner}</div>')


def override_banner(dossier: Dossier) -> Safe:
    """In red that the champion itself is there by an override, so that being as good as it says less; empty for one that passed."""
    champion = dossier.champion
    if champion is None or champion.override is None:
        return Safe("")
    told = f"{RED} The champion, release/{champion.version}, is there by an OVERRIDE: {champion.override.what}, {champion.override.who}"
    return Safe(f'<div class="banner bad" role="note">{paragraph(told)}</div>')


def gates_section(dossier: Dossier) -> Safe:
    """Every gate with its reason, and the policy it was decided by."""
    decision = dossier.manifest.decision
    rows = [_gate_row(gate) for gate in decision.gates]
    columns = ("Gate", "Status", "Slice", "Reason", "Measured", "Threshold", "Queries", "Power")
    policy = f"Policy {decision.policy_version or 'without a version'}, digest {decision.policy_digest or 'not recorded'}."
    return section("gates", "Gates", table("All gates of the policy", columns, rows, numbers=4), policy)


def _gate_row(gate: GateResult) -> list[Cell]:
    value, threshold = ("" if found is None else f"{found:.4g}" for found in (gate.value, gate.threshold))
    queries, power = "" if gate.queries is None else f"{gate.queries:,}", share(gate.power)
    return [
        gate_words(gate),
        STATUS_WORDS[gate.status],
        gate.slice or "",
        ("words", gate.reason),
        value,
        threshold,
        queries,
        power,
    ]


def gate_words(gate: GateResult) -> str:
    """A gate's name for people, without the slice that stands beside it."""
    return gate.name.partition("[")[0].replace("_", " ")


def _gate_name(gate: GateResult) -> str:
    return gate_words(gate) + (f" ({gate.slice})" if gate.slice else "")


def changes_section(dossier: Dossier) -> Safe:
    """What is different from the champion."""
    notes = bullets(dossier.notes) if dossier.notes else Safe("")
    if dossier.champion is None:
        return section("changes", "What changed", notes, "This is a first release, so there is nothing before it.")
    found = changes_between(dossier.manifest, dossier.champion.manifest)
    blocks = [block for name, lines in found.subjects().items() for block in (heading(name), _subject(lines))]
    return section("changes", f"What changed since the champion, release/{dossier.champion.version}", notes, *blocks)


def _subject(lines: Sequence[str]) -> Safe:
    if not lines:
        return paragraph("Unchanged.")
    return bullets(lines) if len(lines) <= 20 else details(f"{len(lines)} differences", bullets(lines))


def changes_of(dossier: Dossier) -> Changes | None:
    """The differences from the champion; None for a first release."""
    return changes_between(dossier.manifest, dossier.champion.manifest) if dossier.champion else None


def quality_section(dossier: Dossier) -> Safe:
    """Levels of every system, differences from champion and baselines with intervals and power, and their plot."""
    rivals = against_champion(dossier)
    main = deltas(rivals, dossier) if rivals else []
    others = [delta for pair in baseline_rivals(dossier) for delta in deltas(pair, dossier, (METRIC, "recall@50"))]
    said = _said(dossier, rivals)
    blocks = [said, delta_plot(main, dossier), delta_table("Candidate minus champion, all metrics", main)] if main else [said]
    blocks += [heading("Against the baselines"), delta_plot([d for d in others if d.metric == METRIC], None)] if others else []
    blocks += [delta_table("Differences from the baselines", others)] if others else []
    return section("quality", "Quality against champion and baselines", *blocks, heading("Levels"), _levels(dossier))


def _said(dossier: Dossier, rivals: Rivals | None) -> str:
    if rivals is not None:
        return f"Champion: {rivals.source}, {len(rivals.query_ids):,} judged queries. {dossier.compared.missing}"
    if dossier.champion is None:
        return "There is no champion to compare with: this is a first release."
    return f"The champion cannot be compared query by query: it was evaluated on other judgements. {dossier.compared.missing}"


def delta_plot(found: Sequence[Delta], dossier: Dossier | None, title: str = "Differences with their 95 % intervals") -> Safe:
    """A forest plot; with a dossier the policy's margin is drawn."""
    marks = [Mark(_label(d, found), d.difference, d.low, d.high, _note(d)) for d in found]
    if not marks:
        return Safe("")
    margin = dossier.policy.margin if dossier else None
    line = f" The dashed line is the loss that the policy allows for nDCG@10, {margin:g}." if margin else ""
    told = "; ".join(f"{mark.label} {mark.note}" for mark in marks)
    return forest(marks, Words(title, f"{told}. {_SHAPES}{line}", "difference (right of 0: the first is better)"), margin)


def _label(delta: Delta, found: Sequence[Delta]) -> str:
    same = len({d.name for d in found}) == 1
    return metric_words(delta.metric) if same else systems_words(delta.name)


def _note(delta: Delta) -> str:
    return f"{signed(delta.difference)} {_interval(delta)}, {delta.queries:,} queries"


def delta_table(caption: str, found: Sequence[Delta]) -> Safe:
    """Differences with interval, sample size, power and what could have been shown."""
    first = "Slice" if found and "=" in found[0].name else "Systems"
    columns = (first, "Metric", "Difference", "95 % interval", "Reading", "Queries", "Power at the margin", "Margin shown with 80 %")
    return table(caption, columns, [_delta_row(delta) for delta in found], numbers=5)


def _delta_row(d: Delta) -> list[Cell]:
    tone = Mark(d.name, d.difference, d.low, d.high, "").tone
    words: Cell = "too few queries" if d.low is None else _READINGS[tone]
    ends = [share(d.power), number(d.detectable, 4)]
    return [systems_words(d.name), metric_words(d.metric), signed(d.difference), ("tight", _interval(d)), words, f"{d.queries:,}", *ends]


def _interval(delta: Delta) -> str:
    return "no interval" if delta.low is None or delta.high is None else f"[{signed(delta.low)}, {signed(delta.high)}]"


def _levels(dossier: Dossier) -> Safe:
    summary = dossier.evaluation.summary
    columns = ("System", *(metric_words(metric) for metric in METRICS))
    rows = []
    for name, system in sorted(summary.systems.items(), key=lambda entry: list(SYSTEMS).index(entry[0]) if entry[0] in SYSTEMS else 9):
        cells = [with_interval(system.metrics.get(metric), system.intervals.get(metric)) for metric in METRICS]
        rows.append([SYSTEMS.get(name, name), *cells])
    caption = f"Means over {summary.queries:,} judged queries ({summary.split}), {summary.documents:,} documents, 95 % intervals"
    return table(caption, columns, rows, numbers=1)


def slices_section(dossier: Dossier) -> Safe:
    """Differences in nDCG@10 by slice: against the champion, or where there is none against the teacher."""
    slices, rivals = dossier.evaluation.slices, against_champion(dossier) or _teacher(dossier)
    title = "Slices of the queries"
    if slices is None or not len(slices):
        return section(
            "slices", title, "The evaluation has no slices: it is from an older version, or none is defined in evaluation.slices."
        )
    if rivals is None or METRIC not in rivals.scores:
        return section("slices", title, "There are no two systems that could be compared on the slices.")
    found = slice_deltas(rivals, slices, dossier)
    who = f"{SYSTEMS.get(rivals.first, rivals.first)} minus {SYSTEMS.get(rivals.second, rivals.second)}, nDCG@10"
    plot = delta_plot(found, None, f"{who}, by slice")
    note = "Slices with fewer than 10 queries have no interval. Which slices the policy judges stands in the gates."
    return section("slices", title, f"{who}. Slices are defined in evaluation.slices.", plot, delta_table(f"{who}, by slice", found), note)


def _teacher(dossier: Dossier) -> Rivals | None:
    return next((pair for pair in baseline_rivals(dossier) if (pair.first, pair.second) == ("student", "teacher")), None)


def systems_words(name: str) -> str:
    """`student - bm25` for people."""
    return " - ".join(SYSTEMS.get(part, part) for part in name.split(" - "))


def metric_words(name: str) -> str:
    """`ndcg@10` for people."""
    return METRIC_WORDS.get(name, name)


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` decimals; empty for None."""
    return "" if value is None else f"{value:,.{digits}f}"


def signed(value: float) -> str:
    """A difference with its sign and four decimals."""
    return f"{value:+.4f}"


def share(value: float | None) -> str:
    """A share as a percentage; empty for None."""
    return "" if value is None else f"{value:.0%}"


def with_interval(value: float | None, ends: tuple[float, float] | None) -> str:
    """A value with the ends of its interval in brackets."""
    if value is None:
        return "missing"
    return f"{value:.3f}" if ends is None else f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
