"""Aggregators and server optimisers in the round loop, as the study chooses them."""

from __future__ import annotations

import numpy as np
import pytest


def send_nonsense(world, node: int) -> None:
    """Let a site send twice its update, the other way, and claim to have most patients."""

    class Nonsense(world.plain_site):
        def answer(self, request, weights, time):
            reply, change = super().answer(request, weights, time)
            return reply, {n: -2 * a for n, a in change.items()}

    world.sites[node] = Nonsense(world.sites[node].goal, patients=10_000)


def five_sites(world) -> None:
    world.names = {node: f"Site {node}" for node in range(1, 6)}
    world.sites = {node: world.plain_site(1.0 + 0.1 * node) for node in world.names}
    world.network.sites = world.sites


@pytest.mark.parametrize(
    ("plan", "kept"),
    [({"aggregator": "median"}, [3]), ({"aggregator": "trimmed-mean", "trim": 0.2}, [2, 3, 4])],
)
def test_nonsense_of_one_site_is_outvoted_however_many_patients_it_claims(
    world, plan, kept
) -> None:
    five_sites(world)
    world.study = world.make_study(sites=5, min_sites=5, **plan)
    world.sites[5].goal = 10.0
    world.run()
    # Sites count alike: all goals between the extremes, or the one in the middle.
    world.assert_released(world.expected([kept] * 3))
    send_nonsense(world, 5)
    world.run_dir = world.run_dir.with_name("second")
    world.run()
    lowest, highest = (world.expected([[node]] * 3) for node in (1, 4))
    for name, array in world.released().items():
        assert np.all(lowest[name] - 1e-6 <= array)
        assert np.all(array <= highest[name] + 1e-6)


def test_the_mean_follows_the_nonsense(world) -> None:
    five_sites(world)
    world.study = world.make_study(sites=5, min_sites=5)
    send_nonsense(world, 5)
    world.run()
    assert np.all(world.released()["layer.bias"] < -5)


def test_momentum_moves_the_model_by_the_mean_of_the_rounds(world) -> None:
    optimiser = {"name": "momentum", "momentum": 0.5, "learning_rate": 2.0}
    world.study = world.make_study(optimiser=optimiser)
    world.run()
    goal = (60 * 1.0 + 30 * 2.0 + 10 * 4.0) / 100
    weights = {n: a.astype(np.float64) for n, a in world.initial(world.study).items()}
    for name, x in weights.items():
        mean, after = np.zeros_like(x), x
        for _ in range(3):
            mean = 0.5 * mean + 0.5 * (goal - after) / 2
            after = after + 2.0 * mean
        np.testing.assert_allclose(world.released()[name], after, atol=1e-5)


def test_adam_moves_every_weight_by_about_its_rate(world) -> None:
    optimiser = {"name": "adam", "momentum": 0.0, "beta2": 0.0, "learning_rate": 0.01}
    world.study = world.make_study(optimiser=optimiser)
    world.run()
    # Without memory the step is rate * d / (|d| + tau), so three rounds go about .03 far.
    for name, start in world.initial(world.study).items():
        moved = world.released()[name] - start
        assert np.all(moved > 0.029)
        assert np.all(moved < 0.03)
