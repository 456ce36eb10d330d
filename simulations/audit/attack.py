"""The one-run audit: train with canaries by the product's code, and guess who was there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from client.data.cohort import PatientSet
from client.privacy.stream import RandomStream
from client.training import train_round
from shared.accounting import calibrate
from shared.study import Study
from simulations.audit.bound import Bound, Coins, Scores, best_bound, largest_bound
from simulations.audit.canaries import (
    SEARCHED,
    AuditModel,
    AuditPlan,
    canary_images,
    mislabelled,
    ordinary_patients,
    with_canaries,
)
from simulations.audit.lots import LotRecorder, Table
from simulations.audit.scores import log_likelihood_ratio, probe

# Trains in place: model, patients, study, noise multiplier, number of the round, randomness.
Trainer = Callable[[nn.Module, PatientSet, Study, float, int, RandomStream], None]

CONFIDENCE = 0.95
PHYSICAL_BATCH = 512


@dataclass(frozen=True)
class AttackResult:
    """What the attack on one training run found.

    Attributes:
        noise_multiplier: Calibrated for the claim.
        included: How many of the canaries the coins let in.
        bound: The lower bound on epsilon at 95 % confidence, and its guesses.
        largest: The bound that so many canaries could show at all.
        scores: The summed log likelihood ratios, float64 [canaries].
        coins: Who was included, bool [canaries].
        lots: Whose images each step read, bool [steps, patients].
    """

    noise_multiplier: float
    included: int
    bound: Bound
    largest: float
    scores: Scores
    coins: Coins
    lots: Table


def product_round(
    model: nn.Module,
    patients: PatientSet,
    study: Study,
    noise_multiplier: float,
    round_number: int,
    stream: RandomStream,
) -> None:
    """Train one round as a hospital does, in place."""
    train_round(
        model,
        patients,
        study,
        size=len(patients),
        noise_multiplier=noise_multiplier,
        round_number=round_number,
        stream=stream,
        device=torch.device("cpu"),
        physical_batch=PHYSICAL_BATCH,
    )


def attack(plan: AuditPlan, stream: RandomStream, trainer: Trainer = product_round) -> AttackResult:
    """Train once with randomly chosen canaries and bound epsilon from below.

    White-box: the auditor sees the weights after every round and knows the study, the noise and
    the canaries; only the coins, the lots and the noise are hidden.

    Args:
        plan: The claim and the training.
        stream: Throws the coins and serves the training.
        trainer: What is audited; it is handed the noise calibrated for the claim.

    Raises:
        StudyError: A value of the plan is out of its range.
    """
    study = plan.study()
    noise = calibrate(plan.epsilon, plan.delta, plan.sampling_rate, study.total_steps)
    model = AuditModel(plan.size)
    images = canary_images(plan.canaries, plan.size)
    labels = mislabelled(model, images)
    coins = stream.uniform(plan.canaries) < 0.5
    patients = with_canaries(ordinary_patients(plan), images[coins], labels[coins], plan.images)
    recorder = LotRecorder(patients)
    scores = torch.zeros(plan.canaries, dtype=torch.float64)
    for number in range(1, plan.rounds + 1):
        looked_for = probe(model, images, labels, study.privacy.clip)
        before = _searched(model)
        trainer(model, recorder.patients, study, noise, number, stream)
        # The step divided the noised sum by C and the expected lot, which are both public.
        moved = (before - _searched(model)) / study.training.learning_rate
        total = moved * plan.sampling_rate * len(patients)
        scores += log_likelihood_ratio(
            looked_for.direction @ total,
            looked_for.strength,
            noise,
            plan.sampling_rate,
            plan.steps,
        )
    found, truth = scores.numpy(), coins.numpy()
    return AttackResult(
        noise_multiplier=noise,
        included=int(np.count_nonzero(truth)),
        bound=best_bound(found, truth, plan.delta, CONFIDENCE),
        largest=largest_bound(plan.canaries, plan.delta, CONFIDENCE),
        scores=found,
        coins=truth,
        lots=recorder.table(),
    )


def _searched(model: nn.Module) -> torch.Tensor:
    return model.get_parameter(SEARCHED).detach().flatten().clone()
