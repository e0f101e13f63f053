"""What an evaluation says to people: its table, a mark on a split that decides nothing, and in plain words worth, gain and cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from components.evaluation.metrics import METRICS, RETAINED, metric_words
from components.evaluation.report import AnnSummary, Comparison, EncoderSpeed, ExtraSummary, SpeedSummary, Summary
from components.evaluation.units import Units, effective_queries

TEST, DEV = "test", "dev"
CHOSEN_ON_DEV = "Checkpoints were chosen on it, so its figures are too good."
UNTRAINED = "student_untrained"
_RIVALS = {"bm25": "BM25", UNTRAINED: "the encoder as it was downloaded"}


def split_mark(split: str) -> str:
    """A warning for every split but test; empty for test."""
    if split == TEST:
        return ""
    chosen = CHOSEN_ON_DEV if split == DEV else "It is not the split 'test'."
    return f"NOT MEASURED ON TEST but on the split '{split}'. {chosen}"


def units_mark(summary: Summary) -> str:
    """A warning where `evaluation.query_groups` takes apart queries that the data holds together; empty where it takes none."""
    every = [("", summary.units), *((f" of '{split}'", extra.units) for split, extra in summary.extra.items())]
    told = [f"{u.units:,} units{of}, of which the data makes {u.taken_apart:,}" for of, u in every if u and u.taken_apart]
    if not told:
        return ""
    return (
        f"QUERIES THAT BELONG TOGETHER ARE TAKEN APART, as evaluation.query_groups says: {'; '.join(told)}. Intervals are narrower than "
        "the data allows."
    )


def teacher_mark(summary: Summary) -> str:
    """That the teacher is worse than doing nothing, in a metric in which it lies below the untrained encoder; empty where it does in none.

    Where the interval is known and holds 0 it says that this may be chance.
    """
    worse: list[str] = []
    chance: list[str] = []
    for metric in RETAINED:
        found = difference(summary, "teacher", UNTRAINED, metric)
        if found is not None and found[0] < 0:
            (worse if found[2] is not None and found[2] < 0 else chance).append(f"{metric_words(metric)} {_signed(found)}")
    if worse:
        return f"The teacher is worse than doing nothing: {', '.join([*worse, *chance])} against {_RIVALS[UNTRAINED]}."
    if chance:
        return f"The teacher lies below doing nothing, which may be chance: {', '.join(chance)} against {_RIVALS[UNTRAINED]}."
    return ""


def told_units(units: Units, effects: dict[str, float]) -> str:
    """One or two sentences: how many units, by which rule, and for each metric what they are worth."""
    queries = len(units.query_ids)
    if units.count == 1:
        return f"All {queries:,} queries are one unit ({units.rule}), so no interval can be given."
    if units.count == queries:
        return f"{queries:,} queries, each a unit of its own: {units.rule}."
    worth = ", ".join(f"{effective_queries(queries, found):,} by {metric} (design effect {found:.1f})" for metric, found in effects.items())
    told = f"{queries:,} queries in {units.count:,} units of up to {units.largest:,}: {units.rule}."
    return f"{told} They say as much as independent queries: {worth}." if worth else told


Difference = tuple[float, float | None, float | None]


def difference(summary: Summary, system: str, baseline: str, metric: str) -> Difference | None:
    """Mean of one system minus another's and the ends of its interval (None: not measured); None where a mean is missing."""
    for found in summary.comparisons:
        if (found.system, found.baseline, found.metric) == (system, baseline, metric):
            return found.difference, found.low, found.high
    means = [summary.systems[name].metrics.get(metric) if name in summary.systems else None for name in (system, baseline)]
    return None if means[0] is None or means[1] is None else (means[0] - means[1], None, None)


def gain_sentence(summary: Summary, about_trainings: str = "") -> str:
    """What was gained over BM25 and over the downloaded encoder in both metrics with their intervals, and whether the teacher lost.

    What makes these figures worth less, as another split than test, stands before it.
    `about_trainings`: what the intervals, which are over the queries of one training, do not hold.
    """
    told = [(words, _changes(summary, rival)) for rival, words in _RIVALS.items()]
    parts = [f"against {words} {'it' if place else 'the new search'} {found}" for place, (words, found) in enumerate(told) if found]
    if not parts:
        return "What was gained over BM25 and over the encoder as it was downloaded was not measured."
    lost = teacher_mark(summary).rstrip(".")
    parts += [lost[0].lower() + lost[1:]] if lost else []
    whole = "; ".join(parts)
    unsaid = f"; {about_trainings}" if about_trainings else ""
    marks = [mark for mark in (split_mark(summary.split), units_mark(summary)) if mark]
    sentence = f"{whole[0].upper()}{whole[1:]} (in brackets {summary.confidence:.0%} intervals over the queries{unsaid})."
    return " ".join([*marks, sentence])


