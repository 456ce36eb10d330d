"""Pictures across scenarios: the ladder of heterogeneity, and privacy against utility."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simulations.plots import (
    COLOURS,
    WIDTH,
    Look,
    Picture,
    name_columns,
    picture,
    shortened,
    value_limits,
)
from simulations.plots_results import AXIS, line_name
from simulations.records import MEAN
from simulations.report_data import ALONE, BASELINE, POOLED, Book, Key

PRIVACY = "privacy"
"""The axis of a sweep along which only privacy changes."""

BEST = Look(COLOURS[0], "*", (0, (4, 1.5)))


BEST_CAPTION = (
    " The best other strategy is named at its point; it was chosen by this same figure, which "
    "flatters it a little."
)


@dataclass(frozen=True)
class Ladder:
    """Scenarios that can be read as rungs, since they differ in one way only.

    Attributes:
        axis: In what they differ.
        title: What they have in common.
        rungs: The scenarios, in the order they were planned.
        labels: Their places on the axis.
    """

    axis: str
    title: str
    rungs: tuple[str, ...]
    labels: tuple[str, ...]


def ladders(book: Book) -> list[Ladder]:
    """Return a ladder for every axis of a sweep but privacy, at each place of the others.

    Scenarios without labels make one ladder of their names if they share data and privacy.
    """
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name in book.scenarios:
        cell = book.sample(name)
        if cell is None:
            continue
        private = "with" if cell.private else "without"
        places = cell.labels or {"scenario": name}
        for axis in [a for a in places if a != PRIVACY]:
            rest = [f"{a}: {place}" for a, place in places.items() if a != axis]
            told = rest if PRIVACY in places else [*rest, f"{private} differential privacy"]
            groups.setdefault((axis, cell.dataset, *told), {})[name] = places[axis]
    return [
        Ladder(axis, ", ".join(common), tuple(rungs), tuple(rungs.values()))
        for (axis, *common), rungs in groups.items()
        if len(rungs) > 1
    ]


def ladder_picture(name: str, book: Book, ladder: Ladder, style: Mapping[str, Look]) -> Picture:
    """Return the headline metric of the references and of the best other strategy by rung."""
    lines = {
        POOLED: [Key(s, POOLED) for s in ladder.rungs],
        BASELINE: [Key(s, BASELINE) for s in ladder.rungs],
        ALONE: [Key(s, ALONE, model="local", site=MEAN) for s in ladder.rungs],
    }
    titles = {POOLED: "pooled", BASELINE: BASELINE, ALONE: "alone (mean)"}
    best = [_best_other(book, scenario) for scenario in ladder.rungs]
    labels = [shortened(label) for label in ladder.labels]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown: list[float] = []
        handles = []
        for strategy, keys in lines.items():
            if values := _points(axes, book, keys, style[strategy], 0):
                handles.append(_handle(style[strategy], titles[strategy]))
                shown += values
        if values := _points(axes, book, best, BEST, 0.08):
            handles.append(_handle(BEST, "best other"))
            shown += values
            _name_points(axes, book, best)
        name_columns(axes, labels)
        axes.set_xlim(-0.35, len(labels) - 0.65 + 0.25)
        axes.set_ylim(*value_limits(shown or [0.5, 1.0]))
        axes.set_xlabel(ladder.axis)
        axes.set_ylabel(AXIS)
        axes.grid(axis="y")
        figure.legend(handles=handles, loc="outside upper center", ncols=4, handlelength=2.6)

    said = []
    for i, label in enumerate(labels):
        figures = [f"{titles[s]} {_or_unknown(book, keys[i])}" for s, keys in lines.items()]
        said.append(f"{label}: {', '.join(figures)}")
    caption = "Mean over seeds; whiskers from the lowest to the highest seed."
    if any(best):
        caption += BEST_CAPTION
    size = (WIDTH + 0.35 * max(0, len(labels) - 6), 4.2)
    title = f"Ladder of heterogeneity: {ladder.title}"
    return picture(name, title, caption, "; ".join(said), size, draw)


def privacy_pictures(names: str, book: Book, style: Mapping[str, Look]) -> list[Picture]:
    """Return one picture for each group of scenarios that differ in privacy alone.

    There is none where no strategy has two points that are apart on the axis.

    Args:
        names: Of the files; a number is added.
        book: The results.
        style: How strategies are drawn.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in book.scenarios:
        cell = book.sample(name)
        if cell is not None:
            places = cell.labels or {"scenario": name}
            rest = [f"{a}: {place}" for a, place in places.items() if a != PRIVACY]
            groups.setdefault((cell.dataset, *rest), []).append(name)
    found: list[Picture] = []
    for common, scenarios in groups.items():
        points = _privacy_points(book, scenarios)
        if any(len({_place(x) for x, _ in line}) > 1 for line in points.values()):
            name = f"{names}-{len(found) + 1}"
            found.append(_privacy_picture(name, ", ".join(common), points, style))
    return found


