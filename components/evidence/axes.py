"""What the plots of the reviewer's report share: scales, axes, and the frame with its words around a drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from components.templates import page, plain

WIDTH = 900  # units of the drawing; the page scales it
_HEAD = 34  # the place of the title above it
_OPEN, _CLOSE = '<div class="plot">', "</div>"
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Words:
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


def drawing(parts: Sequence[str], height: float, words: Words) -> Markup:
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


def axis_names(words: Words, frame: Frame) -> list[str]:
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
