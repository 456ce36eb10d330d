"""What patients are charged, computed once per group of patients with the same history."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from client.privacy.chain import Entry, Kind, Purpose
from client.privacy.plans import Plan
from shared.accounting import Mechanism, epsilon

Key = tuple[str, Purpose]
"""A plan's study and purpose; a study has one plan for each purpose."""

Members = Mapping[str, frozenset[str]]
"""Patients (pseudonyms) of each cohort id."""

EVERYONE = "everyone"
"""Stands in a cohort for every patient there is or will be, known or not.

What is charged to a cohort with it counts for all patients. It is charged where the patients
of then cannot be named, and no patient has it for a pseudonym.
"""


@dataclass(frozen=True)
class Charge:
    """What a plan charges each patient who joined it.

    Attributes:
        plan: The plan.
        uses: All the plan has; of a study that was closed, those that were made.
    """

    plan: Plan
    uses: int

    @property
    def mechanism(self) -> Mechanism:
        """The charge as the accountant takes it."""
        plan = self.plan
        return Mechanism(plan.noise_multiplier, plan.sampling_rate, self.uses * plan.steps)


@dataclass(frozen=True)
class Group:
    """Patients who have joined exactly the same plans, so that they are charged the same."""

    plans: frozenset[Key]
    patients: frozenset[str]


def key_of(plan: Plan) -> Key:
    """Return a plan's study and purpose."""
    return plan.study, plan.purpose


def plans_of(entries: Sequence[Entry]) -> dict[Key, Plan]:
    """Return the plans in the ledger."""
    return {(e.study, e.purpose): Plan.of_entry(e) for e in entries if e.kind == "plan"}


def uses_of(entries: Sequence[Entry], study: str, purpose: Purpose) -> int:
    """Return how many uses of a plan were made, over all runs."""
    return sum(
        e.uses for e in entries if e.kind == "reserve" and e.study == study and e.purpose == purpose
    )


def closed_studies(entries: Sequence[Entry]) -> frozenset[str]:
    """Return the studies that will not train here any more."""
    return frozenset(e.study for e in entries if e.kind == "close")


def charges_of(entries: Sequence[Entry]) -> dict[Key, Charge]:
    """Return what each plan charges whoever joined it, whenever that was."""
    closed = closed_studies(entries)
    return {
        key: Charge(plan, uses_of(entries, *key) if plan.study in closed else plan.uses)
        for key, plan in plans_of(entries).items()
    }


def joined(entries: Sequence[Entry], members: Members) -> dict[Key, frozenset[str]]:
    """Return who is charged by each plan: whoever is named with it and not left out."""
    return _named(entries, members, {"plan", "reserve", "join"})


def left_out(entries: Sequence[Entry], members: Members) -> dict[Key, frozenset[str]]:
    """Return who takes no part in each plan for want of budget."""
    return _named(entries, members, {"leave-out"})


def group_patients(joined: Mapping[Key, Collection[str]]) -> list[Group]:
    """Partition patients by the set of plans they have joined.

    Where `EVERYONE` has joined, one group has it too: the patients who are in no other.
    """
    of_patient: dict[str, list[Key]] = defaultdict(list)
    for key in sorted(joined):
        for patient in joined[key]:
            of_patient[patient].append(key)
    groups: dict[frozenset[Key], set[str]] = defaultdict(set)
    of_all = of_patient.get(EVERYONE, [])
    for patient, own in of_patient.items():
        groups[frozenset(own).union(of_all)].add(patient)
    return [
        Group(own, frozenset(patients))
        for own, patients in sorted(groups.items(), key=lambda item: sorted(item[0]))
    ]


def epsilon_of(charges: Collection[Charge], delta: float) -> float:
    """Return the epsilon of all charges with noise, should they have been fixed in advance.

    Args:
        charges: Of the same patients.
        delta: At which epsilon is stated.
    """
    return epsilon([charge.mechanism for charge in charges if charge.plan.noise_multiplier], delta)


def bare(charges: Collection[Charge]) -> frozenset[Purpose]:
    """Return what is charged without noise; no epsilon covers it."""
    made = (charge for charge in charges if charge.uses)
    return frozenset(charge.plan.purpose for charge in made if not charge.plan.noise_multiplier)


def _named(
    entries: Sequence[Entry], members: Members, kinds: set[Kind]
) -> dict[Key, frozenset[str]]:
    found: dict[Key, frozenset[str]] = defaultdict(frozenset)
    for e in entries:
        if e.cohort and e.kind in kinds:
            found[e.study, e.purpose] |= members[e.cohort]
    return dict(found)
