"""Whether lots are Poisson samples, judged by who was in many of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from client.privacy.sampler import Lot
from client.privacy.stream import RandomStream

# Draws a lot: randomness, patient of each image, number of patients, rate, most images.
Sampler = Callable[[RandomStream, torch.Tensor, int, float, int], Lot]
Table = np.ndarray[Any, np.dtype[np.bool_]]

DRAWS, PATIENTS, RATE = 4000, 64, 0.2
# A true Poisson sampler fails about once in 100 000 audits.
FALSE_ALARM = 1e-5


@dataclass(frozen=True)
class LotsResult:
    """What the lots look like beside Poisson samples.

    Attributes:
        deviations: For each statistic how many standard deviations it is off.
        limit: The most that chance explains.
    """

    deviations: dict[str, float]
    limit: float

    @property
    def poisson(self) -> bool:
        """Whether every statistic is as it should be."""
        return all(abs(z) <= self.limit for z in self.deviations.values())


def check_lots(sampler: Sampler, stream: RandomStream) -> LotsResult:
    """Draw many lots and compare five statistics with their Poisson law.

    Args:
        sampler: The product's `draw_lot`, or another one.
        stream: Its randomness.
    """
    from scipy.stats import norm

    image_patient = torch.arange(PATIENTS)
    table = np.zeros((DRAWS, PATIENTS), dtype=bool)
    for row in table:
        row[sampler(stream, image_patient, PATIENTS, RATE, 1).patients.numpy()] = True
    found = deviations(table, RATE)
    return LotsResult(found, float(norm.isf(FALSE_ALARM / len(found) / 2)))


def deviations(table: Table, rate: float) -> dict[str, float]:
    """Return how far statistics of inclusion are off, in standard deviations, near N(0, 1).

    Args:
        table: Who was in which lot, bool [lots, patients].
        rate: The sampling rate q, in (0, 1); each entry should be a coin of its own.
    """
    lots, patients = table.shape
    q = rate
    both = (table[1:] & table[:-1]).sum()
    pairs = (lots - 1) * patients
    # Overlaps of lots 1, 2 and 2, 3 share lot 2, so they are correlated.
    overlap = pairs * q**2 * (1 - q**2) + 2 * (lots - 2) * patients * q**3 * (1 - q)
    coins = table.size
    return {
        "patients per lot": _z(table.sum(), coins * q, coins * q * (1 - q)),
        "spread of the size of lots": _spread(table.sum(axis=1), patients, q),
        "spread of inclusions between patients": _spread(table.sum(axis=0), lots, q),
        "patients in two lots in a row": _z(both, pairs * q**2, overlap),
        "patients together with the next": _neighbours(table, q),
    }


def _z(seen: float, mean: float, variance: float) -> float:
    return float((seen - mean) / math.sqrt(variance))


def _spread(counts: np.ndarray[Any, Any], n: int, q: float) -> float:
    """Compare the squared deviations of counts with those of Binomial(n, q)."""
    variance = n * q * (1 - q)
    squares = float(np.square(counts - n * q).sum()) / variance
    kurtosis = 2 + (1 - 6 * q * (1 - q)) / variance
    return _z(squares, len(counts), len(counts) * kurtosis)


def _neighbours(table: Table, q: float) -> float:
    """Compare how often patients come with the next in the list, as `deviations` does for lots."""
    lots, patients = table.shape
    both = (table[:, 1:] & table[:, :-1]).sum()
    pairs = lots * (patients - 1)
    variance = pairs * q**2 * (1 - q**2) + 2 * lots * (patients - 2) * q**3 * (1 - q)
    return _z(both, pairs * q**2, variance)
