"""The section of the reviewer's report about the distillation: what the student keeps of its teacher, and how it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from markupsafe import Markup

from components.evaluation.report import ExtraSummary, Summary
from components.evidence.axes import Words
from components.evidence.dossier import Dossier
from components.evidence.html import Cell, foreign, heading, section, table
from components.evidence.labels import metric_words, number, share_with_interval
from components.evidence.plots import Curve, lines

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
        rows += _retained_on(f"{split} (off the training distribution)", found, champion.extra.get(split) if champion else None)
    return rows


def _retained_on(queries: str, found: Summary | ExtraSummary, former: Summary | ExtraSummary | None) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for metric, value in sorted(found.retention.items()):
        own = share_with_interval(value, found.retention_intervals.get(metric))
        before = share_with_interval(former.retention.get(metric), former.retention_intervals.get(metric)) if former else "none"
        levels = [number(found.systems[who].metrics.get(metric)) if who in found.systems else "" for who in ("student", "teacher")]
        rows.append([foreign(queries, 80), metric_words(metric), own, before, *levels, f"{found.queries:,}"])
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
    return lines([Curve("loss", finite)], Words("Training of the towers", told, "step", "loss"))


def student_plot(dossier: Dossier) -> Markup:
    """What the student reached on dev after each epoch; empty without its log."""
    epochs = dossier.making.student_epochs or ()
    if not epochs:
        return Markup()
    curves = [Curve(_title(name), [float(e[name]) for e in epochs]) for name in _CURVES if all(name in e for e in epochs)]
    told = "; ".join(f"{c.label} from {c.values[0]:.3f} to {c.values[-1]:.3f}" for c in curves)
    kept = _kept(dossier)
    told += f"; kept: {_epoch_name(epochs[kept])}" if kept is not None else ""
    words = Words("Training of the student, on dev queries", told, "epoch", "value on dev queries")
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
