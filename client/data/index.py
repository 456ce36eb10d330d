"""Matching the labels table with the images folder: which images there are to decode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from client.data.folder import Folder, ImageFile, looks_like_dicom
from client.data.labels import Row
from client.data.reasons import Reason
from client.data.report import SetAside, printable
from client.data.targets import Target, is_known, merge_targets, read_target
from shared.study import Task


@dataclass(frozen=True)
class Entry:
    """One row of the labels table and what is known of it so far."""

    row: Row
    file: ImageFile | None = None
    target: Target | None = None  # what the row says, and in the end what all say together
    patient: str = ""
    reason: Reason | None = None  # why it is set aside
    image: int | None = None  # position among the decoded images

    @property
    def usable(self) -> bool:
        """Whether nothing has been found against it."""
        return self.reason is None

    def aside(self, reason: Reason) -> Entry:
        """Return the entry set aside, keeping an earlier reason."""
        return self if self.reason else replace(self, reason=reason)


def match(
    rows: Iterable[Row], folder: Folder, values: Mapping[str, str], task: Task
) -> list[Entry]:
    """Find each row's file and class; what lacks one, or is there twice, is set aside.

    Args:
        rows: The labels table.
        folder: The images folder.
        values: The table's label value -> the study's class; others are taken as they are.
        task: The study's.

    Returns:
        One entry a row, in the table's order.
    """
    entries = [_entry(row, folder, values, task) for row in rows]
    by_file: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        if entry.file:
            by_file.setdefault(entry.file.path, []).append(position)
    for positions in by_file.values():
        said = {replace(entries[at].row, line=0, file="") for at in positions}
        agreed = len(said) == 1
        reason = Reason.DUPLICATE_ROW if agreed else Reason.CONFLICTING_ROWS
        for at in positions[1:] if agreed else positions:
            entries[at] = replace(entries[at], reason=reason)
    return entries


def unlabelled(folder: Folder, entries: Iterable[Entry]) -> tuple[list[SetAside], int]:
    """Return the folder's DICOM files that no row names, and the number of other files."""
    named = {entry.file.path for entry in entries if entry.file}
    rest = sorted(folder.files.keys() - named)
    images = [path for path in rest if looks_like_dicom(path)]
    found = [
        SetAside(file=printable(folder.relative(path)), reason=Reason.NO_LABEL) for path in images
    ]
    return found, len(rest) - len(images)


def settle(entries: Iterable[Entry]) -> list[Entry]:
    """Give every patient one label, or set aside all images of who has none or several.

    Of findings, one row may say what another leaves open. Rows that are set aside for another
    reason have a say too: a table that contradicts itself about a patient is not to be believed
    because one of the files is broken.
    """
    entries = list(entries)
    said: dict[str, list[Target]] = {}
    for entry in entries:
        if entry.patient and entry.target is not None:
            said.setdefault(entry.patient, []).append(entry.target)
    together = {patient: merge_targets(targets) for patient, targets in said.items()}
    return [
        _settled(entry, together[entry.patient]) if entry.patient in together else entry
        for entry in entries
    ]


def _settled(entry: Entry, target: Target | None) -> Entry:
    if target is None:
        return entry.aside(Reason.CONTRADICTORY_LABELS)
    if not is_known(target):
        return entry.aside(Reason.NO_KNOWN_FINDING)
    return replace(entry, target=target)


def _entry(row: Row, folder: Folder, values: Mapping[str, str], task: Task) -> Entry:
    entry = Entry(row, patient=row.patient)
    if not row.file or not (row.label or task.findings):
        return entry.aside(Reason.INCOMPLETE_ROW)
    entry = replace(entry, target=read_target(row.label, row.findings, values, task))
    found = folder.locate(row.file)
    if isinstance(found, Reason):
        return entry.aside(found)
    entry = replace(entry, file=found)
    return entry if entry.target is not None else entry.aside(Reason.CLASS_NOT_IN_STUDY)
