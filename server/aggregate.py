"""Combining the sites' updates as they arrive, in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import CoordinatorError
from shared.transport import Weights

STEP = 2.0**-28
"""Resolution of the fixed-point sum; rounding to it costs the mean at most STEP / 2 a value."""

LARGEST_VALUE = 32.0
"""Largest magnitude of one value of an update; a larger one is refused, never clipped."""

LARGEST_WEIGHT = 2**30 - 1
"""Largest sum of weights (patients), so that 33 bits a value and 30 of weight fit in int64."""


class Aggregator(Protocol):
    """Folds the updates of one round into one change of the global weights."""

    def add(self, site: str, update: Weights, weight: int) -> None:
        """Fold in one site's update (new minus global weights), weighted by its patients."""

    def finish(self) -> Weights:
        """Return the combined update, float32, shaped like the reference weights."""


class WeightedMean:
    """The mean of the updates weighted by patients (FedAvg, McMahan et al. 2017).

    Values are rounded to multiples of `STEP` and summed as integers, so the result is the
    same, bit for bit, in whatever order the updates arrive. It differs from the exact mean by
    at most STEP / 2 (1.9e-9) a value, before the one rounding to float32.

    Args:
        reference: The global weights; gives names and shapes.
    """

    def __init__(self, reference: Weights) -> None:
        self._sums: dict[str, NDArray[np.int64]] = {
            name: np.zeros(array.shape, dtype=np.int64) for name, array in reference.items()
        }
        self._weight = 0

    def add(self, site: str, update: Weights, weight: int) -> None:
        """Fold in one site's update.

        Args:
            site: Named in errors.
            update: float32 arrays with the reference's names and shapes.
            weight: The site's training patients N, from the size it declared; at least 1.

        Raises:
            CoordinatorError: The update cannot be summed exactly (`why_not_summable`). The sum
                is then as it was before.
        """
        if reason := self.why_not_summable(update, weight):
            raise CoordinatorError(f"an update cannot be added: {reason}", site)
        for name, total in self._sums.items():
            total += weight * np.rint(update[name].astype(np.float64) / STEP).astype(np.int64)
        self._weight += weight

    def finish(self) -> Weights:
        """Return the weighted mean.

        Raises:
            CoordinatorError: No update was added.
        """
        if self._weight == 0:
            raise nothing_to_combine()
        return {
            name: (total.astype(np.float64) * (STEP / self._weight)).astype(np.float32)
            for name, total in self._sums.items()
        }

    def why_not_summable(self, update: Weights, weight: int) -> str:
        """Return why an update would not fit the sum, or an empty text."""
        if weight < 1 or self._weight + weight > LARGEST_WEIGHT:
            return f"the number of patients is not between 1 and {LARGEST_WEIGHT} in all"
        if _shapes(update) != _shapes(self._sums):
            return "its names or shapes are not the model's"
        if not all(np.all(np.abs(array) <= LARGEST_VALUE) for array in update.values()):
            return f"a value is not finite or exceeds {LARGEST_VALUE:g}"
        return ""


def nothing_to_combine() -> CoordinatorError:
    """Return the error of a round without any update."""
    return CoordinatorError(
        "there is nothing to average: no site's update was accepted",
        todo="Look at each site's reason in the run's events",
    )


def running_mean(mean: Weights, newest: Weights, decay: float, rounds: int) -> Weights:
    """Return the exponential mean of the global weights of all rounds so far.

    The bias correction of Kingma and Ba (2015, section 3) is applied as it goes, so the
    weights before round 1 have no part in it: after `rounds` rounds, the weights of `k` rounds
    ago count in proportion to `decay**k`.

    Args:
        mean: The mean after the round before; empty when there is none to keep.
        newest: Global weights after this round.
        decay: 0 to below 1.
        rounds: Rounds done, this one included; at least 1.
    """
    part = (1 - decay) / (1 - decay**rounds)
    return {
        name: (old + part * (newest[name].astype(np.float64) - old)).astype(np.float32)
        for name, old in mean.items()
    }


def _shapes(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
