"""Names and figures of the evidence as people read them, the same in the report and in the description."""

from __future__ import annotations

from components.promotion.decision import GateResult
from components.promotion.evidence_numbers import Delta

STATUS_WORDS = {
    "pass": ("good", "\u2714 pass"),
    "fail": ("bad", "\u2718 FAIL"),
    "not_decidable": ("warn", "\u26a0 not decidable"),
    "first_release": ("warn", "\u26a0 first release"),
    "off": ("", "off"),
}
SYSTEMS = {
    "bm25": "BM25",
    "student_untrained": "untrained encoder",
    "student_cut": "untrained encoder, in the student's form",
    "teacher": "teacher",
    "student": "candidate (student)",
}
_METRICS = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}


def release_words(release_type: str) -> str:
    """`An index-refresh release`."""
    return f"{'An' if release_type[0] in 'aeiou' else 'A'} {release_type} release"


def gate_words(gate: GateResult) -> str:
    """A gate's name for people, without the slice that stands beside it."""
    return gate.name.partition("[")[0].replace("_", " ")


def systems_words(name: str) -> str:
    """`student - bm25` for people."""
    return " - ".join(SYSTEMS.get(part, part) for part in name.split(" - "))


def metric_words(name: str) -> str:
    """`ndcg@10` for people."""
    return _METRICS.get(name, name)


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` decimals; empty for None."""
    return "" if value is None else f"{value:,.{digits}f}"


def signed(value: float) -> str:
    """A difference with its sign and four decimals; one that rounds to 0 has no sign."""
    rounded = round(value, 4)
    return f"{rounded:+.4f}" if rounded else "0.0000"


def share(value: float | None) -> str:
    """A share as a percentage; empty for None."""
    return "" if value is None else f"{value:.0%}"


def interval_words(delta: Delta) -> str:
    """The ends of a difference's interval in brackets."""
    return "no interval" if delta.low is None or delta.high is None else f"[{signed(delta.low)}, {signed(delta.high)}]"


def with_interval(value: float | None, ends: tuple[float, float] | None) -> str:
    """A value with the ends of its interval in brackets."""
    if value is None:
        return "missing"
    return f"{value:.3f}" if ends is None else f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def share_with_interval(value: float | None, ends: tuple[float, float] | None) -> str:
    """A share in per cent, one decimal, with the ends of its interval in brackets."""
    if value is None:
        return "missing"
    return f"{value:.1%}" if ends is None else f"{value:.1%} [{ends[0]:.1%}, {ends[1]:.1%}]"