def fusion_sentence(summary: Summary) -> str:
    """What the search gains over BM25 and over the downloaded encoder when it is fused with BM25; empty where that was not measured."""
    told = [(words, _changes(summary, rival, "student_fused")) for rival, words in _RIVALS.items()]
    parts = [(f"against {words}", found) for words, found in told if found]
    return f"Fused with BM25, {'; '.join(f'{words}, it {found}' for words, found in parts)}." if parts else ""


def _changes(summary: Summary, rival: str, system: str = "student") -> str:
    """`gains 0.139 [0.110 0.170] in nDCG@10 and loses ... in recall@50`; empty where nothing was measured."""
    found = [(metric, difference(summary, system, rival, metric)) for metric in RETAINED]
    return " and ".join(_change(value, metric_words(metric)) for metric, value in found if value is not None)


def _change(found: Difference, metric: str) -> str:
    """Gain, loss, or neither where the interval holds 0; a difference without an interval is one, and may be chance."""
    value, low, high = found
    if low is None or high is None:
        return f"differs by {value:+.3f} in {metric} (no interval, so this may be chance)"
    if low <= 0 <= high:
        return f"shows no difference in {metric} ({_signed(found)})"
    if low > 0:
        return f"gains {value:.3f} [{low:.3f} {high:.3f}] in {metric}"
    return f"loses {-value:.3f} [{-high:.3f} {-low:.3f}] in {metric}"


def _signed(found: Difference) -> str:
    value, low, high = found
    return f"{value:+.3f} without an interval" if low is None or high is None else f"{value:+.3f} [{low:+.3f} {high:+.3f}]"


def cost_sentence(summary: Summary, cost: Mapping[str, float]) -> str:
    """Minutes, queries per second and megabytes; `cost` maps seconds, encoder_bytes and index_bytes to what is known of them."""
    parts = [f"took {cost['seconds'] / 60:,.1f} minutes of computing to build"] if cost.get("seconds") else []
    if summary.speed is not None:
        speed = summary.speed.student
        parts.append(f"encodes {speed.qps:,.0f} queries a second (batches of {speed.batch_size})")
    sizes = {"the encoder": cost.get("encoder_bytes"), "the index": cost.get("index_bytes")}
    stored = [f"{count / 1e6:,.{1 if count >= 1e6 else 3}f} MB for {what}" for what, count in sizes.items() if count]
    parts += [f"takes {' and '.join(stored)}"] if stored else []
    return f"It {', '.join(parts)}." if parts else "What it costs was not measured."


# --- The report as text for a terminal: every figure with its interval and the number of queries.


_TITLES = {
    "bm25": "BM25",
    "student_untrained": "untrained",
    "student_cut": "untrained, cut",
    "teacher": "teacher",
    "student": "student",
    "student_fused": "student + BM25",
}
_WIDTH = 80


def render_table(summary: Summary) -> str:
    """Plain text, about 80 columns for four systems, without a line break at the end."""
    blocks = [
        _heading(summary),
        _quality(summary),
        _comparisons(summary),
        _retention(summary),
        render_shift(summary),
        _ann(summary.ann),
        _speed(summary.speed),
        _notes(summary),
    ]
    return "\n\n".join(block for block in blocks if block)


def _heading(summary: Summary) -> str:
    heading = (
        f"{summary.queries:,} judged queries ({summary.split}), {summary.documents:,} documents; "
        f"in brackets: {summary.confidence:.0%} interval"
    )
    own = "" if summary.own_documents is None else summary.own_documents.words
    return "\n".join(line for line in (heading, split_mark(summary.split), *textwrap.wrap(units_mark(summary), _WIDTH), own) if line)


def _units(summary: Summary | ExtraSummary) -> list[str]:
    """Which queries were drawn together, in lines of a terminal; reports of before say nothing."""
    return textwrap.wrap(summary.units.words, _WIDTH) if summary.units else []


def _quality(summary: Summary) -> str:
    names = _in_order(summary.systems)
    rows = [["", *(_title(name) for name in names)]]
    for metric in METRICS:
        cells = [_cell(s.metrics.get(metric), s.intervals.get(metric)) for s in (summary.systems[name] for name in names)]
        rows.append([metric_words(metric), *cells])
    return _columns(rows)


