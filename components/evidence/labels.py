"""Pieces of the reviewer's report: its words, its HTML, and its plots as SVG.

Each has a title and a description for readers who cannot see it, and says by shape, dash and words what it says by colour. The numbers
stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from markupsafe import Markup

from components.distillation.config import HELD_OUT_TITLES
from components.evaluation.report import Summary
from components.evaluation.table import split_mark, teacher_mark, units_mark
from components.evidence.dossier import Delta, Dossier, Tone, tone_of
from components.gates.decision import GateResult
from components.release.manifest import ReleaseManifest
from components.release.training_noise import words_on
from components.templates import page, piece, plain

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
    """The verdict, and in the same line what makes it worth less.

    That is another split than test, queries that were taken apart, a teacher that is worse than doing nothing.
    """
    marks = [mark for mark in (split_mark(summary.split), units_mark(summary), teacher_mark(summary)) if mark]
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


# --- Plots of the reviewer's report, drawn as SVG by hand: axes, intervals, bars.


WIDTH = 900  # units of the drawing; the page scales it
_HEAD = 34  # the place of the title above it
_OPEN, _CLOSE = '<div class="plot">', "</div>"
Scale = Callable[[float], float]


@dataclass(frozen=True)
class PlotText:
    """What a plot says in words: its title, a description that could stand for it, and what the axes are."""

    title: str
    description: str
    x: str
    y: str = ""


@dataclass(frozen=True)
class Frame:
    """Where the axes stand, in units of the drawing."""

    left: float
    right: float
    top: float
    bottom: float


def drawing(parts: Sequence[str], height: float, words: PlotText) -> Markup:
    """The plot as a block of the page, with its title above and a description for those who cannot see it."""
    title, description = text(words.title), text(words.description)
    return Markup(
        f'{_OPEN}<svg viewBox="0 0 {WIDTH} {height + _HEAD:.0f}" role="img" aria-label="{title}. {description}">'
        f'<title>{title}</title><desc>{description}</desc><text class="title" x="16" y="24">{title}</text>'
        f'<g transform="translate(0 {_HEAD})">{"".join(parts)}</g></svg>{_CLOSE}'
    )


def standalone(plot: Markup) -> str:
    """The same plot as an SVG file that needs no page around it; on paper of its own, as viewers show it on any."""
    svg = str(plot).removeprefix(_OPEN).removesuffix(_CLOSE)
    _, _, width, height = svg.split('"', 2)[1].split()
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
    first, rest = svg.removeprefix("<svg ").split(">", 1)
    style = f"{page('evidence/plots.css.j2')}svg {{ font: 12.5px system-ui, sans-serif; }}"
    return f'<svg {size} {first}><style>{style}</style><rect class="paper" width="100%" height="100%"/>{rest}\n'


def text(words: str) -> str:
    """Words from anywhere, fit for HTML and for XML."""
    return escape(plain(words))


def axis_names(words: PlotText, frame: Frame) -> list[str]:
    """The names of both axes."""
    middle = (frame.top + frame.bottom) / 2
    turned = f'transform="rotate(-90 18 {middle:.0f})"'
    below = f'x="{(frame.left + frame.right) / 2:.0f}" y="{frame.bottom + 38:.0f}"'
    return [
        f'<text class="axis" {below} text-anchor="middle">{text(words.x)}</text>',
        f'<text class="axis" x="18" y="{middle:.0f}" text-anchor="middle" {turned}>{text(words.y)}</text>',
    ]


def vertical(x: float, frame: Frame, label: str, style: str = "grid") -> str:
    """A line across the plot with its label below."""
    line = f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{frame.bottom}"/>'
    return f'{line}<text class="note" x="{x:.1f}" y="{frame.bottom + 17}" text-anchor="middle">{text(label)}</text>'


def horizontal(y: float, frame: Frame, label: str) -> str:
    """A line along the plot with its label at the left."""
    line = f'<line class="grid" x1="{frame.left}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="note" x="{frame.left - 8}" y="{y + 4:.1f}" text-anchor="end">{text(label)}</text>'


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """Values from `low` to `high` onto places from `start` to `end`."""
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that hold both ends, 3 to 8 of them."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that hold both ends."""
    low, high = low * 0.95, high * 1.05  # no point on the frame
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(step for step in steps if step <= low)
    last = min(step for step in steps if step >= high and step > first)
    return [step for step in steps if first <= step <= last]


# --- Plots of the reviewer's report as inline SVG: no library, no script, no font from outside, colours that follow the page.


