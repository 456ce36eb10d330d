"""The hospital's table of patients: from a CSV file to scaled values, one row a patient."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.data.columns import ColumnReader
from client.data.csv_file import Line, Source, parse_csv, read_bytes
from client.data.labels import needed_findings, report_findings, require_some
from client.data.reasons import Reason
from client.data.report import ColumnReport
from client.data.targets import Target, is_known, merge_targets, read_target
from client.site import DataSource, Feature
from shared.study import Study


@dataclass(frozen=True)
class TableRow:
    """One row of the table.

    Attributes:
        line: In the file, from 1.
        patient: The patient's id, as the hospital writes it.
        target: Its label; None if it has none that the study knows.
        values: One a column of the study: a number scaled from its range to [-1, 1], a
            category's index, NaN if it is missing.
        label: As the table has it; empty in studies of findings.
        reason: Why it is set aside; None: it is not.
    """

    line: int
    patient: str
    target: Target | None
    values: tuple[float, ...]
    label: str = ""
    reason: Reason | None = None

    def aside(self, reason: Reason) -> TableRow:
        """Return the row set aside, keeping an earlier reason."""
        return self if self.reason else replace(self, reason=reason)


@dataclass(frozen=True)
class Patients:
    """What the table came to: its rows, and what was found in its columns."""

    rows: tuple[TableRow, ...]
    columns: tuple[ColumnReport, ...]
    findings: tuple[ColumnReport, ...] = ()


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
    wanted = [source.columns.patient, *said, *names]
    table = parse_csv(content, wanted, needed, file, source.encoding)
    first = 1 + len(said)
    if findings:
        require_some(table.present[1:first], own, file)
    require_some(table.present[first:], names, file)
    readers = [ColumnReader(c, f, source.decimal) for c, f in zip(columns, features, strict=True)]
    rows = [_row(line, first, readers, source.values, study) for line in table.lines]
    return Patients(
        rows=tuple(_settled(rows)),
        columns=tuple(
            reader.report(name, present)
            for reader, name, present in zip(readers, names, table.present[first:], strict=True)
        ),
        findings=report_findings(
            [line.cells[1:first] for line in table.lines],
            table.present[1 : 1 + len(findings)],
            findings,
            source,
        ),
    )


def _row(
    line: Line, first: int, readers: Sequence[ColumnReader], values: Mapping[str, str], study: Study
) -> TableRow:
    patient, *said = line.cells[:first]
    target = read_target(said[0], said, values, study.task)
    row = TableRow(
        line=line.number,
        patient=patient,
        target=target,
        label="" if study.task.findings else said[0],
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
