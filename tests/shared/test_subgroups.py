"""Subgroups: every patient is in exactly one public cell of each grouping."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.study import Study, Task
from shared.subgroups import CELLS, closing_sensitivity, subgroup_key, subgroup_keys


def study(*groupings: str, classes: int = 2) -> Study:
    task = Task(classes=tuple(f"c{n}" for n in range(classes)))
    return Study(name="groups", task=task, privacy={"subgroups": groupings})


@given(st.sampled_from(list(CELLS)), st.text(max_size=20))
def test_any_text_has_a_cell(grouping: str, value: str) -> None:
    name, cell = subgroup_key(grouping, value).split(":")
    assert name == grouping
    assert cell in CELLS[grouping]


@given(st.integers(0, 150))
def test_ages_fall_in_their_band(years: int) -> None:
    cell = subgroup_key("age", f"{years:03d}Y").removeprefix("age:")
    low, _, high = cell.removesuffix("+").partition("-")
    assert int(low) <= years <= int(high or 999)


@pytest.mark.parametrize(
    ("grouping", "value", "cell"),
    [
        ("sex", "F", "F"), ("sex", " m ", "M"), ("sex", "O", "other"), ("sex", "", "other"),
        ("age", "018M", "0-17"), ("age", "216M", "18-39"), ("age", "010D", "0-17"),
        ("age", "052W", "0-17"), ("age", "", "unknown"), ("age", "old", "unknown"),
        ("age", "-12Y", "unknown"), ("age", "45", "unknown"),
        ("scanner", "GE MEDICAL SYSTEMS", "GE"), ("scanner", "SIEMENS Healthineers", "Siemens"),
        ("scanner", "General Electric", "GE"), ("scanner", "Philips Medical Systems", "Philips"),
        ("scanner", "TOSHIBA_MEC", "Canon"), ("scanner", "Canon Inc.", "Canon"),
        ("scanner", "FUJIFILM Corporation", "Fujifilm"), ("scanner", "Agfa-Gevaert", "Agfa"),
        ("scanner", "CARESTREAM HEALTH", "Carestream"), ("scanner", "Kodak", "Carestream"),
        ("scanner", "SAMSUNG MEDISON", "Samsung"), ("scanner", "LORAD", "Hologic"),
        ("scanner", "Storage Vendor", "other"), ("scanner", "", "other"),
    ],
)  # fmt: skip
def test_dicom_values_find_their_cell(grouping: str, value: str, cell: str) -> None:
    assert subgroup_key(grouping, value) == f"{grouping}:{cell}"


def test_the_keys_are_those_of_the_groupings_asked_for() -> None:
    assert subgroup_keys(study()) == ()
    assert subgroup_keys(study("sex")) == ("sex:F", "sex:M", "sex:other")
    both = subgroup_keys(study("age", "scanner"))
    assert len(both) == len(set(both)) == 6 + 10


@pytest.mark.parametrize(("classes", "targets"), [(2, 1), (5, 5)])
@pytest.mark.parametrize("groupings", [(), ("sex",), ("sex", "age", "scanner")])
def test_a_patient_changes_one_count_a_target_in_all_and_in_each_grouping(
    classes: int, targets: int, groupings: tuple[str, ...]
) -> None:
    cells_changed = [1.0] * targets * (1 + len(groupings))
    expected = math.sqrt(sum(change**2 for change in cells_changed))
    assert closing_sensitivity(study(*groupings, classes=classes)) == pytest.approx(expected)
