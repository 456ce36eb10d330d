"""How much privacy a list of mechanisms spends, and how much noise a budget needs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from shared.errors import StudyError
from shared.prv import (
    AddedPatientLoss,
    Floats,
    RemovedPatientLoss,
    Repeated,
    ReplacedPatientLoss,
    prv_epsilon,
    quiet,
)
from shared.study import Study

LEAST_NOISE = 0.5
"""Least noise multiplier of a calibrated mechanism: below it a step hides hardly anything of those
it sampled, and only that few are sampled makes epsilon small."""
MOST_NOISE = 1e7
"""Largest noise multiplier that is calibrated; up to it, no noise drawn overflows int64."""


@dataclass(frozen=True, order=True)
class Mechanism:
    """A Gaussian mechanism of sensitivity 1 on a Poisson sample of patients, repeated.

    Neighbouring data sets differ by one patient with all images, added or removed.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the sensitivity; 0: no privacy.
        sampling_rate: Chance of each patient to be in the sample, in [0, 1]; 1: everybody.
        steps: How often it is run.

    Raises:
        StudyError: A value is out of its range.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (
            0 <= self.noise_multiplier < math.inf
            and 0 <= self.sampling_rate <= 1
            and self.steps >= 0
        ):
            raise StudyError(
                "noise must be finite and not negative, the sampling rate in [0, 1] and the "
                f"steps not negative: {self}",
                todo="Correct the study's training and privacy sections",
            )


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Return an upper bound on the epsilon of the mechanisms composed.

    The smaller of two bounds that both hold: the PRV accountant (Gopi, Lee and Wutschitz 2021;
    the worse of adding and of removing a patient) and Renyi accounting (`rdp_epsilon`).

    Args:
        mechanisms: What was run, in any order.
        delta: In (0, 1).

    Returns:
        Epsilon; 0 for no mechanism, infinity where one had no noise.

    Raises:
        StudyError: `delta` is out of range.
    """
    _check_delta(delta)
    return _epsilon(_group(mechanisms), delta)


def rdp_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Return the Renyi bound on epsilon (Mironov, Talwar and Zhang 2019), which is looser.

    Args:
        mechanisms: As for `epsilon`.
        delta: In (0, 1).

    Raises:
        StudyError: `delta` is out of range.
    """
    _check_delta(delta)
    return _rdp_epsilon(_group(mechanisms), delta, _ORDERS)


def replacement_epsilon(
    mechanisms: Sequence[Mechanism], delta: float, counts: Sequence[Mechanism] = ()
) -> float:
    """Return an upper bound on epsilon where neighbours replace a patient's data by other data.

    A patient is in the same steps with either data, and contributes in full length and opposite
    directions: a step is the pair of `shared.prv.ReplacedPatientLoss`, the one `dp-accounting`
    follows for this relation. That no other pair is worse is not proved here, so the figure is
    stated beside `epsilon` and decides nothing.

    Args:
        mechanisms: What sums contributions; as for `epsilon`.
        delta: In (0, 1).
        counts: What counts patients, noise over the change by one patient more or less. One who
            is replaced moves from one cell to another: by root 2 of that, and not by 2.

    Raises:
        StudyError: `delta` is out of range.
    """
    _check_delta(delta)
    moved = [replace(m, noise_multiplier=math.sqrt(2) * m.noise_multiplier) for m in counts]
    return _replacement_epsilon(_group([*mechanisms, *moved]), delta)


def renyi(mechanism: Mechanism, orders: tuple[float, ...]) -> tuple[float, ...]:
    """Return the Renyi divergence of a mechanism at each order; infinite without noise.

    Of both directions, a patient added and removed, the larger (Mironov, Talwar and Zhang 2019,
    theorem 5).

    Args:
        mechanism: With all its steps.
        orders: Above 1.
    """
    m = mechanism
    if not m.steps or not m.sampling_rate:
        return (0.0,) * len(orders)
    once = _renyi(m.noise_multiplier, m.sampling_rate, orders)
    return tuple(m.steps * float(one) for one in once)


