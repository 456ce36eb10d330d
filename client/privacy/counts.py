"""Counts of patients that may leave: with Gaussian noise, and rounded so that it hides them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from client.privacy.stream import RandomStream

GRID = 64
"""Noised counts are rounded to multiples of 1 / GRID."""


def noised(
    counts: npt.NDArray[np.int64], noise: float, stream: RandomStream
) -> npt.NDArray[np.float64]:
    """Return counts with Gaussian noise on every one, rounded to the grid.

    Args:
        counts: Exact counts, of any shape.
        noise: Standard deviation of the noise; 0: the exact counts are meant to be sent.
        stream: Source of the noise.
    """
    if not noise:
        return counts.astype(np.float64)
    total = counts + stream.gaussian(counts.shape, noise).numpy().astype(np.float64)
    # The last bits of a sum of count and noise would tell which counts are possible (Mironov
    # 2012); on a grid far coarser than the noise's own, every count is.
    rounded: npt.NDArray[np.float64] = np.round(total * GRID) / GRID
    return rounded
