"""SCAFFOLD: sites with different data meet in the optimum of all, where averaging does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from server.advance import CONTROL, next_control
from server.release import SiteRecord, read_card
from server.runs import Checkpoint
from shared.schedule import learning_rates
from shared.study import Study

STEPS, RATE = 20, 0.1
PATIENTS = {1: 60, 2: 30, 3: 10}


class Quadratic:
    """A site whose loss is (x - b)' A (x - b) / 2 on the layer's bias, curved its own way."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(3, 3))
        self.curve = root @ root.T / 3 + 0.2 * np.eye(3)
        self.goal = rng.normal(scale=2.0, size=3)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        return self.curve @ (x - self.goal)


def make_site(world: Any, node: int, quadratic: Quadratic) -> Any:
    """Return a site that trains as algorithm 1, option II of Karimireddy et al. (2020) says."""

    class Training(world.plain_site):
        own = np.zeros(3)
        pending: tuple[int, np.ndarray] | None = None

        def answer(self, request, weights, time):
            if request.task == "evaluate":
                return self.reply(request, outcome="evaluated"), {}
            if self.pending and request.counted >= self.pending[0]:
                self.own = self.pending[1]
            study = Study.model_validate_json(request.study)
            start = weights["layer.bias"].astype(np.float64)
            control = weights.get(f"{CONTROL}layer.bias", np.zeros(3)).astype(np.float64)
            own = self.own if study.training.control else np.zeros(3)
            x = start.copy()
            rates = learning_rates(study, request.round)
            for rate in rates:
                x -= rate * (quadratic.gradient(x) - own + control)
            self.pending = (request.round, own - control + (start - x) / sum(rates))
            nothing = np.zeros((3, 2), np.float32)
            update = {"layer.weight": nothing, "layer.bias": (x - start).astype(np.float32)}
            return self.reply(request, outcome="update", patients=self.patients), update

    return Training(0.0, patients=PATIENTS[node])


def optimum(quadratics: dict[int, Quadratic]) -> np.ndarray:
    """Return where the sum of the losses, weighted by patients, is least."""
    curve = sum(PATIENTS[n] * q.curve for n, q in quadratics.items())
    pull = sum(PATIENTS[n] * q.curve @ q.goal for n, q in quadratics.items())
    return np.linalg.solve(curve, pull)


def learn(world: Any, rounds: int = 60, **training: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the released bias, and the best there is."""
    quadratics = {node: Quadratic(node) for node in PATIENTS}
    for node, quadratic in quadratics.items():
        site = make_site(world, node, quadratic)
        site.wait, site.online = world.sites[node].wait, world.sites[node].online
        world.sites[node] = site
    world.study = world.make_study(rounds=rounds, min_sites=1, start_deadline=1)
    plan = {"learning_rate": RATE, "local_steps": STEPS, "control": True}
    world.change_study(training=plan | training)
    world.run()
    return world.released()["layer.bias"].astype(np.float64), optimum(quadratics)


def test_it_ends_in_the_optimum_of_all_and_averaging_does_not(world) -> None:
    released, best = learn(world)
    np.testing.assert_allclose(released, best, atol=2e-4)


def test_without_it_many_local_steps_are_biased(world) -> None:
    released, best = learn(world, control=False)
    assert np.abs(released - best).max() > 0.05


def test_sites_that_come_and_go_do_not_change_where_it_ends(world) -> None:
    # Each exchange takes about two seconds, so the third site misses about every third round.
    world.sites[3].online = lambda time: int(time // 5) % 3 != 1
    released, best = learn(world, rounds=100)
    states = [line["sites"]["Castle"]["state"] for line in world.lines("metrics.jsonl")]
    assert 15 < states.count("absent") < 60
    np.testing.assert_allclose(released, best, atol=2e-3)


def test_a_site_that_joins_late_is_heard_as_if_it_had_always_been_there(world) -> None:
    world.sites[3].online = lambda time: time > 3
    released, best = learn(world)
    states = [line["sites"]["Castle"]["state"] for line in world.lines("metrics.jsonl")]
    assert states[:3].count("absent") in (1, 2)
    np.testing.assert_allclose(released, best, atol=2e-4)


def test_an_update_that_came_too_late_leaves_no_trace(world) -> None:
    world.sites[2].wait = lambda request: 1001.5 if request.round in (2, 4) else 2.0
    released, best = learn(world)
    assert [world.states(n)["Brook"] for n in (1, 2, 4, 5)] == ["update", "late", "late", "update"]
    counted = [r.counted for r in world.sites[2].requests[:6]]
    assert counted == [0, 1, 1, 3, 3, 5]
    assert world.sites[2].requests[-1].task == "evaluate"
    assert world.sites[2].requests[-1].counted == 60
    np.testing.assert_allclose(released, best, atol=2e-4)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("known", [(), (1,), (1, 2, 3)])
@pytest.mark.parametrize("present", [(1, 2), (1, 3), (2, 3), (1, 2, 3)])
def test_the_servers_variate_stays_the_mean_of_the_sites(world, schedule, known, present) -> None:
    """Site by site, as the paper writes it, against the server's way from the mean alone."""
    world.change_study(
        training={"control": True, "schedule": schedule, "local_steps": 7, "learning_rate": 0.3}
    )
    rng = np.random.default_rng(1)
    own = {n: rng.normal(size=3) if n in known else np.zeros(3) for n in PATIENTS}
    control = mean_of(own, known) if known else np.zeros(3)
    updates = {n: rng.normal(size=3) for n in present}
    # The cosine over 3 rounds of 7 steps, by its formula, in round 2.
    parts = [1.0 if schedule == "constant" else (1 + np.cos(np.pi * (7 + k) / 21)) / 2
             for k in range(7)]  # fmt: skip
    for n in present:
        own[n] = own[n] - control - updates[n] / (0.3 * sum(parts))

    before = {n: SiteRecord(patients=PATIENTS[n], last_round=1) for n in known}
    after = before | {n: SiteRecord(patients=PATIENTS[n], last_round=2) for n in present}
    got = next_control(
        world.study,
        Checkpoint(1, {}, control={"w": control.astype(np.float32)}, sites=before),
        {"w": mean_of(updates, present).astype(np.float32)},
        after,
    )
    np.testing.assert_allclose(got["w"], mean_of(own, after), atol=1e-6)
    assert got["w"].dtype == np.float32


def mean_of(vectors: dict[int, np.ndarray], nodes: Iterable[int]) -> np.ndarray:
    """Return the mean over the sites, weighted by patients."""
    return np.average([vectors[n] for n in nodes], axis=0, weights=[PATIENTS[n] for n in nodes])


def test_the_variate_travels_only_to_training_and_is_not_released(world) -> None:
    received = {}
    answer = world.plain_site.answer

    class Watching(world.plain_site):
        def answer(self, request, weights, time):
            received[request.round] = set(weights)
            plain = {n: a for n, a in weights.items() if not n.startswith(CONTROL)}
            return answer(self, request, plain, time)

    world.sites |= {node: Watching(1.0) for node in PATIENTS}
    world.change_study(training={"control": True})
    world.run()
    names = {"layer.weight", "layer.bias"}
    assert received[1] == received[3] == names | {CONTROL + name for name in names}
    assert received[4] == names
    assert world.released().keys() == names
    assert read_card(world.run_dir).rounds == 3
