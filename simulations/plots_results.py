"""Pictures of one scenario's results: curves over rounds, and the worst site against the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simulations.plots import (
    INK,
    SOFT,
    WIDTH,
    Look,
    Picture,
    count_rounds,
    picture,
    shortened,
    value_limits,
)
from simulations.records import MEAN, WORST
from simulations.report_data import FEDERATED, HEADLINE, Book, Key
from simulations.report_sheet import few_sites

AXIS = "AUC on the common test set (0 to 1)"
CHANCE = 0.5

CROWD = 200
"""More marks than this in a row are stored as an image, so that files stay small."""


def learning_curves(
    name: str, book: Book, scenario: str, style: Mapping[str, Look]
) -> Picture | None:
    """Return the headline metric after each round; None if no strategy has a curve."""
    curves = {
        strategy: found
        for strategy in book.strategies(scenario)
        if len(found := book.rounds(Key(scenario, strategy))) > 1
    }
    if not curves:
        return None
    levels, steps = _levels(book, scenario, curves), steps_between(book, scenario, list(curves))
    uneven = max(steps.values()) > 1
    ends = {s: _mean(list(list(c.values())[-1].values())) for s, c in curves.items()} | levels
    order = sorted(ends, key=lambda strategy: -ends[strategy])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown = list(levels.values())
        for strategy in reversed(order):
            if strategy in curves:
                shown += _curve(axes, curves[strategy], steps[strategy], style[strategy])
            else:
                look = style[strategy]
                axes.axhline(levels[strategy], color=look.colour, linestyle=look.line)
        axes.set_ylim(*value_limits(shown, CHANCE))
        _chance(axes)
        count_rounds(axes)
        if uneven:
            axes.set_xlabel("local steps of each site")
        axes.set_ylabel(AXIS)
        axes.grid(axis="y")
        names = [line_name(book.judged_by(scenario, strategy)) for strategy in order]
        _legend(figure, [style[s] for s in order], names, [s in levels for s in order])

    alt = "At the end: " + ", ".join(f"{s} {ends[s]:.3f}" for s in order) + "."
    seeds = max(len(values) for curve in curves.values() for values in curve.values())
    band = f" Band: from the lowest to the highest of {seeds} seeds." if seeds > 1 else ""
    caption = (
        f"Mean over seeds after each round; the names are in the order of the last round.{band}"
        + (" Rounds differ in length, so the steps of each site are counted." if uneven else "")
        + (" Straight lines: strategies without rounds of a common model." if levels else "")
    )
    return picture(name, "Learning curves", caption, alt, (WIDTH, 4.0), draw)


def worst_site(name: str, book: Book, scenario: str, style: Mapping[str, Look]) -> Picture | None:
    """Return, for each strategy, its sites, their mean and the worst; None if not measured."""
    rows: list[tuple[str, str]] = [
        (strategy, model)
        for strategy in book.strategies(scenario)
        for model in ("local", "global", "personal")
        if book.value(_own(scenario, strategy, model, MEAN)) is not None
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: book.value(_own(scenario, row[0], row[1], WORST)) or 0.0)
    sites = book.site_names(scenario)
    few = [few_sites(book.figure(_own(scenario, *row, MEAN))) for row in rows]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown: list[float] = []
        for place, (strategy, model) in enumerate(rows):
            each = [
                value
                for site in sites
                for value in book.values(_own(scenario, strategy, model, site)).values()
            ]
            mean = book.value(_own(scenario, strategy, model, MEAN)) or 0.0
            worst = book.value(_own(scenario, strategy, model, WORST))
            colour = style[strategy].colour
            axes.plot(
                each,
                [place] * len(each),
                "|",
                color=colour,
                alpha=0.5,
                markersize=11,
                rasterized=len(each) > CROWD,
            )
            if worst is not None:
                axes.plot([worst, mean], [place] * 2, "-", color=colour, linewidth=1.4)
                axes.plot(worst, place, "<", color=colour, markersize=8, markeredgecolor="white")
            axes.plot(mean, place, "o", color=colour, markersize=8, markeredgecolor="white")
            shown += [*each, mean, *([] if worst is None else [worst])]
        names = [shortened(_model_name(*row), 30) for row in rows]
        axes.set_yticks(
            range(len(rows)), [n + f"\n{f}" * bool(f) for n, f in zip(names, few, strict=True)]
        )
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(*value_limits(shown))
        axes.set_xlabel("AUC on each site's own held-out patients (0 to 1)")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        keys = (("<", "worst site"), ("o", "mean over sites"), ("|", "a site in a seed"))
        figure.legend(
            handles=[
                Line2D([], [], color=SOFT, marker=m, linestyle="", label=text, markersize=8)
                for m, text in keys
            ],
            loc="outside upper center", ncols=3,
        )  # fmt: skip

    said = [
        f"{_model_name(*row)}: worst {book.value(_own(scenario, *row, WORST)) or 0:.3f}, "
        f"mean {book.value(_own(scenario, *row, MEAN)) or 0:.3f}" + f" of {of}" * bool(of)
        for row, of in zip(reversed(rows), reversed(few), strict=True)
    ]
    caption = (
        "Every site's patients, scored by the model the strategy gives that site. Worst and mean "
        "are taken in each seed and then averaged; the best worst site is on top."
    )
    size = (WIDTH, 1.5 + 0.36 * len(rows))
    return picture(name, "The worst site against the mean", caption, "; ".join(said), size, draw)


def _own(scenario: str, strategy: str, model: str, site: str) -> Key:
    return Key(scenario, strategy, HEADLINE, "own", model, site)


def _levels(book: Book, scenario: str, curves: Mapping[str, object]) -> dict[str, float]:
    """Return the final values of the strategies that are no federation and have no curve."""
    found = {
        strategy: book.value(book.judged_by(scenario, strategy))
        for strategy in book.strategies(scenario)
        if strategy not in curves and book.setting(scenario, strategy) != FEDERATED
    }
    return {strategy: value for strategy, value in found.items() if value is not None}


def steps_between(book: Book, scenario: str, strategies: Sequence[str]) -> dict[str, int]:
    """Return how far apart the rounds of curves are: in local steps, or 1 if alike in all."""
    steps = {s: book.study(scenario, s).training.local_steps for s in strategies}
    return steps if len(set(steps.values())) > 1 else dict.fromkeys(steps, 1)


def _curve(
    axes: Axes, curve: Mapping[int, Mapping[int, float]], steps: int, look: Look
) -> list[float]:
    rounds = [steps * number for number in curve]
    values = [list(by_seed.values()) for by_seed in curve.values()]
    low, high = [min(v) for v in values], [max(v) for v in values]
    if max(map(len, values)) > 1:
        axes.fill_between(rounds, low, high, color=look.colour, alpha=0.13, linewidth=0)
    every = max(1, len(rounds) // 8)
    axes.plot(
        rounds, [_mean(v) for v in values], color=look.colour, linestyle=look.line,
        marker=look.marker, markevery=every,
    )  # fmt: skip
    return low + high


def _chance(axes: Axes) -> None:
    low, high = axes.get_ylim()
    if low <= CHANCE <= high:
        axes.axhline(CHANCE, color=SOFT, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.annotate(
            "chance", (1, CHANCE), (0, 2), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", fontsize=8, color=INK,
        )  # fmt: skip


def _legend(
    figure: Figure, looks: Sequence[Look], names: Sequence[str], level: Sequence[bool]
) -> None:
    handles = [
        Line2D(
            [], [], color=look.colour, linestyle=look.line,
            marker="" if flat else look.marker, label=shortened(name),
        )
        for look, name, flat in zip(looks, names, level, strict=True)
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside right upper", handlelength=2.6)


def line_name(key: Key) -> str:
    """Return what the line of a figure is called."""
    return f"{key.strategy} (mean)" if key.site == MEAN else key.strategy


def _model_name(strategy: str, model: str) -> str:
    return f"{strategy}: own models" if model == "personal" else strategy


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
