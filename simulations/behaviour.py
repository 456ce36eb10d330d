"""Carries out what a scenario says of its sites: who is away, late, or sends nonsense, and when."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from server.clock import Clock
from shared.errors import SimulationError
from shared.protocol import Reply, Request
from shared.study import Study
from shared.transport import Received, Transport, Weights
from simulations.behaviour_plan import Behaviour, Dropout, Nonsense, Slow
from simulations.parts import choose_sites

WEEK = 7 * 24 * 3600.0
"""Life of a message in seconds: a simulated deadline passes without real time passing."""


class Course:
    """What each site does in each round; it follows from the seed alone.

    Sites are counted from 0 and rounds from 1. Dropouts concern rounds of training; joining and
    leaving also concern what goes before the first round (0) and the closing evaluation.

    Args:
        behaviour: The plan.
        sites: Number of sites.
        seed: Chooses sites and rounds where the plan leaves it to chance.

    Raises:
        SimulationError: The plan names a site that is not there.
    """

    def __init__(self, behaviour: Behaviour, sites: int, seed: int) -> None:
        self._plan, self._count, self._seed = behaviour, sites, seed
        self._sites: dict[tuple[str, int], frozenset[int]] = {}
        for kind in ("dropouts", "stays", "slow", "nonsense"):
            for index, rule in enumerate(getattr(behaviour, kind)):
                chosen = choose_sites(rule.sites, sites, self._rng(kind, index))
                self._sites[kind, index] = frozenset(int(site) for site in chosen)

    def online(self, number: int, rounds: int) -> frozenset[int]:
        """Return the sites that are there in round `number` of `rounds`."""
        there = frozenset(range(self._count))
        for index, stay in enumerate(self._plan.stays):
            if max(number, 1) < stay.joins or (stay.leaves is not None and number >= stay.leaves):
                there -= self._sites["stays", index]
        if 1 <= number <= rounds:
            for index, dropout in enumerate(self._plan.dropouts):
                there -= self._dropped(dropout, index, number)
        return there

    def delay(self, site: int, number: int) -> float:
        """Return by how many seconds a site's answer in a round is late."""
        return sum(
            rule.seconds
            for index, rule in enumerate(self._plan.slow)
            if site in self._sites["slow", index] and self._is_slow(rule, index, site, number)
        )

    def distort(self, site: int, number: int, update: Weights) -> Weights:
        """Return the update a site sends in place of its own."""
        for rule in self._nonsense(site, number):
            factor = {"nan": np.nan, "scaled": rule.factor, "sign-flipped": -1.0}[rule.kind]
            update = {name: array * np.float32(factor) for name, array in update.items()}
        return update

    def delivers(self, site: int, number: int, deadline: float) -> bool:
        """Tell whether a site that is there sends something usable in time."""
        spoilt = any(rule.kind == "nan" for rule in self._nonsense(site, number))
        return not spoilt and self.delay(site, number) < deadline

    def _dropped(self, rule: Dropout, index: int, number: int) -> frozenset[int]:
        sites = self._sites["dropouts", index]
        rng = self._rng("dropouts", index, number)
        if rule.probability is not None:
            draws = rng.random(self._count)
            return frozenset(site for site in sites if draws[site] < rule.probability)
        if not (number in rule.rounds or (rule.every and number % rule.every == 0)):
            return frozenset()
        if rule.count is None or rule.count >= len(sites):
            return sites
        return frozenset(int(s) for s in rng.choice(sorted(sites), rule.count, replace=False))

    def _is_slow(self, rule: Slow, index: int, site: int, number: int) -> bool:
        draws = self._rng("slow", index, number).random(self._count)
        return bool(draws[site] < rule.probability)

    def _nonsense(self, site: int, number: int) -> list[Nonsense]:
        return [
            rule
            for index, rule in enumerate(self._plan.nonsense)
            if site in self._sites["nonsense", index] and number >= rule.from_round
        ]

    def _rng(self, kind: str, *numbers: int) -> np.random.Generator:
        """Return a generator of its own for each rule and round, whatever was drawn before."""
        return np.random.default_rng([self._seed, *kind.encode(), *numbers])


