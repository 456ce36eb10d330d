"""What the strategies of a report are: in their own words, and by the remedies that ran."""

from __future__ import annotations

from shared.explain_remedies import remedies
from shared.study import Study
from simulations.records import Cell
from simulations.report_data import Book


def strategies_told(book: Book, scenario: str) -> list[tuple[str, str]]:
    """Return each strategy with its description and every remedy its study switches on.

    A remedy of the scenario's own study, such as a way to meet missing values, is in all of them.
    """
    return [(name, _told(book.planned(scenario, name)[0])) for name in book.strategies(scenario)]


def _told(cell: Cell) -> str:
    study = Study.model_validate_json(cell.study_text)
    said = [f"{cell.description[:1].upper()}{cell.description[1:]}"] if cell.description else []
    said += [f"{it.name[:1].upper()}{it.name[1:]}: {it.does}" for it in remedies(study)]
    return " ".join(text if text.endswith(".") else f"{text}." for text in said)
