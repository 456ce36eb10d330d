"""Tables of a report: rows of entries that are shown on the page and written as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server.markup import Html, element, table
from simulations.aggregate import Aggregate
from simulations.report_stats import Difference, GapClosed

Value = float | int | str | None


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        text: As the page shows it.
        value: As the CSV has it; a number is aligned right.
        low: Lower end of its interval, for the CSV.
        high: Its upper end.
        notes: Small lines below, on the page only.
        mark: "good", "bad" or nothing: how the page stresses it.
    """

    text: str
    value: Value = None
    low: float | None = None
    high: float | None = None
    notes: tuple[str, ...] = ()
    mark: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        caption: What it shows and how to read it.
        titles: Heads of the columns.
        rows: As many entries as titles each.
    """

    caption: str
    titles: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]


UNKNOWN = Entry("–")


def words(text: str, *notes: str) -> Entry:
    """Return an entry of text."""
    return Entry(text, text, notes=notes)


def count(number: float, form: str = ",.0f") -> Entry:
    """Return an entry of a number without an interval."""
    return Entry(format(number, form), number)


def estimate(figure: Aggregate | None) -> Entry:
    """Return a figure: its mean over seeds, their interval in brackets, the bootstrap's below."""
    if figure is None:
        return UNKNOWN
    if figure.value is None:
        return Entry("undefined", None)
    notes = []
    low, high = (figure.low, figure.high) if figure.source == "seeds" else (None, None)
    if low is not None and high is not None:
        notes.append(f"[{_short(low)}–{_short(high)}]")
    if figure.patients_low is not None and figure.patients_high is not None:
        notes.append(f"({_short(figure.patients_low)}–{_short(figure.patients_high)})")
    return Entry(f"{figure.value:.3f}", figure.value, figure.low, figure.high, tuple(notes))


def change(found: Difference | None) -> Entry:
    """Return how much higher something is, and whether that is clear."""
    if found is None:
        return UNKNOWN
    notes: tuple[str, ...] = ()
    if found.low is not None and found.high is not None:
        notes = (f"[{_short(found.low, '+')} to {_short(found.high, '+')}]",)
    said = {"higher": ("gains", "good"), "lower": ("loses", "bad"), "unclear": ("", "")}
    word, mark = said[found.verdict]
    text = f"{found.mean:+.3f} {word}".rstrip()
    return Entry(text, found.mean, found.low, found.high, notes, mark)


def part_closed(gap: GapClosed) -> Entry:
    """Return a part of the gap in percent, or why there is none."""
    if gap.value is None:
        return Entry("not defined", None, notes=(gap.reason,))
    notes: tuple[str, ...] = ()
    if gap.low is not None and gap.high is not None:
        notes = (f"[{100 * gap.low:.0f} to {100 * gap.high:.0f} %]",)
    return Entry(f"{100 * gap.value:.0f} %", gap.value, gap.low, gap.high, notes)


def show(sheet: Sheet, kind: str = "dense") -> Html:
    """Return the table as HTML, of a class of the style sheet."""
    numeric = {
        i
        for i in range(1, len(sheet.titles))
        if not any(isinstance(row[i].value, str) for row in sheet.rows)
    }
    rows = [[_shown(entry) for entry in row] for row in sheet.rows]
    return element("div", table(sheet.caption, sheet.titles, rows, numeric), class_=kind)


def to_csv(sheets: Iterable[tuple[str, Sheet]], name: str = "scenario") -> str:
    """Return sheets of the same columns as one CSV text.

    A number that has an interval anywhere gets two more columns, its ends. Text that a
    spreadsheet would take for a formula is led by an apostrophe.

    Args:
        sheets: Each with what goes into a first column.
        name: Head of that column; empty: there is none.
    """
    every = list(sheets)
    rows = [(lead, row) for lead, sheet in every for row in sheet.rows]
    titles = every[0][1].titles if every else ()
    ranged = {i for i in range(len(titles)) for _, row in rows if row[i].low is not None}
    heads = [name] if name else []
    for i, title in enumerate(titles):
        heads += [title, f"{title}: low", f"{title}: high"] if i in ranged else [title]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for lead, row in rows:
        cells: list[Value] = [lead] if name else []
        for i, entry in enumerate(row):
            cells += [entry.value, entry.low, entry.high] if i in ranged else [entry.value]
        writer.writerow([_plain(cell) for cell in cells])
    return text.getvalue()


def _short(value: float, sign: str = "") -> str:
    """Return three digits without the zero before the point, to keep columns narrow."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1)


def _shown(entry: Entry) -> Html:
    text = element("span", entry.text, class_=entry.mark) if entry.mark else Html("")
    lines = [text or element("span", entry.text)]
    lines += [element("small", note) for note in entry.notes]
    return Html("".join(lines))


def _plain(value: Value) -> Value:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def listing(titles: Sequence[str], rows: Iterable[Sequence[Value]], caption: str = "") -> Sheet:
    """Return a sheet of plain values."""
    made = tuple(tuple(_entry(value) for value in row) for row in rows)
    return Sheet(caption, tuple(titles), made)


def _entry(value: Value) -> Entry:
    return Entry("" if value is None else str(value), value)
