"""The compact tables a sweep ends with in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from simulations.aggregate import Aggregate, aggregate
from simulations.records import MEAN, WORST, Cell, Measurement
from simulations.report_sheet import SEEDED_NOISE
from simulations.results import Results

HEADLINE = "auc"
LEGEND = (
    "test: on the common test set (of sites alone: the mean over their models). worst, mean: of "
    "the sites, each on its own held-out patients; (k/n): defined at k of n. MB: sent, both ways."
)
"""Explains the tables; once under all of them is enough."""

_MODELS = ("global", "local", "personal")


def tables(results: Results, scenarios: Iterable[str]) -> list[Table]:
    """Return a table for each of these scenarios that has finished cells."""
    cells, wanted = results.cells(state="finished"), dict.fromkeys(scenarios)
    by_scenario = {name: [c for c in cells if c.scenario == name] for name in wanted}
    return [_table(results, name, found) for name, found in by_scenario.items() if found]


def noise_note(cells: Iterable[Cell]) -> str:
    """Return what every table of private simulations must say; empty without any."""
    seeded = any(cell.seeded_noise for cell in cells)
    return SEEDED_NOISE * seeded


def _table(results: Results, scenario: str, cells: Sequence[Cell]) -> Table:
    found = _figures(results.measurements(scenario=scenario, metric=HEADLINE, subgroup=""))
    caption = _caption(cells, found.values())
    seeds = len({cell.seed for cell in cells})
    title = f"{scenario}: AUC, {seeds} seed{'s' if seeds > 1 else ''}"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=0)
    table.title_justify = table.caption_justify = "left"
    table.add_column("strategy", no_wrap=True)
    for heading in ("test [95 %]", "worst", "mean", "epsilon", "rounds", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for strategy in dict.fromkeys(cell.strategy for cell in cells):
        same = [cell for cell in cells if cell.strategy == strategy]
        for model in _MODELS:
            test = found.get((strategy, model, "test", "" if model == "global" else MEAN))
            if test is None:
                continue
            worst, mean = (found.get((strategy, model, "own", site)) for site in (WORST, MEAN))
            name = strategy if model != "personal" else f"{strategy} (own)"
            scores = (_figure(test, interval=True), _figure(worst), _figure(mean, sites=True))
            table.add_row(name, *scores, *_costs(same))
    return table


def _figures(measurements: Iterable[Measurement]) -> dict[tuple[str, ...], Aggregate]:
    """Return the final figures by strategy, model, where and site."""
    final = (m for m in measurements if m.round < 0)
    return {(a.strategy, a.model, a.where, a.site): a for a in aggregate(final)}


def _figure(found: Aggregate | None, interval: bool = False, sites: bool = False) -> str:
    """Write a value, with its interval, or over how many sites it is if not over all."""
    if found is None or found.value is None:
        return "undefined"
    text = _short(found.value)
    if interval and found.low is not None and found.high is not None:
        text += f" [{_short(found.low)}, {_short(found.high)}]"
    return f"{text} ({found.over}/{found.of})" if sites and found.over < found.of else text


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _costs(cells: Sequence[Cell]) -> list[str]:
    epsilons = [cell.epsilon for cell in cells if cell.epsilon is not None]
    rounds = sorted({cell.rounds for cell in cells})
    sent = sum(cell.bytes_up + cell.bytes_down for cell in cells) / len(cells) / 1e6
    return [
        f"{max(epsilons):.2f}" if epsilons else "none",
        "-".join(str(n) for n in dict.fromkeys((rounds[0], rounds[-1]))),
        f"{sent:.3g}",
    ]


def _caption(cells: Sequence[Cell], figures: Iterable[Aggregate]) -> str:
    sources = {found.source for found in figures}
    over = "seeds (Student)" if "seeds" in sources else "test patients (bootstrap)"
    notes = [f"Intervals: over {over}.", noise_note(cells)]
    return " ".join(note for note in notes if note)
