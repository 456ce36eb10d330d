"""The lifetime account holds against who chooses each study after seeing the last."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from ledger_kit import DELTA, VAULT, join, people, plan
from scipy.stats import norm

from client.privacy.account import Limits, allowance, best_order, bound
from client.privacy.budget import Wanted
from client.privacy.ledger import Ledger
from client.privacy.plans import ORDERS
from shared.accounting import Mechanism, calibrate, epsilon

LIMITS = Limits(10.0, DELTA)
# A study, and two that may follow it. Each pair keeps epsilon 10, were it fixed in advance: all
# Gaussians together just so; and "rare" takes a patient so seldom that delta covers it, and then
# shows all.
WHOLE = calibrate(10.0, DELTA, 1.0, 1)
FIRST = Mechanism(WHOLE / math.sqrt(0.7), 1.0, 1)
REST = Mechanism(WHOLE / math.sqrt(0.3), 1.0, 1)
RARE = Mechanism(0.1, 9.9e-6, 1)
EVE = people("eve")


def delta_of_gaussian(noise: float, e: np.ndarray) -> np.ndarray:
    """Of one Gaussian of sensitivity 1 (Balle and Wang 2018, theorem 8)."""
    m = 1 / noise
    with np.errstate(over="ignore", invalid="ignore"):
        second = np.nan_to_num(np.exp(e + norm.logcdf(-m / 2 - e / m)))
    return norm.cdf(m / 2 - e / m) - second


def delta_of_rare(noise: float, rate: float, e: np.ndarray) -> np.ndarray:
    """Of one subsampled Gaussian, a patient removed: P(X > x) - exp(e) Q(X > x) at equal loss."""
    odds = np.maximum((np.exp(np.maximum(e, -700)) - 1 + rate) / rate, 1e-300)
    x = noise**2 * np.log(odds) + 0.5
    x = np.where(e < math.log1p(-rate), -np.inf, x)
    absent, there = norm.sf(x / noise), norm.sf((x - 1) / noise)
    return (1 - rate) * absent + rate * there - np.exp(e) * absent


def true_delta(e: float) -> float:
    """Of the process: the first study, then whichever of the two tells more, seeing the loss."""
    m = 1 / FIRST.noise_multiplier
    loss = np.linspace(m * m / 2 - 9 * m, m * m / 2 + 9 * m, 200_001)
    rest = np.maximum(
        delta_of_gaussian(REST.noise_multiplier, e - loss),
        delta_of_rare(RARE.noise_multiplier, RARE.sampling_rate, e - loss),
    )
    return float(np.trapezoid(norm.pdf(loss, m * m / 2, m) * rest, loss))


def test_a_choice_after_the_first_study_costs_more_than_any_fixed_list_of_them() -> None:
    assert epsilon([FIRST, REST], DELTA) <= 10
    assert epsilon([FIRST, RARE], DELTA) <= 10
    assert true_delta(11.5) > DELTA  # so what was charged in all is no bound


@pytest.mark.parametrize("at_once", [False, True])
def test_the_account_lets_no_such_choice_be_made(path: Path, at_once: bool) -> None:
    first, rest, rare = (
        plan(name, noise_multiplier=m.noise_multiplier, sampling_rate=m.sampling_rate, uses=1)
        for name, m in zip("abc", (FIRST, REST, RARE), strict=True)
    )
    with Ledger(path, VAULT) as ledger:
        assert join(ledger, EVE, first, LIMITS) == EVE
        if not at_once:
            ledger.reserve([(first, 1)], run="run", round_number=1)
        assert join(ledger, EVE, rare, LIMITS) == frozenset()
        assert join(ledger, EVE, rest, LIMITS) == frozenset()
        # What does follow keeps ten: of Gaussians of any choice only the sum matters.
        small = plan("d", noise_multiplier=4 * WHOLE, uses=1)
        assert join(ledger, EVE, small, LIMITS) == EVE
    m = math.sqrt(1 / FIRST.noise_multiplier**2 + 1 / (4 * WHOLE) ** 2)
    phi = NormalDist().cdf
    assert phi(m / 2 - 10 / m) - math.exp(10) * phi(-m / 2 - 10 / m) < DELTA


def test_open_studies_leave_no_more_room_than_ended_ones(path: Path) -> None:
    """A coordinator that opens many at once, to drop those that turn out badly, gains nothing."""
    many = [plan(name, noise_multiplier=3.0, uses=4) for name in "abcdefghijkl"]
    with Ledger(path, VAULT) as ledger:
        taken = [each for each in many if join(ledger, EVE, each, LIMITS)]
        order = best_order(LIMITS)
        assert len(taken) == int(allowance(LIMITS, order) / (4 * order / (2 * 3.0**2)))
        # Left out is left out, although ending the others makes room for new ones.
        for each in taken:
            ledger.close_study(each.study)
        assert not any(join(ledger, EVE, each, LIMITS) for each in many if each not in taken)
        assert join(ledger, EVE, plan("m", noise_multiplier=3.0), LIMITS) == EVE


def test_the_order_is_fixed_when_the_account_opens(path: Path) -> None:
    low, high = Limits(3.0, DELTA), Limits(30.0, DELTA)
    assert best_order(low) > best_order(LIMITS) > best_order(high)
    once = plan("a", noise_multiplier=3.0, uses=1)
    with Ledger(path, VAULT) as ledger:
        join(ledger, EVE, once, low)
        join(ledger, EVE | people("kim"), plan("b", noise_multiplier=3.0, uses=1), high)
        notes = [e.note for e in ledger.entries() if e.kind == "join"]
    assert sorted(map(float, notes)) == sorted([best_order(low), best_order(low), best_order(high)])


def test_the_costs_of_a_plan_stand_in_the_ledger(path: Path) -> None:
    with Ledger(path, VAULT) as ledger:
        ledger.join([Wanted(plan(), EVE)], LIMITS)
        (entry,) = [e for e in ledger.entries() if e.kind == "plan"]
        kept = ledger.plan(plan().study, "train")
    assert kept is not None
    # A plain Gaussian's, by hand: order / (2 noise^2) a step.
    assert kept.written == pytest.approx([order / 18 for order in ORDERS])
    assert '"3.5": 0.19444' in entry.note


def test_a_divergence_makes_the_epsilon_that_the_paper_says() -> None:
    # Canonne, Kamath and Steinke 2020, proposition 12, solved for delta, gives delta back.
    for order in ORDERS:
        e = bound(2.0, order, DELTA)
        delta = math.exp((order - 1) * (2.0 - e)) / (order - 1) * (1 - 1 / order) ** order
        assert e == 0 or delta == pytest.approx(DELTA)
        assert bound(allowance(LIMITS, order), order, DELTA) <= 10 + 1e-9
