"""Taking, splitting and counting patients: nobody is lost, and no part of anybody."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.patients import Patients, concatenate, largest_remainders, split_stratified


def some_patients(counts: list[int]) -> Patients:
    """Patient i has counts[i] images, each of one pixel that says 100 i + its number."""
    owners = np.repeat(np.arange(len(counts)), counts)
    numbers = np.concatenate([np.arange(n) for n in counts]) if counts else np.arange(0)
    pixels = (100 * owners + numbers).astype(np.float32)
    labels = np.arange(len(counts)) % 3
    return Patients(pixels[:, None, None, None], owners, labels, {"sex": labels % 2})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=9), st.data())
def test_taking_patients_takes_all_that_is_theirs(counts: list[int], data: st.DataObject) -> None:
    patients = some_patients(counts)
    index = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=12))
    taken = patients.take(np.array(index, dtype=np.int64))
    expected = [100 * i + n for i in index for n in range(counts[i])]
    assert taken.images.ravel().tolist() == expected
    assert taken.image_counts.tolist() == [counts[i] for i in index]
    assert taken.labels.tolist() == [i % 3 for i in index]
    half = len(index) // 2
    if half:
        again = concatenate([patients.take(index[:half]), patients.take(index[half:])])
        np.testing.assert_array_equal(again.images, taken.images)
        np.testing.assert_array_equal(again.image_patient, taken.image_patient)
        np.testing.assert_array_equal(again.groups["sex"], taken.groups["sex"])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=80),
    st.floats(0.05, 0.95),
    st.integers(0, 99),
)
def test_stratified_split_is_exact_and_even(cells: list[int], part: float, seed: int) -> None:
    values = np.array(cells)
    first, second = split_stratified(values, part, np.random.default_rng(seed))
    assert sorted([*first, *second]) == list(range(len(cells)))
    wanted = min(max(1, round(part * len(cells))), len(cells) - 1)
    assert len(second) == wanted
    for cell in set(cells):
        exact = (values == cell).sum() * wanted / len(cells)
        assert abs((values[second] == cell).sum() - exact) < 1


@given(st.lists(st.floats(0, 50), min_size=1, max_size=12))
def test_largest_remainders_keep_the_total(values: list[float]) -> None:
    total = round(sum(values))
    scaled = np.array(values) * (total / sum(values) if sum(values) else 0)
    counts = largest_remainders(scaled, total if scaled.sum() else 0)
    assert counts.sum() == round(scaled.sum())
    assert np.abs(counts - scaled).max() <= 1 + 1e-6
