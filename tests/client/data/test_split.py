"""The split: known answers, and independence of everything but the key and the patient's id."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.split import is_held_out

KEY = bytes(range(32))


def position(patient: str) -> float:
    """Where a patient stands in [0, 1), recomputed from the published rule."""
    message = b"consilium/split/2\x00" + patient.encode()
    return int(hmac.new(KEY, message, hashlib.sha256).hexdigest()[:16], 16) / 16**16


@pytest.mark.parametrize("patient", ["TCGA-17-Z034", "1", "Müller", ""])
def test_a_patient_is_held_out_exactly_above_its_position(patient):
    where = position(patient)
    assert is_held_out(KEY, patient, where + 1e-9)
    assert not is_held_out(KEY, patient, where - 1e-9)


def test_known_answers_that_every_machine_and_release_must_give():
    held = [number for number in range(40) if is_held_out(KEY, f"patient-{number}", 0.15)]
    assert held == [3, 7, 9, 17, 21, 22, 25, 33, 38, 39]


def test_about_the_asked_part_is_held_out():
    held = sum(is_held_out(KEY, f"p{number}", 0.15) for number in range(20_000))
    assert abs(held / 20_000 - 0.15) < 0.01  # four standard deviations


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_only_adds_patients(patient, one, other):
    small, large = sorted((one, other))
    assert is_held_out(KEY, patient, large) or not is_held_out(KEY, patient, small)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.15, 0.2, 0.3])
def test_another_key_holds_out_other_patients(fraction):
    names = [f"patient-{number}" for number in range(4000)]
    one, other = (
        {name for name in names if is_held_out(key, name, fraction)} for key in (KEY, bytes(32))
    )
    # Of two splits that know nothing of each other, so many are held out in both; four deviations.
    expected = len(names) * fraction**2
    assert abs(len(one & other) - expected) < 4 * expected**0.5


def test_ids_that_are_not_valid_text_are_split_too():
    assert is_held_out(KEY, "caf\udce9", 1.0)
