"""What a reviewer has to know first: what is worse than in the champion, what is better, and the few figures that say most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from components.evaluation.comparison import JUDGED, LOGGED, UNLABELLED, Agreement
from components.evaluation.metrics import RETAINED
from components.evidence.dossier import Dossier
from components.evidence.html import PIECES, section
from components.evidence.labels import interval_words, metric_words, signed, systems_words
from components.evidence.numbers import METRIC, Delta, Tone, against_champion, baseline_rivals, deltas, slice_deltas, tally
from components.templates import piece

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
    """What is worse and what is better, as sentences, and of how many slices that was asked."""

    worse: tuple[str, ...]
    better: tuple[str, ...]
    slices: int


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
    return Moved(tuple(worse), tuple(better), sum(part.low is not None for part in parts))


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
