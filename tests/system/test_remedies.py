"""The real round loop with real hospitals in one process: remedies on both sides of the wire."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from client.data.patients import Cohort, PatientSet
from client.data.report import DataReport
from client.hospital import Hospital
from client.local_state import LocalStates
from client.rounds import handle
from client.site import Site, SiteConfig
from client.vault import Vault
from server.clock import Clock
from server.countersign import Countersigner
from server.federation import run_federation
from server.release import read_card
from shared.accounting import Mechanism, epsilon
from shared.models import initial_weights
from shared.protocol import Request
from shared.study import Study
from shared.subgroups import CELLS, subgroup_keys
from shared.transport import Received, Weights

SIZES = {1: 40, 2: 25, 3: 15}
"""Training patients; the sizes declared are such that these follow from them."""
DECLARED = {1: 47, 2: 29, 3: 18}
NAMES = {1: "Ashford", 2: "Brook", 3: "Castle"}


def make_study(**parts: Any) -> Study:
    """A tiny private study; sections are given as they differ."""
    values: dict[str, Any] = {
        "task": {"classes": ["healthy", "ill"]},
        "input": {"size": 28},
        "model": {"name": "cnn", "widths": [4, 4], "hidden": 0},
        "training": {"local_steps": 2, "sampling_rate": 0.5, "learning_rate": 0.5},
        "privacy": {"delta": 1e-5, "score_bins": 4},
        "federation": {"rounds": 3, "sites": 3, "min_sites": 3},
    }
    merged = {section: keys | parts.get(section, {}) for section, keys in values.items()}
    return Study.model_validate({"name": "tiny", **merged})


class Hospitals:
    """Three hospitals with made-up patients behind a `Transport`; an answer may be held back."""

    def __init__(self, folder: Path, study: Study, **policy: Any) -> None:
        self.folder, self.study, self.policy, self.time = folder, study, policy, 0.0
        self.late: set[tuple[int, int]] = set()
        self._waiting: dict[str, tuple[float, Received]] = {}
        self.hospitals = {node: self._make(node) for node in NAMES}

    def _make(self, node: int) -> Hospital:
        home = self.folder / NAMES[node]
        home.mkdir(parents=True)
        key = self.folder / "server"
        key.mkdir(exist_ok=True)
        Countersigner.open(key)
        (home / "server.pub").write_bytes((key / "server.pub").read_bytes())
        config = SiteConfig.model_validate(
            {
                "name": NAMES[node],
                "server": {"address": "localhost:1"},
                "data": {"images": "images", "labels": "labels.csv"},
                "policy": {
                    "min_patients": 5,
                    "min_patients_per_class": 2,
                    "max_rounds_per_day": 99,
                }
                | self.policy,
                "compute": {"device": "cpu"},
            }
        )
        vault = Vault.open(home / "vault.key")
        sides = (self._patients(node, 0, SIZES[node]), self._patients(node, 1, 12))
        report = DataReport(
            study="tiny", digest=self.study.digest, images_folder="", labels_table="",
            used_images=0, train={}, held_out={}, set_aside=(), other_files=0,
        )  # fmt: skip
        hospital = Hospital(Site(home, config), vault, lambda *_: Cohort(*sides, report))
        hospital.approvals.approve_study(self.study, "Dr. A", DECLARED[node])
        return hospital

    def _patients(self, node: int, side: int, count: int) -> PatientSet:
        """One image a patient, brighter for the ill; site by site another share of them."""
        rng = np.random.default_rng([node, side])
        labels = torch.arange(count) % 2
        images = torch.from_numpy(rng.uniform(-1, 0, (count, 1, 28, 28))).float()
        images += labels[:, None, None, None] * 0.2 * node
        groups = {
            name: torch.from_numpy(rng.integers(0, len(CELLS[name]), count))
            for name in self.study.privacy.subgroups
        }
        names = tuple(sorted(f"{node}{side}{n:062x}" for n in range(count)))
        return PatientSet(images, torch.arange(count), labels, names, groups)

    def clock(self) -> Clock:
        def sleep(seconds: float) -> None:
            self.time += seconds

        return Clock(lambda: self.time, sleep, lambda: datetime.now(UTC))

    def nodes(self) -> dict[int, str]:
        return dict.fromkeys(NAMES, "")

    def send(self, node: int, request: Request, weights: Weights, ttl: float) -> str:
        reply, update = handle(self.hospitals[node], request, weights)
        message = f"{node}-{request.round}-{request.attempt}"
        due = self.time + (5000 if (node, request.round) in self.late else 1)
        self._waiting[message] = (due, Received(message, node, reply, update))
        return message

    def receive(self, ids: Collection[str]) -> Iterator[Received]:
        for message in ids:
            if message in self._waiting and self._waiting[message][0] <= self.time:
                yield self._waiting.pop(message)[1]

    def run(self) -> Path:
        run_dir = self.folder / "run"
        run_federation(
            run_dir, self.study, NAMES, self, server_home=self.folder / "server",
            clock=self.clock(),
        )  # fmt: skip
        return run_dir

    def own_control(self, node: int, counted: int) -> Weights:
        """Return a hospital's control variate after the last round that counted."""
        hospital, study = self.hospitals[node], self.study
        run = json.loads((self.folder / "run" / "run.json").read_text())["run"]
        request = Request(
            task="train", run=run, study_digest=study.digest, study=study.canonical(),
            round=99, counted=counted,
        )  # fmt: skip
        states = LocalStates(hospital.site.local, hospital.vault)
        return states.before(request).control


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("late", [set(), {(3, 2)}])
def test_the_servers_control_variate_is_the_mean_of_the_hospitals(tmp_path, late) -> None:
    study = make_study(
        training={"control": True, "schedule": "cosine"},
        federation={"rounds": 4, "min_sites": 2, "optimiser": {"name": "momentum"}},
    )
    hospitals = Hospitals(tmp_path, study)
    hospitals.late = late
    run_dir = hospitals.run()
    counted = [[s for s, e in line["sites"].items() if e["state"] == "update"]
               for line in lines(run_dir)[:4]]  # fmt: skip
    assert counted == [sorted(NAMES.values()) if not late or n != 1 else ["Ashford", "Brook"]
                       for n in range(4)]  # fmt: skip
    arrays = load_file(run_dir / "checkpoints" / "round-0004.safetensors")
    own = {node: hospitals.own_control(node, 4) for node in NAMES}
    for name in initial_weights(study):
        mean = sum(SIZES[node] * own[node][name] for node in NAMES) / sum(SIZES.values())
        np.testing.assert_allclose(arrays[f"control/{name}"], mean, atol=2e-5)
        assert np.abs(mean).max() > 1e-3


