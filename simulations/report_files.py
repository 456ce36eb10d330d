"""The files of a report: which pictures and tables there are, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from server.files import write_atomically
from simulations.plots import Look, Picture, looks
from simulations.plots_results import learning_curves, worst_site
from simulations.plots_sites import what_is_missing, who_has_what, who_took_part
from simulations.plots_sweep import ladder_picture, ladders, privacy_pictures
from simulations.report_data import Book
from simulations.report_origin import cells_sheet, figures_sheet
from simulations.report_page import Chapter, page
from simulations.report_sheet import Sheet, to_csv
from simulations.report_sites import sites_table
from simulations.report_tables import overview_table, strategies_table, subgroups_table


def write(folder: Path, book: Book) -> Path:
    """Write page, pictures and tables into a folder; return where the page is.

    Raises:
        CoordinatorError: Nothing can be written there.
    """
    style = looks([cell.strategy for cell in book.cells])
    files = _names(book)
    across = _across(book, style)
    chapters = [_chapter(book, name, files[name], style) for name in book.scenarios]
    figures, tables = folder / "figures", folder / "tables"
    figures.mkdir(exist_ok=True)
    tables.mkdir(exist_ok=True)
    every = [*across, *(p for c in chapters for p in (*c.federation, *c.results))]
    for picture in every:
        write_atomically(figures / f"{picture.name}.svg", picture.svg)
        write_atomically(figures / f"{picture.name}.png", picture.png)
    for name, text in _csv_files(book, chapters, files).items():
        write_atomically(tables / f"{name}.csv", text.encode())
    out = folder / "report.html"
    write_atomically(out, page(book, chapters, across, overview_table(book)).encode())
    return out


def _names(book: Book) -> dict[str, str]:
    """Return what the files of each scenario are called."""
    found: dict[str, str] = {}
    for scenario in book.scenarios:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", scenario).strip(".-")[:60] or "scenario"
        taken = set(found.values())
        number = next(n for n in range(1, len(taken) + 2) if _numbered(name, n) not in taken)
        found[scenario] = _numbered(name, number)
    return found


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _across(book: Book, style: Mapping[str, Look]) -> list[Picture]:

    rungs = [
        ladder_picture(f"ladder-{i + 1}", book, ladder, style)
        for i, ladder in enumerate(ladders(book))
    ]
    return [*rungs, *privacy_pictures("privacy", book, style)]


def _chapter(book: Book, scenario: str, file: str, style: Mapping[str, Look]) -> Chapter:

    results = (
        learning_curves(f"{file}-curves", book, scenario, style),
        worst_site(f"{file}-worst-site", book, scenario, style),
    )
    federation, remarks = _federation(book, scenario, file)
    tables: dict[str, Sheet] = {"Strategies": strategies_table(book, scenario)}
    if book.site_names(scenario):
        tables["Sites"] = sites_table(book, scenario)
    if groups := subgroups_table(book, scenario):
        tables["Subgroups"] = groups
    return Chapter(scenario, federation, remarks, [p for p in results if p], tables)


def _federation(book: Book, scenario: str, file: str) -> tuple[list[Picture], list[str]]:
    """Return pictures of what the sites had and did, and what can be said without one."""
    cell = book.sample(scenario)
    if cell is None:
        return [], []
    pictures, remarks = [], []
    if rows := book.sites[cell.id]:
        pictures.append(who_has_what(f"{file}-who-has-what", rows, cell.classes, cell.findings))
    if missing := [row for row in book.missing[cell.id] if row.of]:
        sites = book.site_names(scenario)
        pictures.append(what_is_missing(f"{file}-missing", missing, sites))
    else:
        remarks.append("Nothing is missing: every site has its labels, images and values.")
    parts = [part for part in book.parts[cell.id] if 1 <= part.round <= cell.rounds]
    if any(part.state != "update" for part in parts):
        pictures.append(who_took_part(f"{file}-took-part", parts, cell.rounds))
    elif parts:
        remarks.append("Every site took part in every round.")
    if pictures:
        remarks.append(
            f"Pictures of sites show strategy {cell.strategy} with seed {cell.seed}; other seeds "
            "draw other patients by the same rules."
        )
    return pictures, remarks


def _csv_files(book: Book, chapters: list[Chapter], files: Mapping[str, str]) -> dict[str, str]:

    texts = {
        "overview": to_csv([("", overview_table(book))], ""),
        "strategies": to_csv([(c.scenario, c.tables["Strategies"]) for c in chapters]),
        "figures": to_csv([("", figures_sheet(book))], ""),
        "cells": to_csv([("", cells_sheet(book))], ""),
    }
    for chapter in chapters:
        for title in ("Sites", "Subgroups"):
            if sheet := chapter.tables.get(title):
                name = f"{title.lower()}-{files[chapter.scenario]}"
                texts[name] = to_csv([(chapter.scenario, sheet)])
    return texts
