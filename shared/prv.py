"""Composed privacy losses followed numerically: the PRV accountant's upper bounds.

Source: Gopi, Lee and Wutschitz, "Numerical Composition of Differential Privacy", NeurIPS 2021.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

# Error in epsilon that a bound includes, relative; and the most points of the grid.
ERROR, MOST_POINTS = 0.003, 2**19


class Loss(Protocol):
    """The privacy loss log P(x) / Q(x) of one step, for x drawn from P."""

    def cdf(self, t: Floats) -> Floats:
        """Return the probability that the loss is at most `t`, elementwise."""


@dataclass(frozen=True)
class Repeated:
    """Steps of one mechanism.

    Attributes:
        noise_multiplier: Above 0.
        sampling_rate: In (0, 1].
        steps: At least 1.
        renyi: Bound on the Renyi divergence of one step, in both directions, float64 [orders].
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    renyi: Floats


def prv_epsilon(
    repeated: Sequence[Repeated],
    orders: Sequence[int],
    delta: float,
    bound: float,
    loss: Callable[[float, float], Loss],
) -> float:
    """Return an upper bound on the epsilon of all steps composed.

    Args:
        repeated: What is composed.
        orders: Of the Renyi divergences, above 1.
        delta: In (0, 1).
        bound: An upper bound on the result, which sets the accuracy asked for.
        loss: Makes the loss of one step from sampling rate and noise multiplier.

    Raises:
        RuntimeError: The accountant's own checks fail; so does ValueError.
    """
    parts = [loss(part.sampling_rate, part.noise_multiplier) for part in repeated]
    steps = [part.steps for part in repeated]
    reach = _reach(repeated, np.array(orders), delta / 1000)
    first = _follow(parts, steps, delta, reach, ERROR * bound)
    # The error was a part of the bound; where that is far above the result, it is too large.
    return first if bound < 2 * first else _follow(parts, steps, delta, reach, ERROR * first)


def _follow(
    losses: Sequence[Loss], steps: Sequence[int], delta: float, reach: float, error: float
) -> float:
    """Return the bound with about this error in epsilon, or as little as the points allow."""
    from opacus.accountants.analysis import prv

    delta_error = delta / 1000
    fineness = math.sqrt(sum(steps) * math.log(12 / delta_error) / 2)
    error = max(error, 2 * reach / max(1, MOST_POINTS / fineness - 2))
    domain = prv.Domain.create_aligned(-reach - error, reach + error, error / fineness)
    with quiet():
        cut = [
            prv.TruncatedPrivacyRandomVariable(one, domain.t_min, domain.t_max) for one in losses
        ]
        sum_ = prv.compose_heterogeneous([prv.discretize(p, domain) for p in cut], list(steps))
        found = float(sum_.compute_epsilon(delta, delta_error, error)[2])
    if not math.isfinite(found):
        raise RuntimeError("the PRV accountant found no epsilon")
    return max(0.0, found)


def _reach(repeated: Sequence[Repeated], orders: Floats, delta_error: float) -> float:
    """Return what neither a step's loss nor their sum exceeds, but for `delta_error`.

    By Markov's inequality P[loss >= t] <= e^((a - 1) (D_a - t)) for the Renyi divergence D_a of
    any order a, and P[loss <= -t] is no larger where D_a bounds both directions. The tails get
    shares of `delta_error`, those of single steps being shared by all steps.
    """
    total = sum(part.steps for part in repeated)
    whole = np.sum([part.steps * part.renyi for part in repeated], axis=0)
    tails = [(whole, delta_error / 8)]
    tails += [(part.renyi, delta_error / (16 * total)) for part in repeated]
    return max(float(np.nanmin(d - math.log(share) / (orders - 1))) for d, share in tails)


@dataclass(frozen=True)
class RemovedPatientLoss:
    """The patient is in P only: P = (1 - q) N(0, s^2) + q N(1, s^2) and Q = N(0, s^2).

    Attributes:
        sampling_rate: q, in (0, 1].
        noise_multiplier: s, above 0.
    """

    sampling_rate: float
    noise_multiplier: float

    def cdf(self, t: Floats) -> Floats:
        """Return the probability that the loss is at most `t`, elementwise."""
        from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV

        prv = PoissonSubsampledGaussianPRV(self.sampling_rate, self.noise_multiplier)
        return np.asarray(prv.cdf(t))


@dataclass(frozen=True)
class AddedPatientLoss:
    """The patient is in Q only: P = N(0, s^2) and Q = (1 - q) N(0, s^2) + q N(1, s^2).

    Under composition neither this nor `RemovedPatientLoss` is always the worse (Lebeda et al.
    2024), so both are followed.

    Attributes:
        sampling_rate: q, in (0, 1].
        noise_multiplier: s, above 0.
    """

    sampling_rate: float
    noise_multiplier: float

    def cdf(self, t: Floats) -> Floats:
        """Return the probability that the loss is at most `t`, elementwise."""
        from scipy.special import ndtr

        q, s = self.sampling_rate, self.noise_multiplier
        # The loss falls with x and equals t at x = s^2 z + 1/2; it never reaches -log(1 - q).
        rest = (np.exp(-np.asarray(t)) - (1 - q)) / q
        z = np.log(np.maximum(rest, 0))
        return np.asarray(ndtr(-(s * z + 1 / (2 * s))))


@dataclass(frozen=True)
class ReplacedPatientLoss:
    """The patient has other data in Q.

    P = (1 - q) N(0, s^2) + q N(1, s^2) and Q = (1 - q) N(0, s^2) + q N(-1, s^2): contributions
    of full length in opposite directions. P and Q exchanged are its mirror image, so one
    direction says all.

    Attributes:
        sampling_rate: q, in (0, 1].
        noise_multiplier: s, above 0.
    """

    sampling_rate: float
    noise_multiplier: float

    def cdf(self, t: Floats) -> Floats:
        """Return the probability that the loss is at most `t`, elementwise."""
        from scipy.special import ndtr

        q, s = self.sampling_rate, self.noise_multiplier
        size = np.abs(t)
        # With u = e^(x / s^2) the loss is t where b u^2 - (1 - q)(e^t - 1) u - b e^t = 0; it is
        # odd in x, so that only t >= 0 is solved, where nothing cancels.
        b = q * math.exp(-1 / (2 * s**2))
        middle = (1 - q) * np.expm1(size) / 2
        u = (middle + np.sqrt(middle**2 + b**2 * np.exp(size))) / b
        x = np.sign(t) * s * np.log(u)  # in standard deviations
        return np.asarray((1 - q) * ndtr(x) + q * ndtr(x - 1 / s))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence numpy and Opacus on extreme values that are handled by their caller."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
