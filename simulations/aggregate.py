"""Figures of several seeds as one, with the interval that the seeds leave."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from simulations.records import FINAL, Measurement

CONFIDENCE = 0.95

_OF_ONE_SEED = {"seed", "value", "low", "high", "patients", "over", "of"}
_KEY = [f.name for f in fields(Measurement) if f.name not in _OF_ONE_SEED]


@dataclass(frozen=True)
class Aggregate:
    """One figure over all its seeds; the first attributes are those of `Measurement`.

    Attributes:
        value: Mean over the seeds where it is defined; None: in none.
        low: Lower end of the 95 % interval of that mean, of the source below; None: none.
        high: Its upper end.
        source: Where the interval comes from: "seeds": t-distribution over the seeds, which
            vary data, partition and training; "patients": bootstrap over the test patients, as
            there is one seed; "": there is none.
        patients_low: Mean over the seeds of the bootstrap's lower end; None: none.
        patients_high: Of its upper end.
        seeds: Seeds there are.
        defined: Seeds in which the value is defined.
        patients: Scored patients, mean over the seeds, rounded.
        over: Fewest classes, findings or sites in a seed that the value is a mean over.
        of: Most there are in a seed.
    """

    scenario: str
    strategy: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    source: str = ""
    patients_low: float | None = None
    patients_high: float | None = None
    where: str = "test"
    model: str = "global"
    site: str = ""
    subgroup: str = ""
    round: int = FINAL
    seeds: int = 1
    defined: int = 1
    patients: int = 0
    over: int = 1
    of: int = 1


def aggregate(measurements: Iterable[Measurement]) -> list[Aggregate]:
    """Merge what differs in nothing but the seed; the order is that of the first of each.

    The interval of a mean over two or more seeds is Student's: mean +- t(n - 1) * s / sqrt(n),
    cut off at 0 and 1, the range of every metric.
    """
    groups: dict[tuple[Any, ...], list[Measurement]] = {}
    for measurement in measurements:
        key = tuple(getattr(measurement, name) for name in _KEY)
        groups.setdefault(key, []).append(measurement)
    return [_merge(key, group) for key, group in groups.items()]


def seed_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of at least two values and the ends of its 95 % t-interval."""
    from scipy.stats import t

    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def _merge(key: tuple[Any, ...], group: list[Measurement]) -> Aggregate:
    values = [m.value for m in group if m.value is not None]
    patients_low = _mean([m.low for m in group if m.low is not None])
    patients_high = _mean([m.high for m in group if m.high is not None])
    value, low, high, source = _mean(values), patients_low, patients_high, "patients"
    if len(values) > 1:
        value, low, high = seed_interval(values)
        low, high, source = max(low, 0.0), min(high, 1.0), "seeds"
    return Aggregate(
        **dict(zip(_KEY, key, strict=True)),
        value=value,
        low=low,
        high=high,
        source=source if low is not None else "",
        patients_low=patients_low,
        patients_high=patients_high,
        seeds=len(group),
        defined=len(values),
        patients=round(sum(m.patients for m in group) / len(group)),
        over=min(m.over for m in group),
        of=max(m.of for m in group),
    )


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