Points = dict[tuple[str, str], list[tuple[float | None, list[float]]]]
"""By strategy and what it is called: epsilon (None: no privacy) and the values of the seeds."""


def _privacy_points(book: Book, scenarios: Sequence[str]) -> Points:
    points: Points = {}
    for scenario in scenarios:
        for strategy in book.strategies(scenario):
            cells = book.finished(scenario, strategy)
            spent = [cell.epsilon for cell in cells if cell.private and cell.epsilon is not None]
            key = book.judged_by(scenario, strategy)
            values = list(book.values(key).values())
            if values and (spent or not any(cell.private for cell in cells)):
                line = points.setdefault((strategy, line_name(key)), [])
                line.append((max(spent, default=None), values))
    return points


def _privacy_picture(name: str, title: str, points: Points, style: Mapping[str, Look]) -> Picture:
    places = {_place(x) for line in points.values() for x, _ in line}
    spent, free = sorted(x for x in places if x is not None), None in places
    without = 2.2 * spent[-1]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        for (strategy, _), line in points.items():
            look = style[strategy]
            ordered = sorted(line, key=lambda p: without if p[0] is None else p[0])
            xs = [without if x is None else x for x, _ in ordered]
            means = [sum(v) / len(v) for _, v in ordered]
            axes.plot(xs, means, color=look.colour, linestyle=look.line, marker=look.marker)
            axes.vlines(xs, [min(v) for _, v in ordered], [max(v) for _, v in ordered],
                        color=look.colour, linewidth=1.1)  # fmt: skip
        ticks = [*_apart(spent), *([without] if free else [])]
        axes.set_xticks(ticks, [*(f"{x:g}" for x in _apart(spent)), *(["none"] if free else [])])
        axes.minorticks_off()
        axes.set_xlim(spent[0] / 1.35, 1.35 * (without if free else spent[-1]))
        axes.set_ylim(*value_limits([v for line in points.values() for _, vs in line for v in vs]))
        axes.set_xlabel("epsilon spent per patient (less is more private); none: no limit")
        axes.set_ylabel(AXIS)
        axes.grid(axis="y")
        handles = [_handle(style[strategy], called) for strategy, called in points]
        figure.legend(handles=handles, loc="outside right upper", handlelength=2.6)

    said = "; ".join(
        f"{called}: " + ", ".join(f"{sum(v) / len(v):.3f} at {_epsilon(x)}" for x, v in line)
        for (_, called), line in points.items()
    )
    caption = (
        "Mean over seeds; whiskers from the lowest to the highest seed. Epsilon is that of the "
        "site that spent most. Noise came from the seeds."
    )
    return picture(name, f"Privacy against utility: {title}", caption, said, (WIDTH, 4.0), draw)


def _place(epsilon: float | None) -> float | None:
    """Return an epsilon as the axis tells it."""
    return None if epsilon is None else round(epsilon, 1)


def _apart(values: Sequence[float]) -> list[float]:
    """Return values whose labels do not touch on a logarithmic axis."""
    kept: list[float] = []
    for value in values:
        if not kept or value > 1.2 * kept[-1]:
            kept.append(value)
    return kept


def _best_other(book: Book, scenario: str) -> Key | None:
    others = [name for name in book.federated(scenario) if name != BASELINE]
    return Key(scenario, others[0]) if others else None


def _points(
    axes: Axes, book: Book, keys: Sequence[Key | None], look: Look, aside: float
) -> list[float]:
    """Draw one line over the rungs; return all values drawn."""
    found = [(i, list(book.values(k).values())) for i, k in enumerate(keys) if k is not None]
    found = [(i, values) for i, values in found if values]
    xs = [i + aside for i, _ in found]
    means = [sum(values) / len(values) for _, values in found]
    size = 9 if look is BEST else None
    axes.plot(
        xs, means, color=look.colour, linestyle=look.line, marker=look.marker, markersize=size
    )
    axes.vlines(xs, [min(v) for _, v in found], [max(v) for _, v in found],
                color=look.colour, linewidth=1.1)  # fmt: skip
    return [value for _, values in found for value in values]


def _name_points(axes: Axes, book: Book, keys: Sequence[Key | None]) -> None:
    for i, key in enumerate(keys):
        value = None if key is None else book.value(key)
        if key is not None and value is not None:
            axes.annotate(
                shortened(key.strategy, 16), (i + 0.08, value), (5, 3),
                textcoords="offset points", fontsize=8, color=BEST.colour,
            )  # fmt: skip


def _handle(look: Look, name: str) -> Line2D:
    return Line2D(
        [], [], color=look.colour, linestyle=look.line, marker=look.marker, label=shortened(name)
    )


def _or_unknown(book: Book, key: Key) -> str:
    value = book.value(key)
    return "not known" if value is None else f"{value:.3f}"


def _epsilon(value: float | None) -> str:
    return "no privacy" if value is None else f"epsilon {value:.2g}"
