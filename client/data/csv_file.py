"""Reading a hospital's CSV file, whatever its spreadsheet made of it: some columns, by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError

LARGEST_TABLE = 64 * 2**20
"""Bytes; some 500,000 rows."""

DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Source:
    """Which file this is, for errors, which never quote it.

    Attributes:
        name: What it is, such as `labels table`.
        setting: Key of `site.toml` that names it.
        columns: Section of `site.toml` that names its columns.
        where: Its path.
    """

    name: str
    setting: str
    columns: str
    where: str


@dataclass(frozen=True)
class Line:
    """One line of the file that is not empty.

    Attributes:
        number: In the file, from 1; of the last one if a cell goes over several.
        cells: One for each column asked for, white space removed; empty where there is none.
    """

    number: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class CsvFile:
    """The columns asked for.

    Attributes:
        present: Whether the file has each of them.
        lines: In the file's order.
    """

    present: tuple[bool, ...]
    lines: tuple[Line, ...]


def read_bytes(path: Path, source: Source) -> bytes:
    """Read a file, at most a byte more than `parse_csv` accepts.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_TABLE + 1)
    except OSError as error:
        raise DataError(
            f"cannot read the {source.name}: {error.strerror}",
            source.where,
            f"Check {source.setting} in site.toml and the file's access rights",
        ) from None


def parse_csv(
    content: bytes, wanted: Sequence[str], needed: Sequence[str], source: Source
) -> CsvFile:
    """Parse UTF-8 text separated by comma, semicolon, tab or bar, with names in the first line.

    Args:
        content: The file's bytes.
        wanted: Names of the columns to return.
        needed: Those of them that must be there; they tell the separator.
        source: For errors.

    Raises:
        DataError: It is too large, not such a file, lacks a column or has one twice.
    """
    if len(content) > LARGEST_TABLE:
        raise DataError(
            f"the {source.name} is larger than {LARGEST_TABLE // 2**20} MiB",
            source.where,
            "Keep only the columns and rows that are needed",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            f"the {source.name} is not UTF-8 text", source.where, "Save it as 'CSV UTF-8'"
        ) from None
    try:
        reader, positions = _open(text, wanted, needed, source)
        present = tuple(position is not None for position in positions)
        return CsvFile(present, tuple(_lines(reader, positions)))
    except csv.Error as error:
        raise DataError(
            f"the {source.name} is not a valid CSV file: {error}",
            source.where,
            "Save it as CSV again",
        ) from None


def _open(
    text: str, wanted: Sequence[str], needed: Sequence[str], source: Source
) -> tuple[Any, list[int | None]]:
    """Return a reader behind the header, and where the wanted columns are in its rows."""
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        if all(name in header for name in needed):
            break
    else:
        names = " and ".join(repr(name) for name in needed)
        raise DataError(
            f"the {source.name} has no columns {names}",
            source.where,
            f"Name its columns in {source.columns} of site.toml; the first line must hold the "
            "names",
        )
    if twice := [name for name in wanted if header.count(name) > 1]:
        raise DataError(
            f"the {source.name} has two columns {twice[0]!r}", source.where, "Rename or remove one"
        )
    return reader, [header.index(name) if name in header else None for name in wanted]


def _lines(reader: Any, positions: Sequence[int | None]) -> Iterator[Line]:
    for cells in reader:
        if any(cell.strip() for cell in cells):
            found = (
                cells[at].strip() if at is not None and at < len(cells) else "" for at in positions
            )
            yield Line(reader.line_num, tuple(found))
