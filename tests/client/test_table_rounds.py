"""Studies of tables and of findings, from the hospitals' files to the released model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from split_kit import fix_split

from client.hospital import Hospital
from client.judge import exact_scores
from client.rounds import handle
from client.site import Site, SiteConfig
from client.training import predict
from client.vault import Vault
from server.clock import Clock
from server.countersign import Countersigner
from server.federation import run_federation
from shared.accounting import Mechanism, epsilon
from shared.metrics import roc_auc, summarise
from shared.models import build_model, initial_weights, set_weights
from shared.protocol import Reply, Request, Statistics
from shared.study import Study
from shared.transport import Received, Weights

COLUMNS = [
    {"name": "age", "low": 20, "high": 100},
    {"name": "marker", "low": 0, "high": 10},
    {"name": "sex", "categories": ["female", "male"]},
]


def study(missing: str = "mean", **changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "table",
        "task": {"classes": ["healthy", "ill"]},
        "table": {"columns": COLUMNS, "missing": missing},
        "model": {"name": "table", "layers": []},
        "training": {"learning_rate": 2.0, "sampling_rate": 0.3},
        "privacy": {"delta": 1e-5},
        "data": {"held_out": 0.3},
        "federation": {"rounds": 3, "sites": 3},
    }
    return Study.model_validate(values | changes)


def people(seed: int, n: int) -> dict[str, np.ndarray]:
    """Patients whose marker is raised by illness; a third of the markers is missing."""
    rng = np.random.default_rng(seed)
    ill = rng.integers(0, 2, n)
    marker = np.clip(rng.normal(3.5 + 3 * ill, 1.2), 0, 10)
    marker[rng.random(n) < 1 / 3] = np.nan
    return {
        "ill": ill,
        "age": rng.uniform(30, 90, n),
        "marker": marker,
        "sex": rng.integers(0, 2, n),
    }


def rows(facts: dict[str, np.ndarray]) -> torch.Tensor:
    """The same as the model takes them."""
    scaled = [facts["age"] / 40 - 1.5, facts["marker"] / 5 - 1, facts["sex"]]
    return torch.tensor(np.stack(scaled, axis=1), dtype=torch.float32)


def table(number: int, facts: dict[str, np.ndarray]) -> str:
    """Write a table in a hospital's own words: each has another unit, order and separator."""
    unit, mark = (1, 10, 0.1)[number], (";", ",", "\t")[number]
    lines = [["Marker", "PatNr", "Geschlecht", "label", "age"]]
    for i, (ill, age, marker, sex) in enumerate(zip(*facts.values(), strict=True)):
        value = "?" if np.isnan(marker) else repr(float(marker) * unit)
        label = ("healthy", "ill")[ill]
        lines.append([value, f"{number}-{i}", "wm"[sex], label, repr(float(age))])
    return "\n".join(mark.join(line) for line in lines)


def make_hospital(home: Path, plan: Study, text: str, **settings: Any) -> Hospital:
    """A hospital on disk that has approved the study."""
    fix_split(home)
    (home / "patients.csv").write_text(text)
    config = SiteConfig.model_validate(
        {
            "name": home.name,
            "server": {"address": "localhost:1"},
            "data": {"table": "patients.csv", **settings.pop("data", {})},
            "policy": settings,
            "compute": {"device": "cpu"},
        }
    )
    hospital = Hospital(Site(home, config), Vault.open(home / "vault.key"))
    exact = exact_scores(config.policy, plan, hospital.load_cohort(hospital.site, plan).held_out)
    hospital.approvals.approve_study(plan, "Dr. A", 300, exact=exact)
    return hospital


def own_words(number: int) -> dict[str, Any]:
    return {
        "columns": {"patient": "PatNr"},
        "features": {
            "marker": {"column": "Marker", "scale": (1, 0.1, 10)[number]},
            "sex": {"column": "Geschlecht", "values": {"w": "female", "m": "male"}},
        },
    }


