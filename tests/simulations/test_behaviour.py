"""Sites are away, late or send nonsense exactly when the plan and the seed say so."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import pytest

from shared.errors import SimulationError
from shared.protocol import Reply, Request
from shared.study import Study
from shared.transport import Received, Weights
from simulations.behaviour import ActingTransport, Course, check_behaviour
from simulations.behaviour_plan import Behaviour, Dropout, Nonsense, Slow, Stay

ROUNDS = 12
ALL = frozenset(range(5))


def course(sites: int = 5, seed: int = 3, **plan: object) -> Course:
    return Course(Behaviour.model_validate(plan), sites, seed)


def study(**federation: object) -> Study:
    plan = {"rounds": ROUNDS, "sites": 5, "min_sites": 2, "round_deadline": 60}
    values = {"name": "tiny", "task": {"classes": ("a", "b")}}
    return Study.model_validate(values | {"federation": plan | federation})


def test_everybody_is_there_by_default() -> None:
    assert all(course().online(number, ROUNDS) == ALL for number in range(ROUNDS + 2))


def test_every_third_round_one_site_is_away() -> None:
    away = course(dropouts=[Dropout(sites=(2,), every=3)])
    absent = {n for n in range(ROUNDS + 2) if 1 not in away.online(n, ROUNDS)}
    assert absent == {3, 6, 9, 12}  # not in the closing evaluation, number 13
    assert all(away.online(n, ROUNDS) >= ALL - {1} for n in range(ROUNDS + 2))


def test_listed_rounds_and_a_count() -> None:
    away = course(dropouts=[Dropout(rounds=(2, 5), count=3)])
    assert [len(away.online(n, ROUNDS)) for n in (1, 2, 3, 5)] == [5, 2, 5, 2]


def test_chance_follows_the_seed_and_the_probability() -> None:
    plan = {"dropouts": [Dropout(probability=0.3)]}
    seen = [course(200, 1, **plan).online(n, 60) for n in range(1, 61)]
    assert seen == [course(200, 1, **plan).online(n, 60) for n in range(1, 61)]
    assert seen != [course(200, 2, **plan).online(n, 60) for n in range(1, 61)]
    part = 1 - np.mean([len(there) for there in seen]) / 200
    assert abs(part - 0.3) < 5 * np.sqrt(0.3 * 0.7 / (200 * 60))
    assert len(set(seen)) == 60


def test_one_joins_late_and_one_leaves_for_good() -> None:
    stays = course(stays=[Stay(sites=(1,), joins=4), Stay(sites=(5,), leaves=6)])
    assert [0 in stays.online(n, ROUNDS) for n in (0, 1, 3, 4, 13)] == [False] * 3 + [True] * 2
    assert [4 in stays.online(n, ROUNDS) for n in (0, 5, 6, 13)] == [True, True, False, False]


def test_a_plan_that_lets_a_round_fail_is_refused_before_anything_runs() -> None:
    plan = Behaviour(dropouts=(Dropout(rounds=(7,), count=4),))
    with pytest.raises(SimulationError, match="only 1 of 5 sites would answer in round 7"):
        check_behaviour(plan, 5, study(), 0)
    check_behaviour(plan, 5, study(min_sites=1), 0)


@pytest.mark.parametrize(
    "plan",
    [
        Behaviour(slow=(Slow(sites=(1, 2, 3, 4), seconds=60),)),
        Behaviour(nonsense=(Nonsense(sites=(1, 2, 3, 4), kind="nan"),)),
    ],
)
def test_sites_that_are_late_or_send_nan_do_not_count(plan: Behaviour) -> None:
    with pytest.raises(SimulationError, match="only 1 of 5 sites would answer in round 1"):
        check_behaviour(plan, 5, study(), 0)


def test_a_closing_evaluation_without_sites_is_refused() -> None:
    plan = Behaviour(stays=(Stay(sites=(1, 2, 3, 4), leaves=ROUNDS + 1),))
    with pytest.raises(SimulationError, match="in the closing evaluation"):
        check_behaviour(plan, 5, study(), 0)


def test_a_site_that_is_not_there_is_refused() -> None:
    with pytest.raises(SimulationError, match="no site 6"):
        check_behaviour(Behaviour(slow=(Slow(sites=(6,), seconds=1),)), 5, study(), 0)


def test_nonsense_from_its_round_on() -> None:
    bent = course(
        nonsense=[
            Nonsense(sites=(1,), kind="scaled", factor=3, from_round=2),
            Nonsense(sites=(2,), kind="sign-flipped"),
            Nonsense(sites=(3,), kind="nan"),
        ]
    )
    update = {"w": np.array([1, -2], np.float32)}
    assert bent.distort(0, 1, update)["w"].tolist() == [1, -2]
    assert bent.distort(0, 2, update)["w"].tolist() == [3, -6]
    assert bent.distort(1, 1, update)["w"].tolist() == [-1, 2]
    assert np.isnan(bent.distort(2, 1, update)["w"]).all()
    assert bent.distort(3, 9, update)["w"].dtype == np.float32


class Wire:
    """A transport whose answers are there as soon as the machine has waited once."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        self.done: set[str] = set()
        self.busy = True

    def nodes(self) -> dict[int, str]:
        return {1: "", 2: ""}

    def send(self, node: int, request: Request, weights: Weights, ttl: float) -> str:
        self.sent[f"m{len(self.sent)}"] = node
        return f"m{len(self.sent) - 1}"

    def receive(self, ids: Collection[str]) -> Iterator[Received]:
        for message in [i for i in ids if i in self.done]:
            self.done.discard(message)
            reply = Reply(study_digest="a" * 64, run="r", round=1, outcome="update", patients=1)
            yield Received(message, self.sent[message], reply, {"w": np.ones(1, np.float32)})

    def wait(self) -> None:
        self.done, self.busy = set(self.sent), False


def test_late_answers_come_when_the_simulated_clock_says_so() -> None:
    wire = Wire()
    slow = course(2, slow=[Slow(sites=(2,), seconds=60)])
    acting = ActingTransport(wire, wire, slow, {1: 0, 2: 1}, ROUNDS)
    clock = acting.clock()
    acting.begin(1)
    request = Request(task="train", run="r", study_digest="a" * 64, study="{}", round=1)
    messages = [acting.send(node, request, {}, 5) for node in (1, 2)]
    assert list(acting.receive(messages)) == []
    clock.sleep(10)  # the sites compute: no simulated time passes
    assert clock.monotonic() == 0
    assert [received.node for received in acting.receive(messages)] == [1]
    for _ in range(5):
        clock.sleep(10)
        assert list(acting.receive(messages[1:])) == []
    clock.sleep(10)
    assert [received.node for received in acting.receive(messages[1:])] == [2]