def test_everything_at_once_within_the_budget(tmp_path) -> None:
    study = make_study(
        training={
            "control": True, "proximal": 0.1, "local_norms": True, "personal_rounds": 2,
            "loss": {"name": "class-balanced"},
        },
        privacy={"subgroups": ["sex", "age"], "statistics_noise": 5.0},
        federation={"optimiser": {"name": "yogi", "learning_rate": 0.01}, "average": 0.5},
    )  # fmt: skip
    hospitals = Hospitals(tmp_path, study)
    run_dir = hospitals.run()
    *rounds, closing = lines(run_dir)
    assert all({e["state"] for e in line["sites"].values()} == {"update"} for line in rounds)
    assert {e["state"] for e in closing["sites"].values()} == {"evaluated"}
    assert set(closing["subgroups"]) == set(subgroup_keys(study))
    assert "personal_auc" in closing
    card = read_card(run_dir)
    # Half of the 80 training patients are ill; three sites' noise of 5 each.
    assert card.statistics is not None
    assert card.statistics.noise == pytest.approx(5 * np.sqrt(3))
    assert np.abs(np.subtract(card.statistics.classes, 40)).max() < 6 * card.statistics.noise
    for record in card.sites.values():
        # One release of the counts, then 3 rounds and 2 personal ones of 2 steps.
        spent = epsilon([Mechanism(5.0, 1.0, 1), Mechanism(record.noise_multiplier, 0.5, 10)], 1e-5)
        assert record.epsilon == pytest.approx(spent, rel=1e-3)
        assert record.epsilon <= 8.0


def test_hospitals_that_share_no_evaluation_do_not_hold_up_the_release(tmp_path) -> None:
    run_dir = Hospitals(tmp_path, make_study(), evaluation="none").run()
    *rounds, closing = lines(run_dir)
    assert all({e["state"] for e in line["sites"].values()} == {"update"} for line in rounds)
    told = {(e["state"], e["reason"]) for e in closing["sites"].values()}
    assert told == {("refused", "policy-evaluation")}
    assert closing["auc"] is None
    card = read_card(run_dir)
    assert (card.rounds, {site.rounds for site in card.sites.values()}) == (3, {3})


@pytest.mark.parametrize(
    "federation",
    [
        {"aggregator": "median"},
        {"aggregator": "trimmed-mean", "trim": 0.34},
        {"optimiser": {"name": "adam", "learning_rate": 0.01}},
    ],
)
def test_the_servers_remedies_train_real_hospitals(tmp_path, federation) -> None:
    study = make_study(federation=federation)
    run_dir = Hospitals(tmp_path, study).run()
    assert [len(line["sites"]) for line in lines(run_dir)] == [3] * 4
    weights = load_file(run_dir / "model.safetensors")
    before = initial_weights(study)
    assert weights.keys() == before.keys()
    assert all(np.isfinite(a).all() for a in weights.values())
    moved = max(np.abs(weights[name] - before[name]).max() for name in before)
    assert 0 < moved < (0.05 if "optimiser" in federation else 5)
