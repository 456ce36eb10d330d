"""Exact scores of patients' probabilities, each with a bootstrap over the patients.

The harness sees raw scores, so nothing here is binned or noised (unlike `shared.metrics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.study import Task
from simulations.records import LOWER_IS_BETTER, METRICS, Metric

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 1000
ECE_BINS = 10
BIASED: frozenset[Metric] = frozenset({"ece"})
"""Metrics that read high by chance alone: a gap between what is said and what is so has no sign."""

_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Score:
    """One figure and how it scatters over resampled patients.

    Attributes:
        value: None where it is not defined.
        replicates: Its values in the resamples, NaN where undefined; empty if none were drawn.
        patients: Patients scored.
        over: Classes, findings or sites the value is a mean over.
        of: How many there are.
        biased: Whether chance pushes the figure one way, as it does a minimum (down) and a sum
            of absolute values (up).
    """

    value: float | None
    replicates: Floats
    patients: int
    over: int
    of: int
    biased: bool = False

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """Ends of the 95 % bootstrap interval.

        It is the percentile interval (Efron and Tibshirani 1993, ch. 13); of a biased figure the
        reflected, or basic, one (Davison and Hinkley 1997, section 5.2): resamples are pushed as
        far from the value as the value is from the truth, so their quantiles are mirrored at it.
        That is cut off at 0 and 1, and stretched to the value where it leaves it out.

        There is none where the value is defined in less than half of the resamples.
        """
        usable = self.replicates[~np.isnan(self.replicates)]
        if self.value is None or not len(usable) or 2 * len(usable) < len(self.replicates):
            return None, None
        low, high = np.quantile(usable, [0.025, 0.975]).tolist()
        if not self.biased:
            return low, high
        return (
            min(max(2 * self.value - high, 0.0), self.value),
            max(min(2 * self.value - low, 1.0), self.value),
        )


Scores = Mapping[Metric, Score]


def score(
    probabilities: Floats, labels: Ints, task: Task, *, resamples: int = RESAMPLES, seed: str = ""
) -> Scores:
    """Score one model on one set of patients.

    Binary tasks are scored on the positive class; with more classes AUC, average precision and
    calibration error are means over the classes, one against the rest, and of findings all
    metrics are means over the findings. Such a mean is over those that have patients with and
    without, so `over` may be less than `of`.

    - auc: Mann-Whitney, ties count half.
    - average_precision: step-wise area under the precision-recall curve, as in scikit-learn.
    - balanced_accuracy: mean recall of the classes that occur, at the largest probability
      (of a finding: at 1/2); needs two of them.
    - accuracy: part of the patients that are told right.
    - ece: expected calibration error in ten equal bins (Naeini et al. 2015).

    Args:
        probabilities: [n_patients, classes or findings]. One that is not finite (a
            diverged model) counts as 1/2.
        labels: Class index [n_patients], or of findings 0, 1 or -1 (unknown), which are left
            out, [n_patients, findings].
        task: Says which it is, and the positive class.
        resamples: Bootstrap samples of the patients, with replacement; 0: none.
        seed: Samples of the same seed and size are the same patients, so that two models can
            be compared; sets that are independent need different ones.
    """
    table = np.nan_to_num(probabilities, nan=0.5, posinf=0.5, neginf=0.5)
    columns = [_Column(*column) for column in _columns(table, labels, task)]
    decisions = list(_decisions(table, labels, task))
    parts = [
        _evaluate(weights, columns, decisions, task.findings)
        for weights in _draws(len(labels), resamples, seed)
    ]
    found: dict[Metric, Score] = {}
    for metric in METRICS:
        each = np.concatenate([part[metric] for part in parts], axis=1)
        means, over = _nanmean(each), int(np.isfinite(each[:, 0]).sum())
        value = float(means[0]) if over else None
        found[metric] = Score(
            value, means[1:], len(labels), over, len(each), biased=metric in BIASED
        )
    return found


def over_sites(
    metric: Metric, scores: Iterable[Score], of: int | None = None
) -> tuple[Score, Score]:
    """Return the mean over sites and the worst site, with how many sites they are over.

    Args:
        metric: Says which end is worse.
        scores: One a site; those that are undefined are left out, and counted.
        of: Number of sites, where some have no score at all; default: as many as scores.
    """
    every = list(scores)
    number = len(every) if of is None else of
    defined = [s for s in every if s.value is not None]
    patients = sum(s.patients for s in defined)
    if not defined:
        nothing = Score(None, np.empty(0), patients, 0, number)
        return nothing, nothing
    worse = np.fmax if metric in LOWER_IS_BETTER else np.fmin
    values = np.array([s.value for s in defined], dtype=np.float64)
    drawn = np.stack([s.replicates for s in defined])
    known = (patients, len(defined), number)
    mean = Score(float(values.mean()), _nanmean(drawn), *known, biased=metric in BIASED)
    worst = float(worse.reduce(values))
    return mean, Score(worst, worse.reduce(drawn, axis=0), *known, biased=True)


class _Column:
    """Scores of one target and who has it, ranked, ready to be weighted by a resample.

    Args:
        scores: Of all patients.
        truth: 1, 0, or -1 where nobody knows.
    """

    def __init__(self, scores: Floats, truth: Ints) -> None:
        known = np.flatnonzero(truth >= 0)
        self._order = known[np.argsort(scores[known], kind="stable")]
        values = scores[self._order]
        self._positive = truth[self._order] == 1
        self._starts = np.flatnonzero(np.diff(values, prepend=-np.inf))
        bins = np.clip((values * ECE_BINS).astype(np.int64), 0, ECE_BINS - 1)
        self._gaps = np.zeros((len(values), ECE_BINS))
        self._gaps[np.arange(len(values)), bins] = self._positive - values

    def metrics(self, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Return AUC, average precision and calibration error of each row of weights."""
        rows = weights[:, self._order]
        if not len(self._order):
            nothing = np.full(len(weights), np.nan)
            return nothing, nothing, nothing
        positive = np.add.reduceat(rows * self._positive, self._starts, axis=1)
        negative = np.add.reduceat(rows * ~self._positive, self._starts, axis=1)
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        auc = _ratio((positive * below).sum(axis=1), pairs)
        hits = positive[:, ::-1]
        true, called = np.cumsum(hits, axis=1), np.cumsum((positive + negative)[:, ::-1], axis=1)
        precision = np.divide(true, called, out=np.zeros_like(true), where=called > 0)
        area = np.where(pairs > 0, (precision * hits).sum(axis=1), np.nan)
        ece = _ratio(np.abs(rows @ self._gaps).sum(axis=1), rows.sum(axis=1))
        return auc, _ratio(area, positive.sum(axis=1)), ece


