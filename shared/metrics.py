"""Metrics from score histograms: what may leave a site, and what can honestly be said from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.intervals import (
    FALSE_POSITIVES,
    average_precision_interval,
    calibration_gaps,
    ece_interval,
    sensitivity_interval,
)
from shared.protocol import ScoreHistogram
from shared.study import Study

Floats = NDArray[np.float64]

RESAMPLES = 500
_PUBLIC_SEED = 20_080_321
# Half a patient of each class spread over the bins: keeps an interval from collapsing onto a
# perfect score seen on a handful of patients.
_SMOOTHING = 0.5
# A class whose estimated size is below this many standard deviations of its noise is not there.
_TOLD_FROM_NOISE = 2.0
_NAMES = ("auc", "average_precision", "sensitivity_at_95_specificity", "ece", "brier")
# Those that are not ratios of sums of signed counts, by their place among the names.
_FROM_SINGLE_BINS = {
    1: average_precision_interval,
    2: sensitivity_interval,
    3: ece_interval,
}


@dataclass(frozen=True)
class Summary:
    """Metrics of one histogram, each with the ends of its 95 % interval.

    The intervals include the sampling of the held-out patients and the noise of the counts.
    Multi-class values are means over the classes, one against the rest. A value is None, with
    the interval [0, 1], when no class has both its positives and its negatives told from noise.

    In 1000 simulated evaluations of each of 24 settings (no noise, epsilon 8, 3 and 1; 55 to
    7000 patients; 16 bins), of those that showed a value these held the population's: 94 to
    99.6 % for AUC and Brier score, 98 to 100 % for average precision, 99 % or more for ECE, 93
    to 99.8 % for sensitivity. Where fewer than one in thirty shows a value, hospitals too small
    for their noise, those few hold it less often. An interval as wide as [0, 1] says that noise
    hides the value. Measured by `benchmarks/interval_coverage.py`.

    Attributes:
        auc: Area under the ROC curve, 0 to 1; patients within one bin count as ties.
        average_precision: Step-wise area under the precision-recall curve, 0 to 1.
        sensitivity_at_95_specificity: Read off the ROC curve, linear within a bin.
        ece: Expected calibration error over at most eight groups of bins, 0 to 1.
        brier: Mean squared error of the probability, 0 to 1.
        positives: Estimated held-out patients of the class (of all classes, multi-class).
        negatives: Estimated held-out patients not of it.
        undetermined: Number of classes left out because they cannot be told from noise.
    """

    auc: float | None
    auc_low: float
    auc_high: float
    average_precision: float | None
    average_precision_low: float
    average_precision_high: float
    sensitivity_at_95_specificity: float | None
    sensitivity_at_95_specificity_low: float
    sensitivity_at_95_specificity_high: float
    ece: float | None
    ece_low: float
    ece_high: float
    brier: float | None
    brier_low: float
    brier_high: float
    positives: float
    negatives: float
    undetermined: int


def scored_classes(study: Study) -> tuple[int, ...]:
    """Return the class indices that are scored: the positive one of two, else all."""
    classes = len(study.task.classes)
    two = classes == 2 and not study.task.findings
    return (study.task.positive_index,) if two else tuple(range(classes))


def score_histogram(scores: ArrayLike, labels: ArrayLike, study: Study) -> NDArray[np.int64]:
    """Count patients by score; these counts are exact and must be noised before they leave.

    Args:
        scores: Predicted probabilities in [0, 1], one row a patient, [n_patients, classes]. A
            score that is not finite (a diverged model) counts as 1/2.
        labels: Class index of each patient, [n_patients]. In studies of findings
            [n_patients, findings]: 1 with it, 0 without, -1 (not counted) where nobody knows.
        study: Gives the classes and the number of bins.

    Returns:
        Counts of shape [targets, 2, bins]: by target class, without (0) or with (1) it, by
        equal bins of the score; a score on an edge falls in the upper bin, 1.0 in the last.
    """
    bins = study.privacy.score_bins
    table = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=0.5, posinf=0.5, neginf=0.5)
    stated = np.asarray(labels, dtype=np.int64)
    targets = scored_classes(study)
    counts = np.zeros((len(targets), 2, bins), dtype=np.int64)
    for row, target in enumerate(targets):
        places = np.clip((table[:, target] * bins).astype(np.int64), 0, bins - 1)
        has = stated[:, target] if study.task.findings else (stated == target).astype(np.int64)
        np.add.at(counts[row], (has[has >= 0], places[has >= 0]), 1)
    return counts


def to_record(counts: ArrayLike, noise: float) -> ScoreHistogram:
    """Return counts [targets, 2, bins] with noise of that standard deviation in wire form."""
    array = np.asarray(counts, dtype=np.float64)
    targets, _, bins = array.shape
    return ScoreHistogram(
        targets=targets, bins=bins, noise=noise, counts=tuple(array.ravel().tolist())
    )


def merge(histograms: Sequence[ScoreHistogram]) -> ScoreHistogram:
    """Add up the histograms of several sites; independent noises add in squares.

    Raises:
        ValueError: There is none, or their shapes differ.
    """
    if len({(h.targets, h.bins) for h in histograms}) != 1:
        raise ValueError("histograms to merge must exist and have one shape")
    counts = np.sum([_array(h) for h in histograms], axis=0)
    return to_record(counts, float(np.sqrt(sum(h.noise**2 for h in histograms))))


def summarise(histogram: ScoreHistogram) -> Summary:
    """Derive the metrics and their 95 % intervals from a histogram, noised or exact.

    AUC and Brier score are ratios of sums of the signed counts: a product of counts of two
    cells is unbiased since their noises are independent, so nothing is clamped. Their intervals
    are a parametric bootstrap (Efron and Tibshirani 1993, ch. 13): Poisson counts around the
    estimate plus fresh noise of the known size, with a public seed, since all of this only
    processes what was already released. The values of the others need non-negative counts: the
    nearest ones with the same totals are used, and the bias this brings is estimated and
    subtracted; their intervals are those of `shared.intervals`.
    Multi-class intervals are means of the classes' ends, which holds under any correlation.
    """
    counts = _array(histogram)
    smallest = max(0.5, _TOLD_FROM_NOISE * histogram.noise * np.sqrt(histogram.bins))
    told = counts.sum(axis=-1).min(axis=-1) >= smallest
    if told.any():
        parts = [_estimate(target, histogram.noise) for target in counts[told]]
        value, low, high = (ends.tolist() for ends in np.mean(parts, axis=0))
    else:
        value, low, high = [None] * 5, [0.0] * 5, [1.0] * 5
    values: dict[str, Any] = {}
    for name, *ends in zip(_NAMES, value, low, high, strict=True):
        values[name], values[f"{name}_low"], values[f"{name}_high"] = ends
    negatives, positives = np.maximum(counts.sum(axis=(0, 2)), 0).tolist()
    return Summary(
        **values, positives=positives, negatives=negatives, undetermined=int((~told).sum())
    )


def roc_auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Return the exact AUC of raw scores (Mann-Whitney; ties count half).

    Args:
        scores: Finite scores, [n].
        positive: Whether each is of the positive class, [n].

    Raises:
        ValueError: One of the classes is missing.
    """
    values, mask = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    pos, neg = values[mask], np.sort(values[~mask])
    if not len(pos) or not len(neg):
        raise ValueError("the AUC needs patients of both classes")
    below = np.searchsorted(neg, pos, side="left") + np.searchsorted(neg, pos, side="right")
    return float(below.sum() / (2 * len(pos) * len(neg)))


