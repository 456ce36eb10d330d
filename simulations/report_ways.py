"""What the strategies of a report are: in their own words, and by the remedies that ran."""

from __future__ import annotations

from shared.explain_remedies import remedies
from simulations.report_data import Book


def strategies_told(book: Book, scenario: str) -> list[tuple[str, str]]:
    """Return each strategy with its description and every remedy its study switches on.

    A remedy of the scenario's own study, such as a way to meet missing values, is in all of them.
    """
    return [(name, _told(book, scenario, name)) for name in book.strategies(scenario)]


def _told(book: Book, scenario: str, strategy: str) -> str:
    said = [book.planned(scenario, strategy)[0].description]
    said += [f"{it.name}: {it.does}" for it in remedies(book.study(scenario, strategy))]
    return " ".join(f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in said if text)
