"""Sections of the report on training and running: curves, latency, sizes, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from markupsafe import Markup

from components.data.validation_report import contract_blocks
from components.evaluation.champion_comparison import CHAMPION
from components.evaluation.metrics import metric_words
from components.evaluation.report import EncoderSpeed, ExtraSummary, Summary
from components.evaluation.summarize import CONFIDENCE
from components.evaluation.table import CHOSEN_ON_DEV, DEV
from components.evaluation.units import mean_interval
from components.evidence.dossier import Dossier, StepCost
from components.evidence.labels import (
    SYSTEMS,
    Cell,
    Curve,
    PlotText,
    Point,
    foreign,
    heading,
    lines,
    number,
    scatter,
    section,
    share_with_interval,
    table,
    with_interval,
)

_NOT_RETAINED = "No retention was measured: the teacher found nothing, or there is no teacher."
_CURVES = ("ndcg@10", "recall@50", "mean_cosine")


def retention_section(dossier: Dossier) -> Markup:
    """What the student keeps of the teacher on and off the training distribution, whether it collapsed, and how it was trained."""
    told = "Share of the teacher's value that the student keeps, with 95 % intervals; the champion's beside it, as it was released."
    columns = ("Queries", "Metric", "Candidate keeps", "Champion keeps", "Candidate", "Teacher", "Number of queries")
    rows = _retained(dossier)
    blocks: list[str] = [told, table("Retention", columns, rows, numbers=2)] if rows else [_NOT_RETAINED]
    if not dossier.evaluation.summary.extra:
        blocks.append("Off the training distribution nothing was measured: evaluation.extra_splits names no further judged queries.")
    return section("retention", "Distillation", *blocks, _health(dossier), *_curves(dossier))


def _retained(dossier: Dossier) -> list[list[Cell]]:
    summary, champion = dossier.evaluation.summary, dossier.champion.evaluation.summary if dossier.champion else None
    rows = _retained_on(f"{summary.split} (training distribution)", summary, champion)
    for split, found in summary.extra.items():
        off = CHOSEN_ON_DEV.rstrip(".").lower() if split == DEV else "off the training distribution"
        rows += _retained_on(f"{split} ({off})", found, champion.extra.get(split) if champion else None)
    return rows


def _retained_on(queries: str, found: Summary | ExtraSummary, former: Summary | ExtraSummary | None) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for metric, value in sorted(found.retention.items()):
        own = share_with_interval(value, found.retention_intervals.get(metric))
        before = share_with_interval(former.retention.get(metric), former.retention_intervals.get(metric)) if former else "none"
        levels = [number(found.systems[who].metrics.get(metric)) if who in found.systems else "" for who in ("student", "teacher")]
        rows.append([foreign(queries, 120), metric_words(metric), own, before, *levels, f"{found.queries:,}"])
    return rows


def _health(dossier: Dossier) -> Markup:
    health = dossier.evaluation.summary.health
    rows = [[n, f"{h.mean_cosine:.3f}", f"{h.effective_rank:.1f}", f"{h.queries:,}"] for n, h in sorted(health.items())]
    caption = "Spread of the query vectors: a mean cosine far above the teacher's, or a far lower rank, is a sign of collapse"
    return table(caption, ("Encoder", "Mean cosine", "Effective rank", "Queries"), rows, numbers=1) if rows else Markup()


def _curves(dossier: Dossier) -> list[str]:
    towers, student = towers_plot(dossier), student_plot(dossier)
    epochs = _epochs_table(dossier.making.student_epochs or (), _kept(dossier)) if student else Markup()
    return [
        heading("Training curves"),
        towers or "The towers were not trained in this run; their curve stands in the report of the release that they came from.",
        student or "The student's training log is not there, so it has no curve.",
        epochs,
    ]


def towers_plot(dossier: Dossier) -> Markup:
    """The loss of every step of stage 1; empty where the towers were not trained in this run."""
    finite = [loss for loss in dossier.making.tower_losses or () if isfinite(loss)]
    if not finite:
        return Markup()
    told = f"The loss over {len(finite):,} steps, from {finite[0]:.3f} to {finite[-1]:.3f}."
    return lines([Curve("loss", finite)], PlotText("Training of the towers", told, "step", "loss"))


def student_plot(dossier: Dossier) -> Markup:
    """What the student reached on dev after each epoch; empty without its log."""
    epochs = dossier.making.student_epochs or ()
    if not epochs:
        return Markup()
    curves = [Curve(_title(name), [float(e[name]) for e in epochs]) for name in _CURVES if all(name in e for e in epochs)]
    told = "; ".join(f"{c.label} from {c.values[0]:.3f} to {c.values[-1]:.3f}" for c in curves)
    kept = _kept(dossier)
    told += f"; kept: {_epoch_name(epochs[kept])}" if kept is not None else ""
    words = PlotText("Training of the student, on dev queries", told, "epoch", "value on dev queries")
    return lines(curves, words, [_epoch_name(e) for e in epochs], kept)


def _epochs_table(epochs: Sequence[Mapping[str, Any]], kept: int | None) -> Markup:
    rows: list[list[Cell]] = [
        [
            _epoch_name(e) + (" (kept)" if i == kept else ""),
            f"{float(e['loss']):.4f}",
            *(f"{float(e[c]):.3f}" if c in e else "" for c in _CURVES),
        ]
        for i, e in enumerate(epochs)
    ]
    caption = "Epochs of the student; losses of different phases are different quantities"
    return table(caption, ("Epoch", "Loss", *map(_title, _CURVES)), rows, numbers=1)


def _kept(dossier: Dossier) -> int | None:
    """Which epoch's weights the student has; None where that was not recorded."""
    digest = dossier.manifest.pins.query_encoder.digest
    chosen = next((node.attributes.get("chosen") for node in dossier.manifest.lineage if node.digest == digest), None)
    names = [_epoch_name(e) for e in dossier.making.student_epochs or ()]
    return names.index(chosen) if chosen in names else None


