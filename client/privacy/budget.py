"""Whether the patients of a study can afford all of it, before any of it is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from client.privacy.chain import Entry, Purpose, cohort_id
from client.privacy.groups import Charge, Group, Members, charges_of, group_patients, spent
from client.privacy.plans import Plan
from shared.errors import PolicyRefusal


@dataclass(frozen=True)
class Limits:
    """What the site's policy grants each patient.

    Attributes:
        epsilon: Over all studies together, for life.
        delta: At which `epsilon` is stated.
        waived: Purposes the policy knowingly shares without noise; without this waiver such a
            release has an infinite epsilon and rules the patient out.
    """

    epsilon: float
    delta: float
    waived: frozenset[Purpose] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Wanted:
    """Uses of a plan on patients, as asked for."""

    plan: Plan
    patients: frozenset[str]
    uses: int = 1


def plans_of(entries: Sequence[Entry]) -> dict[tuple[str, Purpose], Plan]:
    """Return the plans in the ledger by study and purpose."""
    return {(e.study, e.purpose): Plan.of_entry(e) for e in entries if e.kind == "plan"}


def uses_of(entries: Sequence[Entry], study: str, purpose: Purpose) -> int:
    """Return how many uses of a plan were charged, over all runs."""
    return sum(
        e.uses for e in entries if e.kind == "reserve" and e.study == study and e.purpose == purpose
    )


def held_back(entries: Sequence[Entry]) -> list[Charge]:
    """Return what open plans may still charge to the patients they last had."""
    closed = {e.study for e in entries if e.kind == "close"}
    last_cohort = {
        (e.study, e.purpose): e.cohort
        for e in entries
        if e.kind in ("plan", "reserve") and e.run != RECOVERED and e.cohort
    }
    return [
        rest(plan, uses_of(entries, *key), last_cohort[key])
        for key, plan in plans_of(entries).items()
        if plan.study not in closed and key in last_cohort
    ]


RECOVERED = "(recovered)"
"""Run named by charges for entries that were lost; it cannot be the name of a real run."""


def rest(plan: Plan, used: int, cohort: str) -> Charge:
    """Return the charge of all uses a plan has left."""
    left = max(0, plan.uses - used)
    return Charge(
        plan.study,
        plan.purpose,
        plan.noise_multiplier,
        plan.sampling_rate,
        left * plan.steps,
        cohort,
    )


def too_poor(
    entries: Sequence[Entry], wanted: Sequence[Wanted], members: Members, limits: Limits
) -> list[Group]:
    """Return the groups of wanted patients who cannot afford all of the study.

    Counted are what they have spent, what other studies still hold back for them, and every
    round and spare round this study has left.

    Args:
        entries: The ledger.
        wanted: Uses of the study's plans.
        members: Patients of each cohort in the ledger.
        limits: Of the policy.
    """
    asked = {(use.plan.study, use.plan.purpose) for use in wanted}
    others = [c for c in held_back(entries) if (c.study, c.purpose) not in asked]
    coming = [
        rest(use.plan, uses_of(entries, *_key(use.plan)), cohort_id(use.patients)) for use in wanted
    ]
    charges = charges_of(entries) + others + coming
    known = dict(members) | {cohort_id(use.patients): use.patients for use in wanted}
    affected = frozenset().union(*(use.patients for use in wanted))
    groups = group_patients([charge.cohort for charge in charges], known)
    return [
        group
        for group in groups
        if not group.patients.isdisjoint(affected)
        and not (_in_lifetime(group, charges, limits) and _in_study(group, charges, wanted))
    ]


def refuse_poor(entries: Sequence[Entry], groups: Sequence[Group], limits: Limits) -> None:
    """Refuse a round if any patients cannot afford it, and name the true cause.

    Args:
        entries: The ledger.
        groups: Those `too_poor` found.
        limits: Of the policy.

    Raises:
        PolicyRefusal: `budget-exhausted`.
    """
    bare = {group: found for group in groups if (found := _bare_releases(entries, group, limits))}
    if bare:
        raise PolicyRefusal(
            "budget-exhausted",
            f"{sum(len(group.patients) for group in bare)} patients are in releases without noise "
            "that the policy does not allow, or no longer does, and that no budget covers: "
            + ", ".join(sorted(frozenset[str]().union(*bare.values()))),
            "policy.evaluation, policy.allow_without_privacy",
            "Set the policy as it was when the site took part in them, or leave the study; what "
            "was released stays released",
        )
    if groups:
        raise PolicyRefusal(
            "budget-exhausted",
            f"{sum(len(group.patients) for group in groups)} patients would exceed their budget of "
            f"epsilon {limits.epsilon:g} before the study ends",
            "policy.max_epsilon_per_patient",
            "Close studies that have ended, raise the budget, or let these patients opt out",
        )


def check_uses(entries: Sequence[Entry], wanted: Wanted, run: str, round_number: int) -> None:
    """Refuse uses that the plan has no room for.

    A round of a run that was charged before is a repeat (its answer was lost), and takes spare
    uses; a new run of the study goes on with what the runs before it left.

    Raises:
        PolicyRefusal: `budget-exhausted`.
    """
    plan = wanted.plan
    if any(e.kind == "close" and e.study == plan.study for e in entries):
        raise PolicyRefusal(
            "budget-exhausted", "the study was closed at this site", f"study {plan.study[:12]}"
        )
    used = uses_of(entries, *_key(plan))
    done, repeats = set[tuple[str, int]](), 0
    for e in entries:
        if e.kind == "reserve" and (e.study, e.purpose) == _key(plan) and e.run != RECOVERED:
            repeats += e.uses if (e.run, e.round) in done else 0
            done.add((e.run, e.round))
    spared = (run, round_number) not in done or repeats + wanted.uses <= plan.spares
    if used + wanted.uses <= plan.uses and spared:
        return
    raise PolicyRefusal(
        "budget-exhausted",
        f"the study has used {used} of {plan.uses} uses it was calibrated for, "
        f"{repeats} of {plan.spares} spare ones among them; {wanted.uses} more were asked for",
        f"study {plan.study[:12]}, {plan.purpose}, round {round_number}",
        "The site sits out; a study with more spare rounds must be approved anew",
    )


def rounds_on(day: date, entries: Sequence[Entry]) -> int:
    """Return how many rounds of training were charged on a day (UTC).

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


def _key(plan: Plan) -> tuple[str, Purpose]:
    return plan.study, plan.purpose


def _bare_releases(entries: Sequence[Entry], group: Group, limits: Limits) -> frozenset[Purpose]:
    """Return what was, or will be, released of a group without noise and is not waived."""
    return frozenset(
        charge.purpose
        for charge in charges_of(entries) + held_back(entries)
        if charge.cohort in group.cohorts and charge.steps and not charge.noise_multiplier
    ).difference(limits.waived)


def _in_lifetime(group: Group, charges: Sequence[Charge], limits: Limits) -> bool:
    total = spent(group, charges, limits.delta)
    return total.epsilon <= limits.epsilon and total.unprotected <= limits.waived


def _in_study(group: Group, charges: Sequence[Charge], wanted: Sequence[Wanted]) -> bool:
    """Tell whether a group keeps the study's own budget, should it be in both its parts.

    A group in one part only keeps it by calibration, since uses are counted.
    """
    plan = max((use.plan for use in wanted), key=lambda plan: plan.epsilon)
    own = [c for c in charges if c.study == plan.study and c.cohort in group.cohorts and c.steps]
    if len({c.purpose for c in own if c.noise_multiplier}) < 2:
        return True
    return spent(group, own, plan.delta).epsilon <= plan.epsilon
