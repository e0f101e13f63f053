"""Plots of the reviewer's report as inline SVG: no library, no script, no font from outside, colours that follow the page.

Each has a title and a description for readers who cannot see it, and says by shape and words what it says by colour. The numbers
stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from components.promotion.evidence_html import Safe

WIDTH = 1040  # units of the drawing; the page scales it
MOST_POINTS = 200  # of a curve: more than there are pixels says nothing more
Tone = Literal["better", "worse", "open"]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Mark:
    """One row of a forest plot: a difference with its interval (None: too few queries for one); `note` stands at the right."""

    label: str
    value: float
    low: float | None
    high: float | None
    note: str

    @property
    def tone(self) -> Tone:
        """Whether the interval lies above 0, below it, or holds it."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "open"
        return "better" if self.low > 0 else "worse"


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


@dataclass(frozen=True)
class Words:
    """What a plot says in words: its title, a description that could stand for it, and what the axes are."""

    title: str
    description: str
    x: str
    y: str = ""


def forest(marks: Sequence[Mark], words: Words, margin: float | None = None) -> Safe:
    """Differences with their intervals below each other, around a line at 0 and, if given, one at the loss that is allowed."""
    left, right, row, top = 270, 320, 26, 14
    ends = [end for m in marks for end in (m.low, m.value, m.high) if end is not None] + [0.0] + ([-margin] if margin else [])
    ticks = _ticks(min(ends), max(ends))
    across = _scale(ticks[0], ticks[-1], left, WIDTH - right)
    bottom = top + row * len(marks)
    parts = [_vertical(across(t), top, bottom, f"{t:+g}" if t else "0", "zero" if t == 0 else "grid") for t in ticks]
    if margin:
        parts.append(f'<line class="margin" x1="{across(-margin):.1f}" x2="{across(-margin):.1f}" y1="{top}" y2="{bottom}"/>')
    parts += [_mark(mark, across, top + row * (i + 0.5), left) for i, mark in enumerate(marks)]
    parts.append(f'<text class="axis" x="{(left + WIDTH - right) / 2}" y="{bottom + 36}" text-anchor="middle">{escape(words.x)}</text>')
    return _drawing(parts, bottom + 46, words)


def _mark(mark: Mark, across: Scale, y: float, left: int) -> str:
    x, tone = across(mark.value), mark.tone
    arm = ""
    if mark.low is not None and mark.high is not None:
        arm = f'<line class="{tone}" x1="{across(mark.low):.1f}" x2="{across(mark.high):.1f}" y1="{y}" y2="{y}"/>'
    # Three shapes, so that the three outcomes can be told without colour.
    shape = {
        "better": f'<path class="{tone}" d="M{x:.1f} {y - 6}l6 11h-12z"/>',
        "worse": f'<path class="{tone}" d="M{x:.1f} {y + 6}l6 -11h-12z"/>',
        "open": f'<circle class="{tone}" cx="{x:.1f}" cy="{y}" r="4.5"/>',
    }[tone]
    name = f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(_short(mark.label, 36))}</text>'
    return f'<g>{name}{arm}{shape}<text class="note" x="{WIDTH - 308}" y="{y + 4}">{escape(mark.note)}</text></g>'


def scatter(points: Sequence[Point], words: Words) -> Safe:
    """Systems by a value with its interval over a logarithmic axis, each named where it stands."""
    left, right, top, bottom = 70, 190, 16, 300
    decades = _decades(min(p.x for p in points), max(p.x for p in points))
    ends = [end for p in points for end in (p.low, p.y, p.high) if end is not None]
    levels = _ticks(min(ends), max(ends))
    across = _scale(math.log10(decades[0]), math.log10(decades[-1]), left, WIDTH - right)
    up = _scale(levels[0], levels[-1], bottom, top)
    parts = [_vertical(across(math.log10(t)), top, bottom, f"{t:g}", "grid") for t in decades]
    parts += [_horizontal(up(t), left, WIDTH - right, f"{t:g}") for t in levels]
    for point in points:
        x, y = across(math.log10(point.x)), up(point.y)
        if point.low is not None and point.high is not None:
            parts.append(f'<line class="line1" x1="{x:.1f}" x2="{x:.1f}" y1="{up(point.low):.1f}" y2="{up(point.high):.1f}"/>')
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(f'<text x="{x + 10:.1f}" y="{y - 7:.1f}">{escape(point.label)}</text>')
    return _drawing([*parts, *_axis_names(words, left, WIDTH - right, top, bottom)], bottom + 46, words)


