"""One column of a table of patients: from cells to scaled values, and what is wrong with them."""

from __future__ import annotations

import math
from collections import Counter

from client.data.report import ColumnReport, example_values, printable
from client.data.text import ABSENT, NUMBER
from client.site import Feature
from shared.study_parts import Column


class ColumnReader:
    """Reads the cells of one column and counts what is wrong with them.

    Args:
        column: As the study has it.
        feature: As the hospital has it.
        decimal: Sign before the decimals.
    """

    def __init__(self, column: Column, feature: Feature, decimal: str) -> None:
        self._column, self._feature, self._decimal = column, feature, decimal
        self._index = {name: float(at) for at, name in enumerate(column.categories)}
        self._absent = {self._parsed(text) for text in feature.missing} - {None}
        self._rows = self._missing = self._outside = 0
        self._unclear: Counter[str] = Counter()

    def read(self, cell: str) -> float:
        """Return a cell's value as the model takes it; NaN if it is missing or unclear."""
        value = self._number(cell) if not self._index else self._category(cell)
        self._rows += 1
        self._missing += value is None
        return math.nan if value is None else value

    def report(self, name: str, present: bool) -> ColumnReport:
        """Return what was found, for local eyes."""
        return ColumnReport(
            name=self._column.name,
            column=printable(name) if present else "",
            rows=self._rows,
            missing=self._missing,
            unclear=self._unclear.total(),
            outside=self._outside,
            examples=example_values(self._unclear),
        )

    def _category(self, cell: str) -> float | None:
        """Return a category's index; what a spreadsheet made of a number is that number."""
        if cell in self._feature.missing:
            return None
        text = self._feature.values.get(cell, cell)
        index = self._index.get(text)
        if index is None and (number := self._parsed(text)) is not None:
            index = self._index.get(f"{number:g}")
        if index is None and cell.lower() not in ABSENT:
            self._unclear[cell] += 1
        return index

    def _number(self, cell: str) -> float | None:
        if cell.lower() in ABSENT or cell in self._feature.missing:
            return None
        number = self._parsed(self._feature.values.get(cell, cell))
        if number is not None and number in self._absent:
            return None
        value = math.inf if number is None else number * self._feature.scale
        if not math.isfinite(value):
            self._unclear[cell] += 1
            return None
        low, high = self._column.low or 0.0, self._column.high or 0.0
        self._outside += not low <= value <= high
        return 2 * (min(max(value, low), high) - low) / (high - low) - 1

    def _parsed(self, text: str) -> float | None:
        if self._decimal != ".":
            text = text.replace(".", "?").replace(self._decimal, ".")
        return float(text) if NUMBER.fullmatch(text) else None
