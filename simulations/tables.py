"""Tables as data sets: a CSV file with one row a patient."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from client.data.columns import ColumnReader
from client.data.csv_file import Source, parse_csv, read_bytes
from client.site import Feature
from shared.errors import DataError, SimulationError
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
    decimal: Literal[".", ","] = Field(default=".", description="sign before the decimals")
    encoding: Literal["utf-8", "cp1252"] = "utf-8"
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
            self._values(rows)[0],
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
        notes = [] if len(everyone) == len(rows) else [_without_label(len(everyone) - len(rows))]
        notes += self._values(rows)[1]
        return rows, replace(facts, notes=tuple(notes))

    def _rows(self) -> list[Row]:
        wanted = [*(column.name for column in self.columns), self.label, *self.groups]
        return read_csv(Path(find_data(self.path)), wanted, wanted, self.encoding)

    def _values(self, rows: Sequence[Row]) -> tuple[npt.NDArray[np.float32], list[str]]:
        """Return the scaled columns, and a note on each that is not understood everywhere."""
        readers = column_readers(self.columns, self.missing, self.zero_missing, self.decimal)
        values = read_columns(rows, self.columns, readers)
        notes = []
        for column, reader in zip(self.columns, readers, strict=True):
            found = reader.report(column.name, present=True)
            if found.unclear and found.missing == len(rows):
                raise SimulationError(
                    f"no cell of column {column.name!r} is understood: {found.examples[0]!r}",
                    self.path,
                    "Set data.decimal, or correct the column",
                )
            if found.unclear:
                notes.append(f"column {column.name}: {found.unclear} cells not understood, missing")
        return values, notes

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


def read_csv(
    path: Path, wanted: Sequence[str], needed: Sequence[str], encoding: str = "utf-8"
) -> list[Row]:
    """Read a CSV file by the hospitals' own parser: what a simulation reads, a hospital reads.

    Args:
        path: The file.
        wanted: Names of the columns to read.
        needed: Those that must be there.
        encoding: Of the text.

    Raises:
        SimulationError: It cannot be read, is not such a file, or lacks a column.
    """
    columns = list(dict.fromkeys(wanted))
    source = Source("table", "data.path", "data", str(path), "the scenario")
    try:
        table = parse_csv(read_bytes(path, source), columns, needed, source, encoding)
    except DataError as error:
        raise SimulationError(error.what, str(path), error.todo) from None
    return [dict(zip(columns, line.cells, strict=True)) for line in table.lines]


def scaled_rows(
    rows: Sequence[Row],
    columns: Sequence[Column],
    missing: Collection[str],
    zero_missing: Collection[str] = (),
) -> npt.NDArray[np.float32]:
    """Return a table as a study takes it, read as a hospital reads it.

    Args:
        rows: The table, as text.
        columns: The study's columns.
        missing: Texts that mean that there is no value.
        zero_missing: Columns in which 0 means so too.

    Returns:
        float32 [rows, columns]: numbers from [low, high] to [-1, 1], those outside as the nearer
        end; categories as their index; NaN where there is no value, or no such category.
    """
    return read_columns(rows, columns, column_readers(columns, missing, zero_missing, "."))


def column_readers(
    columns: Sequence[Column],
    missing: Collection[str],
    zero_missing: Collection[str],
    decimal: str,
) -> list[ColumnReader]:
    """Return a hospital's reader for each column."""
    return [
        ColumnReader(
            column,
            Feature(missing=(*missing, *["0"] * (column.name in zero_missing))),
            decimal,
        )
        for column in columns
    ]


def read_columns(
    rows: Sequence[Row], columns: Sequence[Column], readers: Sequence[ColumnReader]
) -> npt.NDArray[np.float32]:
    """Return float32 [rows, columns]: what the readers make of each cell."""
    values = [
        [reader.read(row[column.name]) for column, reader in zip(columns, readers, strict=True)]
        for row in rows
    ]
    return np.array(values, dtype=np.float32).reshape(len(rows), len(columns))


def _without_label(count: int) -> str:
    return f"rows left out, as they have no label: {count}"


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