MOST_POINTS = 200  # of a curve: more than there are pixels says nothing more
MOST_NAMES = 12  # of points below an axis
TONES: Mapping[Tone, str] = {
    "better": "better: interval above 0",
    "worse": "worse: interval below 0",
    "open": "not told apart: holds 0",
}
_ROW, _NAME_HEIGHT, _NAME_WIDTH = 26, 16, 200


@dataclass(frozen=True)
class Mark:
    """One row of a forest plot: a difference with its interval (None: too few queries for one); `note` stands at the right.

    `margin` is the loss that the policy allows for it.
    """

    label: str
    value: float
    low: float | None
    high: float | None
    note: str
    margin: float | None = None

    @property
    def tone(self) -> Tone:
        """What the interval says."""
        return tone_of(self.low, self.high)


@dataclass(frozen=True)
class Point:
    """One system in a scatter plot: `x` above 0 (the axis is logarithmic), `y` with its interval."""

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """One line: its values in order, spread over the width of the plot."""

    label: str
    values: Sequence[float]


def forest(marks: Sequence[Mark], words: PlotText) -> Markup:
    """Differences with their intervals below each other, around a line at 0; dashed where a loss is allowed."""
    frame = Frame(222, WIDTH - 262, 6, 6 + _ROW * len(marks))
    ends = [0.0, *(end for m in marks for end in (m.low, m.value, m.high) if end is not None)]
    widest = 2 * (max(ends) - min(ends))  # a margin beyond would press all intervals into a dot
    marks = [mark if mark.margin and mark.margin <= widest else replace(mark, margin=None) for mark in marks]
    ends += [-mark.margin for mark in marks if mark.margin]
    levels = ticks(min(ends), max(ends))
    across = scale(levels[0], levels[-1], frame.left, frame.right)
    parts = [vertical(across(t), frame, f"{t:+g}" if t else "0", "grid" if t else "zero") for t in levels]
    parts += [_mark(mark, across, frame.top + _ROW * (i + 0.5), frame) for i, mark in enumerate(marks)]
    return drawing([*parts, axis_names(words, frame)[0], _legend(marks, frame)], frame.bottom + 78, words)


def _mark(mark: Mark, across: Scale, y: float, frame: Frame) -> str:
    x, tone, arm = across(mark.value), mark.tone, ""
    if mark.low is not None and mark.high is not None:
        arm = f'<line class="{tone}" x1="{across(mark.low):.1f}" x2="{across(mark.high):.1f}" y1="{y}" y2="{y}"/>'
    if mark.margin:
        allowed = across(-mark.margin)
        arm += f'<line class="margin" x1="{allowed:.1f}" x2="{allowed:.1f}" y1="{y - _ROW / 2}" y2="{y + _ROW / 2}"/>'
    name = f'<text x="{frame.left - 12}" y="{y + 4}" text-anchor="end">{text(_short(mark.label, 30))}</text>'
    return f'<g>{name}{arm}{_shape(tone, x, y)}<text class="note" x="{frame.right + 12}" y="{y + 4}">{text(mark.note)}</text></g>'


def _shape(tone: Tone, x: float, y: float) -> str:
    """Three shapes, so that the three outcomes can be told without colour."""
    if tone == "open":
        return f'<circle class="open" cx="{x:.1f}" cy="{y}" r="4.5"/>'
    path = f"M{x:.1f} {y - 6}l6 11h-12z" if tone == "better" else f"M{x:.1f} {y + 6}l6 -11h-12z"
    return f'<path class="{tone}" d="{path}"/>'


def _legend(marks: Sequence[Mark], frame: Frame) -> str:
    y, x, parts = frame.bottom + 62, 28.0, []
    for tone, words in TONES.items():
        parts.append(f'{_shape(tone, x, y)}<text class="note" x="{x + 12}" y="{y + 4}">{words}</text>')
        x += 212
    if any(mark.margin for mark in marks):
        parts.append(f'<line class="margin" x1="{x}" x2="{x}" y1="{y - 9}" y2="{y + 9}"/>')
        parts.append(f'<text class="note" x="{x + 12}" y="{y + 4}">the loss that the policy allows</text>')
    return f"<g>{''.join(parts)}</g>"


