"""Sections of the report on quality: verdict at a glance, gates, differences, slices, queries that got worse or better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from components.evaluation.champion_comparison import JUDGED, LOGGED, UNLABELLED, Agreement
from components.evaluation.metrics import METRICS, RETAINED, metric_words
from components.evidence.dossier import (
    FEWEST,
    METRIC,
    ChangesSinceChampion,
    Delta,
    Dossier,
    Rivals,
    Tone,
    against_champion,
    baseline_rivals,
    changes_between,
    deltas,
    documents_words,
    slice_deltas,
    tally,
)
from components.evidence.labels import (
    PIECES,
    STATUS_WORDS,
    SYSTEMS,
    TONES,
    Cell,
    Mark,
    PlotText,
    bullets,
    details,
    first_line,
    foreign,
    forest,
    gate_words,
    heading,
    interval_words,
    noise_words,
    number,
    paragraph,
    section,
    share,
    signed,
    systems_words,
    table,
    units_words,
    with_interval,
)
from components.gates.decision import GateResult
from components.templates import piece, shortened

_TONES: dict[Tone, str] = {"better": "good", "worse": "bad", "open": ""}
_NOISE = 0.1  # share by which two measurements of one time may differ without a reason


class Figure(NamedTuple):
    """One tile: a name, its value, what stands below, and whether that is good news."""

    name: str
    value: str
    below: str
    tone: Tone = "open"


@dataclass(frozen=True)
class Moved:
    """What is worse and what is better, as sentences, of how many slices that was asked, and whom the documents of both help."""

    worse: tuple[str, ...]
    better: tuple[str, ...]
    slices: int
    documents: str = ""


def moved(dossier: Dossier) -> Moved | None:
    """Everything that was measured of both releases and whose difference is more than chance or noise; None without a champion."""
    rivals = against_champion(dossier)
    if dossier.champion is None:
        return None
    quality = deltas(rivals, dossier) if rivals else []
    slices = dossier.evaluation.slices
    parts = slice_deltas(rivals, slices, dossier) if rivals and slices is not None and METRIC in rivals.scores else []
    parts = [part for part in parts if rivals and part.queries < len(rivals.query_ids)]  # a slice of all queries says nothing of its own
    worse, better = ([_told(d) for d in (*quality, *parts) if d.tone == tone] for tone in ("worse", "better"))
    for sentence, good in _running(dossier):
        (better if good else worse).append(sentence)
    return Moved(tuple(worse), tuple(better), sum(part.low is not None for part in parts), documents_words(dossier))


def override_words(dossier: Dossier) -> str:
    """That the champion was released against its own gates, and why; empty where it was not."""
    champion = dossier.champion
    if champion is None or champion.override is None:
        return ""
    return f"The champion release/{champion.version} is there by an OVERRIDE: {champion.override.what}, {champion.override.who}"


def _told(delta: Delta) -> str:
    where = f" in {delta.name}" if "=" in delta.name else ""
    return f"{metric_words(delta.metric)}{where}: {signed(delta.difference)} {interval_words(delta)}, {delta.queries:,} queries"


def _running(dossier: Dossier) -> Iterator[tuple[str, bool]]:
    """Speed and size of the whole answer, where they differ by more than a tenth, and whether that is good."""
    compared = dossier.compared.summary
    if compared is None:
        return
    ours, theirs = compared.candidate, compared.champion
    yield from _compared("p95 of an answer", ours.p95_ms, theirs.p95_ms, "ms", smaller=True)
    yield from _compared("queries per second", ours.qps, theirs.qps, "", smaller=False)
    sizes = [compared.sizes.get(who, {}) for who in ("candidate", "champion")]
    for part in ("encoder", "index"):
        mine, other = (size.get(part, 0) / 1e6 for size in sizes)
        yield from _compared(f"size of the {part}", mine, other, "MB", smaller=True)


def _compared(name: str, ours: float, theirs: float, unit: str, smaller: bool) -> Iterator[tuple[str, bool]]:
    if min(ours, theirs) > 0 and not 1 - _NOISE <= ours / theirs <= 1 + _NOISE:
        digits = 0 if max(ours, theirs) >= 100 else 2
        words = f"{name}: {ours:,.{digits}f} {unit}".rstrip() + f", the champion's {theirs:,.{digits}f} {unit}".rstrip()
        yield f"{words} ({ours / theirs:.2f} times)", (ours < theirs) == smaller


def agreements(dossier: Dossier, k: int | None = 10) -> list[Agreement]:
    """How far both releases agree, on logged queries first; with `k` only at that depth."""
    found = dossier.compared.summary.agreement.values() if dossier.compared.summary else []
    order = (LOGGED, UNLABELLED, JUDGED)
    return sorted((a for a in found if k in (None, a.k)), key=lambda a: (order.index(a.source) if a.source in order else 9, a.k))


def glance_section(dossier: Dossier) -> Markup:
    """Tiles with the figures, and what is worse and better in two columns."""
    found = moved(dossier)
    tiles = piece(PIECES, "tiles", _figures(dossier), _TONES)
    return section("glance", "At a glance", tiles, piece(PIECES, "worse_and_better", found) if found else "")


def _figures(dossier: Dossier) -> list[Figure]:
    rivals, summary, compared = against_champion(dossier), dossier.evaluation.summary, dossier.compared.summary
    shown = deltas(rivals, dossier, RETAINED) if rivals else _from_baselines(dossier)
    found = [_difference(delta, "champion" if rivals else "") for delta in shown]
    if rivals and (count := tally(rivals)):
        found.append(Figure("Queries that gained / lost", f"{count.better:,} / {count.worse:,}", f"{count.equal:,} equal, by nDCG@10"))
    for agreement in agreements(dossier)[:1]:
        found.append(Figure(f"Documents shared, first {agreement.k}", f"{agreement.mean:.0%}", f"{agreement.queries:,} {agreement.source}"))
    if compared and compared.champion.p95_ms > 0:
        below = f"{compared.candidate.p95_ms:.2f} ms against {compared.champion.p95_ms:.2f} ms"
        found.append(Figure("p95 of an answer", f"{compared.candidate.p95_ms / compared.champion.p95_ms:.2f}\u00d7", below))
    if (kept := summary.retention.get("ndcg@10")) is not None:
        ends = summary.retention_intervals.get("ndcg@10")
        found.append(Figure("nDCG@10 kept of the teacher", f"{kept:.1%}", f"[{ends[0]:.1%}, {ends[1]:.1%}]" if ends else "no interval"))
    if left_out := dossier.validation.left_out:
        lost = sum(entry.unanswered for entry in left_out)
        found.append(Figure("Rows left out of the data", f"{dossier.validation.dropped:,}", f"queries without an answer now: {lost:,}"))
    return found


def _from_baselines(dossier: Dossier) -> list[Delta]:
    """For a first release: the candidate against its baselines."""
    return [delta for pair in baseline_rivals(dossier) if pair.first == "student" for delta in deltas(pair, dossier, RETAINED)]


def _difference(delta: Delta, rival: str) -> Figure:
    against = rival or systems_words(delta.name).partition(" - ")[2]
    below = f"{interval_words(delta)}, {delta.queries:,} queries"
    return Figure(f"{metric_words(delta.metric)} minus {against}", signed(delta.difference), below, delta.tone)


# --- Sections of the reviewer's report about single queries: what got worse and better, and how far both releases agree.


_NOT_LOGGED = "No query's text was logged while serving (SCALINGNOTE_ANSWER_LOG=full keeps it), so none could be replayed; others stand in."
_OPEN = 3  # queries of each kind whose answers are shown without a click


def queries_section(dossier: Dossier) -> Markup:
    """The worst regressions and best gains, with the titles that both releases retrieved."""
    title, tables = "Worst regressions and best gains", dossier.compared.tables
    if tables is None:
        return section("queries", title, dossier.compared.missing or "There is no comparison with a champion.")
    rows = tables.side_by_side.to_dict("records")
    losses = [row for row in rows if row["difference"] < 0]
    gains = [row for row in rows if row["difference"] > 0][::-1]
    told = "Ten best documents of each release. Relevant ones stand in bold with a check mark; others may be relevant and not judged."
    return section("queries", title, _counted(dossier), told, *_listed("Regressions", losses), *_listed("Gains", gains))


def _counted(dossier: Dossier) -> str:
    """Over all queries, of which only the ends are shown."""
    rivals = against_champion(dossier)
    if rivals is None or (found := tally(rivals)) is None:
        return ""
    counts = f"{found.worse:,} worse than with the champion, {found.better:,} better, {found.equal:,} equal"
    return f"By nDCG@10, of {len(rivals.query_ids):,} judged queries: {counts}."


def _listed(title: str, rows: Sequence[Mapping[Any, Any]]) -> list[Markup]:
    if not rows:
        return [heading(title), paragraph("None: no judged query changed in this direction.")]
    blocks = [details(piece(PIECES, "query", row), piece(PIECES, "answers", row), opened=i < _OPEN) for i, row in enumerate(rows)]
    return [heading(f"{title}: {len(rows)} largest by nDCG@10"), *blocks]


def agreement_section(dossier: Dossier) -> Markup:
    """How many documents both releases share."""
    title, summary = "Agreement with the champion", dossier.compared.summary
    if summary is None:
        return section("agreement", title, dossier.compared.missing or "There is no comparison with a champion.")
    rows = [
        [found.source, str(found.k), f"{found.mean:.1%}", f"[{found.low:.1%}, {found.high:.1%}]", f"{found.queries:,}"]
        for found in agreements(dossier, None)
    ]
    columns = ("Queries", "k", "Agreement@k", "95 % interval", "Number of queries")
    told = (
        "Share of the champion's first k documents that the candidate has among its own. It needs no judgements, so it shows how much "
        "users will see change; it does not say which of both is right."
    )
    replayed = any(found.source.startswith("logged") for found in summary.agreement.values())
    none = "" if replayed else _NOT_LOGGED
    return section("agreement", title, told, table("Agreement of candidate and champion", columns, rows, numbers=1), none)


# --- Sections of the reviewer's report about the decision and the quality: gates, changes, differences, slices.


_COUNTED = {
    "pass": "passed",
    "fail": "failed",
    "not_decidable": "could not be decided",
    "first_release": "need a champion",
    "off": "are switched off",
}
_ORDER = ("fail", "not_decidable", "first_release", "pass", "off")
_NAME = 80  # characters of a slice's name, which may come from the data
_CHANGE = 600  # characters of a change that are shown; the configuration stands at the end of the page
_READINGS: dict[str, Cell] = {"better": ("good", "better"), "worse": ("bad", "worse"), "open": "not told apart"}


def banner(dossier: Dossier) -> Markup:
    """The verdict in words, with what makes it worth less than it seems, and what is open."""
    decision = dossier.manifest.decision
    style, word = STATUS_WORDS[decision.verdict]
    first = first_line(f"Verdict: {word}", dossier.evaluation.summary)
    counts = Counter[str](gate.status for gate in decision.gates)
    counted = ", ".join(f"{counts[status]} {words}" for status, words in _COUNTED.items() if counts[status])
    lines = [f"Of {len(decision.gates)} gates {counted}."]
    lines += [f"Gate {_gate_name(gate)}: {gate.mark}" for gate in decision.gates if gate.mark]
    lines += ["This is a first release: there is no champion to compare with, a person has to decide."] if decision.first_release else []
    opened = [foreign(f"{STATUS_WORDS[gate.status][1]}: {_gate_name(gate)}", 200) for gate in decision.open_gates()]
    return piece(PIECES, "banner", style, first, lines, opened)


def gates_section(dossier: Dossier) -> Markup:
    """Every gate with its reason, and the policy it was decided by."""
    decision = dossier.manifest.decision
    rows = [_gate_row(gate) for gate in sorted(decision.gates, key=lambda gate: _ORDER.index(gate.status))]
    columns = ("Gate", "Status", "Slice", "Reason", "Measured", "Threshold", "Queries", "Power")
    policy = f"Policy {decision.policy_version or 'without a version'}, digest {decision.policy_digest or 'not recorded'}."
    return section("gates", "Gates", table("All gates of the policy", columns, rows, numbers=4), policy)


def _gate_row(gate: GateResult) -> list[Cell]:
    value, threshold = _told_apart(gate.value, gate.threshold)
    queries, power = "" if gate.queries is None else f"{gate.queries:,}", share(gate.power)
    return [
        gate_words(gate),
        STATUS_WORDS[gate.status],
        foreign(gate.slice or "", _NAME),
        ("words", gate.told),
        value,
        threshold,
        queries,
        power,
    ]


def _told_apart(value: float | None, threshold: float | None) -> tuple[str, str]:
    """Both with four digits that count, and more where another value would read as the threshold."""
    for digits in range(4, 12):
        told = tuple("" if found is None else f"{found:.{digits}g}" for found in (value, threshold))
        if value == threshold or told[0] != told[1]:
            break
    return told[0], told[1]


def _gate_name(gate: GateResult) -> str:
    return gate_words(gate) + (f" ({gate.slice})" if gate.slice else "")


def changes_section(dossier: Dossier) -> Markup:
    """What is different from the champion."""
    notes = bullets([foreign(note, _CHANGE) for note in dossier.notes])
    if dossier.champion is None:
        return section("changes", "What changed", notes, "This is a first release, so there is nothing before it.")
    found = changes_between(dossier.manifest, dossier.champion.manifest)
    blocks = [block for name, lines in found.subjects().items() if lines for block in (heading(name), _subject(lines))]
    same = [name.lower() for name, lines in found.subjects().items() if not lines]
    unchanged = f"Unchanged: {', '.join(same)}." if same else ""
    return section("changes", f"What changed since the champion, release/{dossier.champion.version}", notes, *blocks, unchanged)


def _subject(lines: Sequence[str]) -> Markup:
    listed = bullets([foreign(line, _CHANGE) for line in lines])
    return listed if len(lines) <= 20 else details(f"{len(lines)} differences", listed)


def changes_of(dossier: Dossier) -> ChangesSinceChampion | None:
    """The differences from the champion; None for a first release."""
    return changes_between(dossier.manifest, dossier.champion.manifest) if dossier.champion else None


def quality_section(dossier: Dossier) -> Markup:
    """Levels of every system, differences from champion and baselines with intervals and power, and their plot."""
    rivals = against_champion(dossier)
    main, others = champion_deltas(dossier), [d for pair in baseline_rivals(dossier) for d in deltas(pair, dossier, RETAINED)]
    blocks: list[str] = [_said(dossier, rivals), units_words(dossier), noise_words(dossier)]
    if main:
        blocks += [
            champion_plot(dossier),
            delta_table("Candidate minus champion, all metrics", main, ("Candidate", "Champion")),
            _bounds(dossier),
        ]
    if others:
        told = delta_table("Differences from the baselines", others)
        blocks += [heading("Against the baselines"), baseline_plot(dossier), told, _baseline_bounds(dossier)]
    return section("quality", "Quality against champion and baselines", *blocks, heading("Levels"), _levels(dossier), _setups(dossier))


def champion_deltas(dossier: Dossier) -> list[Delta]:
    """Candidate minus champion in every metric; empty where they cannot be compared."""
    rivals = against_champion(dossier)
    return deltas(rivals, dossier) if rivals else []


def champion_plot(dossier: Dossier) -> Markup:
    """Candidate minus champion in every metric; empty where they cannot be compared."""
    return delta_plot(champion_deltas(dossier), "Candidate minus champion", dossier.policy.margin)


def baseline_plot(dossier: Dossier) -> Markup:
    """The pairs of systems of the candidate's own evaluation, in both metrics that the gates ask for."""
    found = [delta for pair in baseline_rivals(dossier) for delta in deltas(pair, dossier, RETAINED)]
    return delta_plot(found, "Differences from the baselines")


