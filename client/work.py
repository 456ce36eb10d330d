"""Who takes part in a round, and under which plan each part is charged."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch

from client.data.cohort import Cohort, PatientSet
from client.policy import check_delta, check_patients, limits, shares_counts
from client.privacy.budget import Wanted
from client.privacy.ledger import Ledger
from client.privacy.plans import (
    Plan,
    description_plan,
    evaluation_plan,
    study_delta,
    training_plan,
)
from client.site import Policy
from shared.study import Study

Task = Literal["describe", "train", "evaluate"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """The patients a request concerns, and the plans they are charged by; no plan: not done.

    Attributes:
        task: What is asked.
        train: Patients to train on, or to describe.
        held_out: Patients to evaluate on.
        description: Of the noised statistics, when they are asked for.
        training: Also when it only follows: after a description, or at the site alone.
        evaluation: Also when it only follows.
        evaluations: How many the task makes.
    """

    task: Task
    train: PatientSet
    held_out: PatientSet
    description: Plan | None
    training: Plan | None
    evaluation: Plan | None
    evaluations: int

    def uses(self) -> list[Wanted]:
        """Return what to reserve: the uses of each plan that the task carries out."""
        description = _wanted(self.description, self.train)
        evaluation = _wanted(self.evaluation, self.held_out, self.evaluations)
        training = _wanted(self.training, self.train)
        if self.task == "describe":
            return description
        return evaluation + training if self.task == "train" else evaluation

    def tuning(self) -> list[Wanted]:
        """Return what to reserve for a round of fine-tuning the site's own model."""
        return _wanted(self.training, self.train)

    def later(self) -> list[Wanted]:
        """Return what a description only makes sense with: the plans of the study to come."""
        if self.task != "describe":
            return []
        return _wanted(self.training, self.train) + _wanted(self.evaluation, self.held_out)


def plan_work(ledger: Ledger, study: Study, task: Task, policy: Policy, cohort: Cohort) -> Work:
    """Choose the patients who may take part and the plans that apply to them.

    Raises:
        PolicyRefusal: Too few patients are left, or their number asks for a larger delta.
        StudyError: No noise keeps the study's budget.
    """
    train, held_out = cohort.train, cohort.held_out
    patients = len(train)
    check_delta(policy, study_delta(study, patients))
    description = training = evaluation = None
    if task != "evaluate" or study.training.personal_rounds:
        check_patients(policy, study, train.labels)
        training = ledger.plan(study.digest, "train") or training_plan(study, patients)
        train = _eligible(ledger, training, train, policy)
        check_patients(policy, study, train.labels)
    if task == "describe":
        stored = ledger.plan(study.digest, "describe")
        description = stored or description_plan(study, patients)
    evaluates = task != "train" or study.evaluates_rounds
    if policy.evaluation != "none" and evaluates and len(held_out):
        exact = policy.evaluation == "exact"
        stored = ledger.plan(study.digest, "exact-evaluation" if exact else "evaluate")
        evaluation = stored or evaluation_plan(study, patients, exact=exact)
        held_out = _eligible(ledger, evaluation, held_out, policy)
        if not shares_counts(policy, study, held_out.labels):
            log.warning("too few held-out patients for exact counts: no evaluation leaves")
            evaluation = None
    evaluation = evaluation if len(held_out) else None
    evaluations = study.closing_evaluations if task == "evaluate" else 1
    return Work(task, train, held_out, description, training, evaluation, evaluations)


def _wanted(plan: Plan | None, patients: PatientSet, uses: int = 1) -> list[Wanted]:
    return [Wanted(plan, frozenset(patients.patients), uses)] if plan else []


def _eligible(ledger: Ledger, plan: Plan, patients: PatientSet, policy: Policy) -> PatientSet:
    """Return the patients without those who opted out or have no budget left."""
    wanted = Wanted(plan, frozenset(patients.patients))
    allowed = ledger.eligible(wanted, limits(policy))
    stays = torch.tensor([p in allowed for p in patients.patients], dtype=torch.bool)
    return patients if bool(stays.all()) else patients.only(stays)
