"""The report as text for a terminal: every figure with its interval and the number of queries."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from components.evaluation.metrics import METRICS, RETAINED, metric_words
from components.evaluation.plain_words import DEV, split_mark
from components.evaluation.report import AnnSummary, Comparison, EncoderSpeed, ExtraSummary, SpeedSummary, Summary

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
    return "\n".join(line for line in (heading, split_mark(summary.split), own) if line)


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
    faster = "" if speed.speed_up is None else f"student: {speed.speed_up:.1f} times the teacher's queries per second; "
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