def _cell(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "missing"
    return _share(value) if interval is None else f"{_share(value)} [{_share(interval[0])} {_share(interval[1])}]"


def _share(value: float) -> str:
    """Four characters: .123 or 1.00."""
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else f"{value:.2f}"


def _comparisons(summary: Summary) -> str:
    chosen = [c for c in summary.comparisons if c.metric in RETAINED]
    rows = [
        [f"{_title(c.system)} - {_title(c.baseline)}", metric_words(c.metric), _difference(c), f"{c.queries:,} queries"] for c in chosen
    ]
    return _columns(rows)


def _difference(c: Comparison) -> str:
    ends = "no interval" if c.low is None or c.high is None else f"[{c.low:+.3f} {c.high:+.3f}]"
    return f"{c.difference:+.3f} {ends}"


def _retention(summary: Summary) -> str:
    return _columns(_retained(summary))


def _retained(summary: Summary | ExtraSummary) -> list[list[str]]:
    rows = []
    for metric, value in sorted(summary.retention.items(), reverse=True):
        ends = summary.retention_intervals.get(metric)
        told = f"[{ends[0]:.1%} {ends[1]:.1%}]" if ends else "no interval"
        rows.append(["student keeps", f"{value:.1%} {told}", f"of the teacher's {metric_words(metric)}"])
    return rows


def render_shift(summary: Summary) -> str:
    """How the student does off the training distribution, and whether its vectors have collapsed; empty when neither was measured."""
    blocks = [_extra(split, found) for split, found in summary.extra.items()]
    return "\n\n".join([*blocks, _health(summary)]).strip()


def _extra(split: str, found: ExtraSummary) -> str:
    """One extra split: the two metrics that retention is measured in, for every system."""
    names = _in_order(found.systems)
    rows = [["", *(_title(name) for name in names)]]
    for metric in RETAINED:
        rows.append(
            [metric_words(metric), *(_cell(found.systems[n].metrics[metric], found.systems[n].intervals.get(metric)) for n in names)]
        )
    heading = f"Extra judgements: {split}, {found.queries:,} judged queries"
    heading += f"\n{found.own_documents.words}" if found.own_documents else ""
    heading = "\n".join([heading, *_units(found)])
    mark = split_mark(split) if split == DEV else ""
    return "\n".join(block for block in (heading, mark, _columns(rows), _columns(_retained(found))) if block)


def _health(summary: Summary) -> str:
    if not summary.health:
        return ""
    head = ["query vectors", "mean cosine", "effective rank", "queries"]
    rows = [[name, f"{h.mean_cosine:.3f}", f"{h.effective_rank:.1f}", f"{h.queries:,}"] for name, h in sorted(summary.health.items())]
    return _columns([head, *rows])


def _ann(ann: AnnSummary | None) -> str:
    if ann is None:
        return ""
    rows = [[metric_words(metric), _cell(value, ann.intervals.get(metric))] for metric, value in sorted(ann.recall.items())]
    ends = ann.ndcg_lost_interval
    rows.append(["nDCG@10 lost", f"{ann.ndcg_lost:+.3f} " + (f"[{ends[0]:+.3f} {ends[1]:+.3f}]" if ends else "no interval")])
    return "Index against exact search on its own vectors\n" + _columns([[*row, f"{ann.queries:,} queries"] for row in rows])


def _speed(speed: SpeedSummary | None) -> str:
    if speed is None:
        return ""
    size = speed.student.batch_size
    head = ["", "p50, batch 1", "p95, batch 1", "queries timed", f"queries/s, batch {size}"]
    rows = [_speed_row(name, timed) for name, timed in (("teacher", speed.teacher), ("student", speed.student)) if timed is not None]
    faster = "" if speed.speed_up is None else f"student: {speed.speed_up:.2f} times the teacher's queries per second; "
    return "\n".join([_columns([head, *rows]), f"{faster}index search p50 {speed.search_p50_ms:.2f} ms", *_work(speed), *_answers(speed)])


def _answers(speed: SpeedSummary) -> list[str]:
    """What a whole answer takes with and without BM25, where both were timed."""
    told = [f"{_title(name)} {found.qps:,.0f} queries/s, p50 {found.p50_ms:.1f} ms" for name, found in speed.answers.items()]
    return [f"whole answers: {'; '.join(told)}"] if told else []


def _work(speed: SpeedSummary) -> list[str]:
    """What the encoders do for a query, where it is known."""
    told = [
        f"{name} {one.tokens_per_second:,.0f} tokens/s, {one.flops_per_query / 1e6:,.0f} MFLOP a query"
        for name, one in (("teacher", speed.teacher), ("student", speed.student))
        if one is not None and one.tokens_per_second is not None and one.flops_per_query is not None
    ]
    return [f"without padding: {'; '.join(told)}"] if told else []


def _speed_row(name: str, speed: EncoderSpeed) -> list[str]:
    return [name, f"{speed.p50_ms:.1f} ms", f"{speed.p95_ms:.1f} ms", f"{speed.queries:,}", f"{speed.qps:,.0f}"]


def _notes(summary: Summary) -> str:
    setups = [setup for setup in (summary.bm25, *summary.untrained.values(), summary.fusion) if setup]
    return "\n".join([*(f"{setup.words}." for setup in setups), *summary.absent.values(), *_units(summary)])


def _in_order(systems: Mapping[str, object]) -> list[str]:
    # A report that was read back has its systems in the order of the alphabet.
    return [name for name in _TITLES if name in systems] + [name for name in systems if name not in _TITLES]


def _title(name: str) -> str:
    return _TITLES.get(name, name)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, the others to the right, two spaces between."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
