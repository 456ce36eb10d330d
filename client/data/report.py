"""What a site's data came to: counts and the files set aside, for local eyes only."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from client.data.reasons import EXPLANATIONS, Reason
from client.vault import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

SHOWN_FILES = 5
"""Files named in the summary for each reason; the JSON report names all."""


LONGEST_EXAMPLE = 20
"""Characters shown of a value that was not understood."""


class Record(BaseModel):
    """Base of the report's parts: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SetAside(Record):
    """One file or row that is not used."""

    file: str  # as the labels table or the folder names it
    line: int | None = None  # of the labels table; None: the table does not name the file
    reason: Reason
    label: str = ""  # the table's, where it is not one of the study


class ColumnReport(Record):
    """What was found in one column of a table, over all its rows."""

    name: str  # of the column or finding in the study
    column: str  # as in the table; empty: the table has none
    rows: int  # of the table
    missing: int  # rows without a value, unclear ones included
    unclear: int  # rows with a value that is no number, no category, or not whether one has it
    outside: int = 0  # rows with a number outside the study's range, which counts as its end
    examples: tuple[str, ...] = ()  # values that were not understood, the most frequent first


class DataReport(Record):
    """What became of every row of the labels table and every image in the folder.

    It names files, so it never leaves the site. In studies of a table, the rows of the table of
    patients are what images are elsewhere.
    """

    study: str
    digest: str
    images_folder: str
    labels_table: str
    used_images: int
    train: dict[str, int]  # patients by class; of findings, with and without each one
    held_out: dict[str, int]
    set_aside: tuple[SetAside, ...]
    other_files: int  # in the folder, neither named by the table nor DICOM
    notes: tuple[str, ...] = ()
    train_patients: int = 0
    held_out_patients: int = 0
    left_out: int = 0  # training patients with missing values, where the study drops them
    columns: tuple[ColumnReport, ...] = ()  # of a table
    findings: tuple[ColumnReport, ...] = ()  # those of the findings, of a table or of images

    @property
    def counts(self) -> dict[Reason, int]:
        """How many were set aside for each reason, most frequent first."""
        return dict(Counter(item.reason for item in self.set_aside).most_common())

    @property
    def labelled(self) -> int:
        """Rows of the labels table, repeated ones counted once."""
        return self.used_images + self.left_out + self.lost

    @property
    def lost(self) -> int:
        """Labelled images that cannot be used; images without a row are not among them."""
        return sum(
            item.line is not None and item.reason != Reason.DUPLICATE_ROW for item in self.set_aside
        )


def describe_report(report: DataReport) -> list[str]:
    """Return the report as plain lines for hospital IT."""
    train, held_out = report.train_patients, report.held_out_patients
    what = "rows" if report.columns else "images"
    lines = [
        f"Study {report.study}: {report.used_images} {what} of {train + held_out} patients can "
        f"be used; {report.lost} of {report.labelled} labelled {what} are set aside.",
        f"  to train on: {train} patients ({_by_class(report.train)})",
        f"  held out for evaluation: {held_out} patients ({_by_class(report.held_out)})",
    ]
    for reason, count in report.counts.items():
        lines.append(f"  {count} x {reason.value}: {EXPLANATIONS[reason]}")
        lines.append(f"      {_examples(report, reason, count)}")
        if reason == Reason.CLASS_NOT_IN_STUDY:
            lines.append(f"      {describe_labels(report)}")
    if report.other_files:
        lines.append(f"  {report.other_files} other files in the folder are not DICOM: ignored")
    if report.left_out:
        lines.append(
            f"  {report.left_out} patients with missing values are left out of training, as the "
            "study has it"
        )
    lines += [_column(column) for column in (*report.columns, *report.findings)]
    return lines + [f"  note: {note}" for note in report.notes]


def describe_labels(report: DataReport) -> str:
    """Say which labels are not of the study, and which it has, for local eyes."""
    found = Counter(item.label for item in report.set_aside if item.label)
    said = ", ".join(f"{label!r} ({count} x)" for label, count in found.most_common(SHOWN_FILES))
    return f"labels found: {said or 'none'}; the study has {', '.join(map(repr, report.train))}"


def write_report(report: DataReport, folder: Path) -> Path:
    """Write a study's report as JSON and as text (mode 0600), and return the text's path.

    Raises:
        SiteError: The files cannot be written.
    """
    name = f"data-{report.study}-{report.digest[:12]}"
    text = "\n".join(describe_report(report)) + "\n"
    write_atomic(folder / f"{name}.json", report.model_dump_json(indent=2).encode())
    write_atomic(folder / f"{name}.txt", text.encode())
    return folder / f"{name}.txt"


def foreign_label(label: str, reason: Reason) -> str:
    """Return a label to report, where it is the reason why a row is set aside."""
    return printable(label)[:LONGEST_EXAMPLE] if reason == Reason.CLASS_NOT_IN_STUDY else ""


def printable(name: str) -> str:
    """Return a file name with everything escaped that is not plain printable text."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in name
    )


def example_values(unclear: Counter[str]) -> tuple[str, ...]:
    """Return the most frequent of values that were not understood, for local eyes."""
    return tuple(printable(value)[:LONGEST_EXAMPLE] for value, _ in unclear.most_common(3))


def _by_class(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _place(item: SetAside) -> str:
    if not item.file:
        return f"line {item.line}"
    return item.file + (f" (line {item.line})" if item.line else "")


def _column(column: ColumnReport) -> str:
    if not column.column:
        return f"  column {column.name}: the table has none, so it counts as missing everywhere"
    facts = f"  column {column.name}: missing in {column.missing} of {column.rows} rows"
    if column.unclear:
        facts += f", {column.unclear} of them not understood"
        facts += f" (such as {', '.join(map(repr, column.examples))})"
    if column.outside:
        facts += f"; outside the study's range in {column.outside}"
    return facts


def _examples(report: DataReport, reason: Reason, count: int) -> str:
    found = [item for item in report.set_aside if item.reason == reason][:SHOWN_FILES]
    names = [_place(item) for item in found]
    return ", ".join(names) + (f" and {count - len(found)} more" if count > len(found) else "")
