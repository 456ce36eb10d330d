"""Where a report's figures come from: cells, their studies, and what failed."""

from __future__ import annotations

from dataclasses import astuple, fields, replace
from functools import cache

from simulations.aggregate import Aggregate
from simulations.records import Cell
from simulations.report_data import Book
from simulations.report_sheet import UNKNOWN, Sheet, count, listing, words


def failed_table(book: Book) -> Sheet:
    """Return the cells without figures, with the reason."""
    rows = [
        (c.scenario, c.strategy, str(c.seed), c.state, c.reason or "it was not finished")
        for c in book.unfinished()
    ]
    titles = ("Scenario", "Strategy", "Seed", "State", "Reason")
    return listing(titles, rows, "These cells are missing from every figure above")


def provenance_table(book: Book) -> Sheet:
    """Return one row a scenario and strategy: the study that ran, and how long it took."""
    rows = []
    for scenario in book.scenarios:
        for strategy in book.strategies(scenario):
            cells = book.finished(scenario, strategy)
            if cells:
                seeds = ", ".join(str(cell.seed) for cell in cells)
                seconds = sum(cell.seconds for cell in cells) / len(cells)
                peak = max(cell.peak_bytes for cell in cells) / 1e6
                digest = ", ".join(dict.fromkeys(cell.study_digest[:16] for cell in cells))
                rows.append(
                    (
                        words(scenario), words(strategy), words(digest), words(seeds),
                        count(seconds, ",.1f"), count(peak) if peak else UNKNOWN,
                    )
                )  # fmt: skip
    titles = ("Scenario", "Strategy", "Study digest", "Seeds", "Seconds a seed", "Peak memory, MB")
    caption = "Each digest's first 16 digits; tables/cells.csv has them whole"
    return Sheet(caption, titles, tuple(rows))


def cells_sheet(book: Book) -> Sheet:
    """Return every cell with all that is known of it, for the CSV."""
    names = [f.name for f in fields(Cell) if f.name not in ("scenario_text", "study_text")]
    rows = [[_flat(getattr(cell, name)) for name in names] for cell in book.cells]
    return listing(names, rows)


def figures_sheet(book: Book) -> Sheet:
    """Return every final figure over its seeds, for the CSV."""
    names = [f.name for f in fields(Aggregate)]
    found = [f for key in book.figures if key.round < 0 and (f := book.figure(key))]
    rows = [[_flat(value) for value in astuple(figure)] for figure in found]
    of_strategy = cache(book.seeded)
    seeded = tuple(of_strategy(figure.scenario, figure.strategy) for figure in found)
    return replace(listing(names, rows), seeded=seeded)


def _flat(value: object) -> str | int | float | None:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return "; ".join(f"{key}={part}" for key, part in value.items())
    return "; ".join(map(str, value)) if isinstance(value, tuple) else str(value)
