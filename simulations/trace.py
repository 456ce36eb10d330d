"""What a run's folder tells of the run: who took part, what it spent, how much was sent."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.numpy import load_file

from client.hospital import Hospital
from client.spending import study_epsilon
from server.files import write_atomically
from server.release import read_card
from shared.study import Study
from shared.transport import Weights
from simulations.measure import Model
from simulations.records import Part

SPENT = "spent.json"
"""File beside a run's own: what each site's ledger says."""

Message = Literal["describe", "train", "evaluate", "update"]
"""A request by its task, or an update that came in."""


@dataclass(frozen=True)
class Spent:
    """Privacy one site spent, as its ledger says."""

    epsilon: float
    delta: float
    noise_multiplier: float


@dataclass(frozen=True)
class Trace:
    """A finished run.

    Attributes:
        model: The released one.
        rounds: Of training.
        parts: What each site did in each round.
        spent: By site; empty without privacy.
        bytes_up: Of the updates that arrived, also of those set aside.
        bytes_down: Of the weights that were sent.
    """

    model: Model
    rounds: int
    parts: tuple[Part, ...]
    spent: dict[str, Spent]
    bytes_up: int
    bytes_down: int


def note_spent(run_dir: Path, study: Study, hospitals: Mapping[str, Hospital]) -> None:
    """Write down what the sites' ledgers say they spent, before their folders go.

    A site may have paid in rounds in which its answer came too late to be told.
    """
    spent = {name: asdict(it) for name, h in hospitals.items() if (it := _spent(h, study))}
    write_atomically(run_dir / SPENT, json.dumps(spent).encode())


def _spent(hospital: Hospital, study: Study) -> Spent | None:
    with hospital.ledger() as ledger:
        plan = ledger.plan(study.digest, "train")
        if plan is None or not study.privacy.enabled:
            return None
        epsilon = study_epsilon(ledger.entries(), plan)
        return Spent(epsilon, plan.delta, plan.noise_multiplier)


def read_trace(run_dir: Path, study: Study, cell: str) -> Trace:
    """Read a finished run.

    Args:
        run_dir: As `server.federation.run_federation` and `note_spent` leave it.
        study: The run's plan.
        cell: Written into the parts.

    Raises:
        CoordinatorError: The run is not finished.
    """
    card, weights = read_card(run_dir), load_file(run_dir / "model.safetensors")
    parts = [
        Part(cell, line["round"], site, entry["state"], entry["reason"])
        for line in _lines(run_dir / "metrics.jsonl")
        for site, entry in line["sites"].items()
    ]
    ledgers = json.loads((run_dir / SPENT).read_text())
    spent = {site: Spent(**entry) for site, entry in ledgers.items()}
    messages = _messages(run_dir, card.rounds)
    size = sum(array.nbytes for array in weights.values())
    # A control variate travels to the sites beside the weights, and is as large (SCAFFOLD).
    sent = messages["train"] * (1 + study.training.control) + messages["evaluate"]
    model = Model(weights, card.statistics)
    return Trace(model, card.rounds, tuple(parts), spent, messages["update"] * size, sent * size)


def read_checkpoints(run_dir: Path, every: int) -> Iterator[tuple[int, Weights]]:
    """Yield the global model after every so many rounds, and after the last.

    Where the study releases a running mean of the models, it is that mean.
    """
    paths = sorted((run_dir / "checkpoints").glob("round-*.safetensors"))
    for number, path in enumerate(paths, start=1):
        if number % every == 0 or number == len(paths):
            arrays = load_file(path)
            prefix = "average/" if any(n.startswith("average/") for n in arrays) else "global/"
            found = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
            yield int(path.stem.removeprefix("round-")), found


def _messages(run_dir: Path, rounds: int) -> Counter[Message]:
    """Count the updates that came in and the requests that went out, each round once.

    A round that was cut short is done again when the run is taken up, so that what came of the
    broken attempt does not count.
    """
    counted: Counter[tuple[int, Message]] = Counter()
    now = 0
    for event in _lines(run_dir / "events.jsonl"):
        name, number = event["event"], event.get("round", 0)
        training = 1 <= number <= rounds
        if name == "run-started":
            done = event["rounds_done"]
            counted = Counter({key: n for key, n in counted.items() if key[0] <= done})
        elif name == "site-sent":
            now = number
            counted[now, "train" if training else "evaluate" if number else "describe"] += 1
        elif name == "site-late":  # in a later round than it was asked for
            counted[now, "update"] += event.get("outcome") == "update"
        elif name in ("site-replied", "update-rejected"):
            counted[now, "update"] += training
    found: Counter[Message] = Counter()
    for (_, message), n in counted.items():
        found[message] += n
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
