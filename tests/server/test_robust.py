"""Median and trimmed mean against numpy and scipy, and against sites that send nonsense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import trim_mean

from server.aggregate import Aggregator, WeightedMean
from server.robust import Median, TrimmedMean, make_aggregator
from shared.errors import CoordinatorError
from shared.study import Study, Task

REFERENCE = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)}

values = st.floats(-32, 32, width=32) | st.just(-0.0)
updates = st.fixed_dictionaries(
    {name: arrays(np.float32, array.shape, elements=values) for name, array in REFERENCE.items()}
)
submitted = st.lists(updates, min_size=1, max_size=9)


def combine(aggregator: Aggregator, given_updates: list) -> dict:
    for number, update in enumerate(given_updates):
        aggregator.add(f"site {number}", update, number + 1)
    return aggregator.finish()


def study(kind: str) -> Study:
    federation = {"sites": 9, "min_sites": 5, "aggregator": kind, "trim": 0.25}
    return Study(name="robust", task=Task(classes=("no", "yes")), federation=federation)


@settings(max_examples=50, deadline=None)
@given(submitted, st.sampled_from([0.1, 0.2, 0.25, 0.34, 0.49]))
def test_they_are_numpys_median_and_scipys_trimmed_mean(given_updates: list, trim: float) -> None:
    median = combine(Median(REFERENCE), given_updates)
    trimmed = combine(TrimmedMean(REFERENCE, trim), given_updates)
    for name in REFERENCE:
        stacked = np.stack([u[name].astype(np.float64) for u in given_updates])
        np.testing.assert_allclose(median[name], np.median(stacked, axis=0), rtol=1e-6, atol=1e-30)
        np.testing.assert_allclose(
            trimmed[name], trim_mean(stacked, trim, axis=0), rtol=1e-6, atol=1e-6
        )
        assert median[name].dtype == trimmed[name].dtype == np.float32


@settings(max_examples=50, deadline=None)
@given(submitted, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_change_one_bit(given_updates: list, random) -> None:
    shuffled = given_updates.copy()
    random.shuffle(shuffled)
    for make in (Median, lambda reference: TrimmedMean(reference, 0.2)):
        first, second = (combine(make(REFERENCE), each) for each in (given_updates, shuffled))
        assert all(first[name].tobytes() == second[name].tobytes() for name in REFERENCE)


@pytest.mark.parametrize(
    ("trim", "sites", "cut"),
    [(0.2, 4, 0), (0.2, 5, 1), (0.2, 9, 1), (0.2, 10, 2), (0.29, 100, 29), (0.49, 3, 1)],
)
def test_so_many_sites_are_left_out_at_each_end(trim: float, sites: int, cut: int) -> None:
    # One site far above all others for each that is to be left out, then one more.
    for nonsense in (cut, cut + 1):
        rows = [1.0] * (sites - nonsense) + [1e30] * nonsense
        given_updates = [
            {name: np.full_like(a, row) for name, a in REFERENCE.items()} for row in rows
        ]
        result = combine(TrimmedMean(REFERENCE, trim), given_updates)
        assert np.all((result["b"] == 1.0) == (nonsense == cut))


def test_a_minority_of_nonsense_cannot_leave_the_range_of_the_honest() -> None:
    rng = np.random.default_rng(3)
    honest = [{n: rng.normal(size=a.shape).astype(np.float32) for n, a in REFERENCE.items()}
              for _ in range(5)]  # fmt: skip
    for size in (np.float32(-1e30), np.float32(1e30)):
        nonsense = [{n: np.full_like(a, size) for n, a in REFERENCE.items()}] * 4
        for make, tolerated in ((Median, 4), (lambda r: TrimmedMean(r, 0.25), 1)):
            result = combine(make(REFERENCE), honest + nonsense[:tolerated])
            for name in REFERENCE:
                stacked = np.stack([update[name] for update in honest])
                assert np.all(result[name] >= stacked.min(axis=0) - 1e-6)
                assert np.all(result[name] <= stacked.max(axis=0) + 1e-6)
            mean = combine(WeightedMean(REFERENCE), honest)
            assert np.all(np.abs(mean["a"]) < 3)


def test_the_study_chooses() -> None:
    rows = [0.0, 0.0, 1.0, 5.0, 30.0]
    given_updates = [{n: np.full_like(a, row) for n, a in REFERENCE.items()} for row in rows]
    got = {
        kind: float(combine(make_aggregator(study(kind), REFERENCE), given_updates)["a"][0, 0])
        for kind in ("mean", "median", "trimmed-mean")
    }
    # Patients 1 to 5, so the mean is (3 + 20 + 150) / 15; a quarter of 5 is one.
    assert got == pytest.approx({"mean": 173 / 15, "median": 1.0, "trimmed-mean": 2.0})


@pytest.mark.parametrize("make", [Median, lambda reference: TrimmedMean(reference, 0.2)])
def test_nothing_added_is_an_error(make) -> None:
    with pytest.raises(CoordinatorError, match="nothing to average"):
        make(REFERENCE).finish()