def _epoch_name(epoch: Mapping[str, Any]) -> str:
    return f"{epoch.get('phase', '')} {epoch.get('epoch', '')}".strip()


def _title(metric: str) -> str:
    return metric_words(metric).replace("_", " ")


# --- Sections of the reviewer's report about running: latency, size, index against exact, contracts, cost.


_MILLION = 1_000_000
_NO_SPEED = "No speed was measured: the evaluation did not have both teacher and student."


def speed_section(dossier: Dossier) -> Markup:
    """Latency of the whole answer against the champion, of the encoders, sizes, and quality over latency."""
    columns = ("What", "p50, batch 1 (ms)", "p95, batch 1 (ms)", "Queries timed", "Queries/s", "Batch", "Tokens/s", "MFLOP")
    rows = [_speed_row(name, speed) for name, speed in _speeds(dossier)]
    compared, speed = dossier.compared.summary, dossier.evaluation.summary.speed
    told = [f"Index search alone: p50 {speed.search_p50_ms:.2f} ms."] if speed else []
    told += [f"{speed.speed_up:.2f} times the teacher's queries per second."] if speed and speed.speed_up is not None else []
    if compared is not None:
        ratio, faster = compared.candidate.p95_ms / compared.champion.p95_ms, compared.candidate.qps / compared.champion.qps
        told += [f"Candidate over champion, in turns on {compared.machine}: p95 {ratio:.2f}, queries per second {faster:.2f}."]
    else:
        told += [dossier.compared.missing]
    if speed and speed.threads:
        told += [f"Each encoder by its fastest way, {speed.threads} threads. Tokens: without padding. MFLOP: a query's operations."]
    timed = [table("Speed", columns, rows, numbers=1)] if rows else [_NO_SPEED]
    return section("speed", "Latency and size", *timed, *told, latency_plot(dossier), _sizes(dossier))


def _speeds(dossier: Dossier) -> list[tuple[str, EncoderSpeed]]:
    compared, speed = dossier.compared.summary, dossier.evaluation.summary.speed
    depth = compared.answer_depth if compared else 0
    both = [(f"{who}: whole answer, {depth} documents", getattr(compared, who)) for who in ("candidate", "champion")] if compared else []
    timed = [("candidate (student): encoding only", speed.student), ("teacher: encoding only", speed.teacher)] if speed else []
    named = {"student": "candidate (student): whole answer", "student_fused": "candidate fused with BM25: whole answer"}
    timed += [(named.get(who, who), found) for who, found in speed.answers.items()] if speed else []
    return both + [(name, found) for name, found in timed if found is not None]


def _speed_row(name: str, speed: EncoderSpeed) -> list[Cell]:
    times = [f"{speed.p50_ms:.2f}", f"{speed.p95_ms:.2f}", f"{speed.queries:,}", f"{speed.qps:,.0f}", str(speed.batch_size)]
    tokens = "" if speed.tokens_per_second is None else f"{speed.tokens_per_second:,.0f}"
    return [name, *times, tokens, "" if speed.flops_per_query is None else f"{speed.flops_per_query / 1e6:,.0f}"]


def latency_plot(dossier: Dossier) -> Markup:
    """recall@50 over the time of an answer; empty where no time was taken."""
    points = _points(dossier)
    if not points:
        return Markup()
    told = "; ".join(f"{p.label}: recall@50 {p.y:.3f} at {p.x:.2f} ms" for p in points)
    return scatter(points, PlotText("Recall over latency", told, "p50 of a whole answer in milliseconds (logarithmic)", "recall@50"))


