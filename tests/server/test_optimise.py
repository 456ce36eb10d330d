"""Server optimisers against the formulas of their papers, written out number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.optimise import initial_state, make_optimiser
from shared.study import ServerOptimiser

WEIGHTS = {"w": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float32)}
NAMES = ("none", "momentum", "adam", "yogi")


def changes(rounds: int) -> list[dict]:
    rng = np.random.default_rng(7)
    return [
        {n: (rng.normal(size=a.shape) * 10.0 ** rng.integers(-3, 1)).astype(np.float32)
         for n, a in WEIGHTS.items()}
        for _ in range(rounds)
    ]  # fmt: skip


def run(plan: ServerOptimiser, rounds: int) -> list[dict]:
    optimiser = make_optimiser(plan, initial_state(plan, WEIGHTS))
    return [optimiser.step(change) for change in changes(rounds)]


def by_hand(plan: ServerOptimiser, updates: list[float]) -> list[float]:
    """Algorithm 2 of Reddi et al. (2021) for one weight, in Python's floats."""
    m, v, steps = 0.0, plan.tau**2, []
    for update in updates:
        m = plan.momentum * m + (1 - plan.momentum) * update
        if plan.name == "adam":
            v = plan.beta2 * v + (1 - plan.beta2) * update**2
        else:
            v -= (1 - plan.beta2) * update**2 * math.copysign(1, v - update**2)
        steps.append(plan.learning_rate * m / (math.sqrt(v) + plan.tau))
    return steps


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_the_adaptive_ones_are_algorithm_2(name: str) -> None:
    plan = ServerOptimiser(name=name, learning_rate=0.03, momentum=0.8, beta2=0.95, tau=0.01)
    steps = run(plan, 12)
    for where in np.ndindex(2, 2):
        updates = [float(change["w"][where]) for change in changes(12)]
        got = [float(step["w"][where]) for step in steps]
        assert got == pytest.approx(by_hand(plan, updates), rel=1e-5, abs=1e-9)
        # Nothing corrects for the start: the first step is a fifth of what a correction gives.
        v = by_hand(plan, updates[:1])[0]
        assert got[0] == pytest.approx(v, rel=1e-5)
    assert all(step["b"].dtype == np.float32 for step in steps)


def test_momentum_is_the_exponential_mean_of_the_updates() -> None:
    plan = ServerOptimiser(name="momentum", learning_rate=2.0, momentum=0.9)
    steps, updates = run(plan, 10), changes(10)
    for n in range(10):
        weights = [0.1 * 0.9 ** (n - k) for k in range(n + 1)]
        mean = sum(w * u["b"].astype(np.float64) for w, u in zip(weights, updates, strict=False))
        np.testing.assert_allclose(steps[n]["b"], 2.0 * mean, rtol=1e-4, atol=1e-7)


def test_momentum_is_fedavgm_with_its_rate_divided() -> None:
    # Hsu et al. (2019): v = b v + d, w += v.
    plan = ServerOptimiser(name="momentum", learning_rate=4.0, momentum=0.75)
    speed = np.zeros((2, 2))
    for step, update in zip(run(plan, 8), changes(8), strict=True):
        speed = 0.75 * speed + update["w"]
        np.testing.assert_allclose(step["w"], speed, rtol=1e-5, atol=1e-7)


def test_none_adds_the_update_as_it_is_times_the_rate() -> None:
    assert initial_state(ServerOptimiser(), WEIGHTS) == {}
    for step, update in zip(run(ServerOptimiser(), 3), changes(3), strict=True):
        assert all(step[name].tobytes() == update[name].tobytes() for name in WEIGHTS)
    for step, update in zip(run(ServerOptimiser(learning_rate=0.5), 3), changes(3), strict=True):
        np.testing.assert_array_equal(step["w"], update["w"] / 2)


@pytest.mark.parametrize("name", NAMES)
def test_one_made_from_the_state_goes_on_with_the_same_bits(name: str) -> None:
    plan = ServerOptimiser(name=name, learning_rate=0.1)
    state = initial_state(plan, WEIGHTS)
    resumed = []
    for change in changes(6):
        optimiser = make_optimiser(plan, state)
        before = {key: array.copy() for key, array in state.items()}
        resumed.append(optimiser.step(change))
        assert all(np.array_equal(before[key], state[key]) for key in state), "a state was changed"
        state = {key: array.copy() for key, array in optimiser.state.items()}
        assert all(array.dtype == np.float32 for array in state.values())
    for step, other in zip(run(plan, 6), resumed, strict=True):
        assert all(step[n].tobytes() == other[n].tobytes() for n in WEIGHTS)
