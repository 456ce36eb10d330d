"""Combining updates coordinate by coordinate, so that a few that are nonsense cannot decide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from server.aggregate import Aggregator, WeightedMean, nothing_to_combine
from shared.study import Federation, Study, trimmed_sites
from shared.transport import Weights


def make_aggregator(study: Study, reference: Weights) -> Aggregator:
    """Return a round's aggregator of the kind the study asks for.

    Args:
        study: The plan.
        reference: The global weights.
    """
    makers: dict[str, Callable[[Federation, Weights], Aggregator]] = {
        "mean": lambda _, weights: WeightedMean(weights),
        "median": lambda _, weights: Median(weights),
        "trimmed-mean": lambda plan, weights: TrimmedMean(weights, plan.trim),
    }
    return makers[study.federation.aggregator](study.federation, reference)


class _Sorted(ABC):
    """Keeps all updates of a round and combines each coordinate's values in ascending order.

    Sorted values do not tell in which order they came, so the result is the same, bit for bit,
    in any. Sites count alike, however many patients they have: a weight is the site's own
    word, and a nonsense site would give itself the largest. Memory grows with the number of
    sites: all their updates, and one array of all of them twice.

    Args:
        reference: The global weights; gives the names.
    """

    def __init__(self, reference: Weights) -> None:
        self._names = tuple(reference)
        self._updates: list[Weights] = []

    def add(self, site: str, update: Weights, weight: int) -> None:
        """Keep one site's update; its number of patients is not used.

        Args:
            site: Not used.
            update: float32 arrays with the reference's names and shapes, finite.
            weight: Not used.
        """
        self._updates.append(update)

    def finish(self) -> Weights:
        """Return the combined update.

        Raises:
            CoordinatorError: No update was added.
        """
        if not self._updates:
            raise nothing_to_combine()
        combined = {}
        for name in self._names:
            # Adding 0 turns -0 into 0: the two are equal, so sorting would not order them.
            values = np.stack([update[name] for update in self._updates]).astype(np.float64) + 0.0
            combined[name] = self.combine(np.sort(values, axis=0)).astype(np.float32)
        return combined

    @abstractmethod
    def combine(self, ascending: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one value for each coordinate from all sites' values, [sites, ...]."""


class Median(_Sorted):
    """The coordinate-wise median (Yin, Chen, Ramchandran and Bartlett 2018, definition 1).

    Of an even number of sites it is the mean of the two in the middle. It stays within the
    honest sites' values as long as fewer than half of the sites send nonsense. The price: it
    is not the mean, so where sites differ, the typical one is heard and the others are not.
    """

    def combine(self, ascending: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the median of each coordinate."""
        sites = len(ascending)
        middle: NDArray[np.float64] = (ascending[(sites - 1) // 2] + ascending[sites // 2]) / 2
        return middle


class TrimmedMean(_Sorted):
    """The coordinate-wise trimmed mean (Yin et al. 2018, definition 2).

    Of n values the floor(trim * n) smallest and as many of the largest are left out and the
    others are averaged. It stays within the honest sites' values as long as at most that many
    sites send nonsense; with n < 1 / trim it leaves out none and is the plain mean, which a
    single site can move anywhere.

    Args:
        reference: The global weights.
        trim: Part cut off at each end, above 0 and below 1/2.
    """

    def __init__(self, reference: Weights, trim: float) -> None:
        super().__init__(reference)
        self._trim = trim

    def combine(self, ascending: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean of each coordinate without its extremes."""
        sites = len(ascending)
        cut = trimmed_sites(self._trim, sites)
        mean: NDArray[np.float64] = ascending[cut : sites - cut].mean(axis=0)
        return mean