def nearest_counts(counts: Floats) -> Floats:
    """Return the nearest (least squares) non-negative counts with the same total per class.

    Projection onto the simplex by sorting (Held, Wolfe and Crowder 1974).
    """
    total = np.maximum(counts.sum(axis=-1, keepdims=True), 0.0)
    falling = -np.sort(-counts, axis=-1)
    surplus = (np.cumsum(falling, axis=-1) - total) / np.arange(1, counts.shape[-1] + 1)
    kept = np.maximum((falling > surplus).sum(axis=-1, keepdims=True), 1)
    near: Floats = np.maximum(counts - np.take_along_axis(surplus, kept - 1, axis=-1), 0.0)
    return near


def _array(histogram: ScoreHistogram) -> Floats:
    shape = (histogram.targets, 2, histogram.bins)
    return np.array(histogram.counts, dtype=np.float64).reshape(shape)


def _estimate(counts: Floats, noise: float) -> Floats:
    """Return value, low and high of the five metrics, [3, 5], for one target's [2, bins]."""
    random = np.random.default_rng(_PUBLIC_SEED)
    bins = counts.shape[-1]
    expected = nearest_counts(counts) + _SMOOTHING / bins
    drawn = random.poisson(expected, (RESAMPLES, 2, bins)).astype(np.float64)
    drawn += random.normal(0.0, noise, drawn.shape) if noise else 0.0
    sampled, usable = _metrics(drawn), (drawn.sum(axis=-1) > 0).all(axis=-1)[:, None]
    centre, raw = _metrics(expected), _metrics(counts)
    bias = np.mean(sampled, axis=0, where=usable) - centre if usable.any() else np.zeros(5)
    value = raw.copy()
    # A resample in which a class drowned in the noise could have shown anything.
    low = np.quantile(np.where(usable, sampled, 0.0), 0.025, axis=0)
    high = np.quantile(np.where(usable, sampled, 1.0), 0.975, axis=0)
    # `expected` is not quite what was seen, so the interval is taken around both.
    low, high = low + np.minimum(raw - centre, 0), high + np.maximum(raw - centre, 0)
    for place, interval in _FROM_SINGLE_BINS.items():
        value[place] -= bias[place]
        low[place], high[place] = interval(counts, noise)
    estimates: Floats = np.clip([value, np.minimum(low, value), np.maximum(high, value)], 0, 1)
    return estimates


