"""An in-process network of plain Python sites on a virtual clock, for the real round loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_kit import make_run, make_study, three_rounds
from safetensors.numpy import load_file

from server.clock import Clock
from server.federation import run_federation
from shared.metrics import score_histogram, to_record
from shared.protocol import LedgerHead, Refusal, Reply, Request, Spending, Statistics
from shared.statistics import statistics_layout, statistics_sensitivity
from shared.study import Federation, Privacy, Study, Task, Training
from shared.transport import Received, Weights

NAMES = {1: "Ashford", 2: "Brook", 3: "Castle"}


class VirtualClock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.time = 0.0

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.time += seconds
        assert self.time < 1e6, "the loop waits for ever"

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time)

    def clock(self) -> Clock:
        return Clock(lambda: self.time, self.sleep, self.now)


@dataclass
class PlainSite:
    """A well-behaved site; tests bend single attributes or override `answer`.

    Attributes:
        goal: What its data would make every weight.
        patients: Training patients.
        delay: Seconds until an answer arrives.
        online: Whether it is, by time.
        connected: When it last connected, by time.
    """

    goal: float
    patients: int = 100
    delay: float = 2.0
    online: Callable[[float], bool] = lambda time: True
    connected: Callable[[float], str] = lambda time: "at first"
    requests: list[Request] = field(default_factory=list)
    entries: int = 0

    def wait(self, request: Request) -> float:
        return self.delay

    def receive(self, request: Request, weights: Weights, time: float) -> tuple[Reply, Weights]:
        self.requests.append(request)
        return self.answer(request, weights, time)

    def answer(self, request: Request, weights: Weights, time: float) -> tuple[Reply, Weights]:
        if request.task == "describe":
            return self.describe(request), {}
        if request.task == "evaluate":
            return self.reply(request, outcome="evaluated"), {}
        control = {n: weights.pop(n) for n in list(weights) if n.startswith("control/")}
        change = {
            n: ((self.goal - a) / 2 - control.get(f"control/{n}", 0)).astype(np.float32)
            for n, a in weights.items()
        }
        return self.reply(request, outcome="update", patients=self.patients), change

    def describe(self, request: Request) -> Reply:
        """Answer with all patients in the first cell of everything, under the study's noise."""
        study = Study.model_validate_json(request.study)
        classes, columns = statistics_layout(study)
        statistics = Statistics(
            classes=(self.patients, *[0.0] * (classes - 1)),
            columns=tuple((self.patients, *[0.0] * (length - 1)) for length in columns),
            noise=study.privacy.statistics_noise * statistics_sensitivity(study),
        )
        return self.reply(request, outcome="described", statistics=statistics, evaluation=None)

    def reply(self, request: Request, **changes: Any) -> Reply:
        self.entries += 2
        study = Study.model_validate_json(request.study)
        rng = np.random.default_rng(request.round)
        labels = rng.integers(0, 2, 200)
        score = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.15, 200), 0, 1)
        counts = score_histogram(np.stack([1 - score, score], axis=1), labels, study)
        values = {
            "study_digest": request.study_digest,
            "run": request.run,
            "round": request.round,
            "spending": Spending(
                epsilon=0.5 * request.round,
                budget=8,
                delta=1e-5,
                noise_multiplier=1.1,
                sampling_rate=0.1,
                steps=5 * request.round,
            ),
            "evaluation": to_record(counts, 0.0),
            "head": LedgerHead(entries=self.entries, hash=f"{self.entries:064x}"),
        }
        return Reply(**(values | changes))

    def refuse(self, request: Request, code: str, text: str = "") -> tuple[Reply, Weights]:
        nothing = {"evaluation": None, "spending": None, "head": None}
        refusal = Refusal(code=code, text=text)
        return self.reply(request, outcome="refused", refusal=refusal, **nothing), {}