def _points(dossier: Dossier) -> list[Point]:
    """Teacher as evaluated (encoding and search added); student and champion too, or as they answered in one run.

    Then the teacher's point is of another run, and of a search for as many documents as were evaluated, which its name says.
    """
    summary, compared = dossier.evaluation.summary, dossier.compared.summary
    levels = {name: (s.metrics.get("recall@50"), s.intervals.get("recall@50")) for name, s in summary.systems.items()}
    times: dict[str, tuple[str, float]] = {}
    if summary.speed is not None:
        search = summary.speed.search_p50_ms
        found = {"teacher": summary.speed.teacher, "student": summary.speed.student}
        times = {name: (SYSTEMS[name], timed.p50_ms + search) for name, timed in found.items() if timed is not None}
    if compared is not None:
        if "teacher" in times:
            times["teacher"] = (f"teacher (another run, {summary.depth} documents)", times["teacher"][1])
        times["student"] = (SYSTEMS["student"], compared.candidate.p50_ms)
        times[CHAMPION] = (f"champion (release/{compared.baseline_version})", compared.champion.p50_ms)
        levels |= _champion_level(dossier)
    named = [(words, time, levels[name]) for name, (words, time) in times.items() if name in levels]
    return [Point(words, time, y, *(ends or (None, None))) for words, time, (y, ends) in named if y is not None and time > 0]


def _champion_level(dossier: Dossier) -> dict[str, tuple[float | None, tuple[float, float] | None]]:
    """The champion's recall@50 with its interval, from the run that asked both."""
    if (tables := dossier.compared.tables) is None:
        return {}
    rows = tables.per_query[(tables.per_query["system"] == CHAMPION) & (tables.per_query["metric"] == "recall@50")]
    found = mean_interval(rows["value"].to_numpy(), confidence=CONFIDENCE, units=dossier.units_of(rows["query_id"])).share
    return {CHAMPION: (found.difference, found.ends if found.known else None)}


def _sizes(dossier: Dossier) -> Markup:
    compared = dossier.compared.summary
    sizes: Mapping[str, Mapping[str, int]] = compared.sizes if compared and compared.sizes else {"candidate": dossier.making.sizes}
    rows = [[who, _bytes(s.get("encoder")), _bytes(s.get("index")), _count(s.get("documents"))] for who, s in sizes.items() if s]
    return table("Sizes", ("Release", "Query encoder", "Index", "Documents"), rows, numbers=1) if rows else Markup()


def index_section(dossier: Dossier) -> Markup:
    """The index against exact search on the same vectors, which says nothing about the models."""
    title, ann = "Index against exact search", dossier.evaluation.summary.ann
    if ann is None:
        return section("index", title, "It was not measured: the index keeps no vectors, or the report is from an older version.")
    rows = [[metric_words(m), with_interval(value, ann.intervals.get(m))] for m, value in sorted(ann.recall.items(), key=_depth)]
    rows.append(["nDCG@10 lost by the student", with_interval(ann.ndcg_lost, ann.ndcg_lost_interval)])
    caption = f"{ann.queries:,} queries, {ann.documents:,} documents, 95 % intervals"
    told = "How much of what exact search finds on the same vectors the index finds too. A worse model cannot lower it."
    return section("index", title, told, table(caption, ("Measure", "Value"), rows, numbers=1))


def _depth(entry: tuple[str, float]) -> int:
    """The k of `recall@k`."""
    return int(entry[0].partition("@")[2] or 0)


def contracts_section(dossier: Dossier) -> Markup:
    """What the data contracts found."""
    report = dossier.validation
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report.counts.items())
    found = f"{len(report.results)} rules checked: {len(report.errors)} errors, {len(report.warnings)} warnings."
    told = f"{found} Data set {report.dataset}: {counts}."
    return section("contracts", "Data contracts", told, contract_blocks(report))


def cost_section(dossier: Dossier) -> Markup:
    """Seconds of every step, and machine hours per million queries."""
    making = dossier.making
    rows = [_cost_row(cost) for cost in making.costs]
    total = sum(cost.seconds or 0 for cost in making.costs)
    adopted = f"Taken over from earlier releases, and counted there: {', '.join(making.adopted)}." if making.adopted else ""
    serving = [[name, f"{_MILLION / speed.qps / 3600:.2f}"] for name, speed in _speeds(dossier) if speed.qps > 0]
    told = f"{_duration(total)} in all, as far as it was recorded, on {dossier.manifest.provenance.get('platform', 'an unnamed machine')}."
    blocks = (
        [table("Building: the last attempt of each step", ("Step", "Time", "Attempts"), rows, numbers=1), told]
        if rows
        else ["No time was recorded."]
    )
    blocks += [table("Serving a million queries on this machine", ("What", "Machine hours"), serving, numbers=1)] if serving else []
    money = "Hours are not money: scalingnote study cost_benefit puts stated watts and prices on them."
    return section("cost", "Cost", *blocks, adopted, money)


def _cost_row(cost: StepCost) -> list[Cell]:
    return [cost.step.replace("_", " "), "not recorded" if cost.seconds is None else _duration(cost.seconds), str(cost.attempts)]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.2f} MB"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