class _Decision:
    """Which class each patient was called and which it has.

    Args:
        called: Class index.
        truth: Class index, or -1 where nobody knows.
        classes: How many there are.
    """

    def __init__(self, called: Ints, truth: Ints, classes: int) -> None:
        self._of_class = (truth[:, None] == np.arange(classes)).astype(np.float64)
        self._right = (called == truth).astype(np.float64)

    def recalls(self, weights: Floats) -> Floats:
        """Return the part of each class that was called right, [classes, rows]."""
        right = weights @ (self._of_class * self._right[:, None])
        found: Floats = _ratio(right, weights @ self._of_class).T
        return found

    def accuracy(self, weights: Floats) -> Floats:
        """Return the part of the patients that was called right, [rows]."""
        return _ratio(weights @ self._right, weights @ self._of_class.sum(axis=1))


def _columns(probabilities: Floats, labels: Ints, task: Task) -> Iterator[tuple[Floats, Ints]]:
    """Yield scores and truth of each target."""
    if task.findings:
        yield from zip(probabilities.T, labels.T, strict=True)
        return
    classes = len(task.classes)
    for target in (task.positive_index,) if classes == 2 else range(classes):
        yield probabilities[:, target], (labels == target).astype(np.int64)


def _decisions(probabilities: Floats, labels: Ints, task: Task) -> Iterator[_Decision]:
    if task.findings:
        for column, truth in _columns(probabilities, labels, task):
            yield _Decision((column > 0.5).astype(np.int64), truth, 2)
    else:
        yield _Decision(probabilities.argmax(axis=1), labels, len(task.classes))


def _draws(patients: int, resamples: int, seed: str) -> Iterator[Floats]:
    """Yield weights [rows, patients]: in the first row 1 each, then how often each was drawn."""
    yield np.ones((1, patients))
    random = np.random.default_rng([*b"bootstrap", *seed.encode()])
    at_once = max(1, _CELLS_AT_ONCE // max(1, patients))
    for start in range(0, resamples if patients else 0, at_once):
        rows = min(at_once, resamples - start)
        drawn = random.integers(0, patients, (rows, patients)) + patients * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * patients)
        yield counts.reshape(rows, patients).astype(np.float64)


def _evaluate(
    weights: Floats, columns: Sequence[_Column], decisions: Sequence[_Decision], findings: bool
) -> dict[Metric, Floats]:
    """Return each metric of each of its targets, [targets, rows], NaN where undefined."""
    auc, precision, ece = zip(*(column.metrics(weights) for column in columns), strict=True)
    recalls = [decision.recalls(weights) for decision in decisions]
    recalls = [np.where(np.isnan(r).sum(axis=0) > len(r) - 2, np.nan, r) for r in recalls]
    # Of classes each recall is one of what the mean is over; of findings their own mean is.
    balanced = np.stack([_nanmean(r) for r in recalls]) if findings else recalls[0]
    return {
        "auc": np.stack(auc),
        "average_precision": np.stack(precision),
        "balanced_accuracy": balanced,
        "accuracy": np.stack([decision.accuracy(weights) for decision in decisions]),
        "ece": np.stack(ece),
    }


def _nanmean(values: Floats) -> Floats:
    """Return the mean over the first axis of what is defined, NaN where nothing is."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))


def _ratio(above: Floats, below: NDArray[Any]) -> Floats:
    """Divide where the denominator is positive; elsewhere the result is NaN."""
    result = np.full(above.shape, np.nan)
    np.divide(above, below, out=result, where=below > 0)
    return result
