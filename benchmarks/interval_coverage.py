"""How often the 95 % intervals of noised metrics hold the value of the population.

    python benchmarks/interval_coverage.py --draws 1000

Held-out patients are drawn from two Gaussian classes, counted by score in 16 bins and noised as a
study of 18 evaluations noises them. Only draws that show a value count.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from common import write_results
from numpy.typing import NDArray

from shared.accounting import calibrate
from shared.metrics import Summary, summarise, to_record

METRICS = ("auc", "average_precision", "sensitivity_at_95_specificity", "ece", "brier")
BINS, EVALUATIONS, DELTA = 16, 18, 1e-5
EPSILONS = (None, 8.0, 3.0, 1.0)
# Positives, negatives, sites, distance of the classes, slope and offset of the logit.
SETTINGS = {
    "three sites, AUC .965": (520, 180, 3, 2.56, 1.5, 0.0),
    "three sites, AUC .80": (520, 180, 3, 1.2, 1.5, 0.0),
    "three sites, all scores near 1/2": (520, 180, 3, 2.56, 0.2, 0.0),
    "three sites, all scores too high": (520, 180, 3, 2.56, 1.5, 2.0),
    "one small site, AUC .965": (40, 15, 1, 2.56, 1.5, 0.0),
    "ten large sites, AUC .965": (2000, 5000, 10, 2.56, 1.5, 0.0),
}


def population(distance: float, slope: float, offset: float) -> NDArray[np.float64]:
    """Return the share of each class in each bin, [2, bins]."""
    raw = np.random.default_rng(1).normal(size=400_000)
    shares = [
        np.histogram(1 / (1 + np.exp(-slope * (raw + mean) - offset)), BINS, (0, 1))[0]
        for mean in (-distance / 2, distance / 2)
    ]
    return np.stack(shares) / len(raw)


def count_noise(epsilon: float | None, sites: int) -> float:
    """Return the standard deviation of the merged counts' noise."""
    return calibrate(epsilon, DELTA, 1.0, EVALUATIONS) * sites**0.5 if epsilon else 0.0


def measure(name: str, epsilon: float | None, draws: int) -> dict[str, Any]:
    """Return coverage and mean width of each interval in one setting."""
    positives, negatives, sites, *shape = SETTINGS[name]
    sizes, shares = (negatives, positives), population(*shape)
    noise, rng = count_noise(epsilon, sites), np.random.default_rng(2)
    truth = summarise(to_record((shares * np.array([sizes]).T)[None], 0.0))
    shown: list[Summary] = []
    for _ in range(draws):
        counts = np.stack([rng.multinomial(n, p) for n, p in zip(sizes, shares, strict=True)])
        found = summarise(to_record((counts + rng.normal(0, noise, counts.shape))[None], noise))
        shown += [found] if found.auc is not None else []
    row: dict[str, Any] = {"setting": name, "epsilon": epsilon, "shown": len(shown), "of": draws}
    for metric in METRICS if shown else ():
        value = getattr(truth, metric)
        ends = np.array([[getattr(s, f"{metric}_{end}") for end in ("low", "high")] for s in shown])
        covered = (ends[:, 0] <= value) & (value <= ends[:, 1])
        row[metric] = {
            "value": round(value, 3),
            "coverage": round(float(covered.mean()), 3),
            "width": round(float(np.diff(ends).mean()), 3),
        }
    print(row, flush=True)
    return row


def main() -> None:
    """Measure all settings and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    rows = [measure(name, epsilon, draws) for name in SETTINGS for epsilon in EPSILONS]
    write_results(
        "interval_coverage", f"python benchmarks/interval_coverage.py --draws {draws}", rows
    )


if __name__ == "__main__":
    main()
