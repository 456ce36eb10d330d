"""Tables of a report: rows of entries that are shown on the page and written as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

from server.markup import Html, element, table
from simulations.aggregate import Aggregate
from simulations.records import MEAN, WORST
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
        seeded: Of each row, whether the noise in its figures came from a seed; empty: of none.
    """

    caption: str
    titles: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    seeded: tuple[bool, ...] = ()


SEEDED_NOISE = "Noise of private runs is seeded: repeatable here, never so at a hospital."
"""What every table of such figures says on the page; in a CSV a column does."""

UNKNOWN = Entry("–")


def words(text: str, *notes: str) -> Entry:
    """Return an entry of text."""
    return Entry(text, text, notes=notes)


def count(number: float, form: str = ",.0f") -> Entry:
    """Return an entry of a number without an interval."""
    return Entry(format(number, form), number)


def estimate(figure: Aggregate | None) -> Entry:
    """Return a figure: its mean over seeds, their interval in brackets, the bootstrap's below.

    Of sites' figures that are undefined somewhere, also how many sites it is of.
    """
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
    if of_sites := few_sites(figure):
        notes.append(f"of {of_sites}")
    return Entry(f"{figure.value:.3f}", figure.value, figure.low, figure.high, tuple(notes))


def few_sites(figure: Aggregate | None) -> str:
    """Return of how many sites a mean or worst one is, such as "3 of 8 sites"; empty: of all."""
    if figure is None or figure.site not in (MEAN, WORST) or figure.over == figure.of:
        return ""
    return f"{figure.over} of {figure.of} sites"


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
    caption = f"{sheet.caption} {SEEDED_NOISE}" if any(sheet.seeded) else sheet.caption
    return element("div", table(caption, sheet.titles, rows, numeric), class_=kind)


def to_csv(sheets: Iterable[tuple[str, Sheet]], name: str = "scenario") -> str:
    """Return sheets of the same columns as one CSV text.

    A number that has an interval anywhere gets two more columns, its ends. Where noise came from
    a seed anywhere, the last column says of which rows. Text that a spreadsheet would take for a
    formula is led by an apostrophe.

    Args:
        sheets: Each with what goes into a first column.
        name: Head of that column; empty: there is none.
    """
    every = list(sheets)
    rows = [
        (lead, row, seeded)
        for lead, sheet in every
        for row, seeded in zip(sheet.rows, sheet.seeded or repeat(False), strict=False)
    ]
    titles = every[0][1].titles if every else ()
    ranged = {i for i in range(len(titles)) for _, row, _ in rows if row[i].low is not None}
    noisy = any(seeded for *_, seeded in rows)
    heads = [name] if name else []
    for i, title in enumerate(titles):
        heads += [title, f"{title}: low", f"{title}: high"] if i in ranged else [title]
    heads += ["seeded_noise"] * noisy
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for lead, row, seeded in rows:
        cells: list[Value] = [lead] if name else []
        for i, entry in enumerate(row):
            cells += [entry.value, entry.low, entry.high] if i in ranged else [entry.value]
        cells += [seeded] * noisy
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