def scatter(points: Sequence[Point], words: PlotText) -> Markup:
    """Systems by a value with its interval over a logarithmic axis, each named where it stands."""
    frame = Frame(70, WIDTH - 190, 6, 290)
    steps = decades(min(p.x for p in points), max(p.x for p in points))
    ends = [end for p in points for end in (p.low, p.y, p.high) if end is not None]
    levels = ticks(min(ends), max(ends))
    across = scale(math.log10(steps[0]), math.log10(steps[-1]), frame.left, frame.right)
    up = scale(levels[0], levels[-1], frame.bottom, frame.top)
    parts = [vertical(across(math.log10(t)), frame, f"{t:g}") for t in steps]
    parts += [horizontal(up(t), frame, f"{t:g}") for t in levels]
    places = [(across(math.log10(point.x)), up(point.y)) for point in points]
    for number, (point, (x, y), name) in enumerate(zip(points, places, _names_apart(places), strict=True), start=1):
        if point.low is not None and point.high is not None:
            parts.append(f'<line class="line{number}" x1="{x:.1f}" x2="{x:.1f}" y1="{up(point.low):.1f}" y2="{up(point.high):.1f}"/>')
        parts.append(f'<circle class="fill{number}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(f'<text class="fill{number}" x="{x + 10:.1f}" y="{name:.1f}">{text(point.label)}</text>')
    return drawing([*parts, *axis_names(words, frame)], frame.bottom + 50, words)


def _names_apart(places: Sequence[tuple[float, float]]) -> list[float]:
    """The height of each point's name, moved down until it covers none that was placed before."""
    placed: dict[int, tuple[float, float]] = {}
    for i in sorted(range(len(places)), key=lambda i: places[i][1]):
        x, y = places[i][0], places[i][1] - 7
        while any(abs(x - x2) < _NAME_WIDTH and abs(y - y2) < _NAME_HEIGHT for x2, y2 in placed.values()):
            y += 1
        placed[i] = (x, y)
    return [placed[i][1] for i in range(len(places))]


def lines(curves: Sequence[Curve], words: PlotText, names: Sequence[str] = (), kept: int | None = None) -> Markup:
    """Curves over the same points, named at their ends. `names` are those of the points, else they are counted; `kept` is one of them."""
    frame = Frame(70, WIDTH - 190, 6, 250)
    length = max(len(c.values) for c in curves)
    along = scale(1, max(2, length), frame.left, frame.right)
    shown = [Curve(c.label, _thinned(c.values)) for c in curves]
    levels = ticks(min(min(c.values) for c in shown), max(max(c.values) for c in shown))
    up = scale(levels[0], levels[-1], frame.bottom, frame.top)
    parts = [horizontal(up(t), frame, f"{t:g}") for t in levels]
    parts += [vertical(along(place), frame, name) for place, name in _point_names(length, names)]
    if kept is not None:
        parts.append(f'<line class="kept" x1="{along(kept + 1):.1f}" x2="{along(kept + 1):.1f}" y1="{frame.top}" y2="{frame.bottom}"/>')
        parts.append(f'<text class="note" x="{along(kept + 1) - 6:.1f}" y="{frame.top + 12}" text-anchor="end">kept</text>')
    ends = _names_apart([(frame.right, up(c.values[-1])) for c in shown])
    for number, (curve, end) in enumerate(zip(shown, ends, strict=True), start=1):
        parts += _curve(number, curve.values, scale(0, max(1, len(curve.values) - 1), along(1), along(length)), up)
        parts.append(f'<text class="fill{number}" x="{frame.right + 10}" y="{end + 11:.1f}">{text(curve.label)}</text>')
    return drawing([*parts, *axis_names(words, frame)], frame.bottom + 50, words)


def _curve(number: int, values: Sequence[float], across: Scale, up: Scale) -> list[str]:
    path = " ".join(f"{across(i):.1f},{up(v):.1f}" for i, v in enumerate(values))
    points = [f'<circle class="fill{number}" cx="{across(i):.1f}" cy="{up(v):.1f}" r="3"/>' for i, v in _few(values)]
    return [f'<polyline class="line{number}" points="{path}"/>', *points]


def _point_names(length: int, names: Sequence[str]) -> list[tuple[int, str]]:
    """(number of a point, from 1, and what stands below it); of many, some."""
    if not names:
        inner = [int(t) for t in ticks(1, length) if 1 < t < 0.95 * length and t == int(t)]
        return [(place, f"{place:,}") for place in dict.fromkeys((1, *inner, length))]
    every = -(-len(names) // MOST_NAMES)
    return [(place + 1, names[place]) for place in range(0, len(names), every)]


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of neighbours, at most `MOST_POINTS`."""
    size = -(-len(values) // MOST_POINTS)
    return [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]


def _few(values: Sequence[float]) -> list[tuple[int, float]]:
    """The points of a short curve, each of which is a measurement of its own; of a long one none."""
    return list(enumerate(values)) if len(values) <= 30 else []


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"
