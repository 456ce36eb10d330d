"""Who takes part in a round, and under which plan each part is charged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from client.data.cohort import Cohort, PatientSet
from client.policy import check_delta, check_patients, limits, shares_counts
from client.privacy.budget import Wanted
from client.privacy.chain import Purpose
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

    def uses(self) -> list[tuple[Plan, int]]:
        """Return what to reserve: the plans that the task uses, and how often."""
        evaluation = [(self.evaluation, self.evaluations)] if self.evaluation else []
        if self.task == "describe":
            return [(self.description, 1)] if self.description else []
        return [*evaluation, *self.tuning()] if self.task == "train" else evaluation

    def tuning(self) -> list[tuple[Plan, int]]:
        """Return what to reserve for a round of fine-tuning the site's own model."""
        return [(self.training, 1)] if self.training else []


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
    if task == "describe":
        stored = ledger.plan(study.digest, "describe")
        description = stored or description_plan(study, patients)
    evaluates = task != "train" or study.evaluates_rounds
    if policy.evaluation != "none" and evaluates and len(held_out):
        exact = policy.evaluation == "exact"
        stored = ledger.plan(study.digest, "exact-evaluation" if exact else "evaluate")
        evaluation = stored or evaluation_plan(study, patients, exact=exact)
        if not shares_counts(policy, study, held_out.labels):
            log.warning("too few held-out patients for exact counts: no evaluation leaves")
            evaluation = None
    evaluation = evaluation if len(held_out) else None
    evaluations = study.closing_evaluations if task == "evaluate" else 1
    wanted = [
        *_wanted(train, description, training),
        *(_wanted(held_out, evaluation) if task != "describe" else ()),
    ]
    joined = ledger.join(wanted, limits(policy))
    return Work(
        task,
        _who_joined(train, joined, description or training),
        held_out if task == "describe" else _who_joined(held_out, joined, evaluation),
        description,
        training,
        evaluation,
        evaluations,
    )


def _wanted(side: PatientSet, *plans: Plan | None) -> list[Wanted]:
    return [Wanted(plan, frozenset(side.patients)) for plan in plans if plan]


def _who_joined(
    side: PatientSet, joined: Mapping[Purpose, frozenset[str]], plan: Plan | None
) -> PatientSet:
    """Return the patients who take part; the others are as if they were not there."""
    if plan is None:
        return side
    here = joined[plan.purpose]
    stays = torch.tensor([patient in here for patient in side.patients], dtype=torch.bool)
    if absent := len(stays) - int(stays.sum()):
        log.warning("%d of %d patients take no part: %s", absent, len(stays), plan.purpose)
    return side if bool(stays.all()) else side.only(stays)
