"""The split: known answers, and independence of everything but the patient's id."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.split import is_held_out


def position(patient: str) -> float:
    """Where a patient stands in [0, 1), recomputed from the published rule."""
    digest = hashlib.sha256(b"consilium/split/1\x00" + patient.encode()).hexdigest()
    return int(digest[:16], 16) / 16**16


@pytest.mark.parametrize("patient", ["TCGA-17-Z034", "1", "Müller", ""])
def test_a_patient_is_held_out_exactly_above_its_position(patient):
    where = position(patient)
    assert is_held_out(patient, where + 1e-9)
    assert not is_held_out(patient, where - 1e-9)


def test_known_answers_that_every_machine_and_release_must_give():
    held = [number for number in range(40) if is_held_out(f"patient-{number}", 0.15)]
    assert held == [18, 24, 26, 28, 35, 37]


def test_about_the_asked_part_is_held_out():
    held = sum(is_held_out(f"p{number}", 0.15) for number in range(20_000))
    assert abs(held / 20_000 - 0.15) < 0.01  # four standard deviations


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_only_adds_patients(patient, one, other):
    small, large = sorted((one, other))
    assert is_held_out(patient, large) or not is_held_out(patient, small)


def test_ids_that_are_not_valid_text_are_split_too():
    assert is_held_out("caf\udce9", 1.0)
