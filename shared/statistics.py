"""Noised counts of the sites: what they hold, adding them up, and what to fill in from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.metrics import nearest_counts
from shared.protocol import Statistics
from shared.study import Column, Study, Table

TOLD_FROM_NOISE = 2.0
"""A column whose values number less than so many standard deviations of their noise is unknown."""


@dataclass(frozen=True)
class Centre:
    """The middle of a column over all sites.

    Attributes:
        mean: Of a number, in [-1, 1], its range scaled; of a category, the most frequent one's
            index.
        median: The same for the median; of a category, again the most frequent one's index.
    """

    mean: float
    median: float


def statistics_layout(study: Study) -> tuple[int, tuple[int, ...]]:
    """Return the lengths of `Statistics.classes` and of each of its `columns`.

    Columns are counted only in studies that fill in from them: what nobody needs stays.
    """
    classes = len(study.task.classes)
    columns = study.table.columns if study.table is not None and study.table.fills_in else ()
    bins = study.table.bins if study.table is not None else 0
    return (
        2 * classes if study.task.findings else classes,
        tuple((len(column.categories) or bins) + 1 for column in columns),
    )


def statistics_sensitivity(study: Study) -> float:
    """Return how far one patient can change all of the counts, in L2 norm.

    A patient is in one cell of the classes (of each finding) and in one of each column.
    """
    targets = len(study.task.classes) if study.task.findings else 1
    return math.sqrt(targets + len(statistics_layout(study)[1]))


def merge_statistics(parts: Sequence[Statistics]) -> Statistics:
    """Add up the counts of several sites; independent noises add in squares.

    Raises:
        ValueError: There is none, or their lengths differ.
    """
    shapes = {(len(s.classes), tuple(map(len, s.columns))) for s in parts}
    if len(shapes) != 1:
        raise ValueError("statistics to merge must exist and have the same lengths")
    columns = zip(*(s.columns for s in parts), strict=True)
    return Statistics(
        classes=_sum([s.classes for s in parts]),
        columns=tuple(_sum(column) for column in columns),
        noise=math.sqrt(math.fsum(s.noise**2 for s in parts)),
    )


def means_and_medians(statistics: Statistics, table: Table) -> tuple[Centre, ...]:
    """Return the centre of each column, from noised or exact histograms.

    The nearest non-negative counts with the same total are used, values of a bin being spread
    evenly over it. A column that cannot be told from its noise, such as one that no site has
    ever recorded, gets the middle of its range or its first category.
    """
    pairs = zip(statistics.columns, table.columns, strict=True)
    return tuple(_centre(counts, column, statistics.noise) for counts, column in pairs)


def _sum(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Add rows up, correctly rounded, so that their order does not matter."""
    return tuple(map(math.fsum, zip(*rows, strict=True)))


def _centre(counts: Sequence[float], column: Column, noise: float) -> Centre:
    seen = np.asarray(counts[:-1], dtype=np.float64)
    smallest = max(0.5, TOLD_FROM_NOISE * noise * math.sqrt(len(seen)))
    if seen.sum() < smallest:
        return Centre(0.0, 0.0)
    near = nearest_counts(seen)
    if column.categories:
        most = float(near.argmax())
        return Centre(most, most)
    return Centre(_mean(near), _median(near))


def _mean(counts: NDArray[np.float64]) -> float:
    middles = (np.arange(len(counts)) + 0.5) * 2 / len(counts) - 1
    return float(np.average(middles, weights=counts))


def _median(counts: NDArray[np.float64]) -> float:
    """Return where half of the counts lie below."""
    below = np.concatenate([[0.0], np.cumsum(counts)])
    edges = np.linspace(-1, 1, len(below))
    half = below[-1] / 2
    at = int(np.searchsorted(below, half, side="left")) - 1
    return float(edges[at] + (half - below[at]) / counts[at] * (edges[at + 1] - edges[at]))
