"""Intervals of metrics that depend on single bins, from signed counts with noise of known size.

Resampling undercovers here: counts made non-negative have lost part of their noise. So all three
rest on sums of the signed counts, which are unbiased and nearly normal whatever the bins hold.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FALSE_POSITIVES = 0.05
_Z = NormalDist().inv_cdf(0.975)
# Thresholds looked at; the finer, the less an interval of many patients is too wide.
_THRESHOLDS = 512
_ECE_GROUPS = 8


def average_precision_interval(counts: Floats, noise: float) -> tuple[Floats, Floats]:
    """Bound the average precision, a mean of precisions weighted by steps of sensitivity.

    Every precision and every sensitivity has an interval of its own, and the ends of these are
    combined: standard deviations add up at most, whatever the correlations.

    Args:
        counts: Signed counts by class and bin, [..., 2, bins].
        noise: Standard deviation of the noise of each.

    Returns:
        The ends of the 95 % interval, [...] each.
    """
    bins = counts.shape[-1]
    reached = np.arange(1, bins + 1)
    steps = np.cumsum(counts[..., ::-1], axis=-1)
    variances = noise**2 * np.stack([reached, reached, 2 * reached])
    precisions = _share_interval(steps[..., 1, :], steps.sum(axis=-2), variances, _Z**2)
    total = noise**2 * np.stack([reached, reached, np.full(bins, bins)])
    low, high = _share_interval(steps[..., 1, :], steps[..., 1, -1:], total, _Z**2)
    low[..., -1] = high[..., -1] = 1.0  # below the last threshold nobody is missed
    ends = []
    for precision, extreme in zip(precisions, (np.minimum, np.maximum), strict=True):
        # Summed by parts, so that each sensitivity occurs once and may take its worse end.
        falls = -np.diff(precision, axis=-1, append=0.0)
        ends.append(np.clip(extreme(falls * low, falls * high).sum(axis=-1), 0, 1))
    return ends[0], ends[1]


def sensitivity_interval(counts: Floats, noise: float) -> tuple[Floats, Floats]:
    """Bound the sensitivity at the threshold that lets `FALSE_POSITIVES` of the negatives pass.

    The threshold is unknown too. Each is tested by the negatives; what it leaves of the allowed
    chi-square bounds the positives above it, and the interval holds all that is left of any.

    Args:
        counts: Signed counts by class and bin, [..., 2, bins].
        noise: Standard deviation of the noise of each.

    Returns:
        The ends of the 95 % interval, [...] each.
    """
    bins = counts.shape[-1]
    reached = np.linspace(0, bins, _THRESHOLDS + 1)[:, None]
    weights = np.clip(reached - np.arange(bins), 0, 1)  # of a bin's patients above a threshold
    above, total = counts[..., ::-1] @ weights.T, counts.sum(axis=-1, keepdims=True)
    part, common = (weights**2).sum(axis=1), weights.sum(axis=1)
    variances = noise**2 * np.stack([part, common, np.full_like(part, bins)])
    rate = FALSE_POSITIVES
    spread = total[..., 0, :] * rate * (1 - rate) + np.array([1, -2 * rate, rate**2]) @ variances
    off = (above[..., 0, :] - rate * total[..., 0, :]) / np.sqrt(spread)
    # Between two thresholds that err to different sides there is one that does not err at all.
    before, after = off[..., :-1], off[..., 1:]
    least = np.where(before * after <= 0, 0.0, np.minimum(np.abs(before), np.abs(after)))
    left = np.maximum(_Z**2 - least**2, 0.0)
    some, all_ = above[..., 1, :], total[..., 1, :]
    low, _ = _share_interval(some[..., :-1], all_, variances[:, :-1], left)
    _, high = _share_interval(some[..., 1:], all_, variances[:, 1:], left)
    possible = left > 0
    return np.where(possible, low, 1.0).min(axis=-1), np.where(possible, high, 0.0).max(axis=-1)


def ece_interval(counts: Floats, noise: float) -> tuple[Floats, Floats]:
    """Bound the expected calibration error, a sum of absolute gaps over the number of patients.

    Noise makes gaps larger on average. Upwards a sum of |gaps| errs as the sum of the gaps with
    their true signs at most, downwards as the sum of the noises' absolute values at most, whose
    mean and variance are those of half normals.

    Args:
        counts: Signed counts by class and bin, [..., 2, bins].
        noise: Standard deviation of the noise of each.

    Returns:
        The ends of the 95 % interval, [...] each.
    """
    patients = np.maximum(counts.sum(axis=(-2, -1)), 1.0)
    error = np.abs(calibration_gaps(counts)).sum(axis=-1) / patients
    variances = calibration_gaps(np.maximum(counts, 0) + noise**2, power=2)
    divisor = 2 * counts.shape[-1] * (error * noise) ** 2  # the number of patients is noised too
    up = _Z * np.sqrt(variances.sum(axis=-1) + divisor)
    mean = math.sqrt(2 / math.pi) * np.sqrt(variances).sum(axis=-1)
    down = mean + _Z * np.sqrt((1 - 2 / math.pi) * variances.sum(axis=-1) + divisor)
    return np.clip(error - down / patients, 0, 1), np.clip(error + up / patients, 0, 1)


def calibration_gaps(counts: Floats, power: int = 1) -> Floats:
    """Sum (outcome - score)^power over the patients of each group of bins, [..., groups].

    A bin's mean score is taken as its middle, which is off by half a bin at most. There are
    eight groups at most, as empty bins add only noise.

    Args:
        counts: By class and bin, [..., 2, bins].
        power: 1 for gaps of calibration, 2 for squared errors.
    """
    bins = counts.shape[-1]
    middle = (np.arange(bins) + 0.5) / bins
    sums = counts[..., 1, :] * (1 - middle) ** power + counts[..., 0, :] * (-middle) ** power
    groups = min(_ECE_GROUPS, bins)
    return np.add.reduceat(sums, np.arange(groups) * bins // groups, axis=-1)


def _share_interval(
    part: Floats, whole: Floats, noise: Floats, allowed: Floats | float
) -> tuple[Floats, Floats]:
    """Return the ends of the shares p whose `part - p whole` is no further off 0 than allowed.

    Fieller's theorem (J. R. Stat. Soc. B 16, 1954) with n p (1 - p) added for the sampling of
    patients; without noise that is Wilson's interval. A whole that may be nothing bounds no share.

    Args:
        part: Noised number with the property.
        whole: Noised number of all.
        noise: Variance of the noise of the part, covariance, and variance of the whole.
        allowed: Square of the standard deviations allowed.
    """
    of_part, common, of_whole = noise
    patients = np.maximum(whole, 0.0)
    square = whole**2 + allowed * (patients - of_whole)
    middle = part * whole + allowed * (patients / 2 - common)
    root = np.sqrt(np.maximum(middle**2 - square * (part**2 - allowed * of_part), 0.0))
    bounded = square > 0
    divisor = np.where(bounded, square, 1.0)
    low = np.where(bounded, (middle - root) / divisor, 0.0)
    high = np.where(bounded, (middle + root) / divisor, 1.0)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)