def _bounds(dossier: Dossier) -> str:
    policy = dossier.policy
    return (
        f"The gate looks at one end only, with a confidence of {policy.confidence:.0%}, so its bound lies within the interval shown here. "
        f"Power: the chance that an equal candidate is shown to lose less than {policy.margin:g}. Smallest margin: what could be shown "
        "with a power of 80 %. Behind the queries stands in brackets how many drawn one by one would say as much."
    )


def _baseline_bounds(dossier: Dossier) -> str:
    policy = dossier.policy
    return (
        f"Power here: the chance that a system which is as good as the baseline is shown to lose less than {policy.baseline_margin:g}, the "
        f"margin of the gates against baselines (of others {policy.margin:g})."
    )


def _said(dossier: Dossier, rivals: Rivals | None) -> str:
    if rivals is not None:
        told = (f"Champion: {rivals.source}, {len(rivals.query_ids):,} judged queries.", documents_words(dossier), dossier.compared.missing)
        return " ".join(filter(None, told))
    if dossier.champion is None:
        return "There is no champion to compare with: this is a first release."
    return f"The champion cannot be compared query by query: it was evaluated on other judgements. {dossier.compared.missing}"


def delta_plot(found: Sequence[Delta], title: str, margin: float | None = None) -> Markup:
    """A forest plot; `margin` is the loss of nDCG@10 that the policy allows."""
    if not found:
        return Markup()
    marks = [Mark(_label(d, found), d.difference, d.low, d.high, _note(d), margin if d.metric == METRIC else None) for d in found]
    line = f" Dashed: the loss that the policy allows, {margin:g}." if margin else ""
    told = "; ".join(f"{mark.label} {mark.note}, {TONES[mark.tone].partition(':')[0]}" for mark in marks)
    return forest(marks, PlotText(title, f"{told}.{line}", "difference with its 95 % interval (right of 0: the first is better)"))


