"""The audit's bound: against other libraries, exact probabilities and known mechanisms."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from simulations.audit.bound import best_bound, guess_counts, largest_bound, lower_bound, p_value

CONFIDENCE = 0.95


@pytest.mark.parametrize(
    ("guesses", "right", "epsilon"),
    [(10, 9, 0.5), (100, 80, 1.0), (1000, 997, 3.0), (512, 512, 8.0), (64, 0, 2.0)],
)
def test_without_delta_it_is_the_binomial_tail_of_mpmath(
    guesses: int, right: int, epsilon: float
) -> None:
    with mpmath.workdps(40):
        chance = 1 / (1 + mpmath.exp(-mpmath.mpf(epsilon)))
        # P[Binomial(r, q) >= v] is the regularised incomplete beta function I_q(v, r - v + 1).
        tail = (
            mpmath.betainc(right, guesses - right + 1, 0, chance, regularized=True) if right else 1
        )
    assert p_value(2000, guesses, right, epsilon, 0.0) == pytest.approx(float(tail), rel=1e-9)


@settings(deadline=None)
@given(st.data())
def test_with_delta_it_is_the_papers_formula_in_exact_fractions(data: st.DataObject) -> None:
    guesses = data.draw(st.integers(1, 24))
    right = data.draw(st.integers(0, guesses))
    canaries = guesses + data.draw(st.integers(0, 10))
    epsilon, delta = data.draw(st.floats(0, 6)), data.draw(st.floats(0, 0.01))
    q = Fraction(1 / (1 + math.exp(-epsilon)))
    mass = [math.comb(guesses, w) * q**w * (1 - q) ** (guesses - w) for w in range(guesses + 1)]
    worst = max((sum(mass[right - i : right]) / i for i in range(1, right + 1)), default=0)
    exact = min(1.0, float(sum(mass[right:]) + 2 * canaries * Fraction(delta) * worst))
    assert p_value(canaries, guesses, right, epsilon, delta) == pytest.approx(exact, rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    guesses=st.integers(1, 300),
    part=st.floats(0.5, 1),
    delta=st.sampled_from([0.0, 1e-6, 1e-5, 1e-3]),
)
def test_the_bound_is_where_the_p_value_meets_the_error(
    guesses: int, part: float, delta: float
) -> None:
    right = round(part * guesses)
    bound = lower_bound(300, guesses, right, delta, CONFIDENCE)
    assert p_value(300, guesses, right, bound + 1e-4, delta) >= 0.05
    if bound:
        assert p_value(300, guesses, right, bound, delta) < 0.05
    if right < guesses:
        assert lower_bound(300, guesses, right + 1, delta, CONFIDENCE) >= bound


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
def test_randomised_response_is_bounded_above_truth_in_five_percent_at_most(
    epsilon: float,
) -> None:
    # Its coins are guessed right with chance e^eps / (1 + e^eps), so the error is exact and the
    # bound is tight: almost all of the 5 % is used.
    m = 400
    law = stats.binom(m, 1 / (1 + math.exp(-epsilon)))
    wrong = next(v for v in range(m + 1) if lower_bound(m, m, v, 0.0, CONFIDENCE) > epsilon)
    assert 0.02 < law.sf(wrong - 1) <= 0.05


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of a Gaussian mechanism, sensitivity over sigma = mu (Balle and Wang 2018)."""
    cdf = stats.norm.cdf

    def excess(e: float) -> float:
        return float(cdf(mu / 2 - e / mu) - math.exp(e) * cdf(-mu / 2 - e / mu)) - delta

    return brentq(excess, 0.0, 200.0)


@pytest.mark.parametrize("mu", [0.25, 1.0, 2.5])
def test_a_gaussian_mechanism_of_known_epsilon_stays_above_its_bound(mu: float) -> None:
    rng, m, runs, truth = np.random.default_rng(3), 400, 60, gaussian_epsilon(mu, 1e-5)
    bounds = []
    for _ in range(runs):
        coins = rng.random(m) < 0.5
        bounds.append(best_bound(mu * coins + rng.normal(size=m), coins, 1e-5, CONFIDENCE).epsilon)
    assert np.mean(np.array(bounds) <= truth) >= 0.95
    if mu > 1:
        assert np.median(bounds) > 1  # it sees something, so the comparison can fail


def test_choosing_among_numbers_of_guesses_keeps_the_confidence() -> None:
    # Scores that tell nothing: any bound above 0 is wrong.
    rng, m, runs = np.random.default_rng(4), 256, 200
    wrong = sum(
        best_bound(rng.normal(size=m), rng.random(m) < 0.5, 0.0, CONFIDENCE).epsilon > 0
        for _ in range(runs)
    )
    assert stats.binomtest(wrong, runs, 0.05, alternative="greater").pvalue > 0.01


def test_all_guesses_right_reach_the_largest_bound_and_no_more() -> None:
    coins = np.arange(512) % 2 == 0
    found = best_bound(coins.astype(float), coins, 1e-5, CONFIDENCE)
    assert found.right == found.guesses
    assert found.epsilon == largest_bound(512, 1e-5, CONFIDENCE)
    # All of r right are ruled out while q^r is below the error shared by all tried numbers.
    q = (0.05 / len(guess_counts(512))) ** (1 / 512)
    assert found.epsilon == pytest.approx(math.log(q / (1 - q)), abs=0.1)
    assert best_bound(-coins.astype(float), coins, 1e-5, CONFIDENCE).epsilon == 0


def test_counts_out_of_range_are_refused() -> None:
    for counts in ((10, 5, 6), (10, 11, 3), (10, 5, -1)):
        with pytest.raises(ValueError, match="not 0 <="):
            p_value(*counts, 1.0, 0.0)
