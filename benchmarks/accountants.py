"""Epsilon of random plans by this project's accountant and by an independent one.

    python benchmarks/accountants.py

Each plan is a training at a random rate, noise and number of steps, half of them beside counts
that were released before. `dp-accounting` brackets its epsilon by two privacy loss distributions,
rounded down and up (Doroshenko and others 2022). Plans are kept where the PRV accountant answers.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

from dp_accounting.pld import privacy_loss_distribution as pld

from shared.accounting import Mechanism, epsilon, rdp_epsilon

PLANS = 200
MOST_ABOVE = 1.02
# Beyond these the product answers with the Renyi bound, which is looser.
MOST_EPSILON, LEAST_EPSILON = 300.0, 0.01
DELTAS = (1e-5, 1e-6, 1e-7, 1e-8)
# Points of a distribution that one process can afford, and how fine a mesh is asked for.
MOST_POINTS, FINENESS = 4e6, 0.01


class Plan(NamedTuple):
    """What one patient is charged.

    Attributes:
        mechanisms: Training, and the counts released before it, if any.
        delta: At which epsilon is stated.
    """

    mechanisms: tuple[Mechanism, ...]
    delta: float


def random_plan(seed: int) -> Plan:
    """Draw a plan; one in five has the least noise the product adds, one in ten everybody."""
    rng = random.Random(seed)
    while True:
        sigma = 0.5 if rng.random() < 0.2 else math.exp(rng.uniform(math.log(0.5), math.log(40)))
        rate = 1.0 if rng.random() < 0.1 else math.exp(rng.uniform(math.log(1e-4), 0))
        steps = round(math.exp(rng.uniform(0, math.log(5000))))
        counts = Mechanism(rng.choice((2.0, 5.0, 10.0, 30.0)), 1.0, rng.randint(1, 3))
        beside = (counts,) if rng.random() < 0.5 else ()
        plan = Plan((Mechanism(sigma, rate, steps), *beside), rng.choice(DELTAS))
        spent = epsilon(plan.mechanisms, plan.delta)
        if spent >= LEAST_EPSILON and rdp_epsilon(plan.mechanisms, plan.delta) <= MOST_EPSILON:
            return plan


def bracket(plan: Plan, near: float) -> tuple[float, float]:
    """Return an optimistic and a pessimistic estimate of a plan's epsilon.

    Args:
        plan: The plan.
        near: About what epsilon is, which sets the mesh.
    """
    steps = sum(m.steps for m in plan.mechanisms)
    span = max(near, *(_reach(m) for m in plan.mechanisms))
    mesh = max(FINENESS * near / steps, span / MOST_POINTS)
    return _estimate(plan, mesh, pessimistic=False), _estimate(plan, mesh, pessimistic=True)


def _reach(m: Mechanism) -> float:
    """Return the largest loss of one step that the mesh must hold."""
    tail = 10.1  # standard deviations beyond which e^-50 of the noise lies
    return (tail + 1 / m.noise_multiplier) / m.noise_multiplier


def _estimate(plan: Plan, mesh: float, *, pessimistic: bool) -> float:
    parts = [
        pld.from_gaussian_mechanism(
            m.noise_multiplier,
            sampling_prob=m.sampling_rate,
            value_discretization_interval=mesh,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        ).self_compose(m.steps)
        for m in plan.mechanisms
    ]
    whole = reduce(lambda one, other: one.compose(other), parts)
    return float(whole.get_epsilon_for_delta(plan.delta))


def compare(seed: int) -> dict[str, Any]:
    """Return a plan, its epsilon by both accountants, and whether they agree."""
    plan = random_plan(seed)
    ours = epsilon(plan.mechanisms, plan.delta)
    low, high = bracket(plan, ours)
    return {
        "seed": seed,
        "epsilon": ours,
        "optimistic": low,
        "pessimistic": high,
        "agrees": low <= ours <= MOST_ABOVE * high,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many agree, and the extremes."""
    over = [row["epsilon"] / row["pessimistic"] for row in rows]
    return {
        "plans": len(rows),
        "agree": sum(row["agrees"] for row in rows),
        "epsilon_over_pessimistic": {"least": min(over), "most": max(over)},
    }


def main() -> None:
    """Compare all plans and write the results."""
    from common import write_results  # not needed where a test compares single plans

    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = []
    for seed in range(PLANS):
        rows.append(compare(seed))
        print(rows[-1], flush=True)
    print(summary(rows))
    write_results("accountants", "python benchmarks/accountants.py", [summary(rows), *rows])


if __name__ == "__main__":
    main()
