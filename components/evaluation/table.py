"""The report as text for a terminal: every figure with its interval and the number of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from components.evaluation.baselines import DESCRIPTION
from components.evaluation.metrics import METRICS, RETAINED
from components.evaluation.report import AnnSummary, Comparison, EncoderSpeed, ExtraSummary, SpeedSummary, Summary

_TITLES = {"bm25": "BM25", "student_untrained": "untrained", "teacher": "teacher", "student": "student"}
_METRIC_TITLES = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}
_SHOWN_METRIC = "ndcg@10"


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
    return heading if summary.own_documents is None else f"{heading}\n{summary.own_documents.words}"


def _quality(summary: Summary) -> str:
    names = _in_order(summary.systems)
    rows = [["", *(_title(name) for name in names)]]
    for metric in METRICS:
        cells = [_cell(s.metrics.get(metric), s.intervals.get(metric)) for s in (summary.systems[name] for name in names)]
        rows.append([_metric(metric), *cells])
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
    chosen = [c for c in summary.comparisons if c.metric == _SHOWN_METRIC]
    rows = [[f"{_title(c.system)} - {_title(c.baseline)}", _metric(c.metric), _difference(c), f"{c.queries:,} queries"] for c in chosen]
    return _columns(rows)


def _difference(c: Comparison) -> str:
    return f"{c.difference:+.3f} [{c.low:+.3f} {c.high:+.3f}]"


def _retention(summary: Summary) -> str:
    return _columns(_retained(summary))


def _retained(summary: Summary | ExtraSummary) -> list[list[str]]:
    rows = []
    for metric, value in sorted(summary.retention.items(), reverse=True):
        low, high = summary.retention_intervals[metric]
        rows.append(["student keeps", f"{value:.1%} [{low:.1%} {high:.1%}]", f"of the teacher's {_metric(metric)}"])
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
        rows.append([_metric(metric), *(_cell(found.systems[n].metrics[metric], found.systems[n].intervals[metric]) for n in names)])
    heading = f"Extra judgements: {split}, {found.queries:,} judged queries"
    heading += f"\n{found.own_documents.words}" if found.own_documents else ""
    return "\n".join(block for block in (heading, _columns(rows), _columns(_retained(found))) if block)


def _health(summary: Summary) -> str:
    if not summary.health:
        return ""
    head = ["query vectors", "mean cosine", "effective rank", "queries"]
    rows = [[name, f"{h.mean_cosine:.3f}", f"{h.effective_rank:.1f}", f"{h.queries:,}"] for name, h in sorted(summary.health.items())]
    return _columns([head, *rows])


def _ann(ann: AnnSummary | None) -> str:
    if ann is None:
        return ""
    rows = [[_metric(metric), _cell(value, ann.intervals[metric])] for metric, value in sorted(ann.recall.items())]
    low, high = ann.ndcg_lost_interval
    rows.append(["nDCG@10 lost", f"{ann.ndcg_lost:+.3f} [{low:+.3f} {high:+.3f}]"])
    return "Index against exact search on its own vectors\n" + _columns([[*row, f"{ann.queries:,} queries"] for row in rows])


def _speed(speed: SpeedSummary | None) -> str:
    if speed is None:
        return ""
    size = speed.student.batch_size
    head = ["", "p50, batch 1", "p95, batch 1", "queries timed", f"queries/s, batch {size}"]
    rows = [_speed_row(name, timed) for name, timed in (("teacher", speed.teacher), ("student", speed.student)) if timed is not None]
    faster = "" if speed.speed_up is None else f"student: {speed.speed_up:.1f} times the teacher's queries per second; "
    return f"{_columns([head, *rows])}\n{faster}index search p50 {speed.search_p50_ms:.2f} ms"


def _speed_row(name: str, speed: EncoderSpeed) -> list[str]:
    return [name, f"{speed.p50_ms:.1f} ms", f"{speed.p95_ms:.1f} ms", f"{speed.queries:,}", f"{speed.qps:,.0f}"]


def _notes(summary: Summary) -> str:
    return "\n".join([*([f"{DESCRIPTION}."] if "bm25" in summary.systems else []), *summary.absent.values()])


def _in_order(systems: Mapping[str, object]) -> list[str]:
    # A report that was read back has its systems in the order of the alphabet.
    return [name for name in _TITLES if name in systems] + [name for name in systems if name not in _TITLES]


def _title(name: str) -> str:
    return _TITLES.get(name, name)


def _metric(name: str) -> str:
    return _METRIC_TITLES.get(name, name)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, the others to the right, two spaces between."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