def check_behaviour(behaviour: Behaviour, sites: int, study: Study, seed: int) -> None:
    """Refuse, before anything is computed, a plan that must make a round fail.

    Raises:
        SimulationError: Naming the first round in which too few sites deliver, or a site that
            is not there.
    """
    course, plan = Course(behaviour, sites, seed), study.federation
    for number in range(1, plan.rounds + 2):
        there = course.online(number, plan.rounds)
        closing = number > plan.rounds
        able = [s for s in there if closing or course.delivers(s, number, plan.round_deadline)]
        if len(able) < plan.min_sites:
            what = "the closing evaluation" if closing else f"round {number}"
            raise SimulationError(
                f"with seed {seed} only {len(able)} of {sites} sites would answer in {what}, "
                f"{len(there)} being there; the study needs {plan.min_sites}",
                "behaviour, study.federation.min_sites",
                "Let fewer sites drop out, or choose another seed",
            )


class Machine(Protocol):
    """What computes underneath a simulated network."""

    @property
    def busy(self) -> bool:
        """Whether a site is still computing."""

    def wait(self) -> None:
        """Wait until one has done."""


class ActingTransport:
    """A transport on which sites behave as planned, and the clock that goes with it.

    Time is simulated: it stands still while a site computes, however long that takes, and
    passes at once where nothing is to be waited for but time.

    Args:
        transport: Reaches every site, whatever the plan says.
        machine: Computes what sites answer.
        course: What sites do.
        nodes: Site of each node.
        rounds: Of training.
        check: Told every reply as soon as it is there, and the site it is of; what it raises
            ends the run.
    """

    def __init__(
        self,
        transport: Transport,
        machine: Machine,
        course: Course,
        nodes: dict[int, int],
        rounds: int,
        check: Callable[[int, Reply], None] = lambda *_: None,
    ) -> None:
        self._transport, self._machine = transport, machine
        self._course, self._nodes, self._rounds, self._check = course, nodes, rounds, check
        self._round: int | None = None
        self._time = 0.0
        self._sent: dict[str, tuple[int, float]] = {}
        self._held: dict[str, Received] = {}

    def begin(self, number: int) -> None:
        """Go on to a round."""
        self._round = number

    def clock(self) -> Clock:
        """Return the simulated clock; what people read is the real date and time."""
        return Clock(monotonic=lambda: self._time, sleep=self._sleep)

    def nodes(self) -> dict[int, str]:
        """Return the nodes that are there in this round; before the first round, all."""
        if self._round is None:
            return dict.fromkeys(self._nodes, "")
        there = self._course.online(self._round, self._rounds)
        return {node: "" for node, site in self._nodes.items() if site in there}

    def send(self, node: int, request: Request, weights: Weights, ttl: float) -> str:
        """Send a request; how long it lives is up to the simulated clock."""
        message = self._transport.send(node, request, weights, WEEK)
        due = self._time + self._course.delay(self._nodes[node], request.round)
        self._sent[message] = (request.round, due)
        return message

    def receive(self, ids: Collection[str]) -> Iterator[Received]:
        """Yield the answers that are due."""
        for received in self._transport.receive([i for i in ids if i not in self._held]):
            number, due = self._sent[received.message]
            site = self._nodes[received.node]
            if received.reply:
                self._check(site, received.reply)
            if received.update:
                sent = self._course.distort(site, number, received.update)
                received = replace(received, update=sent)
            if due <= self._time:
                yield received
            else:
                self._held[received.message] = received
        for message in [i for i in ids if i in self._held and self._sent[i][1] <= self._time]:
            yield self._held.pop(message)

    def _sleep(self, seconds: float) -> None:
        if self._machine.busy:
            self._machine.wait()
        else:
            self._time += seconds