class Network:
    """A `Transport` that calls the sites when their answers are due, one at a time."""

    gives_up = False
    """Whether a message to a node that is offline is lost, as it is with Flower."""

    def __init__(self, sites: dict[int, PlainSite], clock: VirtualClock) -> None:
        self.sites, self.clock = sites, clock
        self._pending: dict[str, tuple[int, Request, Weights, float]] = {}
        self._count = 0

    def nodes(self) -> dict[int, str]:
        time = self.clock.time
        return {n: site.connected(time) for n, site in self.sites.items() if site.online(time)}

    def send(self, node: int, request: Request, weights: Weights, ttl: float) -> str:
        self._count += 1
        message = f"message-{self._count}"
        copy = {name: array.copy() for name, array in weights.items()}
        due = self.clock.time + self.sites[node].wait(request)
        self._pending[message] = (
            node,
            Request.model_validate_json(request.model_dump_json()),
            copy,
            due,
        )
        return message

    def receive(self, ids: Collection[str]) -> Iterator[Received]:
        for message in ids:
            node, request, weights, due = self._pending.get(message, (0, None, {}, np.inf))
            if node and not self.sites[node].online(self.clock.time) and self.gives_up:
                del self._pending[message]
                yield Received(message, node, None, error="the node is offline", offline=True)
                continue
            if request is not None and due <= self.clock.time:
                del self._pending[message]
                yield self.deliver(message, node, request, weights)

    def deliver(self, message: str, node: int, request: Request, weights: Weights) -> Received:
        try:
            reply, update = self.sites[node].receive(request, weights, self.clock.time)
        except RuntimeError as error:
            return Received(message, node, None, error=str(error))
        return Received(message, node, Reply.model_validate_json(reply.model_dump_json()), update)


class World:
    """Sites, a network, a clock and the folders of one federation."""

    plain_site = PlainSite

    def __init__(self, folder: Path) -> None:
        self.home, self.run_dir = folder / "home", folder / "runs" / "first run"
        self.home.mkdir()
        self.time = VirtualClock()
        self.sites: dict[int, PlainSite] = {
            1: PlainSite(1.0, patients=60),
            2: PlainSite(2.0, patients=30),
            3: PlainSite(4.0, patients=10),
        }
        self.network = Network(self.sites, self.time)
        self.names = dict(NAMES)
        self.study = self.make_study()

    def make_study(self, **federation: Any) -> Study:
        plan = {
            "rounds": 3,
            "sites": 3,
            "min_sites": 2,
            "round_deadline": 1000,
            "start_deadline": 60,
        }
        return Study(
            name="world",
            task=Task(classes=("no", "yes")),
            training=Training(),
            privacy=Privacy(),
            federation=Federation(**(plan | federation)),
        )

    def change_study(self, **parts: Any) -> None:
        """Give the study other parts, such as `training={"control": True}`."""
        self.study = Study.model_validate(self.study.model_dump() | parts)

    @staticmethod
    def initial(study: Study) -> Weights:
        return {
            "layer.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2),
            "layer.bias": np.zeros(3, dtype=np.float32),
        }

    def run(self, **options: Any) -> None:
        run_federation(
            self.run_dir,
            self.study,
            self.names,
            self.network,
            server_home=self.home,
            initial=self.initial,
            clock=self.time.clock(),
            **options,
        )

    def expected(self, taking_part: list[list[int]]) -> Weights:
        """Global weights by plain float64 averaging, given the nodes of each round."""
        weights = {n: a.astype(np.float64) for n, a in self.initial(self.study).items()}
        for nodes in taking_part:
            sites = [self.sites[node] for node in nodes]
            goal = sum(s.patients * s.goal for s in sites) / sum(s.patients for s in sites)
            weights = {name: (array + goal) / 2 for name, array in weights.items()}
        return {name: array.astype(np.float32) for name, array in weights.items()}

    def released(self) -> Weights:
        return load_file(self.run_dir / "model.safetensors")

    def assert_released(self, expected: Weights, atol: float = 1e-6) -> None:
        weights = self.released()
        assert weights.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(weights[name], array, atol=atol)

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_dir / name).read_text().splitlines()]

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [e for e in self.lines("events.jsonl") if not names or e["event"] in names]

    def states(self, number: int) -> dict[str, str]:
        line = next(x for x in self.lines("metrics.jsonl") if x["round"] == number)
        return {site: entry["state"] for site, entry in line["sites"].items()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    events = [
        {"event": "run-started", "time": "2026-11-22T12:00:00+00:00"},
        {"event": "run-finished", "time": "2026-11-22T12:03:00+00:00", "round": 3},
    ]
    return make_run(tmp_path / "run", make_study(), three_rounds(), events)
