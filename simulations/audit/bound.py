"""What right guesses prove about epsilon: the bound of the one-run audit.

Source: Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023,
theorem 5.2 and appendix D. Each of m canaries was included by a fair coin of its own; an
auditor who sees the mechanism's output guesses some of the coins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Scores = np.ndarray[Any, np.dtype[np.float64]]
Coins = np.ndarray[Any, np.dtype[np.bool_]]

FEWEST_GUESSES = 16
PRECISION = 1e-4


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon and the guesses that prove it.

    Attributes:
        epsilon: The lower bound; 0 where nothing is proved.
        guesses: How many coins were guessed; the other canaries are abstentions.
        right: How many of the guesses were right.
    """

    epsilon: float
    guesses: int
    right: int


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound the chance of so many right guesses against any (epsilon, delta)-private mechanism.

    With W ~ Binomial(guesses, e^epsilon / (1 + e^epsilon)) it is P[W >= right] +
    2 m delta max_i P[right - i <= W < right] / i.

    Args:
        canaries: m, guessed or not.
        guesses: r, in [0, m].
        right: v, in [0, r].
        epsilon: At least 0.
        delta: In [0, 1].

    Raises:
        ValueError: A count is out of its range.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"not 0 <= {right} <= {guesses} <= {canaries}")
    from scipy.stats import binom

    chance = 1 / (1 + math.exp(-epsilon))
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
    worst = float(np.max(below / np.arange(1, right + 1), initial=0.0))
    return min(1.0, float(binom.sf(right - 1, guesses, chance)) + 2 * canaries * delta * worst)


def lower_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float) -> float:
    """Return the largest epsilon that so many right guesses rule out, rounded down by < 1e-4.

    Args:
        canaries: m, guessed or not.
        guesses: r, fixed before the guesses are scored.
        right: v.
        delta: The delta of the claim.
        confidence: In (0, 1); 0.95 errs for one true claim in twenty at most.
    """
    error = 1 - confidence
    if p_value(canaries, guesses, right, 0.0, delta) >= error:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(canaries, guesses, right, high, delta) < error:
        low, high = high, 2 * high
    while high - low > PRECISION:
        middle = (low + high) / 2
        if p_value(canaries, guesses, right, middle, delta) < error:
            low = middle
        else:
            high = middle
    return low


def best_bound(scores: Scores, coins: Coins, delta: float, confidence: float) -> Bound:
    """Guess the coins of the canaries with extreme scores, and return what that proves.

    Half the guesses say "included", for the highest scores, and half "left out". How many
    guesses prove most is not known before, so several numbers are tried, each at a share of the
    error (Bonferroni), which keeps the confidence for the best of them.

    Args:
        scores: Larger where the canary looks included, float64 [canaries].
        coins: Whether it was, bool [canaries].
        delta: The delta of the claim.
        confidence: In (0, 1).
    """
    m = len(scores)
    order = np.argsort(scores, kind="stable")
    tried = guess_counts(m)
    each = 1 - (1 - confidence) / len(tried)
    found = []
    for guesses in tried:
        half = guesses // 2
        right = int(coins[order[m - half :]].sum() + (~coins[order[:half]]).sum())
        found.append(Bound(lower_bound(m, guesses, right, delta, each), guesses, right))
    return max(found, key=lambda bound: bound.epsilon)


def largest_bound(canaries: int, delta: float, confidence: float) -> float:
    """Return the bound if every canary were guessed, and rightly: no audit of so many shows more.

    Args:
        canaries: m.
        delta: The delta of the claim.
        confidence: In (0, 1).
    """
    tried = guess_counts(canaries)
    each = 1 - (1 - confidence) / len(tried)
    return max(lower_bound(canaries, r, r, delta, each) for r in tried)


def guess_counts(canaries: int) -> list[int]:
    """Return the even numbers of guesses that are tried: all canaries, half of them, and so on."""
    counts = [canaries - canaries % 2]
    while counts[-1] // 2 >= FEWEST_GUESSES:
        half = counts[-1] // 2
        counts.append(half - half % 2)
    return counts
