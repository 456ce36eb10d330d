"""What so many right guesses of an enemy prove, against the chance an ideal mechanism leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FALSE_ALARM = 1e-6
"""How often a distinguisher accuses a sound mechanism, at most."""


@dataclass(frozen=True)
class Verdict:
    """How well an enemy told neighbouring data sets apart.

    Attributes:
        name: The distinguisher.
        tried: What was done, a clause.
        trials: Coins guessed, each fair and of its own.
        right: Guesses that were right.
        chance: The most an enemy of the ideal mechanism is right, for each coin.
    """

    name: str
    tried: str
    trials: int
    right: int
    chance: float

    @classmethod
    def of(
        cls,
        name: str,
        tried: str,
        guesses: Sequence[bool],
        coins: Sequence[bool],
        chance: float,
    ) -> Verdict:
        """Score guesses against the coins."""
        right = sum(bool(g) == coin for g, coin in zip(guesses, coins, strict=True))
        return cls(name, tried, len(coins), right, chance)

    @property
    def p_value(self) -> float:
        """Chance of at least so many right guesses against the ideal mechanism, exact."""
        from scipy.stats import binom

        return float(binom.sf(self.right - 1, self.trials, self.chance))

    @property
    def flagged(self) -> bool:
        """Whether the ideal mechanism is ruled out."""
        return self.p_value < FALSE_ALARM


def gaussian_chance(noise_multiplier: float, releases: int = 1) -> float:
    """Return how often the best guess between N(0, s^2) and N(1, s^2) is right, in (1/2, 1].

    Phi(sqrt(releases) / (2 s)): by Neyman and Pearson no rule on the releases does better, and
    rounding them to a grid, or any other step after the noise, helps no one.

    Args:
        noise_multiplier: s, noise over what one patient can change.
        releases: Independent ones.
    """
    from scipy.special import ndtr

    return float(ndtr(math.sqrt(releases) / (2 * noise_multiplier)))