def _label(delta: Delta, found: Sequence[Delta]) -> str:
    same = len({d.name for d in found}) == 1
    if same:
        return metric_words(delta.metric)
    metric = f", {metric_words(delta.metric)}" if len({d.metric for d in found}) > 1 else ""
    return shortened(systems_words(delta.name), _NAME - len(metric)) + metric


def _note(delta: Delta) -> str:
    return f"{signed(delta.difference)} {interval_words(delta)}, n = {_queries(delta)}"


def _queries(delta: Delta) -> str:
    """How many, and where they were drawn together how many drawn one by one would say as much."""
    return f"{delta.queries:,}" if delta.effective is None else f"{delta.queries:,} (as {delta.effective:,})"


def delta_table(caption: str, found: Sequence[Delta], systems: tuple[str, str] = ("First", "Second")) -> Markup:
    """Differences between two `systems` with interval, sample size, power and what could have been shown."""
    figures = (*systems, "Difference", "95 % interval", "Queries", "Power", "Smallest margin")
    rows = [_delta_row(delta) for delta in found]
    if len({delta.name for delta in found}) == 1:  # the caption names the systems
        return table(caption, ("Metric", "Reading", *figures), [row[1:] for row in rows], numbers=2)
    first = "Slice" if "=" in found[0].name else "Systems"
    return table(caption, (first, "Metric", "Reading", *figures), rows, numbers=3)


