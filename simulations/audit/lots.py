"""Whether lots are Poisson samples, judged by who was in many of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from client.data.cohort import PatientSet
from client.privacy.sampler import Lot
from client.privacy.stream import RandomStream

# Draws a lot: randomness, patient of each image, number of patients, rate, most images.
Sampler = Callable[[RandomStream, torch.Tensor, int, float, int], Lot]
Table = np.ndarray[Any, np.dtype[np.bool_]]
Counts = np.ndarray[Any, np.dtype[np.int64]]

DRAWS, PATIENTS, RATE = 4000, 64, 0.2
# True Poisson lots are accused in one of 100 000 audits at most: the sum over all statistics of
# the two tables that an audit judges, the sampler's alone and training's. P values are exact.
FALSE_ALARM = 1e-5
TABLES = 2
LEAST_P = 1e-300  # shown as 37 standard deviations


@dataclass(frozen=True)
class LotsResult:
    """What the lots look like beside Poisson samples.

    Attributes:
        deviations: For each statistic its p value, as standard deviations of a normal.
        limit: The most that chance explains.
    """

    deviations: dict[str, float]
    limit: float

    @property
    def poisson(self) -> bool:
        """Whether every statistic is as it should be."""
        return all(abs(z) <= self.limit for z in self.deviations.values())


class LotRecorder:
    """Notes whose images each step of training reads, whatever code drew its lot.

    A step reads the labels of its lot once and then its images, in as many parts as it likes.

    Args:
        patients: What is trained on.
    """

    def __init__(self, patients: PatientSet) -> None:
        self._owner = patients.image_patient
        self._lots: list[torch.Tensor] = []
        self.patients = replace(
            patients,
            images=_watched(patients.images, self._note_images),
            labels=_watched(patients.labels, lambda _: self._begin()),
        )

    def table(self) -> Table:
        """Return who was in which lot so far, bool [lots, patients]."""
        return np.array([lot.numpy() for lot in self._lots], dtype=bool).reshape(
            len(self._lots), len(self.patients)
        )

    def _begin(self) -> None:
        self._lots.append(torch.zeros(len(self.patients), dtype=torch.bool))

    def _note_images(self, index: Any) -> None:
        if not self._lots:
            self._begin()
        self._lots[-1][self._owner[index]] = True


class _Watched(torch.Tensor):
    """A tensor that tells what is read of it; what is computed from it is a plain one."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    tell: Callable[[Any], None]

    def __getitem__(self, index: Any) -> torch.Tensor:
        self.tell(index)
        return self.as_subclass(torch.Tensor)[index]


def _watched(tensor: torch.Tensor, tell: Callable[[Any], None]) -> torch.Tensor:
    watched = tensor.as_subclass(_Watched)
    watched.tell = tell
    return watched


def check_lots(sampler: Sampler, stream: RandomStream) -> LotsResult:
    """Draw many lots from a sampler alone and judge them.

    Args:
        sampler: The product's `draw_lot`, or another one.
        stream: Its randomness.
    """
    image_patient = torch.arange(PATIENTS)
    table = np.zeros((DRAWS, PATIENTS), dtype=bool)
    for row in table:
        row[sampler(stream, image_patient, PATIENTS, RATE, 1).patients.numpy()] = True
    return judge_lots(table, RATE)


def judge_lots(table: Table, rate: float) -> LotsResult:
    """Compare six statistics of lots with their law for Poisson samples.

    Args:
        table: Who was in which lot, bool [lots, patients].
        rate: The sampling rate q, in (0, 1]; each entry should be a coin of its own.
    """
    from scipy.stats import norm

    found = deviations(table, rate)
    return LotsResult(found, float(norm.isf(FALSE_ALARM / TABLES / len(found) / 2)))


def deviations(table: Table, rate: float) -> dict[str, float]:
    """Return how far statistics of inclusion are off, their p values as standard deviations.

    Each counts coins that show heads, so that its law is exactly binomial however few lots
    there are. Lots that follow each other are taken in pairs that do not overlap: given who is
    in the first, its patients' coins for the second are fresh.

    Args:
        table: As for `judge_lots`.
        rate: Likewise.
    """
    lots, patients = table.shape
    return {
        "patients per lot": _sigma(int(table.sum()), table.size, rate),
        "spread of the size of lots": _spread(table.sum(axis=1), patients, rate),
        "spread of inclusions between patients": _spread(table.sum(axis=0), lots, rate),
        "patients of lots 1, 3, 5, ... again in the next": _again(table, rate),
        "patients of lots 2, 4, 6, ... again in the next": _again(table[1:], rate),
        "patients together with the next": _again(table.T, rate),
    }


def _spread(counts: Counts, n: int, rate: float) -> float:
    """Compare how many counts are among the likely values with Binomial(n, rate)'s share."""
    from scipy.stats import binom

    values = np.arange(n + 1)
    values = values[np.argsort(np.abs(values - n * rate), kind="stable")]
    shares = np.cumsum(binom.pmf(values, n, rate))
    likely = int(np.searchsorted(shares, 0.5))  # the values nearest the mean, about half of all
    seen = int(np.isin(counts, values[: likely + 1]).sum())
    return _sigma(seen, len(counts), min(1.0, float(shares[likely])))


def _again(table: Table, rate: float) -> float:
    """Compare how many of rows 1, 3, 5, ... are in the row that follows."""
    first, second = table[:-1:2], table[1::2]
    return _sigma(int((first & second).sum()), int(first.sum()), rate)


def _sigma(seen: int, coins: int, chance: float) -> float:
    """Return the exact two-sided p value of so many heads, as standard deviations."""
    from scipy.stats import binom, norm

    low, high = binom.cdf(seen, coins, chance), binom.sf(seen - 1, coins, chance)
    size = norm.isf(min(0.5, max(low if low < high else high, LEAST_P)))
    return float(-size if low < high else size)
