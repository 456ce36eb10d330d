"""What patients have spent, have reserved and have left: the report the site can show."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from client.privacy.budget import held_back, plans_of, uses_of
from client.privacy.chain import Entry, Purpose
from client.privacy.groups import (
    EVERYONE,
    Charge,
    Group,
    Members,
    charges_of,
    group_patients,
    spent,
)
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan


class Record(BaseModel):
    """Base of the report's parts: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanReport(Record):
    """A mechanism a study uses here, and how often it was used.

    Attributes:
        noise_multiplier: Noise over sensitivity; 0: none, and no guarantee.
        steps: Of one use.
        used: Uses charged; rounds for training.
        committed: Uses that were carried out.
        uses: Most uses; the noise is calibrated for this many.
        spares: Part of `uses` kept for repeats.
    """

    study: str
    purpose: Purpose
    noise_multiplier: float
    sampling_rate: float
    steps: int
    used: int
    committed: int
    uses: int
    spares: int
    epsilon: float
    delta: float
    closed: bool


class Account(Record):
    """Epsilon of a group of patients with the same history; infinite values are left out.

    Attributes:
        study: Digest; empty: all studies together, for life.
        patients: How many patients are in the group.
        spent: Charged so far, reservations that were never committed included.
        reserved: What the rest of open studies will add.
        left: Of the budget after both.
        budget: Of the study, or the policy's for life.
        delta: At which all of these hold.
        unprotected: What was also released without noise: no guarantee covers it.
        others: Whether it also holds for every patient no other account counts, now or later.
    """

    study: str
    patients: int
    spent: float
    reserved: float
    left: float
    budget: float
    delta: float
    unprotected: tuple[Purpose, ...] = ()
    others: bool = False

    @property
    def who(self) -> str:
        """The patients in words."""
        if not self.others:
            return str(self.patients)
        return f"{self.patients} and all others" if self.patients else "all others"


class SpendingReport(Record):
    """The state of the ledger in numbers; local, since it counts patients by history."""

    plans: tuple[PlanReport, ...]
    accounts: tuple[Account, ...] = Field(description="by study and group; then for life")
    patients: int
    opted_out: int
    entries: int
    head: str


def spending_report(ledger: Ledger, *, budget: float, delta: float) -> SpendingReport:
    """Report all spending, per group and study and per group for life.

    Args:
        ledger: The site's ledger.
        budget: The policy's largest epsilon per patient over all studies.
        delta: The policy's delta, at which that budget holds.
    """
    entries, members = ledger.entries(), ledger.members()
    charges, coming = charges_of(entries), held_back(entries)
    accounts = []
    for study in dict.fromkeys(charge.study for charge in charges):
        plan = _main_plan(entries, study)
        own = [c for c in charges if c.study == study]
        later = [c for c in coming if c.study == study]
        accounts += _accounts(study, own, later, members, plan.epsilon, plan.delta)
    lifetime = _accounts("", charges, coming, members, budget, delta)
    return SpendingReport(
        plans=tuple(_plan_report(plan, entries) for plan in plans_of(entries).values()),
        accounts=(*accounts, *lifetime),
        patients=sum(account.patients for account in lifetime),
        opted_out=len(ledger.opted_out()),
        entries=entries[-1].seq,
        head=entries[-1].hash,
    )


def study_epsilon(entries: Sequence[Entry], members: Members, plan: Plan) -> float:
    """Return what a study's worst-off patients have spent in it, at the plan's delta."""
    charges = [charge for charge in charges_of(entries) if charge.study == plan.study]
    groups = group_patients([charge.cohort for charge in charges], members)
    return max((spent(group, charges, plan.delta).epsilon for group in groups), default=0.0)


def _accounts(
    study: str,
    charges: list[Charge],
    coming: list[Charge],
    members: Members,
    budget: float,
    delta: float,
) -> list[Account]:
    """Return one account for each group of patients charged or to be charged."""
    cohorts = [charge.cohort for charge in (*charges, *coming)]
    found: dict[tuple[float, float, tuple[Purpose, ...]], frozenset[str]] = {}
    for group in group_patients(cohorts, members):
        key = _state(group, charges, coming, delta)
        found[key] = found.get(key, frozenset()) | group.patients
    return [
        Account(
            study=study,
            patients=len(patients - {EVERYONE}),
            spent=now,
            reserved=max(0.0, later - now),
            left=max(0.0, budget - max(now, later)),
            budget=budget,
            delta=delta,
            unprotected=unprotected,
            others=EVERYONE in patients,
        )
        for (now, later, unprotected), patients in found.items()
    ]


def _state(
    group: Group, charges: list[Charge], coming: list[Charge], delta: float
) -> tuple[float, float, tuple[Purpose, ...]]:
    now = spent(group, charges, delta)
    later = spent(group, charges + coming, delta)
    return now.epsilon, later.epsilon, tuple(sorted(now.unprotected))


def _main_plan(entries: Sequence[Entry], study: str) -> Plan:
    """Return the study's plan with the largest epsilon: its budget."""
    plans = [plan for key, plan in plans_of(entries).items() if key[0] == study]
    return max(plans, key=lambda plan: plan.epsilon)


def _plan_report(plan: Plan, entries: Sequence[Entry]) -> PlanReport:
    done = {e.refers for e in entries if e.kind == "commit"}
    committed = sum(
        e.uses
        for e in entries
        if e.seq in done and (e.study, e.purpose) == (plan.study, plan.purpose)
    )
    return PlanReport(
        **{name: getattr(plan, name) for name in Plan.__dataclass_fields__},
        used=uses_of(entries, plan.study, plan.purpose),
        committed=committed,
        closed=any(e.kind == "close" and e.study == plan.study for e in entries),
    )
