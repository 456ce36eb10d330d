"""The aggregator is the weighted mean, exactly the same in any order, and never guesses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from server.aggregate import LARGEST_VALUE, LARGEST_WEIGHT, STEP, WeightedMean, running_mean
from shared.errors import CoordinatorError

SHAPES = {"a": (2, 3), "b": (4,)}
REFERENCE = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}

values = st.floats(-LARGEST_VALUE, LARGEST_VALUE, width=32)
updates = st.fixed_dictionaries(
    {name: arrays(np.float32, shape, elements=values) for name, shape in SHAPES.items()}
)
submissions = st.lists(st.tuples(updates, st.integers(1, 10**7)), min_size=1, max_size=6)


def combine(submitted: list) -> dict:
    mean = WeightedMean(REFERENCE)
    for number, (update, weight) in enumerate(submitted):
        mean.add(f"site {number}", update, weight)
    return mean.finish()


@settings(max_examples=50, deadline=None)
@given(submissions, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_change_one_bit(submitted: list, random) -> None:
    shuffled = submitted.copy()
    random.shuffle(shuffled)
    first, second = combine(submitted), combine(shuffled)
    assert all(first[name].tobytes() == second[name].tobytes() for name in SHAPES)


@settings(max_examples=50, deadline=None)
@given(submissions)
def test_it_is_the_float64_weighted_mean_to_half_a_step(submitted: list) -> None:
    result = combine(submitted)
    weights = [weight for _, weight in submitted]
    for name, shape in SHAPES.items():
        stacked = np.stack([update[name].astype(np.float64) for update, _ in submitted])
        exact = np.average(stacked, axis=0, weights=weights)
        rounding = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
        assert result[name].shape == shape
        assert result[name].dtype == np.float32
        assert np.all(np.abs(result[name] - exact) <= STEP / 2 + rounding)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sum_allowed_does_not_overflow(sign: int) -> None:
    extreme = {n: np.full(s, sign * LARGEST_VALUE, np.float32) for n, s in SHAPES.items()}
    mean = WeightedMean(REFERENCE)
    mean.add("large", extreme, LARGEST_WEIGHT - 1)
    mean.add("small", extreme, 1)
    assert np.all(mean.finish()["a"] == sign * LARGEST_VALUE)
    with pytest.raises(CoordinatorError, match="patients"):
        mean.add("one too many", extreme, 1)


def test_nothing_added_is_an_error_not_a_division_by_zero() -> None:
    with pytest.raises(CoordinatorError, match="nothing to average"):
        WeightedMean(REFERENCE).finish()


@pytest.mark.parametrize(
    ("change", "weight", "match"),
    [
        ({}, 0, "patients"),
        ({}, -5, "patients"),
        ({"a": np.full((2, 3), np.nan, np.float32)}, 1, "finite"),
        ({"b": np.array([0, 0, 0, np.inf], np.float32)}, 1, "finite"),
        ({"b": np.array([0, 0, 0, 32.001], np.float32)}, 1, "exceeds"),
        ({"a": np.zeros((3, 2), np.float32)}, 1, "shapes"),
        ({"c": np.zeros(1, np.float32)}, 1, "names"),
    ],
)
def test_what_cannot_be_summed_is_refused_and_leaves_the_sum_alone(
    change: dict, weight: int, match: str
) -> None:
    mean = WeightedMean(REFERENCE)
    ones = {n: np.ones(s, np.float32) for n, s in SHAPES.items()}
    mean.add("good", ones, 7)
    with pytest.raises(CoordinatorError, match=match) as caught:
        mean.add("Brook", ones | change, weight)
    assert caught.value.where == "Brook"
    assert np.all(mean.finish()["a"] == 1)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_the_running_mean_weighs_rounds_by_powers_of_the_decay(decay: float) -> None:
    rng = np.random.default_rng(0)
    rounds = [{"w": rng.normal(size=5).astype(np.float32)} for _ in range(12)]
    mean = {"w": np.full(5, 1e3, np.float32)}
    for number, weights in enumerate(rounds, start=1):
        mean = running_mean(mean, weights, decay, number)
    powers = decay ** np.arange(len(rounds))[::-1]
    expected = np.average([w["w"].astype(np.float64) for w in rounds], axis=0, weights=powers)
    np.testing.assert_allclose(mean["w"], expected, atol=2e-6)


def test_without_a_mean_to_keep_there_is_none() -> None:
    assert running_mean({}, {"w": np.zeros(1, np.float32)}, 0.0, 1) == {}