def lines(curves: Sequence[Curve], words: Words, ends: tuple[str, str]) -> Safe:
    """Curves over the same width, named at their ends; `ends` are the words at the first and the last point."""
    left, right, top, bottom = 70, 190, 16, 260
    shown = [Curve(c.label, _thinned(c.values)) for c in curves]
    levels = _ticks(min(min(c.values) for c in shown), max(max(c.values) for c in shown))
    up = _scale(levels[0], levels[-1], bottom, top)
    parts = [_horizontal(up(t), left, WIDTH - right, f"{t:g}") for t in levels]
    places = _apart([up(c.values[-1]) for c in shown])
    for number, (curve, place) in enumerate(zip(shown, places, strict=True), start=1):
        across = _scale(0, max(1, len(curve.values) - 1), left, WIDTH - right)
        path = " ".join(f"{across(i):.1f},{up(v):.1f}" for i, v in enumerate(curve.values))
        parts.append(f'<polyline class="line{number}" points="{path}"/>')
        parts += [f'<circle class="fill{number}" cx="{across(i):.1f}" cy="{up(v):.1f}" r="3"/>' for i, v in _few(curve.values)]
        parts.append(f'<text class="fill{number}" x="{WIDTH - right + 10}" y="{place + 4:.1f}">{escape(curve.label)}</text>')
    parts += [f'<text class="note" x="{left}" y="{bottom + 18}">{escape(ends[0])}</text>']
    parts += [f'<text class="note" x="{WIDTH - right}" y="{bottom + 18}" text-anchor="end">{escape(ends[1])}</text>']
    return _drawing([*parts, *_axis_names(words, left, WIDTH - right, top, bottom)], bottom + 46, words)


def _drawing(parts: Sequence[str], height: float, words: Words) -> Safe:
    title, description = escape(words.title), escape(words.description)
    return Safe(
        f'<div class="plot"><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{title}. {description}">'
        f"<title>{title}</title><desc>{description}</desc>{''.join(parts)}</svg></div>"
    )


def _axis_names(words: Words, left: float, right: float, top: float, bottom: float) -> list[str]:
    across = f'<text class="axis" x="{(left + right) / 2:.0f}" y="{bottom + 38:.0f}" text-anchor="middle">{escape(words.x)}</text>'
    middle = (top + bottom) / 2
    turned = f'transform="rotate(-90 18 {middle:.0f})"'
    return [across, f'<text class="axis" x="18" y="{middle:.0f}" text-anchor="middle" {turned}>{escape(words.y)}</text>']


def _vertical(x: float, top: float, bottom: float, label: str, style: str) -> str:
    line = f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
    return f'{line}<text class="note" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>'


def _horizontal(y: float, left: float, right: float, label: str) -> str:
    line = f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="note" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that hold both ends, 3 to 8 of them."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that hold both ends."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(step for step in steps if step <= low * 1.000001)
    last = min(step for step in steps if step >= high and step > first)
    return [step for step in steps if first <= step <= last]


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of neighbours, at most `MOST_POINTS`."""
    size = -(-len(values) // MOST_POINTS)
    return [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]


def _few(values: Sequence[float]) -> list[tuple[int, float]]:
    """The points of a short curve, each of which is a measurement of its own; of a long one none."""
    return list(enumerate(values)) if len(values) <= 30 else []


def _apart(places: Sequence[float], gap: float = 16) -> list[float]:
    """Heights moved down until names no longer cover each other."""
    moved = list(places)
    order = sorted(range(len(moved)), key=lambda i: moved[i])
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    return moved


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
