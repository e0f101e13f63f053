"""What an evaluation says to somebody who reads no tables: a mark on a split that decides nothing, the teacher's worth, gain and cost."""

from __future__ import annotations

from collections.abc import Mapping

from components.evaluation.metrics import RETAINED, metric_words
from components.evaluation.report import Summary

TEST, DEV = "test", "dev"
UNTRAINED = "student_untrained"
_RIVALS = {"bm25": "BM25", UNTRAINED: "the encoder as it was downloaded"}


def split_mark(split: str) -> str:
    """A warning for every split but test; empty for test."""
    if split == TEST:
        return ""
    chosen = "Checkpoints were chosen on it, so its figures are too good." if split == DEV else "It is not the split 'test'."
    return f"NOT MEASURED ON TEST but on the split '{split}'. {chosen}"


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


Difference = tuple[float, float | None, float | None]


def difference(summary: Summary, system: str, baseline: str, metric: str) -> Difference | None:
    """Mean of one system minus another's and the ends of its interval (None: not measured); None where a mean is missing."""
    for found in summary.comparisons:
        if (found.system, found.baseline, found.metric) == (system, baseline, metric):
            return found.difference, found.low, found.high
    means = [summary.systems[name].metrics.get(metric) if name in summary.systems else None for name in (system, baseline)]
    return None if means[0] is None or means[1] is None else (means[0] - means[1], None, None)


def gain_sentence(summary: Summary) -> str:
    """What was gained over BM25 and over the downloaded encoder in both metrics with their intervals, and whether the teacher lost."""
    told = [(words, _changes(summary, rival)) for rival, words in _RIVALS.items()]
    parts = [f"against {words} {'it' if place else 'the new search'} {found}" for place, (words, found) in enumerate(told) if found]
    if not parts:
        return "What was gained over BM25 and over the encoder as it was downloaded was not measured."
    lost = teacher_mark(summary).rstrip(".")
    parts += [lost[0].lower() + lost[1:]] if lost else []
    whole = "; ".join(parts)
    return f"{whole[0].upper()}{whole[1:]} (in brackets {summary.confidence:.0%} intervals)."


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
    """Gain, loss, or neither where the interval holds 0 or is not known."""
    value, low, high = found
    if low is None or high is None or low <= 0 <= high:
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
