"""Counts of patients that may leave: with exact Gaussian noise, on a grid of 1 / GRID."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from client.privacy.rounded_gaussian import at_least
from client.privacy.stream import RandomStream

GRID = 64
"""Noised counts are multiples of 1 / GRID."""


def noised(
    counts: npt.NDArray[np.int64], noise: float, stream: RandomStream
) -> npt.NDArray[np.float64]:
    """Return counts with Gaussian noise on every one, rounded to the grid.

    Count and noise are added as whole numbers of 1 / GRID. As the count is on the grid, that is
    rounding their sum as real numbers: post-processing of the Gaussian mechanism. A float64
    holds the sum; one beyond 2^53 would be rounded once more, which is post-processing too.

    Args:
        counts: Exact counts, of any shape, below 2^50.
        noise: Standard deviation of the noise; 0: the exact counts are meant to be sent.
        stream: Source of the noise.

    Raises:
        ValueError: The noise is not finite, negative, or so large that it would overflow.
    """
    if not noise:
        return counts.astype(np.float64)
    drawn = stream.rounded_gaussian(counts.shape, at_least(noise * GRID)).numpy()
    total: npt.NDArray[np.float64] = (counts * GRID + drawn) / GRID
    return total
