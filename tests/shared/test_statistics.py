"""Statistics: their layout, their sum, and what is filled in from them, computed another way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.protocol import Statistics
from shared.statistics import (
    means_and_medians,
    merge_statistics,
    statistics_layout,
    statistics_sensitivity,
)
from shared.study import Study, parse_study

COLUMNS = [
    {"name": "age", "low": 0, "high": 100},
    {"name": "smoker", "categories": ["no", "yes", "was"]},
]


def make_study(**changes: Any) -> Study:
    values = {
        "name": "tables",
        "task": {"classes": ["a", "b", "c"]},
        "model": {"name": "table"},
        "table": {"columns": COLUMNS, "missing": "median", "bins": 64},
    }
    return parse_study(values | changes, "test")


def of_numbers(values: np.ndarray, bins: int = 64, noise: float = 0.0) -> Statistics:
    """Count values in [-1, 1] as a site does, and a smoker column where all are "was"."""
    counts = np.histogram(values, bins, range=(-1, 1))[0]
    smoker = (0.0, 0.0, float(len(values)), 0.0)
    return Statistics(classes=(0, 0, 0), columns=((*counts.tolist(), 5.0), smoker), noise=noise)


@pytest.mark.parametrize(
    ("changes", "classes", "columns", "sensitivity"),
    [
        ({}, 3, (65, 4), math.sqrt(3)),
        ({"table": {"columns": COLUMNS, "missing": "indicator"}}, 3, (), 1.0),
        ({"task": {"classes": ["a", "b", "c", "d"], "findings": True}}, 8, (65, 4), math.sqrt(6)),
        ({"table": None, "model": {"name": "cnn"}}, 3, (), 1.0),
    ],
)
def test_only_what_is_needed_is_counted(changes, classes, columns, sensitivity) -> None:
    study = make_study(**changes)
    assert statistics_layout(study) == (classes, columns)
    assert statistics_sensitivity(study) == pytest.approx(sensitivity)


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(-1, 1)))
def test_mean_and_median_are_those_of_the_values_to_a_bin(values: np.ndarray) -> None:
    age, smoker = means_and_medians(of_numbers(values), make_study().table)
    bin_width = 2 / 64
    assert age.mean == pytest.approx(values.mean(), abs=bin_width / 2 + 1e-9)
    # Half of the values lie on either side of the median, to the bin.
    assert np.sum(values < age.median - bin_width) <= len(values) / 2
    assert np.sum(values > age.median + bin_width) <= len(values) / 2
    assert smoker.mean == smoker.median == 2.0


def test_noise_hardly_moves_the_centres_of_a_large_cohort() -> None:
    rng = np.random.default_rng(5)
    values = np.clip(rng.normal(-0.3, 0.2, 3000) ** 2 - 0.7, -1, 1)
    exact = means_and_medians(of_numbers(values), make_study().table)[0]
    noised = of_numbers(values, noise=8.0)
    counts = np.array(noised.columns[0]) + rng.normal(0, 8.0, 65)
    noised = noised.model_copy(update={"columns": (tuple(counts), noised.columns[1])})
    age = means_and_medians(noised, make_study().table)[0]
    assert age.mean == pytest.approx(exact.mean, abs=0.04)
    assert age.median == pytest.approx(exact.median, abs=0.04)
    assert exact.median == pytest.approx(np.median(values), abs=1 / 32)


def test_a_column_nobody_recorded_gets_the_middle() -> None:
    rng = np.random.default_rng(6)
    age, smoker = rng.normal(0, 10, 65), rng.normal(0, 10, 4)
    # Noise alone, of which the values happen to sum to 100: less than 2 * 10 * sqrt(64).
    age[:64] += (100 - age[:64].sum()) / 64
    smoker[:3] += (30 - smoker[:3].sum()) / 3
    columns = (tuple(age), tuple(smoker))
    nothing = Statistics(classes=(0, 0, 0), columns=columns, noise=10.0)
    for centre in means_and_medians(nothing, make_study().table):
        assert (centre.mean, centre.median) == (0.0, 0.0)
    empty = Statistics(classes=(0, 0, 0), columns=((0,) * 65, (0,) * 4), noise=0)
    assert [c.mean for c in means_and_medians(empty, make_study().table)] == [0.0, 0.0]


def test_negative_counts_never_put_a_centre_outside() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        counts = rng.normal(1, 30, 65), rng.normal(5, 30, 4)
        wild = Statistics(classes=(0, 0, 0), columns=tuple(map(tuple, counts)), noise=0.1)
        age, smoker = means_and_medians(wild, make_study().table)
        assert -1 <= age.mean <= 1
        assert -1 <= age.median <= 1
        told = counts[1][:-1].sum() >= 0.5
        assert smoker.mean == (np.argmax(counts[1][:-1]) if told else 0)


counts = st.floats(-1e6, 1e6)
parts = st.lists(
    st.builds(
        lambda a, b, noise: Statistics(classes=a, columns=(b, b), noise=noise),
        st.tuples(counts, counts), st.tuples(counts, counts, counts), st.floats(0, 100),
    ),
    min_size=1,
    max_size=5,
)  # fmt: skip


@given(parts, st.randoms(use_true_random=False))
def test_counts_add_and_noises_add_in_squares_in_any_order(given_parts: list, random) -> None:
    merged = merge_statistics(given_parts)
    assert merged.classes == pytest.approx(np.sum([p.classes for p in given_parts], axis=0))
    assert merged.columns[1] == pytest.approx(np.sum([p.columns[1] for p in given_parts], axis=0))
    assert merged.noise == pytest.approx(np.sqrt(np.sum([p.noise**2 for p in given_parts])))
    shuffled = given_parts.copy()
    random.shuffle(shuffled)
    assert merge_statistics(shuffled) == merged


def test_statistics_of_different_studies_do_not_add() -> None:
    one = Statistics(classes=(1, 2), noise=1)
    for other in ([], [one, Statistics(classes=(1, 2, 3), noise=1)]):
        with pytest.raises(ValueError, match="lengths"):
            merge_statistics(other)
