"""Reading a hospital's CSV file, whatever its spreadsheet made of it: some columns, by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.text import plain
from shared.errors import DataError

LARGEST_TABLE = 64 * 2**20
"""Bytes; some 500,000 rows."""

DELIMITERS = ",;\t|"


ENCODINGS = {"utf-8": "utf-8-sig", "cp1252": "cp1252"}
"""What `data.encoding` may be, as Python calls it."""

MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""How files of other encodings begin."""


@dataclass(frozen=True)
class Source:
    """Which file this is, for errors, which never quote it.

    Attributes:
        name: What it is, such as `labels table`.
        setting: Key of the settings that names it.
        columns: Section of the settings that names its columns.
        where: Its path.
        settings: What the settings are called.
    """

    name: str
    setting: str
    columns: str
    where: str
    settings: str = "site.toml"


@dataclass(frozen=True)
class Line:
    """One line of the file that is not empty.

    Attributes:
        number: In the file, from 1; of the last one if a cell goes over several.
        cells: One for each column asked for, as `plain` returns them; empty where there is none.
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
            f"Check {source.setting} in {source.settings} and the file's access rights",
        ) from None


def parse_csv(
    content: bytes,
    wanted: Sequence[str],
    needed: Sequence[str],
    source: Source,
    encoding: str = "utf-8",
) -> CsvFile:
    """Parse text separated by comma, semicolon, tab or bar, with names in the first line.

    No row is lost without a word: a stray quotation mark that would swallow rows, and a row of
    more cells than there are names, are refused with their line.

    Args:
        content: The file's bytes.
        wanted: Names of the columns to return.
        needed: Those of them that must be there; they tell the separator.
        source: For errors.
        encoding: One of `ENCODINGS`.

    Raises:
        DataError: It is too large, not such a file, lacks a column or has one twice.
    """
    text = _decoded(content, source, encoding)
    physical = list(io.StringIO(text, newline=""))
    for delimiter in DELIMITERS:
        header = _header(physical, delimiter)
        if all(name in header for name in needed):
            break
    else:
        closest = max((_header(physical, sign) for sign in DELIMITERS), key=len)
        lacking = [name for name in needed if name not in closest] or needed
        raise DataError(
            f"the {source.name} has no columns {' and '.join(map(repr, lacking))}",
            source.where,
            f"Name its columns in {source.columns} of {source.settings}; the first line must hold "
            "the names",
        )
    if twice := [name for name in wanted if header.count(name) > 1]:
        raise DataError(
            f"the {source.name} has two columns {twice[0]!r}", source.where, "Rename or remove one"
        )
    at = [header.index(name) if name in header else None for name in wanted]
    lines = tuple(_lines(_rows(physical, delimiter, source), len(header), at, source))
    return CsvFile(tuple(place is not None for place in at), lines[1:])


def _decoded(content: bytes, source: Source, encoding: str) -> str:
    if len(content) > LARGEST_TABLE:
        raise DataError(
            f"the {source.name} is larger than {LARGEST_TABLE // 2**20} MiB",
            source.where,
            "Keep only the columns and rows that are needed",
        )
    marked = content.startswith(b"\xef\xbb\xbf")  # says itself that it is UTF-8
    name, where = MARKS.get(content[:2], ""), source.where
    try:
        if not name:
            return content.decode(ENCODINGS["utf-8" if marked else encoding])
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        name = f"not {encoding.upper()} text"
        where = f"{source.where}, line {line}"
    other = "utf-8" if encoding != "utf-8" else "cp1252"
    raise DataError(
        f"the {source.name} is {name}",
        where,
        f"Save it as 'CSV UTF-8', or set data.encoding = {other!r} in {source.settings} if Excel "
        "on Windows wrote it",
    )


def _header(physical: Sequence[str], delimiter: str) -> list[str]:
    """Return the names in the first row, none if it cannot be read with this separator."""
    try:
        return [plain(name) for name in next(csv.reader(physical, delimiter=delimiter), [])]
    except csv.Error:
        return []


def _rows(
    physical: Sequence[str], delimiter: str, source: Source
) -> Iterator[tuple[int, list[str]]]:
    """Yield each row's last line and cells.

    Raises:
        DataError: A quotation mark is where none belongs.
    """
    reader = csv.reader(physical, delimiter=delimiter, strict=True)
    width = 0
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if any('"' in line for line in physical[first - 1 : reader.line_num]):
                raise _stray(source, first) from None
            raise DataError(
                f"line {first} of the {source.name} is not valid CSV: {error}",
                source.where,
                "Save it as CSV again",
            ) from None
        width = width or len(cells)
        inside = physical[first : reader.line_num]
        if any(len(next(csv.reader([line], delimiter=delimiter), [])) == width for line in inside):
            raise _stray(source, first)
        yield reader.line_num, cells


def _stray(source: Source, line: int) -> DataError:
    return DataError(
        f"a quotation mark in line {line} of the {source.name} is not closed where its cell ends, "
        "and would swallow the rows below",
        source.where,
        "Remove it, or double it if it belongs to the text; a line break inside a cell must go too",
    )


def _lines(
    rows: Iterable[tuple[int, list[str]]],
    width: int,
    places: Sequence[int | None],
    source: Source,
) -> Iterator[Line]:
    for number, cells in rows:
        if any(cell.strip() for cell in cells[width:]):
            raise DataError(
                f"line {number} of the {source.name} has more cells than there are names",
                source.where,
                "Put a cell that holds the separator, such as a decimal comma, in quotation marks, "
                "or give its column a name",
            )
        if any(cell.strip() for cell in cells):
            found = (
                plain(cells[at]) if at is not None and at < len(cells) else "" for at in places
            )
            yield Line(number, tuple(found))