def _delta_row(d: Delta) -> list[Cell]:
    reading: Cell = ("too few queries" if d.queries < FEWEST else "one unit, or few alike") if d.low is None else _READINGS[d.tone]
    means, power = [f"{mean:.3f}" for mean in d.means], [share(d.power), number(d.detectable, 4)]
    named = [foreign(systems_words(d.name), _NAME), metric_words(d.metric)]
    return [*named, reading, *means, signed(d.difference), interval_words(d), _queries(d), *power]


def _setups(dossier: Dossier) -> Markup:
    """Which BM25 and which untrained encoders the candidate was held against."""
    summary = dossier.evaluation.summary
    told = [setup.words for setup in (summary.bm25, *summary.untrained.values(), summary.fusion) if setup]
    return bullets([foreign(f"{words}.", _CHANGE) for words in told])


def _levels(dossier: Dossier) -> Markup:
    summary = dossier.evaluation.summary
    columns = ("System", *(metric_words(metric) for metric in METRICS))
    rows = []
    for name, system in sorted(summary.systems.items(), key=lambda entry: list(SYSTEMS).index(entry[0]) if entry[0] in SYSTEMS else 9):
        cells = [with_interval(system.metrics.get(metric), system.intervals.get(metric)) for metric in METRICS]
        rows.append([SYSTEMS.get(name, name), *cells])
    caption = f"Means over {summary.queries:,} judged queries ({summary.split}), {summary.documents:,} documents, 95 % intervals"
    return table(caption, columns, rows, numbers=1)


