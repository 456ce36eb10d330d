"""A hospital on disk with a tiny study, for tests of rounds and what rounds leave behind."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.audit import AuditLog
from client.data.cohort import Cohort, PatientSet
from client.data.report import DataReport
from client.judge import exact_scores
from client.privacy.stream import OsStream, RandomStream
from client.rounds import Hospital, handle
from client.site import Site, SiteConfig
from client.vault import Vault
from shared.heads import head_bytes
from shared.models import initial_weights
from shared.protocol import LedgerHead, Reply, Request
from shared.study import Study
from shared.subgroups import CELLS

START = datetime(2026, 3, 1, 8, tzinfo=UTC)


def patient_set(names: list[str], study: Study) -> PatientSet:
    """Two images a patient; the image of an ill patient is brighter. All cells in turn."""
    generator = torch.Generator().manual_seed(len(names))
    labels = torch.arange(len(names)) % 2
    owner = torch.arange(len(names)).repeat_interleave(2)
    images = torch.rand(2 * len(names), 1, 28, 28, generator=generator) * 0.2
    images += labels[owner, None, None, None] * 0.5
    everyone = torch.arange(len(names))
    groups = {name: everyone % len(CELLS[name]) for name in study.privacy.subgroups}
    return PatientSet(images, owner, labels, tuple(names), groups)


class Ward:
    """A hospital on disk whose patients a test can change."""

    def __init__(self, home: Path, **policy: Any) -> None:
        self.home, self.policy = home, policy
        self.train, self.held_out = 12, 6
        self.size = 14  # as declared: 12 to train on
        self.time = START
        self.data: dict[str, Any] = {"images": "images", "labels": "labels.csv"}
        self.loads = 0
        self.make_stream: Callable[[Request], RandomStream] = lambda _: OsStream()
        home.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def study(**changes: dict[str, Any]) -> Study:
        """A tiny study of three rounds and a spare one; sections can be changed."""
        values: dict[str, dict[str, Any]] = {
            "task": {"classes": ("healthy", "ill")},
            "input": {"size": 28},
            "model": {"name": "cnn", "widths": (4, 4), "hidden": 0},
            "training": {"local_steps": 2, "sampling_rate": 0.5},
            "privacy": {"epsilon": 8.0, "delta": 1e-5, "spare_rounds": 1},
            "federation": {"rounds": 3},
        }
        for section, keys in changes.items():
            values[section] = values.get(section, {}) | keys
        return Study.model_validate({"name": "tiny", **values})

    @staticmethod
    def request(plan: Study, round_number: int, **fields: Any) -> Request:
        """What the server asks."""
        values = {
            "task": "train",
            "run": "run-1",
            "study_digest": plan.digest,
            "study": plan.canonical(),
            "round": round_number,
            "counted": max(0, round_number - 1),
        }
        return Request.model_validate(values | fields)

    def pseudonym(self, name: str) -> str:
        return Vault.open(self.home / "vault.key").pseudonym(name)

    def cohort(self, site: Site, study: Study) -> Cohort:
        self.loads += 1
        names = {
            part: sorted(self.pseudonym(f"{part}-{i}") for i in range(count))
            for part, count in (("train", self.train), ("held-out", self.held_out))
        }
        report = DataReport(
            study=study.name,
            digest=study.digest,
            images_folder="",
            labels_table="",
            used_images=0,
            train={},
            held_out={},
            set_aside=(),
            other_files=0,
        )
        sides = {part: patient_set(own, study) for part, own in names.items()}
        return Cohort(sides["train"], sides["held-out"], report)

    def hospital(self) -> Hospital:
        """Open anew, as each message does."""
        policy = {"min_patients": 5, "min_patients_per_class": 2} | self.policy
        config = SiteConfig.model_validate(
            {
                "name": "ward",
                "server": {"address": "localhost:1"},
                "data": self.data,
                "policy": policy,
                "compute": {"device": "cpu"},
            }
        )
        vault = Vault.open(self.home / "vault.key")
        site = Site(self.home, config)
        return Hospital(site, vault, self.cohort, self.make_stream, lambda: self.time)

    def approve(self, study: Study) -> None:
        """What `consilium site approve` does, whatever it would say of the cohort."""
        hospital = self.hospital()
        held_out = self.cohort(hospital.site, study).held_out
        self.loads -= 1
        exact = exact_scores(hospital.site.config.policy, study, held_out)
        hospital.approvals.approve_study(study, "Dr. A", self.size, self.time, exact=exact)

    def look(self) -> None:
        """What `consilium site attention clear` does for all studies that wait."""
        attention = self.hospital().attention
        for waiting in attention.waiting():
            attention.clear(waiting.study)

    def ask(self, plan: Study, round_number: int, **fields: Any) -> Reply:
        return self.answer(plan, round_number, **fields)[0]

    def answer(
        self, plan: Study, round_number: int, **fields: Any
    ) -> tuple[Reply, dict[str, np.ndarray]]:
        weights = fields.pop("weights", None) or initial_weights(plan)
        return handle(self.hospital(), self.request(plan, round_number, **fields), weights)

    @staticmethod
    def code(reply: Reply) -> str:
        """The reason of a refusal."""
        assert reply.refusal is not None, reply.outcome
        return reply.refusal.code

    def kinds(self) -> list[tuple[str, str]]:
        with self.hospital().ledger() as ledger:
            return [(e.kind, e.purpose) for e in ledger.entries()]

    def server(self) -> Server:
        return Server(self)

    def copy(self, name: str) -> Ward:
        """Copy the whole home, as a backup or a cloned machine would."""
        shutil.copytree(self.home, self.home.parent / name)
        return Ward(self.home.parent / name, **self.policy)

    def audit(self) -> list[Any]:
        return AuditLog(self.home / "audit.jsonl", Vault.open(self.home / "vault.key")).lines()


class Server:
    """The coordinator's memory of one site's ledger, and its countersigning key."""

    def __init__(self, ward: Ward) -> None:
        self._key = Ed25519PrivateKey.generate()
        pem = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (ward.home / "server.pub").write_bytes(pem)

    def seen(self, head: LedgerHead | None, *studies: Study) -> dict[str, Any]:
        """What a request says once a head and answers in some studies are confirmed."""
        assert head is not None
        digests = tuple(sorted(study.digest for study in studies))
        signature = base64.b64encode(self._key.sign(head_bytes("ward", head, digests))).decode()
        return {"known_head": head, "known_studies": digests, "countersignature": signature}


@pytest.fixture
def make_ward(tmp_path: Path) -> Callable[..., Ward]:
    """Make a hospital: its policy, and optionally the name of its home."""
    return lambda home="ward", **policy: Ward(tmp_path / home, **policy)


@pytest.fixture
def ward(make_ward: Callable[..., Ward]) -> Ward:
    """A hospital with a permissive policy."""
    return make_ward()