def calibrate(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    beside: Sequence[Mechanism] = (),
) -> float:
    """Return the smallest noise multiplier whose epsilon is at most the given one.

    Args:
        epsilon: Budget for all steps together, above 0.
        delta: In (0, 1).
        sampling_rate: In [0, 1].
        steps: Steps of the whole study, spare rounds included.
        beside: Other mechanisms on the same patients, which the budget must cover too.

    Returns:
        The noise multiplier, at least `LEAST_NOISE`, within 0.1 % of the smallest that keeps the
        budget and never below it; 0 if nothing is run.

    Raises:
        StudyError: A value is out of range, or no noise keeps the budget.
    """
    _check_delta(delta)
    if not 0 < epsilon < math.inf:
        raise StudyError(f"epsilon must be above 0, not {epsilon}", "privacy.epsilon")
    Mechanism(0.0, sampling_rate, steps)
    others = _group(beside)
    if (spent := _epsilon(others, delta)) >= epsilon:
        raise StudyError(
            f"the counts released before training cost epsilon {spent:.3g} alone, the study has "
            f"{epsilon:g} in all",
            "privacy.statistics_noise",
            "Raise it, or raise privacy.epsilon",
        )
    if not (sampling_rate and steps):
        return 0.0
    return max(LEAST_NOISE, _calibrate(epsilon, delta, sampling_rate, steps, others))


def stated_epsilon(
    epsilon: float, delta: float, mechanism: Mechanism, beside: Sequence[Mechanism] = ()
) -> float:
    """Return what a calibrated mechanism is said to cost: the budget, or less.

    It is less where the noise was raised to `LEAST_NOISE`.

    Args:
        epsilon: The budget.
        delta: In (0, 1).
        mechanism: With all its steps, of the noise that `calibrate` found.
        beside: As for `calibrate`.
    """
    if mechanism.noise_multiplier > LEAST_NOISE:
        return epsilon
    return min(epsilon, _epsilon(_group([mechanism, *beside]), delta))


def before_training(study: Study) -> tuple[Mechanism, ...]:
    """Return what a study releases of training patients before training: noised statistics.

    Once, and once more for each spare round; see `shared.protocol.Statistics`.
    """
    if not (study.needs_statistics and study.privacy.enabled):
        return ()
    releases = 1 + study.privacy.spare_rounds
    return (Mechanism(study.privacy.statistics_noise, 1.0, releases),)


def default_delta(patients: int) -> float:
    """Return the delta of a site with N patients: min(1e-5, 1 / (10 N))."""
    return min(1e-5, 1 / (10 * max(1, patients)))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise StudyError(
            f"delta must lie between 0 and 1, not {delta}",
            "privacy.delta",
            "Leave it out, or choose at most 1e-5",
        )


