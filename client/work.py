"""Who takes part in a round, and under which plan each part is charged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from client.data.cohort import Cohort, PatientSet
from client.policy import check_delta, check_patients, limits
from client.privacy.budget import Wanted
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan, evaluation_plan, study_delta, training_plan
from client.site import Policy
from shared.study import Study


@dataclass(frozen=True)
class Work:
    """The patients of a round and the plans they are charged by; no plan: nothing is done."""

    train: PatientSet
    held_out: PatientSet
    training: Plan | None
    evaluation: Plan | None

    def uses(self) -> list[Wanted]:
        """Return what to reserve."""
        pairs = ((self.evaluation, self.held_out), (self.training, self.train))
        return [Wanted(plan, frozenset(ps.patients)) for plan, ps in pairs if plan]


def plan_work(
    ledger: Ledger,
    study: Study,
    task: Literal["describe", "train", "evaluate"],
    policy: Policy,
    cohort: Cohort,
) -> Work:
    """Choose the patients who may take part and the plans that apply to them.

    Raises:
        PolicyRefusal: Too few patients are left, or their number asks for a larger delta.
    """
    train, held_out = cohort.train, cohort.held_out
    check_delta(policy, study_delta(study, len(train)))
    training = evaluation = None
    if task == "train":
        check_patients(policy, study, train.labels)
        training = ledger.plan(study.digest, "train") or training_plan(study, len(train))
        train = _eligible(ledger, training, train, policy)
        check_patients(policy, study, train.labels)
    if policy.evaluation != "none" and len(held_out):
        exact = policy.evaluation == "exact"
        stored = ledger.plan(study.digest, "exact-evaluation" if exact else "evaluate")
        evaluation = stored or evaluation_plan(study, len(cohort.train), exact=exact)
        held_out = _eligible(ledger, evaluation, held_out, policy)
    return Work(train, held_out, training, evaluation if len(held_out) else None)


def _eligible(ledger: Ledger, plan: Plan, patients: PatientSet, policy: Policy) -> PatientSet:
    """Return the patients without those who opted out or have no budget left."""
    wanted = Wanted(plan, frozenset(patients.patients))
    allowed = ledger.eligible(wanted, limits(policy))
    stays = torch.tensor([p in allowed for p in patients.patients], dtype=torch.bool)
    return patients if bool(stays.all()) else patients.only(stays)
