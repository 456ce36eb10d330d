"""What patients are charged and have left: the report the site can show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from client.privacy.account import Limits, allowance, best_order, bound, divergence, part_of
from client.privacy.budget import account_orders
from client.privacy.chain import Entry, Purpose
from client.privacy.groups import (
    EVERYONE,
    Charge,
    Key,
    bare,
    charges_of,
    closed_studies,
    epsilon_of,
    group_patients,
    joined,
    key_of,
    left_out,
    plans_of,
    uses_of,
)
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan
from shared.accounting import replacement_epsilon


class Record(BaseModel):
    """Base of the report's parts: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanReport(Record):
    """A mechanism a study uses here, and how often it was used.

    Attributes:
        noise_multiplier: Noise over sensitivity; 0: none, and no guarantee.
        steps: Of one use.
        used: Uses reserved; rounds for training.
        committed: Uses that were carried out.
        uses: Most uses; the noise is calibrated for this many.
        spares: Part of `uses` kept for repeats.
        joined: How many patients are charged by it; who opted out since is one of them.
        left_out: How many take no part for want of budget.
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
    joined: int
    left_out: int


class Account(Record):
    """What patients with the same history are charged, in one study or for life.

    Whoever takes part in a study is charged all of it at once: every round, spare ones too.

    Attributes:
        study: Digest; empty: all studies together, for life.
        patients: How many patients are in the group.
        epsilon: The bound that holds for them. In a study: of all they are charged. For life:
            the budget; more only for those who were charged more by an earlier release, or
            under a larger budget.
        replacement: The same where a patient's data is replaced by other data and not by
            nothing (`shared.accounting.replacement_epsilon`); in a study only.
        used: Part of the budget that is charged; for life, of its Renyi divergence at the order
            their account is kept at.
        budget: Of the study, or the policy's for life.
        delta: At which these hold.
        unprotected: What is also released without noise: no guarantee covers it.
        others: Whether it also holds for every patient no other account counts, now or later.
    """

    study: str
    patients: int
    epsilon: float
    replacement: float | None = None
    used: float
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


def spending_report(ledger: Ledger, limits: Limits) -> SpendingReport:
    """Report all that is charged, per group and study and per group for life.

    Args:
        ledger: The site's ledger.
        limits: What the policy grants each patient over all studies.
    """
    entries, members = ledger.entries(), ledger.members()
    charges, have = charges_of(entries), joined(entries, members)
    without = left_out(entries, members)
    accounts = []
    for study in dict.fromkeys(key[0] for key in have):
        own = {key: patients for key, patients in have.items() if key[0] == study}
        accounts += _merged(_study_accounts(study, charges, own))
    lifetime = _merged(_lifetime_accounts(charges, have, account_orders(entries, members), limits))
    return SpendingReport(
        plans=tuple(
            _plan_report(plan, entries, have.get(key, frozenset()), without.get(key, frozenset()))
            for key, plan in plans_of(entries).items()
        ),
        accounts=(*accounts, *lifetime),
        patients=sum(account.patients for account in lifetime),
        opted_out=len(ledger.opted_out()),
        entries=ledger.head().entries,
        head=ledger.head().hash,
    )


def study_epsilon(entries: Sequence[Entry], plan: Plan) -> float:
    """Return what the uses a study has made cost a patient who was in all of them.

    Of the two sides, training and held-out, the larger; at the plan's delta. It says nothing of
    who the patients were.
    """
    made = [
        Charge(each, uses_of(entries, *key))
        for key, each in plans_of(entries).items()
        if key[0] == plan.study
    ]
    training = [c for c in made if c.plan.purpose in ("describe", "train")]
    held_out = [c for c in made if c.plan.purpose not in ("describe", "train")]
    return max(epsilon_of(side, plan.delta) for side in (training, held_out))


def study_budget(entries: Sequence[Entry], study: str) -> float:
    """Return what all uses of a study's plans may cost a patient: the larger of both sides.

    One side costs less where its noise was raised (`shared.accounting.LEAST_NOISE`).
    """
    return max(plan.epsilon for key, plan in plans_of(entries).items() if key[0] == study)


def _study_accounts(
    study: str, charges: Mapping[Key, Charge], have: Mapping[Key, frozenset[str]]
) -> list[tuple[Account, frozenset[str]]]:
    main = max((charges[key].plan for key in have), key=lambda plan: plan.epsilon)
    found = []
    for group in group_patients(have):
        own = [charges[key] for key in group.plans]
        epsilon = epsilon_of(own, main.delta)
        account = Account(
            study=study,
            patients=0,
            epsilon=epsilon,
            replacement=_replacement(own, main.delta),
            used=epsilon / main.epsilon if main.epsilon else 0.0,
            budget=main.epsilon,
            delta=main.delta,
            unprotected=tuple(sorted(bare(own))),
        )
        found.append((account, group.patients))
    return found


def _replacement(charges: Collection[Charge], delta: float) -> float:
    noised = [charge for charge in charges if charge.plan.noise_multiplier]
    training = [c.mechanism for c in noised if c.plan.purpose == "train"]
    counts = [c.mechanism for c in noised if c.plan.purpose != "train"]
    return replacement_epsilon(training, delta, counts)


def _lifetime_accounts(
    charges: Mapping[Key, Charge],
    have: Mapping[Key, frozenset[str]],
    orders: Mapping[str, float],
    limits: Limits,
) -> list[tuple[Account, frozenset[str]]]:
    found = []
    for group in group_patients(have):
        own = [charges[key] for key in group.plans]
        of_order: dict[float, set[str]] = defaultdict(set)
        for patient in group.patients:
            of_order[orders.get(patient, best_order(limits))].add(patient)
        found += [
            (_lifetime_account(own, order, limits), frozenset(patients))
            for order, patients in of_order.items()
        ]
    return found


def _lifetime_account(own: Collection[Charge], order: float, limits: Limits) -> Account:
    spent, granted = divergence(own, order), allowance(limits, order)
    over = spent > granted
    return Account(
        study="",
        patients=0,
        epsilon=bound(spent, order, limits.delta) if over else limits.epsilon,
        used=part_of(spent, granted),
        budget=limits.epsilon,
        delta=limits.delta,
        unprotected=tuple(sorted(bare(own))),
    )


def _merged(found: Sequence[tuple[Account, frozenset[str]]]) -> list[Account]:
    """Return one account for all groups that are charged the same."""
    patients: dict[Account, frozenset[str]] = {}
    for account, own in found:
        patients[account] = patients.get(account, frozenset()) | own
    return [
        account.model_copy(update={"patients": len(own - {EVERYONE}), "others": EVERYONE in own})
        for account, own in patients.items()
    ]


def _plan_report(
    plan: Plan, entries: Sequence[Entry], taking: frozenset[str], without: frozenset[str]
) -> PlanReport:
    done = {e.refers for e in entries if e.kind == "commit"}
    committed = sum(
        e.uses
        for e in entries
        if e.kind == "reserve" and e.number in done and (e.study, e.purpose) == key_of(plan)
    )
    names = Plan.__dataclass_fields__.keys() & PlanReport.model_fields.keys()
    return PlanReport(
        **{name: getattr(plan, name) for name in names},
        used=uses_of(entries, *key_of(plan)),
        committed=committed,
        closed=plan.study in closed_studies(entries),
        joined=len(taking - {EVERYONE}),
        left_out=len(without),
    )
