"""How the pictures of a simulation look, and how one becomes a PNG and an SVG file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

INK, SOFT, GRID = "#1b2430", "#55606e", "#e1e6ec"

BLACK, GREY, BLUE = "#000000", "#7a7a7a", "#0072B2"
COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito's palette, told apart by colour-blind readers; its yellow is too faint on white."""

MARKERS = ("^", "D", "P", "X", "*", "<", ">", "h", "p", "d")
Dashes = tuple[float, tuple[float, ...]]
"""As matplotlib has it: offset, then lengths on and off in line widths; none: solid."""

SOLID: Dashes = (0, ())
DASHES: tuple[Dashes, ...] = (SOLID, (0, (6, 2)), (0, (3, 1.5, 1, 1.5)))

WIDTH = 6.6
"""Inches; the page shows it at about this size, so letters stay readable."""

LABEL = 24
"""Longest name shown beside an axis; the tables have it whole."""


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        name: Of its files, without the ending.
        title: What it shows.
        caption: How to read it.
        alt: The picture in words, for those who cannot see it.
        svg: The SVG file.
        png: The PNG file.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: bytes
    png: bytes


@dataclass(frozen=True)
class Look:
    """How a strategy is drawn, the same in every picture."""

    colour: str
    marker: str
    line: Dashes


REFERENCE_LOOKS = {
    "alone": Look(GREY, "v", (0, (1, 1.5))),
    "pooled": Look(BLACK, "s", (0, (6, 2))),
    "fedavg": Look(BLUE, "o", SOLID),
}


def looks(strategies: Sequence[str]) -> dict[str, Look]:
    """Return how each strategy is drawn; no two are alike by colour, marker and line together."""
    others = [name for name in dict.fromkeys(strategies) if name not in REFERENCE_LOOKS]
    return REFERENCE_LOOKS | {
        name: Look(
            COLOURS[i % len(COLOURS)],
            MARKERS[i % len(MARKERS)],
            DASHES[i // len(COLOURS) % len(DASHES)],
        )
        for i, name in enumerate(others)
    }


def picture(
    name: str, title: str, caption: str, alt: str, size: tuple[float, float],
    draw: Callable[[Figure], None],
) -> Picture:  # fmt: skip
    """Draw a picture; the same input gives the same bytes.

    Args:
        name: Of its files, without the ending.
        title: What it shows.
        caption: How to read it.
        alt: The picture in words.
        size: Width and height in inches.
        draw: Draws into the empty figure.
    """
    with mpl.rc_context():
        _set_style()
        edge = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
        figure = Figure(figsize=size, layout=edge)
        draw(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it has been laid out, once for both files
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return Picture(name, title, caption, alt, svg.getvalue(), png.getvalue())


def _set_style() -> None:
    mpl.rcdefaults()  # whatever the user's own settings are
    mpl.rc("svg", hashsalt="consilium", fonttype="path")
    mpl.rc("font", family="DejaVu Sans", size=9.5)
    mpl.rc("text", color=INK, parse_math=False)
    mpl.rc("axes", labelsize=9.5, edgecolor=SOFT, labelcolor=INK, linewidth=0.8, axisbelow=True)
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("xtick", color=SOFT, labelcolor=INK)
    mpl.rc("ytick", color=SOFT, labelcolor=INK)
    mpl.rc("grid", color=GRID, linewidth=0.8)
    mpl.rc("legend", frameon=False, fontsize=9)
    mpl.rc("lines", linewidth=1.8, markersize=5.5)
    mpl.rc("figure", facecolor="white")


def shortened(text: str, longest: int = LABEL) -> str:
    """Return a name as it fits beside an axis."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def value_limits(values: Sequence[float], chance: float | None = None) -> tuple[float, float]:
    """Return the ends of an axis of values from 0 to 1, which shows all of them.

    Args:
        values: What is drawn; at least one.
        chance: Drawn too where a value comes near it.
    """
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), 0.01)
    if chance is not None and low < chance + 0.1:
        low = min(low, chance)
    return max(low - room, -0.02), min(high + room, 1.02)


def thin_ticks(axes: Axes, names: Sequence[str], most: int = 40) -> None:
    """Name the rows of a map, each as long as there are not too many, else every few."""
    step = -(-len(names) // most)
    shown = range(0, len(names), step)
    axes.set_yticks(list(shown), [shortened(names[i]) for i in shown])
    axes.tick_params(length=0)


def name_columns(axes: Axes, names: Sequence[str], longest: int = LABEL, room: int = 60) -> None:
    """Name the places 0, 1, ... across, slanted if the names are too long to stand side by side.

    Args:
        axes: Where.
        names: The names.
        longest: Longest name shown.
        room: Letters that fit.
    """
    shown = [shortened(name, longest) for name in names]
    axes.set_xticks(range(len(shown)), shown)
    if max(map(len, shown)) * len(shown) > room:
        for label in axes.get_xticklabels():
            label.set(rotation=30, horizontalalignment="right", rotation_mode="anchor")


def count_rounds(axes: Axes) -> None:
    """Number the axis across with whole rounds."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rounds of training")
