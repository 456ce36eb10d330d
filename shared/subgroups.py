"""The groups of patients an evaluation may be split by: a fixed, public list of cells.

In each grouping a patient is in exactly one cell, found from the DICOM attributes of the
patient's images, so a grouping adds one count a target to what the patient changes anyway.
"""

from __future__ import annotations

import math
import re

from shared.metrics import scored_classes
from shared.study import Study

CELLS: dict[str, tuple[str, ...]] = {
    "sex": ("F", "M", "other"),
    "age": ("0-17", "18-39", "40-64", "65-79", "80+", "unknown"),
    "scanner": (
        "GE",
        "Siemens",
        "Philips",
        "Canon",
        "Fujifilm",
        "Agfa",
        "Carestream",
        "Samsung",
        "Hologic",
        "other",
    ),
}
"""Cells of each grouping; the last takes in whoever fits no other, and who states nothing."""


def subgroup_keys(study: Study) -> tuple[str, ...]:
    """Return the cells of the groupings a study asks for, as `grouping:cell`."""
    return tuple(f"{name}:{cell}" for name in study.privacy.subgroups for cell in CELLS[name])


def subgroup_key(grouping: str, value: str) -> str:
    """Return the cell of a patient with this DICOM value, as `grouping:cell`.

    Args:
        grouping: "sex", "age" or "scanner".
        value: Text of PatientSex (0010,0040), PatientAge (0010,1010) or Manufacturer
            (0008,0070), respectively; empty or nonsense counts as not stated.
    """
    find = {"sex": _sex, "age": _age, "scanner": _scanner}[grouping]
    return f"{grouping}:{find(value)}"


def closing_sensitivity(study: Study) -> float:
    """Return how far one patient can change the closing evaluation's counts, in L2 norm.

    Adding or removing a patient changes one count for each target, in the histogram of all and
    in that of one cell of each grouping: sqrt(targets * (1 + groupings)).
    """
    return math.sqrt(len(scored_classes(study)) * (1 + len(study.privacy.subgroups)))


def _sex(value: str) -> str:
    stated = value.strip().upper()
    return stated if stated in ("F", "M") else "other"


def _age(value: str) -> str:
    """Find the band of an Age String (DICOM PS3.5, section 6.2): digits, then D, W, M or Y."""
    match = re.fullmatch(r"([0-9]{1,3})([DWMY])", value.strip())
    if not match:
        return "unknown"
    years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[match[2]]
    for cell, end in (("0-17", 18), ("18-39", 40), ("40-64", 65), ("65-79", 80)):
        if years < end:
            return cell
    return "80+"


_MAKERS = (
    ("GE", r"\bge\b|general electric"),
    ("Siemens", "siemens"),
    ("Philips", "philips"),
    ("Canon", "canon|toshiba"),
    ("Fujifilm", "fuji"),
    ("Agfa", "agfa"),
    ("Carestream", "carestream|kodak"),
    ("Samsung", "samsung|medison"),
    ("Hologic", "hologic|lorad"),
)
"""What a maker's devices write into Manufacturer, today's name and those it took over."""


def _scanner(value: str) -> str:
    text = value.lower().replace("_", " ")
    return next((maker for maker, names in _MAKERS if re.search(names, text)), "other")
