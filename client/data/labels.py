"""Reading the hospital's labels table: a CSV file with the columns that `site.toml` names."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.csv_file import Source, parse_csv, read_bytes
from client.data.report import ColumnReport, example_values, printable
from client.data.targets import PRESENCE, is_unclear
from client.site import Columns, DataSource, Site
from shared.errors import DataError


@dataclass(frozen=True)
class Row:
    """One row of the table, white space around its values removed."""

    line: int  # in the file, from 1
    file: str
    patient: str  # empty where the table does not say
    label: str  # empty in studies of findings
    findings: tuple[str, ...] = ()  # one a finding, in studies of findings


@dataclass(frozen=True)
class Labels:
    """A labels table.

    Attributes:
        rows: In order.
        findings: What was found in the columns of the findings, if the study has some.
    """

    rows: tuple[Row, ...]
    findings: tuple[ColumnReport, ...] = ()


def read_labels(path: Path, data: DataSource, findings: Sequence[str] = ()) -> Labels:
    """Read a labels table; see `parse_labels`.

    Raises:
        DataError: The table cannot be read, is not a CSV file of text, or lacks a column.
    """
    content = read_bytes(path, _source(str(path)))
    return parse_labels(content, data, str(path), findings)


def parse_labels(
    content: bytes, data: DataSource, where: str, findings: Sequence[str] = ()
) -> Labels:
    """Parse a labels table: separated by comma, semicolon, tab or bar, header first.

    Args:
        content: The file's bytes.
        data: The hospital's names, values and encoding; the column of the patient may be absent.
        where: Named in errors, which never quote the table.
        findings: The study's findings, which may have a column each: with them, no column of
            labels is needed, and a finding without a column is known of nobody.

    Returns:
        Its rows; empty lines are skipped, missing cells are empty strings.

    Raises:
        DataError: It is too large, not such a table, or lacks the file or label column, one
            that `columns.findings` names, or all findings.
    """
    source, columns = _source(where), data.columns
    if not findings:
        wanted = [columns.file, columns.patient, columns.label]
        needed = [columns.file, columns.label]
        table = parse_csv(content, wanted, needed, source, data.encoding)
        return Labels(
            tuple(
                Row(line.number, file, patient, label)
                for line in table.lines
                for file, patient, label in [line.cells]
            )
        )
    named = [columns.findings.get(finding, finding) for finding in findings]
    wanted = [columns.file, columns.patient, *named]
    needed = [columns.file, *needed_findings(columns, findings)]
    table = parse_csv(content, wanted, needed, source, data.encoding)
    require_some(table.present[2:], named, source)
    rows = [
        Row(line.number, line.cells[0], line.cells[1], "", line.cells[2:]) for line in table.lines
    ]
    said = [row.findings for row in rows]
    return Labels(tuple(rows), report_findings(said, table.present[2:], findings, data))


def report_findings(
    cells: Sequence[Sequence[str]],
    present: Sequence[bool],
    names: Sequence[str],
    data: DataSource,
) -> tuple[ColumnReport, ...]:
    """Return what was found in the columns of findings, for local eyes.

    Args:
        cells: Those of the findings in each row, in the study's order.
        present: Whether the table has a column for each finding.
        names: The findings' names in the study.
        data: The hospital's names and values.
    """
    found = []
    for at, (name, there) in enumerate(zip(names, present, strict=True)):
        said = [row[at] for row in cells]
        unclear = Counter(cell for cell in said if is_unclear(cell, data.values))
        known = sum(data.values.get(cell, cell) in PRESENCE for cell in said)
        found.append(
            ColumnReport(
                name=name,
                column=printable(data.columns.findings.get(name, name)) if there else "",
                rows=len(said),
                missing=len(said) - known,
                unclear=unclear.total(),
                examples=example_values(unclear),
            )
        )
    return tuple(found)


def names_patient(site: Site, patient: str) -> bool:
    """Tell whether the labels table or the table of patients names a patient."""
    data = site.config.data
    for path in filter(None, (data.labels, data.table)):
        with contextlib.suppress(DataError):  # no such file or column: then it does not
            source = _source(str(path))
            content = read_bytes(site.resolve(path), source)
            column = [data.columns.patient]
            lines = parse_csv(content, column, column, source, data.encoding).lines
            if any(line.cells == (patient,) for line in lines):
                return True
    return False


def needed_findings(columns: Columns, findings: Sequence[str]) -> list[str]:
    """Return the columns the hospital itself named, which must be there; others need not."""
    return [columns.findings[finding] for finding in findings if finding in columns.findings]


def require_some(present: Sequence[bool], names: Sequence[str], source: Source) -> None:
    """Refuse a table that has none of these columns: nobody would mean that.

    Raises:
        DataError: It has none.
    """
    if not any(present):
        raise DataError(
            f"the {source.name} has none of the columns {', '.join(map(repr, names))}",
            source.where,
            f"Name its columns in {source.columns} of site.toml",
        )


def _source(where: str) -> Source:
    return Source("labels table", "data.labels", "data.columns", where)
