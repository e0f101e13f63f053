"""Words of the reviewer's report, and the pieces of HTML that its sections are made of."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from components.distillation.config import HELD_OUT_TITLES
from components.evaluation.report import Summary
from components.evaluation.table import split_mark, teacher_mark
from components.evidence.dossier import Delta, Dossier
from components.gates.decision import GateResult
from components.release.manifest import ReleaseManifest
from components.release.training_noise import words_on
from components.templates import piece

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
    "student_fused": "candidate fused with BM25",
}


def release_words(release_type: str) -> str:
    """`An index-refresh release`."""
    return f"{'An' if release_type[0] in 'aeiou' else 'A'} {release_type} release"


def units_words(dossier: Dossier) -> str:
    """Which queries were drawn together, and what that makes of their number."""
    found = dossier.evaluation.summary.units
    return found.words if found else "Every query counts as drawn by itself: this evaluation is from before units of queries were kept."


def noise_words(dossier: Dossier) -> str:
    """How far another seed might have moved what is compared, or that nobody knows."""
    return words_on(dossier.noise, dossier.manifest.release_type)


def first_line(verdict: str, summary: Summary) -> str:
    """The verdict, and in the same line what makes it worth less: another split than test, a teacher that is worse than doing nothing."""
    marks = [mark for mark in (split_mark(summary.split), teacher_mark(summary)) if mark]
    return " ".join([f"{verdict}.", *marks]) if marks else verdict


def held_out_titles(manifest: ReleaseManifest) -> str:
    """How many documents that only held-out queries ask for gave the student their titles as training queries; empty for none."""
    student = next((node for node in manifest.lineage if node.digest == manifest.pins.query_encoder.digest), None)
    count = student.counts.get(HELD_OUT_TITLES, 0) if student else 0
    if not count:
        return ""
    return (
        f"The titles of {count:,} documents that no train query asks for, but a held-out one does, were training queries of the student: "
        "these documents are not unseen (distillation.refine_titles: train_documents leaves them out)."
    )


def gate_words(gate: GateResult) -> str:
    """A gate's name for people, without the slice that stands beside it."""
    return gate.name.partition("[")[0].replace("_", " ")


def systems_words(name: str) -> str:
    """`student - bm25` for people."""
    return " - ".join(SYSTEMS.get(part, part) for part in name.split(" - "))


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


# --- Pieces of the reviewer's report: sections, tables and lists of facts, everything escaped unless it was made here.


PIECES = "evidence/pieces.html.j2"
Cell = str | tuple[str, str]  # the text, or its class (good, bad, warn, words) and the text


def section(anchor: str, title: str, *blocks: str) -> Markup:
    """A heading that folds its blocks; blocks that are plain text become paragraphs, empty ones are left out."""
    return piece(PIECES, "section", anchor, title, blocks)


def foreign(text: str, most: int) -> Markup:
    """Text from the data: cut, and kept from turning the direction in which the words around it are read."""
    return piece(PIECES, "foreign", text, most)


def paragraph(text: str) -> Markup:
    """A paragraph of plain text."""
    return piece(PIECES, "paragraph", text)


def heading(text: str) -> Markup:
    """A heading within a section."""
    return piece(PIECES, "heading", text)


def bullets(items: Sequence[str]) -> Markup:
    """A list of plain texts; nothing where there are none."""
    return piece(PIECES, "bullets", items) if items else Markup()


def details(summary: str, inner: Markup, opened: bool = False) -> Markup:
    """A block that opens on a click, without a script."""
    return piece(PIECES, "details", summary, inner, opened)


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], numbers: int | None = None) -> Markup:
    """A table that scrolls by itself when it is wide. The first column names the row; columns from `numbers` on stand right."""
    return piece(PIECES, "table", caption, columns, rows, len(columns) if numbers is None else numbers)