def ask(hospital: Hospital, plan: Study, round_number: int, **fields: Any) -> tuple[Reply, Weights]:
    tasks = {0: "describe", plan.federation.rounds + 1: "evaluate"}
    values = {
        "task": tasks.get(round_number, "train"),
        "run": "run-1",
        "study_digest": plan.digest,
        "study": plan.canonical(),
        "round": round_number,
    }
    weights = {} if round_number == 0 else fields.pop("weights", initial_weights(plan))
    return handle(hospital, Request.model_validate(values | fields), weights)


def refusal(reply: Reply) -> str:
    assert reply.refusal is not None, reply.outcome
    return reply.refusal.code


def test_a_hospital_describes_trains_and_evaluates_within_one_budget(tmp_path: Path) -> None:
    plan = study()
    facts = people(1, 300)
    hospital = make_hospital(tmp_path / "A", plan, table(0, facts), data=own_words(0))
    described, nothing = ask(hospital, plan, 0)
    assert (described.outcome, nothing) == ("described", {})
    statistics = described.statistics
    assert statistics is not None
    assert [len(column) for column in statistics.columns] == [17, 17, 3]
    # 210 of 300 patients train; every column counts each of them once, up to the noise.
    for counts in (statistics.classes, *statistics.columns):
        assert abs(sum(counts) - described.patients) < 6 * statistics.noise * len(counts) ** 0.5

    assert refusal(ask(hospital, plan, 1)[0]) == "message-invalid"
    other = Statistics(classes=(1, 1), columns=((1, 1),), noise=1)
    assert refusal(ask(hospital, plan, 1, statistics=other)[0]) == "message-invalid"
    trained, update = ask(hospital, plan, 1, statistics=statistics)
    assert trained.outcome == "update"
    assert {name: a.shape for name, a in update.items()} == {
        "head.weight": (2, 4),
        "head.bias": (2,),
    }
    assert all(np.isfinite(a).all() and a.any() for a in update.values())
    closing, nothing = ask(hospital, plan, 4, statistics=statistics)
    assert (closing.outcome, nothing) == ("evaluated", {})
    assert closing.evaluation is not None

    assert trained.spending is not None
    training = Mechanism(trained.spending.noise_multiplier, 0.3, 6)
    before = Mechanism(10.0, 1.0, 1)
    spent = max(
        epsilon([training, before], 1e-5),
        epsilon([Mechanism(closing.evaluation.noise, 1.0, 1)], 1e-5),
    )
    assert trained.spending.epsilon == pytest.approx(spent, rel=1e-9)
    whole = [replace(training, steps=plan.total_steps), replace(before, steps=2)]
    assert 7.9 < epsilon(whole, 1e-5) <= 8
    with hospital.ledger() as ledger:
        charged = [e.purpose for e in ledger.entries() if e.kind == "reserve"]
    assert charged == ["describe", "evaluate", "train", "evaluate"]


class Wire:
    """A transport without a network: hospitals answer when they are asked."""

    def __init__(self, hospitals: dict[int, Hospital]) -> None:
        self.hospitals = hospitals
        self.tasks: list[tuple[int, str]] = []
        self._answers: dict[str, Received] = {}

    def nodes(self) -> dict[int, str]:
        return dict.fromkeys(self.hospitals, "")

    def send(self, node: int, request: Request, weights: Weights, ttl: float) -> str:
        message = f"m{len(self.tasks)}"
        self.tasks.append((request.round, request.task))
        reply, update = handle(self.hospitals[node], request, weights)
        self._answers[message] = Received(message, node, reply, update)
        return message

    def receive(self, ids: Collection[str]) -> Iterator[Received]:
        yield from (self._answers.pop(i) for i in list(ids) if i in self._answers)


