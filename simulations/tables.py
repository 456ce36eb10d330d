"""Tables as data sets: a CSV file with one row a patient."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from shared.errors import SimulationError
from shared.study_parts import Column, Plan
from simulations.data_files import find_data
from simulations.parts import Indices
from simulations.patients import Dataset, Facts, Patients, require_classes, split_stratified

Row = dict[str, str]


class TableData(Plan):
    """A CSV table with a header line, one row a patient."""

    source: Literal["table"]
    path: str
    columns: tuple[Column, ...] = Field(min_length=1)
    label: str = Field(description="name of the label's column")
    values: dict[str, str] = Field(default_factory=dict, description="label value -> class")
    classes: tuple[str, ...] = Field(default=(), description="default: all labels, sorted")
    groups: tuple[str, ...] = Field(default=(), description="columns that group the patients")
    missing: tuple[str, ...] = Field(default=("", "?", "NA", "NaN"), description="no value")
    zero_missing: tuple[str, ...] = Field(default=(), description="columns where 0 means that")
    test_part: float = Field(default=0.25, gt=0, lt=1, description="patients for the common test")

    @model_validator(mode="after")
    def _known_columns(self) -> TableData:
        names = {column.name for column in self.columns}
        if self.label in names:
            raise ValueError(f"the label {self.label!r} must not be a column too")
        if unknown := [name for name in self.zero_missing if name not in names]:
            raise ValueError(f"zero_missing names {unknown[0]!r}, which is no column")
        return self

    def facts(self) -> Facts:
        """Return what the header, the labels and the groups say."""
        return self._read()[1]

    def load(self, seed: int) -> Dataset:
        """Read the table and set patients aside for the test, evenly by class and first group.

        Raises:
            SimulationError: The file or a column is missing.
        """
        rows, facts = self._read()
        patients = Patients(
            scaled_rows(rows, self.columns, self.missing, self.zero_missing),
            np.arange(len(rows), dtype=np.int64),
            self._labels(rows, facts),
            {
                name: cell_indices([row[name] for row in rows], cells)
                for name, cells in facts.group_names.items()
            },
        )
        return with_test(patients, facts, self.test_part, self.groups[:1], seed)

    def _read(self) -> tuple[list[Row], Facts]:
        """Return the rows that have a label, and what is known of them."""
        everyone = self._rows()
        rows = [row for row in everyone if row[self.label] not in self.missing]
        facts = self._facts(rows)
        require_classes(self._labels(rows, facts), facts)
        if lost := len(everyone) - len(rows):
            facts = replace(facts, notes=(f"rows left out, as they have no label: {lost}",))
        return rows, facts

    def _rows(self) -> list[Row]:
        path = find_data(self.path)
        rows = read_csv(Path(path))
        needed = [*(column.name for column in self.columns), self.label, *self.groups]
        header = rows[0] if rows else {}
        if lacking := [name for name in needed if name not in header]:
            raise SimulationError(
                f"the table has no column {lacking[0]!r}", path, "Its first line holds the names"
            )
        return rows

    def _labels(self, rows: Sequence[Row], facts: Facts) -> Indices:
        labels = [self.values.get(row[self.label], row[self.label]) for row in rows]
        return cell_indices(labels, facts.classes)

    def _facts(self, rows: Sequence[Row]) -> Facts:
        labels = {self.values.get(row[self.label], row[self.label]) for row in rows}
        classes = self.classes or tuple(sorted(labels))
        if strange := sorted(labels - set(classes)):
            raise SimulationError(
                f"the label {strange[0]!r} is none of the classes {list(classes)}",
                self.path,
                "Name it in data.classes, or give its class in data.values",
            )
        groups = {
            name: tuple(sorted({row[name] for row in rows} - set(self.missing)))
            for name in self.groups
        }
        return Facts(
            name=Path(self.path).stem, classes=classes, columns=self.columns, group_names=groups
        )


def read_csv(path: Path) -> list[Row]:
    """Read a CSV file in UTF-8: comma, semicolon, tab or bar, header first, values stripped.

    Raises:
        SimulationError: It cannot be read, or is not such a file.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        delimiter = max(",;\t|", key=lines[0].count) if lines else ","
        rows = csv.DictReader(lines, delimiter=delimiter, strict=True, restval="")
        return [{(k or "").strip(): (v or "").strip() for k, v in _text(row)} for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise SimulationError(
            "the table cannot be read", str(path), "Save it as CSV in UTF-8 with a header line"
        ) from None


def _text(row: dict[str, str]) -> list[tuple[str, str]]:
    """Return the cells of a row; those beyond the header, which DictReader lists, are left."""
    return [(key, value) for key, value in row.items() if isinstance(value, str)]


def scaled_rows(
    rows: Sequence[Row],
    columns: Sequence[Column],
    missing: Collection[str],
    zero_missing: Collection[str] = (),
) -> npt.NDArray[np.float32]:
    """Return a table as a study takes it.

    Args:
        rows: The table, as text.
        columns: The study's columns.
        missing: Texts that mean that there is no value.
        zero_missing: Columns in which 0 means so too.

    Returns:
        float32 [rows, columns]: numbers from [low, high] to [-1, 1], those outside as the nearer
        end; categories as their index; NaN where there is no value, or no such category.
    """
    values = np.full((len(rows), len(columns)), np.nan, dtype=np.float32)
    for place, column in enumerate(columns):
        index = {name: float(at) for at, name in enumerate(column.categories)}
        for at, row in enumerate(rows):
            text = row[column.name]
            if text in missing:
                continue
            number = _number(text)
            if column.name in zero_missing and number == 0:
                continue
            values[at, place] = (
                index.get(text, index.get(f"{number:g}", math.nan))
                if index
                else _scaled(number, column)
            )
    return values


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _scaled(number: float, column: Column) -> float:
    low, high = column.low or 0.0, column.high or 0.0  # both are set in columns of numbers
    return (min(max(number, low), high) - low) / (high - low) * 2 - 1


def cell_indices(texts: Sequence[str], cells: Sequence[str]) -> Indices:
    """Return int64 [n]: each text's place among the cells, -1 where it is none of them."""
    places = {name: at for at, name in enumerate(cells)}
    return np.array([places.get(text, -1) for text in texts], dtype=np.int64)


def with_test(
    patients: Patients, facts: Facts, part: float, groups: Sequence[str], seed: int
) -> Dataset:
    """Set patients aside for the common test, evenly by class and by these groups."""
    cells = patients.labels
    for name in groups:
        cells = cells * (len(facts.group_names[name]) + 1) + patients.groups[name] + 1
    train, test = split_stratified(cells, part, np.random.default_rng([seed, 13]))
    return Dataset(facts, patients.take(train), patients.take(test))
