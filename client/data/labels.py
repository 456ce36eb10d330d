"""Reading the hospital's labels table: a CSV file with the columns that `site.toml` names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.site import Columns
from shared.errors import DataError

LARGEST_TABLE = 64 * 2**20
"""Bytes; some 500,000 rows."""

DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Row:
    """One row of the table, white space around its values removed."""

    line: int  # in the file, from 1
    file: str
    patient: str  # empty where the table does not say
    label: str


def read_labels(path: Path, columns: Columns) -> tuple[Row, ...]:
    """Read a labels table.

    Raises:
        DataError: The table cannot be read, is not a CSV file in UTF-8, or lacks a column.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_TABLE + 1)
    except OSError as error:
        raise DataError(
            f"cannot read the labels table: {error.strerror}",
            str(path),
            "Check data.labels in site.toml and the file's access rights",
        ) from None
    return parse_labels(content, columns, str(path))


def parse_labels(content: bytes, columns: Columns, where: str) -> tuple[Row, ...]:
    """Parse a labels table: UTF-8, separated by comma, semicolon, tab or bar, header first.

    Args:
        content: The file's bytes.
        columns: Names of the columns; the one of the patient may be absent.
        where: Named in errors, which never quote the table.

    Returns:
        Its rows in order; empty lines are skipped, missing cells are empty strings.

    Raises:
        DataError: It is too large, not such a table, or lacks the file or label column.
    """
    if len(content) > LARGEST_TABLE:
        raise DataError(
            f"the labels table is larger than {LARGEST_TABLE // 2**20} MiB",
            where,
            "Keep only the columns and rows that are needed",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            "the labels table is not UTF-8 text", where, "Save it as 'CSV UTF-8'"
        ) from None
    try:
        return tuple(_rows(text, columns, where))
    except csv.Error as error:
        raise DataError(
            f"the labels table is not a valid CSV file: {error}", where, "Save it as CSV again"
        ) from None


def _rows(text: str, columns: Columns, where: str) -> Iterator[Row]:
    reader, positions = _open_table(text, columns, where)
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        file, patient, label = (
            cells[at].strip() if at is not None and at < len(cells) else "" for at in positions
        )
        yield Row(reader.line_num, file, patient, label)


def _open_table(text: str, columns: Columns, where: str) -> tuple[Any, list[int | None]]:
    """Return a reader behind the header, and where file, patient and label are in its rows."""
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        if columns.file in header and columns.label in header:
            break
    else:
        raise DataError(
            f"the labels table has no columns {columns.file!r} and {columns.label!r}",
            where,
            "Name its columns in data.columns of site.toml; the first line must hold the names",
        )
    names = (columns.file, columns.patient, columns.label)
    if twice := [name for name in names if header.count(name) > 1]:
        raise DataError(
            f"the labels table has two columns {twice[0]!r}", where, "Rename or remove one"
        )
    return reader, [header.index(name) if name in header else None for name in names]
