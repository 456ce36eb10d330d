"""Line charts as hand-made SVG: they need no script, no font and nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito's palette, told apart by colour-blind readers; its yellow is too faint on white."""

DASHES = ("", "7 3", "2 3", "9 3 2 3")
"""Once the colours are used up, the next lines are told apart by their dashes."""

WIDTH, HEIGHT = 600, 400
"""The drawing's own units; the page scales it."""

LEFT, RIGHT, TOP, BOTTOM = 76, 20, 18, 74
"""Margins that also hold the larger letters a phone gets."""

THIN = 1.8
"""Width of an ordinary curve."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: What it shows, with the unit.
        low: Value at its start.
        high: Value at its end, above `low`.
        ticks: Values that get a mark and a number, ascending.
    """

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: What it is, shown when the reader points at one of its dots.
        points: Pieces of (x, y); between two pieces the curve is broken.
        colour: Any CSS colour.
        dash: SVG dash pattern; empty: solid.
        width: How thick it is, its dots too; thinner than `THIN`: also paler.
        band: (x, low, high) of the interval around it, ascending in x.
    """

    name: str
    points: tuple[tuple[Point, ...], ...]
    colour: str
    dash: str = ""
    width: float = THIN
    band: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Mark:
    """A level to compare with: a horizontal dashed line with a word at its right or left end."""

    y: float
    label: str
    left: bool = False


@dataclass(frozen=True)
class Chart:
    """All of one drawing, its later lines over its earlier ones.

    `name` must be unique on its page, `summary` says the drawing in words.
    """

    name: str
    title: str
    summary: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()


def line_style(index: int) -> tuple[str, str]:
    """Return the colour and the dashes of the index-th thin line."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def nice_ticks(low: float, high: float, most: int = 6, whole: bool = False) -> tuple[float, ...]:
    """Return at most `most` + 1 round values that cover low to high, in steps of 1, 2 or 5.

    Args:
        low: Smallest value to cover.
        high: Largest value to cover; not below `low`.
        most: Largest number of steps.
        whole: Whether steps below 1 make no sense, as for counts.
    """
    span = max(high - low, 1.0 if whole else 1e-9)
    power = 10.0 ** math.floor(math.log10(span / most))
    steps = [power * factor for factor in (1, 2, 5, 10, 20)]
    for step in [s for s in steps if not whole or s >= 1] or [1.0]:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        last = max(last, first + 1)
        if last - first <= most:
            break
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def position(chart: Chart, x: float, y: float) -> Point:
    """Return where a value lies in the drawing, in its units from the upper left corner."""
    across = (x - chart.x.low) / (chart.x.high - chart.x.low)
    up = (y - chart.y.low) / (chart.y.high - chart.y.low)
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def draw(chart: Chart) -> str:
    """Return the chart as an SVG element, with its title and summary for screen readers."""
    bands = [_band(chart, line) for line in chart.lines if len(line.band) > 1]
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-labelledby="{chart.name}-title {chart.name}-summary">',
            f'<title id="{chart.name}-title">{escape(chart.title)}</title>',
            f'<desc id="{chart.name}-summary">{escape(chart.summary)}</desc>',
            *bands,
            *_x_axis(chart),
            *_y_axis(chart),
            *(_mark(chart, mark) for mark in chart.marks),
            *(part for line in chart.lines for part in _line(chart, line)),
            "</svg>",
        ]
    )


def sample(line: Line) -> str:
    """Return a short piece of a line, for the legend."""
    return (
        '<svg class="sample" viewBox="0 0 28 10" aria-hidden="true">'
        f'<line x1="1" y1="5" x2="27" y2="5" stroke="{line.colour}" stroke-width="{line.width:g}"'
        f"{_dash(line)}/></svg>"
    )


def _x_axis(chart: Chart) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [_stroke("axis", LEFT, bottom, WIDTH - RIGHT, bottom)]
    for tick in chart.x.ticks:
        x, _ = position(chart, tick, chart.y.low)
        parts.append(_stroke("axis", x, bottom, x, bottom + 5))
        parts.append(_label(x, bottom + 24, f"{tick:g}", "middle"))
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, chart.x.title, "middle", "name"))
    return parts


def _y_axis(chart: Chart) -> list[str]:
    parts = []
    for tick in chart.y.ticks:
        _, y = position(chart, chart.x.low, tick)
        parts.append(_stroke("grid", LEFT, y, WIDTH - RIGHT, y))
        parts.append(_label(LEFT - 10, y + 5, f"{tick:g}", "end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="name" text-anchor="middle" transform="translate(20 {middle:g}) '
        f'rotate(-90)">{escape(chart.y.title)}</text>'
    )
    return parts


def _mark(chart: Chart, mark: Mark) -> str:
    _, y = position(chart, chart.x.low, mark.y)
    place, anchor = (LEFT + 6, "start") if mark.left else (WIDTH - RIGHT - 4, "end")
    label = _label(place, y - 6, mark.label, anchor, "mark")
    return _stroke("mark", LEFT, y, WIDTH - RIGHT, y) + label


def _band(chart: Chart, line: Line) -> str:
    upper = [position(chart, x, high) for x, _, high in line.band]
    lower = [position(chart, x, low) for x, low, _ in reversed(line.band)]
    return f'<polygon class="band" points="{_path(upper + lower)}" fill="{line.colour}"/>'


def _line(chart: Chart, line: Line) -> list[str]:
    radius = line.width / 2 + 1.6
    parts = [f'<g opacity="{0.55 if line.width < THIN else 1}">']
    for piece in line.points:
        places = [position(chart, x, y) for x, y in piece]
        parts.append(
            f'<polyline points="{_path(places)}" fill="none" stroke="{line.colour}" '
            f'stroke-width="{line.width:g}"{_dash(line)}/>'
        )
        for (x, y), (across, down) in zip(piece, places, strict=True):
            hint = escape(f"{line.name}, {x:g}: {y:.3f}")
            parts.append(
                f'<circle cx="{across:.2f}" cy="{down:.2f}" r="{radius:g}" fill="{line.colour}">'
                f"<title>{hint}</title></circle>"
            )
    return [*parts, "</g>"]


def _path(places: Sequence[Point]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)


def _dash(line: Line) -> str:
    return f' stroke-dasharray="{line.dash}"' if line.dash else ""


def _stroke(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"/>'


def _label(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    place = f'x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'
