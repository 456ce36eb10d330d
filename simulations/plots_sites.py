"""Pictures of the federation itself: who has what, what is missing, and who took part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from simulations.plots import (
    BLUE,
    COLOURS,
    INK,
    WIDTH,
    Picture,
    count_rounds,
    name_columns,
    picture,
    thin_ticks,
)
from simulations.records import Missing, Part, SiteRow

LEGIBLE_ROWS, LEGIBLE_COLUMNS = 32, 12
"""Up to so many rows and columns a map also shows its numbers."""

STATES = ("update", "evaluated", "late", "refused", "failed", "absent")
STATE_NAMES = ("took part", "evaluated only", "too late", "refused", "failed", "absent")
STATE_COLOURS = (BLUE, "#56B4E9", "#E69F00", "#CC79A7", "#D55E00", "#eceff2")
STATE_SIGNS = ("", "e", "l", "r", "×", "")


def who_has_what(
    name: str, rows: Sequence[SiteRow], classes: Sequence[str], findings: bool
) -> Picture:
    """Return the map of sites by classes, with the size of each site beside it.

    Args:
        name: Of the files.
        rows: The sites; at least one.
        classes: Classes or findings, as many as a row's counts.
        findings: Whether a patient may have several of them.
    """
    counts = np.array([row.counts for row in rows], dtype=float)
    sizes = np.array([row.train_patients for row in rows])
    share = counts / np.maximum(sizes, 1)[:, None]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(
            1, 2, sharey=True, width_ratios=(max(2.0, 0.6 * len(classes)), 2.0)
        )
        _map(left, share, counts, classes, [row.site for row in rows])
        left.set_xlabel("finding" if findings else "class")
        _bar(figure, left, "part of the site's patients")
        right.barh(range(len(rows)), sizes, color=COLOURS[4], height=0.72)
        right.set_xlabel("training patients")
        right.tick_params(axis="y", length=0, labelleft=False)
        right.grid(axis="x")
        if len(rows) <= LEGIBLE_ROWS:
            for i, size in enumerate(sizes):
                right.annotate(
                    f"{size:,}", (size, i), (4, 0), textcoords="offset points",
                    va="center", fontsize=8.5,
                )  # fmt: skip
            right.set_xlim(0, 1.22 * max(sizes.max(), 1))

    largest, smallest = int(sizes.argmax()), int(sizes.argmin())
    alt = (
        f"{len(rows)} sites by {len(classes)} {'findings' if findings else 'classes'}. Largest: "
        f"{rows[largest].site} with {sizes[largest]:,} training patients; smallest: "
        f"{rows[smallest].site} with {sizes[smallest]:,}."
    )
    caption = (
        f"Training patients of each site with each {'finding' if findings else 'class'}: the "
        "shade is the part of the site's own patients, the number counts them. Right: how many "
        "training patients each site has."
    )
    return picture(name, "Who has what", caption, alt, _size(len(rows)), draw)


def what_is_missing(name: str, rows: Sequence[Missing], sites: Sequence[str]) -> Picture:
    """Return the map of sites by what they lack.

    Args:
        name: Of the files.
        rows: What is missing; at least one row.
        sites: Names of all sites, in order; also those that lack nothing.
    """
    kinds = list(dict.fromkeys(_kind(row) for row in rows))
    lost, all_of_them = np.zeros((len(sites), len(kinds))), np.zeros((len(sites), len(kinds)))
    for row in rows:
        place = sites.index(row.site), kinds.index(_kind(row))
        lost[place] += row.count
        all_of_them[place] = max(all_of_them[place], row.of)
    share = np.where(all_of_them > 0, lost / np.maximum(all_of_them, 1), np.nan)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _map(axes, share, np.round(100 * share), kinds, sites, unit=" %")
        axes.set_xlabel("what is missing or wrong")
        _bar(figure, axes, "part missing or wrong")

    site, kind = divmod(int(np.nanargmax(share)), len(kinds))
    alt = (
        f"What is missing at {len(sites)} sites: {', '.join(kinds)}. Most: {kinds[kind]} at "
        f"{sites[site]}, {lost[site, kind]:,.0f} of {all_of_them[site, kind]:,.0f}."
    )
    caption = (
        "Which part of each site's data is missing or wrong, in the data as found or by the "
        "scenario; empty: nothing."
    )
    return picture(name, "What is missing where", caption, alt, _size(len(sites)), draw)


def who_took_part(name: str, parts: Sequence[Part], rounds: int) -> Picture:
    """Return the map of sites by rounds; at least one part in rounds 1 to `rounds`."""
    sites = list(dict.fromkeys(part.site for part in parts))
    states = np.full((len(sites), rounds), STATES.index("absent"))
    for part in parts:
        if 1 <= part.round <= rounds and part.state in STATES:
            states[sites.index(part.site), part.round - 1] = STATES.index(part.state)
    seen = [i for i in range(len(STATES)) if (states == i).any()]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        colours = ListedColormap(list(STATE_COLOURS))
        axes.imshow(
            states, cmap=colours, vmin=-0.5, vmax=len(STATES) - 0.5, aspect="auto",
            interpolation="nearest", extent=(0.5, rounds + 0.5, len(sites) - 0.5, -0.5),
        )  # fmt: skip
        thin_ticks(axes, sites)
        _separate(axes, np.arange(1.5, rounds), np.arange(0.5, len(sites) - 1), states.size)
        if states.size <= 40 * LEGIBLE_ROWS:
            for (i, j), state in np.ndenumerate(states):
                axes.text(
                    j + 1, i, STATE_SIGNS[state], ha="center", va="center",
                    color="white" if state == STATES.index("failed") else INK, fontsize=8,
                )  # fmt: skip
        count_rounds(axes)
        axes.set_xlabel("round")
        axes.set_xlim(0.5, rounds + 0.5)
        signs = [f" ({STATE_SIGNS[i]})" if STATE_SIGNS[i] else "" for i in range(len(STATES))]
        figure.legend(
            handles=[
                Patch(facecolor=STATE_COLOURS[i], label=STATE_NAMES[i] + signs[i]) for i in seen
            ],
            loc="outside upper center", ncols=len(seen), handlelength=1.2,
        )  # fmt: skip

    done = (states == 0).mean(axis=1)
    least = int(done.argmin())
    alt = (
        f"{len(sites)} sites in {rounds} rounds; {100 * (states == 0).mean():.0f} % of all "
        f"updates arrived. Fewest: {sites[least]}, {100 * done[least]:.0f} %."
    )
    caption = "Whose update counted in which round."
    return picture(name, "Who took part", caption, alt, _size(len(sites), 0.5), draw)


def _kind(row: Missing) -> str:
    if row.what == "value" and row.name:
        return row.name
    return f"{row.what}: {row.name}" if row.name else row.what


def _size(rows: int, more: float = 0.0) -> tuple[float, float]:
    return WIDTH, more + min(1.6 + 0.29 * rows, 2.6 + 0.075 * max(rows, 92))


def _map(
    axes: Axes,
    shade: np.ndarray,
    numbers: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    unit: str = "",
) -> None:
    axes.imshow(shade, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    thin_ticks(axes, rows)
    name_columns(axes, columns, 20, 36)
    across, down = np.arange(0.5, len(columns) - 1), np.arange(0.5, len(rows) - 1)
    _separate(axes, across, down, shade.size)
    if len(rows) <= LEGIBLE_ROWS and len(columns) <= LEGIBLE_COLUMNS:
        for (i, j), number in np.ndenumerate(numbers):
            if np.isfinite(number):
                colour = "white" if shade[i, j] > 0.55 else INK
                text = f"{number:,.0f}{unit}"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8.5)


def _separate(axes: Axes, across: np.ndarray, down: np.ndarray, cells: int) -> None:
    """Draw thin white lines between the cells, unless there are too many of them."""
    axes.spines[:].set_visible(False)
    if cells <= 100 * LEGIBLE_ROWS:
        axes.vlines(across, -0.5, axes.get_ylim()[0], color="white", linewidth=1.0)
        axes.hlines(down, *axes.get_xlim(), color="white", linewidth=1.0)


def _bar(figure: Figure, axes: Axes, title: str) -> None:
    bar = figure.colorbar(
        axes.images[0], ax=axes, location="top", shrink=0.8, aspect=30, pad=0.03, label=title
    )
    bar.outline.set_visible(False)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25 %", "50 %", "75 %", "100 %"])
