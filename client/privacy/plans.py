"""What a study may do with a site's patients: a mechanism and how often it may be used."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from client.privacy.chain import Entry, Purpose
from shared.accounting import (
    Mechanism,
    before_training,
    calibrate,
    default_delta,
    renyi,
    stated_epsilon,
)
from shared.study import Study

ORDERS = (1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
"""Renyi orders at which each plan's cost is written into the ledger."""


@dataclass(frozen=True)
class Plan:
    """One mechanism of a study at this site, calibrated once, at the study's first round.

    Attributes:
        study: Digest of the study.
        purpose: What the mechanism releases.
        noise_multiplier: Noise over sensitivity; 0: no noise, so no guarantee.
        sampling_rate: Chance of each patient to be in a step; 1: all are.
        steps: Steps of one use.
        uses: Most uses, over all runs of the study; the noise is calibrated for this many.
        spares: Part of `uses` kept for repeats of a round whose answer was lost.
        epsilon: What all uses together cost a patient at most, at `delta`.
        delta: See `epsilon`.
        written: `costs` as the ledger holds them; empty: it does not, or there is no noise.
    """

    study: str
    purpose: Purpose
    noise_multiplier: float
    sampling_rate: float
    steps: int
    uses: int
    spares: int
    epsilon: float
    delta: float
    written: tuple[float, ...] = ()

    @classmethod
    def of_entry(cls, entry: Entry) -> Plan:
        """Return the plan as the ledger holds it."""
        names = cls.__dataclass_fields__.keys() - {"written"}
        costs = json.loads(entry.note)["renyi"] if entry.note else {}
        written = tuple(costs[str(order)] for order in ORDERS if costs)
        return cls(**{name: getattr(entry, name) for name in names}, written=written)

    @property
    def costs(self) -> tuple[float, ...]:
        """Renyi divergence of one use at each of `ORDERS`; infinite without noise."""
        once = Mechanism(self.noise_multiplier, self.sampling_rate, self.steps)
        return self.written or renyi(once, ORDERS)

    def entry(self) -> Entry:
        """Return the ledger's entry that fixes the plan, and its cost at each order."""
        costs = dict(zip(map(str, ORDERS), self.costs, strict=True))
        return Entry(
            kind="plan",
            study=self.study,
            purpose=self.purpose,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=self.steps,
            uses=self.uses,
            spares=self.spares,
            epsilon=self.epsilon,
            delta=self.delta,
            note=json.dumps({"renyi": costs}) if self.noise_multiplier else "",
        )

    def or_costlier(self, other: Plan) -> Plan:
        """Return a plan that costs no less than this one nor than another version of it."""
        return replace(
            self,
            noise_multiplier=min(self.noise_multiplier, other.noise_multiplier),
            sampling_rate=max(self.sampling_rate, other.sampling_rate),
            steps=max(self.steps, other.steps),
            uses=max(self.uses, other.uses),
            written=(),
        )


def description_plan(study: Study, patients: int) -> Plan:
    """Return the plan of the noised statistics a study releases once, before training.

    Its noise is the study's; training is calibrated so that both keep the budget together, so
    the epsilon stated is that of both.

    Args:
        study: A study that needs statistics; without privacy the plan has no noise.
        patients: Training patients N (public); sets the default delta.

    Raises:
        StudyError: No noise keeps the budget.
    """
    return Plan(
        study=study.digest,
        purpose="describe",
        noise_multiplier=study.privacy.statistics_noise if study.privacy.enabled else 0.0,
        sampling_rate=1.0,
        steps=1,
        uses=1 + study.privacy.spare_rounds,
        spares=study.privacy.spare_rounds,
        epsilon=training_plan(study, patients).epsilon,
        delta=study_delta(study, patients),
    )


def training_plan(study: Study, patients: int) -> Plan:
    """Calibrate training for the whole study: all rounds, those that stay here, and spare ones.

    What the study releases of the same patients before training is paid from the same budget.

    Args:
        study: The study; without privacy the plan has no noise.
        patients: Training patients N (public); sets the default delta.

    Raises:
        StudyError: No noise keeps the budget.
    """
    delta = study_delta(study, patients)
    rate = study.training.sampling_rate
    noise = cost = 0.0
    if study.privacy.enabled:
        beside = before_training(study)
        noise = calibrate(study.privacy.epsilon, delta, rate, study.total_steps, beside)
        whole = Mechanism(noise, rate, study.total_steps)
        cost = stated_epsilon(study.privacy.epsilon, delta, whole, beside)
    return Plan(
        study=study.digest,
        purpose="train",
        noise_multiplier=noise,
        sampling_rate=rate,
        steps=study.training.local_steps,
        uses=study.training_uses,
        spares=study.privacy.spare_rounds,
        epsilon=cost,
        delta=delta,
    )


def evaluation_plan(study: Study, patients: int, *, exact: bool) -> Plan:
    """Calibrate the score histograms for all evaluations of the study.

    Held-out patients take part in every evaluation (sampling rate 1) and in no training, so
    they have the study's whole epsilon for it.

    Args:
        study: The study.
        patients: Training patients N (public); sets the default delta, as for training.
        exact: Whether the site's policy shares exact counts; the plan then has no noise.
    """
    delta = study_delta(study, patients)
    noise = cost = 0.0
    if not exact:
        noise = calibrate(study.privacy.epsilon, delta, 1.0, study.evaluations)
        whole = Mechanism(noise, 1.0, study.evaluations)
        cost = stated_epsilon(study.privacy.epsilon, delta, whole)
    return Plan(
        study=study.digest,
        purpose="exact-evaluation" if exact else "evaluate",
        noise_multiplier=noise,
        sampling_rate=1.0,
        steps=1,
        uses=study.evaluations,
        spares=study.spare_evaluations,
        epsilon=cost,
        delta=delta,
    )


def study_delta(study: Study, patients: int) -> float:
    """Return the study's delta at a site of N training patients."""
    given = study.privacy.delta
    return default_delta(patients) if given is None else given
