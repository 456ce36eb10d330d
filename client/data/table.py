"""The hospital's table of patients: from a CSV file to scaled values, one row a patient."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.data.csv_file import Line, Source, parse_csv, read_bytes
from client.data.labels import needed_findings, require_some
from client.data.reasons import Reason
from client.data.report import ColumnReport, printable
from client.data.targets import Target, is_known, merge_targets, read_target
from client.site import DataSource, Feature
from shared.study import Column, Study

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

ABSENT = frozenset({"", "?", "na", "n/a", "nan", "null"})
"""What stands for a missing value in lower case, unless it is a category of the study."""


@dataclass(frozen=True)
class TableRow:
    """One row of the table.

    Attributes:
        line: In the file, from 1.
        patient: The patient's id, as the hospital writes it.
        target: Its label; None if it has none that the study knows.
        values: One a column of the study: a number scaled from its range to [-1, 1], a
            category's index, NaN if it is missing.
        reason: Why it is set aside; None: it is not.
    """

    line: int
    patient: str
    target: Target | None
    values: tuple[float, ...]
    reason: Reason | None = None

    def aside(self, reason: Reason) -> TableRow:
        """Return the row set aside, keeping an earlier reason."""
        return self if self.reason else replace(self, reason=reason)


@dataclass(frozen=True)
class Patients:
    """What the table came to: its rows, and what was found in its columns."""

    rows: tuple[TableRow, ...]
    columns: tuple[ColumnReport, ...]


def read_table(path: Path, source: DataSource, study: Study) -> Patients:
    """Read a table of patients; see `parse_table`.

    Raises:
        DataError: The table cannot be read, is not a CSV file in UTF-8, or lacks a column.
    """
    return parse_table(read_bytes(path, _file(str(path))), source, study, str(path))


def parse_table(content: bytes, source: DataSource, study: Study, where: str) -> Patients:
    """Parse a table of patients, one row each.

    A column of the study that the table does not have counts as missing everywhere, unless the
    hospital named one for it. A value that cannot be understood counts as missing, one outside
    its range as the end of the range; both are counted. Rows that name no patient or label, or
    that disagree about a patient, are set aside.

    Args:
        content: The file's bytes.
        source: The hospital's names and units.
        study: The plan, with a table.
        where: Named in errors, which never quote the table.

    Raises:
        DataError: It is not such a table, or lacks the patient's or label's column, one the
            hospital named, or all of the study's.
    """
    columns = study.table.columns if study.table is not None else ()
    features = [source.features.get(column.name, Feature()) for column in columns]
    names = [f.column or c.name for f, c in zip(features, columns, strict=True)]
    findings = study.task.classes if study.task.findings else ()
    own = [source.columns.findings.get(finding, finding) for finding in findings]
    said = own if findings else [source.columns.label]
    needed = [source.columns.patient]
    needed += needed_findings(source.columns, findings) if findings else said
    needed += [feature.column for feature in features if feature.column]
    file = _file(where)
    table = parse_csv(content, [source.columns.patient, *said, *names], needed, file)
    first = 1 + len(said)
    if findings:
        require_some(table.present[1:first], own, file)
    require_some(table.present[first:], names, file)
    readers = [_Reader(c, f, source.decimal) for c, f in zip(columns, features, strict=True)]
    rows = [_row(line, first, readers, source.values, study) for line in table.lines]
    return Patients(
        rows=tuple(_settled(rows)),
        columns=tuple(
            reader.report(name, present)
            for reader, name, present in zip(readers, names, table.present[first:], strict=True)
        ),
    )


class _Reader:
    """Reads the cells of one column and counts what is wrong with them.

    Args:
        column: As the study has it.
        feature: As the hospital has it.
        decimal: Sign before the decimals.
    """

    def __init__(self, column: Column, feature: Feature, decimal: str) -> None:
        self._column, self._feature, self._decimal = column, feature, decimal
        self._index = {name: float(at) for at, name in enumerate(column.categories)}
        self._missing = self._unclear = self._outside = 0

    def read(self, cell: str) -> float:
        """Return a cell's value as the model takes it; NaN if it is missing or unclear."""
        value = self._number(cell) if not self._index else self._category(cell)
        self._missing += value is None
        return math.nan if value is None else value

    def report(self, name: str, present: bool) -> ColumnReport:
        """Return what was found, for local eyes."""
        return ColumnReport(
            name=self._column.name,
            column=printable(name) if present else "",
            missing=self._missing,
            unclear=self._unclear,
            outside=self._outside,
        )

    def _category(self, cell: str) -> float | None:
        if cell in self._feature.missing:
            return None
        index = self._index.get(self._feature.values.get(cell, cell))
        if index is None and cell.lower() not in ABSENT:
            self._unclear += 1
        return index

    def _number(self, cell: str) -> float | None:
        if cell.lower() in ABSENT or cell in self._feature.missing:
            return None
        low, high = self._column.low or 0.0, self._column.high or 0.0
        text = self._feature.values.get(cell, cell)
        if self._decimal != ".":
            text = text.replace(".", "?").replace(self._decimal, ".")
        value = float(text) * self._feature.scale if NUMBER.fullmatch(text) else math.nan
        if not math.isfinite(value):
            self._unclear += 1
            return None
        self._outside += not low <= value <= high
        return 2 * (min(max(value, low), high) - low) / (high - low) - 1


def _row(
    line: Line, first: int, readers: Sequence[_Reader], values: Mapping[str, str], study: Study
) -> TableRow:
    patient, *said = line.cells[:first]
    target = read_target(said[0], said, values, study.task)
    row = TableRow(
        line=line.number,
        patient=patient,
        target=target,
        values=tuple(
            reader.read(cell) for reader, cell in zip(readers, line.cells[first:], strict=True)
        ),
    )
    if not patient:
        return row.aside(Reason.NO_PATIENT_ID)
    if not any(said):
        return row.aside(Reason.INCOMPLETE_ROW)
    if target is None:
        return row.aside(Reason.CLASS_NOT_IN_STUDY)
    return row if is_known(target) else row.aside(Reason.NO_KNOWN_FINDING)


def _settled(rows: Iterable[TableRow]) -> list[TableRow]:
    """Set aside what is said twice, and every row of patients about whom rows disagree."""
    settled = list(rows)
    by_patient: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(settled):
        if row.patient:
            by_patient[row.patient].append(position)
    for positions in by_patient.values():
        if len(positions) == 1:
            continue
        targets = [row.target for at in positions if (row := settled[at]).target is not None]
        usable = [at for at in positions if settled[at].reason is None]
        if targets and merge_targets(targets) is None:
            for at in positions:
                settled[at] = settled[at].aside(Reason.CONTRADICTORY_LABELS)
        elif len({_content(settled[at]) for at in usable}) == 1:
            for at in usable[1:]:
                settled[at] = settled[at].aside(Reason.DUPLICATE_ROW)
        else:
            for at in usable:
                settled[at] = settled[at].aside(Reason.CONFLICTING_ROWS)
    return settled


def _content(row: TableRow) -> tuple[object, ...]:
    """Return what a row says in a form in which two missing values are equal."""
    return (row.target, *(None if math.isnan(value) else value for value in row.values))


def _file(where: str) -> Source:
    return Source("table of patients", "data.table", "data.columns or data.features", where)