@pytest.mark.parametrize("missing", ["median", "embedding"])
def test_three_hospitals_learn_from_tables_in_their_own_words(tmp_path: Path, missing: str) -> None:
    plan = study(missing)
    (tmp_path / "server").mkdir()
    Countersigner.open(tmp_path / "server")
    hospitals = {}
    for number in range(3):
        hospital = make_hospital(
            tmp_path / f"site-{number}",
            plan,
            table(number, people(number, 300)),
            data=own_words(number),
        )
        key = (tmp_path / "server" / "server.pub").read_bytes()
        (hospital.site.home / "server.pub").write_bytes(key)
        hospitals[number + 1] = hospital
    ticks = itertools.count()
    clock = Clock(lambda: float(next(ticks)), lambda _: None, lambda: datetime.now(UTC))
    wire, run = Wire(hospitals), tmp_path / "run"
    names = {node: hospital.site.config.name for node, hospital in hospitals.items()}
    run_federation(run, plan, names, wire, server_home=tmp_path / "server", clock=clock)

    describes = [(0, "describe")] * 3 if missing == "median" else []
    rounds = [(n, "train") for n in (1, 2, 3) for _ in range(3)]
    assert wire.tasks == describes + rounds + [(4, "evaluate")] * 3
    merged = None
    if missing == "median":
        merged = Statistics.model_validate_json((run / "statistics.json").read_text())
        assert merged.noise == pytest.approx(10 * 2 * 3**0.5)
    fresh = people(99, 2000)
    model = build_model(plan, merged)
    set_weights(model, load_file(run / "model.safetensors"))
    scores = predict(model, rows(fresh), torch.device("cpu"), 512)[:, 1]
    known = ~np.isnan(fresh["marker"])
    best = roc_auc(fresh["marker"][known], fresh["ill"][known] == 1)
    assert roc_auc(scores[known].numpy(), fresh["ill"][known] == 1) > best - 0.03
    assert roc_auc(scores.numpy(), fresh["ill"] == 1) > 0.7
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["closing"]
    assert last["auc_low"] < last["auc"] < last["auc_high"]


def test_findings_with_absent_labels_train_only_what_is_known(tmp_path: Path) -> None:
    findings = ["fluid", "air", "stone"]
    plan = study(
        "indicator",
        task={"classes": findings, "findings": True},
        privacy={"enabled": False},
        # Enough steps for the lots' chance not to decide whether it learns: .86, sd .01.
        training={"learning_rate": 1.0, "sampling_rate": 0.5, "local_steps": 20},
    )
    facts = people(5, 300)
    lines = ["patient,fluid,air,age,marker,sex"]  # of stone nobody knows anything
    for i, (ill, age, marker, sex) in enumerate(zip(*facts.values(), strict=True)):
        fluid = "" if i % 2 else str(ill)
        air = str(1 - ill) if i % 4 == 1 else "" if i % 3 else "-1"
        lines.append(f"p{i},{fluid},{air},{age},{marker},{('female', 'male')[sex]}")
    hospital = make_hospital(
        tmp_path / "A",
        plan,
        "\n".join(lines),
        allow_without_privacy=True,
        evaluation="exact",
    )
    cohort = hospital.load_cohort(hospital.site, plan)
    known = (cohort.held_out.labels >= 0).sum(dim=0)
    weights = initial_weights(plan)
    for number in (1, 2, 3):
        reply, update = ask(hospital, plan, number, weights=weights)
        assert reply.outcome == "update", reply.refusal
        assert update["head.weight"][:2].any(axis=1).all()
        assert not update["head.weight"][2].any()
        assert update["head.bias"][2] == 0
        weights = {name: array + update[name] for name, array in weights.items()}
    closing, _ = ask(hospital, plan, 4, weights=weights)
    assert closing.evaluation is not None
    counts = np.reshape(closing.evaluation.counts, (3, 2, -1))
    assert counts.sum(axis=(1, 2)).tolist() == known.tolist() == [known[0], known[1], 0]
    assert known[0] > known[1] > 0
    model = build_model(plan)
    set_weights(model, weights)
    logits = model(rows(facts))
    scores = predict(model, rows(facts), torch.device("cpu"), 64, findings=True)
    assert torch.allclose(scores, logits.sigmoid())
    assert roc_auc(scores[:, 0].numpy(), facts["ill"] == 1) > 0.8
    assert roc_auc(scores[:, 1].numpy(), facts["ill"] == 0) > 0.8
    assert summarise(closing.evaluation).undetermined == 1
