"""Comparisons of strategies that saw the same seeds, and whether they can be told from chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from simulations.aggregate import CONFIDENCE, seed_interval
from simulations.records import Measurement

Verdict = Literal["higher", "lower", "unclear"]

FEWEST = 20
"""With fewer scored patients, in all seeds together, nothing is clear.

The scores of a handful of patients take few values: intervals may have no width at all.
"""


@dataclass(frozen=True)
class Difference:
    """How much higher one figure is than another, over the seeds both have.

    Attributes:
        mean: Mean difference.
        low: Lower end of its 95 % interval over seeds (paired t); None with one seed.
        high: Its upper end.
        verdict: "higher" or "lower" where the interval leaves out zero; with one seed where
            the two bootstrap intervals do not meet; else, or with fewer than `FEWEST` scored
            patients in all, "unclear".
        seeds: Seeds compared.
    """

    mean: float
    low: float | None
    high: float | None
    verdict: Verdict
    seeds: int


@dataclass(frozen=True)
class GapClosed:
    """Which part of the baseline's gap to pooled data a strategy closes.

    Attributes:
        value: (strategy - baseline) / (pooled - baseline), of the means over seeds; 1 is all of
            it, below 0 is worse than the baseline. None where it is not defined.
        low: Lower end of its 95 % interval over seeds (Fieller); None: there is one seed.
        high: Its upper end.
        reason: Why it is not defined; empty where it is.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def difference(
    first: Mapping[int, Measurement], second: Mapping[int, Measurement]
) -> Difference | None:
    """Return how much higher the first is than the second; None if no seed has both."""
    pairs = _pairs(first, second)
    if not pairs:
        return None
    gaps = [a - b for _, a, b in pairs]
    enough = sum(first[seed].patients for seed, _, _ in pairs) >= FEWEST
    if len(gaps) > 1:
        mean, low, high = seed_interval(gaps)
        return Difference(mean, low, high, _side(low, high) if enough else "unclear", len(gaps))
    a, b = first[pairs[0][0]], second[pairs[0][0]]
    verdict: Verdict = "unclear"
    if enough and None not in (a.low, a.high, b.low, b.high):
        verdict = _side((a.low or 0) - (b.high or 0), (a.high or 0) - (b.low or 0))
    return Difference(gaps[0], None, None, verdict, 1)


def gap_closed(
    strategy: Mapping[int, Measurement],
    baseline: Mapping[int, Measurement],
    pooled: Mapping[int, Measurement],
) -> GapClosed:
    """Return the part of the gap that is closed, with its interval.

    The interval is Fieller's for a ratio of two paired means (Fieller 1954, J. R. Stat. Soc. B
    16:175): all r for which mean(a - r b) cannot be told from zero by Student's t. It is bounded
    exactly if the gap b itself can be told from zero, which is when the ratio is defined here.
    """
    seeds = [s for s, _, _ in _pairs(pooled, baseline) if _value(strategy.get(s)) is not None]
    if not seeds:
        return GapClosed(reason="not measured")
    within = [{seed: of[seed] for seed in seeds} for of in (strategy, baseline, pooled)]
    gain, gap = difference(within[0], within[1]), difference(within[2], within[1])
    if gain is None or gap is None or gap.verdict == "unclear":
        return GapClosed(reason="the gap is within noise")
    if gap.verdict == "lower":
        return GapClosed(reason="pooled data does worse")
    if len(seeds) == 1:
        return GapClosed(gain.mean / gap.mean)
    low, high = _fieller(
        [a - b for _, a, b in _pairs(within[0], within[1])],
        [a - b for _, a, b in _pairs(within[2], within[1])],
    )
    return GapClosed(gain.mean / gap.mean, low, high)


def _fieller(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Return the interval of mean(a) / mean(b); mean(b) must be clear of zero."""
    from scipy.stats import t

    n = len(a)
    mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / n
    scale = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) ** 2 / (n * (n - 1))
    var_a = scale * math.fsum((x - mean_a) ** 2 for x in a)
    var_b = scale * math.fsum((y - mean_b) ** 2 for y in b)
    cov = scale * math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    # Where (mean_a - r mean_b)^2 <= var_a - 2 r cov + r^2 var_b: a parabola that opens upwards.
    square, linear = mean_b**2 - var_b, mean_a * mean_b - cov
    root = math.sqrt(max(linear**2 - square * (mean_a**2 - var_a), 0.0))
    return (linear - root) / square, (linear + root) / square


def _pairs(
    first: Mapping[int, Measurement], second: Mapping[int, Measurement]
) -> list[tuple[int, float, float]]:
    found = [(s, _value(first[s]), _value(second.get(s))) for s in sorted(first)]
    return [(s, a, b) for s, a, b in found if a is not None and b is not None]


def _value(measurement: Measurement | None) -> float | None:
    return None if measurement is None else measurement.value


def _side(low: float, high: float) -> Verdict:
    return "higher" if low > 0 else "lower" if high < 0 else "unclear"
