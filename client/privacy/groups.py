"""What patients have spent, computed once per group of patients with the same history."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from client.privacy.chain import Entry, Purpose
from shared.accounting import Mechanism, epsilon

Members = Mapping[str, frozenset[str]]
"""Patients (pseudonyms) of each cohort id."""

EVERYONE = "everyone"
"""Stands in a cohort for every patient there is or will be, known or not.

What is charged to a cohort with it counts for all patients. It is charged where the patients
of then cannot be named, and no patient has it for a pseudonym.
"""


@dataclass(frozen=True)
class Charge:
    """Steps of one mechanism on the patients of one cohort."""

    study: str
    purpose: Purpose
    noise_multiplier: float
    sampling_rate: float
    steps: int
    cohort: str


@dataclass(frozen=True)
class Group:
    """Patients who are in exactly the same cohorts, so that they have spent the same."""

    cohorts: frozenset[str]
    patients: frozenset[str]


@dataclass(frozen=True)
class Spent:
    """What a group has spent.

    Attributes:
        epsilon: Of everything that was released with noise.
        unprotected: What was released without noise; no epsilon covers it.
    """

    epsilon: float
    unprotected: frozenset[Purpose]


def charges_of(entries: Iterable[Entry]) -> list[Charge]:
    """Return everything charged: each reservation, whether or not it was committed."""
    return [
        Charge(e.study, e.purpose, e.noise_multiplier, e.sampling_rate, e.steps, e.cohort)
        for e in entries
        if e.kind == "reserve" and e.cohort is not None
    ]


def group_patients(cohorts: Collection[str], members: Members) -> list[Group]:
    """Partition the patients of these cohorts by the set of cohorts they are in.

    Where a cohort holds `EVERYONE`, one group has it too: the patients who are in no other.
    """
    of_patient: dict[str, list[str]] = defaultdict(list)
    for cohort in sorted(set(cohorts)):
        for patient in members[cohort]:
            of_patient[patient].append(cohort)
    groups: dict[frozenset[str], set[str]] = defaultdict(set)
    of_all = of_patient.get(EVERYONE, [])
    for patient, own in of_patient.items():
        groups[frozenset(own).union(of_all)].add(patient)
    return [
        Group(own, frozenset(patients))
        for own, patients in sorted(groups.items(), key=lambda item: sorted(item[0]))
    ]


def spent(group: Group, charges: Sequence[Charge], delta: float) -> Spent:
    """Compose everything charged to a group.

    Args:
        group: The patients.
        charges: All charges to count; those of other cohorts are left out here.
        delta: At which epsilon is stated.
    """
    own = [charge for charge in charges if charge.cohort in group.cohorts and charge.steps]
    return Spent(
        epsilon([mechanism(charge) for charge in own if charge.noise_multiplier], delta),
        frozenset(charge.purpose for charge in own if not charge.noise_multiplier),
    )


def mechanism(charge: Charge) -> Mechanism:
    """Return the mechanism of a charge as the accountant takes it."""
    return Mechanism(charge.noise_multiplier, charge.sampling_rate, charge.steps)