def slices_section(dossier: Dossier) -> Markup:
    """Differences in nDCG@10 by slice: against the champion, or where there is none against the teacher."""
    slices, rivals = dossier.evaluation.slices, against_champion(dossier) or _teacher(dossier)
    title = "Slices of the queries"
    if slices is None or not len(slices):
        return section(
            "slices", title, "The evaluation has no slices: it is from an older version, or none is defined in evaluation.slices."
        )
    if rivals is None or METRIC not in rivals.scores:
        return section("slices", title, "There are no two systems that could be compared on the slices.")
    who = _who(rivals)
    found = slice_deltas(rivals, slices, dossier)
    margin = dossier.policy.slice_margin
    power = f"Power: the chance to show that an equal candidate loses less than {margin:g} there. " if margin else ""
    note = f"{power}Slices with fewer than {FEWEST} queries have no interval. Which slices the policy judges stands in the gates."
    told = f"{who}. Slices are defined in evaluation.slices."
    return section("slices", title, told, slices_plot(dossier), delta_table(f"{who}, by slice", found, _names(rivals)), note)


def slices_plot(dossier: Dossier) -> Markup:
    """Differences in nDCG@10 by slice; empty where there are none."""
    slices, rivals = dossier.evaluation.slices, against_champion(dossier) or _teacher(dossier)
    if slices is None or rivals is None or METRIC not in rivals.scores:
        return Markup()
    margin = dossier.policy.slice_margin if dossier.champion else None
    return delta_plot(slice_deltas(rivals, slices, dossier), f"{_who(rivals)}, by slice", margin)


def _who(rivals: Rivals) -> str:
    first, second = _names(rivals)
    return f"{first} minus {second.lower()}, nDCG@10"


def _names(rivals: Rivals) -> tuple[str, str]:
    first, second = (SYSTEMS.get(name, name) for name in (rivals.first, rivals.second))
    return first.capitalize(), second.capitalize()


def _teacher(dossier: Dossier) -> Rivals | None:
    return next((pair for pair in baseline_rivals(dossier) if (pair.first, pair.second) == ("student", "teacher")), None)