def _metrics(counts: Floats) -> Floats:
    """Return AUC, AP, sensitivity, ECE and Brier, [..., 5], of counts [..., 2, bins]."""
    near, patients = nearest_counts(counts), counts.sum(axis=(-2, -1))
    columns = (
        _auc(counts),
        _average_precision(near),
        _sensitivity(near),
        # Naeini et al. 2015, over groups of bins.
        _ratio(np.abs(calibration_gaps(near)).sum(axis=-1), near.sum(axis=(-2, -1))),
        _ratio(calibration_gaps(counts, power=2).sum(axis=-1), patients),
    )
    return np.clip(np.stack(columns, axis=-1), 0, 1)


def _auc(counts: Floats) -> Floats:
    negative, positive = counts[..., 0, :], counts[..., 1, :]
    below = np.cumsum(negative, axis=-1) - negative / 2
    pairs = positive.sum(axis=-1) * negative.sum(axis=-1)
    return _ratio((positive * below).sum(axis=-1), pairs)


def _average_precision(near: Floats) -> Floats:
    """Average precision as scikit-learn defines it, a bin being one threshold."""
    positive = near[..., 1, ::-1]
    true, called = np.cumsum(positive, axis=-1), np.cumsum(near.sum(axis=-2)[..., ::-1], axis=-1)
    return _ratio((_ratio(true, called) * positive).sum(axis=-1), positive.sum(axis=-1))


def _sensitivity(near: Floats) -> Floats:
    """Height of the ROC polygon at the false positive rate."""
    steps = np.cumsum(near[..., ::-1], axis=-1)
    rates = _ratio(steps, steps[..., -1:])
    rates = np.concatenate([np.zeros_like(rates[..., :1]), rates], axis=-1)
    fall_out, sensitivity = rates[..., 0, :], rates[..., 1, :]
    passed = (fall_out <= FALSE_POSITIVES).sum(axis=-1, keepdims=True)
    after = np.minimum(passed, fall_out.shape[-1] - 1)
    x, y = (np.take_along_axis(axis, after - 1, axis=-1) for axis in (fall_out, sensitivity))
    dx, dy = (
        np.take_along_axis(axis, after, axis=-1) - start
        for axis, start in ((fall_out, x), (sensitivity, y))
    )
    height: Floats = y + dy * np.clip(_ratio(FALSE_POSITIVES - x, dx), 0, 1)
    return height[..., 0]


def _ratio(above: Floats, below: Floats) -> Floats:
    """Divide where the denominator is positive; elsewhere the result is 0."""
    result: Floats = np.zeros(np.broadcast(above, below).shape)
    np.divide(above, below, out=result, where=below > 0)
    return result
