"""What a request asks for and under which plans it is charged; then, who takes part in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from client.approvals import Approval
from client.data.cohort import Cohort, PatientSet
from client.policy import limits
from client.privacy.budget import Wanted
from client.privacy.chain import Purpose
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan, description_plan, evaluation_plan, training_plan
from client.site import Policy

Task = Literal["describe", "train", "evaluate"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plans:
    """The plans a request is charged by; no plan: not done. Nothing here depends on a patient.

    Attributes:
        task: What is asked.
        size: Training patients N, from the declared size of the cohort.
        description: Of the noised statistics, when they are asked for.
        training: Also when it only follows: after a description, or at the site alone.
        evaluation: Also when it only follows.
        evaluations: How many the task makes.
        subgroups: Whether those of subgroups may be made.
        trains: Whether the task, or what comes after it, trains.
    """

    task: Task
    size: int
    description: Plan | None
    training: Plan
    evaluation: Plan | None
    evaluations: int
    subgroups: bool
    trains: bool

    def uses(self) -> list[tuple[Plan, int]]:
        """Return the plans that the task uses, and how often."""
        evaluation = [(self.evaluation, self.evaluations)] if self.evaluation else []
        if self.task == "describe":
            return [(self.description, 1)] if self.description else []
        return [*evaluation, (self.training, 1)] if self.task == "train" else evaluation

    def of_train(self) -> list[Plan]:
        """Return the plans that patients who train are charged by, those to come among them."""
        return [plan for plan in (self.description, self.training) if plan and self.trains]

    def of_held_out(self) -> list[Plan]:
        """Return the plans that held-out patients are charged by."""
        return [self.evaluation] if self.evaluation and self.task != "describe" else []


@dataclass(frozen=True)
class Work:
    """The patients a request concerns.

    Attributes:
        train: Patients to train on, or to describe.
        held_out: Patients to evaluate on.
    """

    train: PatientSet
    held_out: PatientSet


def make_plans(ledger: Ledger, approval: Approval, task: Task, policy: Policy) -> Plans:
    """Choose the plans that apply to a request, from what a person approved.

    Those of the study's first round hold for all of it. Without a plan for training nothing is
    answered, also no evaluation.

    Raises:
        StudyError: No noise keeps the study's budget.
    """
    study, size = approval.study, approval.training_size
    training = ledger.plan(study.digest, "train") or training_plan(study, size)
    description = evaluation = None
    if task == "describe":
        description = ledger.plan(study.digest, "describe") or description_plan(study, size)
    exact = policy.evaluation == "exact"
    shares = policy.evaluation == "noised" or (exact and approval.exact != "none")
    if shares and (task != "train" or study.evaluates_rounds):
        stored = ledger.plan(study.digest, "exact-evaluation" if exact else "evaluate")
        evaluation = stored or evaluation_plan(study, size, exact=exact)
    evaluations = study.closing_evaluations if task == "evaluate" else 1
    subgroups = not exact or approval.exact == "subgroups"
    trains = task != "evaluate" or study.training.personal_rounds > 0
    return Plans(task, size, description, training, evaluation, evaluations, subgroups, trains)


def take_part(ledger: Ledger, plans: Plans, policy: Policy, cohort: Cohort) -> Work:
    """Leave out the patients of a cohort who opted out or have no budget; charge the others.

    Raises:
        LedgerError: It cannot be written, and nobody was charged.
    """
    train, held_out = frozenset(cohort.train.patients), frozenset(cohort.held_out.patients)
    sides = (plans.of_train(), train), (plans.of_held_out(), held_out)
    wanted = [Wanted(plan, patients) for own, patients in sides for plan in own]
    joined = ledger.join(wanted, limits(policy))
    return Work(
        _who_joined(cohort.train, joined, plans.of_train()),
        _who_joined(cohort.held_out, joined, plans.of_held_out()),
    )


def _who_joined(
    side: PatientSet, joined: Mapping[Purpose, frozenset[str]], plans: Sequence[Plan]
) -> PatientSet:
    """Return the patients who take part; the others are as if they were not there."""
    if not plans:
        return side
    here = frozenset.intersection(*(joined[plan.purpose] for plan in plans))
    stays = torch.tensor([patient in here for patient in side.patients], dtype=torch.bool)
    if absent := len(stays) - int(stays.sum()):
        log.warning("%d of %d patients take no part: %s", absent, len(stays), plans[0].purpose)
    return side if bool(stays.all()) else side.only(stays)
