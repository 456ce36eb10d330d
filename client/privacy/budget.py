"""Who takes part in a study, decided for each patient alone, and how often its plans are used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from client.privacy.account import Limits, affords, best_order
from client.privacy.chain import Entry, Purpose
from client.privacy.groups import (
    EVERYONE,
    Charge,
    Key,
    Members,
    charges_of,
    closed_studies,
    group_patients,
    joined,
    key_of,
    left_out,
    uses_of,
)
from client.privacy.plans import Plan
from shared.errors import PolicyRefusal

RECOVERED = "(recovered)"
"""Run named by uses for entries that were lost; it cannot be the name of a real run."""


@dataclass(frozen=True)
class Wanted:
    """A plan and the patients it concerns: all of one side of a study."""

    plan: Plan
    patients: frozenset[str]


@dataclass(frozen=True)
class Decision:
    """What is decided for some patients, once and for all of a study.

    Attributes:
        plan: The plan.
        patients: Whom it concerns.
        joins: Whether they are charged all of it; else they take no part.
        order: At which the account of these patients is kept.
    """

    plan: Plan
    patients: frozenset[str]
    joins: bool
    order: float


def decide(
    entries: Sequence[Entry],
    members: Members,
    wanted: Sequence[Wanted],
    limits: Limits,
) -> list[Decision]:
    """Decide for each patient who is new to a plan: from that patient's own account alone.

    The plans wanted of a patient are joined together or not at all. Who was left out of a study,
    or is on its other side, takes no part in its further plans either. Patients of the same
    history are decided on at once, which gives the same for each.

    Args:
        entries: The ledger, with the plans.
        members: Patients of each cohort in it.
        wanted: Plans of one study, with their patients; nobody who has opted out.
        limits: What the policy grants each patient.
    """
    charges, have = charges_of(entries), joined(entries, members)
    without, orders = left_out(entries, members), account_orders(entries, members)
    accounts = {p: group.plans for group in group_patients(have) for p in group.patients}
    new: dict[str, list[Plan]] = defaultdict(list)
    for use in wanted:
        key = key_of(use.plan)
        decided = have.get(key, frozenset()) | without.get(key, frozenset())
        if EVERYONE not in decided and _has_uses_left(entries, use.plan):
            for patient in use.patients - decided:
                new[patient].append(use.plan)
    alike: dict[_History, set[str]] = defaultdict(set)
    for patient, plans in new.items():
        own = accounts.get(patient, accounts.get(EVERYONE, frozenset()))
        refused = any(patient in who for key, who in without.items() if key[0] == plans[0].study)
        order = orders.get(patient, best_order(limits))
        alike[_History(own, tuple(plans), order, refused)].add(patient)
    return [
        Decision(plan, frozenset(patients), plan in taken, history.order)
        for history, patients in alike.items()
        for taken in [_joins(history, charges, limits)]
        for plan in history.plans
    ]


def account_orders(entries: Iterable[Entry], members: Members) -> dict[str, float]:
    """Return the order each patient's account is kept at: that of the first plan joined."""
    orders: dict[str, float] = {}
    for e in entries:
        if e.kind == "join" and e.cohort and e.note:
            orders = dict.fromkeys(members[e.cohort], float(e.note)) | orders
    return orders


def check_uses(
    entries: Sequence[Entry], plan: Plan, uses: int, run: str, round_number: int
) -> None:
    """Refuse uses that a plan has no room for.

    A round of a run that was reserved before is a repeat (its answer was lost), and takes spare
    uses; a new run of the study goes on with what the runs before it left.

    Raises:
        PolicyRefusal: `budget-exhausted`.
    """
    if plan.study in closed_studies(entries):
        raise PolicyRefusal(
            "budget-exhausted", "the study was closed at this site", f"study {plan.study[:12]}"
        )
    used = uses_of(entries, *key_of(plan))
    done, repeats = set[tuple[str, int]](), 0
    for e in entries:
        if e.kind == "reserve" and (e.study, e.purpose) == key_of(plan) and e.run != RECOVERED:
            repeats += e.uses if (e.run, e.round) in done else 0
            done.add((e.run, e.round))
    spared = (run, round_number) not in done or repeats + uses <= plan.spares
    if used + uses <= plan.uses and spared:
        return
    raise PolicyRefusal(
        "budget-exhausted",
        f"the study has used {used} of {plan.uses} uses it was calibrated for, "
        f"{repeats} of {plan.spares} spare ones among them; {uses} more were asked for",
        f"study {plan.study[:12]}, {plan.purpose}, round {round_number}",
        "The site sits out; a study with more spare rounds must be approved anew",
    )


def rounds_on(day: date, entries: Sequence[Entry]) -> int:
    """Return how many rounds of training were reserved on a day (UTC).

    Rounds before an accepted setting-back of the clock count on that day if they are dated
    later, so that setting the clock back does not make room for more.
    """
    count, latest = 0, date.max
    for entry in reversed(entries):
        if entry.kind == "clock":
            latest = min(latest, entry.when.date())
        elif entry.kind == "reserve" and entry.purpose == "train" and entry.run != RECOVERED:
            count += min(latest, entry.when.date()) == day
    return count


@dataclass(frozen=True)
class _History:
    """All that decides whether a patient joins.

    Attributes:
        joined: Plans joined before.
        plans: New ones, all of one study.
        order: Of the account.
        refused: Whether the patient was left out of the study before.
    """

    joined: frozenset[Key]
    plans: tuple[Plan, ...]
    order: float
    refused: bool


_SIDE: Mapping[Purpose, str] = {
    "describe": "train",
    "train": "train",
    "evaluate": "held-out",
    "exact-evaluation": "held-out",
}


def _joins(history: _History, charges: Mapping[Key, Charge], limits: Limits) -> Collection[Plan]:
    """Return which of the new plans such a patient joins."""
    study = history.plans[0].study
    sides = [_SIDE[purpose] for of, purpose in history.joined if of == study]
    side = sides[0] if sides else _SIDE[history.plans[0].purpose]
    plans = [plan for plan in history.plans if _SIDE[plan.purpose] == side]
    own = [charges[key] for key in history.joined]
    coming = [Charge(plan, plan.uses) for plan in plans]
    joins = not history.refused and affords(own + coming, history.order, limits)
    return plans if joins else ()


def _has_uses_left(entries: Sequence[Entry], plan: Plan) -> bool:
    closed = plan.study in closed_studies(entries)
    return not closed and uses_of(entries, *key_of(plan)) < plan.uses
