"""Which subgroups a patient belongs to, by the attributes of the patient's images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from datetime import datetime

from pydicom.dataset import Dataset

from shared.subgroups import CELLS, subgroup_key

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "sex": ("PatientSex",),
    "age": ("PatientAge", "PatientBirthDate", "StudyDate"),
    "scanner": ("Manufacturer",),
}
"""What is read of a file for each grouping, and only in studies that ask for it."""


def image_cells(dataset: Dataset, groupings: Sequence[str]) -> tuple[int, ...]:
    """Return one image's cell in each grouping, an index into `CELLS`.

    An attribute that is absent or nonsense is not stated, which is the last cell: it is no
    reason to set the image aside.
    """
    return tuple(_cell(name, _stated(dataset, name)) for name in groupings)


def patient_cell(grouping: str, cells: Iterable[int]) -> int:
    """Return a patient's cell, given those of the patient's images.

    Images that state nothing have no say; if the others contradict each other, it is the last.
    """
    last = len(CELLS[grouping]) - 1
    stated = set(cells) - {last}
    return stated.pop() if len(stated) == 1 else last


def _cell(grouping: str, value: str) -> int:
    return CELLS[grouping].index(subgroup_key(grouping, value).removeprefix(f"{grouping}:"))


def _stated(dataset: Dataset, grouping: str) -> str:
    first, *others = (_text(dataset, name) for name in ATTRIBUTES[grouping])
    if first or grouping != "age":
        return first
    return _age_at(*others)


def _age_at(birth: str, study: str) -> str:
    """Return the age on the day of the study as an Age String, empty if a date is no date."""
    try:
        born, seen = (datetime.strptime(text, "%Y%m%d") for text in (birth, study))
    except ValueError:
        return ""
    years = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return f"{years:03d}Y"


def _text(dataset: Dataset, name: str) -> str:
    """Return an attribute as text; what cannot be read is not stated."""
    with contextlib.suppress(ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return str(dataset.get(name) or "").strip()
    return ""
