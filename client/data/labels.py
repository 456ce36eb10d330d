"""Reading the hospital's labels table: a CSV file with the columns that `site.toml` names."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.csv_file import Source, parse_csv, read_bytes
from client.site import Columns, Site
from shared.errors import DataError


@dataclass(frozen=True)
class Row:
    """One row of the table, white space around its values removed."""

    line: int  # in the file, from 1
    file: str
    patient: str  # empty where the table does not say
    label: str  # empty in studies of findings
    findings: tuple[str, ...] = ()  # one a finding, in studies of findings


def read_labels(path: Path, columns: Columns, findings: Sequence[str] = ()) -> tuple[Row, ...]:
    """Read a labels table; see `parse_labels`.

    Raises:
        DataError: The table cannot be read, is not a CSV file in UTF-8, or lacks a column.
    """
    content = read_bytes(path, _source(str(path)))
    return parse_labels(content, columns, str(path), findings)


def parse_labels(
    content: bytes, columns: Columns, where: str, findings: Sequence[str] = ()
) -> tuple[Row, ...]:
    """Parse a labels table: UTF-8, separated by comma, semicolon, tab or bar, header first.

    Args:
        content: The file's bytes.
        columns: Names of the columns; the one of the patient may be absent.
        where: Named in errors, which never quote the table.
        findings: The study's findings, which may have a column each: with them, no column of
            labels is needed, and a finding without a column is known of nobody.

    Returns:
        Its rows in order; empty lines are skipped, missing cells are empty strings.

    Raises:
        DataError: It is too large, not such a table, or lacks the file or label column, one
            that `columns.findings` names, or all findings.
    """
    source = _source(where)
    if not findings:
        wanted = [columns.file, columns.patient, columns.label]
        table = parse_csv(content, wanted, [columns.file, columns.label], source)
        return tuple(
            Row(line.number, file, patient, label)
            for line in table.lines
            for file, patient, label in [line.cells]
        )
    named = [columns.findings.get(finding, finding) for finding in findings]
    wanted, needed = [columns.file, columns.patient, *named], [columns.file]
    table = parse_csv(content, wanted, needed + needed_findings(columns, findings), source)
    require_some(table.present[2:], named, source)
    return tuple(
        Row(line.number, line.cells[0], line.cells[1], "", line.cells[2:]) for line in table.lines
    )


def names_patient(site: Site, patient: str) -> bool:
    """Tell whether the labels table or the table of patients names a patient."""
    data = site.config.data
    for path in filter(None, (data.labels, data.table)):
        with contextlib.suppress(DataError):  # no such file or column: then it does not
            source = _source(str(path))
            content = read_bytes(site.resolve(path), source)
            column = [data.columns.patient]
            lines = parse_csv(content, column, column, source).lines
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
