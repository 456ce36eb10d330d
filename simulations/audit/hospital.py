"""A hospital set up for the audit: the product's own, on disk, with patients the audit chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from client.data.patients import Cohort, PatientSet
from client.data.report import DataReport
from client.hospital import Hospital
from client.privacy.stream import RandomStream
from client.rounds import handle
from client.site import Site, SiteConfig
from client.vault import Vault
from shared.protocol import Reply, Request
from shared.study import Study
from shared.transport import Weights

OPEN_POLICY = {
    "max_epsilon_per_study": 1e6,
    "max_epsilon_per_patient": 1e6,
    "max_delta": 1e-3,
    "max_rounds_per_day": 10**9,
}


class AuditedHospital:
    """Answers requests as a hospital does, about patients that may change between them.

    Attributes:
        train: The patients to train on.
        held_out: The patients held out.

    Args:
        home: An empty folder.
        study: Approved here.
        size: Patients the site declares.
        stream: Source of lots and noise.
        physical_batch: Rows computed at once.
    """

    train: PatientSet
    held_out: PatientSet

    def __init__(
        self, home: Path, study: Study, *, size: int, stream: RandomStream, physical_batch: int
    ) -> None:
        self.study = study
        config = SiteConfig.model_validate(
            {
                "name": "audited",
                "server": {"address": "localhost:1"},
                "data": {"table": "patients.csv"},
                "policy": OPEN_POLICY,
                "compute": {"device": "cpu", "threads": 1, "physical_batch": physical_batch},
            }
        )
        vault = Vault.open(home / "vault.key")
        self._hospital = Hospital(Site(home, config), vault, self._cohort, lambda _: stream)
        self._hospital.approvals.approve_study(study, "the audit", size)

    def noise(self, purpose: Literal["train", "evaluate"]) -> float:
        """Return a plan's noise multiplier, as the ledger holds it after the first round."""
        with self._hospital.ledger() as ledger:
            plan = ledger.plan(self.study.digest, purpose)
        if plan is None:
            raise RuntimeError("the audited hospital was not asked yet")
        return plan.noise_multiplier

    def ask(self, weights: Weights, number: int) -> tuple[Reply, Weights]:
        """Ask for a round of training, with evaluation before it."""
        request = Request(
            task="train",
            run="audit",
            study_digest=self.study.digest,
            study=self.study.canonical(),
            round=number,
        )
        reply, update = handle(self._hospital, request, weights)
        if reply.refusal is not None:
            raise RuntimeError(f"the audited hospital refused: {reply.refusal.code}")
        return reply, update

    def _cohort(self, site: Site, study: Study) -> Cohort:
        report = DataReport(
            study=study.name,
            digest=study.digest,
            images_folder="",
            labels_table="",
            used_images=len(self.train) + len(self.held_out),
            train={},
            held_out={},
            set_aside=(),
            other_files=0,
        )
        return Cohort(self.train, self.held_out, report)