def _group(mechanisms: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
    """Merge equal mechanisms, and all plain Gaussians into one, which is exact.

    The result does not depend on the portions in which a mechanism's steps come, not even in
    its last bit: a budget that was calibrated to the full must not fail by rounding.
    """
    steps: dict[tuple[float, float], int] = defaultdict(int)
    for m in mechanisms:
        if m.steps and m.sampling_rate:
            steps[m.noise_multiplier, m.sampling_rate] += m.steps
    plain = [(noise, n) for (noise, rate), n in steps.items() if rate == 1 and noise > 0]
    grouped = [
        Mechanism(noise, rate, n) for (noise, rate), n in steps.items() if rate < 1 or noise == 0
    ]
    if plain:
        precision = math.fsum(n / noise**2 for noise, n in plain)
        grouped.append(Mechanism(precision**-0.5, 1.0, 1))
    return tuple(sorted(grouped))


@lru_cache(maxsize=4096)
def _epsilon(mechanisms: tuple[Mechanism, ...], delta: float) -> float:
    """Return the tighter of both bounds for mechanisms that `_group` has merged."""
    bound = _rdp_epsilon(mechanisms, delta, _WHOLE_ORDERS)
    if bound > _MOST_EPSILON:
        bound = _rdp_epsilon(mechanisms, delta, _ORDERS)
    if 0 < bound <= _MOST_EPSILON and delta >= _LEAST_DELTA:
        with suppress(RuntimeError, ValueError):  # raised in extreme cases it cannot answer
            return min(bound, _prv_epsilon(mechanisms, delta, bound))
    return bound


@lru_cache(maxsize=256)
def _calibrate(
    epsilon: float, delta: float, rate: float, steps: int, beside: tuple[Mechanism, ...]
) -> float:
    from scipy.optimize import brentq

    def excess(log_noise: float) -> float:
        spent = _epsilon(_group([Mechanism(math.exp(log_noise), rate, steps), *beside]), delta)
        return math.log(min(max(spent, 1e-12), 1e12) / epsilon)

    # Epsilon falls at least about as fast as the noise grows, so the excess bounds the way.
    low, high = 0.0, 0.1
    while excess(high) > 0:
        low, high = high, high + min(2.0, excess(high) + 0.1)
        if high > math.log(MOST_NOISE):
            raise StudyError(
                f"no noise keeps {steps} steps within epsilon {epsilon} at delta {delta}",
                "privacy.epsilon",
                "Raise epsilon or delta, or train for fewer steps",
            )
    while excess(low) <= 0:
        low, high = low - min(2.0, 0.1 - excess(low)), low
    noise = brentq(excess, low, high, xtol=_LOG_NOISE_STEP)
    while excess(noise) > 0:
        noise += _LOG_NOISE_STEP
    return math.exp(noise)


# How finely calibration searches, in the logarithm of the noise multiplier.
_LOG_NOISE_STEP = 4e-4

# Beyond these the PRV accountant's Fourier transforms in float64 lose their meaning.
_MOST_EPSILON, _LEAST_DELTA = 300.0, 1e-9

# Whole orders are cheap and enough where the PRV accountant answers; parts of 1 are slow.
_WHOLE_ORDERS = (*range(2, 21), *range(22, 64, 3), 64, 80, 96, 128, 192, 256, 384, 512, 768, 1000)
_ORDERS = (1.25, 1.5, 1.75, 2.25, 2.5, 2.75, 3.25, 3.5, 3.75, 4.5, 5.5, *_WHOLE_ORDERS)


def _rdp_epsilon(
    mechanisms: tuple[Mechanism, ...], delta: float, orders: tuple[float, ...]
) -> float:
    if not mechanisms:
        return 0.0
    parts = [m.steps * _renyi(m.noise_multiplier, m.sampling_rate, orders) for m in mechanisms]
    return _converted(np.sum(parts, axis=0), delta, orders)


def _converted(renyi: Floats, delta: float, orders: tuple[float, ...]) -> float:
    """Return the epsilon that Renyi divergences bound, float64 [orders]."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    with quiet():
        bound = float(get_privacy_spent(orders=list(orders), rdp=renyi, delta=delta)[0])
    return math.inf if math.isnan(bound) else max(0.0, bound)


@lru_cache(maxsize=1024)
def _renyi(noise: float, rate: float, orders: tuple[float, ...]) -> Floats:
    """Return the Renyi divergence of one step at each order, float64 [orders]."""
    from opacus.accountants.analysis.rdp import compute_rdp

    with quiet():
        return np.array(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(orders)))


def _prv_epsilon(mechanisms: tuple[Mechanism, ...], delta: float, bound: float) -> float:
    """Return the PRV accountant's upper bound, the worse of adding and removing a patient.

    Args:
        mechanisms: Distinct ones, all with noise.
        delta: In (0, 1).
        bound: An upper bound on the result, which sets the accuracy asked for.

    Raises:
        RuntimeError: The accountant's own checks fail; so does ValueError.
    """
    repeated = []
    for m in mechanisms:
        renyi = _renyi(m.noise_multiplier, m.sampling_rate, _WHOLE_ORDERS)
        repeated.append(Repeated(m.noise_multiplier, m.sampling_rate, m.steps, renyi))
    return max(
        prv_epsilon(repeated, _WHOLE_ORDERS, delta, bound, loss)
        for loss in (RemovedPatientLoss, AddedPatientLoss)
    )


@lru_cache(maxsize=256)
def _replacement_epsilon(mechanisms: tuple[Mechanism, ...], delta: float) -> float:
    """Return epsilon under replacement for mechanisms that `_group` has merged.

    For the pair of `ReplacedPatientLoss` with R = N(0, s^2) between its two, the weak triangle
    inequality D_a(P, Q) <= (a - 1/2) / (a - 1) D_2a(P, R) + D_(2a - 1)(R, Q) bounds the Renyi
    divergence (Mironov 2017, proposition 11).
    """
    if not mechanisms:
        return 0.0
    orders = np.array(_WHOLE_ORDERS)
    repeated = []
    for m in mechanisms:
        twice = _renyi(m.noise_multiplier, m.sampling_rate, tuple(2 * a for a in _WHOLE_ORDERS))
        less = _renyi(m.noise_multiplier, m.sampling_rate, tuple(2 * a - 1 for a in _WHOLE_ORDERS))
        renyi = (orders - 0.5) / (orders - 1) * twice + less
        repeated.append(Repeated(m.noise_multiplier, m.sampling_rate, m.steps, renyi))
    whole = np.sum([part.steps * part.renyi for part in repeated], axis=0)
    bound = _converted(whole, delta, _WHOLE_ORDERS)
    if 0 < bound <= _MOST_EPSILON and delta >= _LEAST_DELTA:
        with suppress(RuntimeError, ValueError):
            found = prv_epsilon(repeated, _WHOLE_ORDERS, delta, bound, ReplacedPatientLoss)
            return min(bound, found)
    return bound
